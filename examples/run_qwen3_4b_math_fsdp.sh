#!/usr/bin/env bash
# Qwen3-4B on competition math with FSDP: the paper's math setting as far as it is known (docs/launch.md).
# One node of 8 GPUs of 80 GB.
#
#   bash examples/run_qwen3_4b_math_fsdp.sh [KEY=VALUE of verl ...]
#
# ALGO=grpo                       the baseline
# ALGO=grpo ROLLOUTS=equal        the baseline with CIPO's number of rollouts
# ROLLOUT=sglang                  rollouts by SGLang in place of vLLM
# MODE=colocate_async             verl's asynchronous trainers
# MODE=separate_async
# DRY_RUN=1                       checks the settings and prints them; needs neither GPU nor model nor data
set -euo pipefail

MODEL_NAME=qwen3_4b_math
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-4B}
DATA_DIR=${DATA_DIR:-$HOME/data}
VAL_SETS=${VAL_SETS:-aime24 aime25 amc23 math500 minerva olympiadbench}
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/dapo_math/train.parquet}
VAL_FILES=${VAL_FILES:-$(printf "$DATA_DIR/%s/test.parquet " $VAL_SETS)}
REWARD=math
NNODES=${NNODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-1024}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-16384}
ROLLOUT_TP=${ROLLOUT_TP:-1}
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.6}
# False: 4096 tokens end most thoughts before the answer (docs/launch.md).
THINKING=${THINKING:-False}

DATA_COMMANDS="for set in $VAL_SETS; do python data_prep/\$set.py --local_save_dir $DATA_DIR/\$set; done
python data_prep/dapo_math.py --local_save_dir $DATA_DIR/dapo_math --decontaminate $VAL_FILES"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

launch \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    +data.apply_chat_template_kwargs.enable_thinking="$THINKING" \
    "$@"
