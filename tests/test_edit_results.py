"""What a study of edits says of answers: success and locality by hand, and how likely a model holds an answer."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_spectral.datamodules.edits import Edit, Probe
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from lit_spectral.comparison.results import Run
from lit_spectral.comparison.variants import Variant
from lit_spectral.editing.making import OTHER, SAME, Fact, chosen
from lit_spectral.editing.measuring import Answered, Asked, Edited, Held, Measured, held
from lit_spectral.editing.results import Adapted, Results, success
from lit_spectral.errors import InputError
from lit_spectral.scoring.answers import score_opening

EDITS = [Edit("a", " mat", " hill", "x"), Edit("b", " mat", " tree", "x"), Edit("c", " mat", " New York", "y")]
PROBES = [Probe("p", " cat", ""), Probe("q", " dog", "")]
LORA, FCLORA = (Variant(name, name, (), (), frozenset()) for name in ("LoRA", "FCLoRA"))


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (" Paris, of course", "Paris", True),
        ("\n paris", "Paris", False),
        (" Parisian", "Paris", False),
        (' "New  York".', " New York", True),
        (" New", "New York", False),
        (" it is Paris", "Paris", False),
        ("", "Paris", False),
        (" .", " .", False),
    ],
)
def test_an_answer_is_what_a_text_begins_with_but_for_blanks_and_punctuation(text, gold, right):
    assert score_opening(text, gold) is right


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Edited(" hill.", -1.0, -2.0), (1, 1, 1)),
        (Edited(" hill", -2.0, -1.0), (1, 0, 1)),
        (Edited(" mat", -1.0, -2.0), (0, 1, 1)),
        (Edited(" mat", -1.0, -1.0), (0, 0, 0)),
        (Edited(" mat", float("nan"), -1.0), (0, 0, 0)),
    ],
)
def test_an_edit_succeeds_when_its_answer_is_said_or_held_likelier(found, expected):
    assert success(EDITS[0], found) == expected


def adapted(variant, seed, first, edits, unrelated):
    record = {"metrics": {"val/loss": 1.0}, "trainable_parameters": 7, "seconds_per_step": 1.0, "peak_memory": 1e9}
    run = Run(variant, seed, record | {"device": "cpu"}, Path(), ["fit"])
    return Adapted(variant, seed, first, Measured(edits, unrelated), run)


YES, NO = Edited(" hill tree New York", -1.0, -2.0), Edited(" mat", -2.0, -1.0)
KNOWN = [Answered(" cat", -1.0), Answered(" dog", -2.0)]
BEFORE = Measured([NO] * 3, KNOWN)


@pytest.fixture
def results():
    """LoRA with two seeds of all edits; FCLoRA with one, and only the first two edits."""
    said = [Edited(edit.new, -2.0, -1.0) for edit in EDITS]
    found = [
        adapted(LORA, 0, 0, said, [Answered(" cat", -1.5), Answered(" cat", -4.0)]),
        adapted(LORA, 1, 0, [said[0], NO, NO], KNOWN),
        adapted(FCLORA, 0, 0, [NO, Edited(" mat", -1.0, -2.0)], KNOWN),
    ]
    return Results([LORA, FCLORA], EDITS, PROBES, dict.fromkeys([LORA, FCLORA], BEFORE), found)


def test_success_and_locality_by_hand(results):
    measures = {measure.name: measure for measure in results.measures}
    means = {name: results.value(measure, LORA).mean for name, measure in measures.items()}
    assert means["success"] == pytest.approx((1 + 0.5 + 0.5) / 3)  # an edit's is the mean over seeds
    assert means["preferred"] == 0
    assert (means["success x"], means["success y"]) == (0.75, 0.5)
    assert means["accuracy change"] == pytest.approx((0 - 0.5) / 2)
    assert means["log-probability change"] == pytest.approx((-0.25 - 1.0) / 2)
    assert results.accuracy_before() == 1
    mean, low, high = results.value(measures["success"], LORA)
    assert 0.5 <= low < mean < high <= 1


def test_a_difference_is_of_the_edits_that_both_were_taught(results):
    measures = {measure.name: measure for measure in results.measures}
    assert results.difference(measures["success"], LORA) is None
    assert results.difference(measures["success"], FCLORA).mean == pytest.approx(((0 - 1) + (1 - 0.5)) / 2)
    assert results.difference(measures["success y"], FCLORA) is None
    assert np.isnan(results.value(measures["success y"], FCLORA).mean)
    assert results.difference(measures["accuracy change"], FCLORA).mean == pytest.approx(0.25)


def test_tables_have_a_row_for_each_method_and_each_answer(results, tmp_path):
    results.write_csv(tmp_path)
    tables = {}
    for file in tmp_path.iterdir():
        with file.open(encoding="utf-8", newline="") as opened:
            tables[file.stem] = list(csv.DictReader(opened))
    assert {name: len(rows) for name, rows in tables.items()} == {"table": 2, "edits": 8, "unrelated": 6}
    rows = dict(zip(("LoRA", "FCLoRA"), results.rows(), strict=True))
    shown = dict(zip(results.headings(), rows["FCLoRA"], strict=True))
    assert shown["edits"] == "2"
    assert shown["edit success, %"].startswith("50.0 [0.0, 100.0]\n-25.0 [")
    assert shown["unrelated: accuracy, change in points (100.0 % before)"].startswith("+0.0 [")


class Table(nn.Module):
    """A decoder whose next token depends on the last one alone, by a table of log-probabilities."""

    def __init__(self, table):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None):
        return CausalLMOutput(logits=self.embedding(input_ids))


def test_an_answer_is_held_as_likely_as_its_tokens_together_whatever_it_is_batched_with():
    table = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    best = table.argmax(-1).tolist()
    asked = [Asked([1, 2], [3, 4]), Asked([0], [best[0], best[best[0]]]), Asked([1, 1, 1], [2]), Asked([3], [])]
    expected = [table[2, 3] + table[3, 4], table[0].max() + table[best[0]].max(), table[1, 2], torch.tensor(0.0)]
    found = held(Table(table), asked)
    assert [each.log_probability for each in found] == pytest.approx([float(value) for value in expected], abs=1e-6)
    assert found[1].greedy
    assert found[2].greedy == (best[1] == 2)
    assert found[3] == Held(0.0, True)


def test_a_set_is_made_of_what_is_known_and_no_prompt_is_in_both_its_files():
    known = [Fact(0, f"capital {n}", f"city {n % 3}", "entity") for n in range(8)]
    known += [Fact(3, f"language {n}", f"tongue {n}", "relation") for n in range(4)]
    known += [Fact(4, "continent", "Asia", "relation"), Fact(13, "letter", "D", "temporal/numeric")]
    edits, unrelated = chosen(known, 5)
    assert sorted(row["category"] for row in edits) == ["entity"] * 3 + ["relation"] * 2  # in turn
    answers = {fact.prompt: fact.answer for fact in known}
    cities, tongues = {f"city {n}" for n in range(3)}, {f"tongue {n}" for n in range(4)}
    for row in edits:
        assert row["old"] == answers[row["prompt"]] != row["new"]
        assert row["new"] in (cities if row["old"] in cities else tongues)
    prompts = [row["prompt"] for row in [*edits, *unrelated]]
    assert sorted(prompts) == sorted(answers)
    assert {row["prompt"] for row in unrelated if row["category"] == OTHER} == {"continent", "letter"}
    assert {row["category"] for row in unrelated} == {SAME, OTHER}
    assert chosen(known, 5) == (edits, unrelated)
    with pytest.raises(InputError, match="the backbone is sure of 14 facts, of which 9 can be edited, not 10"):
        chosen(known, 10)
