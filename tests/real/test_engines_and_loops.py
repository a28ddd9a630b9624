"""Agent loops with tools and with several outputs, a reference policy, LoRA: real runs of verl and vLLM.

One run has two kinds of prompts, told apart by the column ``agent_name``, and everything that adds a term to the loss;
a second one trains LoRA adapters. What a custom loop and a tool look like is in loops.py.
"""

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.real.conftest import run
from tests.real.test_real_run import actor_file, weight

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent
ROWS = 16
# Shows the tools, and what `enable_thinking` was set to.
CHAT_TEMPLATE = (
    "{%- if tools %}{%- for tool in tools %}{{- '<|im_start|>tool ' + tool.function.name + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '(no thought) ' }}{%- endif %}{%- endif %}"
)
TOOL = {
    "class_name": "loops.Lookup",
    "config": {"type": "native"},
    "tool_schema": {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    },
}


@pytest.fixture(scope="session")
def loops_run(task_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loops")
    (folder / "tools.yaml").write_text(yaml.safe_dump({"tools": [TOOL]}))
    (folder / "agents.yaml").write_text(yaml.safe_dump([{"name": "two_outputs", "_target_": "loops.TwoOutputs"}]))
    rows = pd.read_parquet(task_folder / "data" / "train.parquet").head(ROWS)
    rows["agent_name"] = ["tool_agent" if i % 2 == 0 else "two_outputs" for i in range(ROWS)]
    rows["extra_info"] = [
        {**info, "tools_kwargs": {"lookup": {"create_kwargs": {"word": f"word{info['index']}"}}}}
        for info in rows["extra_info"]
    ]
    rows.to_parquet(folder / "rows.parquet")
    rollout = "actor_rollout_ref.rollout"
    return run(
        task_folder,
        folder,
        "algorithm.adv_estimator=cipo",
        f"data.train_files={folder / 'rows.parquet'}",
        f"data.val_files={folder / 'rows.parquet'}",
        "data.val_max_samples=4",
        "data.max_response_length=128",
        "data.return_raw_chat=false",
        "+data.apply_chat_template_kwargs.enable_thinking=false",
        f'actor_rollout_ref.model.custom_chat_template="{CHAT_TEMPLATE}"',
        f"{rollout}.prompt_length=320",
        f"{rollout}.max_model_len=448",
        f"{rollout}.multi_turn.format=always",
        f"{rollout}.multi_turn.max_assistant_turns=2",
        f"{rollout}.multi_turn.tool_config_path={folder / 'tools.yaml'}",
        f"{rollout}.agent.agent_loop_config_path={folder / 'agents.yaml'}",
        # Everything that adds to the loss, in micro-batches of a fixed size.
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.kl_loss_coef=0.001",
        "actor_rollout_ref.actor.entropy_coeff=0.001",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_rs=token_k1",
        "algorithm.rollout_correction.rollout_rs_threshold='0.5_2.0'",
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=6",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=10",
        env={"PYTHONPATH": str(HERE)},
    )


@pytest.fixture(scope="session")
def lora_run(task_folder, tmp_path_factory):
    """LoRA adapters on the actor; the reference policy of the KL term is the actor without them."""
    folder = tmp_path_factory.mktemp("lora")
    return run(
        task_folder,
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


def sessions(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Rows by (uid of their group, session), the outputs of a session in order; verl's padding left out."""
    found = {}
    for row in sorted(rows, key=lambda row: row["uid"]):
        if not row["uid"].startswith("pad"):
            group, session, _index = row["uid"].rsplit("_", 2)
            found.setdefault((group, session), []).append(row)
    return found


def kinds(run, step: int) -> tuple[dict, dict]:
    """Sessions of the prompts with tools, and of those with two outputs."""
    both = sessions(run.rollouts(step))
    tools = {key: outputs for key, outputs in both.items() if "tool lookup" in outputs[0]["input"]}
    return tools, {key: outputs for key, outputs in both.items() if key not in tools}


def shown(row: dict) -> str:
    return row["input"].split("<attempt>\n")[1].split("\n</attempt>")[0]


@pytest.mark.parametrize("step", [1, 2])
def test_corrections_go_through_the_loop_of_their_prompt(loops_run, step):
    tools, two = kinds(loops_run, step)
    assert tools and two
    corrected = 0
    for kind, outputs in ((tools, 1), (two, 2)):
        assert {len(rows) for rows in kind.values()} == {outputs}
        groups = Counter(group for group, _ in kind)
        assert set(groups.values()) == {loops_run.task.n}
        corrections = [group for group in groups if "_c" in group]
        assert {group.split("_c")[0] for group in corrections} <= groups.keys(), "the loop of another prompt"
        corrected += len(corrections)
    metrics = loops_run.steps[step - 1]
    # The tiny model may say nothing, which is not worth correcting.
    skipped = sum(value for name, value in metrics.items() if name.startswith("cipo/anchors/skipped/"))
    assert corrected == loops_run.task.train_batch_size - skipped


@pytest.mark.parametrize("step", [1, 2])
def test_a_correction_has_the_tool_and_its_arguments(loops_run, step):
    """``tools_kwargs`` of the prompt reach the tool; what the tool said is part of the attempt that is shown."""
    tools, _ = kinds(loops_run, step)
    told = {}
    for (group, _), (row,) in tools.items():
        uid, mark, session = group.partition("_c")
        if mark:
            assert shown(row) == tools[uid, session][0]["output"].strip()
        # An answer of full length leaves no room for a tool.
        if word := re.search(r"\nfound (word\d+)\n", row["output"]):
            told.setdefault(uid, {}).setdefault(bool(mark), set()).add(word.group(1))
    words = [words for of_prompt in told.values() for words in of_prompt.values()]
    assert all(len(found) == 1 for found in words), "another prompt's word"
    assert any(len(of_prompt) == 2 for of_prompt in told.values()), "no tool was called in a correction"
    assert all(len(set.union(*of_prompt.values())) == 1 for of_prompt in told.values())


@pytest.mark.parametrize("step", [1, 2])
def test_the_last_output_of_a_session_is_what_is_shown(loops_run, step):
    _, two = kinds(loops_run, step)
    corrections = {key: rows for key, rows in two.items() if "_c" in key[0]}
    for (group, _), (first, second) in corrections.items():
        uid, session = group.split("_c")
        assert shown(first) == shown(second) == two[uid, session][1]["output"].strip()
        assert second["input"].rstrip().endswith("user\nOnce more.\nassistant\n(no thought)")
        assert f"assistant\n{first['output']}" in second["input"]
        assert first["score"] == second["score"], "verl scores the last output and gives both the score"


def test_chat_template_options_reach_every_prompt(loops_run):
    for step in (1, 2):
        for outputs in sessions(loops_run.rollouts(step)).values():
            assert all(row["input"].endswith("assistant\n(no thought) ") for row in outputs)


def test_rows_fill_micro_batches_of_three_sizes(loops_run):
    """4 in the update, 6 and 10 in the passes of actor and reference policy."""
    for step, metrics in enumerate(loops_run.steps, start=1):
        tools, two = kinds(loops_run, step)
        rows = len(tools) + 2 * len(two)
        assert metrics["cipo/rows/base"] + metrics["cipo/rows/correction"] == rows
        assert rows + metrics["cipo/rows/padding"] == len(loops_run.rollouts(step)) == 60
        assert metrics["cipo/corrections/failed_sessions"] == 0


def test_everything_that_adds_to_the_loss_is_there(loops_run):
    first, second = loops_run.steps
    # Before the first update the policy is its own reference.
    assert first["actor/kl_loss"] == pytest.approx(0, abs=1e-9)
    # A second step has something to be measured against only if the first one moved the policy; entropy alone does.
    assert second["actor/kl_loss"] > 1e-9
    for metrics in loops_run.steps:
        assert metrics["actor/entropy_loss"] > 0
        assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(1.0, abs=0.01)
        assert metrics["rollout_corr/rollout_rs_masked_fraction"] == 0
    log = (loops_run.folder / "train.log").read_text(errors="replace")
    assert "dtype mismatch" not in log, "log-probabilities of the reference policy in another precision"


def test_lora_trains_the_adapters_alone(lora_run):
    trained = actor_file(lora_run, 2, "model")
    before = load_file(lora_run.task.folder / "model" / "model.safetensors")
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
