"""``algorithm.adv_estimator=cipo`` switches everything on.

Two things happen when the plugin loads, both light:

* OmegaConf resolvers are registered. ``trainer.v1.trainer_mode: ${cipo.trainer:sync,${algorithm.adv_estimator}}``
  imports the CIPO trainers at the moment verl asks for the mode, in the process that asks, and not in every process
  that imports verl; with another estimator it is verl's own mode. ``${cipo.manager:...}`` does the same for the
  rollout manager. ``cipo_trainer.yaml`` uses both; that path needs no hook.
* for verl's own config, ``verl.utils.config.validate_config`` is wrapped. It is the one function that ``main_ppo``
  calls with the whole config in the driver before Ray starts. With any other estimator the wrapper calls verl's
  function and does nothing else.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.core.prompts import load_template
from verl_cipo.integration.budget import check_prompt_length_early
from verl_cipo.integration.estimator import NAME

TRAINER_RESOLVER = "cipo.trainer"
MANAGER_RESOLVER = "cipo.manager"
MANAGER_CLASS = "verl_cipo.integration.manager.CIPOAgentLoopManager"
TRAINER_OF_MODE = {
    "sync": "cipo_sync",
    "colocate_async": "cipo_colocate_async",
    "separate_async": "cipo_separate_async",
}
"""verl's ``trainer.v1.trainer_mode`` -> the name of CIPO's variant in verl's trainer registry."""
VALIDATE_SIGNATURE = ["config", "use_reference_policy", "use_critic"]


class ChangedSeamError(RuntimeError):
    """verl's ``validate_config`` is not the function this hook was written for."""


def cipo_config(config: DictConfig) -> CIPOConfig:
    """Read and validate ``algorithm.cipo``; absent means all defaults.

    Raises:
        CIPOConfigError: an unknown key, a bad value, or a template that cannot be read.
    """
    section = OmegaConf.select(config, "algorithm.cipo")
    if section is None:
        return CIPOConfig()
    if not OmegaConf.is_dict(section):
        raise CIPOConfigError(f"algorithm.cipo={section!r}: allowed are options algorithm.cipo.<knob>=<value>")
    cipo = CIPOConfig.from_mapping(OmegaConf.to_container(section, resolve=True))
    load_template(cipo.prompt.template)
    return cipo


def check_combination(config: DictConfig) -> None:
    """Refuse the settings of verl that CIPO cannot honour.

    Raises:
        CIPOConfigError: names the key, its value and what is allowed.
    """

    def refuse(key: str, allowed: str) -> None:
        raise CIPOConfigError(f"{key}={OmegaConf.select(config, key)} does not work with adv_estimator=cipo: {allowed}")

    if importlib.util.find_spec("transfer_queue") is None:
        raise CIPOConfigError("verl's V1 trainer needs TransferQueue, which is missing: pip install TransferQueue")
    if not config.trainer.use_v1:
        refuse("trainer.use_v1", "CIPO runs on verl's V1 trainer, set trainer.use_v1=true")
    trainer = config.trainer.v1
    if not OmegaConf.is_interpolation(trainer, "trainer_mode") and trainer.trainer_mode not in TRAINER_OF_MODE:
        refuse("trainer.v1.trainer_mode", f"use one of {sorted(TRAINER_OF_MODE)}")
    if config.critic.enable:
        refuse("critic.enable", "CIPO has no critic, leave it null or false")
    if config.reward.reward_model.enable and not config.reward.reward_model.enable_resource_pool:
        refuse(
            "reward.reward_model.enable_resource_pool",
            "attempts must be verified while they are rolled out; a colocated reward model scores them later. "
            "Use a rule-based reward or give the reward model its own resource pool",
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        refuse("algorithm.filter_groups.enable", "group filtering would judge attempts and corrections as one group")
    if config.actor_rollout_ref.rollout.n < 2:
        refuse("actor_rollout_ref.rollout.n", "a group of one attempt has no group-relative advantage, use at least 2")
    cipo = cipo_config(config)
    if cipo.aux.coef > 0:
        _check_aux(config, cipo, refuse)
    if config.trainer.v1.get("sync", {}).get("parameter_sync_step", 1) != 1:
        refuse("trainer.v1.sync.parameter_sync_step", "one update a rollout, leave it out or set 1")
    custom = OmegaConf.select(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class")
    if custom not in (None, MANAGER_CLASS):
        refuse("actor_rollout_ref.rollout.agent.agent_loop_manager_class", f"corrections need {MANAGER_CLASS}")


def _check_aux(config: DictConfig, cipo: CIPOConfig, refuse: Callable[[str, str], None]) -> None:
    """Refuse what the auxiliary loss cannot be trained with."""
    if OmegaConf.select(config, "distillation.enabled"):
        refuse("distillation.enabled", "verl's distillation loss takes the place of the one that aux.coef adds to")
    appends = cipo.pairs or cipo.aux.kind == "contrastive" or cipo.lambda_corr == 0
    if appends and OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
        refuse(
            "algorithm.rollout_correction.bypass_mode",
            "verl's loss then refuses a micro-batch of rows that only the auxiliary loss trains (pairs, contrastive, "
            "lambda_corr=0), and there are no log-probabilities of the old policy to compare",
        )
    if appends and OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") == "geo_mean":
        refuse(
            "actor_rollout_ref.actor.policy_loss.loss_mode",
            "geo_mean divides by all rows of a micro-batch, those too that only the auxiliary loss trains (pairs, the "
            "contrastive loss, lambda_corr=0)",
        )
    if cipo.aux.kind == "contrastive" and cipo.rolls_out and cipo.schedule == "replay":
        raise CIPOConfigError(
            f"{ROOT}.aux.kind=contrastive with {ROOT}.schedule=replay: the failed attempts of the step before are not "
            f"in the batch, use another schedule, {ROOT}.aux.kind=nll or {ROOT}.source=paired"
        )


def switch_on(config: DictConfig) -> CIPOConfig:
    """Validate a config with ``adv_estimator=cipo`` and point verl at CIPO's trainer and rollout manager, in place.

    Returns:
        the validated ``algorithm.cipo``.

    Raises:
        CIPOConfigError: the config cannot train with CIPO.
    """
    cipo = cipo_config(config)
    check_combination(config)
    trainer = config.trainer.v1
    with open_dict(config):
        config.algorithm.cipo = cipo.to_mapping()
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER_CLASS
        if not OmegaConf.is_interpolation(trainer, "trainer_mode"):
            trainer.trainer_mode = f"${{{TRAINER_RESOLVER}:{trainer.trainer_mode},{NAME}}}"
    return cipo


def resolve_trainer(mode: str, estimator: str) -> str:
    """The registered name of the trainer for verl's ``mode``: CIPO's variant, which this imports, or verl's own.

    Raises:
        CIPOConfigError: CIPO has no variant of that mode.
    """
    if estimator != NAME:
        return mode
    if mode not in TRAINER_OF_MODE:
        raise CIPOConfigError(f"trainer.v1.trainer_mode={mode}: use one of {sorted(TRAINER_OF_MODE)} with CIPO")
    importlib.import_module("verl_cipo.integration.trainer")
    return TRAINER_OF_MODE[mode]


def resolve_manager(estimator: str) -> str | None:
    """CIPO's agent-loop manager, or None for verl's own when the estimator is another one."""
    return MANAGER_CLASS if estimator == NAME else None


def register() -> None:
    """Wrap ``validate_config`` and register the resolvers; a second call changes nothing.

    Raises:
        ChangedSeamError: ``validate_config`` takes other arguments than verl 0.9's.
    """
    from verl.utils import config as verl_config

    original = verl_config.validate_config
    if is_switch(original):
        return
    found = list(inspect.signature(original).parameters)
    if found != VALIDATE_SIGNATURE:
        raise ChangedSeamError(f"verl.utils.config.validate_config takes {found}, expected {VALIDATE_SIGNATURE}")

    @functools.wraps(original)
    def validate_config(config: DictConfig, *args: Any, **kwargs: Any) -> None:
        if config.algorithm.adv_estimator == NAME:
            try:
                check_prompt_length_early(config, switch_on(config))
            except CIPOConfigError as error:
                # The driver has nothing to clean up yet: one line for the user instead of a traceback.
                raise SystemExit(f"verl_cipo: {error}") from error
        return original(config, *args, **kwargs)

    validate_config._verl_cipo = True
    verl_config.validate_config = validate_config
    OmegaConf.register_new_resolver(TRAINER_RESOLVER, resolve_trainer, replace=True)
    OmegaConf.register_new_resolver(MANAGER_RESOLVER, resolve_manager, replace=True)


def is_switch(validate_config: Any) -> bool:
    """Whether this is the wrapped ``validate_config``."""
    return getattr(validate_config, "_verl_cipo", False)
