"""What is made of runs that `lit-spectral compare` has gathered: differences, intervals, shares and pages."""

import csv
import math
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from lit_spectral.comparison.results import Comparison, Run, paired_difference, write_csv
from lit_spectral.comparison.variants import pairs_of, variants


def test_the_interval_is_that_of_a_paired_t_test():
    ours, theirs = [0.81, 0.79, 0.85, 0.80], [0.80, 0.81, 0.79, 0.77]
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert paired_difference(ours, theirs)[1:] == pytest.approx((interval.low, interval.high))


def record(accuracy, after, norm=1.0):
    retention = {"text/accuracy": after, "text/base_accuracy": 0.6, "text/loss": 2.0, "text/base_loss": 1.0}
    costs = {"trainable_parameters": 10, "steps": 4, "validated_step": 4, "device": "cpu"}
    costs |= {"seconds_per_step": 0.1, "peak_memory": 10**9}
    metrics = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "train/loss": 0.0}
    return {"metrics": metrics, "retention": retention, "largest_norm": norm, **costs}


def made(**records):
    """A comparison of LoRA and FCLoRA with these records, by method, one a seed."""
    compared = variants(["LoRA", "FCLoRA"], [])
    runs = [Run(v, seed, r, Path(), []) for v in compared for seed, r in enumerate(records.get(v.method, []))]
    return Comparison(compared, runs, "val/accuracy", True)


@pytest.fixture
def comparison():
    fclora = [record(0.9, 0.5), record(0.7, 0.5), record(0.1, 0.5)]
    return made(LoRA=[record(0.8, 0.4), record(0.7, 0.3)], FCLoRA=fclora)


def test_differences_are_those_of_seeds_that_both_have(comparison):
    assert comparison.difference(comparison.variants[1], comparison.task).mean == pytest.approx(0.05)


def test_what_is_lost_is_a_share_of_what_the_first_lost(comparison):
    (kept,) = comparison.retention
    assert comparison.share_lost(comparison.variants[1], kept) == pytest.approx(0.1 / 0.25)


def test_what_a_method_lacks_is_left_open_and_shown_of_the_others(tmp_path):
    found = made(LoRA=[record(0.8, 0.4)], FCLoRA=[record(0.9, 0.5, None)])
    column = found.headings().index("largest ‖ΔW‖₂")
    assert [row[column] for row in found.rows()] == ["1.00", "–"]
    write_csv(found, tmp_path)
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        assert [row["largest_norm"] for row in csv.DictReader(file)] == ["1.0", ""]


def test_a_decoder_is_compared_by_its_forgetting_loss_too():
    """LoRA's loss on the text falls, so that only the forgetting loss says what it lost."""
    runs = [record(0.8, 0.4), record(0.8, 0.4)]
    for run, forgetting in zip(runs, (2.4, 2.1), strict=True):
        run["retention"] = {"text/loss": 0.9, "text/base_loss": 1.0}
        run["retention"] |= {"text/forgetting_loss": forgetting, "text/base_entropy": 2.0}
    found = made(LoRA=runs[:1], FCLoRA=runs[1:])
    assert [found.share_lost(found.variants[1], m) for m in found.retention] == [None, pytest.approx(0.25)]


@pytest.mark.parametrize(
    ("drifts", "shown"),
    [((0.00002, 0.000003), ["0.000020", "0.000003"]), ((0.2, 0.00002), ["0.2000", "0.0000"]), ((0, 0), ["0.0000"] * 2)],
)
def test_small_drifts_have_figures(drifts, shown):
    runs = [record(0.8, 0.4) | {"retention": {"sts/drift": drift}} for drift in drifts]
    found = made(LoRA=runs[:1], FCLoRA=runs[1:])
    column = next(index for index, heading in enumerate(found.headings()) if heading.startswith("sts drift"))
    assert [row[column].split("\n")[0] for row in found.rows()] == shown


def test_where_references_differ_each_is_named():
    compared = variants(["LoRA", "FCLoRA"], pairs_of(["--model.optimizer.lr", "1,2"]))
    runs = [Run(variant, 0, record(0.5, 0.5), Path(), []) for variant in compared]
    rows = list(Comparison(compared, runs, "val/accuracy", True).rows())
    assert [row[0] for row in rows] == ["LoRA lr=1", "LoRA lr=2", "FCLoRA lr=1\nfrom LoRA lr=1",
                                        "FCLoRA lr=2\nfrom LoRA lr=2"]  # fmt: skip


def test_a_run_that_diverged_is_shown(tmp_path):
    found = made(LoRA=[record(0.8, 0.4), record(0.8, 0.4)], FCLoRA=[record(math.nan, 0.4), record(0.8, math.inf)])
    rows = list(found.rows())
    assert "nan" in rows[1][2]
    write_csv(found, tmp_path)
    assert "nan" in (tmp_path / "table.csv").read_text()


def test_without_runs_of_its_reference_a_variant_is_compared_with_none():
    found = made(FCLoRA=[record(0.9, 0.5)])
    (fclora,) = found.variants
    assert found.difference(fclora, found.task) is None
    assert found.share_lost(fclora, found.retention[0]) is None


def test_what_is_lost_is_measured_from_the_runs_own_backbone():
    other = record(0.8, 0.4)
    other["retention"]["text/base_accuracy"] = 0.8
    found = made(LoRA=[record(0.8, 0.4)], FCLoRA=[other])
    assert found.share_lost(found.variants[1], found.retention[0]) == pytest.approx(2)


def test_names_in_brackets_are_shown():
    compared = variants(["LoRA"], pairs_of(["--LoRA.target_modules", "[a],[b]"]))
    runs = [Run(variant, 0, record(0.5, 0.5), Path(), []) for variant in compared]
    console = Console(width=200, record=True)
    console.print(Comparison(compared, runs, "val/accuracy", True).table())
    assert "target_modules=[a]" in console.export_text()
