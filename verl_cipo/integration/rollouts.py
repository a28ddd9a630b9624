"""Correction rollouts inside verl's agent-loop workers.

Seams: ``rollout.agent.agent_loop_manager_class`` names :class:`CIPOAgentLoopManager`; its worker overrides

* ``_run_prompt``: only to know how many attempts a group has,
* ``_run_agent_loop``: the attempt of a group that ends last rolls the group's corrections out before it returns, so
  verl writes the prompt's status, which lets the trainer sample it, after the corrections,
* ``_compute_score``: sees every session's output with its reward before it is stored,
* ``_agent_loop_postprocess``: keeps second turns of the validation out of verl's own accuracy.

A correction is an ordinary session of the prompt's own agent loop and reward loop. Its uid is ``{uid}_c{session}`` of
its anchor: verl's replay buffer finds it by the part before "_", and the advantage groups by the whole.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from tensordict import TensorDict
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import tensordict_utils as tu
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.transitions import is_copy
from verl_cipo.integration.budget import correction_prompt
from verl_cipo.integration.coordinator import AnchorCoordinator
from verl_cipo.integration.outcome import verdict
from verl_cipo.integration.switch import cipo_config

logger = logging.getLogger("verl_cipo")

TICKET = "__cipo__"
"""Field of a dispatched batch: which selection its groups belong to."""
EXTRA = "cipo"
"""Field of ``AgentLoopOutput.extra_fields``: what a row is, read back by the trainer."""


@dataclass
class _Session:
    """One finished session: what was said, and how it was judged."""

    text: str
    correct: bool
    score: float


@dataclass
class _Group:
    """A prompt's attempts while they are rolled out, and then their corrections."""

    uid: str
    index: Any
    pending: int
    validate: bool
    ticket: dict[str, Any]
    attempts: dict[int, _Session] = field(default_factory=dict)
    corrections: dict[tuple[int, int], _Session] = field(default_factory=dict)
    """(anchor session, correction session) -> outcome."""
    started: int = 0
    """Correction sessions that were started."""
    corrected: bool = False
    """The correction phase was entered."""
    counts: Counter = field(default_factory=Counter)


def correction_uid(uid: str, session: int) -> str:
    """The group id of the corrections of attempt ``session``."""
    return f"{uid}_c{session}"


def anchor_of(uid: str) -> tuple[str, int | None]:
    """Split a row's uid into the prompt's uid and the anchor's session, None for an attempt."""
    root, mark, session = uid.partition("_c")
    return root, int(session) if mark else None


class CIPOAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker, with corrections; the coordinator's handle comes with each batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._groups: dict[str, _Group] = {}
        self._cipo = cipo_config(self.config)
        builder = create_continuous_token_builder(
            self.tokenizer,
            hf_model_type=self.hf_model_type,
            chat_template_kwargs=self.config.data.get("apply_chat_template_kwargs", {}),
            processor=self.processor,
        )
        # An agent loop may offer the model a selection of the tools: counting all of them is never too few tokens.
        tools = [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in self.tools]
        self._prompt = correction_prompt(
            self._cipo,
            self.tokenizer,
            prompt_length=self.rollout_config.prompt_length,
            count_tokens=lambda messages: len(builder.build_initial_tokens(messages, tools=tools or None)),
        )

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        ticket = prompt.pop(TICKET, None)
        if ticket is None:
            return await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        validate = trajectory["validate"]
        rollout = self.config.actor_rollout_ref.rollout
        group = _Group(
            uid=prompt["uid"],
            index=prompt["index"],
            pending=int(prompt.get("__rollout_n__", rollout.val_kwargs.n if validate else rollout.n)),
            validate=validate,
            ticket=ticket,
        )
        self._groups[group.uid] = group
        try:
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
            if not group.corrected:
                # verl started no session, or failed before it had started all; other groups wait for this one.
                await self._correct(group, sampling_params, trajectory, prompt)
        finally:
            del self._groups[group.uid]

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        group = self._groups.get(kwargs["uid"])
        if group is None:
            return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        try:
            return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        finally:
            group.pending -= 1
            if group.pending == 0:
                await self._correct(group, sampling_params, trajectory, kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        await super()._compute_score(outputs, kwargs)
        root, anchor = anchor_of(kwargs["uid"])
        group = self._groups.get(root)
        if group is None:
            return
        final = outputs[-1]
        outcome = _Session(
            text=self.tokenizer.decode(final.response_ids, skip_special_tokens=True),
            correct=verdict(
                final.reward_score, final.extra_fields.get("reward_extra_info"), self._cipo.correct_threshold
            ),
            score=float(final.reward_score),
        )
        if anchor is None:
            group.attempts[kwargs["session_id"]] = outcome
            mark = {"correct": outcome.correct}
        else:
            attempt = group.attempts[anchor]
            group.corrections[anchor, kwargs["session_id"]] = outcome
            mark = {
                "correct": outcome.correct,
                "anchor_session": anchor,
                "anchor_correct": attempt.correct,
                "copied": is_copy(attempt.text, outcome.text),
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

    async def _correct(self, group: _Group, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]) -> None:
        """Roll out the corrections of ``group``. Nothing that goes wrong here costs a base row: it is counted."""
        group.corrected = True
        try:
            if group.validate:
                await self._correct_validation(group, sampling_params, trajectory, prompt)
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
        await coordinator.add.remote(batch, Group(uid=group.uid, attempts=attempts))
        n = self._cipo.n_corrections or self.config.actor_rollout_ref.rollout.n
        tasks: list[asyncio.Task] = []
        try:
            while (sessions := await coordinator.next.remote(batch, group.uid)) is not None:
                for session in sessions:
                    tasks += await self._start(group, session, n, sampling_params, trajectory, prompt)
        finally:
            await self._settle(group, tasks)
            await coordinator.close.remote(batch, dict(group.counts))

    async def _correct_validation(
        self, group: _Group, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        tasks: list[asyncio.Task] = []
        for session in sorted(group.attempts):
            tasks += await self._start(group, session, self._cipo.val_corrections, sampling_params, trajectory, prompt)
        await self._settle(group, tasks)
        records = [
            {
                "uid": group.uid,
                "session": session,
                "question": prompt["raw_prompt"][-1]["content"],
                "attempt": attempt.text,
                "anchor_correct": attempt.correct,
                "gts": (prompt.get("reward_model") or {}).get("ground_truth"),
                "data_source": prompt.get("data_source"),
                "corrections": [
                    {
                        "correction": outcome.text,
                        "correct": outcome.correct,
                        "score": outcome.score,
                        "copied": is_copy(attempt.text, outcome.text),
                    }
                    for (anchor, _), outcome in sorted(group.corrections.items())
                    if anchor == session
                ],
            }
            for session, attempt in sorted(group.attempts.items())
        ]
        await group.ticket["coordinator"].add_validation.remote(records, dict(group.counts))

    async def _start(
        self,
        group: _Group,
        session: int,
        n: int,
        sampling_params: dict,
        trajectory: dict,
        prompt: Mapping[str, Any],
    ) -> list[asyncio.Task]:
        """Start ``n`` correction sessions of one attempt, or count why there are none."""
        messages, skipped = await asyncio.get_running_loop().run_in_executor(
            None, self._prompt.build, list(prompt["raw_prompt"]), group.attempts[session].text
        )
        if messages is None:
            group.counts[f"anchors/skipped/{skipped}"] += 1
            return []
        group.started += n
        kwargs = {
            key: value for key, value in prompt.items() if key not in ("uid", "session_id", "raw_prompt", "trace")
        }
        return [
            asyncio.create_task(
                super(CIPOAgentLoopWorker, self)._run_agent_loop(
                    sampling_params,
                    trajectory,
                    uid=correction_uid(group.uid, session),
                    session_id=i,
                    raw_prompt=messages,
                    trace=False,
                    **kwargs,
                )
            )
            for i in range(n)
        ]

    @staticmethod
    async def _settle(group: _Group, tasks: list[asyncio.Task]) -> None:
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                logger.error("a correction of prompt %s failed", group.uid, exc_info=result)
        # Sessions that raised, and those whose agent loop returned nothing.
        group.counts["corrections/failed_sessions"] += group.started - len(group.corrections)


class CIPOAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager over :class:`CIPOAgentLoopWorker`, with the coordinator beside it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(CIPOAgentLoopWorker)
        self.rho = 0.0
        """Share of correct attempts among the anchors of the next batch; the trainer sets it."""
        self._cipo = cipo_config(self.config)
        self._batches = 0
        self._coordinator = (
            ray.remote(AnchorCoordinator).options(num_cpus=0, max_concurrency=100_000).remote(self._cipo.to_mapping())
        )

    def generate_sequences(self, prompts: TensorDict) -> None:
        validate = bool(tu.get_non_tensor_data(prompts, "validate", False))
        ticket: dict[str, Any] = {"coordinator": self._coordinator}
        if validate and self._cipo.val_corrections > 0:
            tu.assign_non_tensor_data(prompts, TICKET, ticket)
        elif not validate and self._cipo.replay_fraction > 0:
            ticket["batch"] = self._batches
            self._batches += 1
            step = int(tu.get_non_tensor_data(prompts, "global_steps", 0))
            ray.get(self._coordinator.open.remote(ticket["batch"], n_prompts=len(prompts), rho=self.rho, step=step))
            tu.assign_non_tensor_data(prompts, TICKET, ticket)
        super().generate_sequences(prompts)

    def pop_statistics(self) -> dict[str, float]:
        """Selection and fault counts since the last call."""
        return ray.get(self._coordinator.pop_statistics.remote())

    def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """The validation's attempts since the last call, each with its corrections, and what was left out."""
        return ray.get(self._coordinator.pop_validation.remote())
