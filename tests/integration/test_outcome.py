"""Right or wrong from what verl's reward loop returns."""

import pytest

from verl_cipo.integration.outcome import verdict


@pytest.mark.parametrize(
    ("score", "extra", "threshold", "right"),
    [
        # A dict verifier gives acc itself; its score may be shaped.
        (0.1, {"score": 0.1, "acc": True}, 0.5, True),
        (0.9, {"score": 0.9, "acc": False}, 0.5, False),
        (-1.0, {"score": -1.0, "acc": 1.0}, -2.0, True),
        (-1.0, {"score": -1.0, "acc": 0.0}, -2.0, False),
        # A float verifier: verl files the score under acc.
        (1.0, {"acc": 1.0}, 0.5, True),
        (0.5, {"acc": 0.5}, 0.5, False),
        (-1.0, {"acc": -1.0}, -2.0, True),
        # An acc that is no number counts as absent.
        (1.0, {"score": 1.0, "acc": None}, 0.5, True),
        (0.0, {"score": 0.0, "acc": "yes"}, 0.5, False),
        # No acc at all.
        (0.6, {}, 0.5, True),
        (0.4, None, 0.5, False),
    ],
)
def test_verdict(score, extra, threshold, right):
    assert verdict(score, extra, threshold) is right


def test_missing_reward_is_an_error():
    with pytest.raises(ValueError, match="without a reward"):
        verdict(None, {}, 0.5)
