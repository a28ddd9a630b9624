"""Correction rollouts of the V0 trainer: a second dispatch to verl's agent-loop workers, once all attempts are in.

Seam: ``rollout.agent.agent_loop_manager_class`` names :class:`CIPOAgentLoopManagerV0`. verl's V0 trainer asks it for a
step's attempts in one call and takes exactly as many rows back, so the corrections stay here until the trainer
(trainer.py) appends them to the batch. The workers are :class:`CIPOAgentLoopWorkerV0`, which overrides

* ``_run_agent_loop``: marks each row with what it is, and lets a session that fails cost nothing but its own row,
* ``_compute_score``: asks a verifier that failed again, and the second verifier beside it,
* ``_postprocess``: leaves failed corrections out, and puts empty rows in the place of failed attempts, which the
  trainer drops before it trains.

A correction's uid is ``{uid}_c{session}``, uid and session of its anchor, as with the V1 trainers.
"""

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopOutput, AgentLoopWorker

from verl_cipo.core.anchors import Attempt, Group, anchor_budget, medium, select_anchors
from verl_cipo.core.draws import origin
from verl_cipo.core.prompts import Request
from verl_cipo.core.rows import MARK, GroupName, Mark, RowKey, correction_group
from verl_cipo.core.transitions import attempt_record, correction_record
from verl_cipo.core.verdict import verdict
from verl_cipo.integration.rollout.cancelling import EndsRequests
from verl_cipo.integration.rollout.groups import asked_again, lost_alone, read_attempts
from verl_cipo.integration.rollout.reports import Reports
from verl_cipo.integration.rollout.second import SecondVerifier
from verl_cipo.integration.rollout.seeds import seeded
from verl_cipo.integration.rollout.verify import verify
from verl_cipo.integration.rollout.worker import NoRowsError, agent_loop_prompt
from verl_cipo.integration.settings import cipo_config
from verl_cipo.integration.v0.rows import (
    SESSION,
    LostAttempt,
    marks,
    objects,
    places,
    prompt_ids,
    response_ids,
    row_table,
    unpadded,
    unpadded_prompt,
)

logger = logging.getLogger("verl_cipo")

ANCHOR = "__cipo_anchor__"
"""Column of a dispatched correction: ``correct`` and ``prompt_ids`` of the attempt that it corrects, and what is
``shown`` of it."""
SECOND = "__cipo_second__"
"""Field of an output: the second verifier's verdict, until the row is marked."""


class CIPOAgentLoopWorkerV0(EndsRequests, AgentLoopWorker):
    """verl's worker of the V0 trainer, which knows corrections from attempts."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._cipo = cipo_config(self.config)
        self._prompt = agent_loop_prompt(self, self._cipo)
        self._second = SecondVerifier.of(self._cipo, self.tokenizer)
        self._counts: Counter = Counter()

    async def build_prompts(
        self, anchors: Sequence[tuple[list[dict], list[int]]]
    ) -> list[tuple[Request | None, str | None]]:
        """The correction prompt of each attempt, or the reason why there is none.

        Args:
            anchors: of each attempt its prompt's chat and its response tokens.
        """
        return [self._prompt.request(list(chat), self._prompt.decode(ids)) for chat, ids in anchors]

    async def pop_counts(self) -> Counter:
        """Faults since the last call."""
        counts, self._counts = self._counts, Counter()
        return counts

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        session, anchor = kwargs.pop(SESSION), kwargs.pop(ANCHOR, None)
        uid = kwargs["uid"]
        sampling_params = seeded(
            sampling_params,
            trajectory,
            self.config.actor_rollout_ref.rollout,
            index=kwargs["index"],
            anchor=GroupName.parse(uid).anchor,
            session=session,
        )
        run = super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        validate = trajectory["validate"]
        columns = {"uid": uid, SESSION: session, "index": kwargs["index"]}
        name = RowKey(uid, session).rollout
        if anchor is None:
            try:
                output = await run
                mark = await asyncio.to_thread(self._mark_of_attempt, output, kwargs, validate=validate)
            except Exception:
                self._counts["attempts/failed_sessions"] += 1
                logger.exception("attempt %s failed; its row is missing", name)
                return LostAttempt({**columns, "raw_prompt": kwargs["raw_prompt"]})
        else:
            mark = None
            timeout_s = self._cipo.correction_timeout
            with lost_alone(name, timeout_s=timeout_s, counts=self._counts):
                output = await asyncio.wait_for(run, timeout_s)
                mark = await asyncio.to_thread(self._mark_of_correction, output, kwargs, anchor, validate=validate)
            if mark is None:
                return None
        output.extra_fields |= columns | {MARK: mark.to_mapping()}
        return output

    def _verdict(self, output: Any, prompt: Mapping[str, Any]) -> bool:
        extra = output.extra_fields.get("reward_extra_info")
        return verdict(output.reward_score, extra, self._cipo.threshold(prompt.get("data_source")))

    def _mark_of_attempt(self, output: Any, prompt: dict[str, Any], *, validate: bool) -> Mark:
        """What the row is, and why no correction prompt can be made of it, where none can; ``output`` is padded."""
        mark = Mark(
            correct=self._verdict(output, prompt),
            origin=origin(prompt.get("data_source"), prompt["raw_prompt"]),
            second=output.extra_fields.pop(SECOND, None),
        )
        response = unpadded(output.response_ids[0], output.attention_mask[0])
        if self._cipo.val_corrections > 0 if validate else self._cipo.rolls_out:
            (text,), (refusal,) = read_attempts(self._prompt, prompt["raw_prompt"], [response])
            mark = replace(mark, refusal=refusal)
        elif validate and self._cipo.reports_validation:
            text = self._prompt.decode(response)
        else:
            return mark
        return replace(mark, text=text, score=float(output.reward_score)) if validate else mark

    def _mark_of_correction(
        self, output: Any, prompt: dict[str, Any], anchor: dict[str, Any], *, validate: bool
    ) -> Mark:
        """What the row is; ``output`` is padded."""
        text = self._prompt.decode(unpadded(output.response_ids[0], output.attention_mask[0]))
        if asked_again(unpadded_prompt(output.prompt_ids[0], output.attention_mask[0]), anchor["prompt_ids"]):
            self._counts["corrections/not_asked"] += 1
            logger.error("a correction asked the plain prompt again: its agent loop ignores raw_prompt")
        return Mark(
            correct=self._verdict(output, prompt),
            anchor=GroupName.parse(prompt["uid"]).anchor,
            anchor_correct=anchor["correct"],
            copied=self._prompt.repeats(anchor["shown"], text),
            text=text if validate else None,
            score=float(output.reward_score) if validate else None,
            second=output.extra_fields.pop(SECOND, None),
        )

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        def count(name: str) -> None:
            self._counts[name] += 1

        second, _ = await asyncio.gather(
            self._second.ask(outputs[-1], kwargs, counts=self._counts, session=kwargs["uid"]),
            verify(
                functools.partial(super()._compute_score, outputs, kwargs),
                outputs[-1],
                retries=self._cipo.verifier_retries,
                count=count,
                session=kwargs["uid"],
            ),
        )
        outputs[-1].extra_fields[SECOND] = second

    def _postprocess(self, inputs: list, *args: Any, **kwargs: Any) -> DataProto:
        kept = [output for output in inputs if output is not None]
        rolled = [output for output in kept if not isinstance(output, LostAttempt)]
        if kept and not rolled:
            raise NoRowsError(f"all {len(kept)} attempts of a rollout worker failed; the log above says why")
        rows = [
            output.row(rolled, pad_token_id=self.tokenizer.pad_token_id) if isinstance(output, LostAttempt) else output
            for output in kept
        ]
        return super()._postprocess(rows, *args, **kwargs) if rows else DataProto()


class CIPOAgentLoopManagerV0(AgentLoopManager):
    """verl's manager over :class:`CIPOAgentLoopWorkerV0`; the anchors are drawn when all attempts are verified."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.agent_loop_workers_class = ray.remote(CIPOAgentLoopWorkerV0)
        super().__init__(*args, **kwargs)
        self.rho = 0.0
        """Share of correct attempts among the anchors of the next step; the trainer sets it."""
        self._cipo = cipo_config(self.config)
        self._corrections: DataProto | None = None
        self._reports = Reports()

    def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Roll out ``prompts``, ``n`` equal rows each, and correct them.

        Returns:
            the attempts, empty rows in the place of lost ones: verl takes as many rows as it asked for.
        """
        started = time.monotonic()
        prompts.non_tensor_batch[SESSION] = places(prompts.non_tensor_batch["uid"])
        output = super().generate_sequences(prompts)
        ended = time.monotonic()
        if prompts.meta_info.get("validate", False):
            self._correct_validation(prompts, output)
            return output
        self._reports.step["seconds/rollout"] += ended - started
        if self._cipo.rolls_out:
            anchors = self._select(output, step=prompts.meta_info["global_steps"])
            n = self._cipo.n_corrections or self.config.actor_rollout_ref.rollout.n
            self._corrections = self._correct_if_it_can(prompts, output, anchors, n, self._reports.step)
            self._reports.step["seconds/correction"] += time.monotonic() - ended
        self._reports.step.update(self._faults())
        return output

    def pop_corrections(self) -> DataProto | None:
        """The corrections of the last step's attempts, with the columns of a rollout; None when there are none."""
        corrections, self._corrections = self._corrections, None
        return corrections

    def pop_statistics(self) -> dict[str, float]:
        """``Reports.pop_step``: selection and fault counts since the last call."""
        return self._reports.pop_step()

    def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """``Reports.pop_validation``."""
        return self._reports.pop_validation()

    def _faults(self) -> Counter:
        return sum(ray.get([worker.pop_counts.remote() for worker in self.agent_loop_workers]), Counter())

    def _select(self, output: DataProto, *, step: int) -> list[int]:
        """The rows of ``output`` that become anchors, in their order."""
        started = time.monotonic()
        groups, row_of = self._offered(output)
        band = {"delta_low": self._cipo.delta_low, "delta_high": self._cipo.delta_high}
        anchors = select_anchors(
            groups,
            budget=anchor_budget(len(groups), self._cipo.replay_fraction),
            rho=self.rho,
            seed=self._cipo.seed,
            step=step,
            **band,
        )
        in_band = {group.uid: medium(group.pass_rate, **band) for group in groups}
        for anchor in anchors:
            self._reports.count_anchor(anchor, in_band=in_band[anchor.uid])
        self._reports.step["seconds/selection"] += time.monotonic() - started
        return sorted(row_of[anchor] for anchor in anchors)

    def _offered(self, output: DataProto) -> tuple[list[Group], dict[Attempt, int]]:
        """The attempts by prompt, those marked that cannot be corrected, which are counted; and the row of each."""
        table, noted = row_table(output), marks(output)
        found, key_of = table.attempts()
        place = {key: row for row, key in enumerate(table.keys)}
        groups, row_of = [], {}
        for group in found:
            attempts = []
            for attempt in group.attempts:
                row = place[key_of[attempt]]
                if noted[row].lost:
                    continue
                attempts.append(replace(attempt, correctable=self._can_be_corrected(noted[row], self._reports.step)))
                row_of[attempts[-1]] = row
            groups.append(Group(group.uid, tuple(attempts)))
        return groups, row_of

    @staticmethod
    def _can_be_corrected(mark: Mark, counts: Counter) -> bool:
        """Whether a worker found that a correction prompt can be made of an attempt; else its reason is counted."""
        if mark.refusal is not None:
            counts[f"anchors/skipped/{mark.refusal}"] += 1
        return mark.refusal is None

    def _correct_if_it_can(
        self, prompts: DataProto, output: DataProto, anchors: list[int], n: int, counts: Counter
    ) -> DataProto | None:
        """:meth:`_correct`; an error there, in a chat template say, costs the corrections and never an attempt."""
        try:
            return self._correct(prompts, output, anchors, n, counts)
        except Exception:
            logger.exception(
                "the corrections of %d attempts were lost, the attempts are kept as they are", len(anchors)
            )
            counts["corrections/failed_sessions"] += len(anchors) * n
            return None

    def _correct(
        self, prompts: DataProto, output: DataProto, anchors: list[int], n: int, counts: Counter
    ) -> DataProto | None:
        """Roll out ``n`` corrections of each of the rows ``anchors``; what fails or fits no prompt is counted."""
        fields, noted = prompts.non_tensor_batch, marks(output)
        shown = [(list(fields["raw_prompt"][row]), response_ids(output, row)) for row in anchors]
        source, chats, columns = [], [], []
        for row, (built, skipped) in zip(anchors, self._build_prompts(shown), strict=True):
            if built is None:
                counts[f"anchors/skipped/{skipped}"] += 1
                continue
            anchor = {"correct": noted[row].correct, "shown": built.shown, "prompt_ids": prompt_ids(output, row)}
            source += [row] * n
            chats += [built.messages] * n
            columns += [anchor] * n
        if not source:
            return None
        request = prompts.select_idxs(np.array(source))
        uids = zip(request.non_tensor_batch["uid"], request.non_tensor_batch[SESSION], strict=True)
        request.non_tensor_batch |= {
            "uid": objects([correction_group(uid, session) for uid, session in uids]),
            SESSION: np.arange(len(source)) % n,
            "raw_prompt": objects(chats),
            ANCHOR: objects(columns),
            "priority": np.arange(len(source), dtype=np.int64),
        }
        workers = self.agent_loop_workers
        parts = [part for part in np.array_split(np.arange(len(source)), len(workers)) if len(part)]
        outputs = ray.get(
            [
                worker.generate_sequences.remote(request.select_idxs(part))
                for worker, part in zip(workers, parts, strict=False)
            ]
        )
        whole = [part for part in outputs if part.batch is not None]
        for part in whole:
            del part.meta_info["metrics"]
        counts["corrections/failed_sessions"] += len(source) - sum(len(part) for part in whole)
        return DataProto.concat(whole) if whole else None

    def _build_prompts(self, shown: list[tuple[list[dict], list[int]]]) -> list[tuple[Request | None, str | None]]:
        """``build_prompts`` of the workers, each with a share."""
        shares = np.array_split(np.arange(len(shown)), len(self.agent_loop_workers))
        built = ray.get(
            [
                worker.build_prompts.remote([shown[i] for i in share])
                for worker, share in zip(self.agent_loop_workers, shares, strict=True)
            ]
        )
        return [one for share in built for one in share]

    def _correct_validation(self, prompts: DataProto, output: DataProto) -> None:
        n = self._cipo.val_corrections
        if not self._cipo.reports_validation:
            # Nobody asks for the validation's counts.
            self._reports.step.update(self._faults())
            return
        sessions = prompts.non_tensor_batch[SESSION]
        # verl repeats rows to fill the last dispatch up: they look like further sessions of their prompt.
        rolled = np.flatnonzero(sessions < self.config.actor_rollout_ref.rollout.val_kwargs.n).tolist()
        noted = marks(output)
        attempts = [row for row in rolled if not noted[row].lost]
        counts: Counter = Counter()
        correctable = [row for row in attempts if self._can_be_corrected(noted[row], counts)]
        turns = self._correct_if_it_can(prompts, output, correctable, n, counts) if n else None
        corrections: dict[str, list[dict[str, Any]]] = {}
        if turns is not None:
            for uid, mark in zip(turns.non_tensor_batch["uid"], marks(turns), strict=True):
                turn = correction_record(
                    mark.text, correct=mark.correct, score=mark.score, copied=mark.copied, second=mark.second
                )
                corrections.setdefault(uid, []).append(turn)
        records = []
        for row in attempts:
            prompt = {key: values[row] for key, values in prompts.non_tensor_batch.items()}
            mark, session = noted[row], int(sessions[row])
            own = corrections.get(correction_group(prompt["uid"], session), [])
            records.append(
                attempt_record(
                    prompt,
                    session=session,
                    text=mark.text,
                    correct=mark.correct,
                    corrections=own,
                    second=mark.second,
                )
            )
        self._reports.add_validation(records, counts + self._faults())
