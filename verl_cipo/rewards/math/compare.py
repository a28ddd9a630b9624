r"""Whether two forms say the same.

Values are compared by `numeric.same`, equations by `equations`, lists and sets in any order, tuples in order.
"""

from collections.abc import Callable, Sequence
from typing import Any

from verl_cipo.rewards.math.equations import consistent, exact_side, rounds, same_difference, same_equations, value_of
from verl_cipo.rewards.math.evaluate import holds, names
from verl_cipo.rewards.math.expressions import Tree
from verl_cipo.rewards.math.forms import (
    Equation,
    Expression,
    Form,
    Interval,
    Items,
    Range,
    Relation,
    Without,
    as_interval,
)
from verl_cipo.rewards.math.numeric import SIGNIFICANT_DIGITS, same
from verl_cipo.rewards.math.tokens import Unreadable


class Undecided(Exception):
    """The values cannot be had."""


def equal(gold: Form, answer: Form) -> bool:
    """Whether an answer says what the reference says.

    Raises:
        Undecided: a comparison that the verdict hangs on cannot be made.
    """
    gold, answer = _plain(gold), _plain(answer)
    if isinstance(answer, Equation):
        if not consistent(answer):
            return False
        if (exact := exact_side(answer)) is not None and _says(gold, answer, exact):
            return True
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        return same_equations(gold, answer)
    if isinstance(gold, Equation) or isinstance(answer, Equation):
        if isinstance(gold, Equation):
            meant = value_of(gold)
            return meant is not None and equal(Expression(meant), answer)
        meant = value_of(answer)  # pyright: ignore[reportArgumentType]
        if meant is None and _is_number(gold) and not names(answer.right):  # pyright: ignore
            # m+n = 113 answers 113, while a reference such as x^2+y^2 = 1 is not answered by 1.
            meant = answer.right  # pyright: ignore
        return meant is not None and equal(gold, Expression(meant))
    if isinstance(gold, Expression) and isinstance(answer, Expression):
        return _same(gold.tree, answer.tree)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return gold.sign == answer.sign and same_difference(gold, answer, positive=gold.sign != "!=")
    if isinstance(gold, Range) or isinstance(answer, Range):
        return _same_ranges(gold, answer)
    if isinstance(gold, Items) and isinstance(answer, Items):
        return _same_items(gold, answer)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Expression) and isinstance(other, Items) and other.kind in ("()", r"\langle\rangle"):
            return (vector := _as_tuple(one)) is not None and _same_items(vector, other)
    if isinstance(gold, Without) and isinstance(answer, Without):
        return equal(gold.whole, answer.whole) and equal(gold.less, answer.less)
    return False


def _says(gold: Form, answer: Equation, exact: Tree) -> bool:
    """Whether the reference is this side of a chain, alone or behind the chain's name."""
    if isinstance(gold, Equation):
        return bool(names(answer.left)) and same_equations(gold, Equation(answer.left, exact))
    return isinstance(gold, Expression) and _same(gold.tree, exact)


def _plain(form: Form) -> Form:
    """A set of one value is that one, but not a set of a set; so is one value in two ways with `or` between them."""
    if isinstance(form, Items) and form.kind == "either" and isinstance(form.parts[0], Expression):
        one = form.parts[0]
        if all(isinstance(part, Expression) and same(one.tree, part.tree) for part in form.parts):
            return one
    if (
        isinstance(form, Items)
        and form.kind in ("set", "list", "either")
        and len(form.parts) == 1
        and not (isinstance(form.parts[0], Items) and form.parts[0].kind == "set")
    ):
        return form.parts[0]
    return form


# Values


def _as_tuple(form: Expression) -> Items | None:
    """The entries of a matrix of one column or one row, None for any other expression."""
    rows = form.tree[1] if form.tree[0] == "matrix" else ()
    if len(rows) != 1 and any(len(row) != 1 for row in rows):
        return None
    entries = tuple(Expression(entry) for row in rows for entry in row)
    return Items("()", entries) if entries else None


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
    return verdict or rounds(gold, answer, SIGNIFICANT_DIGITS)


# Ranges


def _same_ranges(gold: Form, answer: Form) -> bool:
    one, other = _as_range(gold), _as_range(answer)
    if one is None or other is None:
        return False
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
    if not _same_names(gold.name, answer.name):
        return False
    loose = ("list", "set", "either")
    if gold.kind in loose and answer.kind in loose:
        return _match(_each_sign(gold.parts), _each_sign(answer.parts), equal)
    if len(gold.parts) != len(answer.parts):
        return False
    named = [all(isinstance(part, Equation) for part in items.parts) for items in (gold, answer)]
    if gold.kind not in loose and answer.kind not in loose:
        pairs = {"()", "[]", r"\langle\rangle"}
        if gold.kind != answer.kind and not ({gold.kind, answer.kind} <= pairs and len(gold.parts) > 2):
            if {gold.kind, answer.kind} != {"()", r"\langle\rangle"}:
                return False
        return all(map(equal, gold.parts, answer.parts))
    # A tuple and a list without brackets, which no "or" makes, or x = 1, y = 2: in order.
    if {"set", "either"} & {gold.kind, answer.kind} or not ({gold.kind, answer.kind} & {"()"}):
        return False
    if any(named) and len(
        {part.left for items in (gold, answer) for part in items.parts if isinstance(part, Equation)}
    ) < len(gold.parts):
        return False
    if all(named):
        return _match(gold.parts, answer.parts, equal)
    return all(map(equal, gold.parts, _in_order(answer.parts)))


def _each_sign(parts: Sequence[Form]) -> list[Form]:
    r"""The parts of a list, two for one with both signs: 0, 3, -3 of `0, \pm 3`."""
    return [
        each
        for part in parts
        for each in (part.parts if isinstance(part, Items) and part.kind == "either" else (part,))
    ]


def _in_order(parts: Sequence[Form]) -> Sequence[Form]:
    """The coordinates y = 5, x = 3 of an answer as x = 3, y = 5; all others as they are."""
    named = {part.left: part for part in parts if isinstance(part, Equation)}
    for letters in ("xy", "xyz"):
        order = [("name", letter) for letter in letters]
        if len(parts) == len(order) and named.keys() == set(order):
            return [named[name] for name in order]
    return parts


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
