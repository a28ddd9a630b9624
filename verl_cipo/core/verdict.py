"""Right, wrong, or no verdict: read off what verl's reward loop returns for a response.

One rule for the rollouts of both trainers and for evaluation. verl hands over a reward, and an info that holds

* of a verifier that returned a dict: all of it, with `score` and, where the verifier knows it, `acc`;
* of one that returned a number: that number as `acc`, and no `score`.

The reward is not the verdict: verl's dapo manager adds its overlong penalty to the reward alone, so that a right answer
may have a reward of .5, and its rate_limited manager gives a reward of 0 where the verifier was not reached.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

INFRASTRUCTURE_ERROR = "infrastructure_error"
"""The `outcome` by which a verifier says that it could not judge."""
UNDECIDED = "undecided"
"""The `outcome` by which one says that its score is no verdict on the answer: nothing can be told, now or later."""

LARGEST = 3.4028234663852886e38
"""Of float32. A larger reward would be stored as infinite, and the advantages of its group would be NaN."""


def verdict(reward: float, info: Mapping[str, Any] | None, threshold: float) -> bool:
    """True when the verifier called the response right.

    Its own verdict decides: `acc`, true or above .5; where it has none its own score, above `threshold`; the reward,
    above `threshold`, only where the info holds neither.

    Args:
        reward: the response's reward, penalties of the reward manager included.
        info: verl's `reward_extra_info` of the response; an `acc` or `score` that is no finite number counts as absent.
        threshold: `algorithm.cipo.correct_threshold`.

    Raises:
        ValueError: there is no reward.
    """
    if reward is None:
        raise ValueError("a session reached CIPO without a reward: rewards must be computed while rolling out")
    info = info or {}
    acc, score = _plain(info.get("acc")), finite(info.get("score"))
    if isinstance(acc, bool):
        return acc
    if "score" not in info:
        own = finite(acc)
    elif finite(acc) is not None:
        return float(acc) > 0.5
    else:
        own = score
    return (float(reward) if own is None else own) > threshold


def fault(reward: Any, info: Mapping[str, Any] | None) -> str | None:
    """Why reward and info are no verdict; None where they are one.

    The verifier reports an `outcome` of infrastructure_error, verl's rate_limited manager a time-out or an error that
    it met, or the reward is no finite number, as such or once verl has stored it. That manager gives a reward of 0 and
    nothing but an `acc` of 0 and one of its two keys: anybody else's `timeout` or `error` is their own word about the
    answer.
    """
    info = info or {}
    if info.get("outcome") == INFRASTRUCTURE_ERROR:
        return f"the verifier reports an infrastructure error: {dict(info)}"
    if finite(reward) == 0 and finite(info.get("acc")) == 0 and not isinstance(_plain(info["acc"]), bool):
        if info.keys() == {"acc", "timeout"} and info["timeout"] is True:
            return "the reward manager gave up waiting for the verifier (reward.timeout)"
        if info.keys() == {"acc", "error"} and isinstance(info["error"], str):
            return f"the reward manager met an error of the verifier: {info['error']}"
    score = finite(reward)
    if score is None:
        return f"the reward is {reward!r:.80}, no finite number"
    if abs(score) > LARGEST:
        return f"the reward is {score:g}, and verl stores rewards as float32, which end at {LARGEST:g}"
    return None


def _plain(value: Any) -> Any:
    """The Python value of a numpy or torch scalar; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def finite(value: Any) -> float | None:
    """The value as a float; None where it is no finite number, or an integer that no float holds."""
    value = _plain(value)
    if not isinstance(value, Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
