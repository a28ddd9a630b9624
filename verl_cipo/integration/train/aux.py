"""Rows trained beside the policy loss, in TransferQueue: what ``core.aux_loss.plan`` decided is appended and marked.

An appended row is a response that was rolled out, under another prompt. Its response mask, rewards, log-probabilities
and advantages are zero, as those of verl's own padding rows are, so policy loss, KL, entropy, their normalisers,
rollout-correction weights and group statistics do not see it. It is trained through the fields of
``core.aux_loss.losses``, ``core.aux_loss.transfer`` and ``core.aux_loss.distill`` alone. What does see it are means
over rows or micro-batches, docs/method.md 13 has them: metrics, the KL that an adaptive ``algorithm.kl_ctrl`` follows,
and the policy loss geo_mean; and the policy loss bypass_mode refuses a micro-batch of nothing else. Any moment after
the reward is right to add such rows. In the V1 trainers it is ``_balance_batch``, so that verl pads and spreads them
with the others, and the tag ``is_padding`` keeps them out of its data metrics.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transfer_queue import KVBatchMeta
from verl.utils.model import extract_multi_modal_inputs
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_cipo.core.aux_loss.losses import PAIR, PARTNER, SIGN, WEIGHTS, partner_scores
from verl_cipo.core.aux_loss.plan import AuxPlan, Shown, Tools, plan_aux
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.rows import RowTable
from verl_cipo.integration.rendering import Positions, Rendering, text_positions
from verl_cipo.integration.train.rows import each_row

ZERO = (
    "response_mask",
    "loss_mask",
    "rm_scores",
    "token_level_scores",
    "token_level_rewards",
    "rollout_log_probs",
    "old_log_probs",
    "entropy",
    "ref_log_prob",
    "values",
    "rollout_is_weights",
    "advantages",
    "returns",
)
"""Fields that are zero in such a row."""

BOUND = {"mm_token_type_ids", "token_type_ids", "cross_attention_mask", "image_bound"}
"""Inputs of some models that hold a value for each token of the row: they fit no other row."""

_REFUSED = {
    "teacher_logprobs": "no teacher has seen an appended row: turn distillation off",
    "teacher_ids": "no teacher has seen an appended row: turn distillation off",
}


@dataclass(frozen=True)
class AuxRows:
    """What is trained of a batch beside the policy loss."""

    plan: AuxPlan
    token_mask: Mapping[str, Tensor]
    """Tokens that the policy wrote, of appended rows: their own mask is empty."""

    def put_fields(self, batch: KVBatchMeta, *, config: CIPOConfig, optimizer_steps: int) -> KVBatchMeta:
        """Write the fields of ``core.aux_loss`` for all rows of ``batch``, padding included: of what is on.

        Args:
            batch: in the order of the update, with ``old_log_probs`` where the auxiliary loss is contrastive.

        Returns:
            the batch, which now names these fields among those that the workers fetch.
        """
        named = self.plan.trained
        places = [i for i, key in enumerate(batch.keys) if key in named]
        keys = [batch.keys[i] for i in places]
        masks, old_log_probs = self._read(keys, batch.partition_id, contrastive=config.aux.contrastive)
        lengths = [tag["response_len"] for tag in batch.tags]

        def of_all(values: Tensor) -> Tensor:
            if values.dim() == 2:
                return spread(values, places, lengths)
            return torch.zeros(len(lengths)).index_put((torch.tensor(places, dtype=torch.int64),), values.float())

        # Rollout correction may have rejected all tokens of a row since.
        empty = {key for key, row in zip(keys, masks, strict=True) if not row.any()}
        fields = self.plan.fields(keys, masks, config=config, optimizer_steps=optimizer_steps, without=empty)
        if config.aux.contrastive:
            fields[PARTNER] = partner_scores(old_log_probs, fields[WEIGHTS], fields[SIGN], fields[PAIR])
        self.plan.drop(empty)
        return tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(
                {name: of_all(values) for name, values in fields.items() if name != PAIR}, batch_size=len(batch.keys)
            ),
        )

    def _read(self, keys: Sequence[str], partition_id: str, *, contrastive: bool) -> tuple[Tensor, Tensor]:
        """Of rows (K, T), padded with 0: tokens that the policy wrote and that were not rejected; and where contrastive
        asks for them, log-probabilities.
        """
        nothing = torch.zeros(0, 0)
        if not keys:
            return nothing, nothing
        needed = ["response_mask", "old_log_probs"] if contrastive else ["response_mask"]
        data = tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=needed)
        masks = [self.token_mask.get(key, own) for key, own in zip(keys, data["response_mask"].unbind(), strict=True)]
        scores = pad_sequence(data["old_log_probs"].unbind(), batch_first=True) if contrastive else nothing
        return pad_sequence(masks, batch_first=True), scores


def add_aux_rows(
    batch: KVBatchMeta,
    table: RowTable,
    *,
    config: CIPOConfig,
    rendering: Rendering,
    step: int,
    in_stream: bool,
    norm_by_std: bool,
) -> tuple[KVBatchMeta, AuxRows]:
    """Plan what is trained beside the policy loss, and append the rows that it needs.

    Args:
        batch: as sampled.
        table: its rows.
        step: the training step; with ``config.seed`` it decides the draw of pairs.
        in_stream: whether corrections are trained by the policy loss as well; else the auxiliary loss gives right ones
            rows of their own.
        norm_by_std: ``algorithm.norm_adv_by_std_in_grpo``.
    """
    read: dict[str, dict[str, Any]] = {}

    def bound(inputs: Mapping[str, Any]) -> bool:
        return not BOUND.isdisjoint(inputs) or rendering.tools.bind(inputs)

    def shown(keys: Sequence[str]) -> dict[str, Shown]:
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id)
        read.update(zip(keys, each_row(data), strict=True))
        return {
            key: Shown(
                prompt_ids=row["prompts"].tolist(),
                response_ids=row["responses"].tolist(),
                messages=list(row["raw_prompt"]),
                bound=bound(row.get("multi_modal_inputs") or {}),
            )
            for key, row in read.items()
        }

    def offered(key: str) -> Tools | None:
        row = read[key]
        asked = (list(row["raw_prompt"]), row["prompts"].tolist(), row.get("extra_info"))
        return rendering.tools.offered(rendering.encode, *asked)

    plan = plan_aux(
        table,
        shown,
        config=config,
        prompt=rendering.prompt,
        encode=rendering.encode,
        offered=offered,
        step=step,
        in_stream=in_stream,
        norm_by_std=norm_by_std,
    )
    aux = AuxRows(plan, {str(new.key): read[new.source]["response_mask"] for new in plan.rows})
    if not plan.rows:
        return batch, aux
    tag_of = dict(zip(batch.keys, batch.tags, strict=True))
    keys, fields, tags = [], [], []
    for new in plan.rows:
        row = aux_row(
            read[new.source],
            new.prompt_ids,
            uid=new.key.group,
            messages=new.messages,
            inputs=joined_inputs([read[key].get("multi_modal_inputs") for key in new.media]),
            positions=rendering.positions,
        )
        keys.append(str(new.key))
        fields.append(row)
        tags.append(aux_tag(tag_of[new.source], row))
    tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=list_of_dict_to_tensordict(fields), tags=tags)
    grown = KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[*batch.keys, *keys],
        tags=[*batch.tags, *tags],
        fields=batch.fields,
        extra_info=batch.extra_info,
    )
    return grown, aux


def spread(values: Tensor, places: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Jagged float32 (N, *) of rows of these lengths, 0 but for (K, T) `values`, padded, in the rows at `places`."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    flat = torch.zeros(int(offsets[-1]))
    for row, place in zip(values, places, strict=True):
        flat[offsets[place] : offsets[place + 1]] = row[: lengths[place]]
    return torch.nested.nested_tensor_from_jagged(flat, offsets)


def joined_inputs(of_rows: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """What the model sees of the media of several rows, one after the other, as verl joins those of a micro-batch."""
    return extract_multi_modal_inputs([dict(inputs) for inputs in of_rows if inputs])


def aux_row(
    source: Mapping[str, Any],
    prompt_ids: Sequence[int],
    *,
    uid: str,
    messages: list[dict],
    inputs: Mapping[str, Any] = MappingProxyType({}),
    positions: Positions = text_positions,
) -> dict[str, Any]:
    """The row of ``v0.aux.append_rows`` from one unpadded sample, such as an element of ``tq.kv_batch_get``.

    Args:
        source: the sample whose response is taken; tensors without a batch dimension: prompts (P,), responses (R,),
            input_ids (P + R,), position_ids (..., P + R), response_mask (R,).
        prompt_ids: the new prompt's tokens.
        uid: the new row's group, see ``core.keys.GroupName``.
        messages: the new prompt's chat, stored as ``raw_prompt``.
        inputs: the new prompt's ``multi_modal_inputs``.
        positions: of ``integration.rendering``; gives position ids where there are ``inputs``.

    Returns:
        all keys of ``source``. The tokens to train are those of ``source["response_mask"]``: the auxiliary fields are
        not among the keys, since verl makes its padding rows by copying a row of another length.

    Raises:
        ValueError: as ``v0.aux.append_rows``.
    """
    check_keys(source, needed=("prompts", "responses", "input_ids", "position_ids", "response_mask"))
    response, sequence = source["responses"], len(source["input_ids"])
    prompt = torch.tensor(prompt_ids, dtype=response.dtype)
    tokens = torch.cat([prompt, response])
    made: dict[str, Any] = {
        "prompts": prompt,
        "input_ids": tokens,
        "attention_mask": torch.ones(len(tokens), dtype=torch.int64),
        "position_ids": in_channels(positions(tokens, inputs), source["position_ids"]),
        "uid": uid,
        "raw_prompt": messages,
        "multi_modal_inputs": dict(inputs),
    }
    row = {}
    for key, value in source.items():
        if key in made:
            row[key] = made[key]
        elif key in ZERO:
            row[key] = torch.zeros_like(value)
        elif isinstance(value, Tensor) and value.dim() > 0 and len(value) == sequence != len(response):
            kept = value[sequence - len(response) :]
            row[key] = torch.cat([kept.new_zeros(len(prompt), *kept.shape[1:]), kept])
        else:
            row[key] = value.clone() if isinstance(value, Tensor) else value
    return row


def aux_tag(tag: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The TransferQueue tag of a row of :func:`aux_row`: the source's, with its own lengths.

    ``is_padding`` keeps it out of verl's data metrics, which would count its zero reward.
    """
    prompt_len, response_len = len(row["prompts"]), len(row["responses"])
    lengths = {"prompt_len": prompt_len, "response_len": response_len, "seq_len": prompt_len + response_len}
    return {**tag, **lengths, "is_padding": True}


def check_keys(fields: Iterable[str], *, needed: Sequence[str]) -> None:
    """Raise ValueError when a needed key is missing, or one is there that cannot be made for a new row."""
    names = set(fields)
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"the batch has {sorted(names)}: {', '.join(missing)} must be among them")
    for name, remedy in _REFUSED.items():
        if name in names:
            raise ValueError(f"the batch has {name!r}: {remedy}")


def in_channels(positions: Tensor, like: Tensor) -> Tensor:
    """Position ids (..., L) repeated over the channels that those of ``like`` have before their last dimension."""
    for size in like.shape[positions.dim() - 1 : -1]:
        positions = positions.unsqueeze(-2).expand(*positions.shape[:-1], size, positions.shape[-1])
    return positions.to(like.dtype).clone()
