"""What a number depends on besides the weights: versions, and the state of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from lit_spectral import __version__

__all__ = ["described", "provenance"]

_PACKAGES = ("lightning", "transformers", "datasets", "lm_eval")


def provenance() -> dict[str, Any]:
    """Versions, and under `git` the commit and dirtiness of the current folder; None outside a repository."""
    # Of torch its own word: it names the build (+cpu, +cu130), which the name of what was installed may not.
    ours = {"python": platform.python_version(), "lit-spectral": __version__, "torch": str(torch.__version__)}
    return {"versions": ours | {name: version(name) for name in _PACKAGES}, "git": _git_state()}


def described() -> str | None:
    """The commit that the current folder is at, by git's short name; None outside a repository."""
    return _git("describe", "--always")


def _git_state() -> dict[str, Any] | None:
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], capture_output=True, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
