"""Rows for the auxiliary loss: a correction prompt, and a response that was rolled out for another prompt.

Response mask, rewards, log-probabilities and advantages of such a row are zero, as those of verl's own padding rows
are, so policy loss, KL, entropy, their normalisers, rollout-correction weights and group statistics do not see it. It
is trained through the fields of ``core.losses`` alone. What does see it are means over rows: the sequence-level metrics
of rollout correction, and the policy loss geo_mean, which divides by all rows of a micro-batch; and the policy loss
bypass_mode refuses a micro-batch of nothing else. Any moment after the reward is right to add such rows. In the V1
trainers it is ``_balance_batch``, so that verl pads and spreads them with the others, and the tag ``is_padding`` keeps
them out of its data metrics.

Here is what both data planes share, and the row as TransferQueue holds it. ``aux_proto`` appends them to a DataProto.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verl_cipo.core.anchors import Attempt, Group, anchor_budget, select_anchors
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.pairing import Pair, pair_up
from verl_cipo.integration.chats import Chats

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

_REFUSED = {
    "routed_experts": "an appended row was never rolled out, so no routing of it is known: turn router replay off",
    "teacher_logprobs": "no teacher has seen an appended row: turn distillation off",
    "teacher_ids": "no teacher has seen an appended row: turn distillation off",
}


def pair_uid(uid: str, session: int) -> str:
    """The group of the rows made for attempt ``session`` of prompt ``uid``, which no other row is in."""
    return f"{uid}_p{session}"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a pair's prompt is made of: an attempt's response, its prompt's chat, and whether that has images."""

    response_ids: list[int]
    messages: list[dict]
    images: bool


def draw_pairs(groups: Sequence[Group], *, config: CIPOConfig, step: int) -> tuple[list[Pair], Counter]:
    """Failed attempts, drawn as anchors are, each with a right rollout.

    ``round(replay_fraction * prompts)`` failed attempts of ``groups`` are drawn, prompts of medium difficulty first.

    Returns:
        the pairs, and how many attempts have none: ``no_donor``, no rollout is right; ``other_question``, the right
        rollout is of another prompt, which the contrastive loss has no use for: an attempt answers its own question.
    """
    anchors = select_anchors(
        groups,
        budget=anchor_budget(len(groups), config.replay_fraction),
        rho=0.0,
        delta_low=config.delta_low,
        delta_high=config.delta_high,
        seed=config.seed,
        step=step,
    )
    pairs = pair_up(groups, anchors, seed=config.seed, step=step)
    wanted = [pair for pair in pairs if pair.same_prompt or config.aux.kind != "contrastive"]
    no_donor = sum(not anchor.correct for anchor in anchors) - len(pairs)
    return wanted, Counter(no_donor=no_donor, other_question=len(pairs) - len(wanted))


def pair_prompt(chats: Chats, pair: Pair, *, failed: Shown, right: Shown) -> tuple[list[dict] | None, str | None]:
    """The chat of a pair's rows, or the reason why there is none, as ``CorrectionPrompt.build`` returns them.

    For a pair of one prompt that is the correction prompt; for one of two prompts the right rollout's question, with
    the failed attempt at its own as a worked example.
    """
    if failed.images or right.images:
        return None, "no_text_question"
    attempt = chats.decode(failed.response_ids)
    if pair.same_prompt:
        return chats.prompt.build(right.messages, attempt)
    return chats.prompt.build_adjacent(right.messages, attempt, attempted=failed.messages)


@dataclass(frozen=True, kw_only=True)
class PairRows:
    """What the rows made for a pair have in common."""

    pair: Pair
    number: int
    uid: str
    messages: list[dict]
    prompt_ids: list[int]


def pair_rows(
    chats: Chats, pairs: Sequence[Pair], shown: Callable[[Attempt], Shown], *, first: int, counts: Counter
) -> Iterator[PairRows]:
    """The rows of ``pairs`` that have a prompt.

    Args:
        shown: what a pair's prompt shows of an attempt.
        first: number of the first pair: those of resampled corrections are numbered from 0.
        counts: gets ``pairs``, ``adjacent``, and the reasons of those without a prompt.
    """
    for number, pair in enumerate(pairs, first):
        messages, reason = pair_prompt(chats, pair, failed=shown(pair.anchor), right=shown(pair.donor))
        if messages is None:
            counts[reason] += 1
            continue
        counts["pairs"] += 1
        counts["adjacent"] += not pair.same_prompt
        yield PairRows(
            pair=pair,
            number=number,
            uid=pair_uid(pair.anchor.uid, pair.anchor.session),
            messages=messages,
            prompt_ids=chats.encode(messages),
        )


def logged_counts(counts: Mapping[str, int]) -> Counter:
    """Counts of rows under the names that are logged, without ``cipo/``: all but three are reasons to leave one out."""
    named = ("pairs", "adjacent", "distilled")
    return Counter({f"aux/{name}" if name in named else f"aux/skipped/{name}": n for name, n in counts.items()})


def aux_row(source: Mapping[str, Any], prompt_ids: Sequence[int], *, uid: str, messages: list[dict]) -> dict[str, Any]:
    """The row of ``aux_proto.append_rows`` from one unpadded sample, such as an element of ``tq.kv_batch_get``.

    Args:
        source: the sample whose response is taken; tensors without a batch dimension: prompts (P,), responses (R,),
            input_ids (P + R,), position_ids (..., P + R), response_mask (R,).
        prompt_ids: the new prompt's tokens.
        uid: the new row's group, see :func:`pair_uid`.
        messages: the new prompt's chat, stored as ``raw_prompt``.

    Returns:
        all keys of ``source``. The tokens to train are those of ``source["response_mask"]``: the auxiliary fields are
        not among the keys, since verl makes its padding rows by copying a row of another length.

    Raises:
        ValueError: as ``aux_proto.append_rows``.
    """
    check_keys(source, needed=("prompts", "responses", "input_ids", "position_ids", "response_mask"))
    response, sequence = source["responses"], len(source["input_ids"])
    prompt = torch.tensor(prompt_ids, dtype=response.dtype)
    made: dict[str, Any] = {
        "prompts": prompt,
        "input_ids": torch.cat([prompt, response]),
        "attention_mask": torch.ones(len(prompt) + len(response), dtype=torch.int64),
        "position_ids": in_channels(torch.arange(len(prompt) + len(response)), source["position_ids"]),
        "uid": uid,
        "raw_prompt": messages,
        "multi_modal_inputs": {},
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
