"""What the trainers of both data planes do beside verl's own: rho, the guard, the second turn's report, the state."""

import logging
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_cipo.core.advantage import Rows, term_scale
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.guard import ALARMS, Signals, explain, update_guard
from verl_cipo.core.metrics import check_names
from verl_cipo.core.replay import update_rho
from verl_cipo.core.second_turn import dump_second_turns, second_turn_metrics
from verl_cipo.integration.train import checkpoint as state
from verl_cipo.integration.train.estimator import BatchRows
from verl_cipo.integration.train.loss import build_loss, scales_terms

logger = logging.getLogger("verl_cipo")


class Steering:
    """Part of a trainer, which has ``config``, ``global_steps`` and the actor's workers of verl's.

    ``manager`` is CIPO's rollout manager: its ``rho`` is the share of right attempts among the next step's anchors.
    """

    config: DictConfig
    global_steps: int
    actor_rollout_wg: Any
    cipo: CIPOConfig
    _state: state.TrainerState

    def _lambda_corr(self) -> float:
        factor = self._state.guard.lambda_factor if self.cipo.guard == "adapt" else 1.0
        return self.cipo.lambda_corr * factor

    def _for_estimator(self, rows: Rows, *, loss_tokens: np.ndarray | None = None) -> BatchRows:
        """What the estimator has to know of a batch with these rows, in their order."""
        return BatchRows(
            rows=rows,
            config=replace(self.cipo, lambda_corr=self._lambda_corr()),
            loss_agg_mode=self.config.actor_rollout_ref.actor.loss_agg_mode,
            loss_tokens=loss_tokens,
        )

    def _install_loss(self) -> None:
        """Give the actor's workers CIPO's loss where verl's own does not do."""
        if self.cipo.aux.coef > 0 or scales_terms(self.config, self.cipo):
            self.actor_rollout_wg.set_loss_fn(build_loss(self.config.actor_rollout_ref.actor, self.cipo.aux))

    def _term_scale(self, rows: Rows, loss_tokens: np.ndarray | None) -> float:
        return term_scale(rows, loss_tokens, loss_agg_mode=self.config.actor_rollout_ref.actor.loss_agg_mode)

    def _steer(self, own: dict[str, float], manager: Any, *, entropy: float | None) -> None:
        """Move rho and the guard by what the step measured, and add what they are to ``own``, the step's metrics.

        Args:
            entropy: verl's ``actor/entropy``, None where it was not computed.
        """
        own["cipo/rho"] = manager.rho
        rho = update_rho(self._state.rho, own.get("cipo/retention"), config=self.cipo)
        self._state = replace(self._state, rho=rho)
        if self.cipo.guard != "off":
            own |= self._watch(own, entropy=entropy)
        manager.rho = rho.rho
        check_names(own)

    def _watch(self, own: dict[str, float], entropy: float | None) -> dict[str, float]:
        """Show the guard what the step measured; say aloud which alarms are new."""
        if entropy is not None and not math.isfinite(entropy):
            logger.error("step %d: actor/entropy is %s; the guard ignores it", self.global_steps, entropy)
            entropy = None
        signals = Signals(
            w2c=own.get("cipo/transitions/w2c"),
            c2c=own.get("cipo/transitions/c2c"),
            copy_rate=own.get("cipo/copy_rate"),
            entropy=entropy,
            accuracy=own.get("cipo/accuracy/base"),
        )
        before = self._state.guard.alarms
        guard = update_guard(self._state.guard, signals)
        self._state = replace(self._state, guard=guard)
        for alarm, explanation in explain(guard).items():
            if alarm not in before:
                logger.warning("step %d, guard: %s", self.global_steps, explanation)
        return {f"cipo/guard/{alarm}": float(alarm in guard.alarms) for alarm in ALARMS} | {
            "cipo/lambda": self._lambda_corr()
        }

    def _report_second_turns(self, manager: Any) -> dict[str, float]:
        """Metrics of the validation's second turn, which is dumped beside verl's dump; none without one."""
        if self.cipo.val_corrections == 0:
            return {}
        records, counts = manager.pop_validation()
        # verl's agent loops follow this setting of val_kwargs, and not do_sample.
        temperature = self.config.actor_rollout_ref.rollout.val_kwargs.temperature
        own = second_turn_metrics(records, counts, sampled=temperature > 0)
        check_names(own)
        directory = self.config.trainer.get("validation_data_dir", None)
        if directory:
            dump_second_turns(records, directory, self.global_steps, temperature=temperature)
        return own

    def _save_state(self, pool: dict[str, Any] | None) -> None:
        """Write the state into the folder of the checkpoint that verl is about to save."""
        folder = os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
        state.save(folder, self._state, self.cipo, pool)

    def _load_state(self) -> dict[str, Any] | None:
        """Read the state from the checkpoint that verl has loaded.

        Returns:
            the pool of schedule=replay, None where the checkpoint has none or verl started from scratch.
        """
        if self.global_steps == 0:
            return None
        trainer = self.config.trainer
        if trainer.resume_mode == "resume_path":
            folder = trainer.resume_from_path
        else:
            folder = find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))
        replays = self.cipo.schedule == "replay" and self.cipo.rolls_out
        self._state, pool = state.load(folder, self.cipo, wants_pool=replays)
        return pool
