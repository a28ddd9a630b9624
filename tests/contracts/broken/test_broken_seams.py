"""Contracts that are broken on purpose, in a copy of verl: exactly the right ones fail, and say what changed.

A break is an edit of the copy that leaves verl itself working, as a renaming in a new version would. Several that have
nothing to do with one another share a copy, since importing verl is what takes the time.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.nightly

CONTRACTS = ROOT / "tests" / "contracts"
V1 = "trainer/ppo/v1"
# They start an interpreter of their own each.
LEFT_OUT = ("test_main_ppo_composes_a_config_of_another_package", "test_importing_verl_imports_the_plugins")


@dataclass(frozen=True)
class Break:
    """One edit of verl."""

    edits: dict[str, tuple[str, str]]
    """File below verl -> a regular expression, and what takes its place wherever it is found."""
    fails: tuple[str, ...]
    """The contracts that must fail, as file::test without "test_" and ".py"; [...] stands for all parameters."""
    says: str
    """Must be in the message of each."""
    needs: str
    """The file of ours that each message must name."""


BATCHES = {
    "trainer": [
        Break(
            {f"{V1}/trainer_base.py": (r"\b_balance_batch\b", "_balance_rows")},
            (
                "trainer::an_overridden_method_keeps_its_parameters[_balance_batch]",
                "trainer::an_update_balances_then_scores_then_computes_advantages_then_trains",
                "update::balancing_pads_to_the_multiple_with_rows_tagged_as_padding",
            ),
            "_balance",
            "verl_cipo/integration/train/trainer.py",
        ),
        Break(
            {
                f"{V1}/replay_buffer.py": (
                    r'uid = key\.split\("_"\)\[0\](?=\n +if uid in selected)',
                    'uid = key.rsplit("_", 2)[0]',
                )
            },
            (
                "data_plane::a_prompts_rows_are_those_whose_key_begins_with_its_uid",
                "data_plane::a_prompt_is_sampled_once_its_status_is_terminal",
            ),
            "ReplayBuffer",
            "verl_cipo/integration/rollout/worker.py",
        ),
        Break(
            {"workers/engine_workers.py": (r"\bset_loss_fn\b", "set_loss")},
            ("loss::the_loss_of_the_workers_can_be_set_from_the_trainer[...]",),
            "set_loss_fn",
            "verl_cipo/integration/train/loss.py",
        ),
        Break(
            {
                "experimental/reward_loop/reward_manager/naive.py": (
                    r'reward_extra_info\["acc"\]',
                    'reward_extra_info["ok"]',
                )
            },
            ("rewards::a_bare_score_is_filed_as_acc_without_a_score_beside_it",),
            "NaiveRewardManager",
            "verl_cipo/core/verdict.py",
        ),
        Break(
            {
                "utils/distributed.py": (
                    r"timeout_second=None, backend=None",
                    "timeout_second=None, backends=None, backend=None",
                )
            },
            ("platform::the_process_group_takes_a_backend_and_its_caller_gives_none",),
            "initialize_global_process_group_ray",
            "verl_cipo/integration/cpu/platform.py",
        ),
        Break(
            {"utils/tracking.py": (r'\{"step": step, "data": data\}', '{"step": step, "metrics": data}')},
            ("dumps::a_line_of_the_file_logger",),
            "FileLogger",
            "verl_cipo/integration/cpu/launch.py",
        ),
        Break(
            {
                f"{V1}/agent_loop_tq.py": (r"\bagent_loop_workers_class\b", "workers_class"),
                "experimental/agent_loop/agent_loop.py": (r"\bagent_loop_workers_class\b", "workers_class"),
            },
            (
                "agent_loop::the_manager_makes_its_workers_of_the_class_it_was_given",
                "legacy::the_manager_keeps_the_workers_class_that_is_set_before_its_constructor",
            ),
            "AgentLoopManager",
            "verl_cipo/integration/",
        ),
        Break(
            {"trainer/ppo/core_algos.py": (r"\bregister_adv_est\b", "register_estimator")},
            ("plugin::an_estimator_can_be_registered_by_name_and_twice",),
            "register_adv_est",
            "verl_cipo/integration/train/estimator.py",
        ),
    ],
    "worker": [
        Break(
            {f"{V1}/agent_loop_tq.py": (r'f"\{uid\}_\{session_id\}_\{i\}"', 'f"{uid}-{session_id}-{i}"')},
            (
                "agent_loop::a_rows_key_is_uid_session_and_output",
                "agent_loop::a_row_holds_the_fields_that_cipo_reads",
                "agent_loop::a_rows_tags_are_its_lengths_and_its_staleness",
            ),
            "AgentLoopWorkerTQ._agent_loop_postprocess",
            "verl_cipo/integration/",
        ),
        Break(
            {"experimental/agent_loop/agent_loop.py": (r"final_output\.reward_score is None and ", "")},
            ("rewards::only_an_output_without_a_reward_is_scored[0.25-0]",),
            "_compute_score",
            "verl_cipo/integration/rollout/verify.py",
        ),
        Break(
            {
                "experimental/agent_loop/agent_loop.py": (
                    r'multi_modal_data\["images"\] = images',
                    'multi_modal_data["pictures"] = images',
                )
            },
            ("agent_loop::an_agent_loop_loads_media_by_its_data_set_its_processor_and_its_options",),
            "process_multi_modal_info",
            "verl_cipo/integration/rendering.py",
        ),
        Break(
            {
                "utils/config.py": (r"\buse_critic\b", "with_critic"),
                "trainer/main_ppo.py": (r"\buse_critic\b", "with_critic"),
            },
            ("plugin::validate_config_takes_the_whole_config",),
            "validate_config",
            "verl_cipo/integration/switch.py",
        ),
        Break(
            {
                "trainer/config/algorithm.py": (r"\bnorm_adv_by_std_in_grpo\b", "norm_adv_by_std"),
                "trainer/config/ppo_trainer.yaml": (r"\bnorm_adv_by_std_in_grpo\b", "norm_adv_by_std"),
            },
            ("config::a_key_that_is_read_is_in_verls_default_config[verl_cipo/integration/train/estimator.py]",),
            "norm_adv_by_std_in_grpo",
            "verl_cipo/integration/train/estimator.py",
        ),
        Break(
            {
                "trainer/ppo/core_algos.py": (
                    r"id2score\[index\[i\]\]\.append\(scores\[i\]\)",
                    "if response_mask[i].any(): id2score[index[i]].append(scores[i])",
                )
            },
            ("update::a_row_that_rollout_correction_rejects_counts_in_its_groups_mean",),
            "rejected rows",
            "verl_cipo/core/advantage.py",
        ),
        Break(
            {f"{V1}/trainer_base.py": (r'"latest_checkpointed_iteration\.txt"', '"latest.txt"')},
            ("checkpoint::the_checkpoint_is_named_as_the_newest_after_all_of_it_is_written",),
            "_save_checkpoint",
            "verl_cipo/integration/train/checkpoint.py",
        ),
        Break(
            {f"{V1}/trainer_base.py": (r'"gts": gts', '"ground_truth": gts')},
            ("dumps::a_line_of_a_rollout_dump", "dumps::a_verifiers_fields_are_columns_of_the_dump"),
            "_write_generations",
            "verl_cipo/evaluation/dumps/rows.py",
        ),
        Break(
            {
                f"{V1}/trainer_base.py": (
                    r"_get_required_batch_multiple\(self, dp_size: int\) -> int:",
                    "_get_required_batch_multiple(self, ranks: int, dp_size: int = 1) -> int:",
                )
            },
            (
                "trainer::an_overridden_method_keeps_its_parameters[_get_required_batch_multiple]",
                "update::verl_pads_to_whole_mini_batches",
            ),
            "_get_required_batch_multiple",
            "verl_cipo/integration/",
        ),
    ],
}


@pytest.fixture
def copy(tmp_path) -> Path:
    """The installed verl, which may be edited."""
    import verl

    shutil.copytree(Path(verl.__file__).parent, tmp_path / "copy" / "verl")
    return tmp_path / "copy"


def edit(folder: Path, file: str, pattern: str, replacement: str) -> None:
    path = folder / "verl" / file
    text, count = re.subn(pattern, lambda _: replacement, path.read_text())
    assert count, f"verl's {file} has no {pattern}: this break must be written anew"
    path.write_text(text)


def failures(folder: Path) -> dict[str, str]:
    """The failing contracts with the verl of ``folder``, with their messages."""
    report = folder.parent / "report.xml"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))),
        "CONTRACTS_VERL_FOLDER": str(folder),
    }
    files = sorted(CONTRACTS.glob("test_*.py"))
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
        *("-k", " and ".join(f"not {name}" for name in LEFT_OUT)),
        *map(str, files),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, f"no contract failed, or none could run:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            for problem in case.iter(kind):
                file = case.get("classname", "").rpartition(".test_")[2]
                found[f"{file}::{case.get('name', '').removeprefix('test_')}"] = problem.get("message", "")
    return found


def meant(name: str, failed: str) -> bool:
    """Whether ``failed`` is the contract ``name``, or with [...] one of its parameters."""
    return failed == name or (name.endswith("[...]") and failed.startswith(name.removesuffix("...]")))


@pytest.mark.parametrize("batch", BATCHES)
def test_a_broken_seam_fails_exactly_its_contracts(copy, batch):
    for broken in BATCHES[batch]:
        for file, (pattern, replacement) in broken.edits.items():
            edit(copy, file, pattern, replacement)
    found = failures(copy)
    wanted = [name for broken in BATCHES[batch] for name in broken.fails]
    assert not (missing := [name for name in wanted if not any(meant(name, failed) for failed in found)]), (
        f"these contracts did not notice: {missing}"
    )
    extra = {failed: text for failed, text in found.items() if not any(meant(name, failed) for name in wanted)}
    assert not extra, f"these contracts are about something else and failed: {extra}"
    for broken in BATCHES[batch]:
        for failed, text in found.items():
            if any(meant(name, failed) for name in broken.fails):
                assert broken.says in text and broken.needs in text, f"{failed} says: {text}"
