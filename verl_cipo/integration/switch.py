"""``algorithm.adv_estimator=cipo`` switches everything on.

Two things happen when the plugin loads, both light:

* OmegaConf resolvers are registered. ``trainer.v1.trainer_mode: ${cipo.trainer:sync,${algorithm.adv_estimator}}``
  imports the CIPO trainers at the moment verl asks for the mode, in the process that asks, and not in every process
  that imports verl; with another estimator it is verl's own mode. ``${cipo.manager:...}`` does the same for the
  rollout manager. ``cipo_trainer.yaml`` uses both; that path needs no hook. Its section ``algorithm.cipo`` is open:
  Hydra would only say of a misspelled knob how to append it, CIPO's own validation names the nearest one.
* for verl's own config, and for the V0 trainer, ``verl.utils.config.validate_config`` is wrapped. It is the one
  function that ``main_ppo`` calls with the whole config in the driver before Ray starts. With any other estimator the
  wrapper calls verl's function and does nothing else. With ``trainer.use_v1=False`` it also puts CIPO's V0 trainer in
  place of verl's (v0/trainer.py says how).
"""

import functools
import importlib
import inspect
import logging
from dataclasses import replace
from typing import Any

import ray
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.integration import ChangedSeamError
from verl_cipo.integration.lengths import check_model
from verl_cipo.integration.remarks import announce
from verl_cipo.integration.settings import MANAGER_CLASS, MANAGER_CLASS_V0, TRAINER_OF_MODE, settle, write_back
from verl_cipo.integration.train.estimator import NAME

logger = logging.getLogger("verl_cipo")

TRAINER_RESOLVER = "cipo.trainer"
MANAGER_RESOLVER = "cipo.manager"
OPEN_SECTION = "cipo/open"
"""Hydra's name of an ``algorithm.cipo`` that takes any key, for the defaults of our configs."""
VALIDATE_SIGNATURE = ["config", "use_reference_policy", "use_critic"]


def switch_on(config: DictConfig) -> CIPOConfig:
    """Validate a config with ``adv_estimator=cipo`` and point verl at CIPO's trainer and rollout manager, in place.

    verl's V0 trainer cannot be named in a config: see ``v0.trainer.take_place``.

    Returns:
        the validated ``algorithm.cipo``.

    Raises:
        CIPOConfigError: the config cannot train with CIPO.
    """
    asked = OmegaConf.select(config, f"{ROOT}.schedule")
    cipo = settle(config)
    trainer = config.trainer.v1
    if not config.trainer.use_v1 and cipo.schedule == "streaming":
        if asked == "streaming":
            logger.warning(
                "%s.schedule=streaming with trainer.use_v1=False: verl hands all attempts over at once, so anchors are "
                "drawn as with schedule=barrier",
                ROOT,
            )
        cipo = replace(cipo, schedule="barrier")
        write_back(config, cipo)
    with open_dict(config):
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = (
            MANAGER_CLASS if config.trainer.use_v1 else MANAGER_CLASS_V0
        )
        if config.trainer.use_v1 and not OmegaConf.is_interpolation(trainer, "trainer_mode"):
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
    importlib.import_module("verl_cipo.integration.train.trainer")
    return TRAINER_OF_MODE[mode]


def resolve_manager(estimator: str) -> str | None:
    """CIPO's agent-loop manager, or None for verl's own when the estimator is another one."""
    return MANAGER_CLASS if estimator == NAME else None


def register() -> None:
    """Wrap ``validate_config``, register the resolvers and the open section; a second call changes nothing.

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
                cipo = switch_on(config)
                check_model(config, cipo)
                if not ray.is_initialized():
                    announce(config, cipo)
                if not config.trainer.use_v1:
                    importlib.import_module("verl_cipo.integration.v0.trainer").take_place()
            except CIPOConfigError as error:
                if ray.is_initialized():
                    # verl's V0 TaskRunner asks again, in an actor, where an exit would lose the message.
                    raise
                # The driver has nothing to clean up yet: one line for the user instead of a traceback.
                raise SystemExit(f"verl_cipo: {error}") from error
        return original(config, *args, **kwargs)

    validate_config._verl_cipo = True
    verl_config.validate_config = validate_config
    OmegaConf.register_new_resolver(TRAINER_RESOLVER, resolve_trainer, replace=True)
    OmegaConf.register_new_resolver(MANAGER_RESOLVER, resolve_manager, replace=True)
    group, _, name = OPEN_SECTION.partition("/")
    ConfigStore.instance().store(
        group=group, name=name, package=ROOT, node=DictConfig({}, flags={"struct": False}), provider="verl_cipo"
    )


def is_switch(validate_config: Any) -> bool:
    """Whether this is the wrapped ``validate_config``."""
    return getattr(validate_config, "_verl_cipo", False)
