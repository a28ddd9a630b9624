"""Generation phases of verl's and CIPO's rollout workers against the simulated engine; used by schedule.py.

Real: verl's agent-loop worker and CIPO's on top of it, the agent loop with its tokenizer, the correction prompts, the
coordinator with its selection. Simulated: the engine, the verifier (a drawn verdict), TransferQueue and Ray, whose
calls take `call_s` each. One worker has all prompts, where verl has several that share the processor time.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from omegaconf import DictConfig
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, agent_loop_tq
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from benchmarks.generation.agent_loop import DrawnLengthAgentLoop
from benchmarks.generation.arms import ARMS, RHO
from benchmarks.generation.draws import uniform
from benchmarks.generation.engine import EngineClock, FastForwardLoop
from benchmarks.generation.settings import Simulated
from examples.tiny import prepare
from verl_cipo.core.prompts import TEMPLATES
from verl_cipo.integration.dry_run import compose_config
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.rollout.worker import TICKET, CIPOAgentLoopWorker
from verl_cipo.integration.settings import cipo_config

PHASES = len(ARMS) + 1
"""Phases of a round: each arm's, and the step before that fills the pool of `replay`."""


@dataclass(frozen=True)
class Phase:
    """What one generation phase took.

    wall_s: from the dispatch to the last prompt's status; processor_s: of worker and coordinator in it;
    idle: share of the engine's slots that stood empty; tail: share of the wall time after the first 95 % of the
    requests had finished; requests, tokens: what the engine answered.
    """

    wall_s: float
    processor_s: float
    idle: float
    tail: float
    requests: int
    tokens: int


class Server:
    """In place of verl's LLMServerClient: the simulated engine answers, with the text of a worked solution."""

    def __init__(self, clock: EngineClock, loop: FastForwardLoop, text: list[int]):
        self._clock, self._loop, self._text = clock, loop, text
        self.tokens = 0

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """verl's method; ``sampling_params["max_tokens"]`` tokens come back."""
        length = sampling_params["max_tokens"]
        await self._clock.run(tokens=length, prompt=tuple(prompt_ids), prompt_tokens=len(prompt_ids))
        with self._loop.uncounted():
            self.tokens += length
            step = {"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0}
            text = (self._text * (length // len(self._text) + 1))[:length]
            return TokenOutput(token_ids=text, log_probs=[0.0] * length, stop_reason="completed", extra_fields=step)


class Remote:
    """Calls the coroutines of ``actor`` as Ray calls an actor's: ``remote.method.remote(...)``, after ``call_s``."""

    def __init__(self, actor: Any, call_s: float):
        self._actor, self._call_s = actor, call_s

    def __getattr__(self, name: str) -> SimpleNamespace:
        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(self._call_s)
            return await getattr(self._actor, name)(*args, **kwargs)

        return SimpleNamespace(remote=call)


class Verifier:
    """In place of verl's reward worker: a prompt's pass rate is uniform, and its sessions are drawn by it."""

    def __init__(self, loop: FastForwardLoop, seed: int):
        self._loop, self._seed = loop, seed

    async def compute_score(self, data: Any) -> dict[str, Any]:
        """verl's method, for one session."""
        with self._loop.uncounted():
            one = {key: data.non_tensor_batch[key][0] for key in ("index", "uid", "session_id")}
            rate = uniform(self._seed, "rate", one["index"])
            # The uid begins with the phase, which tells arms apart.
            right = uniform(self._seed, one["uid"].partition("p")[2], one["session_id"]) < rate
            return {"reward_score": float(right), "reward_extra_info": {"acc": right}}


def configure(folder: Path, setting: Simulated, seed: int) -> DictConfig:
    """A config of a real run, with a made tokenizer in ``folder`` and no weights."""
    model = folder / "model"
    tokenizer = prepare.make_tokenizer(TEMPLATES["math"])
    tokenizer.model_max_length = setting.prompt_length
    tokenizer.save_pretrained(model)
    shape = prepare.make_model(prepare.QUICK.shape, tokenizer).config
    shape.architectures = ["Qwen3ForCausalLM"]
    shape.save_pretrained(model)
    return compose_config(
        "pkg://verl_cipo.config",
        "cpu",
        [
            *setting.options(folder, phases=PHASES, seed=seed),
            "+algorithm.cipo.schedule=barrier",
            "+algorithm.cipo.budget=fixed",
            f"+algorithm.cipo.prompt.max_attempt_tokens={json.dumps(setting.max_attempt_tokens)}",
        ],
    )


@contextmanager
def transfer_queue(call_s: float) -> Iterator[None]:
    """A TransferQueue that takes everything and keeps nothing."""

    async def put(*_: Any, **__: Any) -> None:
        await asyncio.sleep(call_s)

    fake = SimpleNamespace(init=lambda *_: None, async_kv_put=put, async_kv_batch_put=put)
    with mock.patch.object(agent_loop_tq, "tq", fake):
        yield


def prompts_of(setting: Simulated, step: int) -> Any:
    """A step's prompts, as verl's data loader and trainer make them."""
    problems, _ = prepare.draw_problems(prepare.QUICK)
    rows = prepare.verl_rows([problems[i % len(problems)] for i in range(setting.prompts)], "train")
    fields = {
        "uid": [f"s{step}p{i}" for i in range(len(rows))],
        "index": list(range(len(rows))),
        "raw_prompt": [list(row["prompt"]) for row in rows],
        "reward_model": [row["reward_model"] for row in rows],
        "data_source": [row["data_source"] for row in rows],
    }
    batch = {key: np.fromiter(values, dtype=object, count=len(rows)) for key, values in fields.items()}
    batch = tu.get_tensordict(batch)
    tu.assign_non_tensor_data(batch, "global_steps", step)
    return batch


class Simulation:
    """The arms of one setting and seed; every phase has an engine of its own."""

    def __init__(self, folder: Path, setting: Simulated, seed: int):
        self._setting, self._seed = setting, seed
        self._config = configure(folder, setting, seed)
        DrawnLengthAgentLoop.started.clear()

    def run(self, arm: str) -> Phase:
        """One generation phase; with `replay` the step before comes first and is not counted."""
        loop = FastForwardLoop()
        try:
            with transfer_queue(self._setting.call_s):
                return loop.run_until_complete(self._run(loop, arm))
        finally:
            loop.close()

    async def _run(self, loop: FastForwardLoop, arm: str) -> Phase:
        schedule = ARMS[arm].schedule
        config = self._config.copy()
        config.actor_rollout_ref.rollout.n = self._setting.n * ARMS[arm].rollouts
        reward = [Remote(Verifier(loop, self._seed), self._setting.call_s)]
        if schedule is None:
            worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class(config, None, None, reward)
            return await self._phase(loop, worker, None, list(ARMS).index(arm))
        config.algorithm.cipo.schedule, config.algorithm.cipo.budget = schedule, ARMS[arm].budget
        worker = CIPOAgentLoopWorker(config, None, None, reward)
        coordinator = AnchorCoordinator(cipo_config(config).to_mapping(), self._setting.prompts)
        if schedule == "replay":
            await self._phase(loop, worker, coordinator, PHASES - 1, step=0)
        return await self._phase(loop, worker, coordinator, list(ARMS).index(arm), shares=ARMS[arm].shares)

    async def _phase(
        self,
        loop: FastForwardLoop,
        worker: Any,
        coordinator: AnchorCoordinator | None,
        number: int,
        step: int = 1,
        shares: Mapping[str, float] | None = None,
    ) -> Phase:
        setting = self._setting
        with loop.uncounted():
            clock = EngineClock(setting.speed, loop)
            solution = prepare.draw_problems(prepare.QUICK)[0][0].solution
            worker.llm_client = Server(clock, loop, worker.tokenizer.encode(solution, add_special_tokens=False))
            batch = prompts_of(setting, number)
        started, processor = loop.time(), loop.processor_s
        if coordinator is not None:
            # What the manager does.
            remote = Remote(coordinator, setting.call_s)
            uids = [str(uid) for uid in batch["uid"]]
            await remote.open.remote(number, uids=uids, rho=RHO, step=step, shares=shares)
            tu.assign_non_tensor_data(batch, TICKET, {"coordinator": remote, "batch": number})
        await worker.generate_sequences(batch)
        while worker.background_tasks:
            done, _ = await asyncio.wait(worker.background_tasks)
            for task in done:
                task.result()
        wall = loop.time() - started
        return Phase(
            wall_s=wall,
            processor_s=loop.processor_s - processor,
            idle=clock.engine.idle_slots_s / (setting.speed.max_seqs * (clock.engine.now - started)),
            tail=1 - (sorted(clock.finished)[int(0.95 * len(clock.finished)) - 1] - started) / wall,
            requests=len(clock.finished),
            tokens=worker.llm_client.tokens,
        )
