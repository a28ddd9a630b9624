"""The V0 trainer's batch, verl's DataProto: what its rows are, corrections joined to it, rows that fill it up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto

from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS
from verl_cipo.core.aux_loss.losses import PARTNER, SIGN, WEIGHTS
from verl_cipo.core.aux_loss.transfer import TRANSFER_WEIGHTS
from verl_cipo.core.keys import GroupName, RowKey
from verl_cipo.core.rows import MARK, Mark, RowTable
from verl_cipo.integration.train.aux import ZERO

SESSION = "session_id"
"""Column of a rollout: the row's number among those of its uid."""
NOTED = "__cipo_noted__"
"""Column of what is asked: what the mark of an attempt under a context says of it, see ``Contexts.noted``."""
OF_THE_DATA_SET = ("data_source", "reward_model", "extra_info")
"""Columns that verl's V0 trainer leaves in the batch while it rolls out; a correction has those of its anchor."""


def objects(values: Sequence[Any]) -> np.ndarray:
    """A column of a DataProto, also of values that numpy would take for rows of their own."""
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def marks(batch: DataProto) -> list[Mark]:
    """What the workers noted on each row."""
    return [Mark.from_mapping(mark) for mark in batch.non_tensor_batch[MARK]]


def places(uids: Sequence[str]) -> np.ndarray:
    """(N,) int64: the place of each row among those of its uid."""
    seen: Counter = Counter()
    places = np.empty(len(uids), dtype=np.int64)
    for i, uid in enumerate(uids):
        places[i] = seen[uid]
        seen[uid] += 1
    return places


def row_keys(batch: DataProto) -> list[str]:
    """The key of each row, as the V1 trainers have it."""
    columns = batch.non_tensor_batch
    return [str(RowKey(uid, session)) for uid, session in zip(columns["uid"], columns[SESSION], strict=True)]


def without_lost(batch: DataProto) -> DataProto:
    """The rows of ``batch`` that were rolled out."""
    kept = [row for row, mark in enumerate(marks(batch)) if not mark.lost]
    return batch if len(kept) == len(batch) else batch.select_idxs(kept)


def row_table(batch: DataProto) -> RowTable:
    """What the rows of a rolled-out and verified batch are.

    Args:
        batch: with ``rm_scores`` and the columns that ``v0.worker`` adds.
    """
    written = batch.batch["attention_mask"][:, -batch.batch["responses"].shape[1] :]
    return RowTable.of_marks(
        row_keys(batch),
        marks(batch),
        index=list(batch.non_tensor_batch["index"]),
        scores=batch.batch["rm_scores"].sum(dim=-1).numpy(),
        tokens=written.sum(dim=-1).numpy(),
    )


def joined(batch: DataProto, second: DataProto) -> DataProto:
    """A new batch: the rows of ``batch``, then ``second``, which take what they lack from the attempts' rows.

    Args:
        batch: attempts, with the columns of the data set and those of their rollout.
        second: corrections, and further attempts at prompts of the batch, with the columns of a rollout.
    """
    row_of = {key: row for row, key in enumerate(row_keys(batch))}
    # That of a prompt is any of its attempts, that of a correction's group the anchor.
    row_of |= {uid: row for row, uid in enumerate(batch.non_tensor_batch["uid"])}
    names = [GroupName.parse(uid) for uid in second.non_tensor_batch["uid"]]
    source = np.array([row_of[str(name.attempt) if name.kind else name.prompt] for name in names])
    tensors = {}
    for key, own in batch.batch.items():
        new = second.batch[key] if key in second.batch else own[torch.from_numpy(source)]
        tensors[key] = torch.cat([own, new])
    columns = {}
    for key in (
        *batch.non_tensor_batch,
        *(key for key in second.non_tensor_batch if key not in batch.non_tensor_batch),
    ):
        own, new = batch.non_tensor_batch.get(key), second.non_tensor_batch.get(key)
        if new is None and key in OF_THE_DATA_SET:
            new = own[source]
        # What an agent loop tells of some of its sessions only is None of the others, as verl has it.
        own = objects([None] * len(batch)) if own is None else own
        new = objects([None] * len(second)) if new is None else new
        columns[key] = np.concatenate([own, new])
    size = len(batch) + len(second)
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
        for key in (*ZERO, WEIGHTS, SIGN, PARTNER, TRANSFER_WEIGHTS, NUDGE_WEIGHTS):
            if key in padded.batch:
                # Assigned as a whole: a data plane that fetches columns forgets what is written into one.
                column = padded.batch[key].clone()
                column[torch.from_numpy(~self.real)] = 0
                padded.batch[key] = column
        return padded

    def remove(self, batch: DataProto) -> DataProto:
        """The N rows of the batch out of M that were computed of what :meth:`add` returned."""
        return batch if self.real.all() else batch.select_idxs(np.flatnonzero(self.real))


def prompt_ids(batch: DataProto, row: int) -> list[int]:
    """The prompt of a row without its padding."""
    return unpadded_prompt(batch.batch["prompts"][row], batch.batch["attention_mask"][row])


def response_ids(batch: DataProto, row: int) -> list[int]:
    """The response of a row without its padding."""
    return unpadded(batch.batch["responses"][row], batch.batch["attention_mask"][row])


def unpadded(response: torch.Tensor, attention_mask: torch.Tensor) -> list[int]:
    """A response, (T,), without its padding; the mask is that of prompt and response, (P + T,)."""
    return response[attention_mask[-len(response) :] != 0].tolist()


def unpadded_prompt(prompt: torch.Tensor, attention_mask: torch.Tensor) -> list[int]:
    """A prompt, (P,), without its padding; the mask is that of prompt and response, (P + R,)."""
    return prompt[attention_mask[: len(prompt)] != 0].tolist()
