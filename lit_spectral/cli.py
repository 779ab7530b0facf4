"""The command line: LightningCLI with this package's tasks, methods, data modules and callbacks."""

from __future__ import annotations

import os
import sys
import warnings

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

import lit_spectral.callbacks
import lit_spectral.datamodules  # noqa: F401  (short class names work for what is imported)
from lit_spectral.errors import InputError
from lit_spectral.methods import Method
from lit_spectral.tasks import Task

__all__ = ["main"]

# Methods are dataclasses; jsonargparse takes subclasses of those only where it is told to.
set_parsing_settings(subclasses_enabled=[Method])


class SpectralCLI(LightningCLI):
    """LightningCLI over `Task` and any data module; optimisers are the task's own business."""

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        super().__init__(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"logger": {"level": "WARNING"}},
            args=args,
            run=run,
        )


def main(args: list[str] | None = None) -> None:
    """Run the command line; a mistake in what was given is one line on stderr and exit status 2."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        SpectralCLI(args)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
