"""DAPO's group filtering with corrections: all that is sampled is trained, evicted or left over, and counted."""

from collections import Counter, defaultdict

import pytest

from tests.real.conftest import PROMPTS, N, Run, streams
from verl_cipo.core.anchors import rounded

pytestmark = [pytest.mark.real, pytest.mark.nightly]

FILTER = [
    "algorithm.adv_estimator=cipo",
    "algorithm.filter_groups.enable=true",
    # verl's own: one of the demo's does not filter.
    "trainer.v1.sampler.custom_sampler.path=null",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.total_training_steps=3",
]


@pytest.fixture(scope="session")
def sync_run(run, tmp_path_factory) -> Run:
    """verl's synchronous trainer, anchors as prompts finish, one all-wrong prompt of four kept."""
    return run(tmp_path_factory.mktemp("filter"), *FILTER, "+algorithm.cipo.keep_all_wrong=0.25")


@pytest.fixture(scope="session")
def auto_run(run, tmp_path_factory) -> Run:
    """The default's budget, which corrects next to nothing but what is kept."""
    own = ("+algorithm.cipo.keep_all_wrong=0.25", "+algorithm.cipo.budget=auto")
    return run(tmp_path_factory.mktemp("filter_auto"), *FILTER, *own)


@pytest.fixture(scope="session")
def async_run(run, tmp_path_factory) -> Run:
    """verl's colocated asynchronous trainer: corrections are hosted by prompts that may be evicted."""
    return run(
        tmp_path_factory.mktemp("filter_async"),
        *FILTER,
        "trainer.v1.trainer_mode=colocate_async",
        "trainer.total_training_steps=4",
    )


def evicted(metrics: dict) -> int:
    return int(metrics.get("training/filter_groups/evicted_samples", 0))


def left_over(metrics: dict) -> int:
    return int(metrics.get("training/filter_groups/discarded_surplus_samples", 0))


def test_what_is_trained_has_a_signal(sync_run):
    assert sum(map(evicted, sync_run.steps)) > 0, "nothing was evicted, so nothing was tested"
    for step, metrics in enumerate(sync_run.steps, start=1):
        base, corrections, _ = streams(sync_run.rollouts(step))
        assert len(base) == PROMPTS
        scores = {uid: {row["score"] for row in rows} for uid, rows in base.items()}
        uniform = {uid for uid, values in scores.items() if len(values) == 1}
        assert len(uniform) == metrics["cipo/filter/kept_all_wrong"] <= 1
        assert all(scores[uid] == {0.0} for uid in uniform), "a prompt that is all right was kept"
        anchored = {name.rpartition("_c")[0] for name in corrections}
        assert uniform <= anchored <= set(base), "a prompt was kept without a correction, or one without a prompt"


def test_every_row_is_accounted_for(sync_run):
    for step, metrics in enumerate(sync_run.steps, start=1):
        gone = evicted(metrics) + left_over(metrics)
        assert metrics["cipo/filter/dispatched"] == PROMPTS + gone
        assert metrics["cipo/filter/attempts"] == N * gone
        assert metrics["cipo/filter/corrections"] == 0, "an anchor was drawn from a prompt that was thrown away"
        base, corrections, _ = streams(sync_run.rollouts(step))
        assert sum(map(len, base.values())) == metrics["cipo/rows/base"] == N * PROMPTS
        assert sum(map(len, corrections.values())) == metrics["cipo/rows/correction"] == N * PROMPTS


def test_anchors_are_the_steps(sync_run):
    """One for each prompt of the batch, however many dispatches it took, and rho of them right."""
    for step, metrics in enumerate(sync_run.steps, start=1):
        assert metrics["cipo/anchors/total"] == PROMPTS
        base, corrections, _ = streams(sync_run.rollouts(step))
        right = sum(score > 0.5 for rows in base.values() for score in (row["score"] for row in rows))
        assert metrics["cipo/anchors/correct"] == min(rounded(metrics["cipo/rho"] * PROMPTS), right)
        assert {len(rows) for rows in corrections.values()} == {N}


def test_what_is_kept_is_corrected_whatever_the_budget_says(auto_run):
    kept = [int(metrics["cipo/filter/kept_all_wrong"]) for metrics in auto_run.steps]
    assert sum(kept) > 0, "nothing was kept, so nothing was tested"
    for step, metrics in enumerate(auto_run.steps, start=1):
        base, corrections, _ = streams(auto_run.rollouts(step))
        # Further attempts come after the attempts.
        session = {row["uid"]: int(row["uid"].rsplit("_", 2)[1]) for rows in base.values() for row in rows}
        first = {uid: {row["score"] for row in rows if session[row["uid"]] < N} for uid, rows in base.items()}
        wrong = {uid for uid, scores in first.items() if scores == {0.0}}
        assert len(base) == PROMPTS and len(wrong) == kept[step - 1]
        assert wrong <= {name.rpartition("_c")[0] for name in corrections}
        assert metrics["cipo/budget/corrected"] == len(corrections) >= kept[step - 1]
        # A slot is the corrections of an anchor, or as many further attempts.
        assert metrics["cipo/rows/base"] + metrics["cipo/rows/correction"] == 2 * N * PROMPTS
        assert metrics["cipo/filter/evicted_all_wrong"] <= evicted(metrics) + left_over(metrics)


def test_hosted_corrections_outlive_their_hosts(async_run):
    assert sum(map(evicted, async_run.steps)) > 0, "nothing was evicted, so nothing was tested"
    assert sum(metrics["cipo/filter/rehomed"] for metrics in async_run.steps) > 0, "no host was evicted"
    seen = Counter()
    for step, metrics in enumerate(async_run.steps, start=1):
        assert metrics["cipo/filter/corrections"] == 0
        base, corrections, _ = streams(async_run.rollouts(step))
        assert metrics["cipo/rows/base"] == sum(map(len, base.values())) == N * PROMPTS
        assert metrics["cipo/rows/correction"] == sum(map(len, corrections.values()))
        assert metrics["cipo/anchors/total"] <= PROMPTS + 1
        scores = defaultdict(set)
        for uid, rows in base.items():
            scores[uid] |= {row["score"] for row in rows}
        assert all(len(values) > 1 for values in scores.values()), "a prompt without a signal was trained"
        homeless = {name for name in corrections if name.rpartition("_c")[0] not in base}
        assert len(homeless) * N == metrics["cipo/filter/rehomed"]
        seen.update(corrections.keys())
    assert set(seen.values()) <= {1}, "a correction was trained twice"
