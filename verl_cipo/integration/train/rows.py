"""The rows of a TransferQueue batch: what they are, and their sums."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from verl_cipo.core.rows import MARK, Mark, Rows, RowTable
from verl_cipo.core.verdict import verdict


def without_torn_rows(batch: KVBatchMeta) -> KVBatchMeta:
    """``batch`` without rows that were stored in part, of corrections and attempts, which are cleared.

    TransferQueue knows a key before it has its data: a session that ends in the middle of being stored, because it
    took too long or the storage failed, leaves a key without a status, and verl samples what it finds.
    """
    tagged = zip(batch.keys, batch.tags, strict=True)
    return cleared(batch, [key for key, tag in tagged if "status" not in tag])


def cleared(batch: KVBatchMeta, keys: Collection[str]) -> KVBatchMeta:
    """``batch`` without ``keys``, which TransferQueue forgets."""
    if not keys:
        return batch
    gone = set(keys)
    tq.kv_clear(keys=sorted(gone), partition_id=batch.partition_id)
    return batch.select_keys([key for key in batch.keys if key not in gone])


def fetch_table(batch: KVBatchMeta, *, threshold: Callable[[str | None], float]) -> RowTable:
    """Read the fields of ``batch`` that say what its rows are.

    A row that no worker of CIPO has marked is an attempt: the asynchronous trainers resume a run of another estimator
    with trajectories that were finished before the switch. Those of older checkpoints have no score.

    Args:
        threshold: ``CIPOConfig.threshold``.
    """
    where = {"partition_id": batch.partition_id}
    data = tq.kv_batch_get(keys=batch.keys, select_fields=["index", "extra_fields"], **where)
    extras = data["extra_fields"]
    noted = [extra.get(MARK, {}) for extra in extras]
    scores = np.array([mark.get("score", 0.0) for mark in noted], dtype=np.float32)
    if unknown := [i for i, mark in enumerate(noted) if "score" not in mark]:
        # A reward a token is fetched for these rows alone.
        keys = [batch.keys[i] for i in unknown]
        fetched = tq.kv_batch_get(keys=keys, select_fields=["rm_scores", "data_source"], **where)
        scores[unknown] = row_sums(fetched["rm_scores"])
        for i, source in zip(unknown, fetched["data_source"], strict=True):
            if not noted[i]:
                info = extras[i].get("reward_extra_info")
                noted[i] = {"correct": verdict(float(scores[i]), info, threshold(source))}
    return RowTable.of_marks(
        list(batch.keys),
        [Mark.from_mapping(mark) for mark in noted],
        index=list(data["index"]),
        scores=scores,
        tokens=np.array([tag["response_len"] for tag in batch.tags], dtype=np.int64),
    )


def rows_in_order(table: RowTable, batch: KVBatchMeta) -> Rows:
    """The rows of ``table`` in the order of ``batch``, which verl has padded and reordered since."""
    padding = np.array([tag.get("is_padding", False) for tag in batch.tags], dtype=bool)
    return table.in_order(batch.keys, padding=padding)


def each_row(data: TensorDict) -> list[dict[str, Any]]:
    """The rows of what TransferQueue returns, each with all its fields and without padding.

    `data[i]` walks every row of a jagged field, so reading them one by one takes as many walks as there are rows.
    """
    columns = {name: data.get(name) for name in data.keys()}  # noqa: SIM118, a TensorDict walks its batch
    listed = [column.unbind() if isinstance(column, Tensor) else column.tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*listed, strict=True)]


def row_sums(nested: Tensor) -> np.ndarray:
    """(N,) sum of each row of a jagged (N, *) tensor, which is not padded for it; 0 for an empty row."""
    values, offsets = nested.values().numpy(), nested.offsets().numpy()
    sums = np.zeros(len(offsets) - 1, dtype=values.dtype)
    filled = np.flatnonzero(np.diff(offsets))
    sums[filled] = np.add.reduceat(values, offsets[filled])
    return sums
