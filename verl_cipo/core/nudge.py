"""Strategy contexts: which session of a prompt is asked under which, and what (NudgeRL, arXiv 2605.15726).

Their advantage is in advantage.py, their distillation into the plain prompt in aux_loss/distill.py; docs/nudge.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_cipo.core.config import ROOT, NudgeConfig
from verl_cipo.core.contents import last_question
from verl_cipo.core.draws import lot
from verl_cipo.core.prompts import fill
from verl_cipo.core.rows import PLAIN

SKIPPED = "nudge/skipped/"
SKIP_REASONS = ("bad_list", "no_text_question", "too_long")
COUNTED = tuple(f"{SKIPPED}{reason}" for reason in SKIP_REASONS)
"""Counts of the rollout side that are logged every step."""
CORRECTION_TOO_LONG = f"{SKIPPED}correction_too_long"
"""Likewise where corrections are made under contexts."""


def listed(row: Mapping[str, Any], column: str) -> list[str]:
    """The contexts of a row of the data set, empty where it has none.

    column: at the top level, else in extra_info.
    Raises: ValueError when what it holds is no list of texts, or one of them is empty.
    """
    extra = row.get("extra_info")
    found = row[column] if column in row else extra.get(column) if isinstance(extra, Mapping) else None
    if (as_list := getattr(found, "tolist", None)) is not None:
        found = as_list()  # of a numpy array
    if found is None:
        return []
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{ROOT}.nudge.contexts={column}: a row holds {str(found)[:80]!r}, expected a list of texts")
    return list(found)


def nudged(messages: Sequence[Mapping[str, Any]], context: str, config: NudgeConfig) -> list[dict] | None:
    """The chat with the context in its last message of the user; None where a message is not plain text."""
    found = last_question(messages)
    if found is None or not all(isinstance(message.get("content"), str) for message in messages):
        return None
    last, chat = found[0], [dict(message) for message in messages]
    chat[last]["content"] = fill(config.template, question=chat[last]["content"], context=context)
    return chat


def drawn_contexts(
    n_contexts: int,
    sessions: int,
    *,
    plain_share: float,
    seed: int,
    step: int,
    index: Any,
    anchor: int | None = None,
) -> list[int]:
    """The number of the context of each of the attempts, or corrections, 0 ... `sessions` - 1; PLAIN where it has none.

    They are spread evenly over the contexts, in an order that is drawn; then each goes to the plain prompt with the
    probability `plain_share`, by itself. Every draw is a lot of (seed, step, index), so retries and resumed runs agree.

    Args:
        anchor: the attempt, by its session, where the sessions are its corrections; a part of the lot.
    """
    if n_contexts == 0:
        return [PLAIN] * sessions
    drawn_for = (seed, step, index, "nudge") if anchor is None else (seed, step, index, "nudge", anchor)
    order = sorted(range(n_contexts), key=lambda number: lot(*drawn_for, "context", number))

    def plain(session: int) -> bool:
        return int.from_bytes(lot(*drawn_for, "plain", session), "big") < plain_share * 2**64

    return [PLAIN if plain(session) else order[session % n_contexts] for session in range(sessions)]
