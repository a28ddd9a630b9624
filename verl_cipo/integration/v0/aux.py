"""Rows trained beside the policy loss, in verl's DataProto: what ``core.aux_loss.plan`` decided is appended and marked.

What of verl sees an appended row is said in ``train.aux``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto

from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS
from verl_cipo.core.aux_loss.losses import PAIR, PARTNER, SIGN, WEIGHTS, partner_scores
from verl_cipo.core.aux_loss.plan import AuxPlan, NewRow, Shown, Tools, plan_aux
from verl_cipo.core.aux_loss.transfer import TRANSFER_WEIGHTS
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.rows import RowTable
from verl_cipo.integration.rendering import Rendering
from verl_cipo.integration.train.aux import ZERO, check_keys, in_channels
from verl_cipo.integration.v0.rows import objects, prompt_ids, response_ids, row_keys

_SEQUENCE = ("prompts", "responses", "input_ids", "attention_mask", "position_ids")


def plan_of_batch(
    batch: DataProto,
    table: RowTable,
    *,
    config: CIPOConfig,
    rendering: Rendering,
    step: int,
    norm_by_std: bool = True,
) -> AuxPlan:
    """What is trained beside the policy loss of ``batch``, which is as it will be trained.

    Rows without a token are left out.

    Args:
        batch: with a column ``raw_prompt``.
        table: its rows, in its order.
        step: the training step; with ``config.seed`` it decides the draws.
        norm_by_std: ``algorithm.norm_adv_by_std_in_grpo``.
    """
    row_of = {key: row for row, key in enumerate(table.keys)}
    columns = batch.non_tensor_batch
    inputs = columns.get("multi_modal_inputs", [None] * len(batch))

    def offered(key: str) -> Tools | None:
        row = row_of[key]
        extra_info = columns["extra_info"][row] if "extra_info" in columns else None
        asked = (list(columns["raw_prompt"][row]), prompt_ids(batch, row), extra_info)
        return rendering.tools.offered(rendering.encode, *asked)

    def shown(keys: Sequence[str]) -> dict[str, Shown]:
        return {
            key: Shown(
                prompt_ids=prompt_ids(batch, row_of[key]),
                response_ids=response_ids(batch, row_of[key]),
                messages=list(columns["raw_prompt"][row_of[key]]),
                bound=bool(inputs[row_of[key]]),
            )
            for key in keys
        }

    return plan_aux(
        table,
        shown,
        config=config,
        prompt=rendering.prompt,
        encode=rendering.encode,
        offered=offered,
        step=step,
        trained=(batch.batch["response_mask"] != 0).any(dim=-1).numpy(),
        norm_by_std=norm_by_std,
    )


def append_rows(
    batch: DataProto, plan: AuxPlan, *, config: CIPOConfig, pad_token_id: int, optimizer_steps: int
) -> DataProto:
    """A new batch with the rows of ``plan`` after those of ``batch``, and the fields of what is on on all of them.

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
        config: says which fields.
        pad_token_id: fills prompts on the left.
        optimizer_steps: see ``core.aux_loss.losses.aux_weights``. The partner of contrastive rows stays 0 until
            :func:`fill_partners`.

    Raises:
        ValueError: the batch lacks a needed key, or holds one that cannot be made for a new row; rows were appended
            before; a source has no trained token.
    """
    rows, tensors = plan.rows, dict(batch.batch.items())
    if rows:
        check_keys(tensors, needed=(*_SEQUENCE, "response_mask"))
        check_keys(batch.non_tensor_batch, needed=("uid",))
    keys = row_keys(batch)
    row_of = {key: row for row, key in enumerate(keys)}
    taken = np.array([row_of[row.source] for row in rows], dtype=np.int64)
    if found := {SIGN, TRANSFER_WEIGHTS, NUDGE_WEIGHTS} & tensors.keys():
        raise ValueError(f"the batch has {sorted(found)}: rows were appended before, expected once")
    source = torch.from_numpy(taken)
    old_width = tensors["prompts"].shape[1]
    width = max([old_width, *(len(row.prompt_ids) for row in rows)])
    response_width = tensors["responses"].shape[1]
    # A tensor as wide as the prompts is one over the prompt, unless responses are as wide.
    over_prompt = {old_width + response_width, old_width} - {response_width}

    made = _sequences(tensors, rows, source, width=width, pad_token_id=pad_token_id)
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

    keys += [str(row.key) for row in rows]
    token_mask = torch.cat([tensors["response_mask"], tensors["response_mask"][source]])
    out |= plan.fields(keys, token_mask, config=config, optimizer_steps=optimizer_steps)
    return DataProto(
        batch=TensorDict(out, batch_size=[len(token_mask)]),
        non_tensor_batch=_append_non_tensors(batch.non_tensor_batch, rows, taken),
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


def _sequences(
    tensors: Mapping[str, Tensor], rows: Sequence[NewRow], source: Tensor, *, width: int, pad_token_id: int
) -> dict[str, Tensor]:
    """The sequence tensors of new rows: their prompts, (K, width), with the responses of the rows `source`, (K,)."""
    prompts = tensors["prompts"].new_full((len(rows), width), pad_token_id)
    prompt_mask = tensors["attention_mask"].new_zeros((len(rows), width))
    for i, row in enumerate(rows):
        start = width - len(row.prompt_ids)
        prompts[i, start:] = torch.tensor(row.prompt_ids)
        prompt_mask[i, start:] = 1
    attention = torch.cat([prompt_mask, tensors["attention_mask"][source, tensors["prompts"].shape[1] :]], dim=1)
    positions = (attention.cumsum(dim=-1) - 1).clamp(min=0)
    return {
        "prompts": prompts,
        "input_ids": torch.cat([prompts, tensors["responses"][source]], dim=1),
        "attention_mask": attention,
        "position_ids": in_channels(positions, tensors["position_ids"]),
    }


def _widen(tensor: Tensor, by: int, *, fill: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = by
    return torch.cat([tensor.new_full(shape, fill), tensor], dim=dim)


def _append_non_tensors(
    fields: Mapping[str, np.ndarray], rows: Sequence[NewRow], source: np.ndarray
) -> dict[str, np.ndarray]:
    own = {
        "uid": [row.key.group for row in rows],
        "raw_prompt": [row.messages for row in rows],
        "raw_prompt_ids": [row.prompt_ids for row in rows],
        "multi_modal_inputs": [{} for _ in rows],
    }
    return {
        key: np.concatenate([values, objects(own[key]) if key in own else values[source]])
        for key, values in fields.items()
    }
