"""One asyncio actor that sees the groups of all rollout workers and decides which attempts become anchors.

Workers report a group when its attempts are verified. With `schedule` streaming and barrier they then ask for anchors
until the selection of their batch is complete; with replay they ask at the start, and are given those of the step
before. With `budget: auto` they are also told how many further attempts to make in place of corrections; those that
are made whatever the verdicts at the start. The decisions themselves are the pure ``core.anchors.AnchorSelector``,
``core.replay.ReplayPool`` and ``core.steering.budget``; here is only who hears of them and when.

Where verl filters groups, all dispatches of a step are one batch: a prompt that will be evicted ends at once, and
anchors are drawn among the first `train_batch_size` prompts that stay, which are admitted.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from verl_cipo.core.anchors import (
    AnchorSelector,
    Attempt,
    Carry,
    Group,
    anchor_budget,
    carried_quotas,
    medium,
    quotas,
    rounded,
)
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.replay import Candidate, ReplayPool
from verl_cipo.core.steering.budget import drawn_first
from verl_cipo.integration.rollout.awake import AwakeClock
from verl_cipo.integration.rollout.reports import Reports
from verl_cipo.integration.rollout.slots import Order, Slots, StepSlots

logger = logging.getLogger("verl_cipo")


@dataclass
class _Batch:
    """The prompts of one ``generate_sequences`` call."""

    opened: float
    uids: list[str]
    heard_at: float
    """When a group last reported, by the clock that stands still while the engines sleep."""
    open_groups: int
    """Groups whose corrections have not ended."""
    unreported: int
    """Groups whose attempts have not ended."""
    selector: AnchorSelector | None
    """None with schedule=replay."""
    hosted: dict[str, list[tuple[Candidate, bool]]]
    """uid -> anchors of the step before whose slots are rolled out beside this prompt's attempts, and for each whether
    it is corrected."""
    step: int
    slots: StepSlots
    """None of them with schedule=replay, which divides its own at the start."""
    decided: dict[str, asyncio.Queue] = field(default_factory=dict)
    """uid -> orders; None ends them."""
    groups: dict[str, Group] = field(default_factory=dict)
    """uid -> attempts; empty with schedule=replay."""
    reported_at: float = 0.0
    """When the last anchors were drawn; before, 0."""
    admitted: set[str] | None = None
    """Prompts that stay in the step; None where none is evicted, and with schedule=replay, where it does not matter."""
    claimed: int = 0
    """Those of them that are kept although they are all wrong."""

    @property
    def drawn(self) -> bool:
        """Whether no more anchors will come."""
        if self.admitted is None or self.selector is None:
            return self.unreported == 0
        return self.selector.complete

    def join(self, uids: list[str], now: float) -> None:
        """Take the prompts of a further dispatch of the step in."""
        self.uids = self.uids + uids
        self.open_groups += len(uids)
        self.unreported += len(uids)
        self.heard_at = now


class AnchorCoordinator:
    """Selects anchors over all workers. Methods are coroutines of one event loop, so no locks are needed.

    Args:
        config: ``algorithm.cipo`` as a plain mapping (it crosses a process boundary).
        train_batch_size: prompts a step; bounds the pool of schedule=replay. Dispatches of fewer share what rounding
            leaves over, see ``core.anchors.carried_quotas``.
        filters: whether verl evicts prompts, as ``Group.evicted`` says of each.
    """

    def __init__(self, config: dict[str, Any], train_batch_size: int, *, filters: bool = False):
        # That of a trainer is resolved in every config that a worker reads.
        self.config = CIPOConfig.from_mapping(config).scheduled(asynchronous=False)
        self._band = {"delta_low": self.config.delta_low, "delta_high": self.config.delta_high}
        self._train_batch_size = train_batch_size
        self._carry = Carry()
        # One more than a step's, since dispatches may carry one over.
        self._capacity = anchor_budget(train_batch_size, self.config.replay_fraction) + 1
        self._batches: dict[int, _Batch] = {}
        self._reports = Reports()
        self._slots = Slots(self.config, self._reports)
        self._clock = AwakeClock()
        self._filters = filters
        self._of_step: _Batch | None = None
        """That of the step which draws among what verl's filter leaves."""
        self._step = -1
        self._ready = self._filling = self._new_pool(self._step, None)

    def _new_pool(self, step: int, shares: Mapping[str, float] | None) -> ReplayPool:
        first = drawn_first(shares, **self._band)
        return ReplayPool(capacity=self._capacity, seed=self.config.seed, step=step, first=first, **self._band)

    async def open(
        self,
        batch_id: int,
        *,
        uids: list[str],
        rho: float,
        step: int,
        shares: Mapping[str, float] | None = None,
        replaces: int = 0,
    ) -> None:
        """Announce a batch of prompts before any of them can finish.

        Args:
            rho: share of right anchors.
            shares: of ``core.steering.budget``; None with budget=fixed.
            replaces: how many of the prompts stand in for evicted ones: they add no anchors to the step.
        """
        if self._filters:
            self._reports.step["filter/dispatched"] += len(uids)
        if self._of_step is not None and self._of_step.step == step:
            self._of_step.join(uids, self._clock.time())
            self._batches[batch_id] = self._of_step
            return
        among = self._train_batch_size if self._filters else len(uids)
        quota = self._quota(len(uids) - replaces if self.config.replays else among, rho)
        selector, hosted, slots = None, {}, self._slots.begin(0, shares, step=step)
        if self.config.replays:
            hosted = self._replay(uids, quota, step, shares)
        else:
            selector = AnchorSelector(
                schedule=self.config.schedule,
                n_groups=among,
                budget=sum(quota.values()),
                quota=quota,
                rho=rho,
                seed=self.config.seed,
                step=step,
                first=drawn_first(shares, **self._band),
                **self._band,
            )
            # Where verl evicts prompts, it is not known yet which ones stay.
            slots = self._slots.begin(sum(quota.values()), shares, step=step, uids=() if self._filters else uids)
        batch = self._batches[batch_id] = _Batch(
            opened=time.monotonic(),
            heard_at=self._clock.time(),
            uids=uids,
            open_groups=len(uids),
            unreported=len(uids),
            selector=selector,
            hosted=hosted,
            step=step,
            slots=slots,
        )
        if self._filters and selector is not None:
            batch.admitted, self._of_step = set(), batch
            self._reports.step["filter/kept_all_wrong"] += 0
            self._reports.step["filter/evicted_all_wrong"] += 0

    def _quota(self, n_prompts: int, rho: float) -> dict[bool, int]:
        """Right and wrong anchors of a dispatch; that of a whole training batch is rounded by itself."""
        fraction = self.config.replay_fraction
        if n_prompts >= self._train_batch_size:
            return quotas(anchor_budget(n_prompts, fraction), rho)
        quota, self._carry = carried_quotas(n_prompts, replay_fraction=fraction, rho=rho, carry=self._carry)
        return quota

    def _replay(
        self, uids: list[str], quota: Mapping[bool, int], step: int, shares: Mapping[str, float] | None
    ) -> dict[str, list[tuple[Candidate, bool]]]:
        """Draw anchors from the groups that were reported before this step began, evenly over the prompts.

        Where none was, since an asynchronous trainer had prompts left over, those that the step before has left.
        """
        if step > self._step:
            self._ready = self._filling if len(self._filling) else self._ready
            self._step, self._filling = step, self._new_pool(step, shares)
        started = time.monotonic()
        anchors = self._ready.take(quota)
        self._reports.step["seconds/selection"] += time.monotonic() - started
        corrected = self._slots.divide([(a.attempt, a.outcome) for a in anchors], shares, step=step)
        hosted: dict[str, list[tuple[Candidate, bool]]] = {}
        for i, anchor in enumerate(anchors):
            hosted.setdefault(uids[i % len(uids)], []).append((anchor, corrected[i]))
            had = anchor.outcome
            self._reports.count_anchor(anchor.attempt, in_band=had is not None and medium(had.pass_rate, **self._band))
        return hosted

    async def hosted(self, batch_id: int, uid: str) -> Order:
        """What prompt ``uid`` starts with its attempts: further ones, and with schedule=replay corrections."""
        batch = self._batches[batch_id]
        hosted = batch.hosted.get(uid, [])
        anchors = [candidate for candidate, corrected in hosted if corrected]
        return Order(anchors, len(hosted) - len(anchors) + batch.slots.begun[uid])

    async def add(self, batch_id: int, group: Group, payloads: Mapping[int, Any]) -> None:
        """Report a finished group; wakes every group that thereby got anchors.

        Args:
            payloads: session -> what the pool of schedule=replay must remember; empty with the others.
        """
        batch = self._batches[batch_id]
        if group.uid not in batch.decided:
            self._report(batch, group, payloads)

    def _report(self, batch: _Batch, group: Group, payloads: Mapping[int, Any]) -> None:
        batch.heard_at = self._clock.time()
        batch.unreported -= 1
        if batch.selector is None:
            if not group.evicted:
                self._filling.add(group, payloads)
        else:
            self._select(batch, batch.selector, group)
        if batch.drawn and not batch.reported_at:
            self._end_draw(batch)

    def _end_draw(self, batch: _Batch) -> None:
        batch.reported_at = time.monotonic()
        self._reports.step["seconds/rollout"] += batch.reported_at - batch.opened
        for queue in batch.decided.values():
            queue.put_nowait(None)

    def _select(self, batch: _Batch, selector: AnchorSelector, group: Group) -> None:
        queue = batch.decided[group.uid] = asyncio.Queue()
        owed = self._owed(batch, selector, group)
        if batch.admitted is not None:
            evicted = group.evicted and not owed
            if selector.complete or not group.attempts or evicted:
                counts = evicted and not selector.complete and group.pass_rate == 0
                self._reports.step["filter/evicted_all_wrong"] += counts
                queue.put_nowait(None)
                return
            batch.admitted.add(group.uid)
            batch.claimed += owed
            self._reports.step["filter/kept_all_wrong"] += owed
        batch.groups[group.uid] = group
        batch.slots.add(group)
        started = time.monotonic()
        anchors = selector.add(group, owed=owed)
        self._reports.step["seconds/selection"] += time.monotonic() - started
        self._order(batch, anchors, kept=group.uid if owed else None)

    def _owed(self, batch: _Batch, selector: AnchorSelector, group: Group) -> bool:
        """Whether a prompt that verl would evict is kept for an anchor of its own, see keep_all_wrong."""
        most = rounded(self.config.keep_all_wrong * self._train_batch_size)
        correctable = group.pass_rate == 0 and any(attempt.correctable for attempt in group.attempts)
        return group.evicted and correctable and batch.claimed < most and selector.wrong_left > 0

    def _order(self, batch: _Batch, anchors: list[Attempt], *, kept: str | None = None) -> None:
        """Tell the prompts of the anchors to correct them, or others to make further attempts; kept: see Slots."""
        asked = [(anchor, batch.groups[anchor.uid].outcome) for anchor in anchors]
        corrected, uids = batch.slots.divide(asked, kept=kept)
        sessions: dict[str, list[int]] = {}
        for anchor, own in zip(anchors, corrected, strict=True):
            if own:
                sessions.setdefault(anchor.uid, []).append(anchor.session)
            self._reports.count_anchor(anchor, in_band=medium(batch.groups[anchor.uid].pass_rate, **self._band))
        further = Counter(uids)
        for uid in {**sessions, **further}:
            batch.decided[uid].put_nowait(Order(sessions.get(uid, []), further[uid]))

    async def next(self, batch_id: int, uid: str) -> Order | None:
        """What group ``uid`` is to roll out next, or None when there will be no more.

        Groups of which nothing is heard for ``report_timeout`` seconds, with the engines awake, are taken for empty.
        """
        batch = self._batches[batch_id]
        while not batch.drawn:
            left = batch.heard_at + self.config.report_timeout - self._clock.time()
            try:
                return await asyncio.wait_for(batch.decided[uid].get(), self._clock.wait(left))
            except asyncio.TimeoutError:  # noqa: UP041, another class than TimeoutError in Python 3.10
                if self._clock.time() >= batch.heard_at + self.config.report_timeout:
                    self._give_up(batch)
        return await batch.decided[uid].get()

    def _give_up(self, batch: _Batch) -> None:
        missing = [uid for uid in batch.uids if uid not in batch.decided]
        if batch.admitted is not None and not missing:
            logger.error(
                "nothing has come for %g s (report_timeout) in place of evicted prompts: anchors are drawn among the "
                "%d that stay",
                self._clock.time() - batch.heard_at,
                len(batch.admitted),
            )
            self._draw_rest(batch)
            return
        logger.error(
            "%d of %d prompts have not reported, the last to do so did %g s ago (report_timeout): anchors are drawn "
            "without %s",
            len(missing),
            len(batch.uids),
            self._clock.time() - batch.heard_at,
            ", ".join(missing),
        )
        self._reports.step["anchors/unreported"] += len(missing)
        for uid in missing:
            self._report(batch, Group(uid=uid, attempts=()), {})

    def _draw_rest(self, batch: _Batch) -> None:
        if batch.selector is not None and not batch.drawn:
            self._order(batch, batch.selector.finish())
            self._end_draw(batch)

    async def admitted(self) -> set[str]:
        """Prompts of the step whose attempts have ended and that stay in it; empty where no groups are filtered."""
        return set() if self._of_step is None else self._of_step.admitted or set()

    async def draw_rest(self) -> None:
        """The step has all prompts that it takes: anchors are drawn among those that were admitted."""
        if self._of_step is not None:
            self._draw_rest(self._of_step)

    async def close(self, batch_id: int | None, uid: str, counts: dict[str, float]) -> None:
        """Group ``uid`` and its corrections have ended; ``counts`` are added to the step's statistics."""
        self._reports.step.update(counts)
        batch = self._batches.get(batch_id)
        if batch is None:
            # A dispatch of no anchors, or one from before this actor was started anew.
            return
        batch.hosted.pop(uid, None)
        batch.open_groups -= 1
        if batch.open_groups == 0 and batch.drawn:
            self._reports.step["seconds/correction"] += time.monotonic() - batch.reported_at
            self._batches = {name: other for name, other in self._batches.items() if other is not batch}

    async def add_validation(self, records: list[dict[str, Any]], counts: dict[str, float]) -> None:
        """``Reports.add_validation``, of one validation prompt."""
        self._reports.add_validation(records, counts)

    async def engines_sleep(self) -> None:
        """The rollout engines sleep while verl trains: no timeout runs."""
        self._clock.sleep()

    async def engines_wake(self) -> None:
        """The rollout engines go on."""
        self._clock.wake()

    async def slept(self, last: float) -> float:
        """How many of the ``last`` seconds the rollout engines slept."""
        return self._clock.slept(last)

    async def pop_statistics(self) -> dict[str, float]:
        """``Reports.pop_step``."""
        return self._reports.pop_step()

    async def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """``Reports.pop_validation``."""
        return self._reports.pop_validation()

    async def pool_state(self) -> dict[str, Any]:
        """The pool of schedule=replay for a checkpoint, and what rounding of anchors and of the budget has left over.

        Anchors whose slots are under way, which only an asynchronous trainer has at a checkpoint, go back into
        it: verl dispatches the prompts that host them again. What ends while verl saves is in neither.
        """
        hosted = [anchor for batch in self._batches.values() for part in batch.hosted.values() for anchor, _ in part]
        return {
            "step": self._step,
            "ready": self._ready.candidates(),
            "filling": self._filling.candidates() + hosted,
            "carry": asdict(self._carry),
            "budget": self._slots.carries,
        }

    async def restore_pool(self, state: dict[str, Any]) -> None:
        """Put back what ``pool_state`` returned, now or before it had a carry or a budget; V0's has a budget alone."""
        self._step = state.get("step", self._step)
        self._carry = Carry(**state.get("carry", {}))
        self._slots.carries = dict(state.get("budget", {}))
        self._ready, self._filling = self._new_pool(self._step - 1, None), self._new_pool(self._step, None)
        for pool, name in ((self._ready, "ready"), (self._filling, "filling")):
            # One that was saved with verdict=hidden has right attempts.
            found = state.get(name, ())
            pool.restore(c for c in found if not (self.config.wrong_alone and c.attempt.correct))
