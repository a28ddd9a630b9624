"""Whether the data set holds what a correction prompt is made of, told before any worker starts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from verl_cipo.core.config import CIPOConfig, CIPOConfigError

logger = logging.getLogger("verl_cipo")

LOOKED_AT = 32
"""Rows, evenly spread: an image is decoded when its row is read."""
NEEDED = ("raw_prompt", "index")


def check_questions(dataset: Sequence[Mapping[str, Any]], cipo: CIPOConfig) -> None:
    """Look at some rows of the training set as verl's rollout will get them.

    Rows without a text question are trained as GRPO trains them, which a warning says; a data set of nothing else is
    refused, where corrections are wanted of it. A warning tells, too, that all rows have one index, from which CIPO
    draws anchors.

    Args:
        dataset: verl's, its rows with ``raw_prompt``, a list of messages, and ``index``.

    Raises:
        CIPOConfigError: a row lacks one of them, ``raw_prompt`` is something else, or no row has a text question.
    """
    numbers = sorted({len(dataset) * i // LOOKED_AT for i in range(LOOKED_AT)}) if len(dataset) else []
    rows = {number: dataset[number] for number in numbers}
    for number, row in rows.items():
        _check_row(number, row)
    if not (cipo.rolls_out or cipo.pairs):
        return
    without = [number for number, row in rows.items() if not _has_text_question(row["raw_prompt"])]
    if without and len(without) == len(rows):
        raise CIPOConfigError(
            f"data.train_files: none of the {len(rows)} rows looked at has a text question, row {without[0]} for one: "
            "its last user message is missing or holds parts (images, say) in place of a text. CIPO corrects text "
            "questions only, use algorithm.adv_estimator=grpo for others"
        )
    if without:
        logger.warning(
            "data.train_files: %d of the %d rows looked at have no text question (images, say); they are trained as "
            "GRPO trains them and counted as cipo/anchors/skipped/no_text_question",
            len(without),
            len(rows),
        )
    if len(rows) > 1 and len({str(row["index"]) for row in rows.values()}) == 1:
        logger.warning(
            "data.train_files: all %d rows looked at have extra_info.index=%s; number the rows, CIPO tells prompts "
            "apart by it when it draws anchors",
            len(rows),
            rows[numbers[0]]["index"],
        )


def _check_row(number: int, row: Mapping[str, Any]) -> None:
    for name in NEEDED:
        if name not in row:
            raise CIPOConfigError(
                f"data.train_files: row {number} has no {name!r}, a data set of your own (data.custom_cls) must give it"
            )
    messages = row["raw_prompt"]
    if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
        raise CIPOConfigError(
            f"data.train_files: raw_prompt of row {number} is not a list of messages but {str(messages)[:60]!r}: CIPO "
            "puts the attempt into the chat, so it needs role and content, not a text or token ids"
        )


def _has_text_question(messages: Sequence[Mapping[str, Any]]) -> bool:
    asked = [message.get("content") for message in messages if message.get("role") == "user"]
    return bool(asked) and isinstance(asked[-1], str)
