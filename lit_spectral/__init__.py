"""Spectral parameter-efficient fine-tuning of language models, on PyTorch Lightning."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_spectral.updates.live import load as load

__version__ = "0.1.0"

_FOLDER = Path(__file__).absolute().parent


class _Checkout(MetaPathFinder):
    """Finds the subpackages that lie beside this folder in a checkout, and nothing else there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        ours = parent == __name__ and name in {"callbacks", "configs", "datamodules"}
        return PathFinder.find_spec(fullname, [str(_FOLDER.parent)]) if ours else None


# Installed they lie inside, and folders beside are someone else's.
if not (_FOLDER / "callbacks" / "__init__.py").exists():
    sys.meta_path.insert(0, _Checkout())


def __getattr__(name: str) -> Any:
    """`load`, whose libraries are heavy, once it is asked for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_spectral.updates.live import load

    return load
