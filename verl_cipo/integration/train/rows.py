"""What each row of a batch is: attempt, correction of which anchor, or padding; and how TransferQueue holds that."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import transfer_queue as tq
from torch import Tensor
from transfer_queue import KVBatchMeta

from verl_cipo.core.advantage import BASE, CORRECTION, PADDING, Rows
from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.draws import lot
from verl_cipo.core.metrics import batch_metrics
from verl_cipo.core.verdict import verdict
from verl_cipo.integration.rollout.groups import EXTRA, anchor_of, split_key

APPENDED = 3
"""Beside the streams of ``core.advantage``: rows for the auxiliary loss alone."""


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
    origin: list[str] = field(default_factory=list)
    """``Attempt.origin`` of each row's prompt; empty for all, and for a correction, where it is not known."""

    @classmethod
    def fetch(cls, batch: KVBatchMeta, *, threshold: Callable[[str | None], float]) -> "RowTable":
        """Read the fields of ``batch`` that say what its rows are.

        A row that no worker of CIPO has marked is an attempt: the asynchronous trainers resume a run of another
        estimator with trajectories that were finished before the switch. Those of older checkpoints have no score.

        Args:
            threshold: ``CIPOConfig.threshold``.
        """
        where = {"partition_id": batch.partition_id}
        data = tq.kv_batch_get(keys=batch.keys, select_fields=["index", "extra_fields"], **where)
        marks = [extra.get(EXTRA, {}) for extra in data["extra_fields"]]
        scores = np.array([mark.get("score", 0.0) for mark in marks], dtype=np.float32)
        if unknown := [i for i, mark in enumerate(marks) if "score" not in mark]:
            # A reward a token is fetched for these rows alone.
            keys = [batch.keys[i] for i in unknown]
            fetched = tq.kv_batch_get(keys=keys, select_fields=["rm_scores", "data_source"], **where)
            scores[unknown] = row_sums(fetched["rm_scores"])
            for i, source in zip(unknown, fetched["data_source"], strict=True):
                if not marks[i]:
                    info = data["extra_fields"][i].get("reward_extra_info")
                    marks[i] = {"correct": verdict(float(scores[i]), info, threshold(source))}
        return cls.of_marks(
            list(batch.keys),
            marks,
            group=[split_key(key)[0] for key in batch.keys],
            index=list(data["index"]),
            scores=scores,
            tokens=np.array([tag["response_len"] for tag in batch.tags], dtype=np.int64),
        )

    @classmethod
    def of_marks(
        cls,
        keys: list[str],
        marks: Sequence[Mapping[str, Any]],
        *,
        group: Sequence[str],
        index: Sequence[Any],
        scores: np.ndarray,
        tokens: np.ndarray,
    ) -> "RowTable":
        """From what the workers noted on each row under ``EXTRA``; keys are ``{group}_{session}_{output}``."""
        corrected = ["anchor_correct" in mark for mark in marks]
        session, final = _sessions(keys)
        rows = Rows(
            stream=np.where(corrected, CORRECTION, BASE).astype(np.int8),
            group=np.array(group, dtype=object),
            session=session,
            final=final,
            correct=np.array([mark["correct"] for mark in marks], dtype=bool),
            anchor_correct=np.array([mark.get("anchor_correct", False) for mark in marks], dtype=bool),
        )
        return cls(
            keys=keys,
            rows=rows,
            index=[_plain(value) for value in index],
            scores=scores,
            tokens=tokens,
            copied=np.array([mark.get("copied", False) for mark in marks], dtype=bool),
            origin=[mark.get("origin", "") for mark in marks],
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
            origin=[origin for table in tables for origin in table.origin],
        )

    def attempts(self) -> tuple[list[Group], dict[Attempt, str]]:
        """The attempts by prompt, and the key of each one's final row."""
        rows = self.rows
        attempts: dict[str, list[Attempt]] = {}
        key_of = {}
        for i in np.flatnonzero((rows.stream == BASE) & rows.final):
            key, uid = self.keys[i], rows.group[i]
            attempt = Attempt(
                uid=uid,
                index=self.index[i],
                session=split_key(key)[1],
                correct=bool(rows.correct[i]),
                score=float(self.scores[i]),
                origin=self.origin[i] if self.origin else "",
            )
            attempts.setdefault(uid, []).append(attempt)
            key_of[attempt] = key
        return [Group(uid, tuple(own)) for uid, own in attempts.items()], key_of

    def right_corrections(self) -> list[str]:
        """Keys of right corrections of failed attempts."""
        rows = self.rows
        right = (rows.stream == CORRECTION) & rows.final & rows.correct & ~rows.anchor_correct
        return [self.keys[i] for i in np.flatnonzero(right)]

    def preferences(self) -> dict[str, str]:
        """The first right correction of each failed attempt -> the attempt, both as keys."""
        first: dict[str, str] = {}
        for key in sorted(self.right_corrections(), key=lambda key: split_key(key)[1]):
            first.setdefault(split_key(key)[0], key)
        rows = self.rows
        of_session = {rows.session[i]: self.keys[i] for i in np.flatnonzero((rows.stream == BASE) & rows.final)}
        attempts = {}
        for group, key in first.items():
            uid, number = anchor_of(group)
            # An attempt whose row could not be stored still was corrected.
            if f"{uid}_{number}" in of_session:
                attempts[key] = of_session[f"{uid}_{number}"]
        return attempts

    def plain_prompts(self, below: float) -> dict[str, str]:
        """Right corrections of failed attempts of prompts that mostly fail -> a row with the plain prompt; as keys.

        That row is the first output of any attempt of the prompt: the corrected one may be missing.

        Args:
            below: what the prompt's pass rate must be under.
        """
        hard = {group.uid for group in self.attempts()[0] if group.pass_rate < below}
        first = {}
        for i in np.flatnonzero(self.rows.stream == BASE):
            uid, _, output = split_key(self.keys[i])
            if uid in hard and output == 0:
                first.setdefault(uid, self.keys[i])
        root = {key: anchor_of(split_key(key)[0])[0] for key in self.right_corrections()}
        return {key: first[uid] for key, uid in root.items() if uid in first}

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
        of_prompt: dict[str, tuple[bytes, str, str]] = {}
        # Attempts first: a correction may be one of another prompt.
        for i in np.argsort(self.rows.stream, kind="stable").tolist():
            uid = self.keys[i].split("_")[0]
            of_prompt.setdefault(uid, (lot(seed, step, self.index[i]), self.origin[i] if self.origin else "", uid))

        def place(key: str) -> tuple[tuple[bytes, str, str], str, int, int]:
            group, session, output = split_key(key)
            uid, _, inner = group.partition("_")
            return of_prompt[uid], inner, session, output

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


def row_sums(nested: Tensor) -> np.ndarray:
    """(N,) sum of each row of a jagged (N, *) tensor, which is not padded for it; 0 for an empty row."""
    values, offsets = nested.values().numpy(), nested.offsets().numpy()
    sums = np.zeros(len(offsets) - 1, dtype=values.dtype)
    filled = np.flatnonzero(np.diff(offsets))
    sums[filled] = np.add.reduceat(values, offsets[filled])
    return sums


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
