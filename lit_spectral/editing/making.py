"""A small set of edits, of facts that a backbone itself answers with confidence: made without a download."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_spectral.backbones import fetch
from lit_spectral.checkpoint import usable_device
from lit_spectral.datamodules.edits import Edits
from lit_spectral.editing.facts import RELATIONS
from lit_spectral.editing.measuring import Asked, held
from lit_spectral.errors import InputError
from lit_spectral.files import check_place, write_text
from lit_spectral.tasks import CausalLM

__all__ = ["Fact", "chosen", "known_facts", "make"]

# One in so many of the facts of a relation is not edited, so that there are neighbours to look at.
KEPT = 4
SAME, OTHER = "same relation", "other relation"


class Fact(NamedTuple):
    """A fact that a backbone may know: the number of its relation, prompt, answer, and category."""

    relation: int
    prompt: str
    answer: str
    category: str


def make(backbone: str, folder: Path, edits: int, confidence: float) -> tuple[int, int]:
    """Write `train.jsonl`, so many edits, and `unrelated.jsonl`, all other facts that the backbone knows.

    An edit's new answer is that of another fact of its relation. The same backbone gives the same set.

    Args:
        backbone: a decoder, as `CausalLM` takes it.
        folder: where to write; without such files.
        edits: how many.
        confidence: least probability of an answer, all of whose tokens are the likeliest besides.

    Returns:
        The numbers of edits and of unrelated prompts.

    Raises:
        InputError: files are there already, an encoder, a decoder that knows too few of the facts.
    """
    files = {name: folder / f"{name}.jsonl" for name in ("unrelated", "train")}
    for file in files.values():
        if file.exists():
            raise InputError(f"edit: --make: {file} is there already; remove it, or give another folder")
        check_place(file, "edit: --make")
    rows = dict(zip(("train", "unrelated"), chosen(known_facts(backbone, confidence), edits), strict=True))
    for name, file in files.items():
        write_text(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows[name]))
    return len(rows["train"]), len(rows["unrelated"])


def known_facts(backbone: str, confidence: float) -> list[Fact]:
    """Those of `RELATIONS` that a backbone answers greedily, and with this probability at least."""
    task = CausalLM(backbone)
    model = task.load_model(fetch(backbone))[0].eval().to(usable_device())
    data = Edits("", tokenizer=backbone)
    every = [
        Fact(number, relation.prompt.format(subject), answer, relation.category)
        for number, relation in enumerate(RELATIONS)
        for subject, answer in relation.facts.items()
    ]
    found = held(model, [Asked(*data.laid_out(fact.prompt, f" {fact.answer}")) for fact in every])
    sure = [each.greedy and each.log_probability >= math.log(confidence) for each in found]
    return [fact for fact, known in zip(every, sure, strict=True) if known]


def chosen(known: Sequence[Fact], edits: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of so many edits, categories in turn, and of the prompts that stay as they are.

    Raises:
        InputError: fewer facts can be edited.
    """
    generator = random.Random(0)
    waiting: dict[str, list[dict[str, str]]] = {}
    kept: list[dict[str, str]] = []
    for number, relation in enumerate(RELATIONS):
        facts = [fact for fact in known if fact.relation == number]
        generator.shuffle(facts)
        answers = {fact.answer for fact in facts}
        edited = facts[math.ceil(len(facts) / KEPT) :] if relation.edited and len(answers) > 1 else []
        kept += [_unrelated(fact, SAME if edited else OTHER) for fact in facts[: len(facts) - len(edited)]]
        for fact in edited:
            new = generator.choice(sorted(answers - {fact.answer}))
            row = {"prompt": fact.prompt, "old": fact.answer, "new": new, "category": fact.category}
            waiting.setdefault(fact.category, []).append(row)
    for rows in waiting.values():
        generator.shuffle(rows)
    turns = list(_in_turn(waiting.values()))
    if len(turns) < edits:
        raise InputError(
            f"edit: --make: the backbone is sure of {len(known)} facts, of which {len(turns)} can be edited, not "
            f"{edits}; give fewer --edits, less --confidence, or a larger backbone"
        )
    rest = [Fact(0, row["prompt"], row["old"], "") for row in turns[edits:]]
    kept += [_unrelated(fact, SAME) for fact in rest]
    generator.shuffle(kept)  # so that the first of them are of both kinds
    return turns[:edits], kept


def _unrelated(fact: Fact, category: str) -> dict[str, str]:
    return {"prompt": fact.prompt, "answer": fact.answer, "category": category}


def _in_turn(lists: Iterable[Sequence[dict[str, str]]]) -> Iterable[dict[str, str]]:
    """One of each list, then the next one of each that has more."""
    lists = list(lists)
    for place in range(max(map(len, lists), default=0)):
        yield from (rows[place] for rows in lists if place < len(rows))
