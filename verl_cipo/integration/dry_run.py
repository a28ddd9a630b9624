"""What a launch script's `DRY_RUN=1` runs: everything about a command line of verl that can be known without a GPU.

    python -m verl_cipo.integration.dry_run --config-path pkg://verl_cipo.config --config-name cipo_trainer ...

It takes the arguments of `verl.trainer.main_ppo`, composes the config as that would, and has verl and CIPO validate it,
in this order: both halves of `validate_config`, dataclasses that verl's workers make of it, the reward function, the
trainer's own preconditions, then what verl finds out only when workers run (lengths.py, :func:`check_layout`). The
resolved config goes to stdout, a summary to stderr. Exit status 1, and what was refused, otherwise.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import config as verl_config

from verl_cipo.core.anchors import anchor_budget
from verl_cipo.integration.checks import announce, check_lengths, check_model
from verl_cipo.integration.settings import cipo_config
from verl_cipo.integration.switch import is_switch, switch_on
from verl_cipo.integration.train.estimator import NAME
from verl_cipo.integration.train.joint_update import optimizer_steps

PACKAGE = "pkg://"
DATACLASSES = ("rollout", "ref.fsdp_config", "ref.megatron")
"""Sections of `actor_rollout_ref` beside the actor whose dataclasses validate themselves; an engine has one of two."""


REFUSALS = (
    *(AssertionError, ValueError, TypeError, AttributeError, ImportError, OSError),
    *(HydraException, OmegaConfBaseException),
)
"""What verl, its libraries and CIPO raise at a config that cannot be used."""


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
        HydraException: an unknown key, or a value that Hydra cannot read.
    """
    if not config_path.startswith(PACKAGE):
        raise LayoutError(f"--config-path {config_path}: use {PACKAGE}PACKAGE")
    with initialize_config_module(config_path.removeprefix(PACKAGE), version_base=None):
        return compose(config_name, overrides=list(overrides))


def check(config: DictConfig) -> Plan:
    """Validate ``config``, which CIPO switches on in place where it is the estimator.

    Raises:
        CIPOConfigError: CIPO refuses the config, or a sequence may be longer than what it must fit into.
        LayoutError: numbers of GPUs do not go together.
        AssertionError, ValueError, HydraException, OmegaConfBaseException: verl does.
        RuntimeError: the plugin is not loaded.
    """
    unchecked = ["data files"]
    if not config.trainer.use_v1:
        raise LayoutError("trainer.use_v1=False: the dry run knows verl's V1 trainers only")
    if not is_switch(verl_config.validate_config):
        raise RuntimeError("verl_cipo is not registered with verl: run `python -m verl_cipo.doctor`")
    # verl looks it up at the first advantages, when the first step is rolled out.
    core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator)
    if config.algorithm.adv_estimator == NAME:
        cipo = switch_on(config)
        if not check_model(config, cipo):
            unchecked.append(f"prompt budget (no tokenizer of {config.actor_rollout_ref.model.path} on this machine)")
        announce(config, cipo)
    verl_config.validate_config.__wrapped__(
        config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
    )
    for name in DATACLASSES:
        section = OmegaConf.select(config.actor_rollout_ref, name)
        if section is not None:
            verl_config.omega_conf_to_dataclass(section)
    get_custom_reward_fn(config)
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)
    check_preconditions(trainer, config)
    check_lengths(config)
    check_layout(config)
    return make_plan(config, trainer, tuple(unchecked))


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
    if actor.strategy == "megatron":
        engine, prefix = actor.megatron, "actor_rollout_ref.actor.megatron"
        pipeline = engine.pipeline_model_parallel_size
        dense = engine.tensor_model_parallel_size * pipeline * engine.context_parallel_size
        expert_tensor = engine.expert_tensor_parallel_size or engine.tensor_model_parallel_size
        expert = expert_tensor * engine.expert_model_parallel_size * pipeline
        for what, count in (("tensor x pipeline x context", dense), ("expert tensor x expert x pipeline", expert)):
            if train_gpus % count:
                raise LayoutError(f"{train_gpus} GPUs of training cannot be divided by {prefix}'s {what} = {count}")


def make_plan(config: DictConfig, trainer: type[PPOTrainer], unchecked: tuple[str, ...]) -> Plan:
    """Read the plan off a valid config."""
    prompts, n = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    rollouts = prompts * n
    if config.algorithm.adv_estimator == NAME:
        cipo = cipo_config(config)
        if cipo.rolls_out:
            rollouts += anchor_budget(prompts, cipo.replay_fraction) * (cipo.n_corrections or n)
    mode = getattr(trainer, "verl_mode", config.trainer.v1.trainer_mode)
    syncs = config.trainer.v1[mode].get("parameter_sync_step", 1)
    train_gpus, rollout_gpus = gpus(config)
    return Plan(
        estimator=config.algorithm.adv_estimator,
        trainer=trainer.__name__,
        rollout_engine=config.actor_rollout_ref.rollout.name,
        prompts=prompts,
        rollouts=rollouts,
        optimizer_steps=syncs * optimizer_steps(config, prompts // syncs) * config.actor_rollout_ref.actor.ppo_epochs,
        train_gpus=train_gpus,
        rollout_gpus=rollout_gpus,
        unchecked=unchecked,
    )


def summary(plan: Plan) -> str:
    """The plan in three lines."""
    where = f"{plan.rollout_gpus} more of its own" if plan.rollout_gpus else "the same"
    return "\n".join(
        (
            f"{plan.estimator} by {plan.trainer}, rollout by {plan.rollout_engine}",
            f"a step: {plan.prompts} prompts, {plan.rollouts} rollouts, {plan.optimizer_steps} optimizer steps; "
            f"training on {plan.train_gpus} GPUs, rollout on {where}",
            f"not checked: {'; '.join(plan.unchecked)}; installed engines; memory",
        )
    )


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m verl_cipo.integration.dry_run") -> int:
    parser = argparse.ArgumentParser(prog=prog, description="Check a command line of verl.trainer.main_ppo.")
    parser.add_argument("--config-path", default="pkg://verl_cipo.config")
    parser.add_argument("--config-name", default="cipo_trainer")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = compose_config(options.config_path, options.config_name, options.overrides)
        # verl reports by print; stdout holds nothing but the config.
        with contextlib.redirect_stdout(sys.stderr):
            plan = check(config)
    except REFUSALS as error:
        print(f"dry run: refused, {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(OmegaConf.to_yaml(config, resolve=True))
    print(f"dry run: accepted, {summary(plan)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
