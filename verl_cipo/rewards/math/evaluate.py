r"""The value of an expression at a point: exact where it is rational, else with as many digits as mpmath is set to.

Values are real: a root or logarithm that is not has no value; or complex, with principal values.
"""

import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from verl_cipo.rewards.math.expressions import Tree

_EXACT_BITS = 60_000
# The binary logarithm of what functions are applied to: beyond it a value takes too long, and nobody means it.
_MAX_MAGNITUDE = 300

Value = Any  # Fraction, mpf or mpc, or a list of rows of these


class Undefined(Exception):
    """The expression has no value here: a division by zero, a root of a negative number, a value too large."""


class Context:
    """How an expression is read: real or complex, what a degree is, the base of `log`; and the names' values."""

    def __init__(self, complex_values: bool, degree: str = "radians", log_base: str = "e") -> None:
        self.complex_values, self.degree, self.log_base = complex_values, degree, log_base
        self.point: dict[str, Fraction] = {}
        self.in_function = False


def value(tree: Tree, context: Context) -> Value:
    """The value of an expression where the names have the context's values.

    Raises:
        Undefined: there is none.
    """
    try:
        return _EVALUATE[tree[0]](tree, context)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        # mpmath raises these for poles, and for values out of its reach.
        raise Undefined from error


def as_number(x: Value) -> Any:
    """A value as mpmath's."""
    return mpmath.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def names(tree: Tree) -> frozenset[str]:
    """The names that stand in an expression."""
    if tree[0] == "name":
        return frozenset((tree[1],))
    return frozenset().union(*(names(part) for part in parts(tree)))


def holds(tree: Tree, constant: str) -> bool:
    """Whether a constant stands in an expression."""
    return tree == ("const", constant) or any(holds(part, constant) for part in parts(tree))


def parts(tree: Tree) -> Iterator[Tree]:
    for part in tree[1:]:
        if isinstance(part, tuple):
            if part and isinstance(part[0], str):
                yield part
            else:
                yield from (inner for inner in _flat(part))


def _flat(parts: tuple) -> Iterator[Tree]:
    for part in parts:
        if part and isinstance(part[0], str):
            yield part
        else:
            yield from _flat(part)


def _name(tree: Tree, context: Context) -> Value:
    return context.point[tree[1]]


def _constant(tree: Tree, context: Context) -> Value:
    if tree[1] == "log":
        return +mp.e if context.log_base == "e" else Fraction(10)
    if tree[1] == "degree":
        return Fraction(1) if context.degree == "number" and not context.in_function else mp.pi / 180
    if tree[1] == "inf":
        return mp.inf
    return {"pi": +mp.pi, "e": +mp.e, "i": mpmath.mpc(0, 1)}[tree[1]]


def _add(tree: Tree, context: Context) -> Value:
    total = value(tree[1], context)
    for part in tree[2:]:
        total = _sum_of(total, value(part, context))
    return total


def _sum_of(a: Value, b: Value) -> Value:
    if isinstance(a, list) or isinstance(b, list):
        if not (isinstance(a, list) and isinstance(b, list)) or (len(a), len(a[0])) != (len(b), len(b[0])):
            raise Undefined
        return [[_sum_of(x, y) for x, y in zip(row, other, strict=True)] for row, other in zip(a, b, strict=True)]
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a + b
    return _known(as_number(a) + as_number(b))


def _negative(tree: Tree, context: Context) -> Value:
    return _product_of(Fraction(-1), value(tree[1], context))


def _multiply(tree: Tree, context: Context) -> Value:
    total = value(tree[1], context)
    for part in tree[2:]:
        total = _product_of(total, value(part, context))
    return total


def _product_of(a: Value, b: Value) -> Value:
    if isinstance(a, list) and isinstance(b, list):
        if len(a[0]) != len(b):
            raise Undefined
        columns = list(zip(*b, strict=True))
        return [[_dot(row, column) for column in columns] for row in a]
    if isinstance(a, list) or isinstance(b, list):
        rows, factor = (a, b) if isinstance(a, list) else (b, a)
        return [[_product_of(factor, x) for x in row] for row in rows]
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _small(a * b)
    return _known(as_number(a) * as_number(b))


def _dot(row: list, column: tuple) -> Value:
    total: Value = Fraction(0)
    for x, y in zip(row, column, strict=True):
        total = _sum_of(total, _product_of(x, y))
    return total


def _divide(tree: Tree, context: Context) -> Value:
    a, b = value(tree[1], context), value(tree[2], context)
    if isinstance(b, list):
        raise Undefined
    return _product_of(a, 1 / b if isinstance(b, Fraction) else _known(1 / b))


def _power(tree: Tree, context: Context) -> Value:
    base, exponent = value(tree[1], context), value(tree[2], context)
    if isinstance(base, list):
        if not isinstance(exponent, Fraction) or exponent.denominator != 1 or not 0 < exponent <= 20:
            raise Undefined
        total = base
        for _ in range(int(exponent) - 1):
            total = _product_of(total, base)
        return total
    return _power_of(base, exponent, context)


def _power_of(base: Value, exponent: Value, context: Context) -> Value:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        if base == 0 and exponent <= 0:
            raise Undefined
        if isinstance(base, Fraction) and _bits(base) * abs(exponent) <= _EXACT_BITS:
            return base ** int(exponent)
        _bounded(exponent)
        return _known(as_number(base) ** int(exponent))
    if (
        isinstance(exponent, Fraction)
        and exponent.denominator in (3, 5, 7, 9)
        and not context.complex_values
        and base < 0
    ):
        # The real root of odd degree.
        root = _power_of(-base, exponent, context)
        return -root if exponent.numerator % 2 else root
    if base == 0:
        if not mpmath.mpc(as_number(exponent)).real > 0:
            raise Undefined
        return Fraction(0)
    exact = _exact_root(base, exponent)
    if exact is not None:
        return exact
    logarithm = _real(mpmath.log(_bounded(base)), context)
    return _real(mpmath.exp(_bounded(logarithm * as_number(exponent))), context)


def _exact_root(base: Value, exponent: Value) -> Fraction | None:
    """The power of a rational number where it is one: 4^{1/2}."""
    if not isinstance(base, Fraction) or not isinstance(exponent, Fraction) or base < 0 or exponent.denominator > 12:
        return None
    if _bits(base) * abs(exponent) > 4096 or _bits(base) > 4096:
        return None
    parts = []
    for part in (base.numerator, base.denominator):
        with mp.workdps(_bits(base) // 3 + 10):
            root = int(mpmath.nint(mpmath.root(part, exponent.denominator)))
        if root**exponent.denominator != part:
            return None
        parts.append(root)
    return Fraction(*parts) ** exponent.numerator


def _root(tree: Tree, context: Context) -> Value:
    degree, inner = value(tree[1], context), value(tree[2], context)
    if isinstance(inner, list) or isinstance(degree, list):
        raise Undefined
    return _power_of(inner, 1 / degree, context)


def _logarithm(tree: Tree, context: Context) -> Value:
    base, inner = _inside(tree[1], context), _inside(tree[2], context)
    if inner == 0:
        raise Undefined
    upper = _real(mpmath.log(_bounded(inner)), context)
    if tree[1] == ("const", "e"):
        return upper
    lower = _real(mpmath.log(_bounded(base)), context)
    return _known(upper / lower)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "arcsec": mpmath.asec, "arccsc": mpmath.acsc,
    # As schools have it, between 0 and pi.
    "arccot": lambda x: mpmath.pi / 2 - mpmath.atan(x),
    "sinh": mpmath.sinh, "cosh": mpmath.cosh, "tanh": mpmath.tanh, "coth": mpmath.coth, "sech": mpmath.sech,
    "csch": mpmath.csch, "arcsinh": mpmath.asinh, "arccosh": mpmath.acosh, "arctanh": mpmath.atanh,
}  # fmt: skip


def _function(tree: Tree, context: Context) -> Value:
    return _real(_FUNCTIONS[tree[1]](_bounded(_inside(tree[2], context))), context)


def _inside(tree: Tree, context: Context) -> Value:
    """The value of what a function is applied to: there a degree is always an angle."""
    before, context.in_function = context.in_function, True
    try:
        inner = value(tree, context)
    finally:
        context.in_function = before
    if isinstance(inner, list):
        raise Undefined
    return inner


def _absolute(tree: Tree, context: Context) -> Value:
    inner = value(tree[1], context)
    if isinstance(inner, list):
        raise Undefined
    return abs(inner)


def _factorial(tree: Tree, context: Context) -> Value:
    return _factorial_of(value(tree[1], context))


def _factorial_of(n: Value) -> Value:
    if isinstance(n, Fraction) and n.denominator == 1:
        if n < 0:
            raise Undefined
        if n <= 5000:
            return Fraction(math.factorial(int(n)))
    return _known(mpmath.gamma(_bounded(n) + 1))


def _binomial(tree: Tree, context: Context) -> Value:
    n, k = value(tree[1], context), value(tree[2], context)
    if (
        isinstance(n, Fraction)
        and isinstance(k, Fraction)
        and n.denominator == k.denominator == 1
        and 0 <= k <= n <= 5000
    ):
        return Fraction(math.comb(int(n), int(k)))
    _bounded(n), _bounded(k)
    return _known(mpmath.binomial(as_number(n), as_number(k)))


def _floor(tree: Tree, context: Context) -> Value:
    return Fraction(math.floor(_plain_real(value(tree[1], context))))


def _ceiling(tree: Tree, context: Context) -> Value:
    return Fraction(math.ceil(_plain_real(value(tree[1], context))))


def _plain_real(inner: Value) -> Any:
    if not isinstance(inner, Fraction | mpmath.mpf) or not mpmath.isfinite(_bounded(inner)):
        raise Undefined
    return inner


def _call(tree: Tree, context: Context) -> Value:
    """A function that is only a name: a value of its own for each name and arguments."""
    arguments = [mpmath.nstr(mpmath.mpc(as_number(value(argument, context))), 40) for argument in tree[2]]
    return Fraction(random.Random(f"{tree[1]} {arguments}").randint(1, 10**6), 999_983)


def _matrix(tree: Tree, context: Context) -> Value:
    rows = [[value(part, context) for part in row] for row in tree[1]]
    if any(isinstance(x, list) for row in rows for x in row):
        raise Undefined
    return rows


_EVALUATE: dict[str, Callable[[Tree, Context], Value]] = {
    "num": lambda tree, context: tree[1], "name": _name, "const": _constant, "add": _add, "neg": _negative,
    "mul": _multiply, "div": _divide, "pow": _power, "root": _root, "log": _logarithm, "fn": _function,
    "abs": _absolute, "fact": _factorial, "binom": _binomial, "floor": _floor, "ceil": _ceiling, "call": _call,
    "matrix": _matrix,
}  # fmt: skip


def _real(x: Any, context: Context) -> Any:
    if isinstance(x, mpmath.mpc) and not context.complex_values:
        raise Undefined
    return _known(x)


def _known(x: Any) -> Any:
    if mpmath.isnan(x):
        raise Undefined
    return x


def _bounded(x: Value) -> Any:
    """A value as mpmath's, none that takes for ever."""
    x = as_number(x)
    if isinstance(x, mpmath.mpf | mpmath.mpc) and x != 0 and mpmath.isfinite(x) and mpmath.mag(x) > _MAX_MAGNITUDE:
        raise Undefined
    return x


def _small(x: Fraction) -> Value:
    return x if _bits(x) <= 4 * _EXACT_BITS else as_number(x)


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())
