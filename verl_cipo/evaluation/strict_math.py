r"""A second, stricter judge of math answers, for auditing the verifier of training. It shares no code with it.

It has its own extraction, its own reading of numbers, and its own parser of LaTeX, which evaluates expressions at
random points in floating point; neither math-verify nor SymPy takes part. It rejects on evidence only: what it cannot
read is undecided, not wrong.
"""

import cmath
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

CONFIRMED, REJECTED, UNDECIDED = "confirmed", "rejected", "undecided"

_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s{}$]+))")
_MARKED = re.compile(
    r"####\s*(?=[-$\\(\[\d.])(.+)|.*(?:final answer|answer)\**\s*(?:is|:)\**:?\s*(?=[-$\\(\[\d.])(.+)", re.IGNORECASE
)
_WORDS = re.compile(r"(?:final answer|answer)\**\s*(?:is|:)\**:?\s*(\S.*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_JOINT = re.compile(r"[\s$,.\\()]*(?:or|and)?[\s$,.\\()]*", re.IGNORECASE)
_DECIMAL = re.compile(
    r"(-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+))(?:e([-+]?\d{1,3})|(?:\\times|\\cdot)10\^\{?(-?\d{1,3})\}?)?"
)
_POWER_OF_TEN = re.compile(r"10\^\{?(-?\d{1,3})\}?")
_RATIO = re.compile(r"(-?)(\d*)\\frac\{(-?\d+)\}\{(-?\d+)\}|(-?)(\d+)/(\d+)")
_UNIT = re.compile(r"(\\text\{[^{}\d]*\}|\^\{?\\circ\}?|\\%|%|(?<=[\d.])[a-z]{2,})((?:\^\{?-?\d\}?)?)$")
_NO_UNIT = re.compile(r"\b(?:or|and|not)\b|hundred|thousand|illion|dozen|[ap]\.?m\b", re.IGNORECASE)
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?")
_TOKEN = re.compile(r"\\[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|[A-Za-z]|[-+*/^_!|=<>]|[()\[\]{}]|,|\\.|\S")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    r"\sin": cmath.sin, r"\cos": cmath.cos, r"\tan": cmath.tan, r"\ln": cmath.log, r"\exp": cmath.exp,
    r"\arcsin": cmath.asin, r"\arccos": cmath.acos, r"\arctan": cmath.atan, r"\log": cmath.log10,
}  # fmt: skip
_GREEK = {rf"\{name}" for name in "alpha beta gamma delta theta lambda mu phi omega infty".split()}
_CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j}
_BRACKETS = {"(": ")", "[": "]", r"\{": r"\}"}
_POINTS = 4
# Six significant digits: 0.333333 is 1/3.
_TOLERANCE = 2e-6
_MAX_CHARS = 500


class _Unreadable(Exception):
    """The parser does not know what is written."""


def judge(solution: str, gold: str, question: str = "") -> tuple[str, str]:
    r"""Judge the answer that a solution states last.

    Args:
        solution: the policy's text; only what follows its thinking counts.
        gold: the reference, plain or as `\boxed{...}` or `#### ...`.
        question: what was asked, if known: an expression copied from it is no answer.

    Returns:
        CONFIRMED, REJECTED or UNDECIDED, and the reason: same_text, same_value; no_answer, several_answers,
        another_value, another_unit, not_evaluated (a plain number was asked for), copied_from_question; unread.
    """
    answers = _answers(_THOUGHT.sub("", solution))
    if not answers:
        return REJECTED, "no_answer"
    if len({_canonical(answer) for answer in answers}) > 1:
        return REJECTED, "several_answers"
    golds = _answers(gold) or [gold]
    answer, reference = _canonical(answers[-1]), _canonical(golds[-1])
    if answer == reference:
        return CONFIRMED, "same_text"
    (reference, wanted_unit), (answer, unit) = _without_unit(reference), _without_unit(answer)
    percent = ("%" in unit) != ("%" in wanted_unit)
    if unit and wanted_unit and unit != wanted_unit and not percent:
        # cm and centimeters are one; of short names each has its own meaning.
        return (REJECTED, "another_unit") if len(unit) <= 4 and len(wanted_unit) <= 4 else (UNDECIDED, "unread")
    wanted, given = _number(reference), _number(answer)
    if wanted is not None:
        if given is not None:
            exact = "." not in answer + reference and not percent
            close = [wanted, wanted / 100, wanted * 100] if percent else [wanted]
            same = given == wanted if exact else any(abs(given - one) <= _TOLERANCE * abs(one) for one in close)
            return (CONFIRMED, "same_value") if same else (REJECTED, "another_value")
        # A number left to be worked out is no answer to a question that asks for one.
        parsed = _parsed(answer)
        if parsed is None or _NO_UNIT.search(answer):
            return UNDECIDED, "unread"
        return REJECTED, "several_answers" if isinstance(parsed, tuple) else "not_evaluated"
    if answer == reference:
        return CONFIRMED, "same_text"
    if re.search(r"[-+*/^]|\\frac|\\sqrt", answer) and answer in _canonical(question):
        return REJECTED, "copied_from_question"
    parsed, parsed_reference = _parsed(answer), _parsed(reference)
    if parsed is None or parsed_reference is None:
        return UNDECIDED, "unread"
    return (CONFIRMED, "same_value") if _same(parsed_reference, parsed) else (REJECTED, "another_value")


def _answers(text: str) -> list[str]:
    """What the last line with an answer states; several where boxes stand side by side in it.

    Words behind `answer is` count where nothing in the text is marked that looks like mathematics.
    """
    for line in reversed(_lines(text)):
        if boxes := _boxes(line):
            return boxes
        if found := _MARKED.search(line):
            return [_SENTENCE_END.split(found[1] or found[2])[0]]
    words = [found[1] for line in text.splitlines() if (found := _WORDS.search(line))]
    return [_SENTENCE_END.split(words[-1])[0]] if words else []


def _lines(text: str) -> list[str]:
    """The lines, of which a box that spans several makes one."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and lines[-1].count("{") > lines[-1].count("}") and _BOX.search(lines[-1]):
            lines[-1] += " " + line
        else:
            lines.append(line)
    return lines


def _boxes(line: str) -> list[str]:
    """What the last boxes of a line hold, those before them too where hardly more than `or` is between."""
    found: list[str] = []
    end = 0
    for box in _BOX.finditer(line):
        if box.start() < end:
            continue
        if not _JOINT.fullmatch(line[end : box.start()]):
            found.clear()
        content, end = (box[2], box.end()) if box[2] else _braced(line, box.end())
        found.append(content)
    return [inner[-1] if (inner := _boxes(content)) else content for content in found]


def _braced(line: str, start: int) -> tuple[str, int]:
    """The text up to the brace that closes the one before `start`, and where that is; empty when it never closes."""
    depth = 1
    for at in range(start, len(line)):
        if line[at - 1] != "\\":
            depth += {"{": 1, "}": -1}.get(line[at], 0)
        if depth == 0:
            return line[start:at], at + 1
    return "", len(line)


def _canonical(text: str) -> str:
    """The text without spaces, dollar signs, sizes and `x =`, with one way to write fractions."""
    text = text.strip().strip("*").replace("\u2212", "-").replace(r"\$", "").replace("$", "")
    text = re.sub(r"\\(?:left|right|,|;|:|!|quad|displaystyle)(?![A-Za-z])|\\ |~", " ", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace(r"\(", "").replace(r"\)", "")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{(\w)\}", r"^\1", re.sub(r"(?<!\\)\s+", "", text)).rstrip(".")
    left, sign, right = text.partition("=")
    return right if sign and _NAME.fullmatch(left) and "=" not in right else text


def _without_unit(text: str) -> tuple[str, str]:
    """A canonical text and the unit that stands behind it, empty where there is none."""
    unit = _UNIT.search(text)
    if unit is None or not unit.start() or _NO_UNIT.search(unit[1]):
        return text, ""
    name = "deg" if "circ" in unit[1] else unit[1].removeprefix(r"\text{").rstrip("}").removeprefix("\\").lower()
    return text[: unit.start()], name + re.sub(r"[{}]", "", unit[2])


def _number(text: str) -> Fraction | None:
    """The number that the text is, None when it is anything else."""
    if ratio := _RATIO.fullmatch(text):
        sign, whole, top, bottom = ratio.groups()[:4] if ratio[3] else (ratio[5], "", ratio[6], ratio[7])
        value = int(whole or 0) + Fraction(int(top), int(bottom)) if int(bottom) else None
        return value if value is None or not sign else -value
    if power := _POWER_OF_TEN.fullmatch(text):
        return Fraction(10) ** int(power[1])
    decimal = _DECIMAL.fullmatch(text) if len(text) < 100 else None
    if decimal is None:
        return None
    return Fraction(decimal[1].replace(",", "")) * Fraction(10) ** int(decimal[2] or decimal[3] or 0)


# A parsed answer: the values of an expression at the random points, or its brackets and its parts.
_Parsed = list[complex] | tuple[str, list]


def _parsed(text: str) -> _Parsed | None:
    """The text as the parser reads it, None where it cannot."""
    try:
        return _parse(text)
    except (_Unreadable, ArithmeticError, ValueError, RecursionError):
        return None


def _parse(text: str) -> _Parsed:
    if len(text) > _MAX_CHARS:
        raise _Unreadable
    tokens = _TOKEN.findall(text)
    parts = _split(tokens)
    if len(parts) > 1:
        return "", [_parse_one(part) for part in parts]
    return _parse_one(tokens)


def _parse_one(tokens: list[str]) -> _Parsed:
    """An expression, or a list in brackets: a pair, an interval, a set."""
    if tokens and tokens[0] in _BRACKETS and tokens[-1] in _BRACKETS.values():
        parts = _split(tokens[1:-1])
        if len(parts) > 1 or tokens[0] == r"\{":
            return tokens[0] + tokens[-1], [_parse_one(part) for part in parts]
    values = []
    for point in range(_POINTS):
        values.append(_Expression(tokens, random.Random(point)).value())
    if not all(map(cmath.isfinite, values)):
        raise _Unreadable
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


def _same(one: _Parsed, other: _Parsed) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        (bracket, left), (other_bracket, right) = one, other
        in_any_order = {bracket, other_bracket} <= {"", r"\{\}"}
        if len(left) != len(right) or not (in_any_order or bracket == other_bracket):
            return False
        if in_any_order:
            remaining = list(right)
            for part in left:
                match = next((i for i, candidate in enumerate(remaining) if _same(part, candidate)), None)
                if match is None:
                    return False
                del remaining[match]
            return True
        return all(map(_same, left, right))
    if isinstance(one, tuple) or isinstance(other, tuple):
        return False
    return all(cmath.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=1e-9) for a, b in zip(one, other, strict=True))


class _Expression:
    """Recursive descent over sums, products, powers and atoms; names have random values in (.3, 1.7)."""

    def __init__(self, tokens: list[str], rng: random.Random) -> None:
        self._tokens, self._at, self._seed = tokens, 0, rng.random()

    def value(self) -> complex:
        total = self._sum()
        if self._at != len(self._tokens):
            raise _Unreadable
        return total

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str = "") -> str:
        token = self._peek()
        if not token or (wanted and token != wanted):
            raise _Unreadable
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
                raise _Unreadable
            return _FUNCTIONS[token](self._power())
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in _GREEK or (token.isascii() and token.isalpha()):
            return 0.3 + 1.4 * random.Random(f"{self._seed}/{token}").random()
        if re.fullmatch(r"\d+(?:\.\d+)?|\.\d+", token):
            return float(token)
        raise _Unreadable
