"""Reading ``algorithm.cipo``, and refusing the settings of verl that do not work with CIPO.

It hooks into nothing: what takes effect in verl is in switch.py.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.core.prompts import with_text
from verl_cipo.integration.fitting import fitted, obstacles
from verl_cipo.integration.group_filter import check_filter
from verl_cipo.integration.lengths import check_lengths
from verl_cipo.integration.reward_function import load, located
from verl_cipo.integration.rollout.seeds import seed_name

MANAGER_CLASS = "verl_cipo.integration.rollout.manager.CIPOAgentLoopManager"
MANAGER_CLASS_V0 = "verl_cipo.integration.v0.rollout.CIPOAgentLoopManagerV0"
TRAINER_OF_MODE = {
    "sync": "cipo_sync",
    "colocate_async": "cipo_colocate_async",
    "separate_async": "cipo_separate_async",
}
"""verl's ``trainer.v1.trainer_mode`` -> the name of CIPO's variant in verl's trainer registry."""


def cipo_config(config: DictConfig) -> CIPOConfig:
    """Read and validate ``algorithm.cipo``; absent means all defaults. ``schedule=auto`` becomes that of the trainer.

    What the preset asks for and the run cannot have is left out, and a line printed (fitting.py).

    Raises:
        CIPOConfigError: an unknown key, a bad value, or a template that cannot be read.
    """
    section = OmegaConf.select(config, "algorithm.cipo", default=OmegaConf.create())
    if not OmegaConf.is_dict(section):
        raise CIPOConfigError(f"algorithm.cipo={section!r}: expected options algorithm.cipo.<knob>=<value>")
    mapping = OmegaConf.to_container(section, resolve=True)
    match mapping:
        case {"prompt": {"template": [*pieces]}} if all(isinstance(piece, str) for piece in pieces):
            mapping["prompt"]["template"] = "".join(pieces)
    cipo, lines = fitted(config, mapping, asynchronous=_asynchronous(config))
    for line in lines:
        print(f"[verl_cipo] {line}")
    return replace(cipo, prompt=with_text(cipo.prompt))


def _asynchronous(config: DictConfig) -> bool:
    # The mode as it is written: reading an interpolation would import the trainers.
    trainer = OmegaConf.to_container(OmegaConf.select(config, "trainer.v1", default=OmegaConf.create()))
    return "async" in trainer.get("trainer_mode", "sync")


def settle(config: DictConfig) -> CIPOConfig:
    """:func:`check_combination`, and its result in the place of ``algorithm.cipo``.

    Workers get the config as it then is, with the template's text: they have another working directory, and may be on
    other machines, where the file is not.

    Raises:
        CIPOConfigError: as :func:`check_combination`.
    """
    cipo = check_combination(config)
    write_back(config, cipo)
    if cipo.manager is not None:
        with open_dict(config):
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER_CLASS
    return cipo


def write_back(config: DictConfig, cipo: CIPOConfig) -> None:
    """Put ``cipo`` in the place of ``algorithm.cipo``."""
    mapping = cipo.to_mapping()
    if "${" in (template := cipo.prompt.template):
        # OmegaConf takes it for a reference, and what quotes it is gone when the config has been resolved once.
        mapping["prompt"]["template"] = re.split(r"(?<=\$)(?=\{)", template)
    with open_dict(config):
        config.algorithm.cipo = mapping


def check_combination(config: DictConfig) -> CIPOConfig:
    """Refuse the settings of verl that do not work with CIPO.

    Returns:
        the validated ``algorithm.cipo``, with the whole path of a second verifier's file.

    Raises:
        CIPOConfigError: names the key, its value and what is allowed.
    """

    def refuse(key: str, allowed: str) -> None:
        raise CIPOConfigError(f"{key}={OmegaConf.select(config, key)} does not work with adv_estimator=cipo: {allowed}")

    if importlib.util.find_spec("transfer_queue") is None:
        raise CIPOConfigError("verl_cipo needs TransferQueue, which is missing: pip install TransferQueue")
    cipo = cipo_config(config)
    if config.trainer.use_v1:
        _check_v1(config, refuse)
    else:
        _check_v0(config, cipo, refuse)
    if config.critic.enable:
        refuse("critic.enable", "CIPO has no critic; leave it null or false")
    _check_reward_model(config, refuse)
    check_filter(config, cipo, refuse, asynchronous=_asynchronous(config))
    if config.actor_rollout_ref.rollout.n < 2:
        refuse("actor_rollout_ref.rollout.n", "a group of one attempt has no group-relative advantage; use at least 2")
    if OmegaConf.select(config, "skip.rollout_tq.enable"):
        refuse("skip.rollout_tq.enable", "corrections belong to the rollouts of their step, not to stored ones")
    if config.actor_rollout_ref.actor.shuffle and (cipo.rolls_out or cipo.pairs):
        refuse(
            "actor_rollout_ref.actor.shuffle",
            "rows are ordered so that each mini-batch holds both streams in the batch's proportion; set it to false",
        )
    _check_pipeline(config, refuse)
    if config.actor_rollout_ref.rollout.get("full_determinism"):
        seed_name(config.actor_rollout_ref.rollout)
    for obstacle in obstacles(config, cipo):
        refuse(obstacle.key, obstacle.allowed)
    if cipo.replays and cipo.aux.contrastive:
        raise CIPOConfigError(
            f"{ROOT}.aux.kind=contrastive with {ROOT}.schedule=replay: the wrong attempts of the previous step are not "
            f"in the batch; use another schedule, {ROOT}.aux.kind=nll or {ROOT}.source=paired"
        )
    cipo = _over_a_manager(config, cipo, refuse)
    check_lengths(config, corrects=cipo.corrects)
    if cipo.second_verifier is not None:
        load(cipo.second_verifier)
        cipo = replace(cipo, second_verifier=located(cipo.second_verifier))
    return cipo


def _over_a_manager(config: DictConfig, cipo: CIPOConfig, refuse: Callable[[str, str], None]) -> CIPOConfig:
    """``cipo`` with the manager that the config names, if it is another than CIPO's."""
    key = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
    named, needed = OmegaConf.select(config, key), MANAGER_CLASS if config.trainer.use_v1 else MANAGER_CLASS_V0
    # cipo_trainer.yaml names that of V1, whatever trainer is asked for.
    if named not in (None, MANAGER_CLASS, needed):
        if not config.trainer.use_v1:
            refuse(key, f"with trainer.use_v1=false corrections need {needed}")
        cipo = replace(cipo, manager=named)
    if cipo.manager is None:
        return cipo
    if not config.trainer.use_v1:
        refuse(
            f"{ROOT}.manager", "CIPO's manager of trainer.use_v1=false is laid over verl's own alone, set it to null"
        )
    load_manager(cipo.manager)
    return cipo


def load_manager(name: str) -> type:
    """The manager of that full name.

    Raises:
        CIPOConfigError: there is none, or it is no subclass of verl's ``AgentLoopManagerTQ``.
    """
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ

    module, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise CIPOConfigError(f"{ROOT}.manager={name} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, AgentLoopManagerTQ)):
        raise CIPOConfigError(f"{ROOT}.manager={name}: expected a subclass of verl.trainer.ppo.v1.AgentLoopManagerTQ")
    return found


def _check_v1(config: DictConfig, refuse: Callable[[str, str], None]) -> None:
    trainer = config.trainer.v1
    if not OmegaConf.is_interpolation(trainer, "trainer_mode") and trainer.trainer_mode not in TRAINER_OF_MODE:
        refuse("trainer.v1.trainer_mode", f"use one of {sorted(TRAINER_OF_MODE)}")
    if trainer.get("sync", {}).get("parameter_sync_step", 1) != 1:
        refuse("trainer.v1.sync.parameter_sync_step", "one update a rollout, leave it out or set 1")
    separate = not OmegaConf.is_interpolation(trainer, "trainer_mode") and trainer.trainer_mode == "separate_async"
    if separate and not config.actor_rollout_ref.get("hybrid_engine", True):
        refuse(
            "actor_rollout_ref.hybrid_engine",
            "verl 0.9.1's separate_async then ends in a TypeError, in a line of its log, when the workers have been "
            "started; set it to true",
        )


def _check_v0(config: DictConfig, cipo: CIPOConfig, refuse: Callable[[str, str], None]) -> None:
    """Refuse what CIPO cannot do, or verl does not do, with ``trainer.use_v1=False``."""
    trainer = config.trainer
    # verl's TaskRunner has resolved the config when it has it validated again.
    if trainer.v1.trainer_mode not in ("sync", TRAINER_OF_MODE["sync"]):
        refuse("trainer.v1.trainer_mode", "trainer.use_v1=false has no asynchronous trainer, set trainer.use_v1=true")
    if not trainer.balance_batch:
        refuse("trainer.balance_batch", "with trainer.use_v1=false corrections join the batch there, set it to true")
    if trainer.critic_warmup > 0:
        refuse("trainer.critic_warmup", "with trainer.use_v1=false rho moves with the actor's update, set it to 0")
    if OmegaConf.select(config, "actor_rollout_ref.actor.use_prefix_grouper"):
        refuse(
            "actor_rollout_ref.actor.use_prefix_grouper",
            "with trainer.use_v1=false it would keep the rows of a prompt together, which mixed mini-batches do not",
        )
    if OmegaConf.select(config, "skip.rollout.enable"):
        refuse("skip.rollout.enable", "with trainer.use_v1=false a replayed rollout lacks what CIPO notes on its rows")
    if cipo.replays:
        refuse(f"{ROOT}.schedule", "trainer.use_v1=false knows no anchors of the step before, use barrier")


def _check_reward_model(config: DictConfig, refuse: Callable[[str, str], None]) -> None:
    model = config.reward.reward_model
    if not model.enable:
        return
    if not model.enable_resource_pool:
        refuse(
            "reward.reward_model.enable_resource_pool",
            "attempts must be verified while they are rolled out; a colocated reward model scores them later. "
            "Use a rule-based reward or give the reward model its own resource pool",
        )
    if config.reward.custom_reward_function.path is None:
        refuse(
            "reward.custom_reward_function.path",
            "verl 0.9.1 then scores by the reward model alone, without the reward_extra_info that it needs; "
            "name a function that asks the model at its reward_router_address",
        )


def _check_pipeline(config: DictConfig, refuse: Callable[[str, str], None]) -> None:
    """Megatron's interleaved pipeline takes micro-batches in groups, which the rows of a step need not fill."""
    key = "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size"
    if (OmegaConf.select(config, key) or 1) == 1:
        return
    sizes = ("actor.use_dynamic_bsz", "rollout.log_prob_use_dynamic_bsz", "ref.log_prob_use_dynamic_bsz")
    for size in sizes:
        if not OmegaConf.select(config, f"actor_rollout_ref.{size}"):
            refuse(key, f"micro-batches of a fixed size do not fill its groups; set actor_rollout_ref.{size}=true")
