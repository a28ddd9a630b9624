r"""Whether two forms say the same.

Values are compared by `numeric.same`, lists and sets in any order, tuples in order, equations by what they relate:
two equations are the same when their differences of sides are a multiple of each other, or when both give the same
value to a variable that stands alone in them. An equation without variables is true or false by itself and says
nothing but its sides.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from verl_cipo.rewards.evaluate import Context, Undefined, as_number, holds, names, value
from verl_cipo.rewards.expressions import Tree
from verl_cipo.rewards.forms import Equation, Expression, Form, Interval, Items, Range, Relation, Without, as_interval
from verl_cipo.rewards.numeric import SIGNIFICANT_DIGITS, is_decimal, points, same
from verl_cipo.rewards.tokens import Unreadable
from verl_cipo.rewards.values import is_rounded

_CLOSE = mpmath.mpf("1e-25")


class Undecided(Exception):
    """The values cannot be had."""


def equal(gold: Form, answer: Form) -> bool:
    """Whether an answer says what the reference says.

    Raises:
        Undecided: a comparison that the verdict hangs on cannot be made.
    """
    gold, answer = _plain(gold), _plain(answer)
    if isinstance(answer, Equation) and not _consistent(answer):
        return False
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        return _same_equations(gold, answer)
    if isinstance(gold, Equation) or isinstance(answer, Equation):
        if isinstance(gold, Equation):
            meant = _value_of(gold)
            return meant is not None and equal(Expression(meant), answer)
        meant = _value_of(answer)  # pyright: ignore[reportArgumentType]
        if meant is None and _is_number(gold) and not names(answer.right):  # pyright: ignore
            # m+n = 113 answers 113, while a reference such as x^2+y^2 = 1 is not answered by 1.
            meant = answer.right  # pyright: ignore
        return meant is not None and equal(gold, Expression(meant))
    if isinstance(gold, Expression) and isinstance(answer, Expression):
        return _same(gold.tree, answer.tree)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return gold.sign == answer.sign and _same_difference(gold, answer, positive=gold.sign != "!=")
    if isinstance(gold, Range) or isinstance(answer, Range):
        return _same_ranges(gold, answer)
    if isinstance(gold, Items) and isinstance(answer, Items):
        return _same_items(gold, answer)
    if isinstance(gold, Without) and isinstance(answer, Without):
        return equal(gold.whole, answer.whole) and equal(gold.less, answer.less)
    return False


def _plain(form: Form) -> Form:
    """A set of one is that one; a sum of matrices is an expression already."""
    if isinstance(form, Items) and form.kind in ("set", "list") and len(form.parts) == 1:
        return form.parts[0]
    return form


# Values


def _is_number(form: Form) -> bool:
    return isinstance(form, Expression) and not names(form.tree)


def _same(gold: Tree, answer: Tree) -> bool:
    verdict = None
    if holds(gold, "degree") == holds(answer, "degree"):
        verdict = same(gold, answer)
    else:
        # 90 degrees are 90, and pi/2 only where the other side is written with pi.
        other = answer if holds(gold, "degree") else gold
        verdict = same(gold, answer, degree="radians" if holds(other, "pi") else "number")
    if verdict is None:
        raise Undecided
    return verdict or _rounds(gold, answer, SIGNIFICANT_DIGITS)


def _consistent(equation: Equation) -> bool:
    """Whether a chain's later sides have one value, and an equation of numbers is true.

    A decimal stands for what rounds to it; f(5) = 2 is no equation of numbers.
    """
    for side in equation.middle:
        if not same(side, equation.right) and not _rounds(side, equation.right, 3):
            return False
    if names(equation.left) or names(equation.right) or _calls(equation.left) or _calls(equation.right):
        return True
    return same(equation.left, equation.right) is not False or _rounds(equation.left, equation.right, 3)


def _rounds(one: Tree, other: Tree, digits: int) -> bool:
    """Whether one of two numbers is a decimal of so many digits that the other rounds to, or is cut off to."""
    for decimal, exact in ((one, other), (other, one)):
        inner, negative = (decimal[1], True) if decimal[0] == "neg" else (decimal, False)
        if is_decimal(inner, digits) and not names(exact):
            try:
                with mp.workdps(30):
                    number = as_number(_scalar(value(exact, Context(False))))
                    return is_rounded(as_number(-inner[1] if negative else inner[1]), as_number(inner[2]), number)
            except Undefined:
                return False
    return False


def _calls(tree: Tree) -> bool:
    return tree[0] == "call" or any(isinstance(part, tuple) and part and _calls(part) for part in tree[1:])


# Equations


def _value_of(equation: Equation) -> Tree | None:
    """What an equation says its name is: 5 of x = 5, of 5 = x, and of 2 + 3 = 5; None where it relates variables."""
    left, right = equation.left, equation.right
    if _stands_alone(left, right):
        return right
    if _stands_alone(right, left):
        return left
    if not names(left) | names(right) and not _calls(left) and not _calls(right):
        return right if same(left, right) or _rounds(left, right, 3) else None
    return None


def _stands_alone(one: Tree, other: Tree) -> bool:
    if one[0] == "name":
        return one[1] not in names(other)
    if one[0] == "pow" and one[1] == ("const", "e") or one[0] != "call":
        return False
    return all(part[0] in ("name", "num", "const") for part in one[2]) and not _calls(other)


def _same_equations(gold: Equation, answer: Equation) -> bool:
    if not _consistent(gold):
        # A reference that is false by itself can only be met by its own sides.
        return _same_sides(gold, answer)
    answer = _renamed(gold, answer)
    if _same_sides(gold, answer):
        return True
    if names(gold.left) | names(gold.right) != names(answer.left) | names(answer.right):
        return False
    return _same_difference(gold, answer) or _same_solution(gold, answer)


def _same_sides(gold: Equation, answer: Equation) -> bool:
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


def _same_difference(gold: Equation | Relation, answer: Equation | Relation, *, positive: bool = False) -> bool:
    """Whether left less right is, everywhere, one and the same multiple in both; a positive one for inequalities."""
    ratios = []
    for one, other in _values(_difference(gold), _difference(answer)):
        if _is_zero(one) or _is_zero(other):
            return False
        ratios.append(other / one)
    if len(ratios) < 3 or any(abs(ratio - ratios[0]) > _CLOSE * abs(ratios[0]) for ratio in ratios):
        return False
    return not positive or (isinstance(ratios[0], Fraction | mpmath.mpf) and ratios[0] > 0)


def _same_solution(gold: Equation, answer: Equation) -> bool:
    """Whether both are solved by the same value of each variable in which both are linear, of one at least."""
    one, other = _difference(gold), _difference(answer)
    solved = False
    for name in sorted(names(one)):
        roots = [
            (a, b)
            for point in points(names(one) | names(other))
            if (a := _root(one, name, point)) is not None and (b := _root(other, name, point)) is not None
        ]
        if not all(_is_zero(a - b) or abs(a - b) <= _CLOSE * abs(a) for a, b in roots):
            return False
        solved |= len(roots) >= 3
    return solved


def _difference(relation: Equation | Relation) -> Tree:
    return "add", relation.left, ("neg", relation.right)


def _root(tree: Tree, name: str, point: dict[str, Fraction]) -> Any:
    """Where a linear expression is zero in one name, the others as in the point; None where it is not linear."""
    context = Context(holds(tree, "i"))
    try:
        with mp.workdps(50):
            values = []
            for at in (2, 3, 5, 11):
                context.point = {**point, name: Fraction(at)}
                values.append(_scalar(value(tree, context)))
            slope = values[1] - values[0]
            if _is_zero(slope) or not all(
                abs(values[0] + slope * (at - 2) - here) <= _CLOSE * (abs(here) + abs(slope) + abs(values[0]))
                for at, here in ((5, values[2]), (11, values[3]))
            ):
                return None
            return 2 - values[0] / slope
    except Undefined:
        return None


def _values(one: Tree, other: Tree) -> list[tuple[Any, Any]]:
    """The values of both where both have one."""
    context = Context(holds(one, "i") or holds(other, "i"))
    found = []
    for context.point in points(names(one) | names(other)):
        try:
            with mp.workdps(50):
                found.append((_scalar(value(one, context)), _scalar(value(other, context))))
        except Undefined:
            continue
    return found


def _scalar(x: Any) -> Any:
    if isinstance(x, list):
        raise Undefined
    return mpmath.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def _is_zero(x: Any) -> bool:
    return abs(x) < mpmath.mpf("1e-40")


# Ranges


def _same_ranges(gold: Form, answer: Form) -> bool:
    ranges = [_as_range(form) for form in (gold, answer)]
    if ranges[0] is None or ranges[1] is None:
        return False
    one, other = ranges
    if one.name and other.name and one.name != other.name:
        return False
    return _match(one.parts, other.parts, _same_part)


def _as_range(form: Form) -> Range | None:
    if isinstance(form, Range):
        return form
    if isinstance(form, Items) and form.kind in ("()", "[)", "(]", "[]"):
        try:
            return Range("", (as_interval(form),))
        except Unreadable:
            return None
    return None


def _same_part(one: Interval | Form, other: Interval | Form) -> bool:
    if isinstance(one, Interval) and isinstance(other, Interval):
        return (
            (one.low_belongs, one.high_belongs) == (other.low_belongs, other.high_belongs)
            and _same(one.low, other.low)
            and _same(one.high, other.high)
        )
    if isinstance(one, Interval) or isinstance(other, Interval):
        return False
    return equal(one, other)


# Lists


def _same_items(gold: Items, answer: Items) -> bool:
    if len(gold.parts) != len(answer.parts) or not _same_names(gold.name, answer.name):
        return False
    loose = ("list", "set")
    named = [all(isinstance(part, Equation) for part in items.parts) for items in (gold, answer)]
    if gold.kind in loose and answer.kind in loose:
        return _match(gold.parts, answer.parts, equal)
    if gold.kind not in loose and answer.kind not in loose:
        pairs = {"()", "[]", r"\langle\rangle"}
        if gold.kind != answer.kind and not ({gold.kind, answer.kind} <= pairs and len(gold.parts) > 2):
            if {gold.kind, answer.kind} != {"()", r"\langle\rangle"}:
                return False
        return all(map(equal, gold.parts, answer.parts))
    # A tuple and a list without brackets, or x = 1, y = 2: in order.
    if "set" in (gold.kind, answer.kind) or not ({gold.kind, answer.kind} & {"()"}):
        return False
    if any(named) and len(
        {part.left for items in (gold, answer) for part in items.parts if isinstance(part, Equation)}
    ) < len(gold.parts):
        return False
    return all(map(equal, gold.parts, answer.parts))


def _same_names(gold: Tree | None, answer: Tree | None) -> bool:
    """Whether what stands in front of two lists is the same, or is only a name where one has nothing."""
    if gold and answer:
        return bool(same(gold, answer))
    only = gold or answer
    return only is None or only[0] in ("name", "call")


def _match(gold: Sequence[Any], answer: Sequence[Any], alike: Callable[[Any, Any], bool]) -> bool:
    """Whether each part of one has a part of its own in the other."""
    remaining = list(answer)
    if len(gold) != len(remaining):
        return False
    for part in gold:
        at = next((at for at, candidate in enumerate(remaining) if alike(part, candidate)), None)
        if at is None:
            return False
        del remaining[at]
    return True
