"""Where the adapters of a study of edits are measured, each once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_spectral.checkpoint import load_given
from lit_spectral.comparison.fitting import ANSWERS, Planned
from lit_spectral.comparison.variants import Variant
from lit_spectral.datamodules.edits import Edit, Probe
from lit_spectral.editing.measuring import Answered, Edited, Measured, measure, with_own_answers
from lit_spectral.errors import InputError
from lit_spectral.files import write_text
from lit_spectral.updates import sources

__all__ = ["Bench"]

# What was measured, and the unrelated prompts with the answers that were looked for.
Kept = tuple[Measured, Sequence[Probe]]


class Bench:
    """Holds one variant's model at a time, on which adapters are exchanged.

    Args:
        folder: of the study, in which the backbone's own figures are kept; an adapter's are in its run's.
        edits: all of them.
        probes: unrelated prompts.

    Attributes:
        probes: with their answers, once anything is measured: where there was none, the first variant's backbone's;
            those to which it says nothing are left out.
        before: the backbone alone, by variant, since settings of a variant may say how it is loaded.
    """

    def __init__(self, folder: Path, edits: Sequence[Edit], probes: Sequence[Probe]) -> None:
        self.probes = probes
        self.before: dict[Variant, Measured] = {}
        self._folder = folder
        self._edits = edits
        self._variant: Variant | None = None
        self._task: Any = None

    def measure(self, planned: Planned, cli: Any, numbers: range) -> Measured:
        """What a run's adapter says and holds; of a variant's first one the backbone alone too.

        Args:
            planned: the run, at its end.
            cli: of its variant's flags: how it was trained, and how prompts and answers are laid out.
            numbers: of the edits that the adapter was taught.

        Raises:
            InputError: the adapter can't be exchanged, or a file of what was measured before is damaged.
        """
        device = cli.trainer.strategy.root_device
        # The data module takes its tokenizer from the trainer's task, and none is with a trainer here.
        data = cli.datamodule
        data.tokenizer_name = data.tokenizer_name or cli.model.backbone
        edits = [self._edits[number] for number in numbers]

        def alone() -> Kept:
            task = self._loaded(planned, device)
            task.method.put(replace(task.method.read(), changes={}, whole={}))
            probes = with_own_answers(task.model, data, self.probes)
            return measure(task.model, data, self._edits, probes), probes

        def adapted() -> Kept:
            task = self._loaded(planned, device)
            task.method.put(sources.read(str(planned.last), cli.model.backbone))
            return measure(task.model, data, edits, self.probes), self.probes

        # Not under autocast, whose bfloat16 would round log-probabilities to an eighth of a nat.
        if planned.variant not in self.before:
            of = [cli.model.backbone, repr(cli.model.loading), data.template, self._edits, self.probes]
            file = self._folder / f"backbone_{_digest(of)[:6]}.json"
            self.before[planned.variant], self.probes = _once(file, of, alone)
        of = [planned.record.read_text(encoding="utf-8"), edits, self.probes]
        return _once(planned.folder / ANSWERS, of, adapted)[0]

    def _loaded(self, planned: Planned, device: torch.device) -> Any:
        """The task of a variant, whatever adapter is on it."""
        if self._variant != planned.variant:
            self._variant = self._task = None  # of two large models one would not fit
            self._task = load_given(planned.last).to(device)
            self._variant = planned.variant
        return self._task


def _once(file: Path, of: Any, anew: Callable[[], Kept]) -> Kept:
    """What a file has of this, or what is found now and written there."""
    digest = _digest(of)
    if file.exists():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            edits, unrelated = [Edited(*row) for row in known["edits"]], [Answered(*row) for row in known["unrelated"]]
            if known["of"] == digest:
                return Measured(edits, unrelated), [Probe(*row) for row in known["probes"]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file} is damaged; remove it, and it is measured again") from None
    found, probes = anew()
    write_text(file, json.dumps({"of": digest, **found._asdict(), "probes": probes}, ensure_ascii=False, indent=1))
    return found, probes


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
