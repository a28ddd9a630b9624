"""Right, wrong or no verdict from what verl's reward loop returns."""

import math
import sys

import numpy as np
import pytest
import torch

from verl_cipo.core.verdict import fault, verdict


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
        # A penalty of the reward manager, or a bonus, is in the reward alone.
        (0.5, {"acc": 1.0, "overlong_reward": -0.5, "overlong": True}, 0.5, True),
        (0.5, {"score": 1.0, "pred": "7"}, 0.5, True),
        (0.9, {"score": 0.0, "pred": "7"}, 0.5, False),
        (-0.2, {"acc": 0.3}, 0.2, True),
        # Scalars of numpy and torch.
        (0.0, {"acc": np.bool_(True)}, 0.5, True),
        (torch.tensor(0.4), {"acc": torch.tensor(1.0)}, 0.5, True),
        (0.0, {"score": np.float32(0.75)}, 0.5, True),
        # What is no finite number counts as absent.
        (1.0, {"score": math.nan, "acc": math.nan}, 0.5, True),
        (1.0, {"score": "high", "acc": [1]}, 0.5, True),
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


@pytest.mark.parametrize(
    ("reward", "info", "reason"),
    [
        (0.0, {"outcome": "infrastructure_error", "score": 0.0}, "infrastructure error"),
        # verl's rate_limited manager; what it writes when a verifier that returns numbers hangs or raises.
        (0.0, {"timeout": True, "acc": 0.0}, "reward.timeout"),
        (0.0, {"error": "429 Too Many Requests", "acc": 0.0}, "429 Too Many Requests"),
        (0.0, {"error": "", "acc": 0.0}, "met an error"),
        (math.nan, {"acc": math.nan}, "no finite number"),
        (math.inf, None, "no finite number"),
        (None, {}, "no finite number"),
        ("1.0", {}, "no finite number"),
        ([1.0], {}, "no finite number"),
        # Infinite once verl has stored it.
        (-sys.float_info.max, None, "-1.79769e+308, and verl stores rewards as float32, which end at 3.40282e+38"),
        (10**39, {"score": 10**39, "acc": True}, "float32"),
    ],
)
def test_what_is_no_verdict(reward, info, reason):
    assert reason in fault(reward, info)


@pytest.mark.parametrize(
    ("reward", "info"),
    [
        (0.0, {"score": 0.0, "outcome": "timeout"}),
        # A user's own keys, which say that the program under test timed out or raised: that is a wrong answer.
        (0.0, {"score": 0.0, "timeout": True}),
        (0.0, {"score": 0.0, "acc": False, "error": "ZeroDivisionError"}),
        # Those of an agent loop that scores itself, or of a reward manager of the user's own.
        (1.0, {"error": None, "resolved": True}),
        (0.0, {"error": "tests failed", "resolved": False}),
        (0.0, {"acc": False, "error": "no boxed answer"}),
        (0.5, {"acc": 0.0, "timeout": True}),
        (1.0, {"acc": 1.0}),
        (np.float32(0.5), None),
        (-float(np.finfo(np.float32).max), None),
        (torch.tensor(0.5), {"acc": 1.0, "overlong_reward": torch.tensor(-0.5)}),
    ],
)
def test_what_is_a_verdict(reward, info):
    assert fault(reward, info) is None
