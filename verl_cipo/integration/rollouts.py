"""Correction rollouts inside verl's agent-loop workers.

Seam: the workers of the manager (manager.py) are :class:`CIPOAgentLoopWorker`, which overrides

* ``_run_prompt``: knows how many attempts a group has; with schedule=replay it starts, beside them, corrections of
  the step before,
* ``_run_agent_loop``: the attempt of a group that ends last waits for the group's corrections, and with the other
  schedules rolls them out, before it returns, so verl writes the prompt's status, which lets the trainer sample it,
  after the corrections,
* ``_compute_score``: sees every session's output with its reward before it is stored, and asks a verifier that failed
  again,
* ``_agent_loop_postprocess``: keeps second turns of the validation out of verl's own accuracy.

A correction is an ordinary session of its prompt's own agent loop and reward loop. Its uid is ``{uid}_c{number}``: uid
of the prompt that it is rolled out with, number of its anchor. verl's replay buffer finds it by the part before "_",
and the advantage groups by the whole.
"""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from verl.experimental.agent_loop import AgentLoopOutput, AgentLoopWorker
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.core.transitions import is_copy
from verl_cipo.core.verdict import verdict
from verl_cipo.integration.chats import correction_prompt
from verl_cipo.integration.second_turn import attempt_record
from verl_cipo.integration.seeds import seeded
from verl_cipo.integration.switch import cipo_config
from verl_cipo.integration.verifying import verify

logger = logging.getLogger("verl_cipo")

TICKET = "__cipo__"
"""Field of a dispatched batch: which selection its groups belong to."""
EXTRA = "cipo"
"""Field of ``AgentLoopOutput.extra_fields``: what a row is, read back by the trainer."""
NOT_REPLAYED = ("uid", "session_id", "trace")
"""What of a prompt's data belongs to one rollout of it."""
OF_THE_HOST = ("global_steps",)
"""What a correction has of the prompt that it is rolled out with: its step, from which verl takes its staleness."""


@dataclass
class _Session:
    """One finished session: what was said, and how it was judged."""

    text: str
    correct: bool
    score: float


@dataclass
class _Anchor:
    """An attempt that is being corrected, and the data of its prompt: with schedule=replay that is another prompt."""

    session: int
    text: str
    correct: bool
    prompt: Mapping[str, Any]


@dataclass
class _Group:
    """A prompt's attempts while they are rolled out, and the corrections that are rolled out with them."""

    uid: str
    index: Any
    pending: int
    validate: bool
    ticket: dict[str, Any]
    attempts: dict[int, _Session] = field(default_factory=dict)
    anchors: dict[int, _Anchor] = field(default_factory=dict)
    """By number: the session, or with schedule=replay the place in the list that the coordinator gave."""
    corrections: dict[tuple[int, int], _Session] = field(default_factory=dict)
    """(anchor number, correction session) -> outcome."""
    replayed: asyncio.Task | None = None
    """Starts the corrections of the step before's anchors."""
    tasks: list[asyncio.Task] = field(default_factory=list)
    """Correction sessions."""
    ended: bool = False
    """The attempts have ended and the correction phase was entered."""
    counts: Counter = field(default_factory=Counter)


def correction_uid(uid: str, number: int) -> str:
    """The group id of the corrections of anchor ``number`` of prompt ``uid``."""
    return f"{uid}_c{number}"


def anchor_of(uid: str) -> tuple[str, int | None]:
    """Split a row's uid into the prompt's uid and the anchor's number, None for an attempt."""
    root, mark, number = uid.partition("_c")
    return root, int(number) if mark else None


def split_key(key: str) -> tuple[str, int, int]:
    """A row's key, ``{group}_{session}_{output}``, in its parts; the group is the row's uid."""
    group, session, output = key.rsplit("_", 2)
    return group, int(session), int(output)


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


def agent_loop_prompt(worker: AgentLoopWorker, cipo: CIPOConfig) -> CorrectionPrompt:
    """The correction prompt of a rollout worker: tokens are counted as its agent loops render the chat."""
    builder = create_continuous_token_builder(
        worker.tokenizer,
        hf_model_type=worker.hf_model_type,
        chat_template_kwargs=worker.config.data.get("apply_chat_template_kwargs", {}),
        processor=worker.processor,
    )
    # An agent loop may offer the model a selection of the tools: counting all of them is never too few tokens.
    tools = [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in worker.tools]
    return correction_prompt(
        cipo,
        worker.tokenizer,
        prompt_length=worker.rollout_config.prompt_length,
        count_tokens=lambda messages: len(builder.build_initial_tokens(messages, tools=tools or None)),
    )


class CIPOAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker, with corrections; the coordinator's handle comes with each batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._groups: dict[str, _Group] = {}
        self._cipo = cipo_config(self.config)
        self._n = self._cipo.n_corrections or self.rollout_config.n
        self._prompt = agent_loop_prompt(self, self._cipo)

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        validate = trajectory["validate"]
        rollout = self.config.actor_rollout_ref.rollout
        group = _Group(
            uid=prompt["uid"],
            index=prompt["index"],
            pending=int(prompt.get("__rollout_n__", rollout.val_kwargs.n if validate else rollout.n)),
            validate=validate,
            ticket=prompt.pop(TICKET),
        )
        self._groups[group.uid] = group
        context = (sampling_params, trajectory, prompt)
        try:
            if self._cipo.schedule == "replay" and not validate and group.ticket["batch"] is not None:
                group.replayed = asyncio.create_task(self._correct_replayed(group, *context))
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
            if not group.ended:
                # verl started no session, or failed before it had started all; other groups wait for this one.
                await self._attempts_ended(group, *context)
        finally:
            del self._groups[group.uid]

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        group = self._groups[kwargs["uid"]]
        try:
            return await self._run_session(sampling_params, trajectory, **kwargs)
        finally:
            group.pending -= 1
            if group.pending == 0:
                await self._attempts_ended(group, sampling_params, trajectory, kwargs)

    async def _run_session(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        """verl's session; attempts and corrections come through here."""
        root, number = anchor_of(kwargs["uid"])
        sampling_params = seeded(
            sampling_params,
            trajectory,
            self.config.actor_rollout_ref.rollout,
            index=kwargs["index"],
            anchor=None if number is None else self._groups[root].anchors[number].session,
            session=kwargs["session_id"],
        )
        return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        root, number = anchor_of(kwargs["uid"])
        group = self._groups[root]
        final = outputs[-1]

        def count(name: str) -> None:
            group.counts[name] += 1

        await verify(
            functools.partial(super()._compute_score, outputs, kwargs),
            final,
            retries=self._cipo.verifier_retries,
            count=count,
            session=f"{kwargs['uid']}_{kwargs['session_id']}",
        )
        outcome = _Session(
            text=self.tokenizer.decode(final.response_ids, skip_special_tokens=True),
            correct=verdict(
                final.reward_score, final.extra_fields.get("reward_extra_info"), self._cipo.correct_threshold
            ),
            score=float(final.reward_score),
        )
        if number is None:
            group.attempts[kwargs["session_id"]] = outcome
            mark = {"correct": outcome.correct}
        else:
            anchor = group.anchors[number]
            group.corrections[number, kwargs["session_id"]] = outcome
            mark = {
                "correct": outcome.correct,
                "anchor": number,
                "anchor_correct": anchor.correct,
                "copied": is_copy(anchor.text, outcome.text),
            }
        for output in outputs:
            output.extra_fields[EXTRA] = mark

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> Any:
        _, anchor = anchor_of(kwargs["uid"])
        if not validate or anchor is None:
            return await super()._agent_loop_postprocess(output, validate, **kwargs)
        outputs = output if isinstance(output, list) else [output]
        if outputs:
            await self._compute_score(outputs, kwargs=kwargs)

    async def _attempts_ended(
        self, group: _Group, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        """Roll out the corrections that are left. Nothing that goes wrong here costs a base row: it is counted."""
        group.ended = True
        try:
            if group.validate:
                await self._correct_validation(group, sampling_params, trajectory, prompt)
            elif group.ticket["batch"] is None:
                await group.ticket["coordinator"].close.remote(None, group.uid, dict(group.counts))
            else:
                await self._correct_selected(group, sampling_params, trajectory, prompt)
        except Exception:
            logger.exception("corrections of prompt %s were lost; its attempts are trained as they are", group.uid)

    async def _correct_selected(
        self, group: _Group, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        batch, coordinator = group.ticket["batch"], group.ticket["coordinator"]
        attempts = tuple(
            Attempt(uid=group.uid, index=group.index, session=session, correct=attempt.correct, score=attempt.score)
            for session, attempt in sorted(group.attempts.items())
        )
        try:
            if group.replayed:
                data = {key: value for key, value in prompt.items() if key not in NOT_REPLAYED}
                payloads = {session: (attempt.text, data) for session, attempt in group.attempts.items()}
                await coordinator.add.remote(batch, Group(uid=group.uid, attempts=attempts), payloads)
                await group.replayed
            else:
                await coordinator.add.remote(batch, Group(uid=group.uid, attempts=attempts), {})
                while (sessions := await coordinator.next.remote(batch, group.uid)) is not None:
                    for session in sessions:
                        anchor = self._own_anchor(group, session, prompt)
                        await self._start(group, session, anchor, self._n, sampling_params, trajectory, prompt)
        finally:
            await self._settle(group)
            await coordinator.close.remote(batch, group.uid, dict(group.counts))

    async def _correct_replayed(
        self, group: _Group, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        """Start corrections of the step before's anchors while the attempts of ``group`` are rolled out."""
        anchors = await group.ticket["coordinator"].replayed.remote(group.ticket["batch"], group.uid)
        for number, candidate in enumerate(anchors):
            text, data = candidate.payload
            anchor = _Anchor(candidate.attempt.session, text, candidate.attempt.correct, data)
            await self._start(group, number, anchor, self._n, sampling_params, trajectory, prompt)

    async def _correct_validation(
        self, group: _Group, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        n = self._cipo.val_corrections
        if n == 0:
            return
        for session in sorted(group.attempts):
            anchor = self._own_anchor(group, session, prompt)
            await self._start(group, session, anchor, n, sampling_params, trajectory, prompt)
        await self._settle(group)
        records = [
            attempt_record(
                prompt,
                session=session,
                text=attempt.text,
                correct=attempt.correct,
                corrections=[
                    {
                        "correction": outcome.text,
                        "correct": outcome.correct,
                        "score": outcome.score,
                        "copied": is_copy(attempt.text, outcome.text),
                    }
                    for (anchor, _), outcome in sorted(group.corrections.items())
                    if anchor == session
                ],
            )
            for session, attempt in sorted(group.attempts.items())
        ]
        await group.ticket["coordinator"].add_validation.remote(records, dict(group.counts))

    async def _start(
        self,
        group: _Group,
        number: int,
        anchor: _Anchor,
        n: int,
        sampling_params: dict,
        trajectory: dict,
        host: Mapping[str, Any],
    ) -> None:
        """Start ``n`` correction sessions of one anchor, or count why there are none."""
        messages, skipped = await asyncio.get_running_loop().run_in_executor(
            None, self._prompt.build, list(anchor.prompt["raw_prompt"]), anchor.text
        )
        if messages is None:
            group.counts[f"anchors/skipped/{skipped}"] += 1
            return
        group.anchors[number] = anchor
        kwargs = {key: value for key, value in anchor.prompt.items() if key not in (*NOT_REPLAYED, "raw_prompt")}
        kwargs |= {key: host[key] for key in OF_THE_HOST if key in host}
        group.tasks += [
            asyncio.create_task(
                self._run_correction(
                    group,
                    sampling_params,
                    trajectory,
                    uid=correction_uid(group.uid, number),
                    session_id=i,
                    raw_prompt=messages,
                    trace=False,
                    **kwargs,
                )
            )
            for i in range(n)
        ]

    async def _run_correction(
        self, group: _Group, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> None:
        """One correction session; a failure is logged and leaves no outcome."""
        uid, session = kwargs["uid"], kwargs["session_id"]
        timeout_s = self._cipo.correction_timeout
        with lost_alone(f"{uid}_{session}", timeout_s=timeout_s, counts=group.counts):
            await asyncio.wait_for(self._run_session(sampling_params, trajectory, **kwargs), timeout_s)
            return
        group.corrections.pop((anchor_of(uid)[1], session), None)

    @staticmethod
    def _own_anchor(group: _Group, session: int, prompt: Mapping[str, Any]) -> _Anchor:
        attempt = group.attempts[session]
        return _Anchor(session, attempt.text, attempt.correct, prompt)

    @staticmethod
    async def _settle(group: _Group) -> None:
        await asyncio.gather(*group.tasks)
        # Sessions that raised or took too long, and those whose agent loop returned nothing.
        group.counts["corrections/failed_sessions"] += len(group.tasks) - len(group.corrections)
