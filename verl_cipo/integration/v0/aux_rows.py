"""The rows that the auxiliary loss trains, in verl's DataProto.

What a row for the auxiliary loss is, and what of verl sees it, is said in ``aux_rows``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.losses import CHOSEN, PARTNER, REJECTED, SIGN, UNTRAINED, WEIGHTS, aux_weights, partner_scores
from verl_cipo.integration.chats import Chats
from verl_cipo.integration.rollout.groups import split_key
from verl_cipo.integration.train.aux_rows import ZERO, Shown, check_keys, draw_pairs, in_channels, pair_rows
from verl_cipo.integration.train.rows import RowTable
from verl_cipo.integration.v0.rows import objects, response_ids

PAIR = "cipo_aux_pair"
"""int64 (N,): equal for the two rows of a pair, -1 where a row is in none."""

_SEQUENCE = ("prompts", "responses", "input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, kw_only=True)
class AuxRow:
    """A row to append: the response, its mask and every other field of row ``source`` under another prompt."""

    source: int
    uid: str
    messages: list[dict]
    prompt_ids: list[int]
    sign: float
    """CHOSEN or REJECTED."""
    pair: int
    """Its number, -1 where the row is in none."""


@dataclass
class AuxPlan:
    """What the auxiliary loss trains of a batch."""

    rows: list[AuxRow] = field(default_factory=list)
    """To append."""
    chosen: dict[int, int] = field(default_factory=dict)
    """Rows of the batch itself that it trains as right -> number of the pair."""
    counts: Counter = field(default_factory=Counter)
    """``pairs`` that were made, ``adjacent``, those of two prompts among them, corrections that were ``distilled``, and
    what got no row, by reason."""


def plan_aux(batch: DataProto, table: RowTable, *, config: CIPOConfig, chats: Chats, step: int) -> AuxPlan:
    """Choose what the auxiliary loss trains.

    * Corrections that were rolled out: the right ones of failed attempts; with ``aux.kind=contrastive`` the first of
      each attempt, and a row to append that has the attempt as its response to the same prompt.
    * With ``aux.distill_below``, those right ones whose prompt mostly fails once more: a row to append under the plain
      prompt.
    * Pairs, with ``source`` paired or both: a row to append for each pair of :func:`aux_rows.draw_pairs`, under the
      prompt of :func:`aux_rows.pair_prompt`, with the right rollout as its response; with ``aux.kind=contrastive`` a
      second one with the failed attempt.

    A row without a token to train, because rollout correction has rejected it, is in neither.

    Args:
        batch: as it will be trained, with a column ``raw_prompt``.
        table: its rows, in its order.
        config: all knobs.
        chats: over the policy's tokenizer.
        step: the training step; with ``config.seed`` it decides the draws.
    """
    plan = AuxPlan()
    trained = (batch.batch["response_mask"] != 0).any(dim=-1).tolist()
    row_of = {key: row for row, key in enumerate(table.keys) if trained[row]}
    if config.aux.kind == "contrastive":
        _prefer_corrections(batch, table, row_of, plan)
    else:
        kept = (row_of[key] for key in table.right_corrections() if key in row_of)
        plan.chosen = {row: number for number, row in enumerate(kept)}
    _distil_corrections(batch, table, row_of, plan, below=config.aux.distill_below)
    if config.pairs:
        _pair_attempts(batch, table, row_of, plan, config=config, chats=chats, step=step)
    return plan


def _has_images(batch: DataProto, row: int) -> bool:
    images = batch.non_tensor_batch.get("multi_modal_inputs")
    return images is not None and bool(images[row])


def _prompt_ids(batch: DataProto, row: int) -> list[int]:
    """The prompt of a row without its padding."""
    prompts = batch.batch["prompts"][row]
    return prompts[batch.batch["attention_mask"][row, : len(prompts)] != 0].tolist()


def _prefer_corrections(batch: DataProto, table: RowTable, row_of: Mapping[str, int], plan: AuxPlan) -> None:
    for number, (key, attempt) in enumerate(table.preferences().items()):
        if key not in row_of or attempt not in row_of:
            continue
        row = row_of[key]
        if _has_images(batch, row):
            plan.counts["no_text_question"] += 1
            continue
        plan.chosen[row] = number
        plan.rows.append(
            AuxRow(
                source=row_of[attempt],
                uid=f"{split_key(key)[0]}r",
                messages=batch.non_tensor_batch["raw_prompt"][row],
                prompt_ids=_prompt_ids(batch, row),
                sign=REJECTED,
                pair=number,
            )
        )


def _distil_corrections(
    batch: DataProto, table: RowTable, row_of: Mapping[str, int], plan: AuxPlan, *, below: float
) -> None:
    for key, attempt in table.plain_prompts(below).items():
        if key not in row_of:
            continue
        # Of the attempt only the prompt counts, so that it may be one without a token to train.
        row = table.keys.index(attempt)
        if _has_images(batch, row) or _has_images(batch, row_of[key]):
            plan.counts["no_text_question"] += 1
            continue
        plan.counts["distilled"] += 1
        plan.rows.append(
            AuxRow(
                source=row_of[key],
                uid=f"{split_key(key)[0]}q",
                messages=batch.non_tensor_batch["raw_prompt"][row],
                prompt_ids=_prompt_ids(batch, row),
                sign=CHOSEN,
                pair=-1,
            )
        )


def _pair_attempts(
    batch: DataProto,
    table: RowTable,
    row_of: Mapping[str, int],
    plan: AuxPlan,
    *,
    config: CIPOConfig,
    chats: Chats,
    step: int,
) -> None:
    groups, key_of = table.attempts()
    groups = [Group(group.uid, tuple(a for a in group.attempts if key_of[a] in row_of)) for group in groups]
    pairs, skipped = draw_pairs([group for group in groups if group.attempts], config=config, step=step)
    plan.counts.update(skipped)

    def shown(attempt: Attempt) -> Shown:
        row = row_of[key_of[attempt]]
        return Shown(
            response_ids=response_ids(batch, row),
            messages=list(batch.non_tensor_batch["raw_prompt"][row]),
            images=_has_images(batch, row),
        )

    for rows in pair_rows(chats, pairs, shown, first=len(batch), counts=plan.counts):
        shared = {"uid": rows.uid, "messages": rows.messages, "prompt_ids": rows.prompt_ids, "pair": rows.number}
        plan.rows.append(AuxRow(source=row_of[key_of[rows.pair.donor]], sign=CHOSEN, **shared))
        if config.aux.kind == "contrastive":
            plan.rows.append(AuxRow(source=row_of[key_of[rows.pair.anchor]], sign=REJECTED, **shared))


def append_rows(batch: DataProto, plan: AuxPlan, *, pad_token_id: int, optimizer_steps: int) -> DataProto:
    """A new batch with the rows of ``plan`` after those of ``batch``, and the auxiliary fields on all of them.

    The rows of ``batch`` keep every bit, except that prompts are padded further on the left when a new one is longer.
    What a new row gets:

    * sequence tensors: its prompt, with the response of row ``source``; position ids count the tokens, in every channel
      where they have several (text has equal positions in all),
    * response mask, rewards, and all that verl computes from a row (log-probabilities, values, advantages): zeros; the
      trained tokens are those of the source's mask,
    * other tensors over prompt and response, or over the prompt (second dimension as wide as theirs): the source's part
      over the response, zeros over the prompt,
    * ``uid``, ``raw_prompt`` (``raw_prompt_ids``): its own; ``multi_modal_inputs``: none,
    * everything else, tensors over the response and non-tensor keys alike: the source's.

    Args:
        batch: prompts padded on the left, responses on the right.
        plan: its rows may be none; the fields are there all the same.
        pad_token_id: fills prompts on the left.
        optimizer_steps: see ``core.losses.aux_weights``. The partner of contrastive rows stays 0 until
            :func:`fill_partners`.

    Raises:
        ValueError: the batch lacks a needed key, or holds one that cannot be made for a new row; rows were appended
            before; a source has no trained token.
    """
    rows, tensors = plan.rows, dict(batch.batch.items())
    if rows:
        check_keys(tensors, needed=(*_SEQUENCE, "response_mask"))
        check_keys(batch.non_tensor_batch, needed=("uid",))
    if SIGN in tensors:
        raise ValueError(f"the batch has {SIGN!r}: rows were appended before")
    source = torch.tensor([row.source for row in rows], dtype=torch.int64)
    old_width = tensors["prompts"].shape[1]
    width = max([old_width, *(len(row.prompt_ids) for row in rows)])
    response_width = tensors["responses"].shape[1]
    # A tensor as wide as the prompts is one over the prompt, unless responses are as wide.
    over_prompt = {old_width + response_width, old_width} - {response_width}

    prompts = tensors["prompts"].new_full((len(rows), width), pad_token_id)
    prompt_mask = tensors["attention_mask"].new_zeros((len(rows), width))
    for i, row in enumerate(rows):
        start = width - len(row.prompt_ids)
        prompts[i, start:] = torch.tensor(row.prompt_ids)
        prompt_mask[i, start:] = 1
    attention = torch.cat([prompt_mask, tensors["attention_mask"][source, old_width:]], dim=1)
    positions = (attention.cumsum(dim=-1) - 1).clamp(min=0)
    made = {
        "prompts": prompts,
        "input_ids": torch.cat([prompts, tensors["responses"][source]], dim=1),
        "attention_mask": attention,
        "position_ids": in_channels(positions, tensors["position_ids"]),
    }

    out = {}
    for key, tensor in tensors.items():
        if key in ("prompts", "input_ids"):
            tensor = _widen(tensor, width - old_width, fill=pad_token_id, dim=1)
        elif key == "position_ids":
            tensor = _widen(tensor, width - old_width, fill=0, dim=-1)
        elif tensor.dim() > 1 and tensor.shape[1] in over_prompt:
            tensor = _widen(tensor, width - old_width, fill=0, dim=1)
            if key not in made:
                made[key] = tensor[source]
                made[key][:, :width] = 0
        elif key in ZERO:
            made[key] = torch.zeros_like(tensor[source])
        new = made[key] if key in made else tensor[source]
        out[key] = torch.cat([tensor, new.to(tensor.dtype)])

    untrained = len(batch)
    out[SIGN] = torch.tensor([UNTRAINED] * untrained + [row.sign for row in rows])
    out[PAIR] = torch.tensor([-1] * untrained + [row.pair for row in rows], dtype=torch.int64)
    for row, pair in plan.chosen.items():
        out[SIGN][row], out[PAIR][row] = CHOSEN, pair
    token_mask = torch.cat([tensors["response_mask"], tensors["response_mask"][source]])
    out[WEIGHTS] = aux_weights(token_mask, out[SIGN], optimizer_steps=optimizer_steps)
    out[PARTNER] = torch.zeros(len(token_mask))
    return DataProto(
        batch=TensorDict(out, batch_size=[len(token_mask)]),
        non_tensor_batch=_append_non_tensors(batch.non_tensor_batch, rows),
        meta_info=dict(batch.meta_info),
    )


def fill_partners(batch: DataProto, old_log_probs: Tensor) -> None:
    """Set the partners of contrastive pairs in place; rows in any order.

    Args:
        batch: with the fields of :func:`append_rows`.
        old_log_probs: (N, T), what the policy before the update gives to the rows' responses, read only where a token
            has a weight. ``batch.batch["old_log_probs"]`` holds that when the rows were appended before verl computed
            it, and zeros when they were appended later.

    Raises:
        ValueError: a pair is not complete.
    """
    fields = batch.batch
    fields[PARTNER] = partner_scores(old_log_probs, fields[WEIGHTS], fields[SIGN], fields[PAIR])


def _widen(tensor: Tensor, by: int, *, fill: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = by
    return torch.cat([tensor.new_full(shape, fill), tensor], dim=dim)


def _append_non_tensors(fields: Mapping[str, np.ndarray], rows: Sequence[AuxRow]) -> dict[str, np.ndarray]:
    source = np.array([row.source for row in rows], dtype=np.int64)
    own = {
        "uid": [row.uid for row in rows],
        "raw_prompt": [row.messages for row in rows],
        "raw_prompt_ids": [row.prompt_ids for row in rows],
        "multi_modal_inputs": [{} for _ in rows],
    }
    return {
        key: np.concatenate([values, objects(own[key]) if key in own else values[source]])
        for key, values in fields.items()
    }
