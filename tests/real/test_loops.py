"""Agent loops with tools and with several outputs, a reference policy, a flaky verifier: a real run of verl and vLLM.

It has two kinds of prompts, told apart by the column ``agent_name``, and everything that adds a term to the loss. A
custom loop and a tool are in loops.py.
"""

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.real.conftest import PROMPTS, N, cpu_options, streams
from verl_cipo.core.prompts.correction import TAIL_MARK

pytestmark = pytest.mark.real

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


def prepared(folder: Path, task_folder: Path, agents: list[str]) -> tuple[str, ...]:
    """Options of a run with the tool, whose data are in ``folder``: row i goes through ``agents[i % len(agents)]``."""
    (folder / "tools.yaml").write_text(yaml.safe_dump({"tools": [TOOL]}))
    (folder / "agents.yaml").write_text(yaml.safe_dump([{"name": "two_outputs", "_target_": "loops.TwoOutputs"}]))
    rows = pd.read_parquet(task_folder / "data" / "train.parquet").head(ROWS)
    rows["agent_name"] = [agents[i % len(agents)] for i in range(ROWS)]
    rows["extra_info"] = [
        {
            **info,
            "tools_kwargs": {"lookup": {"create_kwargs": {"word": f"word{info['index']}"}}},
            "hints": ["A", "B"],
        }
        for info in rows["extra_info"]
    ]
    rows.to_parquet(folder / "rows.parquet")
    rollout = "actor_rollout_ref.rollout"
    return (
        "algorithm.adv_estimator=cipo",
        f"data.train_files={folder / 'rows.parquet'}",
        f"data.val_files={folder / 'rows.parquet'}",
        "data.val_max_samples=4",
        "data.max_response_length=128",
        "+data.apply_chat_template_kwargs.enable_thinking=false",
        f'actor_rollout_ref.model.custom_chat_template="{CHAT_TEMPLATE}"',
        f"{rollout}.prompt_length=320",
        f"{rollout}.max_model_len=448",
        f"{rollout}.multi_turn.format=always",
        f"{rollout}.multi_turn.max_assistant_turns=2",
        f"{rollout}.multi_turn.tool_config_path={folder / 'tools.yaml'}",
        f"{rollout}.agent.agent_loop_config_path={folder / 'agents.yaml'}",
    )


@pytest.fixture(scope="session")
def loops_run(run, task_folder, tmp_path_factory):
    """verl's own entry point and verl's own config; algorithm.adv_estimator=cipo is all that asks for CIPO."""
    folder = tmp_path_factory.mktemp("loops")
    rollout = "actor_rollout_ref.rollout"
    return run(
        folder,
        *cpu_options(),
        *prepared(folder, task_folder, ["tool_agent", "two_outputs"]),
        "data.return_raw_chat=false",
        f"+{rollout}.agent.agent_loop_manager_class=loops.OwnManager",
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
        f"reward.custom_reward_function.path={HERE / 'flaky_reward.py'}",
        config_args=(),
    )


@pytest.fixture(scope="session")
def rendered_run(run, task_folder, tmp_path_factory):
    """What the driver renders: prompts of pairs, and the plain ones of corrections of the step before and of attempts,
    which all have a context."""
    folder = tmp_path_factory.mktemp("rendered")
    return run(
        folder,
        *prepared(folder, task_folder, ["tool_agent"]),
        "trainer.v1.trainer_mode=colocate_async",
        "trainer.total_training_steps=4",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        # Seeds: so that of so few prompts some are right.
        "actor_rollout_ref.rollout.full_determinism=true",
        "+algorithm.cipo.source=both",
        "+algorithm.cipo.aux.coef=0.1",
        "+algorithm.cipo.transfer.kind=regress",
        "+algorithm.cipo.transfer.below=1",
        "+algorithm.cipo.nudge.contexts=hints",
        "+algorithm.cipo.nudge.template='{question} [hint {context}]'",
        "+algorithm.cipo.nudge.plain_share=0",
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


def test_a_manager_of_ones_own_dispatches_to_workers_of_its_own(loops_run):
    assert "OwnManager: " in loops_run.log
    rolled_out = set(re.findall(r"OwnWorker: prompt (\S+)", loops_run.log))
    groups = {group for step in (1, 2) for group, _ in sessions(loops_run.rollouts(step))}
    assert {group for group in groups if "_c" not in group} <= rolled_out


@pytest.mark.parametrize("step", [1, 2])
def test_corrections_go_through_the_loop_of_their_prompt(loops_run, step):
    tools, two = kinds(loops_run, step)
    assert tools and two
    corrected = 0
    for kind, outputs in ((tools, 1), (two, 2)):
        assert {len(rows) for rows in kind.values()} == {outputs}
        groups = Counter(group for group, _ in kind)
        assert set(groups.values()) == {N}
        corrections = [group for group in groups if "_c" in group]
        assert {group.split("_c")[0] for group in corrections} <= groups.keys(), "the loop of another prompt"
        corrected += len(corrections)
    # The tiny model may say nothing: such an attempt is left out before the draw, and another takes its place.
    assert corrected == loops_run.steps[step - 1]["cipo/anchors/total"] == PROMPTS


def is_shown(correction: dict, attempt: dict) -> bool:
    """Whether the attempt is shown: whole, or its end, since broken characters make a text of more tokens."""
    said, seen = attempt["output"].strip(), shown(correction)
    if seen.startswith(TAIL_MARK):
        return len(seen) > len(said) // 2 and said.endswith(seen.removeprefix(TAIL_MARK).strip()[1:])
    return seen == said


def test_a_correction_has_the_tool_and_its_arguments(loops_run):
    """``tools_kwargs`` of the prompt reach the tool; what the tool said is part of the attempt that is shown."""
    told = {}
    for step in (1, 2):
        tools, _ = kinds(loops_run, step)
        for (group, _), (row,) in tools.items():
            uid, mark, session = group.partition("_c")
            if mark:
                assert is_shown(row, tools[uid, session][0])
            # An answer of full length leaves no room for a tool.
            if word := re.search(r"\nfound (word\d+)\n", row["output"]):
                told.setdefault((step, uid), {}).setdefault(bool(mark), set()).add(word.group(1))
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
        assert shown(first) == shown(second) and is_shown(first, two[uid, session][1])
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
    assert "dtype mismatch" not in loops_run.log, "log-probabilities of the reference policy in another precision"


def test_a_verifier_that_is_away_now_and_then_costs_nothing(loops_run):
    for metrics in loops_run.steps:
        assert metrics["cipo/verifier/errors"] > 0
        assert metrics["cipo/verifier/given_up"] == metrics["cipo/corrections/failed_sessions"] == 0


@pytest.mark.nightly
def test_what_the_driver_renders_offers_the_tools(rendered_run):
    """And everything else that a prompt of the rollout has."""
    seen = Counter()
    for step, metrics in enumerate(rendered_run.steps, start=1):
        base, corrections, made = streams(rendered_run.rollouts(step))
        assert all("[hint " in row["input"] for rows in base.values() for row in rows)
        plain = {re.sub(r" \[hint [AB]\]", "", row["input"]) for rows in base.values() for row in rows}
        corrected = {row["input"] for rows in corrections.values() for row in rows}
        for group, rows in made.items():
            kind = re.search(r"_([cnp])\d+[arq]?\Z", group)[1]
            for row in rows:
                assert row["input"].startswith("tool lookup\n") and row["input"].endswith("assistant\n(no thought) ")
                assert "[hint " not in row["input"]
                if kind == "n":
                    assert row["input"] in plain
                else:
                    # A transferred correction answers the plain question, of another step.
                    assert ("<attempt>" in row["input"]) == (kind == "p")
                seen[kind] += 1
        assert all(text.startswith("tool lookup\n") for text in corrected)
        for name in ("aux", "transfer", "nudge"):
            assert metrics[f"cipo/{name}/skipped/unknown_tools"] == 0
    assert set(seen) == {"c", "n", "p"}, seen
