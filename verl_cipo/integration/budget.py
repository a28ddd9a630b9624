"""Whether ``rollout.prompt_length`` can hold a correction prompt at all, told before any worker starts."""

import logging
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration.chats import Chats

logger = logging.getLogger("verl_cipo")


def load_tokenizer(config: DictConfig) -> Any | None:
    """The tokenizer that verl will load; None where this machine cannot read the model, because only the cluster can.

    Raises:
        hydra.errors.InstantiationException: the model's section cannot be used for another reason.
    """
    from verl.utils.config import omega_conf_to_dataclass

    try:
        return omega_conf_to_dataclass(config.actor_rollout_ref.model).tokenizer
    except (OSError, InstantiationException) as error:
        # Hydra wraps what the constructor of a dataclass raises.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        logger.warning("the prompt budget is checked later, the driver cannot load the tokenizer: %s", cause)
        return None


def check_prompt_length_early(config: DictConfig, cipo: CIPOConfig) -> None:
    """:func:`check_prompt_length` in the driver; one that cannot read the model leaves the check to the trainer.

    Raises:
        CIPOConfigError: as :func:`check_prompt_length`.
    """
    tokenizer = load_tokenizer(config)
    if tokenizer is not None:
        check_prompt_length(config, cipo, tokenizer)


def check_prompt_length(config: DictConfig, cipo: CIPOConfig, tokenizer: Any) -> None:
    """Compare ``actor_rollout_ref.rollout.prompt_length`` with the shortest correction prompt.

    Raises:
        CIPOConfigError: not even an empty question with a short attempt fits.
    """
    if cipo.replay_fraction == 0 and cipo.val_corrections == 0:
        return
    length = config.actor_rollout_ref.rollout.prompt_length
    needed = Chats.of(config, cipo, tokenizer).prompt.minimum_tokens()
    if length < needed:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={length} is too small for any correction: the correction prompt "
            f"alone takes {needed} tokens, allow that plus question and attempt "
            f"(data.max_prompt_length + data.max_response_length + {needed} loses nothing)"
        )
