"""Real verl 0.9 V1 trainer, real Ray, FSDP2 and vLLM: what the dumped rollouts and the metrics say."""

import json
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file

from tests.real.conftest import LEARNING_RATE
from verl_cipo.core.metrics import METRICS

pytestmark = pytest.mark.vllm


def streams(rows: list[dict]) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """Rows by group: attempts by the prompt's uid, corrections by their anchor's ``{uid}_c{session}``."""
    base, corrections = defaultdict(list), defaultdict(list)
    for row in rows:
        group, _session, _index = row["uid"].rsplit("_", 2)
        (corrections if "_c" in group else base)[group].append(row)
    return base, corrections


@pytest.mark.parametrize("step", [1, 2])
def test_correction_rows_form_groups_of_their_anchor(cipo_run, step):
    base, corrections = streams(cipo_run.rollouts(step))
    task = cipo_run.task
    assert len(base) == task.train_batch_size
    assert all(len(rows) == task.n for rows in base.values())
    # replay_fraction=1: one anchor a prompt, n corrections each.
    assert len(corrections) == task.train_batch_size
    assert all(len(rows) == task.n for rows in corrections.values())


@pytest.mark.parametrize("step", [1, 2])
def test_correction_prompts_hold_question_and_attempt(cipo_run, step):
    base, corrections = streams(cipo_run.rollouts(step))
    for group, rows in corrections.items():
        uid, session = group.split("_c")
        anchor = next(row for row in base[uid] if row["uid"] == f"{uid}_{session}_0")
        question = anchor["input"].split("user\n", 1)[1].rsplit("assistant", 1)[0].strip()
        for row in rows:
            assert question in row["input"]
            assert f"<attempt>\n{anchor['output'].strip()}\n</attempt>" in row["input"]
            assert row["gts"] == anchor["gts"]
            assert row["input"] == rows[0]["input"]


def test_dumped_scores_are_raw(cipo_run):
    """Risk shaping would show as scores below verl's 0 and 1."""
    scores = {row["score"] for step in (1, 2) for row in cipo_run.rollouts(step)}
    assert scores <= {0.0, 1.0}


def test_metrics_agree_with_the_dump(cipo_run):
    for step, metrics in enumerate(cipo_run.steps, start=1):
        base, corrections = streams(cipo_run.rollouts(step))
        rows = [row for group in base.values() for row in group]
        corrected = [row for group in corrections.values() for row in group]
        assert metrics["cipo/rows/base"] == len(rows)
        assert metrics["cipo/rows/correction"] == len(corrected)
        assert metrics["cipo/reward/base"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
        assert metrics["cipo/reward/correction"] == pytest.approx(
            sum(row["score"] for row in corrected) / len(corrected)
        )
        assert metrics["cipo/anchors/total"] == len(corrections)
        assert {name for name in metrics if name.startswith("cipo/")} <= set(METRICS)


def test_validation_reports_both_turns(cipo_run):
    validated = [line["data"] for line in cipo_run.metrics if "cipo/val/rows" in line["data"]]
    assert len(validated) == 2, "before training and at test_freq"
    for metrics in validated:
        assert metrics["cipo/val/rows"] + metrics["cipo/val/skipped"] == 16
        assert metrics["cipo/val/accuracy_turn1"] == pytest.approx(metrics["val-core/openai/gsm8k/acc/mean@1"])
    dumped = (cipo_run.folder / "validation" / "corrections" / "2.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in dumped]
    assert len(records) == 16
    assert sum(len(record["corrections"]) for record in records) == validated[-1]["cipo/val/rows"]
    assert all(record["question"] and record["attempt"] for record in records)


def weight(value: torch.Tensor) -> torch.Tensor:
    """The plain tensor in a checkpoint of FSDP2."""
    return getattr(value, "_local_tensor", value).cpu()


def actor_file(run, step: int, kind: str) -> dict:
    path = run.folder / "checkpoints" / f"global_step_{step}" / "actor" / f"{kind}_world_size_1_rank_0.pt"
    return torch.load(path, weights_only=False)


def test_as_many_optimizer_steps_as_grpo_and_no_padding(cipo_run):
    """One mini-batch of 4 prompts a step in GRPO; twice the rows must not make it two."""
    steps = {float(weight(state["step"])) for state in actor_file(cipo_run, 2, "optim")["state"].values()}
    assert steps == {2.0}
    assert all(metrics["cipo/rows/padding"] == 0 for metrics in cipo_run.steps)


def test_weights_changed_by_a_gradient(cipo_run, task_folder):
    """AdamW's weight decay alone moves a weight by a millionth of itself; two Adam steps move it by about lr each."""
    assert all(metrics["actor/grad_norm"] > 0 for metrics in cipo_run.steps)
    before = load_file(task_folder / "model" / "model.safetensors")
    after = actor_file(cipo_run, 2, "model")
    assert max((value - weight(after[name])).abs().max().item() for name, value in before.items()) > LEARNING_RATE


def test_synced_weights_reach_vllm(cipo_run):
    """After the first update the rollout's probabilities must still be the actor's."""
    assert cipo_run.steps[-1]["training/rollout_probs_diff_max"] < 1e-4


def test_resume_goes_on_with_rho(cipo_run, resumed_run):
    saved = json.loads((cipo_run.folder / "checkpoints" / "global_step_2" / "cipo.json").read_text())["rho"]["rho"]
    assert [line["step"] for line in resumed_run.metrics] == [3, 4]
    assert resumed_run.steps[0]["cipo/rho"] == saved


def test_barrier_over_two_workers_gives_every_anchor(resumed_run):
    task = resumed_run.task
    for metrics in resumed_run.steps:
        assert metrics["cipo/anchors/total"] == task.train_batch_size
        assert metrics["cipo/rows/correction"] == task.train_batch_size * task.n


def test_corrections_without_weight_are_measured_and_not_trained(resumed_run):
    for step, metrics in zip((3, 4), resumed_run.steps, strict=True):
        base, corrections = streams(resumed_run.rollouts(step))
        assert sum(map(len, base.values())) == metrics["cipo/rows/base"] == 16
        assert corrections == {}, "a row without weight reached the update"
        assert "cipo/reward/correction" in metrics


def test_val_corrections_0_leaves_the_second_turn_out(resumed_run):
    assert not any(name.startswith("cipo/val/") for line in resumed_run.metrics for name in line["data"])


def test_the_trainer_is_cipos(cipo_run):
    assert "[verl_cipo] trainer CIPOTrainerSync" in (cipo_run.folder / "train.log").read_text(errors="replace")


def test_grpo_with_the_plugin_gives_the_rollouts_of_stock_verl(grpo_run, stock_run):
    def content(run, step):
        return sorted((row["input"], row["output"], row["gts"], row["score"]) for row in run.rollouts(step))

    for step in (1, 2):
        assert content(grpo_run, step) == content(stock_run, step)
    for ours, stock in zip(grpo_run.steps, stock_run.steps, strict=True):
        assert ours.keys() == stock.keys()
        for name in ("actor/grad_norm", "actor/pg_loss", "critic/advantages/max", "perf/total_num_tokens"):
            assert ours[name] == stock[name]
    assert not any("_c" in row["uid"] for row in grpo_run.rollouts(1))
    assert not any(name.startswith("cipo/") for line in grpo_run.metrics for name in line["data"])
    assert "CIPO" not in (stock_run.folder / "train.log").read_text(errors="replace")
