"""Intervals over problems: coverage, strata, ratios, the sign test."""

import math

import numpy as np
import pytest
from scipy import stats

from verl_cipo.evaluation.intervals import Interval, SignTest, interval, ratio_interval, sign_test, stratified_interval
from verl_cipo.evaluation.passk import pass_at_k


def test_interval_is_scipys_bca_bootstrap_of_the_mean():
    values = np.random.default_rng(3).random(40) ** 2
    found = interval(values, confidence=0.9, resamples=500, seed=7)
    known = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=500, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval

    assert found == Interval(pytest.approx(values.mean()), pytest.approx(known.low), pytest.approx(known.high), 40)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [interval(rng.beta(0.5, 0.5, size=40), resamples=400, seed=i) for i in range(300)]
    covered = np.mean([found.low <= 0.5 <= found.high for found in intervals])

    # 95 % and three standard errors of 300 trials, one per cent given to the bootstrap.
    assert 0.90 <= covered <= 0.99


def test_a_higher_confidence_is_wider():
    values = np.arange(20) % 3

    assert interval(values, confidence=0.99).low < interval(values, confidence=0.8).low


def test_equal_values_and_a_single_problem():
    assert interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)
    alone = interval([0.25])
    assert (alone.estimate, alone.problems) == (0.25, 1)
    assert math.isnan(alone.low) and math.isnan(alone.high)


def test_strata_count_alike_and_are_resampled_apart():
    # Resampled together, the two benchmarks would mix and the interval would not be a point.
    assert stratified_interval([[0.0] * 50, [1.0] * 2]) == Interval(0.5, 0.5, 0.5, 52)
    mixed = stratified_interval([[0.0, 1.0] * 50, [0.0, 1.0] * 2])
    assert mixed.estimate == 0.5
    assert mixed.low < 0.35 and mixed.high > 0.65


def test_a_ratio_is_of_sums_and_leaves_problems_without_a_base_out():
    found = ratio_interval([1, 0, 4, 0], [1, 3, 4, 0])

    assert (found.estimate, found.problems) == (pytest.approx(5 / 8), 3)
    assert 0 <= found.low < 5 / 8 < found.high <= 1
    assert ratio_interval([1, 0, 4], [1, 3, 4]) == found


def test_a_ratio_that_is_the_same_everywhere():
    assert ratio_interval([0, 0, 0], [1, 2, 3]) == Interval(0.0, 0.0, 0.0, 3)


def test_a_ratio_keeps_parts_with_their_totals():
    # Only pairing keeps the ratio at 1/2: parts and totals vary together.
    parts = np.array([1.0, 2, 4, 8, 16, 32])

    found = ratio_interval(parts, 2 * parts + np.array([0, 0, 0, 0, 0, 1e-6]))
    assert found.low == pytest.approx(0.5, abs=1e-6) == found.high


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0], [2.0]]])
def test_no_interval_of_what_is_no_list_of_numbers(values):
    with pytest.raises(ValueError, match="finite"):
        interval(values)


@pytest.mark.parametrize(("parts", "totals"), [([1], [1, 2]), ([0, 0], [0, 0])])
def test_no_ratio_without_a_base(parts, totals):
    with pytest.raises(ValueError, match="total > 0"):
        ratio_interval(parts, totals)


def test_sign_test_by_hand():
    # Of 2^5 sign patterns, 6 on each side are as far out as 4 of 5: p = 12 / 32.
    assert sign_test([0.1, 0.2, 0.3, 0.4, -9.0, 0.0]) == SignTest(higher=4, lower=1, equal=1, p=pytest.approx(0.375))
    assert sign_test([0.0, 0.0]) == SignTest(higher=0, lower=0, equal=2, p=1.0)


@pytest.mark.filterwarnings("error")
def test_problems_that_agree_but_for_rounding_are_a_point():
    """pass@2 is 2/3 of 1 right of 3 and of 15 of 36; the bootstrap of these is NaN, with a warning."""
    values = pass_at_k([3, 3, 36, 36], [1, 1, 15, 15], 2)
    assert len(set(values)) == 2
    for found in (interval(values), ratio_interval(values, [1, 1, 1, 1]), stratified_interval([values, values])):
        assert found.low == found.high == found.estimate == pytest.approx(2 / 3)
