"""Whether what a program gave is what was expected. Runs in the verifier, on text and plain values only."""

import math
import re
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_MAX_NUMBER_CHARS = 400


def same_output(got: str, expected: str, *, tolerance: float) -> bool:
    """Whether stdout is as expected: line by line, token by token.

    Blank lines before and after, and blanks around and between tokens do not count. Tokens are equal as text or as
    numbers (3 and 3.0); where an expected number has a point or an exponent, `tolerance` is allowed, absolute below 1
    and relative above. LiveCodeBench's rule, with a tolerance added and white space within a text line not counted.
    """
    got_lines, expected_lines = got.strip().split("\n"), expected.strip().split("\n")
    if len(got_lines) != len(expected_lines):
        return False
    return all(map(lambda one, other: _same_line(one, other, tolerance), got_lines, expected_lines))


def same_value(got: Any, expected: Any, *, tolerance: float) -> bool:
    """Whether a returned value is the expected one, which was JSON.

    A tuple counts as a list and a key of a dict as the text it has in JSON. Numbers are equal as in Python (True == 1,
    1 == 1.0); where the expected one is a float, `tolerance` is allowed as in `same_output`. NaN equals nothing.
    """
    if isinstance(expected, list):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(expected)
            and all(same_value(one, other, tolerance=tolerance) for one, other in zip(got, expected, strict=True))
        )
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return False
        named = {_json_key(key): item for key, item in got.items()}
        return (
            len(named) == len(got)
            and named.keys() == expected.keys()
            and all(same_value(named[key], item, tolerance=tolerance) for key, item in expected.items())
        )
    if isinstance(expected, float) and isinstance(got, int | float):
        return _close(got, expected, tolerance)
    return not isinstance(got, list | dict) and got == expected


def _same_line(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    got_tokens, expected_tokens = got.split(), expected.split()
    return len(got_tokens) == len(expected_tokens) and all(
        map(lambda one, other: one == other or _same_number(one, other, tolerance), got_tokens, expected_tokens)
    )


def _same_number(got: str, expected: str, tolerance: float) -> bool:
    for token in (got, expected):
        if len(token) > _MAX_NUMBER_CHARS or not _NUMBER.fullmatch(token):
            return False
    if Decimal(got) == Decimal(expected):
        return True
    return any(mark in expected for mark in ".eE") and _close(float(got), float(expected), tolerance)


def _close(got: int | float, expected: float, tolerance: float) -> bool:
    if isinstance(got, int) and got.bit_length() > 1000:
        return False
    if not (math.isfinite(got) and math.isfinite(expected)):
        return got == expected
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def _json_key(key: Any) -> Any:
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    # Sizes beyond this are refused by str().
    return str(key) if isinstance(key, float) or isinstance(key, int) and key.bit_length() < 10_000 else key
