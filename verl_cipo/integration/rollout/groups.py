"""What a rollout worker remembers of a prompt while its attempts and corrections are rolled out."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from verl.experimental.agent_loop import AgentLoopOutput

from verl_cipo.core.anchors import Attempt, Group, Outcome, no_signal
from verl_cipo.core.prompts import ALONE, CorrectionPrompt, Others, Said
from verl_cipo.core.transitions import attempt_record, correction_record
from verl_cipo.integration.contexts import Contexts, SessionRequest
from verl_cipo.integration.group_filter import REWARD

logger = logging.getLogger("verl_cipo")


class NoRowsError(RuntimeError):
    """No session of a prompt left a row."""


@dataclass
class Session:
    """One finished session: what was asked and said, and how it was judged."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    correct: bool
    score: float
    pred: Any = None
    """What the verifier read off the response; None where it does not tell."""
    text: str = ""
    """Of the response; that of an attempt is there once its prompt's attempts have ended."""
    refusal: str | None = None
    """Why no correction prompt can be made of an attempt, known from then on too."""
    copied: bool = False
    """Whether a correction repeats what was shown of its attempt."""
    second: bool | None = None
    """The second verifier's verdict."""
    metric: float | None = None
    """That of algorithm.filter_groups; None where it is off, or the verifier does not give it."""


@dataclass
class Anchor:
    """An attempt that is being corrected, and the data of its prompt: with schedule=replay that is another prompt."""

    session: int
    text: str
    correct: bool
    prompt: Mapping[str, Any]
    prompt_ids: Sequence[int]
    """Tokens of its prompt; empty where they are not known."""
    outcome: Outcome | None
    """Of its prompt, when it was drawn; None in a pool that an older version has saved."""
    others: Others = ALONE
    """Attempts that are shown beside it."""
    asked: Sequence[SessionRequest] = ()
    """What each of its corrections is asked."""


@dataclass
class PromptGroup:
    """A prompt's attempts while they are rolled out, and the corrections that are rolled out with them.

    attempts: without the further ones, on which no anchor is drawn.
    """

    uid: str
    index: Any
    origin: str
    pending: int
    validate: bool
    ticket: dict[str, Any]
    n: int
    """Attempts that it has in any case; the sessions of further ones are counted on from there."""
    contexts: Contexts = field(default_factory=Contexts)
    """Which attempts have one."""
    attempts: dict[int, Session] = field(default_factory=dict)
    anchors: dict[int, Anchor] = field(default_factory=dict)
    """By number: the session, or with schedule=replay the place in the list that the coordinator gave."""
    corrections: dict[tuple[int, int], Session] = field(default_factory=dict)
    """(anchor number, correction session) -> outcome."""
    rows: int = 0
    """Sessions whose rows verl was given to train, corrections among them."""
    hosted: asyncio.Task | None = None
    """Starts what needs no verdict on the attempts: further ones, and corrections of the step before's anchors."""
    tasks: list[asyncio.Task] = field(default_factory=list)
    """Correction sessions."""
    further: list[asyncio.Task] = field(default_factory=list)
    """Further attempts, which budget=auto makes in place of corrections."""
    ended: bool = False
    """The attempts have ended and the correction phase was entered."""
    counts: Counter = field(default_factory=Counter)

    def own_anchor(self, session: int, prompt: Mapping[str, Any], others: Others = ALONE) -> Anchor:
        """Attempt ``session`` of this prompt, whose data is ``prompt``, as an anchor."""
        attempt = self.attempts[session]
        outcome = self.report().outcome
        return Anchor(session, attempt.text, attempt.correct, prompt, attempt.prompt_ids, outcome, others)

    @property
    def evicted(self) -> bool:
        """Whether verl's group filter takes the prompt out of the step."""
        values = [attempt.metric for attempt in self.attempts.values() if attempt.metric is not None]
        return len(values) == len(self.attempts) and no_signal(values)

    @property
    def all_wrong(self) -> bool:
        """Whether no attempt is right."""
        return not any(attempt.correct for attempt in self.attempts.values())

    def beside(self, prompt: CorrectionPrompt, sessions: Iterable[int], *, seed: int, step: int) -> dict[int, Others]:
        """Of each attempt the wrong ones that are shown with it; none that could be no anchor itself."""
        said = {number: Said(number, own.text, own.pred) for number, own in self.attempts.items()}
        wrong = [said[number] for number, own in self.attempts.items() if not own.correct and own.refusal is None]
        lots = {"seed": seed, "step": step, "index": self.index}
        return {session: prompt.beside(said[session], wrong, **lots) for session in sessions}

    def records(self, prompt: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a validation reports of each attempt at ``prompt`` and of its corrections."""
        corrections = sorted(self.corrections.items(), key=lambda item: item[0])
        return [
            attempt_record(
                prompt,
                session=session,
                text=attempt.text,
                correct=attempt.correct,
                score=attempt.score,
                second=attempt.second,
                corrections=[
                    correction_record(
                        outcome.text,
                        correct=outcome.correct,
                        score=outcome.score,
                        copied=outcome.copied,
                        second=outcome.second,
                    )
                    for (anchor, _), outcome in corrections
                    if anchor == session
                ],
            )
            for session, attempt in sorted(self.attempts.items())
        ]

    def report(self, *, wrong_alone: bool = False) -> Group:
        """The attempts, as the coordinator ranks them; ``wrong_alone``: right ones become no anchors."""
        return Group(
            uid=self.uid,
            attempts=tuple(
                Attempt(
                    uid=self.uid,
                    index=self.index,
                    session=session,
                    correct=attempt.correct,
                    score=attempt.score,
                    origin=self.origin,
                    correctable=attempt.refusal is None and not (wrong_alone and attempt.correct),
                )
                for session, attempt in sorted(self.attempts.items())
            ),
            evicted=self.evicted,
        )


def read_attempts(
    prompt: CorrectionPrompt, messages: Sequence[Mapping[str, Any]], responses: Sequence[Sequence[int]]
) -> tuple[list[str], list[str | None]]:
    """The text of each response at one prompt, and why no correction prompt can be made of it, None where one can.

    An error in making it, a chat template that refuses it say, is logged, and is a reason of its own.
    """
    try:
        texts = [prompt.decode(ids) for ids in responses]
        return texts, prompt.refusals(list(messages), texts)
    except Exception:
        logger.exception("no correction prompt can be built for a prompt; its attempts are not corrected")
        return [""] * len(responses), ["prompt_failed"] * len(responses)


@contextmanager
def lost_alone(name: str, *, timeout_s: float, counts: Counter) -> Iterator[None]:
    """Around a correction session: what it raises is logged and ends here, so that it costs no other row.

    Args:
        name: of the session.
        timeout_s: after which it was given up, where it was.
        counts: gets ``corrections/timed_out``.
    """
    try:
        yield
    except asyncio.TimeoutError:  # noqa: UP041, another class than TimeoutError in Python 3.10
        counts["corrections/timed_out"] += 1
        logger.error("correction %s took over %g s", name, timeout_s)
    except Exception:
        logger.exception("correction %s failed", name)


def metric_of(output: AgentLoopOutput, name: str | None) -> float | None:
    """What verl's replay buffer will read of a judged session for algorithm.filter_groups.metric ``name``.

    Args:
        name: None where groups are not filtered.
    """
    if name is None:
        return None
    if name == REWARD:
        # verl stores it in single precision.
        return float(np.float32(output.reward_score))
    value = (output.extra_fields.get("reward_extra_info") or {}).get(name)
    return None if value is None else float(value)


def asked_again(prompt_ids: Sequence[int], attempt_prompt_ids: Sequence[int]) -> bool:
    """Whether a correction session asked what its attempt was asked, since its agent loop ignores raw_prompt.

    Args:
        attempt_prompt_ids: empty where they are not known.
    """
    return len(attempt_prompt_ids) > 0 and list(prompt_ids) == list(attempt_prompt_ids)
