"""Answers within the tolerance that a row gives."""

import pytest

from verl_cipo.rewards.math import compute_score


def outcome(answer: str, truth: str, tolerance) -> str:
    return compute_score("d", f"\\boxed{{{answer}}}", truth, {"tolerance": tolerance})["outcome"]


@pytest.mark.parametrize("answer", ["4.2", "4.3", "4.1", "4.25", "\\frac{17}{4}", "4.3\\%", "x = 4.3"])
def test_numbers_within_the_tolerance_are_right(answer):
    assert outcome(answer, "4.2", 0.1) == "right"


@pytest.mark.parametrize("answer", ["4.31", "4.09", "-4.2", "42", "4.2, 4.3"])
def test_others_are_not(answer):
    assert outcome(answer, "4.2", 0.1) != "right"


def test_without_a_tolerance_and_with_one_that_is_smaller():
    assert outcome("4.3", "4.2", None) == outcome("4.3", "4.2", 0.01) == "wrong"
    assert outcome("4.20", "4.2", None) == "right"


def test_two_different_units_stay_different():
    assert outcome("4.2 \\text{ cm}", "4.2 \\text{ m}", 0.1) == "wrong"


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf"), "0.1", True])
def test_what_is_no_tolerance(tolerance):
    with pytest.raises(ValueError, match=r"extra_info\.tolerance = .*: expected a number above 0, or none"):
        outcome("4.2", "4.2", tolerance)
