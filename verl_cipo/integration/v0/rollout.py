"""Correction rollouts of the V0 trainer: a second dispatch to verl's agent-loop workers, once all attempts are in.

Further attempts that budget=auto makes whatever the verdicts are dispatched beside the attempts.

Seam: ``rollout.agent.agent_loop_manager_class`` names :class:`CIPOAgentLoopManagerV0`. verl's V0 trainer asks it for a
step's attempts in one call and takes exactly as many rows back, so the corrections, and with budget=auto the further
attempts in their place, stay here until the trainer (trainer.py) appends them to the batch.

A correction's uid is ``{uid}_c{session}``, uid and session of its anchor, as with the V1 trainers.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager

from verl_cipo.core.anchors import Attempt, Group, Outcome, anchor_budget, medium, select_anchors
from verl_cipo.core.keys import correction_group
from verl_cipo.core.rows import Mark
from verl_cipo.core.steering.budget import drawn_first
from verl_cipo.core.transitions import attempt_record, correction_record
from verl_cipo.integration.rollout.reports import Reports
from verl_cipo.integration.rollout.slots import Slots, StepSlots
from verl_cipo.integration.settings import cipo_config
from verl_cipo.integration.v0.material import materials, prompt_data
from verl_cipo.integration.v0.rows import NOTED, SESSION, marks, objects, places, prompt_ids, row_table
from verl_cipo.integration.v0.second_dispatch import Asked, further_attempts, request
from verl_cipo.integration.v0.worker import CIPOAgentLoopWorkerV0

logger = logging.getLogger("verl_cipo")


class CIPOAgentLoopManagerV0(AgentLoopManager):
    """verl's manager over :class:`CIPOAgentLoopWorkerV0`; the anchors are drawn when all attempts are verified."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.agent_loop_workers_class = ray.remote(CIPOAgentLoopWorkerV0)
        super().__init__(*args, **kwargs)
        self.rho = 0.0
        """Share of right attempts among the anchors of the next step; the trainer sets it."""
        self.shares: Mapping[str, float] | None = None
        """Of core.steering.budget, likewise; None with budget=fixed."""
        self._cipo = cipo_config(self.config)
        self._second: list[DataProto] = []
        self._reports = Reports()
        self._slots = Slots(self._cipo, self._reports)

    def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Roll out ``prompts``, ``n`` equal rows each, and correct them.

        Returns:
            the attempts, empty rows in the place of lost ones: verl takes as many rows as it asked for.
        """
        started = time.monotonic()
        prompts.non_tensor_batch[SESSION] = places(prompts.non_tensor_batch["uid"])
        if prompts.meta_info.get("validate", False):
            output = super().generate_sequences(prompts)
            self._correct_validation(prompts, output)
            return output
        slots, asked = self._begin(prompts), self._under_contexts(prompts)
        n = self._cipo.n_corrections or self.config.actor_rollout_ref.rollout.n
        begun = further_attempts(prompts, slots.begun.elements(), n, begun={})
        rolling = self._start(prompts, begun, priority=len(prompts))
        output = super().generate_sequences(asked)
        ended = time.monotonic()
        self._reports.step["seconds/rollout"] += ended - started
        if self._cipo.rolls_out:
            anchors, uids = self._select(output, slots, step=prompts.meta_info["global_steps"])
            further = further_attempts(prompts, uids, n, begun=slots.begun)
            counts = self._reports.step
            second = (
                self._correct_if_it_can(prompts, output, anchors, n, counts, further=further),
                self._begun_if_it_can(rolling, len(begun), counts),
            )
            self._second = [part for part in second if part is not None]
            self._reports.step["seconds/correction"] += time.monotonic() - ended
        self._reports.step.update(self._faults())
        return output

    def pop_second_dispatch(self) -> list[DataProto]:
        """Corrections and further attempts of the last step, in parts with the columns of a rollout."""
        second, self._second = self._second, []
        return second

    def pool_state(self) -> dict[str, Any] | None:
        """What rounding of the budget has left over, for a checkpoint; None with budget=fixed."""
        return {"budget": self._slots.carries} if self._cipo.moves_budget else None

    def restore_pool(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`pool_state`, of this manager or of the V1 trainers', returned."""
        self._slots.carries = dict(state.get("budget", {}))

    def pop_statistics(self) -> dict[str, float]:
        """``Reports.pop_step``: selection and fault counts since the last call."""
        return self._reports.pop_step()

    def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """``Reports.pop_validation``."""
        return self._reports.pop_validation()

    def _faults(self) -> Counter:
        faults: Counter = Counter()
        for counts in ray.get([worker.pop_counts.remote() for worker in self.agent_loop_workers]):
            faults.update(counts)  # a sum would leave out what is 0
        return faults

    def _under_contexts(self, prompts: DataProto) -> DataProto:
        """``prompts`` as they are asked: with the contexts that were drawn. Everything else asks the plain ones."""
        if not self._cipo.nudges:
            return prompts
        uids, sessions = prompts.non_tensor_batch["uid"], prompts.non_tensor_batch[SESSION]
        first = np.flatnonzero(sessions == 0)
        offered = [prompt_data(prompts, row, self._cipo.nudge.contexts) for row in first]
        how = {"n": int(sessions.max()) + 1, "step": prompts.meta_info["global_steps"]}
        of_uid = dict(zip(uids[first], self._shared_out("draw_contexts", offered, **how), strict=True))
        plain = prompts.non_tensor_batch["raw_prompt"]
        rows = list(zip([of_uid[uid] for uid in uids], sessions.tolist(), plain, strict=True))
        asked = {
            "raw_prompt": objects([contexts.asked(session, chat) for contexts, session, chat in rows]),
            NOTED: objects([contexts.noted(session) for contexts, session, _ in rows]),
        }
        return DataProto(prompts.batch, prompts.non_tensor_batch | asked, prompts.meta_info)

    def _shared_out(self, method: str, items: Sequence[Any], **how: Any) -> list[Any]:
        """What ``method`` of the workers makes of ``items``, each of a share, in their order."""
        shares = np.array_split(np.arange(len(items)), len(self.agent_loop_workers))
        made = ray.get(
            [
                getattr(worker, method).remote([items[i] for i in share], **how)
                for worker, share in zip(self.agent_loop_workers, shares, strict=True)
            ]
        )
        return [one for share in made for one in share]

    def _begin(self, prompts: DataProto) -> StepSlots:
        uids = list(dict.fromkeys(prompts.non_tensor_batch["uid"]))
        count = anchor_budget(len(uids), self._cipo.replay_fraction)
        return self._slots.begin(count, self.shares, step=prompts.meta_info["global_steps"], uids=uids)

    def _select(self, output: DataProto, slots: StepSlots, *, step: int) -> tuple[dict[int, Outcome | None], list[str]]:
        """The rows of ``output`` that are corrected, in their order, with the outcome of each one's prompt; and for
        each slot of further attempts that has not begun the uid of its prompt."""
        started = time.monotonic()
        groups, row_of = self._offered(output)
        band = {"delta_low": self._cipo.delta_low, "delta_high": self._cipo.delta_high}
        anchors = select_anchors(
            groups,
            budget=anchor_budget(len(groups), self._cipo.replay_fraction),
            rho=self.rho,
            seed=self._cipo.seed,
            step=step,
            first=drawn_first(self.shares, **band),
            **band,
        )
        in_band = {group.uid: medium(group.pass_rate, **band) for group in groups}
        outcomes = {group.uid: group.outcome for group in groups}
        for anchor in anchors:
            self._reports.count_anchor(anchor, in_band=in_band[anchor.uid])
        for group in groups:
            slots.add(group)
        drawn = [(anchor, outcomes[anchor.uid]) for anchor in sorted(anchors, key=row_of.__getitem__)]
        corrected, further = slots.divide(drawn)
        self._reports.step["seconds/selection"] += time.monotonic() - started
        anchored = {row_of[anchor]: outcome for (anchor, outcome), own in zip(drawn, corrected, strict=True) if own}
        return anchored, further

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
                correctable = self._can_be_corrected(noted[row], self._reports.step)
                if self._cipo.wrong_alone and attempt.correct:
                    correctable = False
                attempts.append(replace(attempt, correctable=correctable))
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
        self,
        prompts: DataProto,
        output: DataProto,
        anchors: Mapping[int, Outcome | None],
        n: int,
        counts: Counter,
        *,
        further: Sequence[Asked] = (),
    ) -> DataProto | None:
        """Roll out ``n`` corrections of each of the rows ``anchors`` and the ``further`` attempts; what fails or fits
        no prompt is counted.

        An error, in a chat template say, costs these rows and no others.
        """
        try:
            corrections = self._corrections(prompts, output, anchors, n, counts)
            rolled = self._rolled(self._start(prompts, [*further, *corrections]))
            made = sum(not mark.further for part in rolled for mark in marks(part))
            counts["corrections/failed_sessions"] += len(corrections) - made
            return DataProto.concat(rolled) if rolled else None
        except Exception:
            logger.exception(
                "the corrections of %d attempts were lost, the attempts are kept as they are", len(anchors)
            )
            counts["corrections/failed_sessions"] += len(anchors) * n
            counts["attempts/failed_sessions"] += len(further)
            return None

    def _begun_if_it_can(self, rolling: Sequence[ray.ObjectRef], sessions: int, counts: Counter) -> DataProto | None:
        """What has become of the ``sessions`` that began with the attempts; an error costs these rows."""
        try:
            rolled = self._rolled(rolling)
            return DataProto.concat(rolled) if rolled else None
        except Exception:
            logger.exception("%d further attempts were lost, the other rows are kept as they are", sessions)
            counts["attempts/failed_sessions"] += sessions
            return None

    def _corrections(
        self, prompts: DataProto, output: DataProto, anchors: Mapping[int, Outcome | None], n: int, counts: Counter
    ) -> list[Asked]:
        """``n`` sessions for each of the rows ``anchors`` that has a correction prompt; the others are counted."""
        fields, noted = prompts.non_tensor_batch, marks(output)
        step, validate = prompts.meta_info["global_steps"], prompts.meta_info.get("validate", False)
        alone = validate or self._cipo.prompt.attempts == 1
        column = self._cipo.nudge.contexts if self._cipo.nudge.corrections else None
        offered = materials(prompts, output, anchors, alone=alone, column=column)
        built = self._shared_out("build_prompts", offered, n=n, step=step, validate=validate)
        sessions = []
        for row, (asked, refusal) in zip(anchors, built, strict=True):
            if refusal is not None:
                counts[f"anchors/skipped/{refusal}"] += 1
            anchor = {"correct": noted[row].correct, "prompt_ids": prompt_ids(output, row), "outcome": anchors[row]}
            uid = correction_group(fields["uid"][row], fields[SESSION][row])
            for session, one in enumerate(asked):
                own = anchor | {"shown": one.request.shown, "context": one.context}
                sessions.append(Asked(row, uid, session, one.request.messages, own))
        return sessions

    def _start(self, prompts: DataProto, asked: Sequence[Asked], *, priority: int = 0) -> list[ray.ObjectRef]:
        """Let the workers roll ``asked`` out, each a share; priority: of the first."""
        if not asked:
            return []
        whole = request(prompts, asked, priority=priority)
        workers = self.agent_loop_workers
        parts = [part for part in np.array_split(np.arange(len(asked)), len(workers)) if len(part)]
        return [
            worker.generate_sequences.remote(whole.select_idxs(part))
            for worker, part in zip(workers, parts, strict=False)
        ]

    @staticmethod
    def _rolled(rolling: Sequence[ray.ObjectRef]) -> list[DataProto]:
        """What workers have rolled out; without those of which nothing is left."""
        rolled = [part for part in ray.get(list(rolling)) if part.batch is not None]
        for part in rolled:
            del part.meta_info["metrics"]
        return rolled

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
        turns = self._correct_if_it_can(prompts, output, dict.fromkeys(correctable), n, counts) if n else None
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
                    score=mark.score,
                    corrections=own,
                    second=mark.second,
                )
            )
        self._reports.add_validation(records, counts + self._faults())
