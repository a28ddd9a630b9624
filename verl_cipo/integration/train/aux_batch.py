"""The rows that the auxiliary loss trains, in a TransferQueue batch.

Two kinds: corrections of failed attempts that were sampled and verified as right (``source=resample``), which are in
the batch already, and rows that are appended for this loss alone (aux_rows.py): the pairs of ``source=paired``, the
rejected side of ``aux.kind=contrastive``, and with ``aux.distill_below`` those corrections under the plain prompt.
Appended rows have an empty response mask and the tag ``is_padding``, so verl's losses and metrics do not see them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_to_nested

from verl_cipo.core.anchors import Attempt
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.losses import CHOSEN, PARTNER, REJECTED, SIGN, UNTRAINED, WEIGHTS, aux_weights, partner_scores
from verl_cipo.core.prompts import SKIP_REASONS
from verl_cipo.integration.chats import Chats
from verl_cipo.integration.rollout.groups import split_key
from verl_cipo.integration.train.aux_rows import Shown, aux_row, aux_tag, draw_pairs, logged_counts, pair_rows
from verl_cipo.integration.train.rows import RowTable

COUNTED = dict.fromkeys(
    (
        "aux/rows",
        "aux/pairs",
        "aux/adjacent",
        "aux/distilled",
        "aux/skipped/no_donor",
        "aux/skipped/other_question",
        *(f"aux/skipped/{reason}" for reason in SKIP_REASONS),
        "rows/aux",
    ),
    0,
)
"""Counts that are logged every step, also where nothing happened."""

_NewRow = tuple[str, dict[str, Any], dict[str, Any]]
"""(key, fields, tag)"""


@dataclass
class AuxRows:
    """Which rows of a batch the auxiliary loss trains, by key."""

    sign: dict[str, float] = field(default_factory=dict)
    pair: dict[str, int] = field(default_factory=dict)
    token_mask: dict[str, Tensor] = field(default_factory=dict)
    """Tokens that the policy wrote, of appended rows: their own mask is empty."""
    counts: Counter = field(default_factory=Counter)

    def put_fields(self, batch: KVBatchMeta, *, optimizer_steps: int, contrastive: bool) -> KVBatchMeta:
        """Write the fields of ``core.losses`` for all rows of ``batch``, padding included.

        Args:
            batch: in the order of the update, with ``old_log_probs`` where the loss is contrastive.

        Returns:
            the batch, which now names these fields among those that the workers fetch.
        """
        wanted = ["response_mask", "old_log_probs"] if contrastive else ["response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=wanted)
        nested = data["response_mask"]
        mask = nested.to_padded_tensor(padding=0)
        for i, key in enumerate(batch.keys):
            if key in self.token_mask:
                mask[i, : len(self.token_mask[key])] = self.token_mask[key].to(mask.dtype)
        # Rollout correction may have rejected all tokens of a row since.
        empty = {key for key, row in zip(batch.keys, mask, strict=True) if not row.any()}
        if contrastive:
            lost = {self.pair[key] for key in empty if key in self.pair}
            empty |= {key for key, pair in self.pair.items() if pair in lost}
        sign = torch.tensor([UNTRAINED if key in empty else self.sign.get(key, UNTRAINED) for key in batch.keys])
        weights = aux_weights(mask, sign, optimizer_steps=optimizer_steps)
        partner = torch.zeros(len(batch.keys))
        if contrastive:
            pair = torch.tensor([self.pair.get(key, -1) for key in batch.keys])
            old = data["old_log_probs"].to_padded_tensor(padding=0.0)
            partner = partner_scores(old, weights, sign, pair)
        fields = {WEIGHTS: response_to_nested(weights, nested), SIGN: sign, PARTNER: partner}
        return tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(fields, batch_size=len(batch.keys)),
        )


def aux_metrics(updates: Sequence[AuxRows]) -> dict[str, float]:
    """Counts under ``cipo/`` over the updates of a step."""
    counts = Counter(COUNTED)
    for aux in updates:
        counts.update(aux.counts)
        counts["aux/rows"] += sum(sign == CHOSEN for sign in aux.sign.values())
        counts["rows/aux"] += len(aux.token_mask)
    return {f"cipo/{name}": float(count) for name, count in counts.items()}


def add_aux_rows(
    batch: KVBatchMeta, table: RowTable, *, config: CIPOConfig, chats: Chats, step: int, in_stream: bool
) -> tuple[KVBatchMeta, AuxRows]:
    """Choose what the auxiliary loss trains, and append the rows that it needs.

    Args:
        batch: as sampled.
        table: its rows.
        step: the training step; with ``config.seed`` it decides the draw of pairs.
        in_stream: whether corrections are trained by the policy loss as well; else right ones get rows of their own.
    """
    aux = AuxRows()
    rows: list[_NewRow] = []
    if config.rolls_out:
        rows += _resampled(batch, table, aux, config=config, in_stream=in_stream)
        rows += _distilled(batch, table, aux, below=config.aux.distill_below)
    if config.pairs:
        rows += _paired(batch, table, aux, config=config, chats=chats, step=step)
    if not rows:
        return batch, aux
    keys, fields, tags = zip(*rows, strict=True)
    tq.kv_batch_put(
        keys=list(keys),
        partition_id=batch.partition_id,
        fields=list_of_dict_to_tensordict(list(fields)),
        tags=list(tags),
    )
    grown = KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[*batch.keys, *keys],
        tags=[*batch.tags, *tags],
        fields=batch.fields,
        extra_info=batch.extra_info,
    )
    return grown, aux


class _Source:
    """Rows of the batch as plain dicts, fetched once."""

    def __init__(self, batch: KVBatchMeta, keys: list[str]):
        self._tags = dict(zip(batch.keys, batch.tags, strict=True))
        self._row = {key: i for i, key in enumerate(keys)}
        self._data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id) if keys else None
        self._made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, key: str) -> dict[str, Any]:
        if key not in self._made:
            row = self._data[self._row[key]]
            self._made[key] = {name: row[name] for name in row.keys()}  # noqa: SIM118, a TensorDict walks its batch
        return self._made[key]

    def make(
        self, aux: AuxRows, key: str, *, source: str, prompt_ids: Any, messages: list[dict], sign: float, pair: int
    ) -> _NewRow:
        """A row to append; its sign and trained tokens are noted in ``aux``."""
        taken = self[source]
        row = aux_row(taken, prompt_ids, uid=split_key(key)[0], messages=messages)
        aux.sign[key], aux.pair[key], aux.token_mask[key] = sign, pair, taken["response_mask"]
        return key, row, aux_tag(self._tags[source], row)


def _resampled(
    batch: KVBatchMeta, table: RowTable, aux: AuxRows, *, config: CIPOConfig, in_stream: bool
) -> list[_NewRow]:
    """Right corrections of failed attempts; for pairs, the first of each anchor beside the attempt itself."""
    attempts = table.preferences() if config.aux.kind == "contrastive" else {}
    chosen = list(attempts) if config.aux.kind == "contrastive" else table.right_corrections()
    appends = bool(attempts) or not in_stream
    source = _Source(batch, [*(chosen if appends else []), *attempts.values()])
    made = []
    for pair, key in enumerate(chosen):
        group = split_key(key)[0]
        if appends and source[key].get("multi_modal_inputs"):
            aux.counts["aux/skipped/no_text_question"] += 1
            continue
        if in_stream:
            aux.sign[key], aux.pair[key] = CHOSEN, pair
        if appends:
            correction = source[key]
            shared = {"prompt_ids": correction["prompts"].tolist(), "messages": correction["raw_prompt"], "pair": pair}
        if not in_stream:
            made.append(source.make(aux, f"{group}a_{pair}_0", source=key, sign=CHOSEN, **shared))
        if attempts:
            made.append(source.make(aux, f"{group}r_{pair}_0", source=attempts[key], sign=REJECTED, **shared))
    return made


def _distilled(batch: KVBatchMeta, table: RowTable, aux: AuxRows, *, below: float) -> list[_NewRow]:
    """Right corrections of failed attempts once more, as responses to the plain question of a prompt that mostly fails.

    What is right there is rarely sampled without the attempt. Our own option [W], not the paper's.

    Args:
        below: ``aux.distill_below``, what the prompt's pass rate must be under.
    """
    questions = table.plain_prompts(below)
    source = _Source(batch, sorted({*questions, *questions.values()}))
    made = []
    for number, (key, attempt) in enumerate(questions.items()):
        question = source[attempt]
        if question.get("multi_modal_inputs") or source[key].get("multi_modal_inputs"):
            aux.counts["aux/skipped/no_text_question"] += 1
            continue
        plain = {"prompt_ids": question["prompts"].tolist(), "messages": question["raw_prompt"]}
        new = f"{split_key(key)[0]}q_{number}_0"
        made.append(source.make(aux, new, source=key, sign=CHOSEN, pair=-1, **plain))
    aux.counts["aux/distilled"] += len(made)
    return made


def _paired(
    batch: KVBatchMeta, table: RowTable, aux: AuxRows, *, config: CIPOConfig, chats: Chats, step: int
) -> list[_NewRow]:
    """Failed attempts of the batch with right rollouts of the batch."""
    groups, key_of = table.attempts()
    pairs, counts = draw_pairs(groups, config=config, step=step)
    source = _Source(batch, sorted({key_of[attempt] for pair in pairs for attempt in (pair.anchor, pair.donor)}))

    def shown(attempt: Attempt) -> Shown:
        row = source[key_of[attempt]]
        return Shown(
            response_ids=row["responses"].tolist(),
            messages=list(row["raw_prompt"]),
            images=bool(row.get("multi_modal_inputs")),
        )

    made = []
    for rows in pair_rows(chats, pairs, shown, first=len(batch.keys), counts=counts):
        shared = {"prompt_ids": rows.prompt_ids, "messages": rows.messages, "pair": rows.number}
        made.append(source.make(aux, f"{rows.uid}_0_0", source=key_of[rows.pair.donor], sign=CHOSEN, **shared))
        if config.aux.kind == "contrastive":
            made.append(source.make(aux, f"{rows.uid}_1_0", source=key_of[rows.pair.anchor], sign=REJECTED, **shared))
    aux.counts.update(logged_counts(counts))
    return made
