"""CIPO on verl's V0 trainer, ``trainer.use_v1=False``: RayPPOTrainer over DataProto.

verl's TaskRunner builds ``RayPPOTrainer`` by that name, no option reaches it: :func:`take_place` puts
:class:`CIPOTrainerV0` under the name. Overridden methods, each calling verl's own:

* ``_balance_batch``: the first call that sees a step's attempts; lost ones leave the batch, the corrections and
  further attempts, which the manager (rollout.py) has kept, join it, both in place, and the estimator is told what each
  row is,
* ``_compute_old_log_prob``, ``_compute_ref_log_prob``, ``_update_actor``: workers get whole mini-batches, filled up by
  rows that nothing trains; the trainer's own batch never holds them,
* ``_update_actor`` also appends what the policy loss does not train, takes as many optimizer steps as GRPO, and ends
  the step: metrics, rho, budget, guard,
* ``_log_rollout_data``: the dump gets each row's uid, as the V1 trainers' has it,
* ``_maybe_log_val_generations``: the table of validation samples, once there are corrections to show in it,
* ``init_workers`` (the loss), ``_validate`` (the second turn), ``_save_checkpoint``/``_load_checkpoint``.
"""

import inspect
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl import DataProto
from verl.trainer import main_ppo_v0
from verl.trainer.ppo import ray_trainer
from verl.utils.metric import reduce_metrics

from verl_cipo.core.advantage import term_scale
from verl_cipo.core.aux_loss.plan import plan_metrics
from verl_cipo.core.config import CIPOConfigError
from verl_cipo.core.metrics import batch_metrics, nudge_metrics
from verl_cipo.core.rows import APPENDED, BASE, RowTable
from verl_cipo.integration import ChangedSeamError
from verl_cipo.integration.data_set import check_contexts, check_questions
from verl_cipo.integration.lengths import check_prompt_length
from verl_cipo.integration.nodes import check_nodes
from verl_cipo.integration.rendering import Rendering
from verl_cipo.integration.settings import MANAGER_CLASS_V0, settle
from verl_cipo.integration.tools import RunTools
from verl_cipo.integration.train.controller import Controller, report_second_turns
from verl_cipo.integration.train.estimator import NAME, BatchRows, rows_of_batch
from verl_cipo.integration.train.joint_update import JointUpdate, interleaved, optimizer_steps, row_multiple
from verl_cipo.integration.train.loss import install_loss, normalizer, taken_metrics
from verl_cipo.integration.v0.aux import append_rows, fill_partners, plan_of_batch
from verl_cipo.integration.v0.rows import Padding, joined, row_table, without_lost

TRAINER_NAME = "RayPPOTrainer"


def take_place() -> None:
    """Let verl's TaskRunner of the V0 trainer build :class:`CIPOTrainerV0`.

    verl has no option for it. Ray sends the TaskRunner to its actor with the globals that it has when it is first
    started, so this must run in the driver, before that.

    Raises:
        ChangedSeamError: the TaskRunner no longer builds its trainer by that global name.
    """
    # Ray wraps the methods of an actor class.
    run = inspect.unwrap(main_ppo_v0.TaskRunner.__ray_metadata__.modified_class.run)
    known = (ray_trainer.RayPPOTrainer, CIPOTrainerV0)
    if TRAINER_NAME not in run.__code__.co_names or getattr(main_ppo_v0, TRAINER_NAME, None) not in known:
        raise ChangedSeamError(f"verl.trainer.main_ppo_v0.TaskRunner.run no longer builds a {TRAINER_NAME}")
    main_ppo_v0.RayPPOTrainer = CIPOTrainerV0


class CIPOTrainerV0(ray_trainer.RayPPOTrainer):
    """CIPO on verl's V0 trainer."""

    # Of the step, from _balance_batch on.
    _metrics: dict[str, Any]
    """verl's, which it logs at the end of the step."""
    _sampled: RowTable
    """All rows that were rolled out."""
    _rows: RowTable
    """Those of verl's batch, in its order."""
    _steps: int
    """Optimizer steps."""
    _padding: Padding

    def __init__(self, config: DictConfig, *args: Any, **kwargs: Any):
        if config.algorithm.adv_estimator != NAME:
            raise CIPOConfigError(
                f"algorithm.adv_estimator={config.algorithm.adv_estimator} with CIPO's V0 trainer: a run with {NAME} "
                "was started in this process before, start this one in a process of its own"
            )
        self.cipo = settle(config)
        print(f"[verl_cipo] trainer {type(self).__name__}, {self.cipo}")
        check_nodes(config, self.cipo)
        self._controller = Controller(self.cipo)
        self._laid_out = ExitStack()
        """Holds the estimator's view of the step's rows."""
        super().__init__(config, *args, **kwargs)
        check_prompt_length(config, self.cipo, self.tokenizer, self.processor)
        check_questions(self.train_dataset, self.cipo)
        tools = RunTools.of(config.actor_rollout_ref.rollout, self.cipo)
        self._rendering = Rendering.of(config, self.cipo, self.tokenizer, self.processor, tools=tools)
        check_contexts(self.train_dataset, self.cipo, self._rendering.prompt)

    def init_workers(self) -> None:
        super().init_workers()
        if not hasattr(self.async_rollout_manager, "pop_second_dispatch"):
            raise CIPOConfigError(
                "actor_rollout_ref.rollout.agent.agent_loop_manager_class="
                f"{self.config.actor_rollout_ref.rollout.agent.get('agent_loop_manager_class')} does not roll "
                f"corrections out for the V0 trainer: use {MANAGER_CLASS_V0}"
            )
        install_loss(self.actor_rollout_wg, self.config, self.cipo)

    @property
    def _loss_agg_mode(self) -> str:
        return self.config.actor_rollout_ref.actor.loss_agg_mode

    def fit(self) -> None:
        with self._laid_out:
            super().fit()

    def _balance_batch(self, batch: DataProto, metrics: dict, *args: Any, **kwargs: Any) -> None:
        self._laid_out.close()
        whole = batch
        for part in self.async_rollout_manager.pop_second_dispatch():
            # A prompt that has lost all attempts may have further ones.
            whole = joined(whole, part)
        whole = without_lost(whole)
        prompts = len(batch) // self.config.actor_rollout_ref.rollout.n
        self._sampled = row_table(whole)
        self._metrics = metrics
        trained = np.arange(len(whole))
        if self.cipo.lambda_corr == 0:
            # Even without weight, a correction would enter entropy, KL and the loss's normalizer.
            trained = np.flatnonzero(self._sampled.rows.stream == BASE)
        keys = [self._sampled.keys[row] for row in trained]
        # The order of the V1 trainers.
        order = trained[self._sampled.stable_order(keys, seed=self.cipo.seed, step=self.global_steps)]
        order = order[interleaved(self._sampled.rows.stream[order])]
        self._steps = optimizer_steps(self.config, prompts)
        ordered, self._padding = self._arranged(whole, order, metrics, *args, **kwargs)
        batch.batch, batch.non_tensor_batch = ordered.batch, ordered.non_tensor_batch
        self._rows = row_table(batch)
        divided_by = normalizer(self.config.actor_rollout_ref.actor)
        self._laid_out.enter_context(
            rows_of_batch(BatchRows(rows=self._rows.rows, config=self._controller.config, loss_agg_mode=divided_by))
        )

    def _arranged(
        self, batch: DataProto, order: np.ndarray, metrics: dict, *args: Any, **kwargs: Any
    ) -> tuple[DataProto, Padding]:
        """The rows ``order`` as verl balances them over the ranks, each rank's in that order.

        verl cuts mini-batches in that order, which mixes the streams; its own within a rank goes by length.
        """
        ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
        multiple = row_multiple(self.config, dp_size=ranks, steps=self._steps, uses_reference=self.use_reference_policy)
        mask = batch.batch["attention_mask"][torch.from_numpy(order)]
        fill = np.full(-len(order) % multiple, int(mask.sum(dim=-1).argmin()))
        filled = torch.from_numpy(np.concatenate([np.arange(len(order)), fill]))
        balanced = DataProto.from_dict(tensors={"attention_mask": mask[filled], "place": torch.arange(len(filled))})
        super()._balance_batch(balanced, metrics, *args, **kwargs)
        parts = [np.sort(part) for part in np.split(balanced.batch["place"].numpy(), ranks)]
        # A mini-batch of nothing but what fills the batch up would have no loss.
        places = np.concatenate([part[interleaved(part >= len(order))] for part in parts])
        real = places < len(order)
        return batch.select_idxs(order[places[real]]), Padding(real)

    def _compute_old_log_prob(self, batch: DataProto) -> tuple[DataProto, Any]:
        computed, mfu = super()._compute_old_log_prob(self._padding.add(batch))
        return self._padding.remove(computed), mfu

    def _compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        return self._padding.remove(super()._compute_ref_log_prob(self._padding.add(batch)))

    def _update_actor(self, batch: DataProto) -> DataProto:
        own: dict[str, float] = {}
        padding = self._padding
        tokens = batch.batch["response_mask"].sum(dim=-1).numpy()
        scale = term_scale(self._rows.rows, tokens, loss_agg_mode=self._loss_agg_mode)
        if self.cipo.adds_loss:
            batch, padding = self._with_aux_rows(batch, own)
        padded = padding.add(batch)
        own["cipo/rows/padding"] = float(len(padded) - len(batch))
        worker_group = self.actor_rollout_wg
        self.actor_rollout_wg = JointUpdate(worker_group, len(padded) // self._steps, term_scale=scale)
        try:
            output = super()._update_actor(padded)
        finally:
            self.actor_rollout_wg = worker_group
        # verl reduces them once more, which a mean survives.
        output.meta_info["metrics"] = reported = reduce_metrics(output.meta_info["metrics"])
        self._end_step(own | taken_metrics(reported))
        return output

    def _with_aux_rows(self, batch: DataProto, own: dict[str, float]) -> tuple[DataProto, Padding]:
        """``batch`` with the fields of what is added to the loss and the rows that it needs, arranged anew."""
        plan = plan_of_batch(
            batch,
            self._rows,
            config=self.cipo,
            rendering=self._rendering,
            step=self.global_steps,
            norm_by_std=self.config.algorithm.get("norm_adv_by_std_in_grpo", True),
        )
        pad = self.tokenizer.pad_token_id
        grown = append_rows(batch, plan, config=self.cipo, pad_token_id=pad, optimizer_steps=self._steps)
        own |= plan_metrics([plan], self.cipo)
        streams = np.concatenate([self._rows.rows.stream, np.full(len(plan.rows), APPENDED, dtype=np.int8)])
        arranged, padding = self._arranged(grown, np.array(interleaved(streams)), {})
        if self.cipo.aux.contrastive:
            computed, _ = super()._compute_old_log_prob(padding.add(arranged))
            fill_partners(arranged, padding.remove(computed).batch["old_log_probs"])
        return arranged, padding

    def _end_step(self, own: dict[str, float]) -> None:
        manager = self.async_rollout_manager
        longest = self.config.actor_rollout_ref.rollout.response_length
        own = batch_metrics(self._sampled, longest=longest) | own
        if self.cipo.nudges:
            own |= nudge_metrics(self._sampled)
        own |= {f"cipo/{name}": value for name, value in manager.pop_statistics().items()}
        self._metrics.update(own)
        how = {"step": self.global_steps, "loss_agg_mode": self._loss_agg_mode}
        self._metrics.update(self._controller.observe(self._metrics, self._sampled, **how))
        manager.rho, manager.shares = self._controller.rho, self._controller.shares

    def _log_rollout_data(self, batch: DataProto, reward_extra_infos_dict: dict, *args: Any, **kwargs: Any) -> None:
        super()._log_rollout_data(batch, {**reward_extra_infos_dict, "uid": self._rows.keys}, *args, **kwargs)

    def _validate(self, merged: bool = False) -> dict[str, Any]:
        metrics = super()._validate(merged)
        report = report_second_turns(
            self.async_rollout_manager,
            self.cipo,
            self.config,
            step=self.global_steps,
            log_generations=super()._maybe_log_val_generations,
        )
        return metrics if merged else metrics | report

    def _maybe_log_val_generations(self, inputs: list, outputs: list, scores: list) -> None:
        if self.cipo.val_corrections == 0:
            super()._maybe_log_val_generations(inputs=inputs, outputs=outputs, scores=scores)

    def _save_checkpoint(self) -> None:
        self._controller.save(self.config, step=self.global_steps, pool=self.async_rollout_manager.pool_state())
        super()._save_checkpoint()

    def _load_checkpoint(self) -> Any:
        loaded = super()._load_checkpoint()
        manager, pool = self.async_rollout_manager, self._controller.load(self.config, step=self.global_steps)
        manager.rho, manager.shares = self._controller.rho, self._controller.shares
        if pool is not None:
            manager.restore_pool(pool)
        return loaded
