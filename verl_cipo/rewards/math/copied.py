r"""Whether an answer only repeats an expression of the question, as `x^2-4` does for "Factor $x^2-4$"."""

import re

from verl_cipo.rewards.math.expressions import Tree, parse
from verl_cipo.rewards.math.normal import normalize
from verl_cipo.rewards.math.tokens import Unreadable, tokens
from verl_cipo.rewards.math.values import NAME, OR, read_number, split_equation

_OPERATOR = re.compile(r"[-+*/^!]|\\(?:frac|sqrt|cdot|times|div|pm|sin|cos|tan|log|ln|circ)(?![A-Za-z])|\)\s*\(")
# What makes a larger term of the one behind it, and of the one in front of it.
_GOES_BEFORE = re.compile(r"(?:[\w\\)}]|\d\.|(?:[\^_+*/-]|\\(?:cdot|times|div|pm))\s*)\Z")
_GOES_ON = re.compile(r"[\w({]|\s*(?:[\^_+*/!-]|\\(?:cdot|times|div|pm))")
# A formula of a question with the marks of a list or of emphasis, a dash or an exclamation mark around it.
_FORMULA = re.compile(
    r"[-*_+\u2013\u2014\s]{0,9}"
    r"(\$\$[^$]{1,2000}\$\$|\$[^$]{1,2000}\$|\\\(.{1,2000}?\\\)|\\\[.{1,2000}?\\\])"
    r"[-*_!\u2013\u2014\s]{0,9}",
    re.DOTALL,
)
_SEPARATOR = re.compile(f"=|{OR}")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def is_copied(gold: str, answer: str, question: str) -> bool:
    """Whether an answer is a whole term of the question, and the reference is not.

    A reference that is written like the answer, or stands in the question itself, asks for no other form.

    Args:
        gold, answer: normalized.
        question: the problem's text.
    """
    if not _OPERATOR.search(answer):
        return False
    text, expected = _unbraced(normalize(_FORMULA.sub(r" \1 ", question))), split_equation(gold)[1]
    parts = [part.strip() for part in _SEPARATOR.split(answer)]
    if not _is_term(answer, text) and not _are_terms(parts, text):
        return False
    if any(_written_alike(expected, part) for part in (answer, *parts)):
        return False
    return not (_OPERATOR.search(expected) and _is_term(expected, text))


def _are_terms(parts: list[str], text: str) -> bool:
    r"""Whether a text has each of these, one at least, but names and numbers: `A`, `\sin 75^\circ` and `0.966`."""
    said = [part for part in parts if not NAME.fullmatch(part) and read_number(part) is None]
    return bool(said) and all(_OPERATOR.search(part) and _is_term(part, text) for part in said)


def squeeze(text: str) -> str:
    """The text without braces around single characters, and without spaces but for those between digits."""
    return _unbraced(re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text))


def _unbraced(text: str) -> str:
    return re.sub(r"\{(\w)\}", r"\1", text)


def _is_term(part: str, text: str) -> bool:
    """Whether an expression stands in a text as a whole: `x+1` does not in `f(x+1)`, `a_{x+1}` and `2x+1`."""
    pattern = r"\s*".join(re.escape(sign) for sign in squeeze(part))
    for match in re.finditer(pattern, text):
        start, end = match.span()
        while start and _BRACKETS.get(text[start - 1]) == text[end : end + 1]:
            start, end = start - 1, end + 1
        if not _GOES_BEFORE.search(text[max(start - 20, 0) : start]) and not _GOES_ON.match(text, end):
            return True
    return False


def _written_alike(one: str, other: str) -> bool:
    r"""Whether two expressions differ by no more than notation and the order of terms: `\pi/2` and `\frac{\pi}{2}`."""
    try:
        return _ordered(parse(tokens(one))) == _ordered(parse(tokens(split_equation(other)[1])))
    except (Unreadable, RecursionError):
        return False


def _ordered(tree: Tree) -> Tree:
    parts = tuple(_ordered(part) if isinstance(part, tuple) else part for part in tree)
    return (parts[0], *sorted(parts[1:], key=repr)) if parts[:1] in (("add",), ("mul",)) else parts
