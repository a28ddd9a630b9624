"""verl's replay buffers with ``algorithm.filter_groups``, where a prompt has rows of corrections beside its attempts.

verl's own decide, evict, refill and select. What differs:

* attempts alone decide whether a prompt is evicted; one that the coordinator has admitted to the step stays,
* a prompt that waits for its corrections counts as one to train, so that no more are sampled than the step takes,
* of prompts that are left over, those without corrections go first,
* corrections that an evicted prompt only hosts (schedule=replay) are trained with the next batch,
* rows that are thrown away are counted.
"""

import inspect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_cipo.core.keys import GroupName, RowKey

Reasons = tuple[set[str], set[str], set[str], Counter]
"""verl's: prompts that are stale, filtered and failed; of the filtered how many have which value of the metric."""


def filtering(built: ReplayBuffer, *, hosts: bool) -> "FilteringBuffer":
    """A buffer of ours in place of verl's.

    Args:
        built: verl's own, for the trainer at hand.
        hosts: whether corrections belong to other prompts than those that they are rolled out with.
    """
    cls = FilteringBufferAsync if isinstance(built, ReplayBufferAsync) else FilteringBufferSync
    names = list(inspect.signature(ReplayBuffer.__init__).parameters)[1:]
    return cls(hosts=hosts, **{name: getattr(built, name) for name in names})


class FilteringBuffer(ReplayBuffer):
    """What both of them have in common.

    Args:
        hosts: whether corrections belong to other prompts than those that they are rolled out with.
        arguments: verl's.
    """

    def __init__(self, *, hosts: bool, **arguments: Any):
        super().__init__(**arguments)
        self.manager: Any = None
        """CIPO's rollout manager, which the trainer sets before it samples."""
        self._hosts = hosts
        self._add_prompts, self.refill_fn = self.refill_fn, self._refill
        self._lost: set[str] = set()
        """Prompts that are evicted with the corrections that they host."""
        self._rehomed: set[str] = set()
        """Keys of corrections without a host."""
        self._counts: Counter = Counter()

    def pop_counts(self) -> dict[str, float]:
        """What was thrown away since the last call, names without the ``cipo/`` prefix."""
        names = ("attempts", "corrections", *(("rehomed",) if self._hosts else ()))
        counts = {f"filter/{name}": float(self._counts[name]) for name in names}
        self._counts.clear()
        return counts

    def _refill(self, num_prompts: int) -> None:
        self.manager.replaces = self._replaced(num_prompts)
        try:
            self._add_prompts(num_prompts)
        finally:
            self.manager.replaces = 0

    def _replaced(self, num_prompts: int) -> int:
        """How many of some new prompts add no anchors to the step."""
        raise NotImplementedError

    @contextmanager
    def _attempts_alone(self, partition_id: str) -> Iterator[None]:
        """Within it verl sees attempts, and of finished prompts those that have any."""
        rows, finished = self.partitions[partition_id], self.finished_keys[partition_id]
        attempts = {key for key, name in _groups(rows, finished).items() if name.anchor is None}
        self.partitions[partition_id] = {key: rows[key] for key in rows if key in attempts}
        self.finished_keys[partition_id] = {_prompt(key) for key in attempts}
        try:
            yield
        finally:
            self.partitions[partition_id], self.finished_keys[partition_id] = rows, finished

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        with self._attempts_alone(partition_id):
            return super()._dapo_filtered_keys(partition_id)

    def _evict_terminal_groups(
        self, global_steps: int, partition_id: str, eviction_reasons: Reasons
    ) -> tuple[set[str], int, int, dict]:
        stale, _, failed, _ = eviction_reasons
        # What is evicted because it is too old takes its corrections with it, which are as old.
        self._lost = stale | failed
        try:
            return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)
        finally:
            self._lost = set()

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        rows = self.partitions[partition_id]
        names = _groups(rows, uids)
        corrections = {key for key, name in names.items() if name.anchor is not None}
        rehomed = {key for key in corrections if names[key].prompt not in self._lost} if self._hosts else set()
        self._counts.update(
            attempts=len(names) - len(corrections), corrections=len(corrections - rehomed), rehomed=len(rehomed)
        )
        self._rehomed |= rehomed
        kept = {key: rows.pop(key) for key in rehomed}
        super()._clear_groups(partition_id, uids)
        rows.update(kept)

    def _materialize_batch(
        self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict[str, dict]
    ) -> KVBatchMeta:
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        if partition_id == "val" or not self._rehomed:
            return batch
        rehomed = sorted(self._rehomed & partition_snapshot.keys())
        self._rehomed -= set(rehomed)
        tags = [partition_snapshot[key] for key in rehomed]
        return KVBatchMeta(partition_id=partition_id, keys=[*batch.keys, *rehomed], tags=[*batch.tags, *tags])


class FilteringBufferSync(FilteringBuffer):
    """With the synchronous trainer, where all prompts of a step are drawn among."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._admitted: set[str] = set()
        """Prompts that the coordinator has admitted to the step, also if it has forgotten that since."""

    def _replaced(self, num_prompts: int) -> int:
        # verl samples more than one in place of each.
        return num_prompts

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        if partition_id == "val":
            return set(), Counter()
        # Asked after verl has looked at the rows: whatever has ended by then is known.
        self._admitted |= self.manager.admitted()
        filtered = super()._dapo_filtered_keys(partition_id)[0] - self._admitted
        values = self._dapo_classification_cache[partition_id]
        return filtered, Counter(values[uid] for uid in filtered)

    def _sampleable_terminal_keys(self, partition_id: str, eviction_reasons: Reasons) -> set[str]:
        sampleable = super()._sampleable_terminal_keys(partition_id, eviction_reasons)
        if partition_id == "val":
            return sampleable
        sampleable |= self._admitted & self.running_keys[partition_id]
        if len(sampleable) >= self.train_batch_size:
            self.manager.draw_rest()
        return sampleable

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> tuple[list[str], dict[str, dict], dict[str, int]]:
        # verl keeps the order of what is equally old.
        ordered = sorted(sampleable_keys, key=lambda uid: uid not in self._admitted)
        selected = super()._select_prompt_uids(partition_id, ordered, batch_size)
        self._admitted = set()
        return selected


class FilteringBufferAsync(FilteringBuffer, ReplayBufferAsync):
    """With the asynchronous trainers, where corrections are hosted by prompts of a later step."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._unpaid = 0
        """Evicted prompts whose corrections are trained, so that those in their place host none."""

    def _replaced(self, num_prompts: int) -> int:
        replaced = min(self._unpaid, num_prompts)
        self._unpaid -= replaced
        return replaced

    def _evict_terminal_groups(
        self, global_steps: int, partition_id: str, eviction_reasons: Reasons
    ) -> tuple[set[str], int, int, dict]:
        stale, filtered, failed, _ = eviction_reasons
        self._unpaid += len(filtered - stale - failed)
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)


def _prompt(key: str) -> str:
    return key.split("_")[0]


def _groups(keys: Iterable[str], prompts: Collection[str]) -> dict[str, GroupName]:
    """The group of each row of the prompts; others may be none of a rollout, rows that only fill a batch up say."""
    return {key: GroupName.parse(RowKey.parse(key).group) for key in keys if _prompt(key) in prompts}
