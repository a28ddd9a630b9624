"""Real runs of verl's V0 trainer with CIPO: what the dumped rollouts, the metrics and the checkpoint say.

``v1_run`` is the same run on verl's V1 trainer: same seeds, same data, anchors drawn at the barrier.
"""

from pathlib import Path

import pytest

from tests.real.conftest import GREEDY, PROMPTS, STEPS, STOCK, N, content, question, streams
from verl_cipo.core.metrics import METRICS

pytestmark = pytest.mark.real

V0 = "trainer.use_v1=False"
SHARED = (
    "algorithm.adv_estimator=cipo",
    # Seeds: so that both trainers roll the same attempts out, and of so few prompts some come out right.
    "actor_rollout_ref.rollout.full_determinism=true",
    "actor_rollout_ref.rollout.val_kwargs.n=2",
    "data.val_max_samples=8",
    "+algorithm.cipo.source=both",
    "+algorithm.cipo.aux.coef=0.5",
    "+algorithm.cipo.aux.kind=contrastive",
    "+algorithm.cipo.transfer.kind=inject",
    "+algorithm.cipo.transfer.below=1",
)


@pytest.fixture(scope="session")
def v0_run(run, tmp_path_factory):
    streaming = "+algorithm.cipo.schedule=streaming"
    return run(tmp_path_factory.mktemp("v0"), *SHARED, V0, streaming, "trainer.save_freq=2")


@pytest.fixture(scope="session")
def v1_run(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("v1"), *SHARED, "+algorithm.cipo.schedule=barrier")


@pytest.fixture(scope="session")
def v0_resumed_run(run, tmp_path_factory, v0_run):
    """Goes on from v0_run's checkpoint: two workers and mini-batches, a verifier that fails, at times for good."""
    return run(
        tmp_path_factory.mktemp("v0_resumed"),
        *SHARED,
        V0,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={v0_run.folder / 'checkpoints' / f'global_step_{STEPS}'}",
        f"trainer.total_training_steps={2 * STEPS}",
        "trainer.val_before_train=false",
        "trainer.save_freq=4",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        f"reward.custom_reward_function.path={Path(__file__).with_name('flaky_reward.py')}",
        "+reward.custom_reward_function.reward_kwargs.lost=0.25",
        "+algorithm.cipo.correct_threshold={openai/gsm8k:0.5,default:2}",
    )


@pytest.fixture(scope="session")
def v0_grpo_run(run, tmp_path_factory):
    """GRPO on the V0 trainer with the plugin installed."""
    return run(tmp_path_factory.mktemp("v0_grpo"), *GREEDY, V0)


@pytest.fixture(scope="session")
def v0_stock_run(run, tmp_path_factory):
    """GRPO on the V0 trainer without the plugin."""
    return run(tmp_path_factory.mktemp("v0_stock"), *GREEDY, V0, env=STOCK)


def test_the_trainer_is_cipos_on_v0(v0_run):
    assert "[verl_cipo] trainer CIPOTrainerV0" in v0_run.log
    assert "verl hands all attempts over at once, so anchors are drawn as with schedule=barrier" in v0_run.log


@pytest.mark.parametrize("step", [1, 2])
def test_corrections_are_groups_of_n_with_their_attempt_in_the_prompt(v0_run, step):
    base, corrections, _ = streams(v0_run.rollouts(step))
    assert len(base) == len(corrections) == PROMPTS
    assert all(len(rows) == N for group in (base, corrections) for rows in group.values())
    for group, rows in corrections.items():
        uid, session = group.split("_c")
        anchor = next(row for row in base[uid] if row["uid"] == f"{uid}_{session}_0")
        for row in rows:
            assert question(anchor) in row["input"]
            assert f"<attempt>\n{anchor['output'].strip()}\n</attempt>" in row["input"]
            assert row["gts"] == anchor["gts"]
    assert {row["score"] for row in v0_run.rollouts(step)} <= {0.0, 1.0}, "risk shaping got into the dump"


@pytest.mark.nightly
@pytest.mark.parametrize("step", [1, 2])
def test_v0_and_v1_roll_out_correct_and_train_the_same_rows(v0_run, v1_run, step):
    """Attempts, which of them are corrected, and their corrections; in step 2 by a policy that has been updated."""
    assert content(v0_run, step) == content(v1_run, step)
    ours, v1 = v0_run.steps[step - 1], v1_run.steps[step - 1]
    shared = {name for name in v1 if name.startswith("cipo/") and "seconds" not in name}
    assert shared == {name for name in ours if name.startswith("cipo/") and "seconds" not in name}
    for name in shared | {"critic/advantages/max", "critic/advantages/min", "critic/score/mean"}:
        assert ours[name] == pytest.approx(v1[name], rel=1e-5), name
    for name in ("actor/entropy", "actor/grad_norm"):
        assert ours[name] == pytest.approx(v1[name], rel=1e-3), name


@pytest.mark.nightly
def test_both_sides_of_a_pair_answer_one_prompt(v1_run):
    seen = 0
    for step in range(1, STEPS + 1):
        base, _, made = streams(v1_run.rollouts(step))
        for group, pair in made.items():
            if "_p" not in group:
                continue
            uid, session = group.split("_p")
            failed = next(row for row in base[uid] if row["uid"] == f"{uid}_{session}_0")
            right = {row["output"] for row in base[uid] if row["score"] == 1.0}
            assert failed["score"] == 0.0 and len(pair) == 2
            assert pair[0]["input"] == pair[1]["input"]
            assert f"<attempt>\n{failed['output'].strip()}\n</attempt>" in pair[0]["input"]
            outputs = {row["output"] for row in pair}
            assert failed["output"] in outputs and outputs & right
            seen += 1
    assert seen > 0


@pytest.mark.nightly
def test_v0_and_v1_validate_the_same(v0_run, v1_run):
    both = [
        [
            {name: value for name, value in line["data"].items() if name.startswith("cipo/val/")}
            for line in one.metrics
            if "cipo/val/rows" in line["data"]
        ]
        for one in (v0_run, v1_run)
    ]
    assert len(both[0]) == 2 and both[0] == both[1]
    assert both[0][0]["cipo/val/rows"] == 16 and "cipo/val/retry" in both[0][0]


def test_metrics_are_declared_and_agree_with_the_dump(v0_run):
    for step, metrics in enumerate(v0_run.steps, start=1):
        base, corrections, _ = streams(v0_run.rollouts(step))
        rows = [row for group in base.values() for row in group]
        corrected = [row for group in corrections.values() for row in group]
        assert metrics["cipo/reward/base"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
        assert metrics["cipo/reward/correction"] == pytest.approx(
            sum(row["score"] for row in corrected) / len(corrected)
        )
        assert {name for name in metrics if name.startswith("cipo/")} <= set(METRICS)


def test_as_many_optimizer_steps_as_grpo_on_v0(v0_run):
    assert v0_run.optimizer_steps(2) == {2.0}
    assert all(metrics["cipo/rows/padding"] == 0 and metrics["actor/grad_norm"] > 0 for metrics in v0_run.steps)


def test_synced_weights_reach_vllm_on_v0(v0_run):
    assert v0_run.steps[-1]["training/rollout_probs_diff_max"] < 1e-4


@pytest.mark.nightly
def test_rho_moves_and_a_resumed_run_goes_on_with_it(v0_run, v0_resumed_run):
    folder = v0_run.folder / "checkpoints" / f"global_step_{STEPS}"
    saved = v0_run.cipo_json(STEPS)["rho"]["rho"]
    assert v0_run.steps[0]["cipo/rho"] == 0.3 != saved
    assert not (folder / "cipo_pool.pt").exists()
    assert [line["step"] for line in v0_resumed_run.metrics] == [3, 4]
    assert v0_resumed_run.steps[0]["cipo/rho"] == saved
    assert v0_resumed_run.optimizer_steps(4) == {2.0 + 4.0}, "two a step, with mini-batches of 2 of 4 prompts"


def test_pairs_and_preferences_are_trained_on_v0(v0_run):
    assert sum(metrics["cipo/aux/rows"] for metrics in v0_run.steps) > 0
    for step, metrics in enumerate(v0_run.steps, start=1):
        # Rejected sides, and both sides of pairs.
        assert metrics["cipo/rows/aux"] == metrics["cipo/aux/rows"] + metrics["cipo/aux/pairs"]
        assert (metrics["cipo/aux/rows"] > 0) == (metrics["cipo/aux/loss"] != 0)
        assert (metrics["cipo/transfer/rows"] > 0) == (metrics["cipo/transfer/loss"] != 0)
        assert len(v0_run.rollouts(step)) == 32, "aux rows or padding got into the dump"


@pytest.mark.nightly
def test_a_session_without_a_verdict_costs_its_own_row_on_v0(v0_resumed_run):
    lost_attempts = 0
    for step, metrics in enumerate(v0_resumed_run.steps, start=STEPS + 1):
        lost = {kind: metrics[f"cipo/{kind}/failed_sessions"] for kind in ("attempts", "corrections")}
        lost_attempts += lost["attempts"]
        assert metrics["cipo/verifier/errors"] > metrics["cipo/verifier/given_up"] == sum(lost.values())
        base, corrections, _ = streams(v0_resumed_run.rollouts(step))
        assert sum(map(len, base.values())) == PROMPTS * N - lost["attempts"]
        assert sum(map(len, corrections.values())) == metrics["cipo/anchors/total"] * N - lost["corrections"]
        assert metrics["actor/grad_norm"] > 0
    assert lost_attempts > 0


@pytest.mark.nightly
def test_grpo_on_v0_with_the_plugin_is_stock_verls(v0_grpo_run, v0_stock_run):
    for step in (1, 2):
        ours, stock = (
            sorted((row["input"], row["output"], row["score"]) for row in one.rollouts(step))
            for one in (v0_grpo_run, v0_stock_run)
        )
        assert ours == stock
        assert not any("uid" in row for row in v0_grpo_run.rollouts(step))
    for ours, stock in zip(v0_grpo_run.steps, v0_stock_run.steps, strict=True):
        assert ours.keys() == stock.keys()
        assert not any(name.startswith("cipo/") for name in ours)
        for name in ("actor/grad_norm", "actor/pg_loss", "critic/advantages/max"):
            assert ours[name] == stock[name]
    assert "CIPO" not in v0_stock_run.log and "[verl_cipo]" not in v0_grpo_run.log
