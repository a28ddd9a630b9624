"""Strategy contexts in a real run of verl and vLLM: what the dumped rollouts were asked, their advantages by hand."""

import re
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.real.conftest import PROMPTS, SEPARATE, STEPS, N, Run, content, question, streams
from verl_cipo.core.metrics import METRICS
from verl_cipo.core.nudge import drawn_contexts
from verl_cipo.core.rows import PLAIN

pytestmark = [pytest.mark.real, pytest.mark.nightly]

HINTS = ["A", "B"]
BETWEEN = 1.5
HINT = re.compile(r" \[hint ([AB])\]")


@pytest.fixture(scope="session")
def data(task_folder, tmp_path_factory):
    """The demo's problems, with hints in a column of its own; one in seven has none."""
    rows = pq.read_table(task_folder / "data" / "train.parquet").to_pylist()
    file = tmp_path_factory.mktemp("hints") / "train.parquet"
    table = [{**row, "hints": HINTS if i % 7 else []} for i, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(table), file)
    return file


UNDER_HINTS = (
    "algorithm.adv_estimator=cipo",
    "+algorithm.cipo.nudge.contexts=hints",
    "+algorithm.cipo.nudge.template='{question} [hint {context}]'",
    f"+algorithm.cipo.nudge.between={BETWEEN}",
    # Seeds: so that of so few prompts some are right.
    "actor_rollout_ref.rollout.full_determinism=true",
    "trainer.val_before_train=false",
)


@pytest.fixture(scope="session")
def nudged_run(run, data, tmp_path_factory):
    """Two steps."""
    return run(
        tmp_path_factory.mktemp("nudge"),
        *UNDER_HINTS,
        f"data.train_files={data}",
        "+algorithm.cipo.transfer.kind=inject",
        "+algorithm.cipo.transfer.below=0.75",
        "+algorithm.cipo.lambda_risk=0",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "algorithm.norm_adv_by_std_in_grpo=false",
    )


@pytest.fixture(scope="session")
def asynchronous_run(run, data, tmp_path_factory):
    """The default with contexts on verl's colocated asynchronous trainer: prompts of several steps are under way."""
    return run(
        tmp_path_factory.mktemp("nudge_async"),
        *UNDER_HINTS,
        f"data.train_files={data}",
        "++algorithm.cipo.preset=balanced",
        "trainer.v1.trainer_mode=colocate_async",
        "trainer.total_training_steps=4",
    )


@pytest.fixture(scope="session")
def filtered_run(run, data, tmp_path_factory):
    """Corrections under contexts, too, and verl's group filter, which evicts prompts and dispatches others."""
    return run(
        tmp_path_factory.mktemp("nudge_filter"),
        *UNDER_HINTS,
        f"data.train_files={data}",
        "+algorithm.cipo.nudge.corrections=true",
        "algorithm.filter_groups.enable=true",
        # verl's own: one of the demo's does not filter.
        "trainer.v1.sampler.custom_sampler.path=null",
        "trainer.test_freq=-1",
    )


@pytest.fixture(scope="session")
def separate_run(run_alone, data, tmp_path_factory):
    """The same where rollouts have engines of their own; corrections are of attempts of the step before."""
    return run_alone(
        tmp_path_factory.mktemp("nudge_separate"),
        *UNDER_HINTS,
        *SEPARATE,
        "trainer.v1.separate_async.parameter_sync_step=1",
        f"data.train_files={data}",
        "+algorithm.cipo.nudge.corrections=true",
        "trainer.test_freq=-1",
        "trainer.total_training_steps=3",
    )


BARRIER = (
    *UNDER_HINTS,
    "+algorithm.cipo.schedule=barrier",
    "+algorithm.cipo.nudge.corrections=true",
    "+algorithm.cipo.transfer.kind=inject",
    "+algorithm.cipo.transfer.below=1",
)


@pytest.fixture(scope="session")
def v0_run(run, data, tmp_path_factory):
    return run(tmp_path_factory.mktemp("nudge_v0"), *BARRIER, f"data.train_files={data}", "trainer.use_v1=False")


@pytest.fixture(scope="session")
def v1_run(run, data, tmp_path_factory):
    return run(tmp_path_factory.mktemp("nudge_v1"), *BARRIER, f"data.train_files={data}")


def context_of(row: dict) -> int:
    found = HINT.search(row["input"])
    return HINTS.index(found[1]) if found else PLAIN


def index_of(data) -> dict[str, int]:
    return {row["prompt"][0]["content"]: i for i, row in enumerate(pq.read_table(data).to_pylist())}


def session_of(row: dict) -> int:
    return int(row["uid"].rsplit("_", 2)[1])


def by_hand(group: list[dict]) -> list[float]:
    """Advantages of a prompt's attempts, without the std."""
    everyone = mean(row["score"] for row in group)
    of_context = {
        number: mean(r["score"] for r in group if context_of(r) == number) for number in map(context_of, group)
    }
    found = []
    for row in group:
        own = everyone if context_of(row) == PLAIN else of_context[context_of(row)]
        found.append(row["score"] - own + BETWEEN * (own - everyone))
    return [value - mean(found) for value in found]


def test_attempts_are_asked_under_the_contexts_that_were_drawn(nudged_run, data):
    index = index_of(data)
    seen = set()
    for step in range(1, STEPS + 1):
        base, _, _ = streams(nudged_run.rollouts(step))
        assert len(base) == PROMPTS
        for rows in base.values():
            rows.sort(key=session_of)
            number = index[HINT.sub("", question(rows[0]))]
            drawn = drawn_contexts(2 if number % 7 else 0, N, plain_share=0.5, seed=1, step=step, index=number)
            assert [context_of(row) for row in rows] == drawn
            assert {HINT.sub("", question(row)) for row in rows} == {HINT.sub("", question(rows[0]))}
            seen |= set(drawn)
    assert seen == {0, 1, PLAIN}


def test_corrections_ask_the_plain_question(nudged_run):
    for step in range(1, STEPS + 1):
        base, corrections, _ = streams(nudged_run.rollouts(step))
        assert len(corrections) == PROMPTS
        for group, rows in corrections.items():
            asked = HINT.sub("", question(base[group.rpartition("_c")[0]][0]))
            anchor = next(r for r in base[group.rpartition("_c")[0]] if session_of(r) == int(group.rpartition("_c")[2]))
            for row in rows:
                assert not HINT.search(row["input"]) and asked.splitlines()[0] in row["input"]
                assert anchor["output"].strip()[:20] in row["input"]


def test_advantages_are_those_by_hand(nudged_run):
    told = 0
    for step, metrics in enumerate(nudged_run.steps, start=1):
        base, corrections, _ = streams(nudged_run.rollouts(step))
        attempts = [value for rows in base.values() for value in by_hand(rows)]
        told += len({round(value, 6) for value in attempts}) > 2
        corrected = sum(map(len, corrections.values()))
        others = [
            # Each stream is divided by its own number of rows.
            (row["score"] - mean(r["score"] for r in rows)) * len(attempts) / corrected
            for rows in corrections.values()
            for row in rows
        ]
        assert metrics["critic/advantages/max"] == pytest.approx(max(attempts + others), abs=1e-5)
        assert metrics["critic/advantages/min"] == pytest.approx(min(attempts + others), abs=1e-5)
    assert told, "no attempt was right, so nothing was compared"


def test_what_is_distilled_and_transferred_answers_the_plain_prompt(nudged_run):
    distilled, moved = 0, 0
    for step, metrics in enumerate(nudged_run.steps, start=1):
        base, corrections, made = streams(nudged_run.rollouts(step))
        of_attempts = {group: rows for group, rows in made.items() if "_n" in group}
        of_corrections = {group: rows for group, rows in made.items() if group.endswith("q")}
        assert made == of_attempts | of_corrections
        expected = {}
        for uid, rows in base.items():
            for row, advantage in zip(rows, by_hand(rows), strict=True):
                if context_of(row) != PLAIN and abs(advantage) > 1e-9:
                    expected[f"{uid}_n{session_of(row)}"] = (HINT.sub("", row["input"]), row["output"])
        assert {group: (row["input"], row["output"]) for group, (row,) in of_attempts.items()} == expected
        for group, (row,) in of_corrections.items():
            assert row["input"] in {HINT.sub("", r["input"]) for r in base[group.rpartition("_c")[0]]}
            assert row["output"] in {r["output"] for r in corrections[group[:-1]]}
        assert metrics["cipo/nudge/rows"] == len(of_attempts) and metrics["cipo/transfer/rows"] == len(of_corrections)
        assert (metrics["cipo/nudge/loss"] != 0) == any(abs(a) > 1e-9 for rows in base.values() for a in by_hand(rows))
        distilled, moved = distilled + len(of_attempts), moved + len(of_corrections)
    assert distilled > 0 and moved > 0


def test_metrics_are_those_of_the_dumps(nudged_run):
    for step, metrics in enumerate(nudged_run.steps, start=1):
        base, _, _ = streams(nudged_run.rollouts(step))
        rows = [row for own in base.values() for row in own]
        under = [row["score"] for row in rows if context_of(row) != PLAIN]
        plain = [row["score"] for row in rows if context_of(row) == PLAIN]
        assert metrics["cipo/nudge/context_share"] == len(under) / len(rows)
        assert metrics["cipo/nudge/accuracy_context"] == pytest.approx(mean(under))
        assert metrics["cipo/nudge/accuracy_plain"] == pytest.approx(mean(plain))
        assert {name for name in metrics if name.startswith("cipo/")} <= set(METRICS)
        assert metrics["actor/grad_norm"] > 0


def test_a_validation_has_no_hints(nudged_run):
    (file,) = (nudged_run.folder / "validation").glob("*.jsonl")
    assert file.read_text().strip() and not HINT.search(file.read_text())
    (second,) = (nudged_run.folder / "validation" / "corrections").glob("*.jsonl")
    assert not HINT.search(second.read_text())


def test_an_asynchronous_trainer_asks_under_the_contexts_of_the_dispatch(asynchronous_run, data):
    index = index_of(data)
    distilled, corrected, further = 0, 0, 0
    for step, metrics in enumerate(asynchronous_run.steps, start=1):
        base, corrections, made = streams(asynchronous_run.rollouts(step))
        assert len(base) == PROMPTS
        under = 0
        for rows in base.values():
            rows.sort(key=session_of)
            number = index[HINT.sub("", question(rows[0]))]
            how = {"plain_share": 0.5, "seed": 1, "index": number}
            possible = [drawn_contexts(2 if number % 7 else 0, N, step=s, **how) for s in range(1, step + 1)]
            found = [context_of(row) for row in rows]
            assert found[:N] in possible and set(found[N:]) <= {PLAIN}
            under += sum(context != PLAIN for context in found)
            further += len(found) - N
        assert metrics["cipo/nudge/context_share"] == under / (PROMPTS * N)
        for rows in corrections.values():
            assert not any(HINT.search(row["input"]) for row in rows)
            corrected += len(rows)
        distilled += metrics["cipo/nudge/rows"]
        assert metrics["cipo/nudge/rows"] == sum("_n" in group for group in made)
        assert not any(HINT.search(row["input"]) for rows in made.values() for row in rows)
    assert distilled > 0 and corrected + further > 0


# ---- corrections under contexts


def asked_of(run: Run, steps: range, data) -> list[tuple[int, str, int, list[dict], list[int]]]:
    """Of each group of corrections: step, uid, number of its problem, rows by session, context of each."""
    numbers, found = index_of(data), []
    for step in steps:
        _, corrections, _ = streams(run.rollouts(step))
        for group, rows in corrections.items():
            rows.sort(key=session_of)
            (number,) = {n for row in rows for text, n in numbers.items() if text in HINT.sub("", row["input"])}
            found.append((step, group, number, rows, [context_of(row) for row in rows]))
    return found


def drawn_for(number: int, step: int, anchor: int) -> list[int]:
    contexts = 2 if number % 7 else 0
    return drawn_contexts(contexts, N, plain_share=0.5, seed=1, step=step, index=number, anchor=anchor)


def test_corrections_are_asked_under_the_contexts_that_were_drawn(filtered_run, data):
    found = asked_of(filtered_run, range(1, STEPS + 1), data)
    assert len(found) == PROMPTS * STEPS
    for step, group, number, _, contexts in found:
        assert contexts == drawn_for(number, step, int(group.rpartition("_c")[2]))
    assert {context for *_, contexts in found for context in contexts} == {0, 1, PLAIN}


def test_what_is_evicted_takes_nothing_of_the_others(filtered_run):
    assert sum(metrics.get("training/filter_groups/evicted_samples", 0) for metrics in filtered_run.steps) > 0
    for step, metrics in enumerate(filtered_run.steps, start=1):
        base, corrections, made = streams(filtered_run.rollouts(step))
        assert len(base) == len(corrections) == PROMPTS and metrics["cipo/filter/corrections"] == 0
        assert all(len({row["score"] for row in rows}) == 2 for rows in base.values())
        assert {group.rpartition("_c")[0] for group in corrections} <= set(base)
        assert metrics["cipo/nudge/rows"] == len(made) > 0


def test_w2c_is_told_for_both(filtered_run):
    told = set()
    for step, metrics in enumerate(filtered_run.steps, start=1):
        base, corrections, _ = streams(filtered_run.rollouts(step))
        scores = {(uid, session_of(row)): row["score"] for uid, rows in base.items() for row in rows}
        failed = [
            rows
            for group, rows in corrections.items()
            if scores[group.rpartition("_c")[0], int(group.rpartition("_c")[2])] == 0
            # Plain ones count where they can be compared.
            and any(context_of(row) != PLAIN for row in rows)
        ]
        for name, under in (("context", True), ("plain", False)):
            own = [row["score"] for rows in failed for row in rows if (context_of(row) != PLAIN) == under]
            if own:
                told.add(name)
                assert metrics[f"cipo/nudge/w2c_{name}"] == pytest.approx(mean(own))
    assert told == {"context", "plain"}


def test_engines_of_their_own_have_them_too(separate_run, data):
    """With schedule=replay: a correction is rolled out with prompts of a later step than its attempt."""
    steps = range(1, len(separate_run.steps) + 1)
    found = asked_of(separate_run, steps, data)
    assert "[verl_cipo] trainer CIPOTrainerSeparateAsync" in separate_run.log and found
    for step, _, number, _, contexts in found:
        possible = [drawn_for(number, s, anchor) for s in range(1, step + 1) for anchor in range(N)]
        assert contexts in possible
    assert len({context for *_, contexts in found for context in contexts}) == 3
    for step, metrics in enumerate(separate_run.steps, start=1):
        base, corrections, _ = streams(separate_run.rollouts(step))
        rows = [row for own in base.values() for row in own]
        assert metrics["cipo/nudge/context_share"] == sum(context_of(row) != PLAIN for row in rows) / len(rows)
        assert metrics["cipo/rows/correction"] == sum(map(len, corrections.values()))
        assert metrics["actor/grad_norm"] > 0


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_v0_and_v1_ask_and_train_the_same(v0_run, v1_run, step):
    assert "[verl_cipo] trainer CIPOTrainerV0" in v0_run.log
    ours, theirs = content(v0_run, step), content(v1_run, step)
    assert ours == theirs and any(HINT.search(text) for uid, text, *_ in ours if uid.startswith("c"))
    v0, v1 = v0_run.steps[step - 1], v1_run.steps[step - 1]
    shared = {name for name in v1 if name.startswith("cipo/") and "seconds" not in name}
    assert shared == {name for name in v0 if name.startswith("cipo/") and "seconds" not in name}
    assert v1["cipo/nudge/rows"] > 0 and v1["cipo/nudge/loss"] != 0
    for name in shared | {"critic/advantages/max", "critic/advantages/min"}:
        assert v0[name] == pytest.approx(v1[name], rel=1e-5), name
    assert v0["actor/grad_norm"] == pytest.approx(v1["actor/grad_norm"], rel=1e-3)
