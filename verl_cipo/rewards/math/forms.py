r"""What an answer is as a whole: an expression, an equation, a list, a tuple, a range of values; read from its tokens.

A range is what an inequality, an interval and a set-builder are alike: intervals of one variable, with the ends that
belong to it. `x^2+y^2<1` is no range and stays a relation.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from verl_cipo.rewards.math.expressions import Tree, parse
from verl_cipo.rewards.math.tokens import Unreadable, tokens

_OPEN = frozenset(("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"))
_CLOSE = frozenset((")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"))
# "?" is a relation that is not read.
_RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in"}
_RELATIONS |= dict.fromkeys(
    (
        "\\" + name
        for name in "subset subseteq equiv to rightarrow Rightarrow implies sim iff parallel perp approx".split()
    ),
    "?",
)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_INFINITY: Tree = ("const", "inf")
_REALS = (r"\mathbb", "{", "R", "}")
_ZERO: Tree = ("num", Fraction(0), Fraction(0))
# \mathbb{R}^+ and the like: behind the sign of the real numbers, the sign and whether 0 belongs to them.
_HALVES = {
    ("^", "+"): ("+", False),
    ("^", "-"): ("-", False),
    ("_", ">", "0"): ("+", False),
    ("_", "<", "0"): ("-", False),
    ("_", r"\ge", "0"): ("+", True),
    ("_", r"\le", "0"): ("-", True),
}


@dataclass(frozen=True)
class Expression:
    """One value."""

    tree: Tree


@dataclass(frozen=True)
class Equation:
    """Two sides; `middle` are the sides between, where it is a chain: x = 2 + 3 = 5."""

    left: Tree
    right: Tree
    middle: tuple[Tree, ...] = ()


@dataclass(frozen=True)
class Relation:
    """An inequality that is no range: sign is <, <= or !=, and it stands between left and right."""

    left: Tree
    sign: str
    right: Tree


@dataclass(frozen=True)
class Interval:
    """The values between two ends; a missing end is infinite."""

    low: Tree
    low_belongs: bool
    high: Tree
    high_belongs: bool


@dataclass(frozen=True)
class Range:
    """Intervals and single values, of the variable that is named, if one is."""

    name: str
    parts: tuple["Interval | Form", ...]


@dataclass(frozen=True)
class Items:
    """Several answers. kind: "list", "set" and "either" (with "or", or both signs) are in any order, "()" and the like
    in this one; name: of P = (1, 2)."""

    kind: str
    parts: tuple["Form", ...]
    name: Tree | None = None


@dataclass(frozen=True)
class Without:
    """A set less another one."""

    whole: "Form"
    less: "Form"


Form = Expression | Equation | Relation | Range | Items | Without


@lru_cache(maxsize=4096)
def read(text: str, separators: bool = True) -> Form:
    """The form of a normalized answer.

    Args:
        text: the answer.
        separators: whether `1,234` is one number.

    Raises:
        Unreadable: the text is no mathematics that is known here.
    """
    return _several(tokens(text, separators=separators))


def _several(found: list[str]) -> Form:
    """Answers with commas, semicolons, `or` or `and` between them, and `a \\pm b`, which is two."""
    parts, joints = _split(found, (",", ";", r"\or", r"\and"))
    kept = [part for part in parts if part]
    if not kept:
        raise Unreadable
    if len(kept) == 1:
        return _either_sign(kept[0])
    # `x, or y` has nothing between its two joints; `x,,y` is a slip.
    if any(not part and not {*joints[max(at - 1, 0) : at + 1]} & {r"\or", r"\and"} for at, part in enumerate(parts)):
        raise Unreadable
    forms = [_either_sign(part) for part in _with_indices(kept)]
    words = {joint for joint in joints if joint in (r"\or", r"\and")}
    if all(isinstance(form, Range) for form in forms):
        return _joined_ranges(forms, words)  # pyright: ignore[reportArgumentType]
    return Items("either" if r"\or" in words else "list", tuple(forms))


def _with_indices(parts: list[list[str]]) -> list[list[str]]:
    """`x, y = 1, 2` is not a list of x, y = 1 and 2: such a text is refused."""
    if len(parts) > 2 and sum("=" in part for part in parts) == 1 and "=" not in parts[0] and "=" not in parts[-1]:
        raise Unreadable
    return parts


def _joined_ranges(forms: list[Range], words: set[str]) -> Form:
    """Inequalities of one variable: what one of them allows, or, with `and`, all of them."""
    if len({form.name for form in forms}) > 1 or not all(form.name for form in forms):
        return Items("list", tuple(forms))
    parts = tuple(part for form in forms for part in form.parts)
    halves = [part for part in parts if isinstance(part, Interval)]
    lows = [half for half in halves if half.high == _INFINITY and half.low != ("neg", _INFINITY)]
    highs = [half for half in halves if half.low == ("neg", _INFINITY) and half.high != _INFINITY]
    if words == {r"\and"}:
        if len(parts) == 2 and len(lows) == len(highs) == 1:
            return Range(
                forms[0].name, (Interval(lows[0].low, lows[0].low_belongs, highs[0].high, highs[0].high_belongs),)
            )
        raise Unreadable
    return Range(forms[0].name, parts)


def _either_sign(found: list[str]) -> Form:
    if (r"\pm" not in found and r"\mp" not in found) or r"\{" in found:
        return _relation(found)  # What is in a set is read by itself.
    signs = {r"\pm": ("+", "-"), r"\mp": ("-", "+")}
    one, other = ([signs[token][which] if token in signs else token for token in found] for which in (0, 1))
    return Items("either", (_relation(one), _relation(other)))


def _relation(found: list[str]) -> Form:
    parts, signs = _split(found, tuple(_RELATIONS))
    if not signs:
        return _whole(found)
    relations = [_RELATIONS[sign] for sign in signs]
    if "?" in relations:
        raise Unreadable
    if relations == ["in"]:
        whole = _whole(parts[1])
        if isinstance(whole, Items) and whole.kind == "set" and isinstance(_items(parts[0]), Items):
            return whole  # (x, y) \in \{(1, 2)\}
        return _named(_name_of(parse(parts[0])), whole)
    if len(parts[0]) == 0 and relations == ["="]:
        return _whole(parts[1])
    if relations == ["="] and (items := _items(parts[1])) is not None:
        return _with_name(parts[0], items)
    sides = [parse(part) for part in parts]
    if set(relations) == {"="}:
        return Equation(sides[0], sides[-1], tuple(sides[1:-1]))
    if len(sides) == 2:
        return _two_sides(sides[0], relations[0], sides[1])
    if len(sides) == 3 and not {"=", "!=", "in"} & set(relations):
        if relations[0][0] != relations[1][0]:
            raise Unreadable
        low, high = (0, 1) if relations[0][0] == "<" else (1, 0)
        belongs = ["=" in relation for relation in relations]
        ends = sides[0], sides[2]
        between = Interval(ends[low], belongs[low], ends[high], belongs[high])
        if sides[1][0] != "name":
            raise Unreadable
        return Range(sides[1][1], (between,))
    raise Unreadable


def _with_name(left: list[str], items: Form) -> Form:
    """P = (1, 2), and (x, y) = (1, 2), which says x = 1, y = 2."""
    if not isinstance(items, Items):
        return items
    variables = _items(left)
    if not isinstance(variables, Items):
        return Items(items.kind, items.parts, parse(left))
    pairs = list(zip(variables.parts, items.parts, strict=False))
    if len(variables.parts) != len(items.parts) or not all(
        isinstance(one, Expression) and isinstance(other, Expression) for one, other in pairs
    ):
        raise Unreadable
    return Items(items.kind, tuple(Equation(one.tree, other.tree) for one, other in pairs))  # pyright: ignore


def _two_sides(left: Tree, sign: str, right: Tree) -> Form:
    if left[0] != "name" and right[0] == "name":
        left, sign, right = right, _FLIPPED[sign], left
    if left[0] == "name" and right[0] != "name" and not _occurs(left, right):
        minus_infinity = ("neg", _INFINITY)
        below = Interval(minus_infinity, False, right, sign == "<=")
        above = Interval(right, sign == ">=", _INFINITY, False)
        parts = {"<": (below,), "<=": (below,), ">": (above,), ">=": (above,), "!=": (below, above)}
        return Range(left[1], parts[sign])
    if sign[0] == ">":
        left, sign, right = right, _FLIPPED[sign], left
    return Relation(left, sign, right)


def _whole(found: list[str]) -> Form:
    """A set, tuple, interval, union, or an expression."""
    parts, signs = _split(found, (r"\cup",))
    if signs:
        forms = [_whole(part) for part in parts]
        return Range("", tuple(piece for form in forms for piece in _pieces(form)))
    parts, signs = _split(found, (r"\setminus",))
    if len(parts) == 2 and all(parts):
        return _less(_whole(parts[0]), _whole(parts[1]))
    if found in ([r"\emptyset"], [r"\{", r"\}"]):
        return Items("set", ())
    if tuple(found) == _REALS:
        return Range("", (Interval(("neg", _INFINITY), False, _INFINITY, False),))
    if tuple(found[: len(_REALS)]) == _REALS:
        half = _HALVES.get(tuple(token for token in found[len(_REALS) :] if token not in ("{", "}")))
        if half is not None:
            sign, belongs = half
            ends = (_ZERO, belongs, _INFINITY, False) if sign == "+" else (("neg", _INFINITY), False, _ZERO, belongs)
            return Range("", (Interval(*ends),))
    items = _items(found)
    if items is not None:
        return items
    return Expression(parse(found))


def _less(whole: Form, less: Form) -> Form:
    """A set without some values; of all real numbers without one value, the two ranges beside it."""
    everything = Range("", (Interval(("neg", _INFINITY), False, _INFINITY, False),))
    if (
        whole == everything
        and isinstance(less, Items)
        and len(less.parts) == 1
        and isinstance(less.parts[0], Expression)
    ):
        value = less.parts[0].tree
        return Range("", (Interval(("neg", _INFINITY), False, value, False), Interval(value, False, _INFINITY, False)))
    return Without(whole, less)


def _items(found: list[str]) -> Form | None:
    """What stands in one pair of brackets, where that is more than an expression; None for anything else."""
    if len(found) < 2 or found[0] not in ("(", "[", r"\{", r"\langle") or found[-1] not in _CLOSE:
        return None
    if _end_of_bracket(found) != len(found) - 1:
        return None
    inside = found[1:-1]
    if found[0] == r"\{":
        if found[-1] != r"\}":
            return None
        built, signs = _split(inside, ("|", ":"))
        if len(built) == 2 and len(signs) == 1:
            return _set_builder(built[0], built[1])
        if not inside:
            return Items("set", ())
        form = _several(inside)
        if isinstance(form, Items) and form.kind in ("list", "either"):
            return Items("set", form.parts)
        return Items("set", (form,))
    parts, commas = _split(inside, (",", ";"))
    if not commas:
        return None
    if not all(parts):
        raise Unreadable
    return Items(found[0] + found[-1], tuple(_either_sign(part) for part in parts))


def _set_builder(variable: list[str], condition: list[str]) -> Form:
    if r"\in" in variable:
        at = variable.index(r"\in")
        if tuple(variable[at + 1 :]) != _REALS:
            raise Unreadable
        variable = variable[:at]
    name = _name_of(parse(variable))
    form = _several(condition)
    if isinstance(form, Range) and form.name == name:
        return Range("", form.parts)
    if isinstance(form, Equation) and form.left == ("name", name) and not form.middle:
        return Items("set", (Expression(form.right),))
    raise Unreadable


def _named(name: str, form: Form) -> Form:
    if isinstance(form, Range):
        return Range(name, form.parts)
    if isinstance(form, Items) and form.kind in ("()", "[)", "(]", "[]") and len(form.parts) == 2:
        return Range(name, _pieces(form))
    return form


def _pieces(form: Form) -> tuple["Interval | Form", ...]:
    """What a form adds to a union."""
    if isinstance(form, Range):
        return form.parts
    if isinstance(form, Items) and form.kind in ("()", "[)", "(]", "[]"):
        return (as_interval(form),)
    if isinstance(form, Items) and form.kind == "set":
        return form.parts
    raise Unreadable


def as_interval(form: Items) -> Interval:
    """The interval that a pair in brackets is.

    Raises:
        Unreadable: it is none.
    """
    if len(form.parts) != 2 or not all(isinstance(part, Expression) for part in form.parts):
        raise Unreadable
    low, high = (part.tree for part in form.parts)  # pyright: ignore[reportAttributeAccessIssue]
    return Interval(low, form.kind[0] == "[", high, form.kind[1] == "]")


def _name_of(tree: Tree) -> str:
    if tree[0] != "name":
        raise Unreadable
    return tree[1]


def _occurs(name: Tree, tree: Tree) -> bool:
    return name == tree or any(isinstance(part, tuple) and _occurs(name, part) for part in tree[1:])


def _end_of_bracket(found: list[str]) -> int:
    depth = 0
    for at, token in enumerate(found):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return at
    return -1


def _split(found: list[str], signs: tuple[str, ...]) -> tuple[list[list[str]], list[str]]:
    """The tokens between such signs that stand in no bracket or environment, and the signs."""
    parts: list[list[str]] = [[]]
    between: list[str] = []
    depth = 0
    for token in found:
        depth += (token in _OPEN or token.startswith(r"\begin ")) - (token in _CLOSE or token == r"\end")
        if depth == 0 and token in signs:
            parts.append([])
            between.append(token)
        else:
            parts[-1].append(token)
    return parts, between
