"""One joint update over both streams, with as many optimizer steps as GRPO takes with the same settings."""

import math
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from verl_cipo.integration.train.loss import TERM_SCALE


def optimizer_steps(config: DictConfig, prompts: int) -> int:
    """Optimizer steps of one epoch over ``prompts`` prompts; verl pads the last of ``actor.ppo_mini_batch_size``."""
    return math.ceil(prompts / config.actor_rollout_ref.actor.ppo_mini_batch_size)


def row_multiple(config: DictConfig, *, dp_size: int, steps: int, uses_reference: bool) -> int:
    """What the number of rows must divide by; the trainer pads up to it with masked rows.

    Every rank's mini-batch must be whole, and without ``use_dynamic_bsz`` consist of whole micro-batches, in training
    as in the log-prob passes. GRPO's rows do so by construction; with corrections their number depends on how many
    anchors were skipped and sessions failed.
    """
    actor, rollout, ref = (config.actor_rollout_ref[name] for name in ("actor", "rollout", "ref"))
    per_rank = steps
    if not actor.use_dynamic_bsz:
        per_rank = math.lcm(steps * actor.ppo_micro_batch_size_per_gpu, rollout.log_prob_micro_batch_size_per_gpu)
    # With LoRA the actor computes the reference, and this size may be null.
    if uses_reference and not ref.log_prob_use_dynamic_bsz and ref.log_prob_micro_batch_size_per_gpu is not None:
        per_rank = math.lcm(per_rank, ref.log_prob_micro_batch_size_per_gpu)
    return dp_size * per_rank


def interleaved(streams: np.ndarray) -> list[int]:
    """An order in which every stretch of the batch holds all streams in the batch's proportion.

    Args:
        streams: (N,) stream of each row.

    Returns:
        a permutation of N positions that keeps the order within each stream; the identity for a single stream.
    """
    place = np.empty(len(streams))
    for stream in np.unique(streams):
        rows = np.flatnonzero(streams == stream)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.argsort(place, kind="stable").tolist()


class JointUpdate:
    """The actor's worker group, with the mini-batch size of the joint update in place of GRPO's, and TERM_SCALE.

    ``_update_actor`` of verl's trainers asks for ``ppo_mini_batch_size * n`` rows a mini-batch. With corrections in it
    a batch would take more optimizer steps; the same number of larger mini-batches is what CIPO wants.
    """

    def __init__(self, worker_group: Any, mini_batch_size: int, *, term_scale: float):
        self._worker_group = worker_group
        self._told = {"mini_batch_size": mini_batch_size, TERM_SCALE: term_scale}

    def update_actor(self, batch: KVBatchMeta | TensorDict) -> Any:
        if isinstance(batch, TensorDict):
            tu.assign_non_tensor(batch, **self._told)
        else:
            batch.extra_info.update(self._told)
        return self._worker_group.update_actor(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker_group, name)
