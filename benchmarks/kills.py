"""Kill what runs at random moments, go on, and look at what is left: nothing torn, mixed or locked, the same learned.

`python -m benchmarks.kills` takes an hour and a half; figures and what is promised: docs/reliability.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_spectral import tiny
from lit_spectral.checkpoint_file import read
from lit_spectral.files import SCRATCH

PYTHON = [sys.executable, "-m", "lit_spectral"]
# A few seconds of quickstart's run, a checkpoint every other step and at the end of each epoch.
RUN = ["--config=configs/quickstart.yaml", "--trainer.limit_train_batches=12", "--trainer.limit_val_batches=2"]
RUN += ["--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
RUN += ["--model.method.dropout=0.1"]
LOGGED = ["--trainer.logger.init_args.save_dir=.", "--trainer.logger.init_args.name=logs"]
LOGGED += ["--trainer.logger.init_args.version=run", "--save_every_n_steps=2"]
CACHED = """
import torch
from lit_spectral.spectra.cache import SVDCache
torch.manual_seed(0)
SVDCache("spectra").singular_triplets({f"layer{i}": torch.randn(300, 300) for i in range(300)}, "top", 64)
"""
LONGEST = 600  # seconds that a process may take


@dataclass
class Scenario:
    """What is killed.

    Attributes:
        command: in an empty folder.
        more: flags with which it goes on, of the folder.
        result: what it has come to, to be compared; it must fail for anything that is torn.
        settings: of its environment, of the folder.
        victims: whom to kill, of the process and its children: all, the parent alone, or one child.
    """

    command: list[str]
    more: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    settings: Callable[[Path], dict[str, str]] = lambda folder: {}
    victims: tuple[str, ...] = ("all",)


@dataclass
class Counts:
    """What came of the kills of one scenario."""

    kills: int = 0
    torn: int = 0
    locked: int = 0
    other: int = 0
    notes: list[str] = field(default_factory=list)


def _checkpoint(folder: Path) -> Path:
    return folder / "logs" / "run" / "checkpoints" / "last.ckpt"


def _resume(folder: Path) -> list[str]:
    return [f"--ckpt_path={_checkpoint(folder)}"] if _checkpoint(folder).exists() else []


def _trained(folder: Path) -> Any:
    """Digests of weights and optimizer, and every point of the curve."""
    content = read(_checkpoint(folder))
    events = EventAccumulator(str(folder / "logs" / "run"), size_guidance={"scalars": 0}).Reload()
    curve = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if sorted(path.name for path in (folder / "logs").iterdir() if path.name[0] != ".") != ["run"]:
        raise ValueError("a second folder")
    return content["lit_spectral"]["digests"], curve


def _compared(folder: Path) -> Any:
    """Metrics of each run, and digests of its weights."""
    found = {}
    for record in sorted(folder.glob("out/*/*/record.json")):
        metrics = json.loads(record.read_text(encoding="utf-8"))["metrics"]
        found[record.parent.name, record.parent.parent.name] = (
            metrics,
            read(record.parent / "checkpoints" / "last.ckpt")["lit_spectral"]["digests"],
        )
    return found


def _files(pattern: str) -> Callable[[Path], Any]:
    def result(folder: Path) -> Any:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.glob(pattern))
            if path.is_file() and path.suffix != ".lock"
        }

    return result


def _other_disk(folder: Path) -> dict[str, str]:
    place = Path("/dev/shm") / f"kills-{os.getpid()}"
    place.mkdir(exist_ok=True)
    return {"TMPDIR": str(place)}


FULL = ["--model.method=FullFineTuning", "--save_every_n_steps=1"]
COMPARE = ["--methods", "LoRA", "FCLoRA", "--seeds", "0", "--output_folder", "out", "--save_every_n_steps=2"]
SCENARIOS = {
    "training": Scenario([*PYTHON, "fit", *RUN, *LOGGED], _resume, _trained),
    "saving, TMPDIR on another disk": Scenario(
        [*PYTHON, "fit", *RUN[:-1], *LOGGED, *FULL], _resume, _trained, settings=_other_disk
    ),
    "two processes": Scenario(
        [*PYTHON, "fit", *RUN, *LOGGED, "--trainer.strategy=ddp", "--trainer.devices=2"],
        _resume,
        _trained,
        victims=("all", "parent", "child"),
    ),
    "caching spectra": Scenario([sys.executable, "-c", CACHED], lambda folder: [], _files("spectra/*.safetensors")),
    "pretraining tiny": Scenario(
        [sys.executable, "-c", "from lit_spectral import tiny; tiny.fetch()"],
        lambda folder: [],
        _files("cache/backbones/tiny-*/*"),
        settings=lambda folder: {"LIT_SPECTRAL_CACHE": str(folder / "cache")},
    ),
    "compare": Scenario(
        [*PYTHON, "compare", *RUN[:-1], *COMPARE], lambda folder: [], _compared, victims=("all", "parent", "child")
    ),
}


def main() -> None:
    """Run the scenarios that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument("--kills", type=int, default=10, help="of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of their moments (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"), help="to work in, emptied (%(default)s)")
    given = parser.parse_args()
    console, found = Console(), {}
    tiny.fetch()  # or its pretraining would be part of what is timed
    for name in given.scenarios:
        console.rule(name)
        place = given.folder.absolute() / name.replace(" ", "_").replace(",", "")
        shutil.rmtree(place, ignore_errors=True)
        found[name] = survive(SCENARIOS[name], given.kills, random.Random(f"{given.seed} {name}"), place, console)
    table = Table("scenario", "kills", "torn files", "stale locks", "other results")
    for name, counts in found.items():
        table.add_row(name, *(str(n) for n in (counts.kills, counts.torn, counts.locked, counts.other)))
    console.print(table)
    for name, counts in found.items():
        for note in counts.notes:
            console.print(f"{name}: {note}", soft_wrap=True, markup=False)
    sys.exit(any(counts.torn or counts.locked or counts.other for counts in found.values()))


def survive(scenario: Scenario, kills: int, generator: random.Random, place: Path, console: Console) -> Counts:
    """Kill a scenario so often, in trials of up to three kills each, and have every trial come to its end."""
    started = time.monotonic()
    _end(scenario, place / "undisturbed")
    seconds = time.monotonic() - started
    begun = min(_born(place / "undisturbed"), default=time.time()) - time.time() + seconds
    expected = scenario.result(place / "undisturbed")
    console.print(f"undisturbed: {seconds:.0f} s, its first file after {begun:.0f}", markup=False)
    counts = Counts()
    for trial in range(10 * kills):
        if counts.kills >= kills:
            break
        folder = place / f"trial{trial}"
        struck = 0
        for _ in range(generator.randint(1, 3)):
            moment, victim = generator.uniform(0.9 * begun, seconds), generator.choice(scenario.victims)
            struck += _strike(scenario, folder, moment, victim, counts)
        counts.kills += struck
        if struck:
            _look(scenario, folder, expected, counts)
        console.print(f"trial {trial}: {struck} killed", markup=False)
        if not counts.notes:
            shutil.rmtree(folder)
    return counts


def _start(scenario: Scenario, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | scenario.settings(folder)
        command = [*scenario.command, *scenario.more(folder)]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)


def _strike(scenario: Scenario, folder: Path, moment: float, victim: str, counts: Counts) -> int:
    """Start it, kill someone after so many seconds; returns 1 if there was anybody left to kill."""
    with _start(scenario, folder) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
            return 0
        children = _children(process.pid)
        if victim == "all":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(children[-1] if victim == "child" and children else process.pid, signal.SIGKILL)
        if victim == "parent" and scenario.result is _compared:
            # The run goes on without it. Who starts a second one meanwhile must leave that alone.
            with _start(scenario, folder) as second:
                second.wait(LONGEST)
        deadline = time.monotonic() + LONGEST
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.2)
        if _alive(process):
            counts.locked += 1
            counts.notes.append(f"{folder}: a process was left behind by the death of {victim}")
            os.killpg(process.pid, signal.SIGKILL)
    return 1


def _look(scenario: Scenario, folder: Path, expected: Any, counts: Counts) -> None:
    """Read what was left, have it come to its end, and compare."""
    try:
        for path in folder.rglob("*.ckpt"):
            read(path)
        for path in folder.rglob("*.safetensors"):
            if SCRATCH not in str(path):
                load_file(path)
    except Exception as error:
        counts.torn += 1
        counts.notes.append(f"{folder}: {error}")
    try:
        _end(scenario, folder)
        if scenario.result(folder) != expected:
            counts.other += 1
            counts.notes.append(f"{folder}: another result")
        left = list(folder.rglob(f"*{SCRATCH}"))
        if left:
            counts.torn += 1
            counts.notes.append(f"{left[0]} is left")
    except Exception as error:
        counts.locked += 1
        counts.notes.append(f"{folder}: {error}")


def _end(scenario: Scenario, folder: Path) -> None:
    with _start(scenario, folder) as process:
        if process.wait(LONGEST):
            raise RuntimeError(f"exit status {process.returncode}; see {folder / 'log'}")


def _born(folder: Path) -> Iterator[float]:
    for path in folder.rglob("*"):
        if path.name != "log":
            yield path.stat().st_ctime


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


def _alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether anybody of the process's group is left."""
    process.poll()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return True
    return False


if __name__ == "__main__":
    main()
