r"""Expressions as trees: recursive descent over the tokens of a normalized answer.

A tree is a nested tuple, a kind and its parts:

  ("num", value, step)        two Fractions: a number, and for a decimal a unit of its last place, else 0
  ("name", text)              a variable with its index: x, E_0, m_max, \beta; also what is taken as a whole, such as
                              \angle ABC, dy/dx, and a sum or integral with all that follows in its term
  ("const", "pi" | "e" | "i" | "inf" | "degree")
  ("add" | "mul", part, part, ...), ("div" | "pow", left, right), ("neg" | "abs" | "fact" | "floor" | "ceil", inner)
  ("fn", function, inner), ("log", base, inner), ("root", degree, inner), ("binom", n, k)
  ("call", name, arguments)   the value of a function that is only a name: f(x+1)
  ("matrix", rows)

Letters are variables, but for e and i. Nothing is evaluated here.
"""

import re
from fractions import Fraction

from verl_cipo.rewards.math.tokens import (
    ACCENTS,
    BINARY,
    BY_DIFFERENTIAL,
    CALLED,
    CLOSING,
    DIFFERENTIAL,
    FIGURES,
    FUNCTIONS,
    MATRICES,
    NOT_NAMES,
    OPAQUE,
    OPERATOR,
    Cursor,
    Unreadable,
    joined,
    unbraced,
)

Tree = tuple

_MAX_DEPTH = 60


def parse(found: list[str]) -> Tree:
    """The tree of an expression's tokens.

    Raises:
        Unreadable: they are no expression, or are nested too deep.
    """
    parser = _Parser(found)
    tree = parser.inside()
    if not parser.done():
        raise Unreadable
    return tree


class _Parser(Cursor):
    def __init__(self, found: list[str]) -> None:
        super().__init__(found)
        self._depth = self._bars = 0

    def inside(self) -> Tree:
        r"""What a group holds: a sum, or two with `\over` or `\choose` between them."""
        tree = self.sum()
        if self._peek() in (r"\over", r"\choose"):
            return "div" if self._take() == r"\over" else "binom", tree, self.sum()
        return tree

    def sum(self) -> Tree:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unreadable
        terms = [self._signed()]
        while self._peek() in ("+", "-"):
            sign = self._take()
            term = self._signed()
            terms.append(("neg", term) if sign == "-" else term)
        self._depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def _signed(self) -> Tree:
        """A term with any signs before it: `14 + -1`, `-(-x)`."""
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._take() == "-"
        term = self._product()
        return ("neg", term) if negative else term

    def _product(self) -> Tree:
        if self._peek() in OPAQUE:
            return self._whole_term()
        tree = self._power()
        while True:
            token = self._peek()
            if token in BINARY:
                self._take()
                negative = False
                while self._peek() in ("+", "-"):
                    negative ^= self._take() == "-"
                factor = self._whole_term() if self._peek() in OPAQUE else self._power()
                factor = ("neg", factor) if negative else factor
                tree = ("div", tree, factor) if BINARY[token] == "div" else _times(tree, factor)
            elif token in OPAQUE:
                return _times(tree, self._whole_term())
            elif self._starts_factor(token):
                # Two numbers side by side are a slip or a list, no product.
                if token[0].isdigit() and self._tokens[self._at - 1][0].isdigit():
                    raise Unreadable
                tree = self._mixed_number(tree) or _times(tree, self._power())
            else:
                return tree

    def _starts_factor(self, token: str) -> bool:
        if not token or token in (")", "]", "}", "&") or token in NOT_NAMES:
            return False
        if token in ("|", r"\Vert"):
            return not self._bars
        if token in (r"\rfloor", r"\rceil"):
            return False
        return token in ("(", "[", "{") or token[0].isalnum() or token[0] in '."\\'

    def _mixed_number(self, tree: Tree) -> Tree | None:
        r"""`3\frac{1}{2}` behind its whole number: the sum, where the fraction is a proper one."""
        shape = self._tokens[self._at - 1 : self._at + 7]
        if len(shape) == 8 and shape[1:3] == [r"\frac", "{"] and shape[4:6] == ["}", "{"] and shape[7] == "}":
            whole, top, bottom = shape[0], shape[3], shape[6]
            if whole.isdecimal() and top.isdecimal() and bottom.isdecimal() and 0 < int(top) < int(bottom):
                if tree == _number(whole):
                    self._at += 7
                    return "add", tree, ("div", _number(top), _number(bottom))
        return None

    def _whole_term(self) -> Tree:
        """A sum, integral or limit with all that follows in its group, as one name: equal only to the same text."""
        start, depth = self._at, 0
        while not self.done():
            token = self._peek()
            depth += (token in ("(", "[", "{", r"\{")) - (token in (")", "]", "}", r"\}"))
            if depth < 0 or (
                depth == 0 and token in ("+", "-") and self._at > start + 1 and self._peek(-1) not in "^_"
            ):
                break
            self._at += 1
        return "name", joined(self._tokens[start : self._at])

    def _power(self) -> Tree:
        base = self._postfix(self._atom())
        if self._peek() == "^":
            self._take()
            if self._is_degree():
                return self._postfix(("mul", base, ("const", "degree")))
            if self._peek() == "'" or self._tokens[self._at : self._at + 3] == ["{", "'", "}"]:
                self._at += 1 if self._peek() == "'" else 3
                return "name", f"{_text_of(base)}'"
            return self._postfix(("pow", base, self._argument()))
        return base

    def _is_degree(self) -> bool:
        for shape in ([r"\circ"], ["{", r"\circ", "}"], [r"\degree"]):
            if self._tokens[self._at : self._at + len(shape)] == shape:
                self._at += len(shape)
                return True
        return False

    def _postfix(self, tree: Tree) -> Tree:
        while True:
            if self._peek() == "!":
                self._take()
                if self._peek() == "!":
                    raise Unreadable
                tree = ("fact", tree)
            elif self._peek() == r"\degree":
                self._take()
                tree = ("mul", tree, ("const", "degree"))
            elif self._peek() == "%":
                self._take()
                tree = ("div", tree, _number("100"))
            else:
                return tree

    def _argument(self) -> Tree:
        """What stands behind a command or `^`: a group, or one token."""
        if self._peek() == "{":
            return self._group("{")
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._take() == "-"
        inner = self._group("{") if self._peek() == "{" else self._atom()
        return ("neg", inner) if negative else inner

    def _group(self, opening: str) -> Tree:
        self._take(opening)
        bars, self._bars = self._bars, opening in ("|", r"\Vert")
        start = self._at
        inside = self.inside()
        if self._at == start:
            raise Unreadable
        self._take(CLOSING[opening])
        self._bars = bars
        return inside

    def _atom(self) -> Tree:
        token = self._peek()
        if token in ("(", "[", "{"):
            return self._group(token)
        if token in ("|", r"\Vert"):
            return ("abs", self._group(token)) if token == "|" else ("call", "norm", (self._group(token),))
        if token in (r"\lfloor", r"\lceil"):
            return ("floor" if token == r"\lfloor" else "ceil", self._group(token))
        self._take()
        if token in NOT_NAMES:
            raise Unreadable
        if token == r"\frac":
            return self._fraction()
        if token == r"\binom":
            return "binom", self._argument(), self._argument()
        if token == r"\sqrt":
            degree = self._group("[") if self._peek() == "[" else _number("2")
            return "root", degree, self._argument()
        if token[:1] == "\\" and token[1:] in FUNCTIONS:
            return self._function(token[1:])
        if token.startswith(r"\begin "):
            return self._matrix(token.removeprefix(r"\begin "))
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self._numeral(token)
        if token == r"\infty":
            return "const", "inf"
        if token == r"\pi" and self._peek() != "_":
            return "const", "pi"
        if token in ("e", "i") and self._peek() != "_":
            return "const", token
        return self._name(token)

    def _fraction(self) -> Tree:
        start = self._at
        top, middle = self._argument(), self._at
        bottom = self._argument()
        over, under = self._tokens[start:middle], self._tokens[middle : self._at]
        upper, lower = unbraced(over), unbraced(under)
        if DIFFERENTIAL.fullmatch(upper) and BY_DIFFERENTIAL.fullmatch(unbraced(under, " ")):
            # dy/dx is no quotient, and d/dx with what it is applied to is one name.
            applied = self._whole_term()[1] if OPERATOR.fullmatch(upper) else ""
            return "name", f"{upper}/{lower} {applied}".strip()
        return "div", top, bottom

    def _numeral(self, token: str) -> Tree:
        if self._peek() == r"\overline" and "." in token and self._peek(1) == "{" and self._peek(3) == "}":
            again = self._peek(2)
            self._at += 4
            places = len(token.partition(".")[2])
            if not again.isdecimal():
                raise Unreadable
            period = Fraction(int(again), 10**places * (10 ** len(again) - 1))
            return "num", Fraction(token.rstrip(".") or "0") + period, Fraction(0)
        if self._peek() == "_":
            return "name", token + self._index()
        return _number(token)

    def _function(self, function: str) -> Tree:
        base = power = None
        while self._peek() in ("_", "^"):
            if self._take() == "_":
                base = self._argument()
            else:
                power = self._argument()
        if self._peek() in ("'",):
            raise Unreadable
        if power == ("neg", _number("1")) and function in ("sin", "cos", "tan", "cot", "sec", "csc"):
            function, power = f"arc{function}", None
        inner = self._function_argument()
        if function in ("log", "ln", "lg"):
            base = base or {"ln": ("const", "e"), "lg": _number("10"), "log": ("const", "log")}[function]
            tree: Tree = ("log", base, inner)
        elif base is not None:
            raise Unreadable
        elif function == "exp":
            tree = ("pow", ("const", "e"), inner)
        else:
            tree = ("fn", function, inner)
        return tree if power is None else ("pow", tree, power)

    def _function_argument(self) -> Tree:
        r"""A group, or what is written without a sign between: `\sin 2x`, `\sin \pi/4`."""
        if self._peek() in ("(", "[", "{", "|", r"\lfloor"):
            return self._group(self._peek()) if self._peek() in "([{" else self._atom()
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._take() == "-"
        start = self._at
        tree = self._power()
        while (token := self._peek()) and self._starts_factor(token) and token not in ("|", "(", "[", r"\Vert"):
            if token in OPAQUE or token[1:] in FUNCTIONS and token[0] == "\\":
                break
            if token[0].isdigit() and self._peek(-1)[0].isdigit():
                raise Unreadable
            tree = self._mixed_number(tree) or _times(tree, self._power())
        if self._tokens[start : self._at][-1:] == [r"\pi"] and self._peek() == "/" and self._peek(1).isdecimal():
            self._take()
            tree = ("div", tree, self._atom())
        return ("neg", tree) if negative else tree

    def _name(self, token: str) -> Tree:
        if token in FIGURES or token in ACCENTS:
            written = token + (self._braced() if self._peek() == "{" else self._letters(token in FIGURES))
        elif token[0] in '"\\' or token.isalpha():
            written = token
        else:
            raise Unreadable
        while self._peek() in ("_", "'"):
            written += self._index() if self._peek() == "_" else self._take()
        if len(re.sub(r"_\w+|'", "", written)) == 1:
            if written[0] in CALLED and self._peek() == "^":
                written += self._power_of_function()
            if self._peek() == "(" and (written[0] in CALLED or not written[-1].isalnum() or self._is_argument()):
                return self._call(written)
        return "name", written

    def _power_of_function(self) -> str:
        """The exponent in `f^{-1}(x)`, empty where no bracket follows."""
        start = self._at
        self._take("^")
        exponent = self._braced() if self._peek() == "{" else self._take()
        if self._peek() == "(":
            return f"^{exponent}"
        self._at = start
        return ""

    def _is_argument(self) -> bool:
        """Whether a bracket holds what a letter in front of it is applied to: x(t), P(3), F(x, y); but n(n+1)."""
        inside = self._peek(1)
        alone = self._peek(2) in (")", ",") and (inside.isalpha() or inside.isdecimal())
        return alone or (self._peek(1) == "-" and self._peek(2).isdecimal() and self._peek(3) == ")")

    def _call(self, name: str) -> Tree:
        self._take("(")
        arguments = [self.sum()]
        while self._peek() == ",":
            self._take()
            arguments.append(self.sum())
        self._take(")")
        return "call", name, tuple(arguments)

    def _letters(self, several: bool) -> str:
        """The letters that name a figure: `\\angle ABC`."""
        start = self._at
        while self._peek().isalpha() or (self._at > start and self._peek() == "'"):
            self._at += 1
            if not several:
                break
        if self._at == start:
            if self._peek()[:1] != "\\" and not self._peek().isdigit():
                raise Unreadable
            self._at += 1
        return "".join(self._tokens[start : self._at])

    def _matrix(self, kind: str) -> Tree:
        if kind in ("vmatrix", "Vmatrix"):
            return "name", self._whole_term()[1]
        if kind not in MATRICES:
            raise Unreadable
        rows: list[list[Tree]] = [[]]
        while True:
            rows[-1].append(self.sum())
            sign = self._take()
            if sign == r"\end":
                break
            if sign == r"\\":
                if self._peek() == r"\end":
                    self._take()
                    break
                rows.append([])
            elif sign != "&":
                raise Unreadable
        if len({len(row) for row in rows}) > 1:
            raise Unreadable
        return "matrix", tuple(map(tuple, rows))


def _times(tree: Tree, factor: Tree) -> Tree:
    return ("mul", *tree[1:], factor) if tree[0] == "mul" else ("mul", tree, factor)


def is_whole(name: str) -> bool:
    """Whether a name is a sum, integral or the like that was taken as a whole."""
    return name.partition(" ")[0] in OPAQUE


def _number(token: str) -> Tree:
    places = len(token.partition(".")[2])
    return "num", Fraction(token.rstrip(".")), Fraction(1, 10**places) if places else Fraction(0)


def _text_of(tree: Tree) -> str:
    if tree[0] != "name":
        raise Unreadable
    return tree[1]
