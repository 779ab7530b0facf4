"""Data modules: rows from the hub or a local folder, tokenised, as batches."""

from lit_spectral.datamodules.glue import GLUE
from lit_spectral.datamodules.masked_text import MaskedText
from lit_spectral.datamodules.python_docs import PythonDocs
from lit_spectral.datamodules.text import TextDataModule

__all__ = ["GLUE", "MaskedText", "PythonDocs", "TextDataModule"]
