"""`lit-spectral quickstart`: LoRA beside FCLoRA on what ships with Python, and what each forgets."""

from __future__ import annotations

import time
from pathlib import Path

from lit_spectral.comparison import command
from lit_spectral.datamodules.corpora import PYTHON_DOCS
from lit_spectral.errors import Parser
from lit_spectral.paths import config_file

__all__ = ["run"]


def run(args: list[str]) -> Path:
    """Compare both on a config, in a new folder; returns the page's file.

    Raises:
        InputError: as in `lit_spectral.comparison.command.run`.
    """
    parser = Parser(prog="lit-spectral quickstart", description="LoRA beside FCLoRA on text that ships with Python.")
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml", metavar="CONFIG",
                        help="a sentence task on an encoder with a masked-language head (%(default)s)")  # fmt: skip
    config = parser.parse_args(args).config
    config_file(config)
    folder = Path("runs", "quickstart", time.strftime("%Y%m%d-%H%M%S"))
    given = {"config": config, "seeds": "42", "corpora": PYTHON_DOCS, "limit": "1000", "output_folder": str(folder)}
    print(f"curves while it runs: tensorboard --logdir {folder}")
    return command.run([part for flag, value in given.items() for part in (f"--{flag}", value)])
