r"""Judging an expression with math-verify; runs in a worker process, where it may hang, swell or die.

math-verify's own time limits are signals and are switched off: the worker has its own. Only its LaTeX reader is used.
The reader of plain expressions hands text to Python's parser and evaluates it; LaTeX is parsed by a grammar.
"""

import logging

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

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

# math-verify warns at each call that its time limits are off, and prints answers that it cannot read.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def judge(gold: str, answer: str) -> str:
    """The outcome of comparing two answers, both as `verdict.for_algebra` gives them.

    UNPARSABLE when the answer is no mathematics that math-verify can read. It reports failures to read or compare by
    an empty result: a reference that it cannot read makes every answer wrong that is not the same text.
    """
    read = _read(answer)
    if not read:
        return Outcome.UNPARSABLE.value
    right = verify(_read(gold), read, timeout_seconds=None, allow_set_relation_comp=True)
    return (Outcome.RIGHT if right else Outcome.WRONG).value


def warm_up() -> None:
    """Build the parser's tables, and see that both verdicts can be had: a broken installation must not look like wrong
    answers.

    Raises: RuntimeError when math-verify does not work.
    """
    for answer, expected in (("2x+1", Outcome.RIGHT), (r"\frac{x}{2}", Outcome.WRONG)):
        if (outcome := judge("1+2x", answer)) != expected.value:
            raise RuntimeError(
                f"math-verify calls 1+2x and {answer} {outcome}; is it installed with its ANTLR runtime?"
            )


def _read(text: str) -> list:
    return parse(
        f"\\boxed{{{text}}}",
        _LATEX,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] -- what its documentation says to pass
    )
