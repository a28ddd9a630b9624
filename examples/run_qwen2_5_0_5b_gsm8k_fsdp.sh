#!/usr/bin/env bash
# Qwen2.5-0.5B on GSM8K with FSDP: CIPO on one card of 24 GB (MODE=separate_async takes a second one for the rollout).
#
#   bash examples/run_qwen2_5_0_5b_gsm8k_fsdp.sh [KEY=VALUE of verl ...]
#
# ALGO=grpo                       the baseline
# ALGO=grpo ROLLOUTS=equal        the baseline with CIPO's number of rollouts
# ROLLOUT=sglang                  rollouts by SGLang in place of vLLM
# MODE=colocate_async             verl's asynchronous trainers
# MODE=separate_async
# DRY_RUN=1                       checks the settings and prints them; needs neither GPU nor model nor data
set -euo pipefail

MODEL_NAME=qwen2_5_0_5b_gsm8k
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen2.5-0.5B-Instruct}
DATA_DIR=${DATA_DIR:-$HOME/data}
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/gsm8k/train.parquet}
VAL_FILES=${VAL_FILES:-$DATA_DIR/gsm8k/test.parquet}
REWARD=math
NNODES=${NNODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-$([[ ${MODE:-} == separate_async ]] && echo 2 || echo 1)}
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-64}
MINI_BATCH_SIZE=${MINI_BATCH_SIZE:-32}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-512}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-1024}
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-4096}
VAL_N=${VAL_N:-1}
ROLLOUT_TP=${ROLLOUT_TP:-1}
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.4}
OFFLOAD=${OFFLOAD:-True}

DATA_COMMANDS="python data_prep/gsm8k.py --local_save_dir $DATA_DIR/gsm8k"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

launch \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD" \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD" \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    "$@"
