"""The second verifier: whom it is asked, how long, and that nothing but its own metric depends on it."""

import asyncio
import threading
import time
from collections import Counter

import numpy as np
import pytest
from verl.experimental.agent_loop import AgentLoopOutput

from tests.fast.integration.rollout import test_worker
from tests.fast.integration.rollout.test_worker import N, Tokenizer, roll, rows
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.metrics import batch_metrics, check_names
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.core.transitions import second_turn_metrics
from verl_cipo.integration.rollout import second_verifier as seconds
from verl_cipo.integration.rollout import verify as verifying
from verl_cipo.integration.rollout.second_verifier import SecondVerifier

world = test_worker.world
ROW = {"data_source": "toy", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 3}}


def ask(function, *, row=ROW, text="so 4", times=1, **knobs):
    """Verdicts of `times` calls at once, and what was counted."""
    counts: Counter = Counter()
    asker = SecondVerifier(function, CIPOConfig(preset="stream", second_verifier="given.py", **knobs), Tokenizer())

    async def run():
        output = AgentLoopOutput(
            prompt_ids=[1],
            response_ids=Tokenizer().encode(text),
            response_mask=[1] * len(text),
            metrics={},
            num_turns=2,
            extra_fields={"tool": "used"},
        )
        return await asyncio.gather(*[asker.ask(output, row, counts=counts, session=f"u_{i}") for i in range(times)])

    return asyncio.run(asyncio.wait_for(run(), 20)), counts


async def asynchronous(**asked):
    await asyncio.sleep(0)
    return says_four(**asked)


def says_four(*, data_source, solution_str, ground_truth, extra_info):
    right = solution_str.endswith(ground_truth) and data_source == "toy" and extra_info["index"] == 3
    return {"score": 0.0, "acc": right, "seen": extra_info}


@pytest.mark.parametrize("function", [says_four, asynchronous])
def test_it_is_called_as_verl_calls_a_reward_function(function):
    assert ask(function) == ([True], {"second_verifier/errors": 0})
    assert ask(function, text="so 5") == ([False], {"second_verifier/errors": 0})


@pytest.mark.parametrize(
    ("answer", "threshold", "right"),
    [
        (0.6, 0.5, True),
        (0.6, {"toy": 0.7, "default": 0.1}, False),
        ({"score": 0.2}, 0.1, True),
        ({"score": 0.9, "acc": 0.0}, 0.5, False),
        ({"score": -1.0, "acc": True}, 0.5, True),
        ({"score": 0.0, "acc": False, "outcome": "timeout"}, 0.5, False),
    ],
)
def test_its_verdict_is_read_as_that_of_the_run(answer, threshold, right):
    assert ask(lambda **_: answer, correct_threshold=threshold)[0] == [right]


@pytest.mark.parametrize(
    "answer",
    [
        {"score": 0.0, "outcome": "infrastructure_error"},
        {"score": 0.0, "outcome": "undecided"},
        float("nan"),
        "right",
        None,
        {"acc": True},
    ],
)
def test_what_is_no_verdict_is_counted_once_a_session(monkeypatch, answer):
    monkeypatch.setattr(verifying, "FIRST_PAUSE_S", 0.0)
    assert ask(lambda **_: answer, times=3) == ([None] * 3, {"second_verifier/errors": 3})


def test_a_row_without_a_reference_is_an_error_of_its_own(caplog):
    assert ask(says_four, row={"data_source": "toy"}) == ([None], {"second_verifier/errors": 1})
    assert "no second verdict on u_0: KeyError: 'reward_model'" in caplog.text


def test_one_that_raises_is_asked_again(monkeypatch):
    monkeypatch.setattr(verifying, "FIRST_PAUSE_S", 0.0)
    calls = []

    def away(**asked):
        calls.append(asked["solution_str"])
        if len(calls) < 3:
            raise ConnectionError("away")
        return 1.0

    assert ask(away) == ([True], {"second_verifier/errors": 0}) and len(calls) == 3
    calls.clear()
    assert ask(away, verifier_retries=1) == ([None], {"second_verifier/errors": 1})


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_one_that_hangs_is_given_up(kind, caplog):
    release = threading.Event()

    async def hangs(**_):
        await asyncio.sleep(60)

    started = time.monotonic()
    function = hangs if kind == "async" else lambda **_: release.wait(60)
    assert ask(function, second_verifier_timeout=0.1, times=2) == ([None] * 2, {"second_verifier/errors": 2})
    assert time.monotonic() - started < 10 and "no second verdict on u_1" in caplog.text
    release.set()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_runs_off_the_event_loop(kind):
    """Two calls that each need the other one, and a thread that is not that of the sessions."""
    meet, threads = threading.Barrier(2, timeout=10), []

    def judge(**_):
        threads.append(threading.current_thread())
        meet.wait()
        return 1.0

    async def judge_async(**_):
        threads.append(threading.current_thread())
        await asyncio.sleep(0.01)
        return 1.0

    assert ask(judge if kind == "sync" else judge_async, times=2)[0] == [True, True]
    assert threading.main_thread() not in threads and len(threads) == 2


# ---- in the rollout worker

COLUMNS = {"data_source": "toy", "reward_model": {"ground_truth": "4"}, "extra_info": {}}


@pytest.fixture
def strict(tmp_path):
    """The run's verifier takes what ends in "right"; this one takes it only where a reason precedes it."""
    file = tmp_path / "strict.py"
    file.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    if 'hang' in solution_str:\n"
        "        raise RuntimeError('no verdict')\n"
        "    return float(solution_str == 'since right')\n"
    )
    return str(file)


TEXTS = {"p0_0": "right", "p0_1": "since right", "p0_2": "wrong", "p0_3": "hang right"}


def batch_metrics_of(log):
    """What the trainer makes of the rows that were stored."""
    marks = {entry[1]: Mark.from_mapping(entry[3]["cipo"]) for entry in log if entry[0] == "row"}
    table = RowTable.of_marks(
        [f"{name}_0" for name in marks],
        list(marks.values()),
        index=[0] * len(marks),
        scores=np.array([mark.score for mark in marks.values()]),
        tokens=np.ones(len(marks)),
    )
    metrics = batch_metrics(table)
    check_names(metrics)
    return metrics


def rolled(log, second, **options):
    log.clear()
    stats = roll(log, columns=COLUMNS, texts=TEXTS, second_verifier=second, verifier_retries=0, **options)
    return stats, [(entry[1], entry[2], entry[3]["cipo"]) for entry in log if entry[0] == "row"]


def test_the_gap_of_plain_grpo(world, strict):
    stats, stored = rolled(world, strict, replay_fraction=0)
    assert {name: mark.get("second") for name, _, mark in stored} == {
        "p0_0": False,
        "p0_1": True,
        "p0_2": False,
        "p0_3": None,
    }
    assert stats["second_verifier/errors"] == 1
    metrics = batch_metrics_of(world)
    # Of the three that both have judged, the run calls two right and the second one.
    assert metrics["cipo/hacking_gap"] == pytest.approx(1 / 3) and "cipo/hacking_gap_corrections" not in metrics
    assert metrics["cipo/accuracy/base"] == 0.75


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_rows_anchors_and_verdicts_are_the_same_with_and_without_it(world, strict, schedule):
    plain, without = rolled(world, None, schedule=schedule)
    judged, with_it = rolled(world, strict, schedule=schedule)
    assert len(with_it) == 2 * N
    assert sorted((n, p, {k: v for k, v in m.items() if k != "second"}) for n, p, m in with_it) == sorted(without)
    same = {"anchors/total", "anchors/correct", "anchors/failed", "corrections/failed_sessions", "verifier/errors"}
    assert {name: plain[name] for name in same} == {name: judged[name] for name in same}
    # Corrections say "right" and "wrong" in turn, without a reason.
    assert batch_metrics_of(world)["cipo/hacking_gap_corrections"] == 0.5


def test_a_second_verifier_that_hangs_costs_no_row(world, tmp_path):
    file = tmp_path / "hangs.py"
    file.write_text("import time\ndef compute_score(**asked):\n    time.sleep(0.5)\n")
    stats, stored = rolled(world, str(file), second_verifier_timeout=0.05)
    assert len(stored) == 2 * N and stats["corrections/failed_sessions"] == stats["attempts/failed_sessions"] == 0
    assert stats["second_verifier/errors"] == 2 * N and not any("second" in mark for _, _, mark in stored)


@pytest.mark.parametrize("val_corrections", [0, 2])
def test_the_gap_of_the_validation(world, strict, val_corrections):
    options = {"val_corrections": val_corrections, "validate": True, "prompts": 4, "columns": COLUMNS}
    texts = {f"p{i}_0": TEXTS[f"p0_{i}"] for i in range(4)}
    records, counts = roll(world, texts=texts, second_verifier=strict, verifier_retries=0, **options)
    assert [record["second"] for record in records] == [False, True, False, None]
    assert [record["attempt"] for record in records] == list(texts.values())
    turns = [turn["second"] for record in records for turn in record["corrections"]]
    assert turns == [False] * 4 * val_corrections
    metrics = second_turn_metrics(records, counts, corrected=val_corrections > 0)
    check_names(metrics)
    assert metrics["cipo/val/hacking_gap"] == pytest.approx(1 / 3)
    assert metrics["cipo/val/second_verifier_errors"] == 1 and metrics["cipo/val/accuracy_turn1"] == 0.75
    assert ("cipo/val/accuracy_turn2" in metrics) == (val_corrections > 0)
    assert metrics["cipo/val/skipped"] == 0 and rows(world) == list(texts)


def test_the_gap_of_each_data_source():
    def record(source, first, second):
        return {"anchor_correct": first, "second": second, "data_source": source, "question": "Q", "corrections": []}

    records = [record("a", True, False), record("a", True, True), record("b", False, None), record("b", False, False)]
    metrics = second_turn_metrics(records, {})
    # 2 - 1 of the three that have two verdicts.
    assert metrics["cipo/val/hacking_gap"] == pytest.approx(1 / 3)
    assert metrics["cipo/val/a/hacking_gap"] == 0.5 and metrics["cipo/val/b/hacking_gap"] == 0
    check_names(metrics)
    unjudged = second_turn_metrics([record("a", True, None)], {})
    assert not any("gap" in name for name in unjudged)


def test_a_worker_loads_it_once(world, strict, monkeypatch):
    loaded, whole = [], seconds.load
    monkeypatch.setattr(seconds, "load", lambda named: loaded.append(named) or whole(named))
    roll(world, prompts=3, columns=COLUMNS, second_verifier=strict)
    assert loaded == [strict]
