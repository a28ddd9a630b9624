"""Right or wrong, read off what verl's reward loop returns for a session."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np


def verdict(score: float | None, extra: Mapping[str, Any] | None, threshold: float) -> bool:
    """True when the verifier called the answer right.

    A verifier that returns a dict gives ``acc`` itself where it knows it. One that returns a float gives none: verl's
    naive reward manager then files the score under ``acc``, without a ``score`` beside it, and the score decides.

    Args:
        score: the session's reward.
        extra: ``extra_fields["reward_extra_info"]``; an ``acc`` that is no number counts as absent.
        threshold: ``algorithm.cipo.correct_threshold``; a score above it is right.

    Raises:
        ValueError: the session has no reward.
    """
    if score is None:
        raise ValueError("a session reached CIPO without a reward: rewards must be computed while rolling out")
    extra = extra or {}
    acc = extra.get("acc")
    if isinstance(acc, bool | np.bool_) or (isinstance(acc, Number) and "score" in extra):
        return float(acc) > 0.5
    return float(score) > threshold
