"""Correction rollouts inside verl's agent-loop workers.

Seam: the workers of the manager (manager.py) are verl's with :class:`CorrectsAttempts`, which overrides

* ``_run_prompt``: knows how many attempts a group has; beside them it starts what needs no verdict on them, with
  schedule=replay corrections of the step before, with budget=auto further attempts. However it ends, the group is
  reported and the prompt gets a status,
* ``_run_agent_loop``: an attempt may have a strategy context in its prompt. One that fails costs its own row: verl
  would call the prompt a failure, and its asynchronous replay buffers then evict all of it. The attempt that ends
  last waits for the group's corrections, and with the other schedules rolls them out, before it returns, so verl writes
  the prompt's status, which lets the trainer sample it, after the corrections. Further attempts are sessions n, n + 1,
  ... of the prompt, on which no anchor is drawn,
* ``_compute_score``: sees every session's output with its reward before it is stored, asks a verifier that failed
  again, and the second verifier beside it,
* ``_agent_loop_postprocess``: counts what is stored, and keeps second turns of the validation out of verl's own
  accuracy.

A correction is an ordinary session of its prompt's own agent loop and reward loop. Its uid is ``{uid}_c{number}``: uid
of the prompt that it is rolled out with, number of its anchor. verl's replay buffer finds it by the part before "_",
and the advantage groups by the whole.
"""

import asyncio
import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import transfer_queue as tq
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ

from verl_cipo.core.contents import without_media
from verl_cipo.core.draws import origin
from verl_cipo.core.keys import GroupName, RowKey, correction_group
from verl_cipo.core.prompts import CorrectionPrompt, Others
from verl_cipo.core.rows import MARK, Mark
from verl_cipo.core.verdict import verdict
from verl_cipo.integration.contexts import asked_of_anchor, contexts_of
from verl_cipo.integration.group_filter import filter_metric
from verl_cipo.integration.rendering import agent_loop_prompt
from verl_cipo.integration.rollout import payloads
from verl_cipo.integration.rollout.awake import within
from verl_cipo.integration.rollout.cancelling import EndsRequests
from verl_cipo.integration.rollout.further import OF_ONE_ROLLOUT, MakesFurther
from verl_cipo.integration.rollout.groups import (
    Anchor,
    NoRowsError,
    PromptGroup,
    Session,
    asked_again,
    lost_alone,
    metric_of,
    read_attempts,
)
from verl_cipo.integration.rollout.second_verifier import SecondVerifier
from verl_cipo.integration.rollout.seeds import seeded
from verl_cipo.integration.rollout.verify import verify
from verl_cipo.integration.settings import cipo_config

logger = logging.getLogger("verl_cipo")

TICKET = "__cipo__"
"""Field of a dispatched batch: which selection its groups belong to."""
OF_THE_HOST = ("global_steps",)
"""What a correction has of the prompt that it is rolled out with: its step, from which verl takes its staleness."""


class CorrectsAttempts(EndsRequests, MakesFurther):
    """A mixin for verl's worker: corrections. The coordinator's handle comes with each batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._groups: dict[str, PromptGroup] = {}
        self._cipo = cipo_config(self.config)
        self._n = self._cipo.n_corrections or self.rollout_config.n
        self._prompt = agent_loop_prompt(self, self._cipo)
        self._second = SecondVerifier.of(self._cipo, self.tokenizer)
        self._filter_metric = filter_metric(self.config)

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        validate = trajectory["validate"]
        rollout = self.config.actor_rollout_ref.rollout
        n = int(prompt.get("__rollout_n__", rollout.val_kwargs.n if validate else rollout.n))
        group = PromptGroup(
            uid=prompt["uid"],
            index=prompt["index"],
            origin=origin(prompt.get("data_source"), prompt["raw_prompt"]),
            pending=n,
            n=n,
            validate=validate,
            ticket=prompt.pop(TICKET),
        )
        self._groups[group.uid] = group
        context = (sampling_params, trajectory, prompt)
        if group.ticket["batch"] is not None and (self._cipo.replays or self._cipo.moves_budget):
            group.hosted = asyncio.create_task(self._start_hosted(group, *context))
        try:
            try:
                if self._cipo.nudges and not validate:
                    await self._draw_contexts(group, trajectory, prompt)
                await super()._run_prompt(prompt, sampling_params, trajectory, trace)
            finally:
                if not group.ended:
                    # verl started no session, or failed before it had started all; other groups wait for this one.
                    await self._attempts_ended(group, *context)
        except Exception:
            # verl guards neither its first nor its last word on a prompt, without which a trainer waits for ever.
            logger.exception("the status of prompt %s could not be stored; the prompt counts as failed", group.uid)
            partition = "val" if validate else "train"
            await tq.async_kv_put(key=group.uid, partition_id=partition, tag={"status": "failure"})
        finally:
            del self._groups[group.uid]

    async def _draw_contexts(self, group: PromptGroup, trajectory: dict, prompt: Mapping[str, Any]) -> None:
        """Decide which attempts have a strategy context; further ones have none."""
        drawn = functools.partial(contexts_of, sessions=group.n, step=trajectory["step"])
        group.contexts = await self._off_the_loop(drawn, prompt, self._prompt, self._cipo, group.counts)

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> None:
        group = self._groups[kwargs["uid"]]
        try:
            # The context is this session's alone.
            asked = kwargs | {"raw_prompt": group.contexts.asked(kwargs["session_id"], kwargs["raw_prompt"])}
            await self._run_session(sampling_params, trajectory, **asked)
        except Exception:
            group.counts["attempts/failed_sessions"] += 1
            name = RowKey(group.uid, kwargs["session_id"]).rollout
            logger.exception("attempt %s failed; its row is missing", name)
        finally:
            group.pending -= 1
            if group.pending == 0:
                await self._attempts_ended(group, sampling_params, trajectory, kwargs)
        if group.pending == 0 and group.rows == 0:
            raise NoRowsError(f"no session of prompt {group.uid} left a row")

    async def _run_session(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> None:
        """verl's session; attempts and corrections come through here."""
        name = GroupName.parse(kwargs["uid"])
        sampling_params = seeded(
            sampling_params,
            trajectory,
            self.config.actor_rollout_ref.rollout,
            index=kwargs["index"],
            anchor=None if name.anchor is None else self._groups[name.prompt].anchors[name.anchor].session,
            session=kwargs["session_id"],
        )
        await super()._run_agent_loop(sampling_params, trajectory, **kwargs)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        name = GroupName.parse(kwargs["uid"])
        group, number = self._groups[name.prompt], name.anchor
        final = outputs[-1]

        def count(name: str) -> None:
            group.counts[name] += 1

        session = RowKey(kwargs["uid"], kwargs["session_id"]).rollout
        second, _ = await asyncio.gather(
            self._second.ask(final, kwargs, counts=group.counts, session=session),
            verify(
                functools.partial(super()._compute_score, outputs, kwargs),
                final,
                retries=self._cipo.verifier_retries,
                count=count,
                session=session,
            ),
        )
        outcome = Session(
            prompt_ids=outputs[0].prompt_ids,
            response_ids=final.response_ids,
            correct=verdict(
                final.reward_score,
                final.extra_fields.get("reward_extra_info"),
                self._cipo.threshold(kwargs.get("data_source")),
            ),
            score=float(final.reward_score),
            pred=(final.extra_fields.get("reward_extra_info") or {}).get("pred"),
            second=second,
            metric=metric_of(final, self._filter_metric),
        )
        if number is None:
            further = kwargs["session_id"] >= group.n
            if not further:
                group.attempts[kwargs["session_id"]] = outcome
            mark = Mark(
                correct=outcome.correct,
                score=outcome.score,
                origin=group.origin,
                further=further,
                second=second,
                **group.contexts.noted(kwargs["session_id"]),
            )
        else:
            anchor = group.anchors[number]
            if asked_again(outcome.prompt_ids, anchor.prompt_ids):
                group.counts["corrections/not_asked"] += 1
                logger.error("a correction asked the plain prompt again: its agent loop ignores raw_prompt")
            outcome.text = await self._off_the_loop(self._prompt.decode, final.response_ids)
            asked = anchor.asked[kwargs["session_id"]]
            outcome.copied = await self._off_the_loop(self._prompt.repeats, asked.request.shown, outcome.text)
            group.corrections[number, kwargs["session_id"]] = outcome
            mark = Mark(
                correct=outcome.correct,
                score=outcome.score,
                anchor=number,
                anchor_correct=anchor.correct,
                copied=outcome.copied,
                **(anchor.outcome._asdict() if anchor.outcome else {}),
                question=self._question(anchor),
                context=asked.context,
                second=second,
            )
        for output in outputs:
            output.extra_fields[MARK] = mark.to_mapping()

    def _question(self, anchor: Anchor) -> list[dict] | None:
        """The chat of an anchor's prompt where transfer needs it and the batch lacks it, without images and the like:
        those are in the correction's own prompt. None, too, where a message says nothing."""
        needed = self._cipo.transfers and self._cipo.replays and not anchor.correct
        return without_media(anchor.prompt["raw_prompt"]) if needed else None

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> Any:
        name = GroupName.parse(kwargs["uid"])
        outputs = output if isinstance(output, list) else [output]
        if validate and name.anchor is not None:
            if outputs:
                await self._compute_score(outputs, kwargs=kwargs)
            return None
        stored = await super()._agent_loop_postprocess(output, validate, **kwargs)
        self._groups[name.prompt].rows += bool(outputs)
        return stored

    @staticmethod
    async def _off_the_loop(function: Any, *args: Any) -> Any:
        """What takes long for a long text, beside the event loop that all sessions of the worker share."""
        return await asyncio.get_running_loop().run_in_executor(None, function, *args)

    async def _attempts_ended(
        self, group: PromptGroup, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        """Roll out the corrections that are left. Nothing that goes wrong here costs a base row: it is counted."""
        group.ended = True
        coordinator = group.ticket["coordinator"]
        try:
            if group.validate and self._cipo.reports_validation:
                await self._correct_validation(group, sampling_params, trajectory, prompt)
            elif group.ticket["batch"] is None:
                # Faults are all that there is to report.
                await coordinator.close.remote(None, group.uid, dict(group.counts))
            else:
                await self._correct_selected(group, sampling_params, trajectory, prompt)
        except Exception:
            logger.exception("corrections of prompt %s were lost; its attempts are trained as they are", group.uid)

    def _prompt_of(self, group: PromptGroup) -> CorrectionPrompt:
        return self._prompt.in_validation if group.validate else self._prompt

    async def _read(self, group: PromptGroup, prompt: Mapping[str, Any]) -> None:
        """Note the texts of the attempts, and of which no correction prompt can be made."""
        attempts = list(group.attempts.values())
        responses = [attempt.response_ids for attempt in attempts]
        read = await self._off_the_loop(read_attempts, self._prompt_of(group), prompt["raw_prompt"], responses)
        for attempt, text, refusal in zip(attempts, *read, strict=True):
            attempt.text, attempt.refusal = text, refusal
            if refusal is not None:
                group.counts[f"anchors/skipped/{refusal}"] += 1

    async def _correct_selected(
        self, group: PromptGroup, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        batch, coordinator = group.ticket["batch"], group.ticket["coordinator"]
        try:
            if not group.evicted or (group.all_wrong and self._cipo.keep_all_wrong > 0):
                await self._read(group, prompt)
            if self._cipo.replays:
                kept = {} if group.evicted else await self._kept(group, trajectory, prompt)
                await coordinator.add.remote(batch, group.report(wrong_alone=self._cipo.wrong_alone), kept)
            else:
                await coordinator.add.remote(batch, group.report(wrong_alone=self._cipo.wrong_alone), {})
                if group.hosted:  # whose further attempts are counted first
                    await group.hosted
                while (order := await coordinator.next.remote(batch, group.uid)) is not None:
                    self._start_further(group, order.further, sampling_params, trajectory, prompt)
                    beside = await self._beside(group, order.anchors, trajectory)
                    for session in order.anchors:
                        anchor = group.own_anchor(session, prompt, beside[session])
                        await self._start(group, session, anchor, self._n, sampling_params, trajectory, prompt)
        finally:
            await self._settle(group)
            await coordinator.close.remote(batch, group.uid, dict(group.counts))

    async def _beside(self, group: PromptGroup, sessions: Iterable[int], trajectory: dict) -> dict[int, Others]:
        lots = {"seed": self._cipo.seed, "step": trajectory["step"]}
        return await self._off_the_loop(functools.partial(group.beside, self._prompt, sessions, **lots))

    async def _kept(self, group: PromptGroup, trajectory: dict, prompt: Mapping[str, Any]) -> dict[int, Any]:
        """References to what the next step takes to correct the attempts, see payloads.py."""
        correctable = {s: attempt for s, attempt in sorted(group.attempts.items()) if attempt.refusal is None}
        if not correctable:
            return {}
        texts = {session: attempt.text for session, attempt in correctable.items()}
        beside = await self._beside(group, texts, trajectory)
        data = {key: value for key, value in prompt.items() if key not in OF_ONE_ROLLOUT}
        asked = next(iter(correctable.values())).prompt_ids
        return await self._off_the_loop(payloads.keep, texts, data, asked, beside)

    async def _start_hosted(
        self, group: PromptGroup, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        """Start what ``group`` hosts while its attempts are rolled out."""
        try:
            order = await group.ticket["coordinator"].hosted.remote(group.ticket["batch"], group.uid)
            self._start_further(group, order.further, sampling_params, trajectory, prompt)
            for number, candidate in enumerate(order.anchors):
                text, data, asked, others = await payloads.fetch(candidate.payload)
                attempt = candidate.attempt
                anchor = Anchor(attempt.session, text, attempt.correct, data, asked, candidate.outcome, others)
                await self._start(group, number, anchor, self._n, sampling_params, trajectory, prompt)
        except Exception:
            logger.exception("what prompt %s hosts beside its attempts was lost", group.uid)

    async def _correct_validation(
        self, group: PromptGroup, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        if n := self._cipo.val_corrections:
            await self._read(group, prompt)
        for session, attempt in sorted(group.attempts.items()):
            if not n:
                attempt.text = await self._off_the_loop(self._prompt.decode, attempt.response_ids)
            elif attempt.refusal is None:
                anchor = group.own_anchor(session, prompt)
                await self._start(group, session, anchor, n, sampling_params, trajectory, prompt)
        await self._settle(group)
        await group.ticket["coordinator"].add_validation.remote(group.records(prompt), dict(group.counts))

    async def _start(
        self,
        group: PromptGroup,
        number: int,
        anchor: Anchor,
        n: int,
        sampling_params: dict,
        trajectory: dict,
        host: Mapping[str, Any],
    ) -> None:
        """Start ``n`` correction sessions of one anchor, or count why there are none."""
        how = {"n": n, "step": trajectory["step"], "anchor": anchor.session, "validate": group.validate}
        ask = functools.partial(asked_of_anchor, **how)
        what = (anchor.prompt, anchor.text, anchor.others, self._prompt_of(group), self._cipo, group.counts)
        anchor.asked, refusal = await self._off_the_loop(ask, *what)
        if refusal is not None:
            group.counts[f"anchors/skipped/{refusal}"] += 1
            return
        group.anchors[number] = anchor
        kwargs = {key: value for key, value in anchor.prompt.items() if key not in (*OF_ONE_ROLLOUT, "raw_prompt")}
        kwargs |= {key: host[key] for key in OF_THE_HOST if key in host}
        group.tasks += [
            asyncio.create_task(
                self._run_correction(
                    group,
                    sampling_params,
                    trajectory,
                    uid=correction_group(group.uid, number),
                    session_id=i,
                    raw_prompt=asked.request.messages,
                    trace=False,
                    **kwargs,
                )
            )
            for i, asked in enumerate(anchor.asked)
        ]

    async def _run_correction(
        self, group: PromptGroup, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> None:
        """One correction session; a failure is logged and leaves no outcome."""
        uid, session = kwargs["uid"], kwargs["session_id"]
        timeout_s = self._cipo.correction_timeout
        with lost_alone(RowKey(uid, session).rollout, timeout_s=timeout_s, counts=group.counts):
            run = self._run_session(sampling_params, trajectory, **kwargs)
            await within(run, timeout_s, slept=group.ticket["coordinator"].slept.remote)
            return
        group.corrections.pop((GroupName.parse(uid).anchor, session), None)

    @staticmethod
    async def _settle(group: PromptGroup) -> None:
        if group.hosted:
            await group.hosted
        await asyncio.gather(*group.tasks, *group.further)
        # Sessions that raised or took too long, and those whose agent loop returned nothing.
        group.counts["corrections/failed_sessions"] += len(group.tasks) - len(group.corrections)


class CIPOAgentLoopWorker(CorrectsAttempts, AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker, with corrections."""
