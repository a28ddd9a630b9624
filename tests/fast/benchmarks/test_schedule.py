"""benchmarks/schedule.py: the simulated engine by hand, a small simulated step through the real workers, the figures.

Not covered here: the run with vLLM (generation/trainer.py), which `schedule.py --quick` makes.
"""

import asyncio
import json
import math
import sys

import pytest

from benchmarks import schedule
from benchmarks.generation import engine as engine_module
from benchmarks.generation.agent_loop import DrawnLengthAgentLoop
from benchmarks.generation.arms import ARMS
from benchmarks.generation.draws import quantile, uniform, verdict
from benchmarks.generation.engine import Engine, EngineClock, FastForwardLoop, Speed
from benchmarks.generation.settings import Simulated

SLOW = {"step_s": 0.1, "per_sequence_s": 0.0, "prefill_s": 0.0}


def finishes(engine: Engine, until: float = 1e6) -> list[tuple[str, float]]:
    return [(request.payload, pytest.approx(request.finished)) for request in engine.advance(until)]


def submit(engine: Engine, name: str, tokens: int, *, prompt: str | None = None, prompt_tokens: int = 1) -> None:
    engine.submit(
        engine.now, tokens=tokens, prompt=name if prompt is None else prompt, prompt_tokens=prompt_tokens, payload=name
    )


# ---- the engine


def test_with_one_slot_times_add_up():
    engine = Engine(Speed(max_seqs=1, **SLOW))
    submit(engine, "a", 10)
    submit(engine, "b", 20)
    assert finishes(engine) == [("a", 1.0), ("b", 3.0)]


def test_a_step_takes_longer_the_more_sequences_run():
    engine = Engine(Speed(max_seqs=2, step_s=0.1, per_sequence_s=0.1, prefill_s=0.0))
    submit(engine, "a", 10)
    submit(engine, "b", 20)
    # Ten steps of .3 s for both, then ten of .2 s for the one that is left.
    assert finishes(engine) == [("a", 3.0), ("b", 5.0)]


def test_who_comes_later_waits_for_a_slot_in_order():
    engine = Engine(Speed(max_seqs=2, **SLOW))
    for name, tokens in (("a", 10), ("b", 30), ("c", 5), ("d", 1)):
        submit(engine, name, tokens)
    assert finishes(engine) == [("a", 1.0), ("c", 1.5), ("d", 1.6), ("b", 3.0)]


def test_a_prompt_is_computed_once_and_holds_all_up():
    engine = Engine(Speed(max_seqs=8, step_s=0.1, per_sequence_s=0.0, prefill_s=0.01))
    submit(engine, "a", 10, prompt="p", prompt_tokens=50)
    submit(engine, "b", 10, prompt="p", prompt_tokens=50)
    assert engine.advance(1.0) == []
    submit(engine, "c", 5, prompt="q", prompt_tokens=100)
    # .5 s of prompt and 5 steps until 1.0; a second of c's prompt; 5 steps for all three.
    assert finishes(engine) == [("a", 2.5), ("b", 2.5), ("c", 2.5)]


def test_an_engine_that_is_advanced_late_finishes_requests_at_their_own_time():
    engine = Engine(Speed(max_seqs=1, **SLOW))
    submit(engine, "a", 10)
    submit(engine, "b", 10)
    assert engine.next_finish() == pytest.approx(1.0)
    assert finishes(engine, until=1.5) == [("a", 1.0)]
    assert engine.next_finish() == pytest.approx(2.0)


def test_slots_without_a_sequence_are_counted():
    engine = Engine(Speed(max_seqs=3, **SLOW))
    submit(engine, "a", 10)
    submit(engine, "b", 20)
    engine.advance(4.0)
    assert engine.idle_slots_s == pytest.approx(1 * 1 + 2 * 1 + 3 * 2)


def test_engine_refuses_what_it_cannot_simulate():
    engine = Engine(Speed())
    with pytest.raises(ValueError, match="advance it first"):
        engine.submit(1.0, tokens=1, prompt="p", prompt_tokens=1)
    with pytest.raises(ValueError, match="tokens = 0"):
        engine.submit(0.0, tokens=0, prompt="p", prompt_tokens=1)


# ---- the event loop


@pytest.fixture
def processor(monkeypatch):
    """Processor time that passes only where the test says so."""
    spent = [0.0]
    monkeypatch.setattr(engine_module.time, "thread_time", lambda: spent[0])
    return spent


@pytest.fixture
def loop(processor):
    loop = FastForwardLoop()
    yield loop
    loop.close()


def test_waits_are_skipped_and_processor_time_counts(loop, processor):
    async def run():
        await asyncio.sleep(1000)
        processor[0] += 3
        with loop.uncounted():
            processor[0] += 50

    loop.run_until_complete(run())
    assert loop.time() == pytest.approx(1003)
    assert loop.processor_s == pytest.approx(3)


def test_what_runs_in_an_executor_counts_before_the_next_wait(loop, processor):
    def work(seconds):
        processor[0] += seconds
        return seconds

    async def run():
        timer = asyncio.create_task(asyncio.sleep(1))
        await asyncio.sleep(0)
        assert await loop.run_in_executor(None, work, 5) == 5
        await timer
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)

    loop.run_until_complete(run())
    assert loop.time() == pytest.approx(5), "the timer of 1 s ran out while the function ran"


def test_a_simulation_that_waits_for_nothing_says_so(loop):
    with pytest.raises(RuntimeError, match="stuck"):
        loop.run_until_complete(loop.create_future())


def test_requests_wait_for_the_engine_on_the_loops_clock(loop, processor):
    clock = EngineClock(Speed(max_seqs=1, **SLOW), loop)

    async def run():
        first = asyncio.create_task(clock.run(tokens=10, prompt="a", prompt_tokens=1))
        await clock.run(tokens=20, prompt="b", prompt_tokens=1)
        await first

    loop.run_until_complete(run())
    assert clock.finished == [pytest.approx(2.0), pytest.approx(3.0)], "b was sent before the task of a began"
    assert loop.time() == pytest.approx(3.0)


# ---- draws


def test_draws_follow_their_law():
    assert uniform("a", 1) == uniform("a", 1) != uniform("a", 2)
    mean = sum(uniform("mean", i) for i in range(4000)) / 4000
    assert mean == pytest.approx(0.5, abs=0.02)
    assert quantile("lognormal", 0.5, median=600, spread=1.0) == pytest.approx(600)
    assert quantile("lognormal", 0.8413447460685429, median=600, spread=0.5) == pytest.approx(600 * math.exp(0.5))
    assert quantile("pareto", 0.5, median=600, spread=0.5) == pytest.approx(600)
    assert quantile("pareto", 0.875, median=600, spread=0.5) == pytest.approx(1200)
    with pytest.raises(ValueError, match="expected one of lognormal, pareto"):
        quantile("normal", 0.5, median=1, spread=1)


def test_prompts_have_pass_rates_of_their_own():
    rates = [sum(verdict("d", f"try {i}", "7", {"index": p}) for i in range(200)) / 200 for p in range(30)]
    assert min(rates) < 0.25 and max(rates) > 0.75
    assert verdict("d", "try", "7", {"index": 1}) == verdict("d", "try", "7", {"index": 1})


@pytest.fixture
def lengths(monkeypatch):
    """``lengths(uid, session, step)`` of an agent loop for four attempts a prompt and two phases a round."""
    monkeypatch.setattr(DrawnLengthAgentLoop, "started", {})
    agent_loop = DrawnLengthAgentLoop.__new__(DrawnLengthAgentLoop)
    agent_loop._law = {"law": "lognormal", "median": 50.0, "spread": 1.0}
    agent_loop._attempts, agent_loop._phases, agent_loop._seed = 4, 2, 1
    agent_loop.response_length = 100
    return lambda uid, session, step: agent_loop.tokens(uid=uid, session=session, step=step)


def test_corrections_have_the_lengths_of_grpos_further_rollouts(lengths):
    grpo = [[lengths(uid, session, 0) for session in range(8)] for uid in "ab"]
    cipo = [[lengths(uid, session, 1) for session in range(4)] for uid in "xy"]
    corrections = [[lengths(uid, session, 1) for session in range(4)] for uid in ("y_c3", "y_c0")]
    assert [row[:4] for row in grpo] == cipo
    assert [row[4:] for row in grpo] == corrections
    assert grpo[0][:4] != grpo[0][4:] != grpo[1][4:]
    assert [lengths("x", session, 2) for session in range(4)] != cipo[0], "another round, other lengths"


def test_lengths_are_cut_at_the_response_length(lengths):
    drawn = [lengths(f"p{i}", session, 0) for i in range(50) for session in range(4)]
    assert max(drawn) == 100 and min(drawn) >= 1


# ---- a small step through the real workers


@pytest.fixture(scope="module")
def small() -> dict[str, dict]:
    """Each arm's phase of 6 prompts x 4, with 8 sequences at once."""
    setting = Simulated(prompts=6, n=4, response_length=256, prompt_length=1024, median=40.0, spread=1.0)
    figures = schedule.simulate(setting, (8,), 1)
    assert list(figures) == ["8"] and list(figures["8"]) == list(ARMS)
    return {arm: phases[0] for arm, phases in figures["8"].items()}


def test_all_arms_but_grpo_generate_the_same(small):
    assert small["grpo"]["requests"] == 6 * 4
    others = [small[arm] for arm in ARMS if arm != "grpo"]
    assert [phase["requests"] for phase in others] == [2 * 6 * 4] * 5
    assert len({phase["tokens"] for phase in others}) == 1
    assert small["grpo"]["tokens"] < others[0]["tokens"]


def test_a_phase_lasts_until_its_corrections_have_ended(small):
    for arm, phase in small.items():
        assert phase["wall_s"] > phase["processor_s"] > 0
        assert 0 <= phase["idle"] < 1 and 0 <= phase["tail"] < 1
        if arm != "grpo":
            assert phase["wall_s"] > small["grpo"]["wall_s"], arm


# ---- the command


def phases(**seconds: list[float]) -> dict[str, list[float]]:
    return {arm: seconds.get(arm, [10.0, 10.0]) for arm in ARMS}


def test_the_figures_are_written_as_seconds(monkeypatch, tmp_path, capsys):
    walls = phases(grpo=[4.0, 6.0], replay=[8.0, 10.0])
    other = {"processor_s": 1.0, "idle": 0.25, "tail": 0.1, "requests": 1, "tokens": 1}
    simulation = {arm: [{"wall_s": value, **other} for value in values] for arm, values in walls.items()}
    timed = phases(streaming=[1.0, 2.0, 30.0], replay=[5.0] * 3, barrier=[10.0] * 3, grpo=[3.0] * 3)
    timed |= dict.fromkeys(("grpo_equal_rollouts", "auto"), [10.0] * 3)
    monkeypatch.setattr(schedule, "simulate", lambda _, caps, seeds: {str(cap): simulation for cap in caps})
    monkeypatch.setattr(
        schedule,
        "measure",
        lambda _: {arm: [{"seconds": s, "rows": 1, "tokens": 1} for s in v] for arm, v in timed.items()},
    )
    file = tmp_path / "new" / "schedule.json"
    monkeypatch.setattr(sys, "argv", ["schedule.py", "--quick", "--json", str(file)])
    assert schedule.main() == 0
    written = json.loads(file.read_text())
    assert list(written["simulated"]) == ["256", "512", "1024"]
    assert written["simulated"]["512"] == {
        "grpo": 5.0,
        "grpo_equal_rollouts": 10.0,
        "barrier": 10.0,
        "streaming": 10.0,
        "replay": 9.0,
        "auto": 10.0,
    }
    assert written["vllm_cpu"]["streaming"] == 2.0, "the median"
    assert written["vllm_cpu"]["replay"] == 5.0
    printed = capsys.readouterr().out
    assert "0.900" in printed and "0.80..1.00" in printed


def test_one_half_can_be_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(schedule, "simulate", lambda *_: pytest.fail("the simulation was left out"))
    monkeypatch.setattr(
        schedule, "measure", lambda _: {arm: [{"seconds": 1.0, "rows": 1, "tokens": 1}] for arm in ARMS}
    )
    file = tmp_path / "schedule.json"
    monkeypatch.setattr(sys, "argv", ["schedule.py", "--only", "vllm", "--json", str(file)])
    assert schedule.main() == 0
    assert json.loads(file.read_text()).keys() == {"vllm_cpu", "details"}


def test_a_schedule_that_lost_corrections_is_told():
    phase = {"wall_s": 1.0, "requests": 8, "tokens": 80}
    figures = {arm: [dict(phase), dict(phase)] for arm in ARMS}
    figures["grpo"][0]["tokens"] = 40
    assert schedule.unequal_work(figures, "seed") == []
    figures["replay"][1]["requests"] = 7
    (told,) = schedule.unequal_work(figures, "seed")
    assert told.startswith("seed 2: ") and "replay {'requests': 7, 'tokens': 80}" in told
