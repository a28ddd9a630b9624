r"""Whether two equations say the same.

They do when their sides are the same, when their differences of sides are a multiple of each other, or when both give
the same value to each variable that both are linear in. An equation without variables is true or false by itself and
says nothing but its sides.
"""

import contextlib
import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from verl_cipo.rewards.math.evaluate import Context, Undefined, as_number, holds, names, value
from verl_cipo.rewards.math.expressions import Tree
from verl_cipo.rewards.math.forms import Equation, Relation
from verl_cipo.rewards.math.numeric import is_decimal, numbers_in, points, same
from verl_cipo.rewards.math.values import is_rounded

_DIGITS = 120
_Point = dict[str, Fraction]
_NEARLY = mpmath.mpf("1e-25")
_CLOSE, _NOTHING = mpmath.mpf("1e-80"), mpmath.mpf("1e-100")


def consistent(equation: Equation) -> bool:
    """Whether a chain's later sides have one value, and an equation of numbers is true.

    A decimal stands for what rounds to it; f(5) = 2 is no equation of numbers. A side without a known value, as an
    integral is, is not held against it.
    """
    for side in equation.middle:
        if same(side, equation.right) is False and not rounds(side, equation.right, 3):
            return False
    if names(equation.left) or names(equation.right) or _calls(equation.left) or _calls(equation.right):
        return True
    return same(equation.left, equation.right) is not False or rounds(equation.left, equation.right, 3)


def rounds(one: Tree, other: Tree, digits: int) -> bool:
    """Whether one of two numbers is a decimal of so many digits that the other rounds to, or is cut off to."""
    for decimal, exact in ((one, other), (other, one)):
        inner, negative = (decimal[1], True) if decimal[0] == "neg" else (decimal, False)
        if is_decimal(inner, digits) and not names(exact):
            try:
                with mp.workdps(30):
                    number = _scalar(value(exact, Context(False)))
                    written, step = -inner[1] if negative else inner[1], inner[2]
                    if isinstance(number, Fraction):
                        return is_rounded(written, step, number)
                    number = as_number(number)
                    if not isinstance(number, mpmath.mpf):
                        return False
                    return is_rounded(as_number(written), as_number(step), number)
            except Undefined:
                return False
    return False


def _calls(tree: Tree) -> bool:
    return tree[0] == "call" or any(isinstance(part, tuple) and part and _calls(part) for part in tree[1:])


def exact_side(equation: Equation) -> Tree | None:
    r"""The side that the last one is rounded from, 16\pi of A = 16\pi = 50.27; None where there is none."""
    if not is_decimal(equation.right, 1):
        return None
    sides = (*equation.middle[::-1], equation.left)
    return next((side for side in sides if not names(side) and rounds(side, equation.right, 3)), None)


def value_of(equation: Equation) -> Tree | None:
    """What an equation says its name is: 5 of x = 5, of 5 = x, and of 2 + 3 = 5; None where it relates variables."""
    left, right = equation.left, equation.right
    if _stands_alone(left, right):
        return right
    if _stands_alone(right, left):
        return left
    if not names(left) | names(right) and not _calls(left) and not _calls(right):
        return right if same(left, right) or rounds(left, right, 3) else None
    return None


def _stands_alone(one: Tree, other: Tree) -> bool:
    if one[0] == "name":
        return one[1] not in names(other)
    if one[0] == "pow" and one[1] == ("const", "e") or one[0] != "call":
        return False
    return all(part[0] in ("name", "num", "const") for part in one[2]) and not _calls(other)


def same_equations(gold: Equation, answer: Equation) -> bool:
    if not consistent(gold):
        # A reference that is false by itself can only be met by its own sides.
        return _same_sides(gold, answer)
    answer = _renamed(gold, answer)
    if _same_sides(gold, answer):
        return True
    if names(gold.left) | names(gold.right) != names(answer.left) | names(answer.right):
        return False
    return same_difference(gold, answer) or _same_solution(gold, answer)


def _same_sides(gold: Equation, answer: Equation) -> bool:
    # 1 = 1 and \sin^2 x + \cos^2 x = 1 have the same values on their sides, too.
    if names(gold.left) | names(gold.right) != names(answer.left) | names(answer.right):
        return False
    straight = same(gold.left, answer.left) and same(gold.right, answer.right)
    return bool(straight or (same(gold.left, answer.right) and same(gold.right, answer.left)))


def _renamed(gold: Equation, answer: Equation) -> Equation:
    """The answer with the reference's name for the argument: f(m) = 2m is f(n) = 2n."""
    one, other = gold.left, answer.left
    if one[0] != "call" or other[0] != "call" or one[1] != other[1] or len(one[2]) != len(other[2]):
        return answer
    old, new = other[2], one[2]
    if not all(part[0] == "name" for part in old + new) or len(set(old)) < len(old):
        return answer
    if (names(answer.right) - {part[1] for part in old}) & {part[1] for part in new}:
        return answer
    renaming = dict(zip(old, new, strict=True))
    return Equation(_replaced(other, renaming), _replaced(answer.right, renaming))


def _replaced(tree: Any, renaming: dict[Tree, Tree]) -> Any:
    if not isinstance(tree, tuple):
        return tree
    return renaming.get(tree) or tuple(_replaced(part, renaming) for part in tree)


def same_difference(gold: Equation | Relation, answer: Equation | Relation, *, positive: bool = False) -> bool:
    """Whether left less right is, everywhere, one and the same multiple in both; a positive one for inequalities."""
    one, other = _difference(gold), _difference(answer)
    context = Context(holds(one, "i") or holds(other, "i"))
    found: list[tuple[Any, Any]] = []
    with mp.workdps(_DIGITS):
        for context.point in points(names(one) | names(other), one, other):
            with contextlib.suppress(Undefined):
                found.append((_scalar(value(one, context)), _scalar(value(other, context))))
        # A difference that is the same everywhere, as of x = x + 1, has no solution, and nothing is said by it.
        if len(found) < 3 or all(_equal(a, found[0][0]) for a, _ in found):
            return False
        if any(_is_zero(a) or _is_zero(b) for a, b in found):
            return False
        if not all(_equal(_times(b, found[0][0]), _times(a, found[0][1])) for a, b in found):
            return False
        ratio = as_number(found[0][1]) / as_number(found[0][0])
        return not positive or (isinstance(ratio, mpmath.mpf) and ratio > 0)


def _same_solution(gold: Equation, answer: Equation) -> bool:
    """Whether both are solved by the same value of each variable in which both are linear, of one at least."""
    one, other = _difference(gold), _difference(answer)
    solved = False
    for name in sorted(names(one)):
        roots = [
            (a, b)
            for point in points(names(one) | names(other), one, other)
            if (a := _root(one, name, point)) is not None and (b := _root(other, name, point)) is not None
        ]
        with mp.workdps(_DIGITS):
            if not all(_equal(a, b) for a, b in roots):
                return False
        solved |= len(roots) >= 3
    with mp.workdps(_DIGITS):
        return solved and not _holds_elsewhere(one, other) and not _holds_elsewhere(other, one)


def _holds_elsewhere(one: Tree, other: Tree) -> bool:
    """Whether an equation is also solved where one of its variables has some value, whatever the others have, and the
    other equation is not: (x + y - 1)(x - 5) = 0 by x = 5, where x + y = 1 is not.

    The value is looked for among whole numbers up to 30, between them, and at the numbers that are written.
    """
    held = sorted(names(one) | names(other))
    base = next(points(frozenset(held)))
    places = sorted({Fraction(at) for at in range(-30, 31)} | {n * sign for n in numbers_in(one) for sign in (1, -1)})
    for name, free in itertools.permutations(held, 2):
        line = {**base, free: Fraction(2)}
        for at in _zeros(one, name, line, places):
            both = [{**line, name: at, free: Fraction(of_free)} for of_free in (2, 3)]
            if all(_is_nothing(_at(one, point)) for point in both):
                values = [_at(other, point) for point in both]
                if None not in values and not all(map(_is_nothing, values)):
                    return True
    return False


def _zeros(tree: Tree, name: str, line: _Point, places: list[Fraction]) -> Iterator[Fraction]:
    """Where an expression of one name is 0: at these places, and between two of them where it changes its sign."""
    before = None
    for at in places:
        found = _at(tree, {**line, name: at})
        if found is not None and not found:
            yield at
        elif found and before and (before[1] > 0) != (found > 0):
            low, high = before[0], at
            for _ in range(130):
                middle = (low + high) / 2
                beyond = ((_at(tree, {**line, name: middle}) or 0) > 0) == (found > 0)
                low, high = (low, middle) if beyond else (middle, high)
            yield high
        before = (at, found) if found else None


def _at(tree: Tree, point: _Point) -> Any:
    """The value at a point, None where there is no real one."""
    context = Context(False)
    context.point = point
    try:
        found = _scalar(value(tree, context))
    except Undefined:
        return None
    found = found if isinstance(found, Fraction) else as_number(found)
    return found if isinstance(found, Fraction | mpmath.mpf) else None


def _is_nothing(x: Any) -> bool:
    return x is not None and abs(as_number(x)) < _NEARLY


def _difference(relation: Equation | Relation) -> Tree:
    return "add", relation.left, ("neg", relation.right)


def _root(tree: Tree, name: str, point: dict[str, Fraction]) -> Any:
    """Where a linear expression is zero in one name, the others as in the point; None where it is not linear."""
    context = Context(holds(tree, "i"))
    with mp.workdps(_DIGITS), contextlib.suppress(Undefined):
        found = []
        for at in (2, 3, 5, 11):
            context.point = {**point, name: Fraction(at)}
            found.append(_scalar(value(tree, context)))
        if not all(isinstance(x, Fraction) for x in found):
            found = [as_number(x) for x in found]
        slope = found[1] - found[0]
        if not _is_zero(slope) and _equal(found[2] - found[0], 3 * slope) and _equal(found[3] - found[0], 9 * slope):
            return 2 - found[0] / slope
    return None


def _times(a: Any, b: Any) -> Any:
    return a * b if isinstance(a, Fraction) and isinstance(b, Fraction) else as_number(a) * as_number(b)


def _scalar(x: Any) -> Any:
    if isinstance(x, list):
        raise Undefined
    return x


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = as_number(a), as_number(b)
    return _is_zero(a - b) or abs(a - b) <= _CLOSE * abs(a)


def _is_zero(x: Any) -> bool:
    return not x if isinstance(x, Fraction) else abs(x) < _NOTHING
