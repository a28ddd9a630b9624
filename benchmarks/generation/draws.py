"""Draws that depend on nothing but what they are for, so that every schedule gets the same."""

import hashlib
import math
from statistics import NormalDist
from typing import Any


def uniform(*key: Any) -> float:
    """A number in (0, 1) that is a hash of ``key``."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=6).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**48


def quantile(law: str, u: float, *, median: float, spread: float) -> float:
    """The ``u`` quantile of a length, in tokens.

    lognormal: median * exp(spread * z). pareto: a tail that falls with the power -1 / spread.
    Raises: ValueError for another law.
    """
    if law == "lognormal":
        return median * math.exp(spread * NormalDist().inv_cdf(u))
    if law == "pareto":
        return median * (2 * (1 - u)) ** -spread
    raise ValueError(f"law = {law!r}: expected one of lognormal, pareto")


def verdict(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None) -> float:
    """A reward function of verl: every prompt has a pass rate, uniform over the prompts, whatever is answered."""
    problem = (ground_truth, (extra_info or {}).get("index"))
    return float(uniform("verdict", problem, solution_str) < uniform("rate", problem))
