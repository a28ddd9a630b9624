"""Sources, auxiliary losses, trainer modes and faults in real runs of verl and vLLM."""

import json
from pathlib import Path

import pytest

from tests.real.conftest import STEPS, run
from tests.real.test_real_run import actor_file, streams, weight

pytestmark = pytest.mark.vllm

AUX = [
    "algorithm.adv_estimator=cipo",
    "+algorithm.cipo.source=both",
    "+algorithm.cipo.aux.coef=0.5",
    # Seeds: of so few prompts, unseeded rollouts may all be wrong, and then there is nothing to pair.
    "actor_rollout_ref.rollout.full_determinism=true",
]


# Replayed anchors are those of the step before, so that no prompt waits for another.
COLOCATED = [*AUX, "+algorithm.cipo.schedule=replay", "trainer.v1.trainer_mode=colocate_async"]


@pytest.fixture(scope="session")
def contrastive_run(task_folder, tmp_path_factory):
    """Both sources, the contrastive loss, two mini-batches a step, and a verifier that fails at first sight."""
    return run(
        task_folder,
        tmp_path_factory.mktemp("contrastive"),
        *AUX,
        "+algorithm.cipo.aux.kind=contrastive",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        f"reward.custom_reward_function.path={Path(__file__).with_name('flaky_reward.py')}",
        "trainer.save_freq=2",
    )


@pytest.fixture(scope="session")
def async_run(task_folder, tmp_path_factory):
    """verl's colocated asynchronous trainer, replayed anchors, pairs, importance weights, our math verifier."""
    return run(
        task_folder,
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
def async_resumed_run(task_folder, tmp_path_factory, async_run):
    """Goes on from async_run's checkpoint of step 3, with prompts in flight."""
    return run(
        task_folder,
        tmp_path_factory.mktemp("async_resumed"),
        *COLOCATED,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={async_run.folder / 'checkpoints' / 'global_step_3'}",
        "trainer.val_before_train=false",
        "trainer.total_training_steps=5",
    )


@pytest.fixture(scope="session")
def separate_run(task_folder, tmp_path_factory):
    """verl's asynchronous trainer with vLLM servers of its own: two updates a step, weights handed over in a file."""
    return run(
        task_folder,
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
        env={"PYTHONPATH": str(Path(__file__).parent)},
    )


def pairs(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows made for the auxiliary loss by the uid of their group."""
    made = {}
    for row in rows:
        group, _session, _index = row["uid"].rsplit("_", 2)
        if "_p" in group or group.endswith("r"):
            made.setdefault(group, []).append(row)
    return made


def test_the_auxiliary_loss_is_logged_and_takes_no_optimizer_step(contrastive_run):
    for metrics in contrastive_run.steps:
        assert metrics["cipo/aux/rows"] > 0
        assert metrics["cipo/aux/loss"] > 0
        assert not any(name.startswith("actor/cipo") for name in metrics)
    taken = {float(weight(state["step"])) for state in actor_file(contrastive_run, 2, "optim")["state"].values()}
    assert taken == {2.0 * STEPS}, "two mini-batches a step, as GRPO takes"


def test_a_verifier_that_is_away_now_and_then_costs_nothing(contrastive_run):
    for metrics in contrastive_run.steps:
        assert metrics["cipo/verifier/errors"] > 0
        assert metrics["cipo/verifier/given_up"] == metrics["cipo/corrections/failed_sessions"] == 0
        assert metrics["cipo/rows/base"] == metrics["cipo/rows/correction"] == 16


def test_rows_of_the_auxiliary_loss_stay_out_of_verls_metrics(contrastive_run):
    for step, metrics in enumerate(contrastive_run.steps, start=1):
        rows = contrastive_run.rollouts(step)
        appended = [row for made in pairs(rows).values() for row in made]
        assert len(appended) == metrics["cipo/rows/aux"]
        names = {row["uid"] for row in appended}
        real = [row for row in rows if row["uid"] not in names and not row["uid"].startswith("pad")]
        assert len(real) == metrics["cipo/rows/base"] + metrics["cipo/rows/correction"]
        assert metrics["critic/score/mean"] == pytest.approx(sum(row["score"] for row in real) / len(real))


def test_both_sides_of_a_pair_answer_one_prompt(contrastive_run):
    seen = 0
    for step in range(1, STEPS + 1):
        rows = contrastive_run.rollouts(step)
        base, _ = streams([row for row in rows if "_p" not in row["uid"] and "r_" not in row["uid"]])
        for group, made in pairs(rows).items():
            if "_p" not in group:
                continue
            uid, session = group.split("_p")
            failed = next(row for row in base[uid] if row["uid"] == f"{uid}_{session}_0")
            right = {row["output"] for row in base[uid] if row["score"] == 1.0}
            assert failed["score"] == 0.0 and len(made) == 2
            assert made[0]["input"] == made[1]["input"]
            assert f"<attempt>\n{failed['output'].strip()}\n</attempt>" in made[0]["input"]
            outputs = {row["output"] for row in made}
            assert failed["output"] in outputs and outputs & right
            seen += 1
    assert seen > 0


def test_colocated_asynchronous_training(async_run):
    assert "[verl_cipo] trainer CIPOTrainerColocateAsync" in (async_run.folder / "train.log").read_text(
        errors="replace"
    )
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
    assert json.loads((folder / "cipo.json").read_text())["rho"]["rho"] > 0
    assert (folder / "cipo_pool.pt").exists() and (folder / "transfer_queue").exists()


def test_asynchronous_training_goes_on_from_its_checkpoint(async_run, async_resumed_run):
    saved = json.loads((async_run.folder / "checkpoints" / "global_step_3" / "cipo.json").read_text())
    assert [line["step"] for line in async_resumed_run.metrics] == [4, 5]
    first, second = async_resumed_run.steps
    assert first["cipo/rho"] == saved["rho"]["rho"]
    assert first["cipo/rows/base"] == second["cipo/rows/base"] == 16
    assert first["cipo/rows/correction"] + second["cipo/rows/correction"] > 0


def test_separate_asynchronous_training(separate_run):
    log = (separate_run.folder / "train.log").read_text(errors="replace")
    assert "[verl_cipo] trainer CIPOTrainerSeparateAsync" in log
    assert [line["step"] for line in separate_run.metrics] == [1, 2, 3]
    rollouts = [row for step in (1, 2, 3) for row in separate_run.rollouts(step)]
    for metrics in separate_run.steps:
        # Of both updates of the step together.
        assert metrics["cipo/rows/base"] == 16
        assert 0 <= metrics["training/off_policy/trajectory_staleness/max"] <= 2
    corrections = sum(metrics["cipo/rows/correction"] for metrics in separate_run.steps)
    assert corrections == sum("_c" in row["uid"] for row in rollouts) > 0
