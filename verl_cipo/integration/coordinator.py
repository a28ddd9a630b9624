"""One asyncio actor that sees the groups of all rollout workers and decides which attempts become anchors.

Workers report a group when its attempts are verified and ask for anchors until the selection of their batch is
complete. The decision itself is the pure ``core.anchors.AnchorSelector``; here is only who hears of it and when.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from verl_cipo.core.anchors import AnchorSelector, Group, anchor_budget, medium
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import SKIP_REASONS

COUNTED = dict.fromkeys(
    (
        "anchors/total",
        "anchors/correct",
        "anchors/failed",
        "anchors/medium",
        "anchors/other",
        *(f"anchors/skipped/{reason}" for reason in SKIP_REASONS),
        "corrections/failed_sessions",
    ),
    0,
)
"""Counts that are logged every step, also where nothing happened."""


@dataclass
class _Batch:
    """The prompts of one ``generate_sequences`` call."""

    selector: AnchorSelector
    opened: float
    decided: dict[str, asyncio.Queue] = field(default_factory=dict)
    """uid -> lists of sessions to correct; None ends them."""
    pass_rates: dict[str, float] = field(default_factory=dict)
    selected_at: float = 0.0
    open_groups: int = 0
    """Groups whose corrections have not ended."""


class AnchorCoordinator:
    """Selects anchors over all workers. Methods are coroutines of one event loop, so no locks are needed.

    Args:
        config: ``algorithm.cipo`` as a plain mapping (it crosses a process boundary).
    """

    def __init__(self, config: dict[str, Any]):
        self.config = CIPOConfig.from_mapping(config)
        self._batches: dict[int, _Batch] = {}
        self._stats = Counter(COUNTED)
        self._validation: list[dict[str, Any]] = []
        self._validation_counts: Counter = Counter()

    async def open(self, batch_id: int, *, n_prompts: int, rho: float, step: int) -> None:
        """Announce a batch of ``n_prompts`` groups before any of them can finish."""
        self._batches[batch_id] = _Batch(
            selector=AnchorSelector(
                schedule=self.config.schedule,
                n_groups=n_prompts,
                budget=anchor_budget(n_prompts, self.config.replay_fraction),
                rho=rho,
                delta_low=self.config.delta_low,
                delta_high=self.config.delta_high,
                seed=self.config.seed,
                step=step,
            ),
            opened=time.monotonic(),
            open_groups=n_prompts,
        )

    async def add(self, batch_id: int, group: Group) -> None:
        """Report a finished group; wakes every group that thereby got anchors."""
        batch = self._batches[batch_id]
        batch.decided[group.uid] = asyncio.Queue()
        batch.pass_rates[group.uid] = group.pass_rate if group.attempts else 0.0
        started = time.monotonic()
        anchors = batch.selector.add(group)
        self._stats["seconds/selection"] += time.monotonic() - started

        sessions: dict[str, list[int]] = {}
        for anchor in anchors:
            sessions.setdefault(anchor.uid, []).append(anchor.session)
            in_band = medium(
                batch.pass_rates[anchor.uid], delta_low=self.config.delta_low, delta_high=self.config.delta_high
            )
            self._stats["anchors/total"] += 1
            self._stats["anchors/correct" if anchor.correct else "anchors/failed"] += 1
            self._stats["anchors/medium" if in_band else "anchors/other"] += 1
        for uid, chosen in sessions.items():
            batch.decided[uid].put_nowait(chosen)
        if batch.selector.complete:
            batch.selected_at = time.monotonic()
            self._stats["seconds/rollout"] += batch.selected_at - batch.opened
            for queue in batch.decided.values():
                queue.put_nowait(None)

    async def next(self, batch_id: int, uid: str) -> list[int] | None:
        """The next sessions of group ``uid`` to correct, or None when there will be no more."""
        return await self._batches[batch_id].decided[uid].get()

    async def close(self, batch_id: int, counts: dict[str, float]) -> None:
        """A group's corrections have ended; ``counts`` are added to the step's statistics."""
        self._stats.update(counts)
        batch = self._batches[batch_id]
        batch.open_groups -= 1
        if batch.open_groups == 0:
            self._stats["seconds/correction"] += time.monotonic() - batch.selected_at
            del self._batches[batch_id]

    async def add_validation(self, records: list[dict[str, Any]], counts: dict[str, float]) -> None:
        """Keep the attempts of one validation prompt, with their corrections, until the trainer asks for them."""
        self._validation.extend(records)
        self._validation_counts.update(counts)

    async def pop_statistics(self) -> dict[str, float]:
        """Counts and seconds since the last call, names without the ``cipo/`` prefix."""
        stats, self._stats = self._stats, Counter(COUNTED)
        return {name: float(value) for name, value in stats.items()}

    async def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Validation attempts with their corrections since the last call, and counts of what is missing."""
        records, self._validation = self._validation, []
        counts, self._validation_counts = self._validation_counts, Counter()
        return records, {name: float(value) for name, value in counts.items()}
