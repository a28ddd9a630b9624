#!/usr/bin/env bash
# Qwen3-4B on competition math with FSDP: the paper's math setting as far as it is known (docs/launch.md).
# One node of 8 GPUs of 80 GB.
#
#   bash examples/run_qwen3_4b_math_fsdp.sh [KEY=VALUE of verl ...]
#
# --help lists the variables; DRY_RUN=1 checks the settings without GPU, model or data.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/recipes.sh"

MODEL_NAME=qwen3_4b_math
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-4B}  # a folder, or a name on the hub
DATA_DIR=${DATA_DIR:-$HOME/data}  # where the converters of data_prep wrote
VAL_SETS=${VAL_SETS:-aime24 aime25 amc23 math500 minerva olympiadbench}  # folders of DATA_DIR, for validation
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/dapo_math/train.parquet}  # parquet; separated by spaces
VAL_FILES=${VAL_FILES:-$(printf "$DATA_DIR/%s/test.parquet " $VAL_SETS)}  # parquet, for validation
REWARD=math
NNODES=${NNODES:-1}  # machines
GPUS_PER_NODE=${GPUS_PER_NODE:-8}  # of each, all GPUs of the run
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-1024}  # tokens; longer prompts are left out
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}  # tokens
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-16384}  # a micro-batch; at least a correction prompt and its response
ROLLOUT_TP=${ROLLOUT_TP:-1}  # GPUs that share a rollout engine
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.6}  # share of a GPU's memory for the rollout engine
OFFLOAD=${OFFLOAD:-False}  # move parameters and optimizer to host memory during rollouts
# False: 4096 tokens end most thoughts before the answer (docs/launch.md).
THINKING=${THINKING:-False}  # enable_thinking of the chat template

DATA_COMMANDS="for set in $VAL_SETS; do python data_prep/\$set.py --local_save_dir $DATA_DIR/\$set; done
python data_prep/dapo_math.py --local_save_dir $DATA_DIR/dapo_math --decontaminate $VAL_FILES"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

launch \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD" \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD" \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    +data.apply_chat_template_kwargs.enable_thinking="$THINKING" \
    "$@"
