"""The tokens of a step by arithmetic: CIPO beside GRPO with as many responses.

A row that is trained is a prompt and a response, and both take a forward and a backward pass. The prompt of a
correction holds an attempt, so its row is about twice as long as that of an attempt where the whole attempt is shown.
All rows of a kind are taken to have the same length, their mean.
"""

from dataclasses import dataclass
from typing import Literal

View = Literal["whole", "no_thinking", "tail"]
CHECKED = ("generated", "trained")
"""What the trainer counts too."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of the parts of a row.

    question: the prompt of an attempt; answer: an attempt; shown: what a correction prompt shows of one; frame: what
    that prompt has beside the prompt of the attempt and the part that is shown; correction: a correction.
    """

    question: float
    answer: float
    shown: float
    frame: float
    correction: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a prompt costs in a step.

    generated: response tokens; trained: tokens through each pass of the trainer; distinct: the same if a prompt that
    several rows share were computed once; pairs: of a token and one that it attends to, for the work of attention.
    """

    generated: float
    trained: float
    distinct: float
    pairs: float

    def over(self, other: "Cost") -> dict[str, float]:
        """Each as a multiple of that of ``other``."""
        return {name: value / getattr(other, name) for name, value in vars(self).items()}


def shown(answer: float, view: View, *, thinking: float = 0.0, limit: float | None = None) -> float:
    """Tokens that a correction prompt shows of an attempt of ``answer`` tokens (`prompt.attempt_view`).

    Args:
        thinking: share of the answer that is in thinking blocks; only no_thinking leaves it out.
        limit: `prompt.max_attempt_tokens`; None: no limit.

    Raises:
        ValueError: ``thinking`` is not within 0 and 1.
    """
    if not 0 <= thinking <= 1:
        raise ValueError(f"thinking = {thinking}: expected a share, 0 to 1")
    left = answer * (1 - thinking) if view == "no_thinking" else answer
    return left if limit is None else min(left, limit)


def grpo(lengths: Lengths, responses: int) -> Cost:
    """A prompt with ``responses`` attempts."""
    row = lengths.question + lengths.answer
    return Cost(
        generated=responses * lengths.answer,
        trained=responses * row,
        distinct=lengths.question + responses * lengths.answer,
        pairs=responses * row**2 / 2,
    )


def cipo(lengths: Lengths, n: int, *, corrections: int, anchors: float = 1.0, share: float = 1.0) -> Cost:
    """A prompt with ``n`` attempts, and ``corrections`` sessions for each of its ``anchors`` anchors.

    Args:
        anchors: a prompt, `replay_fraction`.
        share: of the anchors whose sessions correct; those of the others are further attempts (`budget=auto`).

    Raises:
        ValueError: ``share`` is not within 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: expected a share, 0 to 1")
    corrected = anchors * share
    attempts = n + (anchors - corrected) * corrections
    prompt = lengths.question + lengths.frame + lengths.shown
    row = prompt + lengths.correction
    plain = lengths.question + lengths.answer
    return Cost(
        generated=attempts * lengths.answer + corrected * corrections * lengths.correction,
        trained=attempts * plain + corrected * corrections * row,
        distinct=lengths.question + attempts * lengths.answer + corrected * (prompt + corrections * lengths.correction),
        pairs=(attempts * plain**2 + corrected * corrections * row**2) / 2,
    )


def forward_flops(cost: Cost, *, parameters: float, layers: int, hidden: int) -> float:
    """Of a forward pass over what is trained: 2 per parameter and token, 4 per layer, hidden unit and pair.

    A backward pass takes twice as many, so ratios of both are those of this.
    """
    return 2 * parameters * cost.trained + 4 * layers * hidden * cost.pairs
