#!/usr/bin/env bash
# Seed-Coder-8B on programming problems with FSDP: the paper's code setting as far as it is known (docs/launch.md).
# One node of 8 GPUs of 80 GB. Programs are judged in a sandbox: `python -m verl_cipo.doctor` says whether it works.
#
#   bash examples/run_seed_coder_8b_code_fsdp.sh [KEY=VALUE of verl ...]
#
# --help lists the variables; DRY_RUN=1 checks the settings without GPU, model or data.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/recipes.sh"

MODEL_NAME=seed_coder_8b_code
MODEL_PATH=${MODEL_PATH:-ByteDance-Seed/Seed-Coder-8B-Instruct}  # a folder, or a name on the hub
DATA_DIR=${DATA_DIR:-$HOME/data}  # where the converters of data_prep wrote
VAL_SETS=${VAL_SETS:-livecodebench}  # folders of DATA_DIR, for validation
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/taco/train.parquet}  # parquet; separated by spaces
VAL_FILES=${VAL_FILES:-$(printf "$DATA_DIR/%s/test.parquet " $VAL_SETS)}  # parquet, for validation
REWARD=code
NNODES=${NNODES:-1}  # machines
GPUS_PER_NODE=${GPUS_PER_NODE:-8}  # of each, all GPUs of the run
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-2048}  # tokens; longer prompts are left out
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}  # tokens
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-16384}  # a micro-batch; at least a correction prompt and its response
ROLLOUT_TP=${ROLLOUT_TP:-1}  # GPUs that share a rollout engine
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.6}  # share of a GPU's memory for the rollout engine
OFFLOAD=${OFFLOAD:-False}  # move parameters and optimizer to host memory during rollouts

DATA_COMMANDS="for set in $VAL_SETS; do python data_prep/\$set.py --local_save_dir $DATA_DIR/\$set; done
python data_prep/taco.py --max_tests 20 --local_save_dir $DATA_DIR/taco --decontaminate $VAL_FILES"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

launch \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD" \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD" \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    "$@"
