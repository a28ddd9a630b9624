r"""Judging two answers that their texts alone do not decide; runs in a worker process, where it may hang, swell or die.

What the reader of `forms` can read is decided by values. The rest is math-verify's: sums and integrals against their
results, and notation that the reader lacks. Its verdict counts only where it took the text for what it says:

- neither side became a truth value, an equation, an empty set or a number out of bounds;
- neither holds an imaginary unit, or Euler's number, that nobody wrote, and no variable was lost;
- the values of the two are the same at points that nobody chose.

math-verify's own time limits are signals and are switched off: the worker has its own. Only its LaTeX reader is used.
The reader of plain expressions hands text to Python's parser and evaluates it; LaTeX is parsed by a grammar.
"""

import logging
import random
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy.logic.boolalg import Boolean

from verl_cipo.rewards.math.compare import Undecided, equal
from verl_cipo.rewards.math.forms import Items, read
from verl_cipo.rewards.math.normal import TEXT
from verl_cipo.rewards.math.tokens import NUMBER, Unreadable, tokens
from verl_cipo.rewards.outcome import Outcome

# Its own removal of units takes variables for them: `m g h` would be read as m.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)
_LATEX = (
    LatexExtractionConfig(
        try_extract_without_anchor=False, boxed_match_priority=0, normalization_config=_NORMALIZATION
    ),
)
_CONNECTIVE = re.compile(r"[\s,.]*(?:or|and)[\s,.]*", re.IGNORECASE)
_BOUND = re.compile(r"\\(?:sum|prod|int|lim|max|min|sup|inf)(?![A-Za-z])")
# What math-verify skips or reads a part of: equations and inequalities, prose, environments.
_NOT_READ = re.compile(
    r"[=<>]|\\(?:l|g|n)eq?(?![A-Za-z])|\\(?:approx|begin|in|to|mid|ldots)(?![A-Za-z])|(?<![A-Za-z\\])[A-Za-z]{4,}|\\[a-z]*text"
)
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial)(?![a-z]{2})|'|\\prime|\\partial|\\nabla")
_DIGITS = 50

# math-verify warns at each call that its time limits are off, and prints answers that it cannot read.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def judge(gold: str, answer: str) -> str:
    """The outcome of comparing two answers, both as `verdict.for_algebra` gives them.

    UNPARSABLE when the answer is no mathematics that can be read or has no value, UNDECIDED when that is so of the
    reference.
    """
    outcome = _by_values(gold, answer)
    if outcome is not Outcome.RIGHT and any("," in match[0] for match in NUMBER.finditer(f"{gold} {answer}")):
        # 1,234 may be a list of two as well, where the other side has the same two in this order.
        listed = _by_values(gold, answer, as_lists=True)
        outcome = listed if listed is Outcome.RIGHT else outcome
    return (outcome or _by_algebra(_without_separators(gold), _without_separators(answer))).value


def warm_up() -> None:
    """Build the parser's tables, and see that both verdicts can be had: a broken installation must not look like wrong
    answers.

    Raises: RuntimeError when math-verify does not work.
    """
    for answer, expected in (("2x+1", Outcome.RIGHT), (r"\frac{x}{2}", Outcome.WRONG)):
        if (outcome := _by_algebra("1+2x", answer)) != expected:
            raise RuntimeError(
                f"math-verify calls 1+2x and {answer} {outcome.value}; is it installed with its ANTLR runtime?"
            )


def _by_values(gold: str, answer: str, *, as_lists: bool = False) -> Outcome | None:
    """The verdict of the reader; None where it cannot read one of the two or has no values.

    as_lists: a comma in a number separates two, and lists are in order.
    """
    try:
        forms = [read(text, separators=not as_lists) for text in (gold, answer)]
        if as_lists:
            forms = [
                Items("()", form.parts) if isinstance(form, Items) and form.kind == "list" else form for form in forms
            ]
        right = equal(*forms)
    except (Unreadable, Undecided, RecursionError):
        return None
    return Outcome.RIGHT if right else Outcome.WRONG


# Algebra


def _without_separators(text: str) -> str:
    return NUMBER.sub(lambda match: re.sub("[, ]", "", match[0]), text)


def _by_algebra(gold: str, answer: str) -> Outcome:
    read_gold, read_answer = _parse(gold), _parse(answer)
    gold_is_bad = not read_gold or _misread(gold, read_gold[0])
    answer_is_bad = not read_answer or _misread(answer, read_answer[0])
    if gold_is_bad and (_is_read(answer) or not _is_read(gold)):
        return Outcome.UNDECIDED
    if answer_is_bad or gold_is_bad:
        return Outcome.UNPARSABLE
    if not verify(
        list(read_gold),
        list(read_answer),
        numeric_precision=_DIGITS,
        timeout_seconds=None,
        allow_set_relation_comp=True,
    ):
        return Outcome.WRONG
    return Outcome.WRONG if _differ(read_gold[0], read_answer[0]) else Outcome.RIGHT


def _is_read(text: str) -> bool:
    """Whether the reader makes something of a text, if no value."""
    try:
        read(text)
    except (Unreadable, RecursionError):
        return False
    return True


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[Any, ...]:
    text = TEXT.sub(lambda match: ", " if _CONNECTIVE.fullmatch(match[1]) else match[0], text)
    text = re.sub(r",\s*,", ",", re.sub(r"\s+(?:or|and)\s+", ", ", text))
    found = parse(
        f"\\boxed{{{text}}}",
        _LATEX,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] -- what its documentation says to pass
    )
    return tuple(found) if found and not isinstance(found[0], str) else ()


def _misread(text: str, expression: Any) -> bool:
    """Whether what math-verify made of a text cannot be what the text says."""
    if isinstance(expression, bool | Boolean) or not hasattr(expression, "has"):
        return True
    if expression.has(sympy.logic.boolalg.BooleanTrue, sympy.logic.boolalg.BooleanFalse, sympy.zoo, sympy.nan):
        return True
    if expression.has(sympy.core.relational.Relational) or _DERIVATIVE.search(text) or _NOT_READ.search(text):
        return True
    if expression.has(sympy.S.EmptySet) and r"\emptyset" not in text:
        return True
    try:
        letters = {token for token in tokens(text) if token.isalpha()}
    except Unreadable:
        return True
    if (expression.has(sympy.I) and "i" not in letters) or (
        expression.has(sympy.E) and "e" not in letters and r"\exp" not in text
    ):
        return True
    # No variable may be lost, but for those that a sum or an integral binds.
    read_letters = {sign for symbol in expression.free_symbols for sign in str(symbol)}
    return bool(letters - {"e", "i", "d"} - read_letters) and not _BOUND.search(text)


def _differ(gold: Any, answer: Any) -> bool:
    """Whether the values of two expressions are seen to differ somewhere."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    rng = random.Random(0)
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for _ in range(3):
        point = {name: sympy.Rational(rng.randint(2, 5000), 997) for name in names}
        one, other = (side.subs(point).evalf(_DIGITS) for side in (gold, answer))
        if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
            continue
        if abs(one - other) > sympy.Float("1e-6") * max(abs(one), abs(other)):
            return True
    return False
