"""The tolerance that a data set gives for a row's answer, as OlympiadBench does: `extra_info.tolerance`, absolute."""

import math
from fractions import Fraction

from verl_cipo.rewards.values import read_number, split_equation

# As in OlympiadBench's own judge: 4.3 is within 0.1 of 4.2, though not in binary floats.
_SLACK = Fraction(101, 100)


def tolerance_of(extra_info: dict | None) -> float | None:
    """The tolerance of a row; None where it has none. Raises: ValueError when it is no number above 0."""
    given = (extra_info or {}).get("tolerance")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"extra_info.tolerance = {given!r}: allowed is a number above 0, or none")
    return float(given)


def within(gold: str, answer: str, tolerance: float) -> bool:
    """Whether two normalised answers are numbers that differ by `tolerance` at most, in no two different units."""
    wanted, given = read_number(split_equation(gold)[1], letters=False), read_number(split_equation(answer)[1])
    if wanted is None or given is None or (wanted.unit and given.unit and wanted.unit != given.unit):
        return False
    return abs(wanted.value - given.value) <= Fraction(tolerance) * _SLACK
