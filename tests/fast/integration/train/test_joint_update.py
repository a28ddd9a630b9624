"""How many rows a joint update is padded to, and how they are cut."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from verl_cipo.integration.train.joint_update import JointUpdate, interleaved, optimizer_steps, row_multiple
from verl_cipo.integration.train.loss import TERM_SCALE


def config(*, dynamic: bool, mini: int = 16, micro: int = 4, log_prob_micro: int = 6, ref_micro: int | None = 5):
    return OmegaConf.create(
        {
            "actor_rollout_ref": {
                "actor": {
                    "use_dynamic_bsz": dynamic,
                    "ppo_mini_batch_size": mini,
                    "ppo_micro_batch_size_per_gpu": micro,
                },
                "rollout": {"log_prob_micro_batch_size_per_gpu": log_prob_micro},
                "ref": {"log_prob_use_dynamic_bsz": dynamic, "log_prob_micro_batch_size_per_gpu": ref_micro},
            }
        }
    )


@pytest.mark.parametrize(("prompts", "mini", "steps"), [(16, 16, 1), (64, 16, 4), (8, 16, 1), (24, 16, 2)])
def test_as_many_optimizer_steps_as_grpo(prompts, mini, steps):
    assert optimizer_steps(config(dynamic=True, mini=mini), prompts) == steps


def test_dynamic_batches_pad_to_ranks_and_mini_batches_only():
    assert row_multiple(config(dynamic=True), dp_size=2, steps=3, uses_reference=True) == 6


def test_fixed_micro_batches_must_be_whole():
    # a rank's rows: 3 mini-batches of whole 4s = 12, log-prob in 6s: lcm 12; two ranks: 24
    assert row_multiple(config(dynamic=False), dp_size=2, steps=3, uses_reference=False) == 24
    # and the reference pass in 5s: lcm(12, 5) = 60
    assert row_multiple(config(dynamic=False), dp_size=2, steps=3, uses_reference=True) == 120


def test_with_lora_the_actor_computes_the_reference_and_its_size_may_be_null():
    made = config(dynamic=False, ref_micro=None)
    assert row_multiple(made, dp_size=2, steps=3, uses_reference=True) == 24


def test_streams_are_mixed_alike_in_every_stretch():
    streams = np.array([0] * 8 + [1] * 4)
    order = interleaved(streams)
    assert sorted(order) == list(range(12))
    for start in range(0, 12, 3):
        assert sorted(streams[order[start : start + 3]]) == [0, 0, 1]
    assert [i for i in order if i < 8] == list(range(8)), "the order within a stream changed"


def test_a_single_stream_keeps_its_order():
    assert interleaved(np.zeros(7, dtype=np.int8)) == list(range(7))


def test_update_asks_for_the_joint_mini_batch():
    class WorkerGroup:
        world_size = 2

        def update_actor(self, batch):
            return batch.extra_info

    batch = KVBatchMeta(partition_id="train", keys=["a"], tags=[{}])
    batch.extra_info.update({"mini_batch_size": 128, "global_batch_size": 128, "epochs": 1})
    group = JointUpdate(WorkerGroup(), mini_batch_size=252, term_scale=0.5)
    told = {"mini_batch_size": 252, "global_batch_size": 128, "epochs": 1, TERM_SCALE: 0.5}
    assert group.update_actor(batch) == told
    assert group.world_size == 2
