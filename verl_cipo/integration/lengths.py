"""What the driver checks before any worker starts: whether the longest sequence of a run fits everywhere.

verl finds out in a worker, at the first sequence that is too long, hours in. Corrections are the longest sequences of a
run: their prompt holds question and attempt.
"""

import logging
import math
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.integration.rendering import Rendering

logger = logging.getLogger("verl_cipo")

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
        gpus = gpus_of_a_sequence(worker.actor, strategy)
        for key in ("actor.ppo_max_token_len_per_gpu", "rollout.log_prob_max_token_len_per_gpu"):
            limits.append((key, OmegaConf.select(worker, key), gpus))
    if worker.ref.log_prob_use_dynamic_bsz and _has_reference_worker(config):
        key = "ref.log_prob_max_token_len_per_gpu"
        limits.append((key, OmegaConf.select(worker, key), gpus_of_a_sequence(worker.ref, strategy)))
    return limits


def gpus_of_a_sequence(section: DictConfig, strategy: str) -> int:
    """Over how many GPUs an engine splits each sequence; section: of the actor or the reference."""
    old = section.get(OLD_SPLIT, 1) if strategy.startswith("fsdp") else 1
    return old if old > 1 else OmegaConf.select(section, SPLIT_BY[strategy])


def _has_reference_worker(config: DictConfig) -> bool:
    """Whether a worker of its own computes the reference; with LoRA the actor does, without its adapters."""
    if not (config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss):
        return False
    model = config.actor_rollout_ref.model
    rank = OmegaConf.select(model, "lora.rank") or model.get("lora_rank") or 0
    return rank <= 0 and model.get("lora_adapter_path") is None


def load_model(config: DictConfig) -> Any | None:
    """What verl will load of the model but its weights: ``tokenizer``, ``processor`` and ``hf_config``.

    None where this machine cannot read it, because only the cluster can.

    Raises:
        hydra.errors.InstantiationException: the model's section cannot be used for another reason.
    """
    from verl.utils.config import omega_conf_to_dataclass

    try:
        return omega_conf_to_dataclass(config.actor_rollout_ref.model)
    except (OSError, InstantiationException) as error:
        # Hydra wraps what the constructor of a dataclass raises.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        logger.warning("the driver cannot load the tokenizer, so prompt lengths are checked later: %s", cause)
        return None


def check_model(config: DictConfig, cipo: CIPOConfig) -> bool:
    """Whether the driver could read the model, with which the settings then go together.

    Where it could not, the trainer still does :func:`check_prompt_length`.

    Raises:
        CIPOConfigError: as :func:`check_prompt_length` and ``check_model_length``.
    """
    model = load_model(config)
    if model is None:
        return False
    check_prompt_length(config, cipo, model.tokenizer, model.processor)
    if cipo.corrects:
        check_model_length(config, model.hf_config)
    return True


def check_prompt_length(config: DictConfig, cipo: CIPOConfig, tokenizer: Any, processor: Any | None = None) -> None:
    """Compare ``actor_rollout_ref.rollout.prompt_length`` with the shortest correction prompt.

    Raises:
        CIPOConfigError: not even an empty question with a short attempt fits, or the chat template shows no attempt.
    """
    if not cipo.corrects:
        return
    length = config.actor_rollout_ref.rollout.prompt_length
    prompt = Rendering.of(config, cipo, tokenizer, processor).prompt
    if not prompt.shows_attempts():
        raise CIPOConfigError(
            f"{ROOT}.prompt.form={cipo.prompt.form} with {config.actor_rollout_ref.model.path}: its chat template "
            f"leaves out earlier turns of the assistant; use {ROOT}.prompt.form=message"
        )
    needed = prompt.minimum_tokens()
    if length < needed:
        of_each = f"{cipo.prompt.attempts} * " if cipo.prompt.attempts > 1 else ""
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={length} is too small for any correction: the correction prompt "
            f"alone takes {needed} tokens; allow that plus question and attempt "
            f"(data.max_prompt_length + {of_each}data.max_response_length + {needed} shows every attempt in full)"
        )
