"""Seconds of taking an adapter away to peft's form, beside writing as many bytes alone, in one run.

    python -m benchmarks.export [--shape 8b] [--rank 8] [--rounds 5] [--json FILE]

The adapter is of random factors, on the maps of a Llama that are adapted by default. Of its backbone there are a config
and a file of holes: names and sizes, and no bytes on disk. All take turns. What is done as a process begins with an
interpreter; two that only import say how much of it that is.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.large_weights import Shape, parse, shards
from benchmarks.measure import in_turn, ratio
from lit_spectral.files import written
from lit_spectral.terminal import print_anything
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.exports import write
from lit_spectral.updates.sources import read

ADAPTED = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
BYTES = "its bytes alone"


def hollow(folder: Path, shape: Shape) -> None:
    """Write a backbone's folder whose weights are a hole of the right size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    header: dict[str, Any] = {}
    end = 0
    for name, size in (item for sizes in shards(shape) for item in sizes.items()):
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def adapter(backbone: Path, shape: Shape, rank: int) -> Update:
    """Of random factors."""
    generator = torch.Generator().manual_seed(0)
    changes = {}
    for name, size in (item for sizes in shards(shape) for item in sizes.items()):
        path = name.removesuffix(".weight")
        if path.endswith(ADAPTED):
            sides = ((size[0], rank), (rank, size[1]))
            changes[path] = Delta(Pair(*(torch.randn(side, generator=generator) for side in sides)))
    return Update(changes, backbone=str(backbone))


def measure(folder: Path, shape: Shape, rank: int, rounds: int) -> tuple[int, dict[str, list[float]]]:
    """How many bytes are written, and seconds of each round by what was done."""
    hollow(folder / "backbone", shape)
    source, checkpoint, out = folder / "adapter", folder / "adapter.ckpt", folder / "out"
    update = adapter(folder / "backbone", shape, rank)
    write(update, source, "peft")
    write(update, checkpoint, "checkpoint")
    content = b"".join(file.read_bytes() for file in sorted(source.iterdir()))

    def export(given: Path) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            write(read(str(given)), out, "peft")

        return run

    def alone() -> None:
        with written(folder / "bytes") as scratch:
            scratch.write_bytes(content)

    def process(*args: str) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)

        return run

    verb = ("-m", "lit_spectral", "export")
    actions: dict[str, Callable[[], None]] = {
        BYTES: alone,
        "export of peft's folder": export(source),
        "export of a checkpoint": export(checkpoint),
        "a process: export of peft's folder": process(*verb, str(source), "--output", str(out)),
        "a process: export of a checkpoint": process(*verb, str(checkpoint), "--output", str(out)),
        "a process: import torch": process("-c", "import torch"),
        "a process: and the model's class": process("-c", "import torch; from transformers import LlamaForCausalLM"),
    }
    return len(content), in_turn(actions, rounds, torch.device("cpu"))


def main() -> None:
    """Measure what the command line asks for, and print the table."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=parse, default="8b", help="8b, 1b, …, or six numbers (large_weights.py)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        size, seconds = measure(Path(scratch), options.shape, options.rank, options.rounds)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    print(f"{size / 1e6:.0f} MB\n| what | s | over writing its bytes |\n|---|---|---|")
    for what, taken in seconds.items():
        times = ratio(taken, seconds[BYTES])
        print(f"| {what} | {statistics.median(taken):.2f} | {times.median:.1f} ({times.low:.1f}–{times.high:.1f}) |")
    if options.json:
        options.json.write_text(json.dumps({"bytes": size, "seconds": seconds}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
