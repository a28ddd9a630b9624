"""Trainer modes and schedules in real runs of verl and vLLM."""

import json

import pytest

from tests.real.conftest import PROMPTS, N, cpu_options, streams
from tests.real.demo import STEPS

pytestmark = pytest.mark.real

COLOCATED = [
    "algorithm.adv_estimator=cipo",
    "+algorithm.cipo.source=both",
    "+algorithm.cipo.aux.coef=0.5",
    # Seeds: of so few prompts, unseeded rollouts may all be wrong, and then there is nothing to pair.
    "actor_rollout_ref.rollout.full_determinism=true",
    # Replayed anchors are those of the step before, so that no prompt waits for another.
    "+algorithm.cipo.schedule=replay",
    "trainer.v1.trainer_mode=colocate_async",
]


@pytest.fixture(scope="session")
def async_run(run_alone, tmp_path_factory):
    """verl's colocated asynchronous trainer, replayed anchors, pairs, importance weights, our math verifier."""
    return run_alone(
        tmp_path_factory.mktemp("async"),
        *COLOCATED,
        "reward.custom_reward_function.path=pkg://verl_cipo.rewards.math",
        "reward.custom_reward_function.name=compute_score",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_is_threshold=2.0",
        "trainer.total_training_steps=4",
        "trainer.save_freq=3",
    )


@pytest.fixture(scope="session")
def async_resumed_run(run_alone, tmp_path_factory, async_run):
    """Goes on from async_run's checkpoint of step 3, with prompts in flight."""
    return run_alone(
        tmp_path_factory.mktemp("async_resumed"),
        *COLOCATED,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={async_run.folder / 'checkpoints' / 'global_step_3'}",
        "trainer.val_before_train=false",
        "trainer.total_training_steps=5",
    )


@pytest.fixture(scope="session")
def separate_run(run_alone, tmp_path_factory):
    """verl's asynchronous trainer with vLLM servers of its own: two updates a step, weights handed over in a file."""
    return run_alone(
        tmp_path_factory.mktemp("separate"),
        "algorithm.adv_estimator=cipo",
        "+algorithm.cipo.schedule=replay",
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=file",
        "+actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=file_weights",
        "ray_kwargs.ray_init.num_gpus=2",
        "trainer.total_training_steps=3",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
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


@pytest.mark.nightly
def test_separate_asynchronous_training(separate_run):
    assert "[verl_cipo] trainer CIPOTrainerSeparateAsync" in separate_run.log
    assert [line["step"] for line in separate_run.metrics] == [1, 2, 3]
    rollouts = [row for step in (1, 2, 3) for row in separate_run.rollouts(step)]
    for metrics in separate_run.steps:
        # Of both updates of the step together.
        assert metrics["cipo/rows/base"] == 16
        assert 0 <= metrics["training/off_policy/trajectory_staleness/max"] <= 2
    corrections = sum(metrics["cipo/rows/correction"] for metrics in separate_run.steps)
    assert corrections == sum("_c" in row["uid"] for row in rollouts) > 0


@pytest.fixture(scope="session")
def barrier_run(run_alone, tmp_path_factory, whole):
    """Goes on from the demo's checkpoint with cipo_trainer.yaml, two rollout workers, a barrier, and lambda_corr=0."""
    return run_alone(
        tmp_path_factory.mktemp("barrier"),
        *cpu_options(),
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={whole.folder / 'checkpoints' / f'global_step_{STEPS}'}",
        f"trainer.total_training_steps={STEPS + 2}",
        "trainer.val_before_train=false",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "algorithm.cipo.schedule=barrier",
        "algorithm.cipo.lambda_corr=0",
        "algorithm.cipo.val_corrections=0",
        config_args=("--config-path", "pkg://verl_cipo.config", "--config-name", "cipo_trainer"),
    )


@pytest.mark.nightly
def test_a_run_with_other_knobs_goes_on_with_rho(whole, barrier_run):
    assert [line["step"] for line in barrier_run.metrics] == [STEPS + 1, STEPS + 2]
    assert barrier_run.steps[0]["cipo/rho"] == whole.cipo_json(STEPS)["rho"]["rho"]


@pytest.mark.nightly
def test_barrier_over_two_workers_gives_every_anchor(barrier_run):
    for metrics in barrier_run.steps:
        assert metrics["cipo/anchors/total"] == PROMPTS
        assert metrics["cipo/rows/correction"] == PROMPTS * N


@pytest.mark.nightly
def test_corrections_without_weight_are_measured_and_not_trained(barrier_run):
    for step, metrics in enumerate(barrier_run.steps, start=STEPS + 1):
        base, corrections, _ = streams(barrier_run.rollouts(step))
        assert sum(map(len, base.values())) == metrics["cipo/rows/base"] == PROMPTS * N
        assert corrections == {}, "a row without weight reached the update"
        assert "cipo/reward/correction" in metrics


@pytest.mark.nightly
def test_val_corrections_0_leaves_the_second_turn_out(barrier_run):
    assert not any(name.startswith("cipo/val/") for line in barrier_run.metrics for name in line["data"])
