"""The V0 trainer's batch, verl's DataProto: what its rows are, corrections joined to it, rows that fill it up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto

from verl_cipo.core.losses import PARTNER, SIGN, WEIGHTS
from verl_cipo.integration.rollout.groups import EXTRA, anchor_of
from verl_cipo.integration.train.aux_rows import ZERO
from verl_cipo.integration.train.rows import RowTable

SESSION = "session_id"
"""Column of a rollout: the row's number among those of its uid."""
OF_THE_DATA_SET = ("data_source", "reward_model", "extra_info")
"""Columns that verl's V0 trainer leaves in the batch while it rolls out; a correction has those of its anchor."""


def objects(values: Sequence[Any]) -> np.ndarray:
    """A column of a DataProto, also of values that numpy would take for rows of their own."""
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def is_lost(batch: DataProto, row: int) -> bool:
    """Whether a row stands in the place of an attempt that failed."""
    return batch.non_tensor_batch[EXTRA][row].get("lost", False)


def without_lost(batch: DataProto) -> DataProto:
    """The rows of ``batch`` that were rolled out."""
    kept = [row for row in range(len(batch)) if not is_lost(batch, row)]
    return batch if len(kept) == len(batch) else batch.select_idxs(kept)


def row_table(batch: DataProto) -> RowTable:
    """What the rows of a rolled-out and verified batch are; keys are as the V1 trainers have them.

    Args:
        batch: with ``rm_scores`` and the columns that the workers of ``legacy_rollouts`` add.
    """
    fields = batch.non_tensor_batch
    keys = [f"{uid}_{session}_0" for uid, session in zip(fields["uid"], fields[SESSION], strict=True)]
    written = batch.batch["attention_mask"][:, -batch.batch["responses"].shape[1] :]
    return RowTable.of_marks(
        keys,
        list(fields[EXTRA]),
        group=list(fields["uid"]),
        index=list(fields["index"]),
        scores=batch.batch["rm_scores"].sum(dim=-1).numpy(),
        tokens=written.sum(dim=-1).numpy(),
    )


def joined(batch: DataProto, corrections: DataProto) -> DataProto:
    """A new batch: the rows of ``batch``, then ``corrections``, which take what they lack from their anchors' rows.

    Args:
        batch: attempts, with the columns of the data set and those of their rollout.
        corrections: with the columns of a rollout.
    """
    row_of = {key: row for row, key in enumerate(row_table(batch).keys)}
    anchors = [anchor_of(uid) for uid in corrections.non_tensor_batch["uid"]]
    source = np.array([row_of[f"{uid}_{session}_0"] for uid, session in anchors])
    tensors = {}
    for key, own in batch.batch.items():
        new = corrections.batch[key] if key in corrections.batch else own[torch.from_numpy(source)]
        tensors[key] = torch.cat([own, new])
    columns = {}
    for key in (
        *batch.non_tensor_batch,
        *(key for key in corrections.non_tensor_batch if key not in batch.non_tensor_batch),
    ):
        own, new = batch.non_tensor_batch.get(key), corrections.non_tensor_batch.get(key)
        if new is None and key in OF_THE_DATA_SET:
            new = own[source]
        # What an agent loop tells of some of its sessions only is None of the others, as verl has it.
        own = objects([None] * len(batch)) if own is None else own
        new = objects([None] * len(corrections)) if new is None else new
        columns[key] = np.concatenate([own, new])
    size = len(batch) + len(corrections)
    return DataProto(batch=TensorDict(tensors, batch_size=[size]), non_tensor_batch=columns, meta_info=batch.meta_info)


@dataclass(frozen=True)
class Padding:
    """Where rows that only fill the batch up stand among those of a batch."""

    real: np.ndarray
    """(M,) bool, M >= N: True for the N rows of the batch, in its order."""

    def add(self, batch: DataProto) -> DataProto:
        """A new batch of M rows; padding is a copy of the shortest row that nothing trains."""
        if self.real.all():
            return batch
        shortest = int(batch.batch["attention_mask"].sum(dim=-1).argmin())
        padded = batch.select_idxs(np.where(self.real, np.cumsum(self.real) - 1, shortest))
        for key in (*ZERO, WEIGHTS, SIGN, PARTNER):
            if key in padded.batch:
                padded.batch[key][torch.from_numpy(~self.real)] = 0
        return padded

    def remove(self, batch: DataProto) -> DataProto:
        """The N rows of the batch out of M that were computed of what :meth:`add` returned."""
        return batch if self.real.all() else batch.select_idxs(np.flatnonzero(self.real))


def response_ids(batch: DataProto, row: int) -> list[int]:
    """The response of a row without its padding."""
    return unpadded(batch.batch["responses"][row], batch.batch["attention_mask"][row])


def unpadded(response: torch.Tensor, attention_mask: torch.Tensor) -> list[int]:
    """A response, (T,), without its padding; the mask is that of prompt and response, (P + T,)."""
    return response[attention_mask[-len(response) :] != 0].tolist()
