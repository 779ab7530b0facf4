"""Which merges a study measures, what failing is, and the bootstrap beside one in plain Python."""

import math
import random

import pytest

from lit_spectral.errors import InputError
from lit_spectral.studies.finished import Metric
from lit_spectral.studies.merges import Score, bootstrap, draws
from lit_spectral.studies.results import Results, Row


def rows_of(method, *merges):
    """Merges of two tasks, of (before, after) each, the second a loss."""
    return [
        Row(method, "add", (("a", n), ("b", n)), {"a": Score(*one, True), "b": Score(*other, False)})
        for n, (one, other) in enumerate(merges)
    ]


def test_merge_fail_is_what_it_is_by_hand():
    rows = rows_of(
        "LoRA",
        ((0.8, 0.8), (1.0, 1.0)),  # nothing lost
        ((0.8, 0.75), (1.0, 1.04)),  # 6 % and 4 %
        ((0.8, 0.9), (1.0, 1.3)),  # a gain, and 30 %
        ((0.8, 0.3), (1.0, math.nan)),  # 62 %, and no number any more
    )
    results = Results(rows, ["LoRA"], ["add"], {"a": Metric("a", True), "b": Metric("b", False)}, [0.5, 0.95, 1])
    found = {measure.name: results.value(measure, rows) for measure in results.measures[1:]}
    assert found == {
        "MergeFail 0.5": 1 / 4,
        "MergeFail 0.95": 3 / 4,
        "MergeFail 1": 3 / 4,
        "ScoreFail 0.5": 2 / 8,
        "ScoreFail 0.95": 4 / 8,
        "ScoreFail 1": 5 / 8,
    }
    assert Score(-0.2, -0.2, True).fails(1.0) is False
    assert results.value(results.measures[0], rows[:3]) == pytest.approx((0 + 0.045 + 0.2) / 3)


def test_a_difference_is_that_of_the_same_merges():
    ours = rows_of("B", ((0.8, 0.7), (1.0, 1.2)), ((0.8, 0.6), (1.0, 1.4)))
    theirs = rows_of("A", ((0.8, 0.6), (1.0, 1.1)), ((0.8, 0.4), (1.0, 1.0)))
    metrics = {"a": Metric("a", True), "b": Metric("b", False)}
    results = Results([*ours, *theirs], ["A", "B"], ["add"], metrics, [0.9])
    change = results.measures[0]
    assert results.difference(change, "add", "A") is None
    assert results.difference(change, "add", "B").mean == pytest.approx(((-0.1 + 0.1) / 2 + (-0.2 + 0.4) / 2) / 2)


def test_the_bootstrap_is_an_independent_one():
    values = [[0.3, -0.1, 0.2], [0.05, 0.4], [-0.2], [0.15, 0.25, 0.9], [0.0, -0.35]]
    generator, means = random.Random(1), []
    for _ in range(50_000):
        drawn = [generator.choice(values) for _ in values]
        means.append(sum(sum(generator.choice(each) for _ in each) / len(each) for each in drawn) / len(drawn))
    means.sort()
    found = bootstrap(values, 100_000)
    assert found.mean == pytest.approx(sum(sum(each) / len(each) for each in values) / len(values))
    assert found.low == pytest.approx(means[1250], abs=0.01)
    assert found.high == pytest.approx(means[48_750], abs=0.01)
    assert bootstrap(values, 100_000) == found


def test_a_bootstrap_that_cannot_be_has_no_bounds():
    alone = bootstrap([[0.5, 0.1]])
    assert alone.mean == pytest.approx(0.3)
    assert math.isnan(alone.low)
    assert all(map(math.isnan, bootstrap([[0.5], [math.nan]])))
    assert bootstrap([[0.5], [0.5]]) == (0.5, 0.5, 0.5)


SEEDS = {"a": [0, 1], "b": [0, 1, 2], "c": [7]}


def test_all_merges_are_all():
    assert len(draws(SEEDS, [2])) == 2 * 3 + 2 * 1 + 3 * 1
    assert draws(SEEDS, [3]) == [(("a", a), ("b", b), ("c", 7)) for a in (0, 1) for b in (0, 1, 2)]
    assert draws(SEEDS, [2, 3], samples=100) == draws(SEEDS, [2, 3])


def test_samples_are_some_of_them_each_once_and_fewer_are_the_first_of_more():
    few, more = (draws(SEEDS, [2], samples=count) for count in (4, 9))
    assert more[:4] == few
    assert len(set(more)) == 9
    assert set(more) <= set(draws(SEEDS, [2]))
    assert draws(SEEDS, [2], 4, seed=1) != few


def test_too_many_merges_ask_for_samples():
    many = {task: list(range(10)) for task in "abcde"}
    with pytest.raises(InputError, match="100,000 merges of 5 tasks; give --samples"):
        draws(many, [5])
    assert len(draws(many, [5], 20)) == 20
