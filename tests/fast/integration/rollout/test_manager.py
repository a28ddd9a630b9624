"""The coordinator as a Ray actor, and the texts that stay in Ray's object store while it ranks their attempts."""

import asyncio
import pickle

import pytest
import ray
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.core.prompts import Others
from verl_cipo.core.replay import Candidate
from verl_cipo.integration.rollout import manager as manager_module
from verl_cipo.integration.rollout import payloads
from verl_cipo.integration.rollout.cancelling import _Server
from verl_cipo.integration.rollout.manager import CIPOAgentLoopManager, DispatchesCorrections, start_coordinator
from verl_cipo.integration.rollout.over import worker_over
from verl_cipo.integration.rollout.worker import CIPOAgentLoopWorker, CorrectsAttempts


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def attempts(uid: str) -> Group:
    return Group(uid, tuple(Attempt(uid, 7, i, i % 2 == 0, float(i % 2 == 0)) for i in range(4)))


def start_worker():
    """As a rollout worker does with schedule=replay. A process of Ray's cannot import this module."""
    from verl_cipo.core.prompts import Others
    from verl_cipo.integration.rollout import payloads

    class Worker:
        async def report(self, coordinator, batch, group):
            texts = {attempt.session: f"{group.uid}{attempt.session}" for attempt in group.attempts}
            beside = {s: Others((f"{group.uid}{3 - s}",), (1, 0)) for s in texts}
            held = payloads.keep(texts, {"index": 7, "raw_prompt": group.uid}, [1, 2], beside)
            await coordinator.add.remote(batch, group, held)

        async def host(self, coordinator, batch, uid):
            return [await payloads.fetch(c.payload) for c in (await coordinator.hosted.remote(batch, uid)).anchors]

        async def wait(self, coordinator, batch, uid):
            return await coordinator.next.remote(batch, uid)

    return ray.remote(num_cpus=0)(Worker).remote()


def manager(coordinator) -> CIPOAgentLoopManager:
    made = object.__new__(CIPOAgentLoopManager)
    made._coordinator = coordinator
    return made


class Mine(AgentLoopManagerTQ):
    """A user's manager, with verl's workers."""

    @classmethod
    def create(cls, config, **kwargs):
        return cls, config, kwargs


def cipo_over(name: str | None):
    return OmegaConf.create({"algorithm": {"cipo": {"manager": name}}, "trainer": {"use_v1": True}})


def test_a_manager_of_the_users_is_made_with_corrections(monkeypatch):
    monkeypatch.setattr(manager_module, "load_manager", {"mine.Mine": Mine, "ours": CIPOAgentLoopManager}.get)
    made, config, kwargs = CIPOAgentLoopManager.create(cipo_over("mine.Mine"), llm_client="client")
    assert issubclass(made, DispatchesCorrections) and issubclass(made, Mine) and kwargs == {"llm_client": "client"}
    assert made.__mro__.index(DispatchesCorrections) < made.__mro__.index(Mine)
    assert made.generate_sequences is DispatchesCorrections.generate_sequences


def test_workers_of_a_manager_of_the_users_correct_too():
    plain = AgentLoopWorkerTQ.__ray_metadata__.modified_class

    class MyWorker(plain):
        pass

    assert worker_over(AgentLoopWorkerTQ) is worker_over(plain) is CIPOAgentLoopWorker
    for named in (MyWorker, ray.remote(MyWorker)):
        made = worker_over(named)
        assert issubclass(made, CorrectsAttempts) and issubclass(made, MyWorker)
        assert made._run_prompt is CorrectsAttempts._run_prompt
    with pytest.raises(CIPOConfigError, match="expected a subclass of verl's AgentLoopWorkerTQ"):
        worker_over(dict)


def test_texts_go_from_worker_to_worker_and_into_the_checkpoint():
    first, second = start_worker(), start_worker()
    coordinator = start_coordinator(CIPOConfig(preset="stream", schedule="replay"), 1)
    ray.get(coordinator.open.remote(0, uids=["a"], rho=0.0, step=1))
    ray.get(first.report.remote(coordinator, 0, attempts("a")))
    state = manager(coordinator).pool_state()
    # One more than a step has, of each kind.
    assert sorted(c.payload[0] for c in state["filling"]) == ["a0", "a1", "a2", "a3"]
    assert state["filling"][0].payload[1] == {"index": 7, "raw_prompt": "a"}
    ray.get(coordinator.open.remote(1, uids=["b"], rho=0.0, step=2))
    ((text, prompt, prompt_ids, others),) = ray.get(second.host.remote(coordinator, 1, "b"))
    assert others == Others((f"a{3 - int(text[1])}",), (1, 0))
    assert text in ("a1", "a3") and prompt == {"index": 7, "raw_prompt": "a"} and prompt_ids == [1, 2]

    resumed = start_coordinator(CIPOConfig(preset="stream", schedule="replay"), 1)
    manager(resumed).restore_pool(pickle.loads(pickle.dumps(state)))
    ray.get(resumed.open.remote(0, uids=["b"], rho=0.0, step=2))
    assert ray.get(second.host.remote(resumed, 0, "b")) == [(text, prompt, (), others)], "the same draw"


def test_a_text_whose_worker_is_gone_is_left_out_of_the_checkpoint(monkeypatch, caplog):
    lost, held = object(), ("text", {"index": 7})
    candidates = [
        Candidate((False, (0, b"", "a", i)), attempts("a").attempts[i], p) for i, p in enumerate((lost, held))
    ]

    def get(reference):
        assert reference is lost
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    monkeypatch.setattr(payloads.ray, "get", get)
    assert payloads.fetched(candidates) == candidates[1:]
    assert "is missing from the checkpoint" in caplog.text


def test_a_generation_ends_when_nobody_waits_for_it_any_more():
    class Server:
        def __init__(self):
            self.ended = []

        async def generate(self, **given):
            if given["seconds"] == 0:
                return given
            try:
                await asyncio.sleep(given["seconds"])
            except asyncio.CancelledError:
                self.ended.append(given["request_id"])
                raise

        async def get_ended(self):
            while not self.ended:
                await asyncio.sleep(0.01)
            return self.ended

    server = ray.remote(num_cpus=0, max_concurrency=10)(Server).remote()

    async def run():
        assert await _Server(server).generate.remote(request_id="a", seconds=0) == {"request_id": "a", "seconds": 0}
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_Server(server).generate.remote(request_id="b", seconds=600), 1)

    asyncio.run(run())
    assert ray.get(server.get_ended.remote(), timeout=60) == ["b"]


def test_a_coordinator_that_dies_is_started_anew():
    worker = start_worker()
    coordinator = start_coordinator(CIPOConfig(preset="stream", schedule="barrier"), 2)
    ray.get(coordinator.open.remote(0, uids=["a", "b"], rho=0.0, step=1))
    ray.get(coordinator.add.remote(0, attempts("a"), {}))
    waiting = worker.wait.remote(coordinator, 0, "a")
    assert ray.wait([waiting], timeout=0.5)[0] == []
    ray.kill(coordinator, no_restart=False)
    with pytest.raises(ray.exceptions.RayTaskError, match="KeyError"):
        ray.get(waiting, timeout=60)
    # The next batch is drawn as if nothing had been, and what the trainer asks is answered.
    ray.get(coordinator.open.remote(1, uids=["c"], rho=0.0, step=2), timeout=60)
    ray.get(coordinator.add.remote(1, attempts("c"), {}))
    assert len(ray.get(coordinator.next.remote(1, "c")).anchors) == 1
    assert ray.get(coordinator.pop_statistics.remote())["anchors/total"] == 1
