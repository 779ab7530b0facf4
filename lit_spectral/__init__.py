"""Spectral parameter-efficient fine-tuning of language models, on PyTorch Lightning."""

from importlib.metadata import version

__version__ = version("lit-spectral")
