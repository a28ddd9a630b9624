"""What `python -m verl_cipo.check` does: everything about a command line of verl that can be known without a GPU.

It composes the config as `verl.trainer.main_ppo` would, and has verl and CIPO validate it, in this order: types and
ranges (values.py), both halves of `validate_config`, dataclasses that verl's workers make of it, the reward function,
the trainer's own preconditions, then what verl finds out only when workers run (lengths.py, :func:`check_layout`).
"""

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import config as verl_config

from verl_cipo.core.anchors import anchor_budget
from verl_cipo.core.config import ROOT, CIPOConfig
from verl_cipo.integration.lengths import SPLIT_BY, check_lengths, check_model, gpus_of_a_sequence
from verl_cipo.integration.remarks import announce
from verl_cipo.integration.settings import cipo_config
from verl_cipo.integration.switch import is_switch, switch_on
from verl_cipo.integration.train.estimator import NAME
from verl_cipo.integration.train.joint_update import optimizer_steps
from verl_cipo.integration.values import check_values, flat, missing_loggers, misspelled

PACKAGE = "pkg://"
ENGINES = ("megatron", "torchtitan", "veomni")
"""Training engines with a config of their own; that of FSDP is `dp`."""
DATACLASSES = ("rollout", "ref.fsdp_config", "ref.megatron")
"""Sections of `actor_rollout_ref` beside the actor whose dataclasses validate themselves; an engine has one of two."""


REFUSALS = (
    *(AssertionError, ValueError, TypeError, AttributeError, ImportError, OSError),
    *(HydraException, OmegaConfBaseException),
)
"""What verl, its libraries and CIPO raise at a config that cannot be used."""


class UnknownKeyError(ValueError):
    """A key that the config does not have. The message names the nearest one."""


class LayoutError(ValueError):
    """Settings that do not go together, or not with the dry run. The message names the keys."""


class _EndOfPreconditionsError(Exception):
    """The trainer has checked its config and would go on to build itself."""


class _NoTrainer(PPOTrainer):
    """Stands before verl's `PPOTrainer` in a trainer's bases: what precedes the call of its constructor is checks."""

    def __init__(self, config: DictConfig):
        raise _EndOfPreconditionsError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step of the run will do, and on what."""

    estimator: str
    trainer: str
    rollout_engine: str
    prompts: int
    rollouts: int
    """Sampled responses a step, corrections included, when every anchor is found."""
    corrections: int
    """Those of them that are corrections, or may be where ``moves_budget``."""
    moves_budget: bool
    """Whether some of these may become attempts."""
    validation_samples: int
    """Answers to each prompt of a validation, second turns included."""
    optimizer_steps: int
    """Each step."""
    train_gpus: int
    rollout_gpus: int
    """Of rollout alone; 0 when it shares those of training."""
    unchecked: tuple[str, ...] = ()
    """What could not be looked at here, and why."""


def compose_config(config_path: str, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The config that `verl.trainer.main_ppo` would get.

    Args:
        config_path: `pkg://` and a package.
        config_name: a config of it.
        overrides: KEY=VALUE, as Hydra takes them.

    Raises:
        LayoutError: `config_path` is no package.
        UnknownKeyError: an unknown key that is like a known one.
        HydraException: another unknown key, or a value that Hydra cannot read.
    """
    if not config_path.startswith(PACKAGE):
        raise LayoutError(f"--config-path {config_path}: use {PACKAGE}PACKAGE")
    with initialize_config_module(config_path.removeprefix(PACKAGE), version_base=None):
        try:
            return compose(config_name, overrides=list(overrides))
        except ConfigCompositionException as error:
            known = flat(compose(config_name, overrides=_groups(overrides)))
            if (found := misspelled(f"{error}\n{error.__cause__}", [*known, *_knobs()])) is None:
                raise
            typed, nearest = found
            if nearest in known:
                hint = f", did you mean {nearest}? What the config lacks is added with +{typed}=..."
            else:
                hint = f" in this config, which has no knobs of CIPO: add it with +{nearest}=..."
            raise UnknownKeyError(f"{typed}: no such key{hint}") from error


def _knobs() -> dict[str, Any]:
    """Key -> default of all knobs of CIPO."""
    return flat(OmegaConf.create({"algorithm": {"cipo": CIPOConfig().to_mapping()}}))


def _groups(overrides: Sequence[str]) -> list[str]:
    """Those that choose a config of a group, as `model_engine=megatron` does."""
    return [override for override in overrides if "." not in override.partition("=")[0]]


def verl_defaults(config: DictConfig) -> DictConfig:
    """verl's own config of the training engine that ``config`` has, with nothing set."""
    strategy = config.actor_rollout_ref.actor.strategy
    return _verl_defaults(strategy if strategy in ENGINES else "dp")


@functools.cache
def _verl_defaults(engine: str) -> DictConfig:
    return compose_config(f"{PACKAGE}verl.trainer.config", "ppo_trainer", [f"model_engine={engine}"])


def differences(config: DictConfig) -> dict[str, Any]:
    """Key -> value of what is neither verl's nor CIPO's default. What follows from another value is left out."""
    own = flat(verl_defaults(config)) | _knobs()
    missing = object()
    changed = {key: value for key, value in flat(config).items() if own.get(key, missing) != value}
    # A knob that is null follows the preset.
    return {key: value for key, value in changed.items() if value is not None or not key.startswith(f"{ROOT}.")}


def check(config: DictConfig) -> Plan:
    """Validate ``config``, which CIPO switches on in place where it is the estimator.

    Raises:
        ValuesError: values of a wrong type, or out of range.
        CIPOConfigError: CIPO refuses the config, or a sequence may be longer than what it must fit into.
        LayoutError: numbers of GPUs do not go together.
        AssertionError, ValueError, HydraException, OmegaConfBaseException: verl does.
        RuntimeError: the plugin is not loaded.
    """
    unchecked = ["data files"]
    if not is_switch(verl_config.validate_config):
        raise RuntimeError("verl_cipo is not registered with verl: run `python -m verl_cipo.doctor`")
    check_values(flat(config), flat(verl_defaults(config)))
    # verl looks it up at the first advantages, when the first step is rolled out.
    core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator)
    if config.algorithm.adv_estimator == NAME:
        cipo = switch_on(config)
        if not check_model(config, cipo):
            unchecked.append(f"prompt budget (no tokenizer of {config.actor_rollout_ref.model.path} on this machine)")
        announce(config, cipo, validation=False)
    verl_config.validate_config.__wrapped__(
        config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
    )
    for name in DATACLASSES:
        section = OmegaConf.select(config.actor_rollout_ref, name)
        if section is not None:
            verl_config.omega_conf_to_dataclass(section)
    get_custom_reward_fn(config)
    trainer = trainer_class(config)
    if config.trainer.use_v1:
        check_preconditions(trainer, config)
    if config.algorithm.adv_estimator != NAME:
        check_lengths(config, corrects=False)
    check_layout(config)
    unchecked += [f"logger {name} (not installed on this machine)" for name in missing_loggers(config.trainer.logger)]
    return make_plan(config, trainer, tuple(unchecked))


def trainer_class(config: DictConfig) -> type:
    """What verl will build, one of its trainers or of CIPO's.

    Raises:
        ValueError: there is none of ``trainer.v1.trainer_mode``.
    """
    if config.trainer.use_v1:
        return get_trainer_cls(config.trainer.v1.trainer_mode)
    if config.algorithm.adv_estimator == NAME:
        return importlib.import_module("verl_cipo.integration.v0.trainer").CIPOTrainerV0
    return importlib.import_module("verl.trainer.ppo.ray_trainer").RayPPOTrainer


def check_preconditions(trainer: type[PPOTrainer], config: DictConfig) -> None:
    """Run what ``trainer`` checks in its constructor before anything is built.

    Raises:
        AssertionError, ValueError: a check of verl's failed; CIPOConfigError: one of ours.
    """
    probe = type(trainer.__name__, (trainer, _NoTrainer), {})
    # It gets a config of its own: verl resolves it, and CIPO's trainer renames the mode.
    own = config.copy()
    OmegaConf.resolve(own)
    try:
        probe(own)
    except _EndOfPreconditionsError:
        return


def gpus(config: DictConfig) -> tuple[int, int]:
    """GPUs of training, and those of a rollout that does not share them (0 when it does)."""
    rollout = config.actor_rollout_ref.rollout
    return config.trainer.nnodes * config.trainer.n_gpus_per_node, rollout.nnodes * rollout.n_gpus_per_node


def check_layout(config: DictConfig) -> None:
    """What verl asserts only in its workers, after Ray, model and engine have started.

    Raises:
        LayoutError: GPUs that do not divide.
    """
    worker = config.actor_rollout_ref
    actor, rollout = worker.actor, worker.rollout
    replica = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    train_gpus, rollout_gpus = gpus(config)
    for name, count in (("training", train_gpus), ("rollout", rollout_gpus)):
        if count % replica:
            raise LayoutError(
                f"{count} GPUs of {name} cannot be divided into rollout engines of {replica}: change "
                "actor_rollout_ref.rollout.tensor_model_parallel_size or the number of GPUs"
            )
    shared = gpus_of_a_sequence(actor, actor.strategy) if actor.strategy in SPLIT_BY else 1
    if actor.strategy == "megatron":
        engine, prefix = actor.megatron, "actor_rollout_ref.actor.megatron"
        pipeline = engine.pipeline_model_parallel_size
        shared = dense = engine.tensor_model_parallel_size * pipeline * engine.context_parallel_size
        expert_tensor = engine.expert_tensor_parallel_size or engine.tensor_model_parallel_size
        expert = expert_tensor * engine.expert_model_parallel_size * pipeline
        for what, count in (("tensor x pipeline x context", dense), ("expert tensor x expert x pipeline", expert)):
            if train_gpus % count:
                raise LayoutError(f"{train_gpus} GPUs of training cannot be divided by {prefix}'s {what} = {count}")
    ranks, rows = train_gpus // shared, actor.ppo_mini_batch_size * rollout.n
    # CIPO's trainers fill up what does not divide.
    if config.algorithm.adv_estimator != NAME and rows % ranks:
        raise LayoutError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} with "
            f"actor_rollout_ref.rollout.n={rollout.n} makes {rows} rows of an optimizer step, which cannot be divided "
            f"among {ranks} data-parallel ranks: change one of them or the number of GPUs"
        )


def make_plan(config: DictConfig, trainer: type, unchecked: tuple[str, ...]) -> Plan:
    """Read the plan off a valid config."""
    rollout = config.actor_rollout_ref.rollout
    prompts, corrections, turns, moves_budget = config.data.train_batch_size, 0, 1, False
    if config.algorithm.adv_estimator == NAME:
        cipo = cipo_config(config)
        turns, moves_budget = turns + cipo.val_corrections, cipo.moves_budget
        if cipo.rolls_out:
            corrections = anchor_budget(prompts, cipo.replay_fraction) * (cipo.n_corrections or rollout.n)
    syncs = 1
    if config.trainer.use_v1:
        mode = getattr(trainer, "verl_mode", config.trainer.v1.trainer_mode)
        syncs = config.trainer.v1[mode].get("parameter_sync_step", 1)
    train_gpus, rollout_gpus = gpus(config)
    return Plan(
        estimator=config.algorithm.adv_estimator,
        trainer=trainer.__name__,
        rollout_engine=rollout.name,
        prompts=prompts,
        rollouts=prompts * rollout.n + corrections,
        corrections=corrections,
        moves_budget=moves_budget,
        validation_samples=rollout.val_kwargs.n * turns,
        optimizer_steps=syncs * optimizer_steps(config, prompts // syncs) * config.actor_rollout_ref.actor.ppo_epochs,
        train_gpus=train_gpus,
        rollout_gpus=rollout_gpus,
        unchecked=unchecked,
    )


def summary(plan: Plan) -> str:
    """The plan in four lines."""
    where = f"{plan.rollout_gpus} more of its own" if plan.rollout_gpus else "the same"
    return "\n".join(
        (
            f"{plan.estimator} by {plan.trainer}, rollout by {plan.rollout_engine}",
            f"a step: {plan.prompts} prompts, {plan.rollouts} rollouts "
            f"({'up to ' if plan.moves_budget else ''}{plan.corrections} of them corrections), "
            f"{plan.optimizer_steps} optimizer steps; training on {plan.train_gpus} GPUs, rollout on {where}",
            f"a validation: {plan.validation_samples} answers to each prompt, second turns included",
            f"not checked: {'; '.join(plan.unchecked)}; installed engines; memory",
        )
    )
