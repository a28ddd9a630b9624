"""Whether ``rollout.prompt_length`` can hold a correction prompt at all, told before any worker starts."""

import logging
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.core.prompts import CorrectionPrompt

logger = logging.getLogger("verl_cipo")


def correction_prompt(
    cipo: CIPOConfig, tokenizer: Any, *, prompt_length: int, count_tokens: Callable[[list[dict]], int]
) -> CorrectionPrompt:
    """The correction prompt over a Hugging Face tokenizer; ``count_tokens`` knows the chat as it will be rendered."""
    return CorrectionPrompt(
        cipo.prompt,
        prompt_length=prompt_length,
        count_tokens=count_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


def check_prompt_length_early(config: DictConfig, cipo: CIPOConfig) -> None:
    """:func:`check_prompt_length` in the driver, with the tokenizer that verl will load.

    A driver that cannot read the model, because only the cluster can, leaves the check to the trainer.

    Raises:
        CIPOConfigError: as :func:`check_prompt_length`.
    """
    from verl.utils.config import omega_conf_to_dataclass

    try:
        tokenizer = omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer
    except OSError as error:
        logger.warning("the prompt budget is checked later, the driver cannot load the tokenizer: %s", error)
        return
    check_prompt_length(config, cipo, tokenizer)


def check_prompt_length(config: DictConfig, cipo: CIPOConfig, tokenizer: Any) -> None:
    """Compare ``actor_rollout_ref.rollout.prompt_length`` with the shortest correction prompt.

    Raises:
        CIPOConfigError: not even an empty question with a short attempt fits.
    """
    if cipo.replay_fraction == 0 and cipo.val_corrections == 0:
        return
    template_kwargs = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create({}))
    length = config.actor_rollout_ref.rollout.prompt_length
    prompt = correction_prompt(
        cipo,
        tokenizer,
        prompt_length=length,
        count_tokens=lambda messages: len(
            tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False, **template_kwargs
            )
        ),
    )
    needed = prompt.minimum_tokens()
    if length < needed:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={length} is too small for any correction: the correction prompt "
            f"alone takes {needed} tokens, allow that plus question and attempt "
            f"(data.max_prompt_length + data.max_response_length + {needed} loses nothing)"
        )
