"""What a large backbone takes on one machine: loading, spectra, a few steps, saving; a line a method.

    python -m benchmarks.large --shape 8b --folder /somewhere/8b --json 8b.json
    python -m benchmarks.large --shape 1b --methods FCLoRA --quantization nf4
    python -m benchmarks.large --shape 7b-width --strategy fsdp2

The backbone is a Llama of any shape with random weights in bfloat16, written to `--folder` unless it is there (16 GB
for 8b), or to a temporary one. Every method runs in a process of its own, so that peaks of memory are its own, and
finds its spectra in a cache that is empty at first. A method whose line is in the JSON is not run again; to measure
anew, give another file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.large_run import METHODS, run
from benchmarks.large_weights import parse, write
from lit_spectral.terminal import print_anything

HEAD = (
    "method",
    "load, s",
    "spectra, s",
    "from cache, s",
    "inputs, s",
    "attach, s",
    "step, s",
    "save, s",
    "file / adapter",
    "peak while loading, GiB (anonymous)",
    "peak, GiB (anonymous)",
    "GPU's peak, GiB",
    "loss",
)


def line(method: str, found: dict[str, Any]) -> str:
    """One row of the table, in Markdown."""
    seconds, total, anonymous = found["seconds"], found["total"], found["anonymous"]
    cells = [method, *(f"{seconds.get(key, 0):.1f}" for key in ("load", "spectra", "cached", "inputs", "attach"))]
    cells += [f"{min(found['steps']):.1f}", f"{seconds['save']:.1f}", f"{found['file'] / found['adapter']:.4f}"]
    cells.append(f"{total['load']:.1f} ({anonymous['load']:.1f})")
    cells.append(f"{max(total.values()):.1f} ({max(anonymous.values()):.1f})")
    cells.append(f"{found['gpu']:.1f}" if found["gpu"] else "")
    cells.append(", ".join(f"{loss:.3f}" for loss in found["losses"]))
    return f"| {' | '.join(cells)} |"


def measured(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one method, by a process of its own with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.large", "--shape", options.shape, "--folder", str(folder)]
        command += ["--methods", method, "--steps", str(options.steps), "--length", str(options.length)]
        command += ["--strategy", options.strategy]
        command += ["--quantization", options.quantization] if options.quantization else []
        environment = os.environ | {"LIT_SPECTRAL_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "--json", str(figures), "--here"], check=True, env=environment)
        return dict(json.loads(figures.read_text()))


def main() -> None:
    """Measure what the command line asks for, print the table and write the JSON."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", help="8b, 7b-width, 1b, tiny, or six numbers (large_weights.py)")
    parser.add_argument("--folder", type=Path, help="where the weights lie or are written, and kept")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--length", type=int, default=256, help="tokens of a step")
    parser.add_argument("--quantization", help="given to the task as it is")
    parser.add_argument("--strategy", default="auto", help="the trainer's, on one device")
    parser.add_argument("--json", type=Path, default=Path("large.json"), help="raw figures, added to method by method")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.here:
        settings = {"quantization": options.quantization} if options.quantization else {}
        found = run(options.folder, options.methods[0], options.steps, options.length, options.strategy, settings)
        options.json.write_text(json.dumps(found))
        return
    figures = json.loads(options.json.read_text()) if options.json.is_file() else {}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        write(folder, parse(options.shape))
        for method in options.methods:
            # Of other weights, steps or lengths there may be lines too.
            key = f"{method} {options.shape} {options.quantization or 'bfloat16'} {options.steps} x {options.length}"
            key += "" if options.strategy == "auto" else f" {options.strategy}"
            if key not in figures:
                figures[key] = measured(method, folder, options)
                options.json.write_text(json.dumps(figures, indent=2))
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for key, found in figures.items():
        print(line(key, found))


if __name__ == "__main__":
    main()
