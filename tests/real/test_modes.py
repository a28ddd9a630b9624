"""Trainer modes and schedules in real runs of verl and vLLM."""

import pytest

from tests.real.conftest import PROMPTS, SEPARATE, N, cpu_options, streams
from tests.real.demo import STEPS

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def separate_run(run_alone, tmp_path_factory):
    """Two updates a step."""
    return run_alone(
        tmp_path_factory.mktemp("separate"),
        "algorithm.adv_estimator=cipo",
        "+algorithm.cipo.schedule=replay",
        *SEPARATE,
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "trainer.total_training_steps=3",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
    )


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


# The defaults move sessions, add pairs and train on the plain prompt, whichever trainer it is.
DEFAULTS = {
    "V1": ["trainer.v1.trainer_mode=sync"],
    "V1, asynchronous": ["trainer.v1.trainer_mode=colocate_async", "trainer.total_training_steps=4"],
    "V0": ["trainer.use_v1=False"],
    "DAPO": [
        "algorithm.filter_groups.enable=true",
        # verl's own: one of the demo's does not filter.
        "trainer.v1.sampler.custom_sampler.path=null",
        "actor_rollout_ref.rollout.full_determinism=false",
    ],
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=() if name == "V1" else pytest.mark.nightly) for name in DEFAULTS],
)
def default_run(run, request, tmp_path_factory):
    """algorithm.adv_estimator=cipo and no knob of what is trained; seeds, so that of so few prompts some are right."""
    return run(
        tmp_path_factory.mktemp("default"),
        "algorithm.adv_estimator=cipo",
        "++algorithm.cipo.preset=balanced",
        "actor_rollout_ref.rollout.full_determinism=true",
        "trainer.total_training_steps=3",
        "trainer.val_before_train=false",
        *DEFAULTS[request.param],
    )


def test_the_defaults_move_sessions_pair_attempts_and_watch_for_what_corrections_find(default_run):
    dumps_pairs = "CIPOTrainerV0" not in default_run.log  # V0 dumps a step before it makes them
    slots, moved, pairs, sampled = 0.0, 0.0, 0.0, 0.0
    for step, metrics in enumerate(default_run.steps, start=1):
        base, corrections, made = streams(default_run.rollouts(step))
        assert (
            metrics["cipo/rows/base"] == sum(map(len, base.values())) == PROMPTS * N + metrics["cipo/budget/attempts"]
        )
        assert metrics["cipo/rows/correction"] == sum(map(len, corrections.values()))
        if dumps_pairs:
            assert metrics["cipo/rows/aux"] + metrics["cipo/transfer/rows"] == sum(map(len, made.values()))
        assert (metrics["cipo/aux/loss"] > 0) == (metrics["cipo/aux/rows"] > 0)
        assert metrics["actor/grad_norm"] > 0
        slots += metrics["cipo/budget/slots"]
        moved += metrics["cipo/budget/attempts"]
        pairs += metrics["cipo/rows/aux"]
        sampled += metrics["cipo/budget/attempts"] + metrics["cipo/rows/correction"]
    # An asynchronous trainer has slots under way whose rows are not trained yet.
    under_way = N * slots - sampled
    assert under_way == 0 or ("ColocateAsync" in default_run.log and 0 < under_way <= N * PROMPTS)
    assert slots >= PROMPTS * 2 and 0 < moved <= N * slots and pairs > 0


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
