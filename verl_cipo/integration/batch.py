"""Paired corrections appended to a scored batch of verl's DataProto, as rows for the auxiliary loss.

What such a row is, and what of verl sees it, is said in ``aux_rows``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.losses import CHOSEN, PARTNER, REJECTED, SIGN, UNTRAINED, WEIGHTS, aux_weights, partner_scores
from verl_cipo.integration.aux_rows import ZERO, Shown, check_keys, draw_pairs, in_channels, pair_prompt, pair_uid
from verl_cipo.integration.chats import Chats
from verl_cipo.integration.outcome import verdict

PAIR = "cipo_aux_pair"
"""int64 (N,): equal for the two rows of a pair, -1 where a row is in none."""

_SEQUENCE = ("prompts", "responses", "input_ids", "attention_mask", "position_ids")
_PER_ROW = ("uid", "index", "raw_prompt")


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


def append_pairs(
    batch: DataProto,
    *,
    config: CIPOConfig,
    chats: Chats,
    pad_token_id: int,
    step: int,
    optimizer_steps: int,
) -> tuple[DataProto, Counter]:
    """Pair failed attempts of a scored batch with right rollouts and append a row for each pair.

    Which pairs: :func:`aux_rows.draw_pairs`; under which prompt: :func:`aux_rows.pair_prompt`. The right rollout is the
    row's response. With ``aux.kind=contrastive`` a second row has the failed attempt as its response to that prompt.

    Args:
        batch: after rollout and reward; see :func:`append_rows`. Its non-tensor keys must hold ``uid``, ``index`` and
            ``raw_prompt`` (verl's ``_get_gen_batch`` takes the last two out).
        config: all knobs; ``source`` is not looked at.
        chats: over the policy's tokenizer.
        pad_token_id: fills prompts on the left.
        step: the training step; with ``config.seed`` it decides the draws.
        optimizer_steps: how many optimizer steps the batch is trained with.

    Returns:
        a new batch, and how many pairs were made (``pairs``), those of two prompts among them (``adjacent``), and
        failed attempts without one: ``no_donor``, ``other_question``, or the reason why no prompt could be built.

    Raises:
        ValueError: as :func:`append_rows`, or a row has no reward.
    """
    groups, row_of, prompt_of = _groups(batch, config.correct_threshold)
    pairs, counts = draw_pairs(groups, config=config, step=step)
    images = batch.non_tensor_batch.get("multi_modal_inputs")

    def shown(attempt: Attempt) -> Shown:
        i = row_of[attempt]
        has_images = images is not None and bool(images[i])
        return Shown(response_ids=_response_ids(batch, i), messages=prompt_of[attempt.uid], images=has_images)

    rows: list[AuxRow] = []
    for pair in pairs:
        messages, reason = pair_prompt(chats, pair, failed=shown(pair.anchor), right=shown(pair.donor))
        if messages is None:
            counts[reason] += 1
            continue
        shared = {
            "uid": pair_uid(pair.anchor.uid, pair.anchor.session),
            "messages": messages,
            "prompt_ids": chats.encode(messages),
            "pair": counts["pairs"],
        }
        rows.append(AuxRow(source=row_of[pair.donor], sign=CHOSEN, **shared))
        if config.aux.kind == "contrastive":
            rows.append(AuxRow(source=row_of[pair.anchor], sign=REJECTED, **shared))
        counts["pairs"] += 1
        counts["adjacent"] += not pair.same_prompt
    return append_rows(batch, rows, pad_token_id=pad_token_id, optimizer_steps=optimizer_steps), counts


def append_rows(batch: DataProto, rows: Sequence[AuxRow], *, pad_token_id: int, optimizer_steps: int) -> DataProto:
    """A new batch with ``rows`` after those of ``batch``, and the auxiliary fields on all of them.

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
        rows: may be empty; the fields are there all the same.
        pad_token_id: fills prompts on the left.
        optimizer_steps: see ``core.losses.aux_weights``. The partner of contrastive rows stays 0 until
            :func:`fill_partners`.

    Raises:
        ValueError: the batch lacks a needed key, or holds one that cannot be made for a new row; rows were appended
            before; a source has no trained token.
    """
    tensors = dict(batch.batch.items())
    check_keys(tensors, needed=(*_SEQUENCE, "response_mask"))
    check_keys(batch.non_tensor_batch, needed=("uid",))
    if SIGN in tensors:
        raise ValueError(f"the batch has {SIGN!r}: rows were appended before, allowed is once")
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


def _groups(batch: DataProto, threshold: float) -> tuple[list[Group], dict[Attempt, int], dict[str, list[dict]]]:
    """The batch's groups, the row of each attempt, and each prompt's chat. Rows without a trained token are left out.

    A session is numbered by its place among the rows of its prompt.
    """
    check_keys(batch.non_tensor_batch, needed=_PER_ROW)
    uids, indexes, chats = (batch.non_tensor_batch[name] for name in _PER_ROW)
    rewards = next((batch.batch[name] for name in ("rm_scores", "token_level_scores") if name in batch.batch), None)
    if rewards is None:
        raise ValueError(f"the batch has {sorted(batch.batch.keys())}: it has no reward, rm_scores must be among them")
    scores = rewards.sum(dim=-1).tolist()
    trained = (batch.batch["response_mask"] != 0).any(dim=-1).tolist()
    extra_keys = batch.meta_info.get("reward_extra_keys", [])
    attempts: dict[str, list[Attempt]] = {}
    row_of, prompt_of, seen = {}, {}, Counter()
    for i, uid in enumerate(uids):
        session = seen[uid]
        seen[uid] += 1
        if not trained[i]:
            continue
        extra = {key: batch.non_tensor_batch[key][i] for key in extra_keys}
        attempt = Attempt(
            uid=uid,
            index=indexes[i],
            session=session,
            correct=verdict(scores[i], extra, threshold),
            score=scores[i],
        )
        attempts.setdefault(uid, []).append(attempt)
        row_of[attempt] = i
        prompt_of[uid] = list(chats[i])
    return [Group(uid, tuple(own)) for uid, own in attempts.items()], row_of, prompt_of


def _response_ids(batch: DataProto, row: int) -> list[int]:
    responses = batch.batch["responses"][row]
    return responses[batch.batch["attention_mask"][row, -len(responses) :] != 0].tolist()


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
    out = {}
    for key, values in fields.items():
        new = values[source]
        if key in own:
            new = np.empty(len(rows), dtype=object)
            for i, value in enumerate(own[key]):
                new[i] = value
        out[key] = np.concatenate([values, new])
    return out
