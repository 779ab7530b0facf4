"""Ours beside peft's, interleaved in one process: ratios with their spread, beside the aims.

    python -m benchmarks [--sizes tiny base 7b-block] [--dtypes bfloat16 float32] [--rows lora fclora …]
                         [--rounds 10] [--json benchmarks.json] [--nf4]

Every contender takes one step in every round, in an order that turns; a ratio is that of two times of
one round, and the table gives the median and the quartiles over the rounds. Nothing else may run on
the machine. On a GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import models, once
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Ratio, counts, in_turn, ratio
from lit_spectral.terminal import print_anything

# What is compared: row, ours, against, aims on an encoder and on a decoder.
STEPS: list[tuple[str, str, str, tuple[float | None, float | None]]] = [
    ("lora", "LoRA", "peft LoRA", (0.74, 0.80)),
    ("lora", "LoRA", "peft LoRA, fastest", (0.88, 0.95)),
    ("lora", "peft LoRA, fastest", "peft LoRA", (None, None)),
    ("lora", "no adapter", "peft LoRA", (None, None)),
    ("lora", "LoRA", "no adapter", (None, None)),
    ("fclora", "FCLoRA", "peft LoRA", (0.76, 0.80)),
    ("fclora", "FCLoRA, ball", "peft LoRA", (0.76, 0.80)),
    ("fclora", "FCLoRA", "no adapter", (None, None)),
    ("fclora", "peft AdaLoRA", "peft LoRA", (None, None)),
    ("hiplora", "HiP-LoRA", "peft LoRA, r = 16", (0.80, 0.85)),
    ("hiplora", "HiP-LoRA", "no adapter", (None, None)),
    ("svd-start", "PiSSA", "peft PiSSA", (0.80, 0.85)),
    ("svd-start", "MiLoRA", "peft PiSSA", (0.80, 0.85)),
    ("svd-start", "PiSSA", "no adapter", (None, None)),
    ("hira", "HiRA", "peft HiRA", (0.70, 0.80)),
    ("hira", "HiRA", "peft LoRA", (None, None)),
    ("hira", "HiRA", "no adapter", (None, None)),
]  # fmt: skip
INFERENCE = [
    ("fclora", "FCLoRA", "peft LoRA", 0.85),
    ("lora", "LoRA", "peft LoRA", None),
    ("lora", "no adapter", "peft LoRA", None),
]
COUNTS: list[tuple[str, str, str, str, float | None]] = [
    ("fclora", "operations", "FCLoRA", "peft AdaLoRA", 0.25),
    ("lora", "operations", "LoRA", "peft LoRA", None),
    ("hira", "saved bytes", "HiRA", "peft HiRA", 0.50),
    ("lora", "saved bytes", "LoRA", "peft LoRA", None),
    ("lora", "FLOPs", "LoRA", "peft LoRA", None),
    ("lora", "peak bytes", "LoRA", "peft LoRA", 1.0),
    ("fclora", "peak bytes", "FCLoRA", "peft LoRA", 1.0),
    ("hiplora", "peak bytes", "HiP-LoRA", "peft LoRA, r = 16", 1.0),
    ("svd-start", "peak bytes", "PiSSA", "peft LoRA", 1.0),
    ("hira", "peak bytes", "HiRA", "peft LoRA", None),
]
ONCE = ["start", "files", "monitor", "help"]
ROWS = [*dict.fromkeys(row for row, *_ in STEPS), *ONCE]


class Report:
    """The table, printed as it grows, and the same as JSON."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, where: str, what: str, against: str, found: Ratio, aim: float | None, least: bool = False) -> None:
        """One line; `least` where the aim is to be reached from above."""
        line = {"where": where, "what": what, "against": against, **found._asdict(), "aim": aim, "least": least}
        self.lines.append(line)
        verdict = ""
        if aim is not None:
            met = found.median >= aim if least else found.median <= aim
            verdict = f"{'≥' if least else '≤'} {aim:g} {'met' if met else 'MISSED'}"
        spread = f"{found.low:.3f} to {found.high:.3f}" if found.rounds > 1 else ""
        print(f"| {where} | {what} | {against} | {found.median:.3f} | {spread} | {verdict} |", flush=True)

    def rate(self, where: str, what: str, tokens: float) -> None:
        """One line of tokens a second; the JSON has the seconds."""
        print(f"| {where} | {what}, tokens a second | | {tokens:,.0f} | | |", flush=True)


def measure_steps(name: str, dtype: torch.dtype, nf4: bool, rows: list[str], rounds: int, report: Report) -> None:
    """All rows of one backbone in one dtype, or with its maps in nf4."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else once.CPU
    where, encoder = f"{name} {'nf4' if nf4 else str(dtype).removeprefix('torch.')}", models.is_encoder(name)
    model, batch = models.build(name, dtype, device, nf4), models.batch(name, device)
    wanted = {side for row, mine, theirs, _ in STEPS if row in rows for side in (mine, theirs)}
    wanted |= {side for row, _, mine, theirs, _ in COUNTS if row in rows for side in (mine, theirs)}
    wanted |= {"no adapter"} if wanted else set()
    taking = {label: CONTENDERS[label](model, batch) for label in CONTENDERS if label in wanted}

    seconds = in_turn({label: contender.step for label, contender in taking.items()}, rounds, device)
    for label, taken in seconds.items():
        report.rate(where, label, batch["input_ids"].numel() / statistics.median(taken))
    for row, mine, theirs, aims in STEPS:
        if row in rows:
            aim = aims[0] if encoder else aims[1]
            report.add(where, f"{mine}, step", theirs, ratio(seconds[mine], seconds[theirs]), aim)
    for label in ("LoRA", "FCLoRA", "HiP-LoRA", "PiSSA"):
        if label in taking:
            alone = in_turn({"monitor": taking[label].watch}, rounds, device)["monitor"]
            without = [step - spent for step, spent in zip(seconds[label], alone, strict=True)]
            if label == "LoRA":  # its step is timed without
                without = seconds[label]
            share = [(rest + spent) / rest for rest, spent in zip(without, alone, strict=True)]
            report.add(where, f"{label}, step with the monitor", "without", ratio(share, [1.0] * len(share)), 1.01)

    labels = {side for row, mine, theirs, _ in INFERENCE if row in rows for side in (mine, theirs)}
    inferring = in_turn({label: taking[label].infer for label in taking if label in labels}, rounds, device)
    for row, mine, theirs, limit in INFERENCE:
        if row in rows:
            report.add(where, f"{mine}, inference", theirs, ratio(inferring[mine], inferring[theirs]), limit)

    figures = {label: counts(each.model, each.loss, each.step) for label, each in taking.items()}
    for row, what, mine, theirs, limit in COUNTS:
        if row in rows:
            below = figures["no adapter"][what] if what == "operations" else 0.0
            value = (figures[mine][what] - below) / (figures[theirs][what] - below)
            label = f"{what} outside the backbone" if what == "operations" else what
            report.add(where, f"{mine}, {label}", theirs, Ratio(value, value, value, 1), limit)
    report.lines.append({"where": where, "figures": figures, "seconds": seconds})


def measure_once(name: str, rows: list[str], rounds: int, report: Report) -> None:
    """What is paid once, on one backbone in float32 on the CPU."""
    model, batch = models.build(name, torch.float32, once.CPU), models.batch(name, once.CPU)
    if "start" in rows:
        for label, found in once.start(model, min(rounds, 2)).items():
            report.add(name, f"{label}, attach and initialise, cached", "peft PiSSA", found, 0.10)
    if "files" in rows:
        for label in ("LoRA", "FCLoRA"):
            for what, found in once.files(model, batch, label, rounds).items():
                report.add(name, f"{label}, adapter file: {what}", "peft LoRA", found, 1.00)
    if "monitor" in rows:
        changed = CONTENDERS["FCLoRA"](model, batch)
        changed.step()
        for found in once.svdvals(changed.model, min(rounds, 3)).values():
            report.add(name, "svdvals of every dense ΔW", "one monitoring", found, 500, least=True)


def main() -> None:
    """Measure what the command line asks for, print the table and write the JSON."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(models.SIZES), default=["base"])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--nf4", action="store_true", help="maps of the backbone in bitsandbytes' nf4")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--rounds", type=int, default=8, help="in which every contender takes one step")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lit_spectral").setLevel(logging.WARNING)

    started, report = time.time(), Report()
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    about = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("| where | what | against | ratio | quartiles | aim |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for size in options.sizes:
        for name in models.SIZES[size]:
            if set(options.rows) - set(ONCE):
                for dtype in options.dtypes:
                    measure_steps(name, getattr(torch, dtype), options.nf4, options.rows, options.rounds, report)
            if set(options.rows) & set(ONCE):
                measure_once(name, options.rows, options.rounds, report)
    if "help" in options.rows:
        for found in once.command_line(options.rounds).values():
            report.add("command line", "lit-spectral fit --help", "import lightning.pytorch.cli", found, 1.3)
    about["seconds"] = round(time.time() - started)
    options.json.write_text(json.dumps({"about": about, "lines": report.lines}, indent=2))


if __name__ == "__main__":
    main()
