"""CIPO's variants of verl's V1 trainers.

Overridden methods, each calling verl's own: ``_init_tokenizer`` (the prompt budget is checked before a worker
starts), ``fit`` (rho goes to the rollout manager), ``_balance_batch`` (what each row is),
``_get_required_batch_multiple``/``_update_actor`` (one joint update with as many optimizer steps as GRPO),
``_compute_advantage`` (rows for the estimator; metrics; rho), ``_validate`` (the second turn),
``_save_checkpoint``/``_load_checkpoint`` (rho).
"""

import json
import logging
import os
import time
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_cipo.core.advantage import PADDING
from verl_cipo.core.config import CIPOConfigError
from verl_cipo.core.metrics import check_names
from verl_cipo.core.replay import RhoState, update_rho
from verl_cipo.integration.batch_rows import RowTable
from verl_cipo.integration.budget import check_prompt_length
from verl_cipo.integration.estimator import NAME, BatchRows, rows_of_batch
from verl_cipo.integration.joint_update import JointUpdate, interleaved, optimizer_steps, row_multiple
from verl_cipo.integration.second_turn import dump_second_turns, second_turn_metrics
from verl_cipo.integration.switch import MANAGER_CLASS, TRAINER_OF_MODE, check_combination, cipo_config

logger = logging.getLogger("verl_cipo")

STATE_FILE = "cipo.json"


class CIPOTrainerMixin:
    """What CIPO adds to a V1 trainer; ``verl_mode`` is the ``trainer.v1.trainer_mode`` of the trainer it stands on."""

    verl_mode: str

    def __init__(self, config: DictConfig):
        if config.algorithm.adv_estimator != NAME:
            raise CIPOConfigError(
                f"algorithm.adv_estimator={config.algorithm.adv_estimator} with the CIPO trainer: use {NAME}, or "
                f"trainer.v1.trainer_mode={self.verl_mode} for verl's own"
            )
        self.cipo = cipo_config(config)
        with open_dict(config):
            # Branches of verl test trainer_mode against its own names.
            config.trainer.v1.trainer_mode = self.verl_mode
        check_combination(config)
        print(f"[verl_cipo] trainer {type(self).__name__}, {self.cipo}")
        self._rho = RhoState.initial(self.cipo)
        self._table: RowTable | None = None
        super().__init__(config)

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        check_prompt_length(self.config, self.cipo, self.tokenizer)

    def fit(self, agent_loop_manager: Any) -> None:
        if not hasattr(agent_loop_manager, "pop_statistics"):
            raise CIPOConfigError(
                "actor_rollout_ref.rollout.agent.agent_loop_manager_class="
                f"{self.config.actor_rollout_ref.rollout.agent.get('agent_loop_manager_class')} does not roll "
                f"corrections out: use {MANAGER_CLASS}"
            )
        agent_loop_manager.rho = self._rho.rho
        super().fit(agent_loop_manager)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        self._table = RowTable.fetch(batch, self.cipo.correct_threshold)
        if self.cipo.lambda_corr == 0:
            # Without weight a correction still would enter entropy, KL and the loss's normaliser.
            corrections = self._table.correction_keys()
            if corrections:
                tq.kv_clear(keys=corrections, partition_id=batch.partition_id)
                dropped = set(corrections)
                batch = batch.select_keys([key for key in batch.keys if key not in dropped])
        # verl cuts mini-batches in this order, and corrections were stored after the attempts.
        batch.reorder(interleaved(self._table.streams(batch.keys)))
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _optimizer_steps(self) -> int:
        return optimizer_steps(self.config, self.config.data.train_batch_size // self.parameter_sync_step)

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        return row_multiple(
            self.config, dp_size=dp_size, steps=self._optimizer_steps(), uses_reference=self.use_reference_policy
        )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        worker_group = self.actor_rollout_wg
        self.actor_rollout_wg = JointUpdate(worker_group, len(batch) // self._optimizer_steps())
        try:
            return super()._update_actor(batch, metrics)
        finally:
            self.actor_rollout_wg = worker_group

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        table = self._table
        started = time.monotonic()
        rows = table.rows_in_order(batch)
        context = BatchRows(
            rows=rows, config=self.cipo, loss_agg_mode=self.config.actor_rollout_ref.actor.loss_agg_mode
        )
        with rows_of_batch(context):
            batch = super()._compute_advantage(batch, metrics)
        seconds = time.monotonic() - started

        own = table.metrics(n_padding=int((rows.stream == PADDING).sum()))
        own |= {f"cipo/{name}": value for name, value in self.agent_loop_manager.pop_statistics().items()}
        own["cipo/seconds/advantage"] = seconds
        own["cipo/rho"] = self._rho.rho
        check_names(own)
        metrics.update(own)
        self._rho = update_rho(self._rho, own.get("cipo/retention"), config=self.cipo)
        self.agent_loop_manager.rho = self._rho.rho
        return batch

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        if self.cipo.val_corrections > 0:
            records, counts = self.agent_loop_manager.pop_validation()
            own = second_turn_metrics(records, counts)
            check_names(own)
            metrics.update(own)
            directory = self.config.trainer.get("validation_data_dir", None)
            if directory:
                dump_second_turns(records, directory, self.global_steps)
        return metrics

    def _save_checkpoint(self) -> None:
        folder = os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
        os.makedirs(folder, exist_ok=True)
        # Written before verl's, whose last act marks the checkpoint as complete.
        with open(os.path.join(folder, STATE_FILE), "w") as file:
            json.dump({"rho": self._rho.to_mapping()}, file)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        trainer = self.config.trainer
        if trainer.resume_mode == "resume_path":
            folder = trainer.resume_from_path
        else:
            folder = find_latest_ckpt_path(os.path.abspath(trainer.default_local_dir))
        path = os.path.join(folder, STATE_FILE)
        if not os.path.exists(path):
            logger.warning("%s is missing, it was saved without CIPO: rho starts at rho_init=%s", path, self._rho.rho)
            return
        with open(path) as file:
            self._rho = RhoState.from_mapping(json.load(file)["rho"])


@register_trainer(TRAINER_OF_MODE["sync"])
class CIPOTrainerSync(CIPOTrainerMixin, PPOTrainerSync):
    """CIPO on verl's synchronous trainer: rollout and training share the devices."""

    verl_mode = "sync"
