"""What moves from step to step, for the trainers of both data planes: rho, budget and guard; validation's report."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from verl_cipo.core.advantage import TOKEN_MEAN_MODES
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.metrics import check_names
from verl_cipo.core.rows import RowTable
from verl_cipo.core.steering.budget import observe_budget, shares
from verl_cipo.core.steering.guard import ALARMS, Signals, explain, update_guard
from verl_cipo.core.steering.rho import update_rho
from verl_cipo.core.transitions import dump_second_turns, generations_table, second_turn_metrics
from verl_cipo.integration.train import checkpoint

logger = logging.getLogger("verl_cipo")


class Controller:
    """Moves rho, budget and guard by what each step measured; its state goes into every checkpoint.

    Args:
        config: ``algorithm.cipo``.
        state: where to go on; None is before step 1.
    """

    def __init__(self, config: CIPOConfig, state: checkpoint.TrainerState | None = None):
        self._config = config
        self._state = state or checkpoint.TrainerState.initial(config)

    @property
    def rho(self) -> float:
        """Share of right attempts among the anchors of the next step."""
        return self._state.rho.rho

    @property
    def shares(self) -> dict[str, float] | None:
        """Of core.steering.budget, for the slots of the next step; None with budget=fixed."""
        return shares(self._state.budget) if self._config.moves_budget else None

    @property
    def config(self) -> CIPOConfig:
        """``algorithm.cipo`` with the weight of the corrections that the guard leaves them."""
        factor = self._state.guard.lambda_factor if self._config.guard == "adapt" else 1.0
        return replace(self._config, lambda_corr=self._config.lambda_corr * factor)

    def observe(
        self, measured: Mapping[str, float], table: RowTable, *, step: int, loss_agg_mode: str
    ) -> dict[str, float]:
        """Move rho, budget and guard; warn of alarms that are new.

        Args:
            measured: metrics of the step, verl's ``actor/entropy`` among them where it was computed.
            loss_agg_mode: verl's, by which it sums up that entropy; in those that sum over tokens the guard does not
                look at it, since it would follow the length of the responses.
            table: all rows that were rolled out.

        Returns:
            the metrics that this adds: rho and budget of the step, the guard's alarms, the weight of the next step.
        """
        added = {"cipo/rho": self.rho}
        rho = update_rho(self._state.rho, measured.get("cipo/retention"), config=self._config)
        self._state = replace(self._state, rho=rho)
        if self._config.moves_budget:
            budget, metrics = observe_budget(self._state.budget, table, measured)
            self._state = replace(self._state, budget=budget)
            added |= metrics
        if self._config.guard != "off":
            per_token = loss_agg_mode in TOKEN_MEAN_MODES
            added |= self._watch(measured, step, measured.get("actor/entropy") if per_token else None)
        check_names([*measured, *added])
        return added

    def _watch(self, measured: Mapping[str, float], step: int, entropy: float | None) -> dict[str, float]:
        if entropy is not None and not math.isfinite(entropy):
            logger.error("step %d: actor/entropy is %s; the guard ignores it", step, entropy)
            entropy = None
        signals = Signals(
            w2c=measured.get("cipo/transitions/w2c"),
            c2c=measured.get("cipo/transitions/c2c"),
            copy_rate=measured.get("cipo/copy_rate"),
            entropy=entropy,
            accuracy=measured.get("cipo/accuracy/base"),
        )
        before = self._state.guard.alarms
        guard = update_guard(self._state.guard, signals)
        self._state = replace(self._state, guard=guard)
        for alarm, explanation in explain(guard).items():
            if alarm not in before:
                logger.warning("step %d, guard: %s", step, explanation)
        alarms = {f"cipo/guard/{alarm}": float(alarm in guard.alarms) for alarm in ALARMS}
        return alarms | {"cipo/lambda": self.config.lambda_corr}

    def save(self, config: DictConfig, *, step: int, pool: dict[str, Any] | None) -> None:
        """Write the state into the folder of the checkpoint that verl is about to save.

        Args:
            pool: that of schedule=replay; None where the trainer has none.
        """
        checkpoint.save(checkpoint.step_folder(config, step), self._state, self._config, pool)

    def load(self, config: DictConfig, *, step: int) -> dict[str, Any] | None:
        """Read the state from the checkpoint that verl has loaded; ``step`` is 0 where it started from scratch.

        Returns:
            the pool of schedule=replay, None where the checkpoint has none.
        """
        if step == 0:
            return None
        resumed = checkpoint.resumed_folder(config)
        self._state, pool = checkpoint.load(resumed, self._config, wants_pool=self._config.replays)
        return pool


def report_second_turns(
    manager: Any, cipo: CIPOConfig, config: DictConfig, *, step: int, log_generations: Callable[..., None]
) -> dict[str, float]:
    """Metrics of the validation's attempts with their second turns, which are dumped beside verl's dump.

    None without second turns and without a second verifier.

    Args:
        manager: CIPO's rollout manager.
        log_generations: verl's ``_maybe_log_val_generations``; not called where there are no second turns, of which it
            would show nothing.
    """
    if not cipo.reports_validation:
        return {}
    records, counts = manager.pop_validation()
    # verl's agent loops read this of val_kwargs, and not do_sample.
    temperature = config.actor_rollout_ref.rollout.val_kwargs.temperature
    metrics = second_turn_metrics(records, counts, sampled=temperature > 0, corrected=cipo.val_corrections > 0)
    check_names(metrics)
    if cipo.val_corrections > 0:
        log_generations(**generations_table(records))
    directory = config.trainer.get("validation_data_dir", None)
    if directory:
        dump_second_turns(records, directory, step, temperature=temperature)
    return metrics
