"""Every launch script, in every mode, with either engine, for CIPO and both baselines: composed, validated, compared.

Not covered: anything that needs the models, the data sets or a GPU.
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from verl_cipo.integration import dry_run

EXAMPLES = ROOT / "examples"
COMMON = EXAMPLES / "common" / "launch.sh"
SCRIPTS = {path.stem: path for path in sorted(EXAMPLES.glob("run_*.sh"))}
MATH, CODE = "run_qwen3_4b_math_fsdp", "run_seed_coder_8b_code_fsdp"
MEGATRON, SMALL = "run_qwen3_30b_a3b_math_megatron", "run_qwen2_5_0_5b_gsm8k_fsdp"

PROMPTS = {MATH: 128, CODE: 128, MEGATRON: 128, SMALL: 64}
GPUS = {MATH: 8, CODE: 8, MEGATRON: 32, SMALL: 1}
GPUS_APART = {MATH: (4, 4), CODE: (4, 4), MEGATRON: (16, 16), SMALL: (1, 1)}
ALGOS = {"cipo": ("cipo", "own"), "grpo": ("grpo", "own"), "grpo equal": ("grpo", "equal")}
ROLLOUTS_OF_A_PROMPT = {"cipo": 8 + 8, "grpo": 8, "grpo equal": 16}
TRAINERS = {
    "cipo": {
        "sync": "CIPOTrainerSync",
        "colocate_async": "CIPOTrainerColocateAsync",
        "separate_async": "CIPOTrainerSeparateAsync",
    },
    "grpo": {
        "sync": "PPOTrainerSync",
        "colocate_async": "PPOTrainerColocateAsync",
        "separate_async": "PPOTrainerSeparateAsync",
    },
}


def start(script: str, *options: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script as a user would, away from the repository, with nothing set but ``variables``."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/home/user", "PYTHON": sys.executable} | variables
    return subprocess.run(
        ["bash", SCRIPTS[script], *options], capture_output=True, text=True, env=environment, cwd="/", timeout=300
    )


def arguments(script: str, *options: str, **variables: str) -> list[str]:
    result = start(script, *options, DRY_RUN="args", **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def overrides(script: str, *options: str, **variables: str) -> dict[str, str]:
    """Key -> value; of a key given twice the last one."""
    return dict(line.split("=", 1) for line in arguments(script, *options, **variables)[4:])


def composed(script: str, *options: str, **variables: str):
    path_flag, path, name_flag, name, *rest = arguments(script, *options, **variables)
    assert (path_flag, path, name_flag) == ("--config-path", "pkg://verl_cipo.config", "--config-name")
    return dry_run.compose_config(path, name, rest)


def test_the_scripts_are_the_ones_that_are_looked_at():
    assert set(SCRIPTS) == set(PROMPTS)
    assert all(os.access(path, os.X_OK) for path in SCRIPTS.values())


def combinations():
    """By day every script in every mode, and every engine and algorithm with one of them."""
    modes, engines = ("sync", "colocate_async", "separate_async"), ("vllm", "sglang")
    for script, mode, engine, algo in itertools.product(SCRIPTS, modes, engines, ALGOS):
        by_day = (engine, algo) == ("vllm", "cipo") or (script, mode) == (MATH, "separate_async")
        yield pytest.param(script, mode, engine, algo, marks=() if by_day else pytest.mark.nightly)


@pytest.mark.parametrize(("script", "mode", "rollout", "algo"), combinations())
def test_every_script_in_every_mode(script, mode, rollout, algo):
    estimator, rollouts = ALGOS[algo]
    config = composed(script, ALGO=estimator, ROLLOUTS=rollouts, MODE=mode, ROLLOUT=rollout)
    if estimator == "cipo":
        assert config.algorithm.cipo.schedule == ("streaming" if mode == "sync" else "replay")
    plan = dry_run.check(config)
    train_gpus, rollout_gpus = GPUS_APART[script] if mode == "separate_async" else (GPUS[script], 0)
    assert plan == dry_run.Plan(
        estimator=estimator,
        trainer=TRAINERS[estimator][mode],
        rollout_engine=rollout,
        prompts=PROMPTS[script],
        rollouts=PROMPTS[script] * ROLLOUTS_OF_A_PROMPT[algo],
        optimizer_steps=2,
        train_gpus=train_gpus,
        rollout_gpus=rollout_gpus,
        unchecked=plan.unchecked,
    )
    assert config.actor_rollout_ref.actor.strategy == ("megatron" if script == MEGATRON else "fsdp2")


@pytest.mark.parametrize("script", [MATH, CODE])
def test_settings_that_are_known_of_the_paper(script):
    """The training defaults of the reimplementation that docs/method.md names."""
    config = composed(script)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (actor.optim.lr, actor.use_kl_loss, actor.kl_loss_coef) == (1e-6, True, 1e-4)
    assert (actor.clip_ratio, actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.2, 0.2)
    assert (rollout.n, rollout.temperature, rollout.response_length) == (8, 1.0, 4096)
    assert config.trainer.total_training_steps == 500
    assert config.algorithm.cipo.replay_fraction == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_correction_prompt_has_room_for_question_and_attempt(script):
    config = composed(script)
    room = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.rollout.prompt_length == room + 256
    assert config.data.truncation == "error"
    if script == CODE:
        assert config.algorithm.cipo.prompt.template == "code"
        assert config.reward.custom_reward_function.path == "pkg://verl_cipo.rewards.code"
    else:
        assert config.algorithm.cipo.prompt.template == "math"
        assert config.reward.custom_reward_function.path == "pkg://verl_cipo.rewards.math"


ACTOR, ROLLOUT, LAYOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.actor.megatron"
# Variable -> a value that is no script's default, and the settings that have to hold it.
SET_AS_GIVEN = {
    "EXPERIMENT": ("mine", ["trainer.experiment_name"]),
    "LOGGER": ("[wandb]", ["trainer.logger"]),
    "NNODES": ("3", ["trainer.nnodes"]),
    "GPUS_PER_NODE": ("5", ["trainer.n_gpus_per_node"]),
    "STEPS": ("9", ["trainer.total_training_steps"]),
    "LEARNING_RATE": ("3e-6", [f"{ACTOR}.optim.lr"]),
    "KL_COEF": ("0.5", [f"{ACTOR}.kl_loss_coef"]),
    "CLIP_RATIO": ("0.3", [f"{ACTOR}.clip_ratio", f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high"]),
    "TEMPERATURE": ("0.7", [f"{ROLLOUT}.temperature", f"{ROLLOUT}.val_kwargs.temperature"]),
    "GROUP_SIZE": ("5", [f"{ROLLOUT}.n"]),
    "REPLAY_FRACTION": ("0.5", ["algorithm.cipo.replay_fraction"]),
    "SCHEDULE": ("barrier", ["algorithm.cipo.schedule"]),
    "TRAIN_BATCH_SIZE": ("48", ["data.train_batch_size"]),
    "MINI_BATCH_SIZE": ("16", [f"{ACTOR}.ppo_mini_batch_size"]),
    "VAL_N": ("7", [f"{ROLLOUT}.val_kwargs.n"]),
    "MAX_PROMPT_LENGTH": ("99", ["data.max_prompt_length"]),
    "MAX_RESPONSE_LENGTH": ("99", ["data.max_response_length"]),
    "CORRECTION_PROMPT_LENGTH": ("999", [f"{ROLLOUT}.prompt_length"]),
    "MAX_TOKENS_PER_GPU": ("77777", [f"{ACTOR}.ppo_max_token_len_per_gpu"]),
    "ROLLOUT_TP": ("3", [f"{ROLLOUT}.tensor_model_parallel_size"]),
    "ROLLOUT_MEMORY": ("0.1", [f"{ROLLOUT}.gpu_memory_utilization"]),
    "THINKING": ("True", ["+data.apply_chat_template_kwargs.enable_thinking"]),
    "TENSOR_PARALLEL": ("3", [f"{LAYOUT}.tensor_model_parallel_size"]),
    "PIPELINE_PARALLEL": ("3", [f"{LAYOUT}.pipeline_model_parallel_size"]),
    "CONTEXT_PARALLEL": ("3", [f"{LAYOUT}.context_parallel_size"]),
    "EXPERT_PARALLEL": ("3", [f"{LAYOUT}.expert_model_parallel_size"]),
    "EXPERT_TENSOR_PARALLEL": ("3", [f"{LAYOUT}.expert_tensor_parallel_size"]),
}
# Variable -> as it is given, and the settings that it makes.
SET_AS_MADE = {
    "MODEL_PATH": ({"MODEL_PATH": "/m"}, {"actor_rollout_ref.model.path": "'/m'"}),
    "VAL_SETS": ({"VAL_SETS": "x"}, {"data.val_files": "['/home/user/data/x/test.parquet']"}),
    "TRAIN_FILES": ({"TRAIN_FILES": "/a"}, {"data.train_files": "['/a']"}),
    "VAL_FILES": ({"VAL_FILES": "/b"}, {"data.val_files": "['/b']"}),
    "OUTPUT_DIR": ({"OUTPUT_DIR": "/o"}, {"trainer.validation_data_dir": "'/o/validation'"}),
    "ROLLOUT_NNODES": (
        {"MODE": "separate_async", "NNODES": "4", "ROLLOUT_NNODES": "3"},
        {"trainer.nnodes": "1", f"{ROLLOUT}.nnodes": "3"},
    ),
    "ROLLOUT_GPUS_PER_NODE": (
        {"MODE": "separate_async", "NNODES": "1", "GPUS_PER_NODE": "8", "ROLLOUT_GPUS_PER_NODE": "3"},
        {"trainer.n_gpus_per_node": "5", f"{ROLLOUT}.n_gpus_per_node": "3"},
    ),
}
# Set by other tests.
ELSEWHERE = {"ALGO", "ROLLOUTS", "MODE", "ROLLOUT", "DRY_RUN", "PYTHON", "CONFIG_NAME", "DATA_DIR", "OFFLOAD"}


def assigned(path: Path) -> set[str]:
    """Variables that a script takes from its environment."""
    return set(re.findall(r"^ *([A-Z_]+)=\$\{\1:-", path.read_text(), re.MULTILINE))


def taken() -> list[tuple[str, str]]:
    return [(script, name) for script, path in SCRIPTS.items() for name in sorted(assigned(COMMON) | assigned(path))]


@pytest.mark.parametrize(("script", "name"), [pair for pair in taken() if pair[1] not in ELSEWHERE])
def test_every_variable_of_every_script_arrives(script, name):
    if name in SET_AS_GIVEN:
        value, keys = SET_AS_GIVEN[name]
        variables, settings = {name: value}, dict.fromkeys(keys, value)
    else:
        variables, settings = SET_AS_MADE[name]
    found = overrides(script, **variables)
    assert {key: found[key] for key in settings} == settings


@pytest.mark.parametrize("script", [SMALL, MEGATRON])
def test_offload_moves_the_actors_weights_and_optimizer(script):
    found = overrides(script, OFFLOAD="False")
    assert [value for key, value in found.items() if key.startswith(ACTOR) and "_offload" in key] == ["False", "False"]


def test_asynchronous_runs_take_the_schedule_too():
    assert overrides(MATH, MODE="colocate_async", SCHEDULE="barrier")["algorithm.cipo.schedule"] == "barrier"


def test_the_config_may_be_another_one():
    assert arguments(MATH, CONFIG_NAME="mine")[2:4] == ["--config-name", "mine"]


NAMES = {
    "trainer.experiment_name",
    "trainer.default_local_dir",
    "trainer.validation_data_dir",
    "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH",
}


def differences(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - NAMES


@pytest.mark.parametrize("mode", ["sync", "separate_async"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_baselines_differ_in_nothing_else(script, mode):
    cipo = overrides(script, MODE=mode)
    grpo = overrides(script, MODE=mode, ALGO="grpo")
    equal = overrides(script, MODE=mode, ALGO="grpo", ROLLOUTS="equal")
    assert differences(cipo, grpo) == {
        "algorithm.adv_estimator",
        "algorithm.cipo.replay_fraction",
        "algorithm.cipo.schedule",
        "algorithm.cipo.prompt.template",
        "actor_rollout_ref.rollout.prompt_length",
        "actor_rollout_ref.rollout.max_model_len",
    }
    assert differences(grpo, equal) == {"actor_rollout_ref.rollout.n"}
    folders = {run["trainer.default_local_dir"] for run in (cipo, grpo, equal)}
    assert len(folders) == 3


def test_equal_rollouts_follow_group_size_and_replay_fraction():
    variables = {"GROUP_SIZE": "4", "REPLAY_FRACTION": "0.5"}
    cipo = dry_run.check(composed(MATH, **variables))
    control = dry_run.check(composed(MATH, ALGO="grpo", ROLLOUTS="equal", **variables))
    assert cipo.rollouts == control.rollouts == 128 * 4 + 64 * 4


def test_options_of_the_command_line_have_the_last_word():
    config = composed(MATH, "algorithm.cipo.lambda_corr=0.5", "trainer.total_training_steps=7", STEPS="9")
    assert (config.algorithm.cipo.lambda_corr, config.trainer.total_training_steps) == (0.5, 7)


def test_paths_with_spaces_arrive_whole():
    config = composed(SMALL, OUTPUT_DIR="/a b/c=d,e", MODEL_PATH="/models/q 0.5=x")
    assert config.trainer.default_local_dir == "/a b/c=d,e/checkpoints"
    assert config.actor_rollout_ref.model.path == "/models/q 0.5=x"
    variable = config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH
    assert re.fullmatch(r"/a b/c=d,e/metrics_\d{8}T\d{6}\.jsonl", variable)


def test_a_relative_output_folder_is_made_absolute():
    # Scripts are started in /.
    assert overrides(SMALL, OUTPUT_DIR="runs/1")["trainer.default_local_dir"] == "'//runs/1/checkpoints'"


def test_several_data_files():
    config = composed(MATH, TRAIN_FILES="/d/a=1.parquet s3://b/c.parquet", VAL_SETS="aime24 math500", DATA_DIR="/d")
    assert config.data.train_files == ["/d/a=1.parquet", "s3://b/c.parquet"]
    assert config.data.val_files == ["/d/aime24/test.parquet", "/d/math500/test.parquet"]


def test_separate_rollout_on_several_nodes_gets_whole_nodes():
    config = composed(MEGATRON, MODE="separate_async", NNODES="3")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (2, 8)
    assert (config.actor_rollout_ref.rollout.nnodes, config.actor_rollout_ref.rollout.n_gpus_per_node) == (1, 8)


REFUSED = [
    ({"ALGO": "ppo"}, "ALGO=ppo: use one of cipo grpo"),
    ({"ROLLOUTS": "twice"}, "ROLLOUTS=twice: use one of own equal"),
    ({"MODE": "async"}, "MODE=async: use one of sync colocate_async separate_async"),
    ({"ROLLOUT": "hf"}, "ROLLOUT=hf: use one of vllm sglang"),
    ({"DRY_RUN": "yes"}, "DRY_RUN=yes: use one of 0 1 args"),
    ({"DATA_DIR": "/a b"}, "DATA_DIR=/a b: use a folder without white space"),
    ({"NNODES": "0"}, "NNODES=0: use an integer above 0"),
    ({"ROLLOUTS": "equal"}, "use it with ALGO=grpo"),
    (
        {"ALGO": "grpo", "ROLLOUTS": "equal", "REPLAY_FRACTION": "0.3"},
        "GROUP_SIZE=8 with REPLAY_FRACTION=0.3 makes 10.4 rollouts",
    ),
    ({"MODE": "separate_async", "GPUS_PER_NODE": "1"}, "NNODES=1 x GPUS_PER_NODE=1"),
    ({"MODE": "separate_async", "MINI_BATCH_SIZE": "48"}, "must be a multiple of MINI_BATCH_SIZE=48"),
]


@pytest.mark.parametrize(("variables", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_wrong_variables_end_in_one_line(variables, words):
    result = start(MATH, **variables)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{MATH}.sh: ") and words in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_data_is_named_with_the_commands_that_make_it(script, tmp_path):
    result = start(script, DATA_DIR=str(tmp_path), PYTHON="false")
    assert result.returncode == 1
    first, _, *commands = result.stderr.splitlines()
    train, *val = overrides(script, DATA_DIR=str(tmp_path))["data.train_files"].strip("[]").split(",")
    assert not val and train.strip("'") in first
    named = re.findall(r"data_prep/(\w+)\.py", "\n".join(commands))
    assert named and all((ROOT / "data_prep" / f"{name}.py").exists() for name in named)
    assert f"--local_save_dir {tmp_path}/" in commands[-1]
    sets = re.search(r"for set in ([\w ]+);", commands[0])
    for name in sets.group(1).split() if sets else []:
        assert (ROOT / "data_prep" / f"{name}.py").exists()
        assert f"{tmp_path}/{name}/test.parquet" in first


def test_the_real_run_starts_verl_with_the_same_arguments(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").touch()
    variables = {
        "TRAIN_FILES": str(tmp_path / "train.parquet"),
        # Not on this machine's file system, so not looked for.
        "VAL_FILES": f"{tmp_path / 'test.parquet'} hdfs://cluster/test.parquet",
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    result = start(SMALL, "a=b", PYTHON="echo", **variables)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run").is_dir()

    def without_time(text: str) -> str:
        return re.sub(r"metrics_\w+", "metrics", text)

    expected = " ".join(["-m", "verl.trainer.main_ppo", *arguments(SMALL, "a=b", **variables)])
    assert without_time(result.stdout.strip()) == without_time(expected)


def test_dry_run_prints_the_config_and_the_plan():
    result = start(MATH, "algorithm.cipo.seed=5", DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["algorithm"]["cipo"]["seed"] == 5
    accepted, step, unchecked = result.stderr.splitlines()[-3:]
    assert accepted == "dry run: accepted, cipo by CIPOTrainerSync, rollout by vllm"
    assert step == ("a step: 128 prompts, 2048 rollouts, 2 optimizer steps; training on 8 GPUs, rollout on the same")
    assert "data files" in unchecked


@pytest.mark.nightly
def test_dry_run_fails_where_the_run_would():
    result = start(MATH, DRY_RUN="1", MAX_TOKENS_PER_GPU="9471")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "actor.ppo_max_token_len_per_gpu=9471 is less than the longest sequence" in result.stderr


def test_every_variable_is_documented():
    page = (ROOT / "docs" / "launch.md").read_text()
    known = set().union(*(assigned(path) for path in [COMMON, *SCRIPTS.values()]))
    assert len(known) > 30
    documented = {
        name for row in page.splitlines() if row.startswith("| `") for name in re.findall(r"`([A-Z_]+)`", row)
    }
    assert known == documented
