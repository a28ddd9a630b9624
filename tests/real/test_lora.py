"""A real run of verl and vLLM that trains LoRA adapters, and the commands that add them to the weights."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.real.conftest import weight

pytestmark = [pytest.mark.real, pytest.mark.nightly]


@pytest.fixture(scope="session")
def lora_run(run, tmp_path_factory):
    """LoRA adapters on the actor; the reference policy of the KL term is the actor without them."""
    folder = tmp_path_factory.mktemp("lora")
    return run(
        folder,
        "algorithm.adv_estimator=cipo",
        "+algorithm.cipo.aux.coef=0.5",
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.model.target_modules=all-linear",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "algorithm.use_kl_in_reward=true",
        # Seeds: of so few prompts, unseeded corrections may all be wrong, and then there is nothing to train.
        "actor_rollout_ref.rollout.full_determinism=true",
        "actor_rollout_ref.rollout.load_format=safetensors",
        "trainer.save_freq=2",
    )


def test_lora_trains_the_adapters_alone(lora_run, task_folder):
    trained = lora_run.actor(2, "model")
    before = load_file(task_folder / "model" / "model.safetensors")
    adapters = {name: weight(value) for name, value in trained.items() if ".lora_B." in name}
    assert adapters and all(value.abs().max() > 0 for value in adapters.values()), "B starts at zero"
    for name, value in before.items():
        found = trained[f"base_model.model.{name.replace('_proj.weight', '_proj.base_layer.weight')}"]
        torch.testing.assert_close(weight(found), value, rtol=0, atol=0)


def test_lora_adapters_reach_the_rollout(lora_run):
    for metrics in lora_run.steps:
        assert metrics["training/rollout_probs_diff_max"] < 1e-4


def test_the_reference_of_lora_is_the_actor_without_adapters(lora_run):
    first, second = lora_run.steps
    assert first["actor/kl_loss"] == first["actor/reward_kl_penalty"] == 0
    # One estimate of it is never negative, the other, k1, may be.
    assert second["actor/kl_loss"] > 0 and second["actor/reward_kl_penalty"] != 0
    # The penalty is in the reward that is trained, not in the verdict that is dumped and that makes an anchor.
    for step in (1, 2):
        assert {row["score"] for row in lora_run.rollouts(step)} <= {0.0, 1.0}
    assert {0.0, 1.0} & {second["critic/rewards/max"], second["critic/rewards/min"]} == set()


def test_the_kl_term_weighs_what_it_weighs_in_grpo(lora_run):
    """Its sum over the rows of both streams is divided by GRPO's number of rows."""
    for metrics in lora_run.steps:
        attempts, corrections = metrics["cipo/rows/base"], metrics["cipo/rows/correction"]
        assert metrics["actor/kl_coef"] == pytest.approx(0.001 * attempts / (attempts + corrections))


def test_lora_with_the_auxiliary_loss(lora_run):
    rights = [metrics["cipo/aux/rows"] for metrics in lora_run.steps]
    for metrics, right in zip(lora_run.steps, rights, strict=True):
        assert (metrics["cipo/aux/loss"] > 0) == (right > 0)
    assert any(rights)


def test_the_commands_of_the_docs_add_the_adapters_to_the_weights(lora_run, task_folder, tmp_path):
    """They write the starting weights + alpha / r * B A of the checkpoint; verl's merger rounds all three to bf16."""
    page = (ROOT / "docs" / "launch.md").read_text().split("**LoRA.**")[1]
    commands = re.search(r"```bash\n(.*?)python -m verl_cipo.evaluate", page, re.DOTALL).group(1)
    actor, merged = lora_run.folder / "checkpoints" / "global_step_2" / "actor", tmp_path / "merged"
    environ = {**os.environ, "ACTOR": str(actor), "MERGED": str(merged), "PYTHONPATH": str(ROOT)}
    environ["PATH"] = f"{os.path.dirname(sys.executable)}:{environ['PATH']}"
    done = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    trained = lora_run.actor(2, "model")
    before = load_file(task_folder / "model" / "model.safetensors")
    after = load_file(merged / "model.safetensors")
    assert after.keys() == before.keys()
    along = length = 0.0
    for name, value in before.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.default.weight" not in trained:
            torch.testing.assert_close(after[name], value.bfloat16().float(), rtol=0, atol=0)
            continue
        a, b = (weight(trained[f"{module}.lora_{side}.default.weight"]).float() for side in "AB")
        wanted = 16 / 8 * b @ a
        along += float(((after[name] - value) * wanted).sum())
        length += float((wanted**2).sum())
    # The starting weights are rounded by more than training changed them, but up as often as down.
    assert along / length == pytest.approx(1, abs=0.1)
    assert (merged / "tokenizer.json").exists() and not (merged / "lora_adapter").exists()
