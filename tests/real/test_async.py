"""verl's colocated asynchronous trainer in real runs."""

import json

import pytest

from tests.real.conftest import PROMPTS, N, streams

pytestmark = pytest.mark.real

COLOCATED = [
    "algorithm.adv_estimator=cipo",
    "+algorithm.cipo.source=both",
    "+algorithm.cipo.aux.coef=0.5",
    "+algorithm.cipo.transfer.kind=inject",
    "+algorithm.cipo.transfer.below=1",
    # Seeds: of so few prompts, unseeded rollouts may all be wrong, and then there is nothing to pair.
    "actor_rollout_ref.rollout.full_determinism=true",
    # Replayed anchors are those of the step before, so that no prompt waits for another.
    "+algorithm.cipo.schedule=replay",
    "trainer.v1.trainer_mode=colocate_async",
]


@pytest.fixture(scope="session")
def async_run(run, tmp_path_factory):
    """verl's colocated asynchronous trainer, replayed anchors, pairs, importance weights, our math verifier."""
    return run(
        tmp_path_factory.mktemp("async"),
        *COLOCATED,
        "reward.custom_reward_function.path=pkg://verl_cipo.rewards.math",
        "reward.custom_reward_function.name=compute_score",
        "+algorithm.cipo.second_verifier=pkg://verl.utils.reward_score:default_compute_score",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_is_threshold=2.0",
        "trainer.total_training_steps=4",
        "trainer.save_freq=3",
    )


@pytest.fixture(scope="session")
def async_resumed_run(run, tmp_path_factory, async_run):
    """Goes on from async_run's checkpoint of step 3, with prompts in flight."""
    return run(
        tmp_path_factory.mktemp("async_resumed"),
        *COLOCATED,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={async_run.folder / 'checkpoints' / 'global_step_3'}",
        "trainer.val_before_train=false",
        "trainer.total_training_steps=5",
    )


def test_colocated_asynchronous_training(async_run):
    assert "[verl_cipo] trainer CIPOTrainerColocateAsync" in async_run.log
    assert [line["step"] for line in async_run.metrics if "training/global_step" in line["data"]] == [1, 2, 3, 4]
    assert any(metrics["cipo/rows/correction"] > 0 for metrics in async_run.steps), "nothing was replayed"
    for metrics in async_run.steps:
        assert metrics["cipo/rows/base"] == 16
        assert metrics["training/off_policy/trajectory_staleness/max"] >= 0
        assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(1.0, abs=0.2)


def test_the_math_verifier_judges_a_real_run(async_run):
    rows = [json.loads(line) for line in (async_run.folder / "validation" / "4.jsonl").read_text().splitlines()]
    outcomes = {row["outcome"] for row in rows}
    assert "right" in outcomes and outcomes <= {"right", "wrong", "unparsable"}
    for row in rows:
        assert row["score"] == float(row["outcome"] == "right") == row["acc"]
        if row["outcome"] == "right":
            assert row["output"].rstrip().endswith(f"#### {row['pred']}") and row["pred"] == row["gts"]


def test_the_second_verifier_is_asked_of_every_response(async_run):
    """verl's own scorer looks for the same answer in the same place."""
    for metrics in async_run.steps:
        assert metrics["cipo/second_verifier/errors"] == 0
        assert 0 <= metrics["cipo/hacking_gap"] < 0.2
        assert ("cipo/hacking_gap_corrections" in metrics) == (metrics["cipo/rows/correction"] > 0)
    validated = [line["data"] for line in async_run.metrics if "cipo/val/rows" in line["data"]]
    assert validated and all(0 <= metrics["cipo/val/hacking_gap"] < 0.2 for metrics in validated)


def test_an_injected_correction_is_one_of_its_prompt(async_run):
    assert sum(metrics["cipo/transfer/rows"] for metrics in async_run.steps) > 0
    for metrics in async_run.steps:
        assert metrics["cipo/transfer/rows"] == metrics["cipo/transfer/prompts"]
        assert (metrics["cipo/transfer/loss"] != 0) == (metrics["cipo/transfer/rows"] > 0)


def test_an_asynchronous_checkpoint_holds_the_pool(async_run):
    folder = async_run.folder / "checkpoints" / "global_step_3"
    assert async_run.cipo_json(3)["rho"]["rho"] > 0
    assert (folder / "cipo_pool.pt").exists() and (folder / "transfer_queue").exists()


@pytest.mark.nightly
def test_asynchronous_training_goes_on_from_its_checkpoint(async_run, async_resumed_run):
    saved = async_run.cipo_json(3)
    assert [line["step"] for line in async_resumed_run.metrics] == [4, 5]
    first, second = async_resumed_run.steps
    assert first["cipo/rho"] == saved["rho"]["rho"]
    assert first["cipo/rows/base"] == second["cipo/rows/base"] == 16
    assert first["cipo/rows/correction"] + second["cipo/rows/correction"] > 0


@pytest.fixture(scope="session")
def loaded_run(run, tmp_path_factory):
    """Three times as many prompts as a step takes are under way, and what is older than three versions is evicted."""
    return run(
        tmp_path_factory.mktemp("loaded"),
        "algorithm.adv_estimator=cipo",
        "++algorithm.cipo.preset=balanced",
        "+algorithm.cipo.budget=fixed",
        "trainer.v1.trainer_mode=colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches=3",
        "trainer.v1.sampler.max_off_policy_threshold=3",
        "actor_rollout_ref.rollout.ignore_eos=true",
        "actor_rollout_ref.rollout.max_num_seqs=10",
        "data.max_response_length=320",
        "actor_rollout_ref.rollout.max_model_len=480",
        "trainer.total_training_steps=8",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
    )


@pytest.mark.nightly
def test_rollouts_that_weight_syncs_interrupt_are_trained_whole_or_evicted_whole(loaded_run):
    seen, evicted, spans = set(), 0.0, 0
    for step, metrics in enumerate(loaded_run.steps, start=1):
        base, corrections, _ = streams(loaded_run.rollouts(step))
        assert [len(rows) for rows in base.values()] == [N] * PROMPTS
        assert all(len(rows) == N for rows in corrections.values()), "a part of an anchor's corrections"
        assert {group.rpartition("_c")[0] for group in corrections} <= base.keys(), "trained without their host"
        assert not seen & base.keys(), "a prompt twice"
        seen |= base.keys()
        assert metrics["cipo/attempts/failed_sessions"] == metrics["cipo/corrections/failed_sessions"] == 0
        evicted += metrics.get("training/off_policy/evicted_samples", 0)
        spans = max(spans, metrics["training/off_policy/trajectory_spans/max"])
        assert metrics["training/off_policy/trajectory_staleness_worst/max"] <= 3
    assert evicted > 0 and spans > 1, "nothing was evicted, or no rollout was interrupted: nothing was tested"
    assert sum(metrics["cipo/rows/correction"] for metrics in loaded_run.steps) > 0
