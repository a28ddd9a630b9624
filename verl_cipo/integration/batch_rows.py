"""What each row of a TransferQueue batch is: attempt, correction of which anchor, or padding."""

from dataclasses import dataclass

import numpy as np
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from verl_cipo.core.advantage import BASE, CORRECTION, PADDING, Rows
from verl_cipo.core.metrics import batch_metrics
from verl_cipo.integration.outcome import verdict
from verl_cipo.integration.rollouts import EXTRA


@dataclass(frozen=True)
class RowTable:
    """One sampled batch before padding and reordering, in the order it was sampled."""

    keys: list[str]
    rows: Rows
    scores: np.ndarray
    """(N,) raw verifier scores."""
    tokens: np.ndarray
    """(N,) response tokens."""
    copied: np.ndarray
    """(N,) bool: a correction that repeats its attempt."""

    @classmethod
    def fetch(cls, batch: KVBatchMeta, correct_threshold: float) -> "RowTable":
        """Read the fields of ``batch`` that say what its rows are.

        Raises:
            ValueError: a row has no reward.
        """
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid", "rm_scores", "extra_fields"]
        )
        extras = list(data["extra_fields"])
        scores = data["rm_scores"].to_padded_tensor(padding=0.0).sum(dim=1).numpy()
        marks = [extra.get(EXTRA) for extra in extras]
        correct = [
            # Attempts carry no mark when no corrections were wanted (replay_fraction=0).
            mark["correct"] if mark else verdict(float(score), extra.get("reward_extra_info"), correct_threshold)
            for mark, extra, score in zip(marks, extras, scores, strict=True)
        ]
        corrected = [bool(mark) and "anchor_correct" in mark for mark in marks]
        session, final = _sessions(batch.keys)
        rows = Rows(
            stream=np.where(corrected, CORRECTION, BASE).astype(np.int8),
            group=np.array(list(data["uid"]), dtype=object),
            session=session,
            final=final,
            correct=np.array(correct, dtype=bool),
            anchor_correct=np.array(
                [is_corr and m["anchor_correct"] for is_corr, m in zip(corrected, marks, strict=True)], dtype=bool
            ),
        )
        return cls(
            keys=list(batch.keys),
            rows=rows,
            scores=scores,
            tokens=np.array([tag["response_len"] for tag in batch.tags], dtype=np.int64),
            copied=np.array([is_corr and m["copied"] for is_corr, m in zip(corrected, marks, strict=True)], dtype=bool),
        )

    def correction_keys(self) -> list[str]:
        """Keys of the correction rows."""
        return [self.keys[i] for i in np.flatnonzero(self.rows.stream == CORRECTION)]

    def streams(self, keys: list[str]) -> np.ndarray:
        """(len(keys),) stream of each key of the sampled batch."""
        stream = dict(zip(self.keys, self.rows.stream.tolist(), strict=True))
        return np.array([stream[key] for key in keys], dtype=np.int8)

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

    def metrics(self, *, n_padding: int) -> dict[str, float]:
        """The ``cipo/`` metrics of the sampled batch."""
        own = batch_metrics(rows=self.rows, scores=self.scores, tokens=self.tokens, copied=self.copied)
        own["cipo/rows/padding"] = float(n_padding)
        return own


def _sessions(keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Session of each key ``{uid}_{session}_{index}``, and whether the key is the session's last output."""
    session = [key.rsplit("_", 1)[0] for key in keys]
    index = [int(key.rsplit("_", 1)[1]) for key in keys]
    last: dict[str, int] = {}
    for name, i in zip(session, index, strict=True):
        last[name] = max(i, last.get(name, -1))
    final = [i == last[name] for name, i in zip(session, index, strict=True)]
    return np.array(session, dtype=object), np.array(final, dtype=bool)
