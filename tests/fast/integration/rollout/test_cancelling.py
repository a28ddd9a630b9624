"""verl's own client over servers of ours: a session that is cancelled takes its request with it."""

import asyncio
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_cipo.integration.rollout import cancelling
from verl_cipo.integration.rollout.worker import CIPOAgentLoopWorker
from verl_cipo.integration.v0.worker import CIPOAgentLoopWorkerV0


class Remote:
    """A Ray actor whose methods are futures."""

    def __init__(self, **methods):
        self.released = []
        for name, method in methods.items():
            setattr(self, name, SimpleNamespace(remote=method))


@pytest.mark.parametrize("client_class", [LLMServerClient, FullyAsyncLLMServerClient])
@pytest.mark.parametrize("worker_class", [CIPOAgentLoopWorker, CIPOAgentLoopWorkerV0])
def test_a_cancelled_session_cancels_its_request(monkeypatch, client_class, worker_class):
    calls, cancelled, released = [], [], []

    async def run():
        def future(value):
            made = asyncio.get_running_loop().create_future()
            if value is not None:
                made.set_result(value)
            return made

        def generate(**request):
            output = TokenOutput(token_ids=[7], log_probs=None, stop_reason="stop") if len(calls) else None
            calls.append(future(output))
            return calls[-1]

        balancer = Remote(
            require_acquire_fields=lambda: future([]),
            require_release_fields=lambda: future([]),
            acquire_server=lambda request_id: future(("s", Remote(generate=generate))),
            release_server=lambda server_id: released.append(server_id),
        )
        config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": "vllm", "response_length": 8}}})
        worker = object.__new__(worker_class)
        worker.llm_client = client_class(config, load_balancer_handle=balancer)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(worker.llm_client.generate("a", prompt_ids=[1], sampling_params={}), 0.05)
        assert cancelled == calls and released == ["s"]
        output = await worker.llm_client.generate("b", prompt_ids=[1], sampling_params={})
        assert list(output.token_ids) == [7] and len(cancelled) == 1

    monkeypatch.setattr(cancelling.ray, "cancel", cancelled.append)
    asyncio.run(run())
