"""The second dispatch of the V0 trainer: what its sessions are asked."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from verl import DataProto

from verl_cipo.integration.v0.rows import SESSION, objects

ANCHOR = "__cipo_anchor__"
"""Column of a dispatched correction: ``correct`` and ``prompt_ids`` of the attempt that it corrects, what is ``shown``
of it, and the ``outcome`` of its prompt. Of a further attempt: FURTHER."""
FURTHER = "further"


class Asked(NamedTuple):
    """A session to roll out.

    row: of the attempt that it corrects, or of one at the prompt that it attempts again; uid: its group;
    session: its number there; chat: what it is asked; anchor: its ANCHOR.
    """

    row: int
    uid: str
    session: int
    chat: list[dict]
    anchor: Any


def further_attempts(prompts: DataProto, rows: Sequence[int], n: int) -> list[Asked]:
    """``n`` further attempts at the prompt of each of ``rows``, their sessions counted on from those of ``prompts``."""
    columns = prompts.non_tensor_batch
    session = Counter(columns["uid"].tolist())
    asked = []
    for row in rows:
        uid = columns["uid"][row]
        asked += [Asked(row, uid, session[uid] + i, columns["raw_prompt"][row], FURTHER) for i in range(n)]
        session[uid] += n
    return asked


def request(prompts: DataProto, asked: Sequence[Asked]) -> DataProto:
    """What the workers are given for ``asked``, which is not empty."""
    made = prompts.select_idxs(np.array([one.row for one in asked]))
    made.non_tensor_batch |= {
        "uid": objects([one.uid for one in asked]),
        SESSION: np.array([one.session for one in asked]),
        "raw_prompt": objects([one.chat for one in asked]),
        ANCHOR: objects([one.anchor for one in asked]),
        "priority": np.arange(len(asked), dtype=np.int64),
    }
    return made
