"""Steps with a group filter: verl's sampling loop, our buffer, coordinator and workers, over a TransferQueue in memory.

Engine, verifier and update are replaced: a prompt says how many of its attempts are right.
"""

import asyncio
import random
import threading
import time
from collections import Counter

import pytest
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from tests.fast.integration.rollout.test_worker import N, Remote, Worker
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.keys import GroupName, RowKey
from verl_cipo.integration.rollout import worker as rollouts
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.train.replay_buffer import filtering

BATCH = 4
RHO = 0.5
DATA = [0, 2, 4, 1, 0, 0, 3, 4, 2, 0, 1, 4, 0, 0, 2, 3, 4, 4, 0, 1, 2, 0, 3, 2, 1, 4, 2, 0, 1, 1, 2, 3] * 4
"""How many of the N attempts at each prompt are right."""


class Run:
    """The trainer's part, and the rollout manager's, whose coordinator and workers have a thread of their own."""

    def __init__(self, monkeypatch, *, inflight: int, **options):
        self.cipo = CIPOConfig.from_mapping({"preset": "stream"} | options).scheduled(asynchronous=False)
        self.tags: dict[str, dict] = {}
        self.scores: dict[str, float] = {}
        self.data = iter(enumerate(DATA))
        self.rights: dict[str, int] = {}
        self.batch, self.step, self.replaces = 0, 0, 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.actor = AnchorCoordinator(self.cipo.to_mapping(), BATCH, filters=True)
        self.worker = Worker(self.cipo, [], filtered="reward")
        self._replace(monkeypatch)
        built = ReplayBuffer(
            trainer_mode="sync",
            trainer_config={},
            max_off_policy_threshold=1,
            max_off_policy_strategy="drop",
            sampler_kwargs={},
            poll_interval=0.002,
            refill_fn=self.dispatch,
            filter_groups_metric="reward",
            train_batch_size=BATCH,
            gen_batch_size=1,
            max_inflight_gen_batches=inflight,
        )
        self.buffer = filtering(built, hosts=self.cipo.replays)
        self.buffer.manager = self
        self.thread.start()

    def _replace(self, monkeypatch) -> None:
        base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
        lots = random.Random(1)

        async def run_agent_loop(worker, sampling_params, trajectory, *, agent_name, trace, **kwargs):
            await asyncio.sleep(lots.random() / 200)
            prompt = GroupName.parse(kwargs["uid"])
            right = kwargs["session_id"] < (N // 2 if prompt.anchor is not None else self.rights[prompt.prompt])
            text = "right" if right else "wrong"
            output = AgentLoopOutput(
                prompt_ids=worker.tokenizer.encode(str(kwargs["raw_prompt"][-1]["content"])),
                response_ids=worker.tokenizer.encode(text),
                response_mask=[1] * len(text),
                metrics={},
            )
            await worker._agent_loop_postprocess(output, False, **kwargs)

        async def compute_score(worker, outputs, kwargs):
            outputs[-1].reward_score = float(worker.tokenizer.decode(outputs[-1].response_ids) == "right")

        async def postprocess(worker, output, validate, **kwargs):
            await worker._compute_score([output], kwargs)
            key = str(RowKey(kwargs["uid"], kwargs["session_id"]))
            self.scores[key], self.tags[key] = output.reward_score, {"status": "success"}

        async def status(key, partition_id, tag):
            self.tags[key].update(tag)

        def kv_clear(keys, partition_id):
            for key in keys:
                self.tags.pop(key, None)

        def kv_batch_get(keys, partition_id, select_fields):
            return TensorDict({"rm_scores": torch.tensor([[self.scores[key]] for key in keys])}, batch_size=len(keys))

        monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
        monkeypatch.setattr(base, "_compute_score", compute_score)
        monkeypatch.setattr(base, "_agent_loop_postprocess", postprocess)
        monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", status)
        monkeypatch.setattr(tq, "kv_list", lambda: {"train": {key: dict(tag) for key, tag in list(self.tags.items())}})
        monkeypatch.setattr(tq, "kv_clear", kv_clear)
        monkeypatch.setattr(tq, "kv_batch_get", kv_batch_get)

    def done(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    # The rollout manager.
    def admitted(self) -> set[str]:
        return set(self.done(self.actor.admitted()))

    def draw_rest(self) -> None:
        self.done(self.actor.draw_rest())

    # The trainer.
    def dispatch(self, n: int) -> None:
        drawn = [next(self.data) for _ in range(n)]
        uids = [f"p{index}" for index, _ in drawn]
        self.rights |= {f"p{index}": right for index, right in drawn}
        self.tags |= {uid: {"is_prompt": True, "status": "pending", "global_steps": self.step} for uid in uids}
        batch, self.batch = self.batch, self.batch + 1
        told = {"uids": uids, "rho": RHO, "step": self.step, "replaces": self.replaces}
        self.done(self.actor.open(batch, **told))
        ticket = {"coordinator": Remote(self.actor), "batch": batch}
        for index, _ in drawn:
            prompt = {
                "uid": f"p{index}",
                "index": index,
                "raw_prompt": [{"role": "user", "content": f"Q{index}?"}],
                "agent_name": "single_turn_agent",
                "global_steps": self.step,
                rollouts.TICKET: dict(ticket),
            }
            trajectory = {"validate": False, "step": self.step}
            asyncio.run_coroutine_threadsafe(self.worker._run_prompt(prompt, {}, trajectory), self.loop)

    def take_step(self) -> tuple[Counter, Counter, dict]:
        """Rows of attempts by prompt, rows of corrections by group, and what was counted."""
        self.step += 1
        self.dispatch(BATCH)
        batch, metrics = self.buffer.sample(global_steps=self.step, partition_id="train", batch_size=BATCH)
        self.ended()
        metrics |= self.buffer.pop_counts() | self.done(self.actor.pop_statistics())
        names = [GroupName.parse(RowKey.parse(key).group) for key in batch.keys]
        tq.kv_clear(keys=batch.keys, partition_id="train")
        assert self.tags == {}, "something is left in TransferQueue"
        assert not self.buffer._rehomed and not self.buffer._admitted, "a checkpoint would have to hold it"
        base = Counter(name.prompt for name in names if name.anchor is None)
        return base, Counter(str(name) for name in names if name.anchor is not None), metrics

    def ended(self) -> None:
        """verl has the prompts' last word a moment before the coordinator has."""
        until = time.monotonic() + 30
        while self.actor._batches or self.worker._groups:
            assert time.monotonic() < until, "a prompt has not ended"
            time.sleep(0.002)


@pytest.fixture
def run(monkeypatch):
    made = []

    def start(**options) -> Run:
        made.append(Run(monkeypatch, **options))
        return made[-1]

    yield start
    for one in made:
        one.loop.call_soon_threadsafe(one.loop.stop)
        one.thread.join()
        one.loop.close()


def mixed(uid: str) -> bool:
    return 0 < DATA[int(uid[1:])] < N


@pytest.mark.parametrize("inflight", [1, 3])
@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_every_row_is_trained_evicted_or_left_over(run, schedule, inflight):
    one = run(schedule=schedule, inflight=inflight)
    before = 0
    for _ in range(3):
        base, corrections, counts = one.take_step()
        assert len(base) == BATCH and set(base.values()) == {N} and all(map(mixed, base))
        assert {GroupName.parse(name).prompt for name in corrections} <= set(base)
        assert set(corrections.values()) == {N} and len(corrections) == counts["anchors/total"] == BATCH
        assert counts["anchors/correct"] == RHO * BATCH
        evicted = counts["training/filter_groups/evicted_samples"]
        over = counts.get("training/filter_groups/discarded_surplus_samples", 0)
        assert counts["filter/dispatched"] == BATCH + evicted + over
        assert counts["filter/attempts"] == N * (evicted + over) and counts["filter/corrections"] == 0
        dispatched = range(before, before := before + int(counts["filter/dispatched"]))
        assert evicted == sum(not mixed(f"p{i}") for i in dispatched)
        if inflight == 1:
            assert over == 0
            assert set(base) == {f"p{i}" for i in dispatched if mixed(f"p{i}")}, "not the first of the data that stay"


def test_all_wrong_prompts_are_kept_with_their_corrections(run):
    """One of four."""
    one = run(schedule="streaming", inflight=1, keep_all_wrong=0.25)
    for _ in range(3):
        base, corrections, counts = one.take_step()
        (kept,) = [uid for uid in base if not mixed(uid)]
        assert DATA[int(kept[1:])] == 0 and counts["filter/kept_all_wrong"] == 1
        assert kept in {GroupName.parse(name).prompt for name in corrections}
        assert len(corrections) == counts["anchors/total"] == BATCH and counts["anchors/correct"] == RHO * BATCH
        assert counts["filter/corrections"] == 0


def test_hosted_corrections_are_all_trained(run):
    one = run(schedule="replay", inflight=1)
    rehomed = 0
    for step in range(3):
        base, corrections, counts = one.take_step()
        assert len(base) == BATCH and all(map(mixed, base))
        assert len(corrections) == counts["anchors/total"] == (BATCH if step else 0)
        assert set(corrections.values()) <= {N} and counts["filter/corrections"] == 0
        homeless = {name for name in corrections if GroupName.parse(name).prompt not in base}
        assert counts["filter/rehomed"] == N * len(homeless)
        rehomed += len(homeless)
    assert rehomed > 0, "no host was evicted"
