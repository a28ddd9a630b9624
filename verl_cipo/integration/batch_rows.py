"""What each row of a TransferQueue batch is: attempt, correction of which anchor, or padding."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from verl_cipo.core.advantage import BASE, CORRECTION, PADDING, Rows
from verl_cipo.core.metrics import batch_metrics
from verl_cipo.integration.rollouts import EXTRA

APPENDED = 3
"""Beside the streams of ``core.advantage``: rows for the auxiliary loss alone."""


def without_torn_corrections(batch: KVBatchMeta) -> KVBatchMeta:
    """``batch`` without corrections that were stored in part, which are cleared.

    TransferQueue knows a key before it has its data: a correction that ends in the middle of being stored, because it
    took too long or the storage failed, leaves a key without a status, and verl samples what it finds.
    """
    torn = {key for key, tag in zip(batch.keys, batch.tags, strict=True) if "_c" in key and "status" not in tag}
    if not torn:
        return batch
    tq.kv_clear(keys=sorted(torn), partition_id=batch.partition_id)
    return batch.select_keys([key for key in batch.keys if key not in torn])


@dataclass(frozen=True)
class RowTable:
    """Sampled rows before padding and reordering, in the order they were sampled."""

    keys: list[str]
    rows: Rows
    index: list[Any]
    """The id in the data set of each row's prompt; a correction has that of its anchor."""
    scores: np.ndarray
    """(N,) raw verifier scores."""
    tokens: np.ndarray
    """(N,) response tokens."""
    copied: np.ndarray
    """(N,) bool: a correction that repeats its attempt."""

    @classmethod
    def fetch(cls, batch: KVBatchMeta) -> "RowTable":
        """Read the fields of ``batch`` that say what its rows are."""
        data = tq.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=["uid", "index", "rm_scores", "extra_fields"],
        )
        marks = [extra[EXTRA] for extra in data["extra_fields"]]
        corrected = ["anchor_correct" in mark for mark in marks]
        session, final = _sessions(batch.keys)
        rows = Rows(
            stream=np.where(corrected, CORRECTION, BASE).astype(np.int8),
            group=np.array(list(data["uid"]), dtype=object),
            session=session,
            final=final,
            correct=np.array([mark["correct"] for mark in marks], dtype=bool),
            anchor_correct=np.array([mark.get("anchor_correct", False) for mark in marks], dtype=bool),
        )
        return cls(
            keys=list(batch.keys),
            rows=rows,
            index=[_plain(index) for index in data["index"]],
            scores=data["rm_scores"].to_padded_tensor(padding=0.0).sum(dim=1).numpy(),
            tokens=np.array([tag["response_len"] for tag in batch.tags], dtype=np.int64),
            copied=np.array([mark.get("copied", False) for mark in marks], dtype=bool),
        )

    @classmethod
    def joined(cls, tables: Sequence["RowTable"]) -> "RowTable":
        """The rows of several batches after one another."""
        if len(tables) == 1:
            return tables[0]
        return cls(
            keys=[key for table in tables for key in table.keys],
            rows=Rows.joined([table.rows for table in tables]),
            index=[index for table in tables for index in table.index],
            scores=np.concatenate([table.scores for table in tables]),
            tokens=np.concatenate([table.tokens for table in tables]),
            copied=np.concatenate([table.copied for table in tables]),
        )

    def correction_keys(self) -> list[str]:
        """Keys of the correction rows."""
        return [self.keys[i] for i in np.flatnonzero(self.rows.stream == CORRECTION)]

    def streams(self, keys: list[str]) -> np.ndarray:
        """(len(keys),) stream of each key; rows that were appended since are a stream of their own."""
        stream = dict(zip(self.keys, self.rows.stream.tolist(), strict=True))
        return np.array([stream.get(key, APPENDED) for key in keys], dtype=np.int8)

    def stable_order(self, keys: list[str], *, seed: int, step: int) -> list[int]:
        """Positions of ``keys`` in an order that depends on neither random uids nor on which session ended first.

        The prompts are shuffled by (seed, step), the rows that belong to a prompt stay together. verl lists rows as
        they were stored, so that mini-batches would differ between a run and its repetition.
        """
        index_of: dict[str, Any] = {}
        # Attempts first: a correction may be one of another prompt.
        for i in np.argsort(self.rows.stream, kind="stable").tolist():
            index_of.setdefault(self.keys[i].split("_")[0], self.index[i])
        lot = {
            uid: hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
            for uid, index in index_of.items()
        }

        def place(key: str) -> tuple[bytes, str, int, int]:
            group, session, output = key.rsplit("_", 2)
            uid, _, inner = group.partition("_")
            return lot[uid], inner, int(session), int(output)

        return sorted(range(len(keys)), key=lambda i: place(keys[i]))

    def rows_in_order(self, batch: KVBatchMeta) -> Rows:
        """The rows in the order of ``batch``, which verl has padded and reordered since.

        Raises:
            KeyError: a row of ``batch`` is neither padding nor was it in the sampled batch.
        """
        position = {key: i for i, key in enumerate(self.keys)}
        padding = np.array([tag.get("is_padding", False) for tag in batch.tags], dtype=bool)
        index = [0 if pad else position[key] for key, pad in zip(batch.keys, padding, strict=True)]
        rows = self.rows.take(np.array(index, dtype=np.int64))
        session = np.where(padding, np.array(batch.keys, dtype=object), rows.session)
        return Rows(
            stream=np.where(padding, PADDING, rows.stream).astype(np.int8),
            group=np.where(padding, "padding", rows.group),
            session=session,
            final=rows.final | padding,
            correct=rows.correct & ~padding,
            anchor_correct=rows.anchor_correct & ~padding,
        )

    def metrics(self) -> dict[str, float]:
        """The ``cipo/`` metrics of the sampled rows."""
        return batch_metrics(rows=self.rows, scores=self.scores, tokens=self.tokens, copied=self.copied)


def _plain(value: Any) -> Any:
    """A tensor or numpy scalar as the Python value it holds."""
    return value.item() if hasattr(value, "item") else value


def _sessions(keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Session of each key ``{uid}_{session}_{index}``, and whether the key is the session's last output."""
    session = [key.rsplit("_", 1)[0] for key in keys]
    index = [int(key.rsplit("_", 1)[1]) for key in keys]
    last: dict[str, int] = {}
    for name, i in zip(session, index, strict=True):
        last[name] = max(i, last.get(name, -1))
    final = [i == last[name] for name, i in zip(session, index, strict=True)]
    return np.array(session, dtype=object), np.array(final, dtype=bool)
