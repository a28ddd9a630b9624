"""Strategy contexts as a run finds them, at a prompt and at an anchor. Without verl, so that the replica can use it."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.nudge import CORRECTION_TOO_LONG, COUNTED, SKIPPED, drawn_contexts, listed, nudged
from verl_cipo.core.prompts import CorrectionPrompt, Others, Request
from verl_cipo.core.rows import PLAIN

logger = logging.getLogger("verl_cipo")


@dataclass(frozen=True)
class Contexts:
    """Which attempts of a prompt are made under a context."""

    plain: list[dict] | None = None
    """The chat of the prompt; None where no attempt has a context."""
    number: Mapping[int, int] = field(default_factory=dict)
    """Session -> number of its context in the prompt's list; those at the plain prompt are left out."""
    chat: Mapping[int, list[dict]] = field(default_factory=dict)
    """Number of a context -> the chat with it."""

    def asked(self, session: int, plain: Any) -> Any:
        """The chat of a session, ``plain`` where it has no context."""
        number = self.number.get(session)
        return plain if number is None else self.chat[number]

    def noted(self, session: int) -> dict[str, Any]:
        """What the ``Mark`` of an attempt says of it."""
        number = self.number.get(session)
        return {} if number is None else {"context": number, "question": self.plain}


def contexts_of(
    prompt: Mapping[str, Any],
    fits_by: CorrectionPrompt,
    cipo: CIPOConfig,
    counts: Counter,
    *,
    sessions: int,
    step: int,
) -> Contexts:
    """Draw the contexts of the attempts at a prompt; why some cannot be had is added to ``counts``.

    Args:
        prompt: a row of the data set, with ``raw_prompt`` and ``index``.
        fits_by: knows ``rollout.prompt_length`` and counts tokens; verl would cut the start off a longer prompt.
        sessions: how many attempts it has in any case.
    """
    counted = (*COUNTED, CORRECTION_TOO_LONG) if cipo.nudge.corrections else COUNTED
    counts.update(dict.fromkeys(counted, 0))
    try:
        chats = _chats(prompt, cipo)
    except ValueError as error:
        logger.error("prompt %s goes without contexts: %s", prompt["index"], error)
        counts[f"{SKIPPED}bad_list"] += 1
        return Contexts()
    if chats is None:
        counts[f"{SKIPPED}no_text_question"] += 1
        return Contexts()
    fitting = {number: chat for number, chat in enumerate(chats) if fits_by.count_tokens(chat) <= fits_by.prompt_length}
    counts[f"{SKIPPED}too_long"] += len(chats) - len(fitting)
    drawn = _drawn(fitting, sessions, prompt, cipo, step=step)
    return Contexts(
        plain=[dict(message) for message in prompt["raw_prompt"]],
        number={session: number for session, number in enumerate(drawn) if number is not None},
        chat=fitting,
    )


class SessionRequest(NamedTuple):
    """What a correction session is asked.

    context: its number in the list of the attempt's prompt, None where the question has none.
    """

    request: Request
    context: int | None = None


def asked_of_anchor(
    prompt: Mapping[str, Any],
    attempt: str,
    others: Others,
    built_by: CorrectionPrompt,
    cipo: CIPOConfig,
    counts: Counter,
    *,
    n: int,
    step: int,
    anchor: int,
    validate: bool = False,
) -> tuple[list[SessionRequest], str | None]:
    """What each of the ``n`` corrections of an attempt is asked; none, and the reason, where no prompt can be had.

    With ``nudge.corrections`` some are asked under a context. A prompt is built for each of its contexts: which fit
    decides the draw. Those that leave no room are added to ``counts``.

    Args:
        prompt: of the attempt, as in :func:`contexts_of`, which has told what is wrong with its contexts.
        attempt, others: its text, and what is shown beside it.
        step: that in which the corrections are rolled out.
        anchor: the attempt, by its session.
        validate: no contexts.
    """
    plain, refusal = built_by.request(list(prompt["raw_prompt"]), attempt, others)
    if plain is None:
        return [], refusal
    if validate or not cipo.nudge.corrections:
        return [SessionRequest(plain)] * n, None
    try:
        chats = _chats(prompt, cipo) or []
    except ValueError:
        chats = []
    built = {number: built_by.request(chat, attempt, others)[0] for number, chat in enumerate(chats)}
    requests = {number: request for number, request in built.items() if request is not None}
    counts[CORRECTION_TOO_LONG] += len(built) - len(requests)
    drawn = _drawn(requests, n, prompt, cipo, step=step, anchor=anchor)
    return [SessionRequest(plain if number is None else requests[number], number) for number in drawn], None


def _chats(prompt: Mapping[str, Any], cipo: CIPOConfig) -> list[list[dict]] | None:
    """The chat of a prompt with each of its contexts; None where it is not plain text.

    Raises: ValueError when what it lists is no list of texts.
    """
    chats = [nudged(prompt["raw_prompt"], text, cipo.nudge) for text in listed(prompt, str(cipo.nudge.contexts))]
    found = [chat for chat in chats if chat is not None]
    return found if len(found) == len(chats) else None


def _drawn(
    numbers: Iterable[int],
    sessions: int,
    prompt: Mapping[str, Any],
    cipo: CIPOConfig,
    *,
    step: int,
    anchor: int | None = None,
) -> list[int | None]:
    """Of each session which of the contexts ``numbers`` it has, None at the plain prompt."""
    usable = list(numbers)
    drawn = drawn_contexts(
        len(usable),
        sessions,
        plain_share=cipo.nudge.plain_share,
        seed=cipo.seed,
        step=step,
        index=prompt["index"],
        anchor=anchor,
    )
    return [None if place == PLAIN else usable[place] for place in drawn]
