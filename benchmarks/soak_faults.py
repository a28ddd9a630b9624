"""What soak.py has verl's workers load: a verifier and an agent loop that fail at random, and a store that does.

Every fault is a line of the file that SOAK_LOG names: kind, step of the run and, where it is known, the row.
"""

import asyncio
import json
import os
import random
import time
from typing import Any

import transfer_queue as tq
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.reward_score import default_compute_score

VERIFIER = {"verifier raises": 0.02, "verifier returns garbage": 0.02, "verifier hangs": 0.002}
SESSION = {"session raises": 0.01, "correction hangs": 0.01}
STORE = {"row is not stored": 0.005}
HANGS_S = 12.0
"""Longer than the run's algorithm.cipo.correction_timeout."""
GARBAGE = (float("nan"), float("inf"), "right", None, [1.0], {"acc": True}, {"score": "high"}, {"score": None})

_random = random.Random(f"{os.environ.get('SOAK_SEED')}/{os.getpid()}")


def drawn(shares: dict[str, float]) -> str | None:
    """A fault of ``shares``, or none."""
    left = _random.random()
    for kind, share in shares.items():
        left -= share
        if left < 0:
            return kind
    return None


def note(kind: str, **what: Any) -> None:
    """Write a fault down; one write of a short line to a file that is appended to is never torn."""
    line = json.dumps({"kind": kind, "run": int(os.environ["SOAK_RUN"]), **what}) + "\n"
    with open(os.environ["SOAK_LOG"], "a") as file:
        file.write(line)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """verl's GSM8K verifier, when it works."""
    fault = drawn(VERIFIER)
    if fault is not None:
        note(fault)
    if fault == "verifier raises":
        raise ConnectionError("drawn by the soak")
    if fault == "verifier returns garbage":
        return _random.choice(GARBAGE)
    if fault == "verifier hangs":
        time.sleep(HANGS_S)
    return default_compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)


class FaultyLoop(SingleTurnAgentLoop):
    """verl's agent loop of one turn, when it works."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        fault = drawn(SESSION)
        correction = "_c" in str(kwargs["uid"])
        if fault == "session raises":
            note(fault, step=int(kwargs["global_steps"]), correction=correction)
            raise RuntimeError("drawn by the soak")
        if fault == "correction hangs" and correction:
            note(fault, step=int(kwargs["global_steps"]), correction=True)
            await asyncio.sleep(2 * HANGS_S)
        return await super().run(sampling_params, priority, **kwargs)


_store = tq.async_kv_batch_put


async def _failing_store(*, keys: list[str], tags: list[dict[str, Any]], **kwargs: Any) -> Any:
    fault = drawn(STORE)
    if fault is not None:
        note(fault, step=int(tags[0]["global_steps"]), correction="_c" in keys[0])
        raise ConnectionError("drawn by the soak")
    return await _store(keys=keys, tags=tags, **kwargs)


# verl's workers look the function up in the module at every call.
tq.async_kv_batch_put = _failing_store
