r"""Whether two expressions are equal, by their values: at points that nobody chose, and to many digits.

Names have rational values, so what is made of the four operations and whole powers is exact. The rest is worked out
with 60 digits; two values that agree so far are worked out again with 400, so that a difference is seen however small
it is beside what it is added to, as in 1 - e^{-100}, and small values are compared relatively.

Where the imaginary unit is written, or no point has a real value, values are complex.
"""

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from verl_cipo.rewards.math.evaluate import Context, Undefined, Value, as_number, holds, names, parts, value
from verl_cipo.rewards.math.expressions import Tree, is_whole

_DIGITS, _MANY_DIGITS = 60, 400
_CLEAR = mpmath.mpf("1e-8")
# A written decimal of at least this many significant digits stands for the value that rounds to it.
SIGNIFICANT_DIGITS = 6
_TOLERANCE = mpmath.mpf("1e-6")
_ENOUGH_POINTS = 3
_MOST_NAMES, _MOST_NUMBERS, _SMALL, _FARTHEST = 3, 4, 9, Fraction(10**6)


def same(one: Tree, other: Tree, *, degree: str = "radians") -> bool | None:
    """Whether two expressions have the same value at every point where both have one.

    None where that is nowhere, and where one has a sum or integral that the other has not.

    Args:
        one, other: the expressions.
        degree: what a degree sign outside of a function means: "radians" for pi/180, "number" for 1.
    """
    held = names(one) | names(other)
    if {name for name in names(one) if is_whole(name)} != {name for name in names(other) if is_whole(name)}:
        return None
    tolerance = _TOLERANCE if rounded(one) != rounded(other) else None
    for base in ("e", "10") if holds(one, "log") or holds(other, "log") else ("e",):
        for complex_values in (True,) if holds(one, "i") or holds(other, "i") else (False, True):
            verdict = _same_at_points(one, other, held, tolerance, Context(complex_values, degree, base))
            if verdict is not None:
                break
        if verdict is None or verdict:
            return verdict
    return verdict


def rounded(tree: Tree) -> bool:
    """Whether a decimal of so many digits stands in it that it can be a rounded value."""
    return is_decimal(tree, SIGNIFICANT_DIGITS) or any(rounded(part) for part in parts(tree))


def is_decimal(tree: Tree, digits: int) -> bool:
    """Whether an expression is a decimal of at least so many significant digits."""
    return tree[0] == "num" and 0 < tree[2] * 10 ** (digits - 1) <= tree[1]


def points(held: frozenset[str], *trees: Tree) -> Iterator[dict[str, Fraction]]:
    """Values for the names: fractions between 0 and 1, above 1, of both signs, and whole numbers.

    Where an expression is made of pieces, as |x - 25| is, also values beyond each of its numbers and far beyond all.
    """
    if not held:
        yield {}
        return
    first: dict[str, Fraction] = {}
    for number, (low, high, below, signs) in enumerate(_POINTS):
        point = {}
        for name in sorted(held):
            rng = random.Random(f"{number} {name}")
            value = Fraction(rng.randint(low * below, high * below), below)
            point[name] = -value if signs == "-" or (signs == "+-" and rng.random() < 0.5) else value
        first = first or point
        yield point
    if any(_has_pieces(tree) for tree in trees):
        numbers = {abs(value) for tree in trees for value in numbers_in(tree)}
        far = min(2 * math.prod(value + 1 for value in numbers), _FARTHEST)
        large = sorted((value for value in numbers if value > _SMALL), reverse=True)
        for name in sorted(held)[:_MOST_NAMES]:
            for beyond in (*large[:_MOST_NUMBERS], far, min(far**2, _FARTHEST)):
                yield {**first, name: beyond + Fraction(211, 997)}
                yield {**first, name: -beyond - Fraction(307, 997)}


def _has_pieces(tree: Tree) -> bool:
    """Whether an absolute value, a root or a part that is rounded to a whole number stands in it."""
    power = tree[0] == "pow" and tree[2][0] == "div"
    return tree[0] in ("abs", "root", "floor", "ceil") or power or any(_has_pieces(part) for part in parts(tree))


def numbers_in(tree: Tree) -> Iterator[Fraction]:
    """The numbers that are written in an expression."""
    if tree[0] == "num":
        yield tree[1]
    for part in parts(tree):
        yield from numbers_in(part)


_POINTS = (
    (0, 1, 997, "+"), (1, 4, 499, "+"), (0, 3, 997, "+-"), (2, 9, 1, "+"), (0, 1, 991, "-"), (1, 7, 1, "+-"),
    (3, 20, 97, "+"), (3, 20, 89, "+-"), (0, 1, 983, "+-"), (2, 15, 1, "+-"), (0, 2, 977, "+"), (0, 9, 971, "+-"),
)  # fmt: skip


def _same_at_points(one: Tree, other: Tree, held: frozenset[str], tolerance: Any, context: Context) -> bool | None:
    agreed = 0
    for context.point in points(held, one, other):
        try:
            equal = _same_here(one, other, tolerance, context)
        except Undefined:
            continue
        if not equal:
            return False
        agreed += 1
    return True if agreed >= (_ENOUGH_POINTS if held else 1) else None


def _same_here(one: Tree, other: Tree, tolerance: Any, context: Context) -> bool:
    with mp.workdps(_DIGITS):
        a, b = value(one, context), value(other, context)
        verdicts = [_compare(x, y, tolerance) for x, y in _pairs(a, b)]
    if None not in verdicts:
        return all(verdicts)
    if False in verdicts:
        return False
    first = [_distance(x, y) for x, y in _pairs(a, b)]
    with mp.workdps(_MANY_DIGITS):
        again = list(_pairs(value(one, context), value(other, context)))
        for (x, y), coarse in zip(again, first, strict=True):
            fine, size = _distance(x, y), max(abs(as_number(x)), abs(as_number(y)))
            # Of equal values only the error of rounding is left, and that shrinks with the digits.
            least = mpmath.mpf(10) ** (50 - _MANY_DIGITS)
            if fine > size * least and fine > coarse * mpmath.mpf(10) ** -_DIGITS:
                if fine == size < least:
                    raise Undefined  # One is 0: so small a value is lost where it is added to another.
                return False
    return True


def _compare(x: Value, y: Value, tolerance: Any) -> bool | None:
    """Whether two values are equal; None where more digits are needed to tell."""
    if isinstance(x, Fraction) and isinstance(y, Fraction) and tolerance is None:
        return x == y
    if x is y:
        return True
    x, y = as_number(x), as_number(y)
    if not (mpmath.isfinite(x) and mpmath.isfinite(y)):
        return x == y
    distance, size = abs(x - y), max(abs(x), abs(y))
    if tolerance is not None:
        return distance <= tolerance * size
    # Sums of large parts may leave little but the error of rounding.
    return False if distance > _CLEAR * size and distance > mpmath.mpf(10) ** (-_DIGITS // 2) else None


def _distance(x: Value, y: Value) -> Any:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        x = y = x - y
        return abs(as_number(x))
    return abs(as_number(x) - as_number(y))


def _pairs(a: Value, b: Value) -> Iterator[tuple[Value, Value]]:
    if isinstance(a, list) != isinstance(b, list) or (
        isinstance(a, list) and (len(a), len(a[0])) != (len(b), len(b[0]))
    ):
        yield Fraction(0), Fraction(1)
        return
    if not isinstance(a, list):
        yield a, b
        return
    for row, other in zip(a, b, strict=True):
        yield from zip(row, other, strict=True)
