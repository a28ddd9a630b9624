"""Whether ``rollout.prompt_length`` can hold a correction prompt at all, told before any worker starts."""

import logging
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration.chats import Chats
from verl_cipo.integration.lengths import check_model_length

logger = logging.getLogger("verl_cipo")


def load_model(config: DictConfig) -> Any | None:
    """What verl will load of the model but its weights, ``tokenizer`` and ``hf_config``; None where this machine cannot
    read it, because only the cluster can.

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
        logger.warning("the prompt budget is checked later, the driver cannot load the tokenizer: %s", cause)
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
    check_prompt_length(config, cipo, model.tokenizer)
    if cipo.corrects:
        check_model_length(config, model.hf_config)
    return True


def check_prompt_length(config: DictConfig, cipo: CIPOConfig, tokenizer: Any) -> None:
    """Compare ``actor_rollout_ref.rollout.prompt_length`` with the shortest correction prompt.

    Raises:
        CIPOConfigError: not even an empty question with a short attempt fits.
    """
    if not cipo.corrects:
        return
    length = config.actor_rollout_ref.rollout.prompt_length
    needed = Chats.of(config, cipo, tokenizer).prompt.minimum_tokens()
    if length < needed:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={length} is too small for any correction: the correction prompt "
            f"alone takes {needed} tokens, allow that plus question and attempt "
            f"(data.max_prompt_length + data.max_response_length + {needed} loses nothing)"
        )
