"""Made-up scored batches of verl's DataProto, and the transform applied to them."""

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.utils.model import compute_position_id_with_mask

from verl_cipo.core.config import AuxConfig, CIPOConfig
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.integration.rendering import Rendering
from verl_cipo.integration.tools import NO_TOOLS
from verl_cipo.integration.v0.aux import append_rows, plan_of_batch
from verl_cipo.integration.v0.rows import objects, row_table

PAD = 0
R = 4  # response width
FIELDS = {"cipo_aux_weights", "cipo_aux_sign", "cipo_aux_partner", "cipo_aux_pair"}


def encode(text):
    return [ord(c) for c in text]


def decode(ids):
    return "".join(map(chr, ids))


def encode_chat(messages, tools=()):
    offered = "".join(f"[{tool['function']['name']}]" for tool in tools)
    return encode("".join(message["content"] for message in messages) + ">" + offered)


def scored(outcomes, *, width=3, channels=None, seed=0, extra=True):
    """A scored batch: `outcomes` has a string of + and - a prompt. Prompt i asks "Q<i>"; tokens are characters."""
    torch.manual_seed(seed)
    marks = [(i, mark) for i, own in enumerate(outcomes) for mark in own]
    n = len(marks)
    questions = [encode(f"Q{i}>") for i, _ in marks]
    prompts = torch.tensor([[PAD] * (width - len(q)) + q for q in questions]).reshape(n, width)
    lengths = torch.randint(1, R + 1, (n,))
    response_attention = (torch.arange(R) < lengths.unsqueeze(-1)).long()
    responses = torch.randint(ord("a"), ord("z"), (n, R)) * response_attention
    attention = torch.cat([(prompts != PAD).long(), response_attention], dim=1)
    positions = compute_position_id_with_mask(attention)
    if channels:
        positions = positions.unsqueeze(1).repeat(1, channels, 1)
    # The verdict sits on the last token, as in verl.
    rewards = torch.zeros(n, R)
    rewards[torch.arange(n), lengths - 1] = torch.tensor([float(mark == "+") for _, mark in marks])
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": attention,
        "position_ids": positions,
        "response_mask": response_attention.clone(),
        "rm_scores": rewards,
        "rollout_log_probs": -torch.rand(n, R) * response_attention,
    }
    other = {
        "session_id": np.array([session for own in outcomes for session in range(len(own))], dtype=np.int64),
        "cipo": objects([{"correct": mark == "+"} for _, mark in marks]),
        "uid": np.array([f"u{i}" for i, _ in marks]),
        "index": np.array([i for i, _ in marks], dtype=np.int64),
        "raw_prompt": objects([[{"role": "user", "content": f"Q{i}"}] for i, _ in marks]),
        "data_source": np.array(["toy"] * n, dtype=object),
    }
    if extra:
        tensors |= {
            "token_extra": torch.rand(n, R),
            "row_extra": torch.arange(n),
            "vector_extra": torch.rand(n, 999, dtype=torch.float64),
            "sequence_extra": torch.rand(n, width + R, 2),
            "prompt_extra": torch.rand(n, width),
        }
        other |= {"acc": np.array([mark == "+" for _, mark in marks]), "note": np.array([{}] * n, dtype=object)}
    meta = {"temperature": 0.7, "reward_extra_keys": ["acc"] if extra else []}
    return DataProto(batch=TensorDict(tensors, batch_size=[n]), non_tensor_batch=other, meta_info=meta)


def chats_of(config, *, prompt_length=10_000, tools=NO_TOOLS):
    """Rendering over characters for tokens."""
    prompt = CorrectionPrompt(
        config.prompt,
        prompt_length=prompt_length,
        count_tokens=lambda messages: len(encode_chat(messages)),
        encode=encode,
        decode=decode,
    )
    return Rendering(prompt=prompt, encode=encode_chat, tools=tools)


def appended(batch, *, kind="nll", step=1, optimizer_steps=1, **knobs):
    """The batch with the auxiliary loss's rows and fields, and the counts of its plan; pairs of wrong attempts."""
    failed_alone = {"rho_init": 0.0, "rho_adaptive": False}
    aux = AuxConfig(kind=kind, coef=0.1)
    config = CIPOConfig(
        **{"preset": "stream", "source": "paired", "replay_fraction": 4.0, "aux": aux} | failed_alone | knobs
    )
    plan = plan_of_batch(batch, row_table(batch), config=config, rendering=chats_of(config), step=step)
    grown = append_rows(batch, plan, config=config, pad_token_id=PAD, optimizer_steps=optimizer_steps)
    return grown, plan.counts


def text_of(batch, row, part):
    ids = batch.batch[part][row]
    mask = batch.batch["attention_mask"][row]
    return decode(ids[(mask[: len(ids)] if part == "prompts" else mask[-len(ids) :]).bool()].tolist())
