"""CIPO's variants of verl's V1 trainers.

Overridden methods, each calling verl's own:

* ``_init_tokenizer``, ``_init_dataloader``: lengths and the data set's rows are checked before a worker starts,
* ``on_init_end``: the loss is installed,
* ``_build_replay_buffer``: with ``algorithm.filter_groups`` one that filters by attempts alone,
* ``fit``: rho, shares of the budget and the pool go to the rollout manager,
* ``_balance_batch``: what each row is, rows for what is added to the policy loss, a stable order,
* ``_get_required_batch_multiple``, ``_update_actor``: one joint update with as many optimizer steps as GRPO,
* ``_compute_advantage``: rows for the estimator, weights of what is added,
* ``step``: metrics, rho, budget, guard,
* ``_validate``: the second turn,
* ``_maybe_log_val_generations``: the table of validation samples, once there are corrections to show in it,
* ``_save_checkpoint``, ``_load_checkpoint``: the controller's state and the pool,
* ``on_sample_end``, ``on_step_end`` with colocate_async: no timeout runs while the engines sleep.
"""

import logging
import time
from typing import Any

import numpy as np
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, register_trainer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_cipo.core.advantage import SEQ_MEAN_MODES, term_scale
from verl_cipo.core.aux_loss.plan import plan_metrics
from verl_cipo.core.config import CIPOConfigError
from verl_cipo.core.metrics import batch_metrics, nudge_metrics
from verl_cipo.core.rows import RowTable
from verl_cipo.integration.data_set import check_contexts, check_questions
from verl_cipo.integration.group_filter import filter_metric
from verl_cipo.integration.lengths import check_prompt_length
from verl_cipo.integration.nodes import check_nodes
from verl_cipo.integration.rendering import Rendering
from verl_cipo.integration.settings import MANAGER_CLASS, TRAINER_OF_MODE, settle
from verl_cipo.integration.stopwatch import Stopwatch
from verl_cipo.integration.tools import RunTools
from verl_cipo.integration.train.aux import AuxRows, add_aux_rows
from verl_cipo.integration.train.controller import Controller, report_second_turns
from verl_cipo.integration.train.estimator import NAME, BatchRows, rows_of_batch
from verl_cipo.integration.train.joint_update import JointUpdate, interleaved, optimizer_steps, row_multiple
from verl_cipo.integration.train.loss import install_loss, normalizer, scales_terms, taken_metrics
from verl_cipo.integration.train.replay_buffer import filtering
from verl_cipo.integration.train.rows import cleared, fetch_table, row_sums, rows_in_order, without_torn_rows

logger = logging.getLogger("verl_cipo")


class CIPOTrainerMixin:
    """What CIPO adds to a V1 trainer; ``verl_mode`` is the ``trainer.v1.trainer_mode`` of the trainer it stands on."""

    verl_mode: str

    def __init__(self, config: DictConfig):
        if config.algorithm.adv_estimator != NAME:
            raise CIPOConfigError(
                f"algorithm.adv_estimator={config.algorithm.adv_estimator} with the CIPO trainer: use {NAME}, or "
                f"trainer.v1.trainer_mode={self.verl_mode} for verl's own"
            )
        with open_dict(config):
            # Branches of verl test trainer_mode against its own names.
            config.trainer.v1.trainer_mode = self.verl_mode
        self.cipo = settle(config)
        if self.verl_mode != "sync" and self.cipo.rolls_out and not self.cipo.replays:
            logger.warning(
                "algorithm.cipo.schedule=%s with trainer_mode=%s: no prompt of a dispatch can be trained before all "
                "of them are rolled out, because anchors are drawn among them; schedule=replay does not wait",
                self.cipo.schedule,
                self.verl_mode,
            )
        print(f"[verl_cipo] trainer {type(self).__name__}, {self.cipo}")
        check_nodes(config, self.cipo)
        self._controller = Controller(self.cipo)
        self._filters = filter_metric(config) is not None
        self._pool: dict[str, Any] | None = None
        """The pool of a checkpoint, until the rollout manager is there to take it."""
        self._tables: list[RowTable] = []
        """One for each update of the step: ``parameter_sync_step`` of them."""
        self._aux: list[AuxRows] = []
        """Likewise, where something is added to the policy loss."""
        self._advantage_seconds = 0.0
        self._own_time = Stopwatch()
        self._scale_of_terms = 1.0
        """``TERM_SCALE`` of the update."""
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        built = super()._build_replay_buffer()
        return filtering(built, hosts=self.cipo.replays) if self._filters else built

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        check_prompt_length(self.config, self.cipo, self.tokenizer, self.processor)
        tools = RunTools.of(self.config.actor_rollout_ref.rollout, self.cipo)
        self._rendering = Rendering.of(self.config, self.cipo, self.tokenizer, self.processor, tools=tools)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        check_questions(self.train_dataset, self.cipo)
        check_contexts(self.train_dataset, self.cipo, self._rendering.prompt)

    def on_init_end(self) -> None:
        super().on_init_end()
        install_loss(self.actor_rollout_wg, self.config, self.cipo)

    def fit(self, agent_loop_manager: Any) -> None:
        if not hasattr(agent_loop_manager, "pop_statistics"):
            raise CIPOConfigError(
                "actor_rollout_ref.rollout.agent.agent_loop_manager_class="
                f"{self.config.actor_rollout_ref.rollout.agent.get('agent_loop_manager_class')} does not roll "
                f"corrections out: use {MANAGER_CLASS}"
            )
        agent_loop_manager.rho, agent_loop_manager.shares = self._controller.rho, self._controller.shares
        if self._filters:
            self.replay_buffer.manager = agent_loop_manager
        if self._pool is not None:
            agent_loop_manager.restore_pool(self._pool)
            self._pool = None
        super().fit(agent_loop_manager)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self._tables, self._aux, self._advantage_seconds = [], [], 0.0
        batch = super().step(metrics, timing_raw)
        with self._own_time.running():
            self._measure(batch, metrics)
        metrics["cipo/seconds/driver"] = metrics.get("cipo/seconds/driver", 0.0) + self._own_time.pop()
        return batch

    def _measure(self, batch: KVBatchMeta, metrics: dict) -> None:
        """Put the step's metrics into ``metrics``, and move what follows them."""
        table = RowTable.joined(self._tables)
        own = batch_metrics(table, longest=self.config.actor_rollout_ref.rollout.response_length)
        own["cipo/rows/padding"] = float(sum(tag.get("is_padding", False) for tag in batch.tags))
        own |= plan_metrics([aux.plan for aux in self._aux], self.cipo) | taken_metrics(metrics)
        own["cipo/rows/padding"] -= sum(
            own.get(f"cipo/{part}", 0.0) for part in ("rows/aux", "transfer/rows", "nudge/rows")
        )
        if self.cipo.nudges:
            own |= nudge_metrics(table)
        own |= {f"cipo/{name}": value for name, value in self.agent_loop_manager.pop_statistics().items()}
        if self._filters:
            own |= {f"cipo/{name}": value for name, value in self.replay_buffer.pop_counts().items()}
        own["cipo/seconds/advantage"] = self._advantage_seconds
        metrics.update(own)
        how = {"step": self.global_steps, "loss_agg_mode": self._loss_agg_mode}
        metrics.update(self._controller.observe(metrics, table, **how))
        manager = self.agent_loop_manager
        manager.rho, manager.shares = self._controller.rho, self._controller.shares

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        with self._own_time.running():
            batch = self._laid_out(batch)
        real = set(batch.keys)
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        fills = np.array([key not in real for key in batch.keys])
        if fills.any():
            # verl pads at the end of a rank's rows, and a mini-batch of padding alone would have no loss.
            ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
            size = len(fills) // ranks
            batch.reorder([at + i for at in range(0, len(fills), size) for i in interleaved(fills[at : at + size])])
        return batch

    def _laid_out(self, batch: KVBatchMeta) -> KVBatchMeta:
        """``batch`` with a table of what its rows are, with rows for what is added to the policy loss, in order."""
        batch = without_torn_rows(batch)
        table = fetch_table(batch, threshold=self.cipo.threshold)
        self._tables.append(table)
        if self.cipo.adds_loss:
            batch, aux = add_aux_rows(
                batch,
                table,
                config=self.cipo,
                rendering=self._rendering,
                step=self.global_steps,
                in_stream=self.cipo.lambda_corr > 0,
                norm_by_std=self.config.algorithm.get("norm_adv_by_std_in_grpo", True),
            )
            self._aux.append(aux)
        if self.cipo.lambda_corr == 0:
            # Even without weight, a correction would enter entropy, KL and the loss's normalizer.
            batch = cleared(batch, table.correction_keys())
        batch.reorder(table.stable_order(batch.keys, seed=self.cipo.seed, step=self.global_steps))
        # verl cuts mini-batches in this order.
        batch.reorder(interleaved(table.streams(batch.keys)))
        return batch

    def _optimizer_steps(self) -> int:
        return optimizer_steps(self.config, self.config.data.train_batch_size // self.parameter_sync_step)

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        return row_multiple(
            self.config, dp_size=dp_size, steps=self._optimizer_steps(), uses_reference=self.use_reference_policy
        )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        worker_group = self.actor_rollout_wg
        size = len(batch) // self._optimizer_steps()
        self.actor_rollout_wg = JointUpdate(worker_group, size, term_scale=self._scale_of_terms)
        try:
            return super()._update_actor(batch, metrics)
        finally:
            self.actor_rollout_wg = worker_group

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        started = time.monotonic()
        with self._own_time.running():
            rows, loss_tokens = rows_in_order(self._tables[-1], batch), self._loss_tokens(batch)
            if scales_terms(self.config, self.cipo):
                self._scale_of_terms = term_scale(rows, loss_tokens, loss_agg_mode=self._loss_agg_mode)
        laid_out = BatchRows(
            rows=rows,
            config=self._controller.config,
            loss_agg_mode=normalizer(self.config.actor_rollout_ref.actor),
            loss_tokens=loss_tokens,
            own_time=self._own_time,
        )
        with rows_of_batch(laid_out):
            batch = super()._compute_advantage(batch, metrics)
        if self.cipo.adds_loss:
            with self._own_time.running():
                batch = self._aux[-1].put_fields(batch, config=self.cipo, optimizer_steps=self._optimizer_steps())
        self._advantage_seconds += time.monotonic() - started
        return batch

    @property
    def _loss_agg_mode(self) -> str:
        return self.config.actor_rollout_ref.actor.loss_agg_mode

    def _loss_tokens(self, batch: KVBatchMeta) -> np.ndarray | None:
        """(N,) tokens of each row that the engines divide by, where they are needed beside the response mask.

        In the modes that count rows they are not. Rollout correction takes tokens that it rejects out of
        ``response_mask`` only, the engines count ``loss_mask``.
        """
        if self._loss_agg_mode in SEQ_MEAN_MODES:
            return None
        rejects = OmegaConf.select(self.config, "algorithm.rollout_correction.rollout_rs")
        if not rejects and not scales_terms(self.config, self.cipo):
            return None
        fields = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["loss_mask"])
        return row_sums(fields["loss_mask"])

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        return metrics | report_second_turns(
            self.agent_loop_manager,
            self.cipo,
            self.config,
            step=self.global_steps,
            log_generations=super()._maybe_log_val_generations,
        )

    def _maybe_log_val_generations(self, inputs: list, outputs: list, scores: list) -> None:
        if self.cipo.val_corrections == 0:
            super()._maybe_log_val_generations(inputs=inputs, outputs=outputs, scores=scores)

    def _save_checkpoint(self) -> None:
        self._controller.save(self.config, step=self.global_steps, pool=self.agent_loop_manager.pool_state())
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self._pool = self._controller.load(self.config, step=self.global_steps)


@register_trainer(TRAINER_OF_MODE["sync"])
class CIPOTrainerSync(CIPOTrainerMixin, PPOTrainerSync):
    """CIPO on verl's synchronous trainer: rollout and training share the devices."""

    verl_mode = "sync"


@register_trainer(TRAINER_OF_MODE["colocate_async"])
class CIPOTrainerColocateAsync(CIPOTrainerMixin, PPOTrainerColocateAsync):
    """CIPO on verl's asynchronous trainer with shared devices: rollouts that are cut off go on after the update."""

    verl_mode = "colocate_async"

    def on_sample_end(self) -> None:
        super().on_sample_end()
        self.agent_loop_manager.engines_sleep()

    def on_step_end(self) -> None:
        super().on_step_end()
        self.agent_loop_manager.engines_wake()


@register_trainer(TRAINER_OF_MODE["separate_async"])
class CIPOTrainerSeparateAsync(CIPOTrainerMixin, PPOTrainerSeparateAsync):
    """CIPO on verl's asynchronous trainer with devices of its own for rollout."""

    verl_mode = "separate_async"
