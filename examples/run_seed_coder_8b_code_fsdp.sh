#!/usr/bin/env bash
# Seed-Coder-8B on programming problems with FSDP: the paper's code setting as far as it is known (docs/launch.md).
# One node of 8 GPUs of 80 GB. Programs are judged in a sandbox: `python -m verl_cipo.doctor` says whether it works.
#
#   bash examples/run_seed_coder_8b_code_fsdp.sh [KEY=VALUE of verl ...]
#
# ALGO=grpo                       the baseline
# ALGO=grpo ROLLOUTS=equal        the baseline with CIPO's number of rollouts
# ROLLOUT=sglang                  rollouts by SGLang in place of vLLM
# MODE=colocate_async             verl's asynchronous trainers
# MODE=separate_async
# DRY_RUN=1                       checks the settings and prints them; needs neither GPU nor model nor data
set -euo pipefail

MODEL_NAME=seed_coder_8b_code
MODEL_PATH=${MODEL_PATH:-ByteDance-Seed/Seed-Coder-8B-Instruct}
DATA_DIR=${DATA_DIR:-$HOME/data}
VAL_SETS=${VAL_SETS:-livecodebench}
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/taco/train.parquet}
VAL_FILES=${VAL_FILES:-$(printf "$DATA_DIR/%s/test.parquet " $VAL_SETS)}
REWARD=code
NNODES=${NNODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-2048}
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-16384}
ROLLOUT_TP=${ROLLOUT_TP:-1}
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.6}

DATA_COMMANDS="for set in $VAL_SETS; do python data_prep/\$set.py --local_save_dir $DATA_DIR/\$set; done
python data_prep/taco.py --max_tests 20 --local_save_dir $DATA_DIR/taco --decontaminate $VAL_FILES"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

launch \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    "$@"
