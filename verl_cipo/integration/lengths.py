"""Whether training and rollout have room for the longest sequence, told before any worker starts.

verl finds out in a worker, at the first sequence that is too long. Corrections are the longest of a run: their prompt
holds question and attempt.
"""

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import CIPOConfigError

SPLIT_BY = {
    "fsdp": "fsdp_config.ulysses_sequence_parallel_size",
    "fsdp2": "fsdp_config.ulysses_sequence_parallel_size",
    "megatron": "megatron.context_parallel_size",
    "veomni": "veomni.ulysses_parallel_size",
    "torchtitan": "torchtitan.tensor_parallel_size",
}
"""``actor.strategy`` -> the key, below actor or ref, of the number of GPUs that share a sequence."""
OLD_SPLIT = "ulysses_sequence_parallel_size"
"""FSDP's former key for it, which verl prefers where it is above 1; the reference inherits this one alone."""


def check_lengths(config: DictConfig, *, corrects: bool = True) -> None:
    """Compare ``rollout.prompt_length`` and ``response_length`` with what they must fit into.

    Args:
        corrects: whether corrections are rolled out at all. Without them verl shortens a response that has no room in
            ``max_model_len``, as it does with GRPO.

    Raises:
        CIPOConfigError: names the key, its value and what to set.
    """
    rollout = config.actor_rollout_ref.rollout
    prompt, response = rollout.prompt_length, rollout.response_length
    longest = prompt + response
    sequence = (
        f"the longest sequence, actor_rollout_ref.rollout.prompt_length={prompt} and "
        f"actor_rollout_ref.rollout.response_length={response}"
    )
    if prompt < config.data.max_prompt_length:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={prompt} would cut the start off prompts of up to "
            f"data.max_prompt_length={config.data.max_prompt_length} tokens: raise the one or lower the other"
        )
    if corrects and rollout.max_model_len is not None and rollout.max_model_len < longest:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than {sequence}: set it to "
            f"{longest} or more, or lower rollout.prompt_length"
        )
    for key, tokens, gpus in _limits(config):
        if tokens is None or tokens * gpus < longest:
            shared = f" over the {gpus} GPUs that share a sequence" if gpus > 1 else ""
            raise CIPOConfigError(
                f"actor_rollout_ref.{key}={tokens} is less than {sequence}{shared}: set it to "
                f"{math.ceil(longest / gpus)} or more, or lower rollout.prompt_length"
            )


def check_model_length(config: DictConfig, hf_config: Any) -> None:
    """The same with the model's own limit, which holds where ``rollout.max_model_len`` is null.

    verl's servers shorten the response of a prompt that leaves too little room, and fail where it leaves none.

    Raises:
        CIPOConfigError: as :func:`check_lengths`.
    """
    from verl.workers.rollout.utils import get_max_position_embeddings

    rollout = config.actor_rollout_ref.rollout
    if rollout.max_model_len is not None:
        return
    longest, positions = rollout.prompt_length + rollout.response_length, get_max_position_embeddings(hf_config)
    if positions < longest:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={rollout.prompt_length} with "
            f"actor_rollout_ref.rollout.response_length={rollout.response_length} is more than the {positions} tokens "
            f"of {config.actor_rollout_ref.model.path}: lower them to {positions} together"
        )


def _limits(config: DictConfig) -> list[tuple[str, int | None, int]]:
    """(key below ``actor_rollout_ref``, tokens of a micro-batch on a GPU, GPUs that share a sequence) of each pass."""
    worker = config.actor_rollout_ref
    strategy = worker.actor.strategy
    if strategy not in SPLIT_BY or OmegaConf.select(worker.actor, "megatron.dynamic_context_parallel"):
        return []
    limits = []
    if worker.actor.use_dynamic_bsz:
        gpus = _gpus_of_a_sequence(worker.actor, strategy)
        for key in ("actor.ppo_max_token_len_per_gpu", "rollout.log_prob_max_token_len_per_gpu"):
            limits.append((key, OmegaConf.select(worker, key), gpus))
    if worker.ref.log_prob_use_dynamic_bsz and _has_reference_worker(config):
        key = "ref.log_prob_max_token_len_per_gpu"
        limits.append((key, OmegaConf.select(worker, key), _gpus_of_a_sequence(worker.ref, strategy)))
    return limits


def _gpus_of_a_sequence(section: DictConfig, strategy: str) -> int:
    old = section.get(OLD_SPLIT, 1) if strategy.startswith("fsdp") else 1
    return old if old > 1 else OmegaConf.select(section, SPLIT_BY[strategy])


def _has_reference_worker(config: DictConfig) -> bool:
    """Whether a worker of its own computes the reference; with LoRA the actor does, without its adapters."""
    if not (config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss):
        return False
    model = config.actor_rollout_ref.model
    rank = OmegaConf.select(model, "lora.rank") or model.get("lora_rank") or 0
    return rank <= 0 and model.get("lora_adapter_path") is None
