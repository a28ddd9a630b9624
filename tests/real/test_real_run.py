"""Real verl 0.9 V1 trainer, real Ray, FSDP2 and vLLM: what the dumped rollouts and the metrics say."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.real.conftest import LEARNING_RATE, PROMPTS, N, question, streams, weight
from tests.real.demo import STEPS
from verl_cipo.core.metrics import METRICS

pytestmark = pytest.mark.real


def test_the_demo_says_what_it_trained_with(whole):
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["retry_before"] is not None and summary["turn2_after"] is not None
    assert summary["trainer"] == "CIPOTrainerSync" and summary["steps"] == STEPS
    assert f"cipo, {STEPS} steps" in (whole.folder / "printed").read_text()
    assert (whole.folder / "curves.png").stat().st_size > 0
    assert "correction: " in (whole.folder / "printed").read_text()


def test_a_step_has_its_attempts_and_the_corrections_of_the_step_before(whole):
    """schedule=replay and replay_fraction=1: one anchor a prompt, n corrections each."""
    before = []
    for step in range(1, STEPS + 1):
        base, corrections, _ = streams(whole.rollouts(step))
        assert len(base) == PROMPTS and {len(rows) for rows in base.values()} == {N}
        assert len(corrections) == (PROMPTS if before else 0)
        for rows in corrections.values():
            assert len(rows) == N and {row["input"] for row in rows} == {rows[0]["input"]}
            assert any(
                f"<attempt>\n{anchor['output'].strip()}\n</attempt>" in rows[0]["input"]
                and question(anchor) in rows[0]["input"]
                and all(row["gts"] == anchor["gts"] for row in rows)
                for anchor in before
            )
        before = [row for rows in base.values() for row in rows]


def test_dumped_scores_are_raw(whole):
    """Risk shaping would show as scores below verl's 0 and 1."""
    assert {row["score"] for step in range(1, STEPS + 1) for row in whole.rollouts(step)} == {0.0, 1.0}


def test_metrics_agree_with_the_dump(whole):
    for step, metrics in enumerate(whole.steps, start=1):
        groups = streams(whole.rollouts(step))
        base, corrections, made = ([row for rows in kind.values() for row in rows] for kind in groups)
        for name, rows in (("base", base), ("correction", corrections)):
            assert metrics[f"cipo/rows/{name}"] == len(rows)
            if rows:
                assert metrics[f"cipo/reward/{name}"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
        assert metrics["cipo/rows/aux"] + metrics["cipo/transfer/rows"] == len(made)
        assert metrics["cipo/anchors/total"] == len(groups[1])
        trained = [row["score"] for row in (*base, *corrections)]
        assert metrics["critic/score/mean"] == pytest.approx(sum(trained) / len(trained)), "aux rows got into it"
        assert {name for name in metrics if name.startswith("cipo/")} <= set(METRICS)


def test_the_auxiliary_loss_is_logged_and_takes_no_optimizer_step(whole):
    assert sum(metrics["cipo/aux/rows"] for metrics in whole.steps) > 0
    for metrics in whole.steps:
        assert (metrics["cipo/aux/loss"] > 0) == (metrics["cipo/aux/rows"] > 0)
        assert not any(name.startswith("actor/cipo") for name in metrics)
    assert whole.optimizer_steps(STEPS) == {2.0 * STEPS}, "two mini-batches a step, as GRPO takes"


def test_transfer_trains_corrections_of_failed_attempts_on_the_plain_prompt(whole):
    moved, plain = 0, {}
    for step in range(1, STEPS + 1):
        base, corrections, made = streams(whole.rollouts(step))
        metrics = whole.steps[step - 1]
        of_transfer = [(group[:-1], row) for group, rows in made.items() if group.endswith("q") for row in rows]
        assert metrics["cipo/transfer/rows"] == len(of_transfer)
        assert (metrics["cipo/transfer/loss"] != 0) == bool(of_transfer)
        for group, row in of_transfer:
            # schedule=replay: the attempts were those of the step before.
            assert row["output"] in {correction["output"] for correction in corrections[group]}
            assert plain[row["input"]] == row["gts"]
        moved += len(of_transfer)
        plain = {row["input"]: row["gts"] for rows in base.values() for row in rows}
    assert moved > 0


def test_validation_reports_both_turns(whole):
    validated = [line["data"] for line in whole.metrics if "cipo/val/rows" in line["data"]]
    assert len(validated) == 2, "before training and at test_freq"
    for metrics in validated:
        assert metrics["cipo/val/rows"] + metrics["cipo/val/skipped"] == 16 * 2
        assert metrics["cipo/val/accuracy_turn1"] == pytest.approx(metrics["val-core/openai/gsm8k/acc/mean@2"])
    dumped = (whole.folder / "validation" / "corrections" / f"{STEPS}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in dumped]
    assert len(records) == 16 * 2
    assert sum(len(record["corrections"]) for record in records) == validated[-1]["cipo/val/rows"]
    assert all(record["question"] and record["attempt"] for record in records)


def test_the_logged_table_has_corrections_beneath_their_attempts(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name, texts = "val/generations/text_summary", []
    for file in (whole.folder / "tensorboard").iterdir():
        events = EventAccumulator(str(file)).Reload()
        if name in events.Tags()["tensors"]:
            texts += [event.tensor_proto.string_val[0].decode() for event in events.Tensors(name)]
    assert len(texts) == 2, "one a validation"
    for text in texts:
        samples = text.split("### Sample ")[1:]
        assert len(samples) == 2 and all("\n--- correction, " in sample for sample in samples)


def test_the_trained_weights_are_kept_for_others_to_load(whole):
    kept, trained = load_file(whole.folder / "model" / "model.safetensors"), whole.actor(STEPS, "model")
    assert kept and all(torch.equal(value, weight(trained[name])) for name, value in kept.items())
    asked = subprocess.run(
        [sys.executable, "-m", "verl_cipo.chat", "--checkpoint", whole.folder / "model", "How many apples?"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert asked.returncode == 0 and asked.stdout.startswith("--- attempt\n"), asked.stderr[-3000:]


def test_weights_changed_by_a_gradient(whole):
    """AdamW's weight decay alone moves a weight by a millionth of itself; an Adam step moves it by about lr."""
    assert all(metrics["actor/grad_norm"] > 0 for metrics in whole.steps)
    before = load_file(whole.folder / "task_quick" / "model" / "model.safetensors")
    after = whole.actor(STEPS, "model")
    assert max((value - weight(after[name])).abs().max().item() for name, value in before.items()) > LEARNING_RATE


def test_synced_weights_reach_vllm(whole):
    """After an update the rollout's probabilities must still be the actor's."""
    assert whole.steps[-1]["training/rollout_probs_diff_max"] < 1e-4
