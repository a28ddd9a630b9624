"""What the V0 trainer's manager dispatches beside the attempts that verl asks for: what its sessions are asked."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from verl import DataProto

from verl_cipo.integration.v0.rows import SESSION, objects

ANCHOR = "__cipo_anchor__"
"""Column of a dispatched correction: ``correct`` and ``prompt_ids`` of the attempt that it corrects, what is ``shown``
of it, the ``outcome`` of its prompt, and the number of the ``context`` that it is made under. Of a further attempt:
FURTHER."""
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


def further_attempts(prompts: DataProto, uids: Iterable[str], n: int, *, begun: Mapping[str, int]) -> list[Asked]:
    """``n`` further attempts at the prompt of each of ``uids``.

    Their sessions are counted on from those of ``prompts``, and from the slots that each uid has ``begun``.
    """
    columns = prompts.non_tensor_batch
    first: dict[str, int] = {}
    session: Counter = Counter()
    for row, uid in enumerate(columns["uid"]):
        first.setdefault(uid, row)
        session[uid] += 1
    session.update({uid: slots * n for uid, slots in begun.items()})
    asked = []
    for uid in uids:
        row = first[uid]
        asked += [Asked(row, uid, session[uid] + i, columns["raw_prompt"][row], FURTHER) for i in range(n)]
        session[uid] += n
    return asked


def request(prompts: DataProto, asked: Sequence[Asked], *, priority: int = 0) -> DataProto:
    """What the workers are given for ``asked``, which is not empty; priority: of the first,
    where the engine schedules by it; lower ones come first."""
    made = prompts.select_idxs(np.array([one.row for one in asked]))
    made.non_tensor_batch |= {
        "uid": objects([one.uid for one in asked]),
        SESSION: np.array([one.session for one in asked]),
        "raw_prompt": objects([one.chat for one in asked]),
        ANCHOR: objects([one.anchor for one in asked]),
        "priority": priority + np.arange(len(asked), dtype=np.int64),
    }
    return made
