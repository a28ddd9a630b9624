#!/usr/bin/env bash
# Qwen3-30B-A3B, a mixture of experts, on competition math with Megatron and expert parallelism.
# 4 nodes of 8 GPUs of 80 GB, joined in one Ray cluster (docs/launch.md). Needs Megatron-LM and Megatron-Bridge.
#
#   bash examples/run_qwen3_30b_a3b_math_megatron.sh [KEY=VALUE of verl ...]
#
# --help lists the variables; DRY_RUN=1 checks the settings without GPU, model or data.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/recipes.sh"

MODEL_NAME=qwen3_30b_a3b_math
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-30B-A3B}  # a folder, or a name on the hub
DATA_DIR=${DATA_DIR:-$HOME/data}  # where the converters of data_prep wrote
VAL_SETS=${VAL_SETS:-aime24 aime25 amc23 math500 minerva olympiadbench}  # folders of DATA_DIR, for validation
TRAIN_FILES=${TRAIN_FILES:-$DATA_DIR/dapo_math/train.parquet}  # parquet; separated by spaces
VAL_FILES=${VAL_FILES:-$(printf "$DATA_DIR/%s/test.parquet " $VAL_SETS)}  # parquet, for validation
REWARD=math
CONFIG_NAME=${CONFIG_NAME:-cipo_megatron_trainer}  # Hydra config of verl_cipo.config
NNODES=${NNODES:-4}  # machines
GPUS_PER_NODE=${GPUS_PER_NODE:-8}  # of each, all GPUs of the run
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-1024}  # tokens; longer prompts are left out
MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-4096}  # tokens
MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-16384}  # a micro-batch; at least a correction prompt and its response
TENSOR_PARALLEL=${TENSOR_PARALLEL:-2}  # of Megatron, for actor and reference
PIPELINE_PARALLEL=${PIPELINE_PARALLEL:-1}  # of Megatron, for actor and reference
CONTEXT_PARALLEL=${CONTEXT_PARALLEL:-1}  # of Megatron, for actor and reference
EXPERT_PARALLEL=${EXPERT_PARALLEL:-8}  # of Megatron, for the experts
EXPERT_TENSOR_PARALLEL=${EXPERT_TENSOR_PARALLEL:-1}  # of Megatron, for the experts
OFFLOAD=${OFFLOAD:-True}  # move parameters and optimizer to host memory during rollouts
ROLLOUT_TP=${ROLLOUT_TP:-4}  # GPUs that share a rollout engine
ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.6}  # share of a GPU's memory for the rollout engine
# False: 4096 tokens end most thoughts before the answer (docs/launch.md).
THINKING=${THINKING:-False}  # enable_thinking of the chat template

DATA_COMMANDS="for set in $VAL_SETS; do python data_prep/\$set.py --local_save_dir $DATA_DIR/\$set; done
python data_prep/dapo_math.py --local_save_dir $DATA_DIR/dapo_math --decontaminate $VAL_FILES"

source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

# The reference policy takes the actor's layout. Routing in fp32 keeps the choice of experts stable.
launch \
    actor_rollout_ref.actor.megatron.tensor_model_parallel_size="$TENSOR_PARALLEL" \
    actor_rollout_ref.actor.megatron.pipeline_model_parallel_size="$PIPELINE_PARALLEL" \
    actor_rollout_ref.actor.megatron.context_parallel_size="$CONTEXT_PARALLEL" \
    actor_rollout_ref.actor.megatron.expert_model_parallel_size="$EXPERT_PARALLEL" \
    actor_rollout_ref.actor.megatron.expert_tensor_parallel_size="$EXPERT_TENSOR_PARALLEL" \
    actor_rollout_ref.actor.megatron.param_offload="$OFFLOAD" \
    actor_rollout_ref.actor.megatron.optimizer_offload="$OFFLOAD" \
    actor_rollout_ref.ref.megatron.param_offload=True \
    actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=full \
    actor_rollout_ref.actor.megatron.override_transformer_config.recompute_method=uniform \
    actor_rollout_ref.actor.megatron.override_transformer_config.recompute_num_layers=1 \
    +actor_rollout_ref.actor.megatron.override_transformer_config.moe_router_dtype=fp32 \
    +data.apply_chat_template_kwargs.enable_thinking="$THINKING" \
    "$@"
