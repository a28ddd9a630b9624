"""What the trainer checks of the training set before any worker starts: questions, numbers, strategy contexts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.core.contents import last_question
from verl_cipo.core.nudge import listed, nudged
from verl_cipo.core.prompts import CorrectionPrompt

logger = logging.getLogger("verl_cipo")

LOOKED_AT = 32
"""Rows, evenly spread: an image may be decoded when its row is read."""
NEEDED = ("raw_prompt", "index")


def looked_at(dataset: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The rows of the training set that are looked at, by number."""
    numbers = sorted({len(dataset) * i // LOOKED_AT for i in range(LOOKED_AT)}) if len(dataset) else []
    return {number: dataset[number] for number in numbers}


def check_questions(dataset: Sequence[Mapping[str, Any]], cipo: CIPOConfig) -> None:
    """Look at some rows of the training set as verl's rollout will get them.

    Rows without a question are trained as GRPO trains them, which a warning says; a data set of nothing else is
    refused, where corrections are wanted of it. A warning tells, too, that all rows have one index, from which CIPO
    draws anchors.

    Args:
        dataset: verl's, its rows with ``raw_prompt``, a list of messages, and ``index``.

    Raises:
        CIPOConfigError: a row lacks one of them, ``raw_prompt`` is something else, or no row has a question.
    """
    rows = looked_at(dataset)
    numbers = list(rows)
    for number, row in rows.items():
        _check_row(number, row)
    if not (cipo.rolls_out or cipo.pairs):
        return
    without = [number for number, row in rows.items() if last_question(row["raw_prompt"]) is None]
    if without and len(without) == len(rows):
        raise CIPOConfigError(
            f"data.train_files: none of the {len(rows)} rows looked at has a question; in row {without[0]}, for "
            "example, there is no user message, or the content of the last one is neither text nor a list of parts "
            "that have a type. CIPO puts the attempt beside the question; use algorithm.adv_estimator=grpo for others"
        )
    if without:
        logger.warning(
            "data.train_files: %d of the %d rows looked at have no question (text, or parts such as images); they are "
            "trained as in GRPO and counted as cipo/anchors/skipped/no_text_question",
            len(without),
            len(rows),
        )
    if len(rows) > 1 and len({str(row["index"]) for row in rows.values()}) == 1:
        logger.warning(
            "data.train_files: all %d rows looked at have extra_info.index=%s; number the rows: CIPO "
            "identifies prompts by it when it draws anchors",
            len(rows),
            rows[numbers[0]]["index"],
        )


def _check_row(number: int, row: Mapping[str, Any]) -> None:
    for name in NEEDED:
        if name not in row:
            raise CIPOConfigError(
                f"data.train_files: row {number} has no {name!r}; your own data set (data.custom_cls) must provide it"
            )
    messages = row["raw_prompt"]
    if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
        raise CIPOConfigError(
            f"data.train_files: raw_prompt of row {number} is not a list of messages but {str(messages)[:60]!r}: CIPO "
            "puts the attempt into the chat, so it needs role and content, not plain text or token ids"
        )


def check_contexts(dataset: Sequence[Mapping[str, Any]], cipo: CIPOConfig, prompt: CorrectionPrompt) -> None:
    """Look at the contexts of some rows of the training set.

    A warning tells how many rows have a context with which the prompt is too long: it is left out when they come up.

    Args:
        prompt: of corrections; it knows ``rollout.prompt_length`` and counts tokens.

    Raises:
        CIPOConfigError: no row has contexts, a row holds something else, or none leaves room in
            ``rollout.prompt_length``, for the question or, with ``nudge.corrections``, for an attempt beside it.
    """
    if not cipo.nudges:
        return
    column, rows = str(cipo.nudge.contexts), looked_at(dataset)
    lengths: list[int] = []
    found, has_room = 0, False
    prompt_length = prompt.prompt_length
    for number, row in rows.items():
        try:
            texts = listed(row, column)
        except ValueError as error:
            raise CIPOConfigError(f"data.train_files, row {number}: {error}") from error
        found += bool(texts)
        chats = [chat for text in texts if (chat := nudged(row["raw_prompt"], text, cipo.nudge)) is not None]
        if chats:
            lengths.append(max(map(prompt.count_tokens, chats)))
        if cipo.nudge.corrections and not has_room:
            has_room = any(prompt.refusals(chat, ["attempt"])[0] != "too_long" for chat in chats)
    if rows and not found:
        raise CIPOConfigError(
            f"{ROOT}.nudge.contexts={column}: none of the {len(rows)} rows of data.train_files looked at has contexts "
            "in a column of this name, also in extra_info; python -m verl_cipo.contexts writes one, null turns them off"
        )
    too_long = [length for length in lengths if length > prompt_length]
    if too_long and len(too_long) == len(lengths):
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={prompt_length} is too small for {ROOT}.nudge.contexts={column}: "
            f"with their contexts prompts take up to {max(lengths)} tokens, raise it to that or more"
        )
    if cipo.nudge.corrections and lengths and not has_room:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={prompt_length} is too small for {ROOT}.nudge.corrections=true: "
            f"no correction prompt has room for an attempt beside a question with a context, of up to {max(lengths)} "
            f"tokens; raise it, or set {ROOT}.nudge.corrections=false"
        )
    if too_long:
        logger.warning(
            "data.train_files: with their contexts %d of the %d prompts looked at take more than "
            "actor_rollout_ref.rollout.prompt_length=%d tokens, up to %d: contexts that do not fit are left out and "
            "counted as cipo/nudge/skipped/too_long",
            len(too_long),
            len(lengths),
            prompt_length,
            max(lengths),
        )
