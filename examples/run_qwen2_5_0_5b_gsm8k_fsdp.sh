#!/usr/bin/env bash
# Qwen2.5-0.5B on GSM8K with FSDP: CIPO on one card of 24 GB (MODE=separate_async takes a second one for the rollout).
#
#   bash examples/run_qwen2_5_0_5b_gsm8k_fsdp.sh [KEY=VALUE of verl ...]
#
# --help lists the variables; DRY_RUN=1 checks the settings without GPU, model or data.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/recipes.sh"

MODEL_NAME=qwen2_5_0_5b_gsm8k
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen2.5-0.5B-Instruct}  # a folder, or a name on the hub
DATA_DIR=${DATA_DIR:-$HOME/data}  # where the converters of data_prep wrote
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/gsm8k/train.parquet}  # parquet; separated by spaces
VAL_FILES=${VAL_FILES:-$DATA_DIR/gsm8k/test.parquet}  # parquet, for validation
REWARD=math
NNODES=${NNODES:-1}  # machines
GPUS_PER_NODE=${GPUS_PER_NODE:-$([[ ${MODE:-} == separate_async ]] && echo 2 || echo 1)}  # of each, all GPUs of the run
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-64}  # prompts of a step
MINI_BATCH_SIZE=${MINI_BATCH_SIZE:-32}  # prompts of an optimizer step
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-512}  # tokens; longer prompts are left out
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-1024}  # tokens
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-4096}  # a micro-batch; at least a correction prompt and its response
VAL_N=${VAL_N:-1}  # samples of each validation prompt
ROLLOUT_TP=${ROLLOUT_TP:-1}  # GPUs that share a rollout engine
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.4}  # share of a GPU's memory for the rollout engine
OFFLOAD=${OFFLOAD:-True}  # move parameters and optimizer to host memory during rollouts

DATA_COMMANDS="python data_prep/gsm8k.py --local_save_dir $DATA_DIR/gsm8k"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

launch \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD" \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD" \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    "$@"
