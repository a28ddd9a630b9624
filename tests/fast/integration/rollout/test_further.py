"""Further attempts of budget=auto in the worker, with verl's own ``_run_prompt`` around it."""

import asyncio

import pytest

from tests.fast.integration.rollout.test_worker import N, old_group, roll, rollouts, rows, world
from verl_cipo.core.draws import session_seed
from verl_cipo.core.steering.budget import KINDS, PROBE

__all__ = ["world"]

MOVED = dict.fromkeys(KINDS, PROBE)
"""Of a single slot of a kind, none is corrected."""
HALF = dict.fromkeys(KINDS, 0.5)


def further(log) -> list[str]:
    """Names of the rows that are marked as further attempts."""
    return [name for kind, name, *_, mark in log if kind == "row" and mark["cipo"].get("further")]


def attempts_take_long(monkeypatch) -> None:
    """Longer than all that starts with them."""
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        if kwargs["session_id"] < N:
            await asyncio.sleep(0.2)
        await whole(self, *args, **kwargs)

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_a_slot_becomes_sessions_of_its_anchors_prompt(world, schedule):
    stats = roll(world, prompts=1, schedule=schedule, budget="auto", shares=MOVED, n_corrections=3)
    assert further(world) == [f"p0_{N}", f"p0_{N + 1}", f"p0_{N + 2}"]
    assert rows(world) == [f"p0_{i}" for i in range(N + 3)], "and nothing is corrected"
    asked = [(kind, kwargs) for kind, _, _, kwargs in (e for e in world if e[0] == "session")]
    first, last = asked[0][1], asked[-1][1]
    assert {k: v for k, v in last.items() if k != "session_id"} == {k: v for k, v in first.items() if k != "session_id"}
    assert world[-1] == ("status", "p0", "finished"), "verl may sample the prompt when all are stored"
    assert (stats["budget/slots"], stats["budget/corrected"], stats["anchors/total"]) == (1, 0, 1)
    assert stats["attempts/failed_sessions"] == stats["corrections/failed_sessions"] == 0


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_sessions_add_up_to_those_of_a_fixed_budget(world, schedule):
    stats = roll(world, prompts=4, schedule=schedule, budget="auto", shares=HALF, replay_fraction=2.0)
    assert len(rows(world)) == 4 * N + 8 * N
    assert 0 < stats["budget/corrected"] < 8
    corrections = [name for name in rows(world) if "_c" in name]
    assert len(corrections) == N * stats["budget/corrected"] and len(further(world)) == 8 * N - len(corrections)


def test_several_slots_of_a_prompt_count_their_sessions_on(world):
    roll(world, schedule="barrier", budget="auto", shares=MOVED, replay_fraction=2.0, n_corrections=2)
    assert sorted(further(world)) == [f"p0_{i}" for i in range(N, N + 4)]


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_most_start_with_the_attempts_and_the_rest_counts_on(world, monkeypatch, schedule):
    """Four slots, of which two were to be corrections: these wait for the verdicts, and nothing is worth one."""
    attempts_take_long(monkeypatch)
    shares, wrong = dict.fromkeys(KINDS, 0.0) | {"right": 0.5}, {f"p0_{i}": "wrong" for i in range(N)}
    stats = roll(
        world, schedule=schedule, budget="auto", shares=shares, replay_fraction=4.0, n_corrections=2, texts=wrong
    )
    first, later = [f"p0_{i}" for i in range(N, N + 4)], [f"p0_{i}" for i in range(N + 4, N + 8)]
    assert sorted(rows(world)[:4]) == first and sorted(rows(world)[-4:]) == sorted(later)
    assert sorted(further(world)) == sorted(first + later) and stats["budget/corrected"] == 0
    assert world[-1] == ("status", "p0", "finished")


def test_with_replay_they_start_at_once_at_the_prompt_that_hosts_the_slot(world, monkeypatch):
    attempts_take_long(monkeypatch)
    pool = [old_group("a", "ww")]
    stats = roll(world, schedule="replay", budget="auto", shares=MOVED, pool=pool, columns={"__do_sample__": True})
    assert rows(world)[:N] == [f"p0_{i}" for i in range(N, 2 * N)] and len(rows(world)) == 2 * N
    prompt = next(entry[2] for entry in world if entry[0] == "row" and entry[1] == f"p0_{N}")
    assert prompt[-1]["content"] == "Q0?", "the prompt of the host, not of the anchor"
    assert stats["budget/none/slots"] == 1 and stats["budget/corrected"] == 0
    assert world[-1] == ("status", "p0", "finished")


def test_no_anchor_is_drawn_on_a_further_attempt(world, monkeypatch):
    """With replay, too, where they may end before the group is reported."""
    reported = []
    add = rollouts.PromptGroup.report

    def report(self):
        reported.append(add(self))
        return reported[-1]

    monkeypatch.setattr(rollouts.PromptGroup, "report", report)
    roll(world, schedule="replay", budget="auto", shares=MOVED, pool=[old_group("a", "ww")])
    assert further(world) and all(len(group.attempts) == N for group in reported)


def test_a_fault_costs_its_own_row(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        if kwargs["session_id"] == N:
            raise RuntimeError("the engine went away")
        if kwargs["session_id"] == N + 1:
            await asyncio.sleep(60)
        await whole(self, *args, **kwargs)

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    stats = roll(world, budget="auto", shares=MOVED, correction_timeout=0.2)
    assert rows(world) == [f"p0_{i}" for i in (0, 1, 2, 3, N + 2, N + 3)]
    assert stats["attempts/failed_sessions"] == 2 and stats["corrections/failed_sessions"] == 0
    assert world[-1] == ("status", "p0", "finished")


def test_each_has_a_seed_of_its_own(world):
    rollout = {"full_determinism": True, "seed": 5, "name": "vllm"}
    roll(world, budget="auto", shares=MOVED, rollout=rollout)
    seeds = [entry[2]["seed"] for entry in world if entry[0] == "session"]
    where = {"step": 1, "validate": False, "index": 0, "anchor": None}
    assert seeds == [session_seed(5, **where, session=i) for i in range(2 * N)] and len(set(seeds)) == 2 * N


def test_a_validation_has_none(world):
    roll(world, validate=True, budget="auto", shares=MOVED)
    assert not further(world)
