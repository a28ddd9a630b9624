"""verl's own sampling loop over our filter: who is evicted, replaced, left over and trained, and what is counted."""

import time
from collections import Counter

import pytest
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_cipo.integration.train.replay_buffer import filtering


class World:
    """TransferQueue in memory, the rollout manager, and verl's pause between polls, at which prompts end."""

    def __init__(self, monkeypatch):
        self.prompts: dict[str, dict] = {}
        self.rows: dict[str, float] = {}
        self.coming: list[tuple] = []
        self.to_end: list[str] = []
        self.stay: set[str] = set()
        self.asked: list[tuple[int, int]] = []
        self.draws = 0
        self.replaces = 0
        for name in ("kv_list", "kv_clear", "kv_batch_get"):
            monkeypatch.setattr(tq, name, getattr(self, name))
        monkeypatch.setattr(time, "sleep", lambda _: self.poll())

    # The manager.
    def admitted(self) -> set[str]:
        return set(self.stay)

    def draw_rest(self) -> None:
        self.draws += 1

    # The trainer.
    def refill(self, n: int) -> None:
        self.asked.append((n, self.replaces))
        for _ in range(n):
            self.put(*self.coming.pop(0))

    def put(self, uid: str, attempts: str, corrections: str = "", status: str = "finished", step: int = 1) -> None:
        """A prompt; r and w are right and wrong rows, those of corrections are all of its anchor 0."""
        self.prompts[uid] = {"is_prompt": True, "status": status, "global_steps": step}
        for group, outcomes in ((uid, attempts), (f"{uid}_c0", corrections)):
            self.rows |= {f"{group}_{i}_0": float(outcome == "r") for i, outcome in enumerate(outcomes)}

    def poll(self) -> None:
        assert self.to_end, "verl waits, and nothing will come"
        self.prompts[self.to_end.pop(0)]["status"] = "finished"

    # TransferQueue.
    def kv_list(self, partition_id=None):
        return {"train": {**self.prompts, **{key: {"status": "success"} for key in self.rows}}}

    def kv_clear(self, keys, partition_id):
        for key in keys:
            self.prompts.pop(key, None)
            self.rows.pop(key, None)

    def kv_batch_get(self, keys, partition_id, select_fields):
        assert select_fields == ["rm_scores"]
        return TensorDict({"rm_scores": torch.tensor([[self.rows[key]] for key in keys])}, batch_size=len(keys))


@pytest.fixture
def world(monkeypatch) -> World:
    return World(monkeypatch)


def buffer(world: World, *, hosts: bool = False, batch: int = 2, cls: type = ReplayBuffer, **options):
    mode = "sync" if cls is ReplayBuffer else "colocate_async"
    built = cls(
        trainer_mode=mode,
        trainer_config={},
        max_off_policy_threshold=2,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        refill_fn=world.refill,
        filter_groups_metric="reward",
        **({"train_batch_size": batch, "gen_batch_size": 1, **options} if cls is ReplayBuffer else {}),
    )
    made = filtering(built, hosts=hosts)
    made.manager = world
    return made


def sampled(made, *, batch: int = 2, step: int = 1):
    meta, metrics = made.sample(global_steps=step, partition_id="train", batch_size=batch)
    return Counter(key.split("_")[0] for key in meta.keys), metrics, made.pop_counts()


def test_a_buffer_of_ours_has_what_verls_had(world):
    made = buffer(world, max_inflight_gen_batches=3)
    assert (made.train_batch_size, made.gen_batch_size, made.max_inflight_gen_batches) == (2, 1, 3)
    assert made.filter_groups_metric == "reward" and made.poll_interval == 2.0
    assert isinstance(buffer(world, cls=ReplayBufferAsync), ReplayBufferAsync)


def test_attempts_alone_decide(world):
    """Of a and b all attempts are alike, whatever their corrections are; verl replaces two by up to four, two fit."""
    world.put("a", "wwww", "rwrw")
    world.put("b", "rrrr")
    world.coming = [("c", "rwrw", "wwww"), ("d", "rwww")]
    rows, metrics, counts = sampled(buffer(world))
    assert rows == {"c": 8, "d": 4}
    assert world.asked == [(2, 2)]
    assert metrics["training/filter_groups/evicted_samples"] == 2
    assert metrics["_dapo_filtered_reward_counts"] == {0.0: 1, 1.0: 1}
    assert counts == {"filter/attempts": 8, "filter/corrections": 4}
    assert set(world.rows) == {f"c_{i}_0" for i in range(4)} | {f"c_c0_{i}_0" for i in range(4)} | {
        f"d_{i}_0" for i in range(4)
    }, "rows of what was evicted are gone"


def test_a_prompt_that_the_coordinator_admitted_stays_also_when_it_is_forgotten(world, monkeypatch):
    world.put("a", "wwww", "rwrw")
    world.put("b", "rwww", status="running")
    world.stay = {"a"}
    made = buffer(world)
    answers = iter([{"a"}])
    monkeypatch.setattr(world, "admitted", lambda: next(answers, set()))
    world.to_end = ["b"]
    rows, metrics, counts = sampled(made)
    assert rows == {"a": 8, "b": 4} and metrics == {} and world.asked == []
    assert counts == {"filter/attempts": 0, "filter/corrections": 0}


def test_prompts_that_wait_for_their_corrections_count_as_enough(world):
    """One is evicted, which gives verl two to sample; the step has its two, so it samples none."""
    world.put("a", "rwrw", status="running")
    world.put("b", "rwrw", status="running")
    world.put("c", "rrrr")
    world.stay = {"a", "b"}
    world.to_end = ["a", "b"]
    rows, metrics, counts = sampled(buffer(world, max_inflight_gen_batches=2))
    assert rows == {"a": 4, "b": 4} and world.asked == []
    assert world.draws == 3, "told at every look"
    assert metrics["training/filter_groups/evicted_samples"] == 1 and counts["filter/attempts"] == 4


def test_of_prompts_that_are_left_over_those_without_corrections_go(world):
    for uid in "abcdefgh":
        world.put(uid, "rwrw", "rw" if uid in "dg" else "")
    world.stay = {"d", "g"}
    rows, metrics, counts = sampled(buffer(world))
    assert rows == {"d": 6, "g": 6}
    assert metrics["training/filter_groups/discarded_surplus_samples"] == 6
    assert counts == {"filter/attempts": 24, "filter/corrections": 0}


def test_corrections_that_an_evicted_prompt_hosts_are_trained_once(world):
    world.put("a", "wwww", "rw")
    world.put("b", "rwrw", "rw")
    world.put("c", "rwrw", "rw")
    made = buffer(world, hosts=True, batch=1)
    rows, _, counts = sampled(made, batch=1)
    assert rows in ({"a": 2, "b": 6, "c": 2}, {"a": 2, "b": 2, "c": 6}), "also those of the one that is left over"
    assert counts == {"filter/attempts": 8, "filter/corrections": 0, "filter/rehomed": 4}
    world.kv_clear(list(world.rows), "train")
    world.put("d", "rwrw")
    rows, _, counts = sampled(made, batch=1)
    assert rows == {"d": 4} and counts["filter/rehomed"] == 0


def test_a_prompt_with_nothing_but_hosted_corrections_is_no_error(world):
    world.put("a", "", "rw")
    rows, metrics, _ = sampled(buffer(world, hosts=True, batch=1), batch=1)
    assert rows == {"a": 2} and metrics == {}


def test_asynchronous_replacements_of_filtered_prompts_host_nothing(world):
    """a is filtered, b is too old: two replacements, one of which adds anchors."""
    world.put("a", "wwww", "rw", step=3)
    world.put("b", "rwrw", "rw", step=1)
    world.coming = [("c", "rwrw", "", "finished", 3), ("d", "rwrw", "", "finished", 3)]
    made = buffer(world, hosts=True, cls=ReplayBufferAsync)
    rows, metrics, counts = sampled(made, step=3)
    assert world.asked == [(2, 1)] and world.replaces == 0
    assert made._unpaid == 0 and not made._rehomed, "a checkpoint would have to hold it"
    assert rows == {"a": 2, "c": 4, "d": 4}
    assert metrics["training/off_policy/evicted_samples"] == metrics["training/filter_groups/evicted_samples"] == 1
    assert counts == {"filter/attempts": 8, "filter/corrections": 2, "filter/rehomed": 2}


def test_rows_of_an_update_before_are_no_business_of_the_next(world):
    """separate_async takes several updates a step, and what the first one trained is still there."""
    world.rows |= {"padding": 0.0, "z_c0_0_0": 1.0, "z_p1_0_0": 1.0}
    world.put("a", "rwrw")
    rows, _, _ = sampled(buffer(world, hosts=True, cls=ReplayBufferAsync), batch=1)
    assert rows == {"a": 4}


def test_validation_is_verls(world, monkeypatch):
    world.put("a", "wwww")
    made = buffer(world)
    monkeypatch.setattr(tq, "kv_list", lambda: {"val": World.kv_list(world)["train"]})
    monkeypatch.setattr(world, "admitted", lambda: pytest.fail("asked in a validation"))
    meta, metrics = made.sample(global_steps=1, partition_id="val", batch_size=1)
    assert len(meta) == 4 and metrics == {}
