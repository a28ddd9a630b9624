"""What comes back on a sandbox's result channel, read by the verifier.

A program chooses every byte of it, so reading has to cost little whatever it is. Its length and the number of its parts
are bounded by those of what is expected before it is parsed, integers have few digits or are hexadecimal, and nothing
of it is ever hashed: elements with equal hashes take n ** 2 steps to put into a set.
"""

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_ERROR_BYTES = 2**12
# A value may be longer than an equal one, never by more: 0.49999999999999994 for 0.5, (1, 2) for [1, 2].
_LONGER, _SPARE_BYTES = 8, 2**12
_MORE_PARTS, _SPARE_PARTS = 4, 16
_PART_MARKS = (b"[", b"{", b",")
_MAX_DIGITS = 25
_MAX_BITS = 2**11
"""Of a fraction: above this it is reduced too slowly, and a float is never equal to it."""
_MAX_EXPONENT = 400


class NoClaimError(ValueError):
    """The bytes are no claim that could be right."""


@dataclass(frozen=True)
class Bounds:
    """What a claim may have: bytes, and parts, which are counted by brackets and commas."""

    size: int
    parts: int


def bounds(expected: Any) -> Bounds:
    """Of a claim whose value is to equal `expected`, encoded."""
    text = json.dumps(expected).encode()
    return Bounds(_LONGER * len(text) + _SPARE_BYTES, _MORE_PARTS * _parts(text) + _SPARE_PARTS)


def read_value(claim: bytes | None, most: Bounds) -> Any:
    """The value in a claim, encoded. Raises: NoClaimError."""
    if claim is None or len(claim) > most.size or _parts(claim) > most.parts:
        raise NoClaimError("no claim, or more of it than could be right")
    data = _parsed(claim)
    if not isinstance(data, dict) or data.keys() != {"value"}:
        raise NoClaimError("no value")
    return data["value"]


def error_name(claim: bytes | None) -> str | None:
    """The name of the error that a claim reports; None when it reports none."""
    if claim is None or len(claim) > MAX_ERROR_BYTES:
        return None
    try:
        data = _parsed(claim)
    except NoClaimError:
        return None
    name = data.get("error") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def _parts(text: bytes) -> int:
    return sum(text.count(mark) for mark in _PART_MARKS)


def _parsed(claim: bytes) -> Any:
    try:
        return json.loads(claim, parse_int=_short_int, parse_float=_short_float)
    except (ValueError, RecursionError) as error:
        raise NoClaimError(f"no JSON: {error}") from error


def _short_int(digits: str) -> int:
    """Python's own limit of digits may have been lifted, and then long ones take minutes."""
    if len(digits) > _MAX_DIGITS:
        raise NoClaimError("an integer with more digits than `encode` writes")
    return int(digits)


def _short_float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS:
        raise NoClaimError("a float with more digits than `encode` writes")
    return float(digits)


def content(data: Any, *kinds: str) -> Any:
    """What is in `{kind: content}`; None when `data` is none of these kinds."""
    if isinstance(data, dict) and len(data) == 1:
        ((kind, inside),) = data.items()
        return inside if kind in kinds else None
    return None


def elements(data: Any, *kinds: str) -> list[Any] | None:
    """The elements of encoded data of one of these kinds; None when it is none."""
    if isinstance(data, list):
        return data if "list" in kinds else None
    inside = content(data, *kinds)
    return inside if isinstance(inside, list) and "list" not in data else None


def pairs(data: Any) -> list[list[Any]] | None:
    """The keys and values of an encoded dict; None when it is none."""
    inside = elements(data, "dict")
    return inside if inside is not None and all(isinstance(pair, list) and len(pair) == 2 for pair in inside) else None


def number(data: Any) -> int | float | complex | Fraction | Decimal | None:
    """The number that encoded data stands for; None when it is none."""
    if isinstance(data, int | float):
        return data
    try:
        if (digits := content(data, "int")) is not None:
            return int(digits, 16)
        if (parts := elements(data, "complex")) is not None:
            real, imaginary = map(float, parts)
            return complex(real, imaginary)
        if (parts := elements(data, "fraction")) is not None:
            numerator, denominator = map(number, parts)
            small = all(isinstance(part, int) and part.bit_length() <= _MAX_BITS for part in (numerator, denominator))
            return Fraction(numerator, denominator) if small else None
        if isinstance(text := content(data, "decimal"), str) and len(text) <= _MAX_EXPONENT:
            value = Decimal(text)
            return value if value.is_finite() and abs(value.adjusted()) <= _MAX_EXPONENT else None
    except (ArithmeticError, TypeError, ValueError):
        pass  # It is not what `encode` writes.
    return None


def canonical(data: Any) -> str:
    """A text that is the same for encoded values which are equal in Python: 1 and 1.0, sets and dicts in any order.

    Raises: NoClaimError for what `encode` does not write, or what no value is equal to (NaN, an iterator).
    """
    if data is None:
        return "None"
    if isinstance(data, str):
        return json.dumps(data)
    if (value := number(data)) is not None:
        return _canonical_number(value)
    if isinstance(digits := content(data, "bytes", "bytearray"), str):
        return f"bytes {digits}"
    if isinstance(name := content(data, "type"), str):
        return f"type {name}"
    for kind, brackets in (("list", "[]"), ("tuple", "()"), ("deque", "<>")):
        if (inside := elements(data, kind)) is not None:
            return ",".join(map(canonical, inside)).join(brackets)
    if (inside := elements(data, "set", "frozenset", "keys", "items")) is not None:
        return ",".join(sorted(map(canonical, inside))).join("{}")
    if (inside := pairs(data)) is not None:
        return ",".join(sorted(f"{canonical(key)}: {canonical(value)}" for key, value in inside)).join("{}") + "dict"
    if (inside := elements(data, "range")) is not None and len(inside) == 3:
        parts = [number(part) for part in inside]
        if all(isinstance(part, int) for part in parts) and parts[2]:
            run = range(*parts)
            # Ranges are equal as sequences are, which the first two and the last element tell.
            return f"range {[*run[:2], *run[-1:]]}"
    raise NoClaimError("nothing that a value is equal to")


def _canonical_number(value: int | float | complex | Fraction | Decimal) -> str:
    if isinstance(value, complex):
        real = _canonical_number(value.real)
        return real if value.imag == 0 else f"complex {real} {_canonical_number(value.imag)}"
    if isinstance(value, float):
        if math.isnan(value):
            raise NoClaimError("NaN, which nothing is equal to")
        return f"{int(value):x}" if value.is_integer() else value.hex()
    if isinstance(value, Decimal):
        value = Fraction(value)
    if value.denominator == 1:
        return f"{int(value):x}"
    try:
        if (nearest := float(value)) == value:
            return nearest.hex()
    except OverflowError:
        pass  # Larger than any float, so equal to none.
    return f"{value.numerator:x}/{value.denominator:x}"
