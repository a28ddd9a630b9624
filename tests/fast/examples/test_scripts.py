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

from tests.conftest import ROOT
from verl_cipo.integration import dry_run

EXAMPLES = ROOT / "examples"
COMMON, RECIPES = EXAMPLES / "common" / "launch.sh", EXAMPLES / "common" / "recipes.sh"
SCRIPTS = {path.stem: path for path in sorted(EXAMPLES.glob("run_*.sh"))}
MATH, CODE = "run_qwen3_4b_math_fsdp", "run_seed_coder_8b_code_fsdp"
MEGATRON, SMALL = "run_qwen3_30b_a3b_math_megatron", "run_qwen2_5_0_5b_gsm8k_fsdp"

PROMPTS = {MATH: 128, CODE: 128, MEGATRON: 128, SMALL: 64}
GPUS = {MATH: 8, CODE: 8, MEGATRON: 32, SMALL: 1}
GPUS_APART = {MATH: (4, 4), CODE: (4, 4), MEGATRON: (16, 16), SMALL: (1, 1)}
ALGOS = {"cipo": ("cipo", "own"), "grpo": ("grpo", "own"), "grpo equal": ("grpo", "equal")}
ROLLOUTS_OF_A_PROMPT = {"cipo": 8 + 8, "grpo": 8, "grpo equal": 16}
TRAINERS = {
    "sync": "CIPOTrainerSync",
    "colocate_async": "CIPOTrainerColocateAsync",
    "separate_async": "CIPOTrainerSeparateAsync",
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
        estimator="cipo",
        trainer=TRAINERS[mode],
        rollout_engine=rollout,
        prompts=PROMPTS[script],
        rollouts=PROMPTS[script] * ROLLOUTS_OF_A_PROMPT[algo],
        corrections=PROMPTS[script] * 8 if algo == "cipo" else 0,
        moves_budget=algo == "cipo",
        validation_samples=2 * config.actor_rollout_ref.rollout.val_kwargs.n,
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
    "NNODES": ("3", ["trainer.nnodes"]),
    "GPUS_PER_NODE": ("5", ["trainer.n_gpus_per_node"]),
    "STEPS": ("9", ["trainer.total_training_steps"]),
    "LEARNING_RATE": ("3e-6", [f"{ACTOR}.optim.lr"]),
    "KL_COEF": ("0.5", [f"{ACTOR}.kl_loss_coef"]),
    "WARMUP_STEPS": ("7", [f"{ACTOR}.optim.lr_warmup_steps"]),
    "CLIP_RATIO": ("0.3", [f"{ACTOR}.clip_ratio", f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high"]),
    "CLIP_RATIO_HIGH": ("0.3", [f"{ACTOR}.clip_ratio_high"]),
    "TEMPERATURE": ("0.7", [f"{ROLLOUT}.temperature"]),
    "VAL_TEMPERATURE": ("0.7", [f"{ROLLOUT}.val_kwargs.temperature"]),
    "VAL_TOP_P": ("0.7", [f"{ROLLOUT}.val_kwargs.top_p"]),
    "VAL_CORRECTIONS": ("3", ["algorithm.cipo.val_corrections"]),
    "TEST_FREQ": ("9", ["trainer.test_freq"]),
    "LORA_RANK": ("7", ["actor_rollout_ref.model.lora_rank", "actor_rollout_ref.model.lora_alpha"]),
    "DYNAMIC_SAMPLING": ("True", ["algorithm.filter_groups.enable"]),
    "PRESET": ("stream", ["algorithm.cipo.preset"]),
    "SOURCE": ("paired", ["algorithm.cipo.source"]),
    "BUDGET": ("auto", ["algorithm.cipo.budget"]),
    "TRANSFER": ("inject", ["algorithm.cipo.transfer.kind"]),
    "AUX_COEF": ("0.7", ["algorithm.cipo.aux.coef"]),
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
OVERLONG = "+reward.reward_kwargs.overlong_buffer_cfg"
# Variable -> as it is given, and the settings that it makes.
SET_AS_MADE = {
    "MODEL_PATH": ({"MODEL_PATH": "/m"}, {"actor_rollout_ref.model.path": "'/m'"}),
    "VAL_SETS": ({"VAL_SETS": "x"}, {"data.val_files": "['/home/user/data/x/test.parquet']"}),
    "TRAIN_FILES": ({"TRAIN_FILES": "/a"}, {"data.train_files": "['/a']"}),
    "VAL_FILES": ({"VAL_FILES": "/b"}, {"data.val_files": "['/b']"}),
    "OUTPUT_DIR": ({"OUTPUT_DIR": "/o"}, {"trainer.validation_data_dir": "'/o/validation'"}),
    "LOGGER": ({"LOGGER": "wandb mlflow"}, {"trainer.logger": "['console','file','wandb','mlflow']"}),
    "OVERLONG_SHARE": ({"OVERLONG_SHARE": "0.5", "MAX_RESPONSE_LENGTH": "100"}, {f"{OVERLONG}.len": "50"}),
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
ELSEWHERE = {"ALGO", "ROLLOUTS", "RECIPE", "MODE", "ROLLOUT", "VAL_ONLY", "DRY_RUN", "PYTHON", "CONFIG_NAME"}
ELSEWHERE |= {"DATA_DIR", "OFFLOAD"}


def assigned(path: Path) -> set[str]:
    """Variables that a script takes from its environment."""
    return set(re.findall(r"^ *([A-Z_]+)=\$\{\1:-", path.read_text(), re.MULTILINE))


def taken() -> list[tuple[str, str]]:
    of_all = assigned(COMMON) | assigned(RECIPES)
    for_fsdp = {"LORA_RANK"}
    return [
        (script, name)
        for script, path in SCRIPTS.items()
        for name in sorted(of_all | assigned(path))
        if not (script == MEGATRON and name in for_fsdp)
    ]


@pytest.mark.parametrize(("script", "name"), [pair for pair in taken() if pair[1] not in ELSEWHERE])
def test_every_variable_of_every_script_arrives(script, name):
    if name in SET_AS_GIVEN:
        value, keys = SET_AS_GIVEN[name]
        variables, settings = {name: value}, dict.fromkeys(keys, value)
    else:
        variables, settings = SET_AS_MADE[name]
    found = overrides(script, **variables)
    assert {key: found[key] for key in settings} == settings


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("value", ["True", "False"])
def test_offload_moves_the_actors_weights_and_optimizer(script, value):
    found = overrides(script, OFFLOAD=value)
    assert [v for key, v in found.items() if key.startswith(ACTOR) and "_offload" in key] == [value, value]


def test_asynchronous_runs_take_the_schedule_too():
    assert overrides(MATH, MODE="colocate_async", SCHEDULE="barrier")["algorithm.cipo.schedule"] == "barrier"


def test_the_config_may_be_another_one():
    assert arguments(MATH, CONFIG_NAME="mine")[2:4] == ["--config-name", "mine"]


NAMES = {
    "trainer.experiment_name",
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "hydra.run.dir",
    "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH",
}


def differences(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - NAMES


OF_TRAINING = {
    f"algorithm.cipo.{knob}" for knob in ("preset", "schedule", "source", "aux.coef", "budget", "transfer.kind")
}


@pytest.mark.parametrize("mode", ["sync", "separate_async"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_baselines_differ_in_nothing_else(script, mode):
    cipo = overrides(script, MODE=mode)
    grpo = overrides(script, MODE=mode, ALGO="grpo")
    equal = overrides(script, MODE=mode, ALGO="grpo", ROLLOUTS="equal")
    stock = overrides(script, MODE=mode, ALGO="grpo", VAL_CORRECTIONS="0")
    assert differences(cipo, grpo) == {"algorithm.cipo.replay_fraction"} | OF_TRAINING
    assert grpo["algorithm.cipo.replay_fraction"] == "0"
    assert differences(grpo, equal) == {"actor_rollout_ref.rollout.n"}
    # Without second turns verl's own trainer, which needs no room for them.
    assert differences(grpo, stock) == {
        "algorithm.adv_estimator",
        "algorithm.cipo.replay_fraction",
        "algorithm.cipo.val_corrections",
        "algorithm.cipo.prompt.template",
        "actor_rollout_ref.rollout.prompt_length",
        "actor_rollout_ref.rollout.max_model_len",
    }
    folders = {run["trainer.default_local_dir"] for run in (cipo, grpo, equal)}
    assert len(folders) == 3


def test_without_second_turns_the_baseline_is_verls_own_trainer():
    plan = dry_run.check(composed(MATH, ALGO="grpo", VAL_CORRECTIONS="0"))
    assert (plan.trainer, plan.validation_samples) == ("PPOTrainerSync", 4)


@pytest.mark.parametrize("algo", ["cipo", "grpo"])
def test_the_recipe_of_dapo(algo):
    found = overrides(MATH, RECIPE="dapo", ALGO=algo)
    assert (found[f"{ACTOR}.clip_ratio_low"], found[f"{ACTOR}.clip_ratio_high"]) == ("0.2", "0.28")
    assert (found[f"{ACTOR}.loss_agg_mode"], found[f"{ACTOR}.use_kl_loss"]) == ("token-mean", "False")
    assert f"{ACTOR}.kl_loss_coef" not in found
    assert (found["algorithm.filter_groups.enable"], found["algorithm.filter_groups.metric"]) == ("True", "acc")
    # A fifth of 4096 tokens.
    assert (found["reward.reward_manager.name"], found[f"{OVERLONG}.len"]) == ("dapo", "819")
    assert found["+reward.reward_kwargs.max_resp_len"] == "4096"
    assert found["trainer.experiment_name"] == f"qwen3_4b_math_{algo}_dapo"


@pytest.mark.parametrize("algo", ["cipo", "grpo"])
def test_the_recipe_of_dapo_is_accepted(algo):
    plan = dry_run.check(composed(MATH, RECIPE="dapo", ALGO=algo))
    assert plan.rollouts == 128 * ROLLOUTS_OF_A_PROMPT[algo]


def test_verls_own_trainer_takes_the_recipe_of_dapo():
    plan = dry_run.check(composed(MATH, RECIPE="dapo", ALGO="grpo", VAL_CORRECTIONS="0"))
    assert (plan.trainer, plan.rollouts) == ("PPOTrainerSync", 128 * 8)


@pytest.mark.parametrize("algo", ["cipo", "grpo"])
def test_the_recipe_of_dapo_is_accepted_without_dynamic_sampling(algo):
    config = composed(MATH, RECIPE="dapo", ALGO=algo, DYNAMIC_SAMPLING="False")
    assert dry_run.check(config).optimizer_steps == 2
    assert config.reward.reward_kwargs.overlong_buffer_cfg.penalty_factor == 1.0


@pytest.mark.parametrize("script", [MATH, CODE])
def test_the_recipe_of_lora_fits_one_card(script):
    config = composed(script, RECIPE="lora")
    plan = dry_run.check(config)
    assert (plan.train_gpus, plan.prompts, plan.optimizer_steps) == (1, 32, 2)
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    assert (model.lora_rank, actor.fsdp_config.model_dtype, actor.fsdp_config.param_offload) == (32, "bf16", True)
    assert config.actor_rollout_ref.rollout.load_format == "safetensors"


def test_a_variable_counts_more_than_the_recipe():
    found = overrides(MATH, RECIPE="lora", LORA_RANK="8", GPUS_PER_NODE="2", KL_COEF="0")
    assert (found["actor_rollout_ref.model.lora_rank"], found["trainer.n_gpus_per_node"]) == ("8", "2")
    assert found[f"{ACTOR}.use_kl_loss"] == "False"


def test_runs_of_different_settings_have_different_folders():
    variables = [
        {},
        {"PRESET": "stream"},
        {"SOURCE": "both"},
        {"BUDGET": "auto"},
        {"TRANSFER": "regress"},
        {"RECIPE": "dapo"},
    ]
    folders = [overrides(MATH, **given)["trainer.default_local_dir"] for given in variables]
    assert len(set(folders)) == len(folders)


def test_a_validation_alone_leaves_the_training_runs_files_alone():
    run = overrides(MATH, OUTPUT_DIR="/o")
    alone = overrides(MATH, OUTPUT_DIR="/o", VAL_ONLY="1", VAL_N="32")
    assert alone["trainer.val_only"] == "True"
    # Of the newest checkpoint of that run.
    assert alone["trainer.default_local_dir"] == run["trainer.default_local_dir"] == "'/o/checkpoints'"
    written = NAMES - {"trainer.experiment_name", "trainer.default_local_dir"}
    assert len(written) == 4
    for name in written:
        assert re.match(r"'/o/\w+(\.jsonl)?'$", run[name])
        assert re.match(r"'/o/val_only/\d{8}T\d{6}/\w+(\.jsonl)?'$", alone[name]), alone[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_variable_at_once(script):
    result = start(script, "--help", PYTHON="false", KL_COEF="0.5")
    assert (result.returncode, result.stderr) == (0, "")
    shown = dict(line.strip().split("=", 1) for line in result.stdout.splitlines() if re.match(r"  [A-Z_]+=", line))
    assert set(shown) == assigned(COMMON) | assigned(RECIPES) | assigned(SCRIPTS[script])
    assert (shown["KL_COEF"], shown["ALGO"], shown["ROLLOUT_NNODES"]) == ("0.5", "cipo", "[half]")
    meanings = [line for line in result.stdout.splitlines() if line.startswith("      ")]
    assert len(meanings) == len(shown) and all(line.strip() for line in meanings)


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
    assert variable == "/a b/c=d,e/metrics.jsonl"


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
    ({"DRY_RUN": "yes"}, "DRY_RUN=yes: use one of 0 1 config args"),
    ({"RECIPE": "grpo"}, "RECIPE=grpo: use one of base dapo lora"),
    ({"KL_COEF": "abc"}, "KL_COEF=abc: use a number of 0 or more"),
    ({"LEARNING_RATE": "1e"}, "LEARNING_RATE=1e: use a number above 0"),
    ({"ROLLOUT_MEMORY": "6"}, "ROLLOUT_MEMORY=6: use a number above 0, at most 1"),
    ({"CLIP_RATIO": "x"}, "CLIP_RATIO=x: use a number between 0 and 1"),
    ({"TEMPERATURE": "0"}, "TEMPERATURE=0: use a number above 0"),
    ({"VAL_TOP_P": "1.5"}, "VAL_TOP_P=1.5: use a number above 0, at most 1"),
    ({"MAX_PROMPT_LENGTH": "long"}, "MAX_PROMPT_LENGTH=long: use an integer above 0"),
    ({"VAL_CORRECTIONS": "-1"}, "VAL_CORRECTIONS=-1: use an integer of 0 or more"),
    ({"OFFLOAD": "yes"}, "OFFLOAD=yes: use one of True False"),
    ({"THINKING": "on"}, "THINKING=on: use one of True False"),
    ({"SOURCE": "pairs"}, "SOURCE=pairs: use one of null resample paired both"),
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


def test_what_is_refused_of_a_script_alone():
    result = start(MEGATRON, RECIPE="lora")
    assert (result.returncode, result.stderr) == (1, f"{MEGATRON}.sh: LORA_RANK=32: use one of the FSDP scripts\n")
    result = start(MATH, "trainer.val_only=True")
    assert result.returncode == 1 and "use VAL_ONLY=1" in result.stderr


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


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    """Variables of a run whose data is there."""
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").touch()
    return {
        "TRAIN_FILES": str(tmp_path / "train.parquet"),
        # Not on this machine's file system, so not looked for.
        "VAL_FILES": f"{tmp_path / 'test.parquet'} hdfs://cluster/test.parquet",
        "OUTPUT_DIR": str(tmp_path / "run"),
    }


def test_the_real_run_checks_and_starts_verl_with_the_same_arguments(data, tmp_path):
    result = start(SMALL, "a=b", PYTHON="echo", **data)
    assert result.returncode == 0, result.stderr
    given = " ".join(arguments(SMALL, "a=b", **data))
    assert result.stdout.splitlines() == [
        f"-m verl_cipo.check {given}",
        f"the run's folder: {tmp_path}/run",
        f"-m verl.trainer.main_ppo {given}",
    ]
    # What verl prints is kept.
    assert (tmp_path / "run" / "train.log").read_text() == f"-m verl.trainer.main_ppo {given}\n"


def test_a_run_that_is_refused_is_not_started(data, tmp_path):
    result = start(SMALL, PYTHON="false", **data)
    assert result.returncode == 1
    assert not (tmp_path / "run").exists()


def test_the_exit_status_is_that_of_the_run(data, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" = verl_cipo.check ] || exit 7\n')
    python.chmod(0o755)
    assert start(SMALL, PYTHON=str(python), **data).returncode == 7


def test_metrics_of_every_start_are_kept(data, tmp_path):
    """verl's file logger empties its file. docs/report.md: the report joins what is there."""
    python, run = tmp_path / "python", tmp_path / "run"
    python.write_text('#!/bin/sh\n[ "$2" = verl_cipo.check ] || echo "started in $OUT" > "$OUT/metrics.jsonl"\n')
    python.chmod(0o755)
    for expected in (["metrics"], ["metrics", "metrics_1"], ["metrics", "metrics_1", "metrics_2"]):
        assert start(SMALL, PYTHON=str(python), OUT=str(run), **data).returncode == 0
        assert sorted(path.stem for path in run.glob("metrics*.jsonl")) == expected


def test_dry_run_prints_the_verdict_and_what_is_changed():
    result = start(MATH, "algorithm.cipo.seed=5", DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    verdict, _, changed = result.stdout.partition("\n\n")
    accepted, step, validation, unchecked = verdict.splitlines()
    assert accepted == "dry run: accepted, cipo by CIPOTrainerSync, rollout by vllm"
    assert step == (
        "a step: 128 prompts, 2048 rollouts (up to 1024 of them corrections), 2 optimizer steps; training on 8 GPUs, "
        "rollout on the same"
    )
    assert validation == "a validation: 8 answers to each prompt, second turns included"
    assert "data files" in unchecked
    assert "algorithm.cipo.seed: 5" in changed and len(result.stdout.splitlines()) < 70
    # Of the model, which is not on this machine.
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.nightly
def test_dry_run_fails_where_the_run_would():
    result = start(MATH, DRY_RUN="1", MAX_TOKENS_PER_GPU="9471")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "actor.ppo_max_token_len_per_gpu=9471 is less than the longest sequence" in result.stderr


def test_every_variable_is_documented():
    page = (ROOT / "docs" / "launch.md").read_text()
    known = set().union(*(assigned(path) for path in [COMMON, RECIPES, *SCRIPTS.values()]))
    assert len(known) > 30
    documented = {
        name for row in page.splitlines() if row.startswith("| `") for name in re.findall(r"`([A-Z_]+)`", row)
    }
    assert known == documented
