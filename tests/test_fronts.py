"""Pareto fronts, what is read off them, and intervals over seeds."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from lit_spectral.comparison.fronts import Settings, front, kept_at, reached, score_at

SCORES, KEPT = np.array([0.7, 0.8, 0.9, 0.75]), np.array([0.9, 0.8, 0.4, 0.5])


def test_what_another_setting_beats_in_both_is_not_on_the_front() -> None:
    along, falling = front(SCORES, KEPT)
    assert along.tolist() == [0.7, 0.8, 0.9]
    assert falling.tolist() == [0.9, 0.8, 0.4]


@pytest.mark.parametrize(("sign", "expected"), [(1, [(0.7, 0.1), (0.9, 0.2)]), (-1, [(0.6, 0.1)])])
def test_the_front_is_what_nothing_beats_in_both(sign, expected) -> None:
    lost, scores = np.array([0.1, 0.2, 0.3, 0.1]), np.array([0.7, 0.9, 0.8, 0.6])
    along, falling = front(sign * scores, -lost)
    assert [*zip((sign * along).tolist(), (-falling).tolist(), strict=True)] == expected


def test_of_two_settings_alike_one_is_on_the_front() -> None:
    along, _ = front(np.array([0.5, 0.5]), np.array([0.3, 0.3]))
    assert along.tolist() == [0.5]


def test_between_neighbours_it_is_a_line() -> None:
    assert kept_at(SCORES, KEPT, 0.85) == pytest.approx(0.6)
    assert score_at(SCORES, KEPT, 0.6) == pytest.approx(0.85)


def test_below_its_lowest_score_a_front_keeps_its_most() -> None:
    assert kept_at(SCORES, KEPT, 0.1) == 0.9


def test_a_score_above_all_settings_is_not_reached() -> None:
    assert math.isnan(kept_at(SCORES, KEPT, 0.91))


def test_more_than_any_setting_keeps_has_no_score() -> None:
    assert math.isnan(score_at(SCORES, KEPT, 0.95))


def _repeated(scores: np.ndarray, kept: np.ndarray, seeds: int = 3) -> Settings:
    return Settings(np.repeat(scores[:, None], seeds, 1), np.repeat(kept[:, None], seeds, 1))


def test_the_reference_beside_itself_loses_as_much() -> None:
    same = _repeated(SCORES, KEPT)
    found = reached(same, same, whole=1.0)
    assert found.score.value == pytest.approx(0.9)
    assert found.lost_over_reference == pytest.approx((1, 1, 1))
    assert found.score_at_kept.value == pytest.approx(0.9)


def test_a_method_that_keeps_more_at_the_same_score_loses_its_share() -> None:
    other = _repeated(np.array([0.9]), np.array([0.8]))
    found = reached(_repeated(SCORES, KEPT), other, whole=1.0)
    assert found.lost_over_reference.value == pytest.approx(0.2 / 0.6)
    assert found.share_reaching == 1


def test_a_score_out_of_reach_is_told_by_the_share() -> None:
    found = reached(_repeated(SCORES, KEPT), _repeated(np.array([0.89]), np.array([0.8])), whole=1.0)
    assert math.isnan(found.kept.value)
    assert found.share_reaching == 0


def test_within_a_tolerance_it_is_reached() -> None:
    other = _repeated(np.array([0.89]), np.array([0.8]))
    found = reached(_repeated(SCORES, KEPT), other, whole=1.0, within=0.01)
    assert found.kept.value == pytest.approx(0.8)
    assert found.lost_over_reference.value == pytest.approx(0.2 / (1 - 0.44))


def test_resamples_are_paired() -> None:
    # Seeds differ by much, and the methods by the same within each: the share's interval is narrow, the score's wide.
    shift = np.array([[0.0, 0.1, -0.1, 0.05]])
    reference = Settings(0.8 + shift, 0.5 + 0 * shift)
    other = Settings(0.8 + shift, 0.75 + 0 * shift)
    found = reached(reference, other, whole=1.0)
    assert found.lost_over_reference == pytest.approx((0.5, 0.5, 0.5))
    assert found.score.high - found.score.low > 0.05


@pytest.mark.parametrize(("seeds", "within"), [(5, 0.12), (8, 0.06), (30, 0.05)])
def test_intervals_of_few_seeds_are_about_as_wide_as_students(seeds: int, within: float) -> None:
    """Of the mean of what is kept, at one setting; the plain percentiles of five would be a third too narrow."""
    kept = norm.ppf((np.arange(seeds) + 0.5) / seeds)[None]
    found = reached(
        Settings(np.ones((1, seeds)), 0 * kept), Settings(np.ones((1, seeds)), kept), whole=1.0, draws=20_000
    )
    half = t.ppf(0.975, seeds - 1) * kept.std(ddof=1) / seeds**0.5
    assert found.kept.high == pytest.approx(half, rel=within)
    assert found.kept.low == pytest.approx(-half, rel=within)


def test_of_two_seeds_the_interval_is_all_between_them() -> None:
    two = Settings(np.ones((1, 2)), np.array([[0.2, 0.6]]))
    assert reached(two, two, whole=1.0).kept == pytest.approx((0.4, 0.2, 0.6))


def test_one_seed_has_no_interval() -> None:
    one = _repeated(SCORES, KEPT, seeds=1)
    assert math.isnan(reached(one, one, whole=1.0).kept.low)


def test_a_setting_that_lacks_a_seed_is_left_out() -> None:
    scores = np.array([[0.9, np.nan], [0.8, 0.8]])
    assert Settings(scores, np.ones((2, 2))).means()[0].tolist() == [0.8]


def test_other_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds beside 3"):
        reached(_repeated(SCORES, KEPT), _repeated(SCORES, KEPT, seeds=2), whole=1.0)
