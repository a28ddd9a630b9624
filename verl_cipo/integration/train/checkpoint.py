"""What CIPO adds to verl's checkpoint: rho, the statistics of budget and guard, and the pool of schedule=replay.

``cipo.json`` and ``cipo_pool.pt`` lie beside verl's own files in ``global_step_N``. They are written before verl's last
act of saving, which names the checkpoint as the newest: a run that is killed while it saves goes on from the one
before. Anchors are drawn by hashes of (seed, step, index, session), so there is no random state to keep.
"""

import json
import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.steering.budget import BudgetState
from verl_cipo.core.steering.guard import GuardState
from verl_cipo.core.steering.rho import RhoState, resumed_rho

logger = logging.getLogger("verl_cipo")

STATE_FILE = "cipo.json"
POOL_FILE = "cipo_pool.pt"


@dataclass(frozen=True)
class TrainerState:
    """What the trainer remembers between steps."""

    rho: RhoState
    guard: GuardState
    budget: BudgetState = field(default_factory=BudgetState)

    @classmethod
    def initial(cls, config: CIPOConfig) -> "TrainerState":
        """The state before step 1."""
        return cls(rho=RhoState.initial(config), guard=GuardState.initial())


def step_folder(config: DictConfig, step: int) -> str:
    """Where verl saves the checkpoint of a step."""
    return os.path.join(config.trainer.default_local_dir, f"global_step_{step}")


def resumed_folder(config: DictConfig) -> str:
    """The folder of the checkpoint that verl resumes from."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        return trainer.resume_from_path
    return find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))


def save(folder: str, state: TrainerState, config: CIPOConfig, pool: dict[str, Any] | None) -> None:
    """Write both files into ``folder``, which is made if need be.

    Args:
        pool: the manager's ``pool_state()``; None, where the V0 trainer's has none, leaves its file out.
    """
    os.makedirs(folder, exist_ok=True)
    if pool is not None:
        torch.save(pool, os.path.join(folder, POOL_FILE))
    values = {
        "rho": state.rho.to_mapping(),
        "rho_init": config.rho_init,
        "guard": state.guard.to_mapping(),
        "budget": state.budget.to_mapping(),
    }
    with open(os.path.join(folder, STATE_FILE), "w") as file:
        json.dump(values, file)


def load(folder: str, config: CIPOConfig, *, wants_pool: bool) -> tuple[TrainerState, dict[str, Any] | None]:
    """Read what :func:`save` wrote; what a checkpoint lacks, one saved without CIPO say, is as before step 1.

    The config outranks the checkpoint: a rho that its knobs do not allow any more gives way, which a line says.

    Args:
        wants_pool: whether a pool that is missing is worth a warning.

    Returns:
        the state, and the pool or None.
    """
    initial = TrainerState.initial(config)
    path = os.path.join(folder, STATE_FILE)
    if not os.path.exists(path):
        logger.warning("%s is missing, so it was saved without CIPO: rho starts at %s", path, initial.rho.rho)
        return initial, None
    with open(path) as file:
        values = json.load(file)
    saved = RhoState.from_mapping(values["rho"])
    rho = resumed_rho(saved, config, rho_init=values.get("rho_init"))
    if rho != saved:
        logger.warning(
            "%s: rho was %g and continues at %g, because algorithm.cipo has rho_adaptive=%s rho_init=%g rho_min=%g "
            "rho_max=%g now",
            *(path, saved.rho, rho.rho),
            *(config.rho_adaptive, config.rho_init, config.rho_min, config.rho_max),
        )
    guard = GuardState.from_mapping(values["guard"]) if "guard" in values else initial.guard
    budget = BudgetState.from_mapping(values["budget"]) if "budget" in values else initial.budget
    state = TrainerState(rho=rho, guard=guard, budget=budget)
    path = os.path.join(folder, POOL_FILE)
    if not os.path.exists(path):
        if wants_pool:
            logger.warning("%s is missing: with schedule=replay the next step has no corrections", path)
        return state, None
    # Our own file beside verl's data.pt, which is read the same way: it holds the prompts' own objects.
    return state, torch.load(path, weights_only=False)
