r"""The parser of `strict_math`: LaTeX expressions as their values in floating point at random points."""

import cmath
import math
import random
import re
from collections.abc import Callable

_TOKEN = re.compile(r"\\[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|[A-Za-z]|[-+*/^_!|=<>]|[()\[\]{}]|,|\\.|\S")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    r"\sin": cmath.sin, r"\cos": cmath.cos, r"\tan": cmath.tan, r"\ln": cmath.log, r"\exp": cmath.exp,
    r"\arcsin": cmath.asin, r"\arccos": cmath.acos, r"\arctan": cmath.atan, r"\log": cmath.log10,
}  # fmt: skip
_GREEK = {rf"\{name}" for name in "alpha beta gamma delta theta lambda mu phi omega infty".split()}
_CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j}
_BRACKETS = {"(": ")", "[": "]", r"\{": r"\}"}
_POINTS = 4
_MAX_CHARS = 500


class Unreadable(Exception):
    """The parser does not know what is written."""


# A parsed answer: the values of an expression at the random points, or its brackets and its parts.
Parsed = list[complex] | tuple[str, list]


def parsed(text: str, sign: int = 1) -> Parsed | None:
    """The text as the parser reads it, None where it cannot; with a sign of -1 names are below zero."""
    try:
        return _parse(text, sign)
    except (Unreadable, ArithmeticError, ValueError, RecursionError):
        return None


def _parse(text: str, sign: int) -> Parsed:
    if len(text) > _MAX_CHARS:
        raise Unreadable
    tokens = _TOKEN.findall(text)
    parts = _split(tokens)
    if len(parts) > 1:
        return "", [_parse_one(part, sign) for part in parts]
    return _parse_one(tokens, sign)


def _parse_one(tokens: list[str], sign: int) -> Parsed:
    """An expression, or a list in brackets: a pair, an interval, a set."""
    if tokens and tokens[0] in _BRACKETS and tokens[-1] in _BRACKETS.values():
        parts = _split(tokens[1:-1])
        if len(parts) > 1 or tokens[0] == r"\{":
            return tokens[0] + tokens[-1], [_parse_one(part, sign) for part in parts]
    values = []
    for point in range(_POINTS):
        values.append(_Expression(tokens, random.Random(point), sign).value())
    if not all(map(cmath.isfinite, values)) or (
        "i" not in tokens and any(abs(complex(x).imag) > 1e-12 for x in values)
    ):
        raise Unreadable
    return values


def _split(tokens: list[str]) -> list[list[str]]:
    """The tokens between the commas that stand in no bracket."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in "([{" or token == r"\{") - (token in ")]}" or token == r"\}")
        if token == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def same(one: Parsed, other: Parsed, tolerance: float) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        (bracket, left), (other_bracket, right) = one, other
        in_any_order = {bracket, other_bracket} <= {"", r"\{\}"}
        if len(left) != len(right) or not (in_any_order or bracket == other_bracket):
            return False
        if in_any_order:
            remaining = list(right)
            for part in left:
                match = next((i for i, candidate in enumerate(remaining) if same(part, candidate, tolerance)), None)
                if match is None:
                    return False
                del remaining[match]
            return True
        return all(same(a, b, tolerance) for a, b in zip(left, right, strict=True))
    if isinstance(one, tuple) or isinstance(other, tuple):
        return False
    return all(cmath.isclose(a, b, rel_tol=tolerance, abs_tol=1e-14) for a, b in zip(one, other, strict=True))


class _Expression:
    """Recursive descent over sums, products, powers and atoms; names have random values in (.1, .9), or below zero."""

    def __init__(self, tokens: list[str], rng: random.Random, sign: int) -> None:
        self._tokens, self._at, self._seed, self._sign = tokens, 0, rng.random(), sign

    def value(self) -> complex:
        total = self._sum()
        if self._at != len(self._tokens):
            raise Unreadable
        return total

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str = "") -> str:
        token = self._peek()
        if not token or (wanted and token != wanted):
            raise Unreadable
        self._at += 1
        return token

    def _sum(self) -> complex:
        sign = -1 if self._peek() == "-" else 1
        if self._peek() in ("+", "-"):
            self._take()
        total = sign * self._product()
        while self._peek() in ("+", "-"):
            sign = -1 if self._take() == "-" else 1
            total += sign * self._product()
        return total

    def _product(self) -> complex:
        total = self._power()
        while True:
            token = self._peek()
            if token in ("*", r"\cdot", r"\times"):
                self._take()
                total *= self._power()
            elif token == "/":
                self._take()
                total /= self._power()
            elif (
                token in _FUNCTIONS
                or token in _GREEK
                or token in _CONSTANTS
                or token in (r"\frac", r"\sqrt", "(")
                or (token.isascii() and token.isalnum())
            ):
                total *= self._power()
            else:
                return total

    def _power(self) -> complex:
        base = self._atom()
        if self._peek() == "^":
            self._take()
            return base ** self._argument()
        return base

    def _argument(self) -> complex:
        """What stands behind ^ or a command: a group, or a single token."""
        if self._peek() == "{":
            return self._group("{", "}")
        return -self._atom() if self._peek() == "-" and self._take() else self._atom()

    def _group(self, opening: str, closing: str) -> complex:
        self._take(opening)
        inside = self._sum()
        self._take(closing)
        return inside

    def _atom(self) -> complex:
        token = self._peek()
        if token == "(":
            return self._group("(", ")")
        if token == "{":
            return self._group("{", "}")
        self._take()
        if token == r"\frac":
            return self._argument() / self._argument()
        if token == r"\sqrt":
            degree = self._group("[", "]") if self._peek() == "[" else 2
            return complex(self._argument()) ** (1 / degree)
        if token in _FUNCTIONS:
            if self._peek() in ("^", "_"):
                raise Unreadable
            return _FUNCTIONS[token](self._power())
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in _GREEK or (token.isascii() and token.isalpha()):
            return self._sign * (0.1 + 0.8 * random.Random(f"{self._seed}/{token}").random())
        if re.fullmatch(r"\d+(?:\.\d+)?|\.\d+", token):
            return float(token)
        raise Unreadable
