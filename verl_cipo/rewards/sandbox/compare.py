"""Whether what a program gave is what was expected. Runs in the verifier, on text and encoded values only.

Both stop at the first difference, and never look at more than what is expected has: the rest costs nothing.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from verl_cipo.rewards.sandbox.cases import CallTest
from verl_cipo.rewards.sandbox.claims import NoClaimError, canonical, elements, number, pairs
from verl_cipo.rewards.sandbox.inside.values import NotPlainError, encode

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
# As programs write numbers: no leading zeros, no plus, and an exponent with a sign or behind a point (1e-05, 1.5E10).
# Anything else may as well be a name: 0010, +1, 1e5.
_PLAIN_NUMBER = re.compile(r"-?((0|[1-9]\d*)([eE][+-]\d{1,4})?|((0|[1-9]\d*)\.\d*|\.\d+)([eE][+-]?\d{1,4})?)", re.ASCII)
_MAX_NUMBER_CHARS = 400
_MAX_KEY_BITS = 2**11


def same_output(got: str, expected: str, *, tolerance: float, any_layout: bool = False) -> bool:
    """Whether stdout is as expected: line by line, token by token.

    Blank lines before and after, and blanks around and between tokens do not count. Tokens are equal as text or as
    numbers (3 and 3.0), where the expected one is written as programs write numbers; where it has a point or an
    exponent, `tolerance` is allowed, absolute below 1 and relative above. LiveCodeBench's rule, with a tolerance added
    and white space within a text line not counted.

    any_layout: line ends are blanks like others and case does not count, as in CodeContests (execution/
    tester_sandboxer.cc of google-deepmind/code_contests).
    """
    if any_layout:
        return _same_line(got.lower(), expected.lower(), tolerance)
    got, expected = got.strip(), expected.strip()
    if got.count("\n") != expected.count("\n"):
        return False
    lines = zip(got.split("\n"), expected.split("\n"), strict=True)
    return all(_same_line(one, other, tolerance) for one, other in lines)


def agreements(value: Any, test: CallTest, *, tolerance: float) -> list[bool]:
    """For each reading of what a test expects, whether an encoded value agrees.

    Raises: ValueError when what is expected cannot be compared with anything.
    """
    if not test.exact:
        return [same_value(value, reading, tolerance=tolerance) for reading in test.readings]
    try:
        return [same_exactly(value, encode(reading)) for reading in test.readings]
    except NotPlainError as error:
        raise ValueError(f"the ground truth's call of {test.name} has {error}") from error


def same_exactly(got: Any, expected: Any) -> bool:
    """Whether two encoded values are equal in Python."""
    try:
        return canonical(got) == canonical(expected)
    except (NoClaimError, RecursionError):
        return False


def same_value(got: Any, expected: Any, *, tolerance: float) -> bool:
    """Whether an encoded value is the expected one, which was JSON.

    A tuple counts as a list and a key of a dict as the text it has in JSON. Numbers are equal as in Python (True == 1,
    1 == 1.0); where the expected one is a float, `tolerance` is allowed as in `same_output`. NaN equals nothing.
    """
    if isinstance(expected, list):
        inside = elements(got, "list", "tuple")
        return (
            inside is not None
            and len(inside) == len(expected)
            and all(same_value(one, other, tolerance=tolerance) for one, other in zip(inside, expected, strict=True))
        )
    if isinstance(expected, dict):
        inside = pairs(got)
        if inside is None or len(inside) != len(expected):
            return False
        named = [(_json_key(key), item) for key, item in inside]
        if not all(isinstance(name, str) for name, _ in named):
            return False
        named.sort(key=lambda pair: pair[0])
        return all(
            name == key and same_value(one, other, tolerance=tolerance)
            for (name, one), (key, other) in zip(named, sorted(expected.items()), strict=True)
        )
    if isinstance(expected, str) or expected is None:
        return type(got) is type(expected) and got == expected
    value = number(got)
    if isinstance(expected, float) and isinstance(value, int | float | Fraction | Decimal):
        return _close(value, expected, tolerance)
    return value is not None and value == expected


def _same_line(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    expected_tokens = expected.split()
    got_tokens = got.split(None, len(expected_tokens))
    return len(got_tokens) == len(expected_tokens) and all(
        one == other or _same_number(one, other, tolerance)
        for one, other in zip(got_tokens, expected_tokens, strict=True)
    )


def _same_number(got: str, expected: str, tolerance: float) -> bool:
    for token, form in ((got, _NUMBER), (expected, _PLAIN_NUMBER)):
        if len(token) > _MAX_NUMBER_CHARS or not form.fullmatch(token):
            return False
    if Decimal(got) == Decimal(expected):
        return True
    return any(mark in expected for mark in ".eE") and _close(float(got), float(expected), tolerance)


def _close(got: int | float | Fraction | Decimal, expected: float, tolerance: float) -> bool:
    try:
        got = float(got)
    except OverflowError:
        return False
    if not (math.isfinite(got) and math.isfinite(expected)):
        return got == expected
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def _json_key(data: Any) -> Any:
    """The text of an encoded key in JSON; something else where it has none."""
    if data is None or isinstance(data, bool):
        return {None: "null", True: "true", False: "false"}[data]
    value = number(data)
    return str(value) if isinstance(value, float) or _is_short_int(value) else data


def _is_short_int(value: Any) -> bool:
    # Decimal text of longer ones is slow to make.
    return isinstance(value, int) and value.bit_length() <= _MAX_KEY_BITS
