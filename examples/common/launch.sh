# Sourced by the launch scripts one folder up, after they have set the variables of their model and data.
# Gives them `launch`, which starts verl with their settings; docs/launch.md lists the variables.

ALGO=${ALGO:-cipo}         # cipo | grpo, the baseline
ROLLOUTS=${ROLLOUTS:-own}  # own | equal: with ALGO=grpo, generate as many rollouts a step as CIPO does
MODE=${MODE:-sync}         # sync | colocate_async | separate_async
ROLLOUT=${ROLLOUT:-vllm}   # vllm | sglang
DRY_RUN=${DRY_RUN:-0}      # 1: check the settings and stop; args: print the command's arguments and stop

STEPS=${STEPS:-500}
LEARNING_RATE=${LEARNING_RATE:-1e-6}
KL_COEF=${KL_COEF:-1e-4}
CLIP_RATIO=${CLIP_RATIO:-0.2}
TEMPERATURE=${TEMPERATURE:-1.0}
GROUP_SIZE=${GROUP_SIZE:-8}
REPLAY_FRACTION=${REPLAY_FRACTION:-1}
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-128}
MINI_BATCH_SIZE=${MINI_BATCH_SIZE:-64}
VAL_N=${VAL_N:-4}

# A correction prompt holds the question, the attempt and some 100 tokens of its own.
CORRECTION_PROMPT_LENGTH=${CORRECTION_PROMPT_LENGTH:-$((MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH + 256))}

CONFIG_NAME=${CONFIG_NAME:-cipo_trainer}
PYTHON=${PYTHON:-python3}
LOGGER=${LOGGER:-'["console","file"]'}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# one_of NAME VALUE...: the variable NAME holds one of the values.
one_of() {
    local name=$1 value
    shift
    for value in "$@"; do
        [[ ${!name} == "$value" ]] && return
    done
    die "$name=${!name}: use one of $*"
}

# positive NAME...: the variables hold integers above 0.
positive() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name=${!name}: use an integer above 0"
    done
}

one_of ALGO cipo grpo
one_of ROLLOUTS own equal
one_of MODE sync colocate_async separate_async
one_of ROLLOUT vllm sglang
one_of DRY_RUN 0 1 args
[[ $DATA_DIR != *[[:space:]]* ]] || die "DATA_DIR=$DATA_DIR: use a folder without white space, which separates files"
positive STEPS GROUP_SIZE TRAIN_BATCH_SIZE MINI_BATCH_SIZE VAL_N NNODES GPUS_PER_NODE
positive MAX_PROMPT_LENGTH MAX_RESPONSE_LENGTH CORRECTION_PROMPT_LENGTH MAX_TOKENS_PER_GPU ROLLOUT_TP

rollout_n=$GROUP_SIZE
if [[ $ROLLOUTS == equal ]]; then
    [[ $ALGO == grpo ]] || die "ROLLOUTS=equal is GRPO with CIPO's number of rollouts: use it with ALGO=grpo"
    rollout_n=$(awk -v n="$GROUP_SIZE" -v f="$REPLAY_FRACTION" 'BEGIN { print n * (1 + f) }')
    [[ $rollout_n =~ ^[0-9]+$ ]] ||
        die "ROLLOUTS=equal: GROUP_SIZE=$GROUP_SIZE with REPLAY_FRACTION=$REPLAY_FRACTION makes $rollout_n rollouts" \
            "a prompt, choose them so that it is a whole number"
fi

variant=$ALGO
[[ $ROLLOUTS == equal ]] && variant+=_equal
[[ $MODE == sync ]] || variant+=_$MODE
[[ $ROLLOUT == vllm ]] || variant+=_$ROLLOUT
EXPERIMENT=${EXPERIMENT:-${MODEL_NAME}_$variant}
OUTPUT_DIR=${OUTPUT_DIR:-outputs/$EXPERIMENT}
# Ray's workers have a working directory of their own.
[[ $OUTPUT_DIR == /* ]] || OUTPUT_DIR=$PWD/$OUTPUT_DIR

# hydra_list "A B": ['A','B']
hydra_list() {
    local file list=
    for file in $1; do
        list+="${list:+,}'$file'"
    done
    echo "[$list]"
}

if [[ $ALGO == cipo ]]; then
    prompt_length=$CORRECTION_PROMPT_LENGTH
else
    prompt_length=$MAX_PROMPT_LENGTH
fi

train_nodes=$NNODES
train_gpus=$GPUS_PER_NODE

settings=(
    algorithm.adv_estimator="$ALGO"
    critic.enable=False
    data.train_files="$(hydra_list "$TRAIN_FILES")"
    data.val_files="$(hydra_list "$VAL_FILES")"
    data.train_batch_size="$TRAIN_BATCH_SIZE"
    data.max_prompt_length="$MAX_PROMPT_LENGTH"
    data.max_response_length="$MAX_RESPONSE_LENGTH"
    data.filter_overlong_prompts=True
    data.truncation=error
    actor_rollout_ref.model.path="'$MODEL_PATH'"
    actor_rollout_ref.model.use_remove_padding=True
    actor_rollout_ref.model.enable_gradient_checkpointing=True
    actor_rollout_ref.actor.optim.lr="$LEARNING_RATE"
    actor_rollout_ref.actor.ppo_mini_batch_size="$MINI_BATCH_SIZE"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS_PER_GPU"
    actor_rollout_ref.actor.clip_ratio="$CLIP_RATIO"
    actor_rollout_ref.actor.clip_ratio_low="$CLIP_RATIO"
    actor_rollout_ref.actor.clip_ratio_high="$CLIP_RATIO"
    actor_rollout_ref.actor.use_kl_loss=True
    actor_rollout_ref.actor.kl_loss_coef="$KL_COEF"
    actor_rollout_ref.actor.kl_loss_type=low_var_kl
    actor_rollout_ref.actor.entropy_coeff=0
    actor_rollout_ref.rollout.name="$ROLLOUT"
    actor_rollout_ref.rollout.n="$rollout_n"
    actor_rollout_ref.rollout.temperature="$TEMPERATURE"
    actor_rollout_ref.rollout.prompt_length="$prompt_length"
    # Without it the engine makes room for the longest sequence that the model knows.
    actor_rollout_ref.rollout.max_model_len=$((prompt_length + MAX_RESPONSE_LENGTH))
    actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
    actor_rollout_ref.rollout.gpu_memory_utilization="$ROLLOUT_MEMORY"
    actor_rollout_ref.rollout.val_kwargs.do_sample=True
    actor_rollout_ref.rollout.val_kwargs.temperature="$TEMPERATURE"
    actor_rollout_ref.rollout.val_kwargs.n="$VAL_N"
    reward.custom_reward_function.path="pkg://verl_cipo.rewards.$REWARD"
    reward.custom_reward_function.name=compute_score
    trainer.project_name=verl_cipo
    trainer.experiment_name="$EXPERIMENT"
    trainer.default_local_dir="'$OUTPUT_DIR/checkpoints'"
    trainer.validation_data_dir="'$OUTPUT_DIR/validation'"
    trainer.logger="$LOGGER"
    # verl's file logger empties its file, so a resumed run gets one of its own. It runs in a Ray worker, which need not
    # inherit this shell's environment.
    +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH="'$OUTPUT_DIR/metrics_$(date +%Y%m%dT%H%M%S).jsonl'"
    trainer.total_training_steps="$STEPS"
    trainer.total_epochs=1000
    trainer.val_before_train=True
    trainer.test_freq=25
    trainer.save_freq=25
    trainer.max_actor_ckpt_to_keep=2
)

if [[ $ALGO == cipo ]]; then
    if [[ $MODE == sync ]]; then
        SCHEDULE=${SCHEDULE:-streaming}
    else
        # The other schedules hold a whole dispatch of prompts back until its last attempt is verified.
        SCHEDULE=${SCHEDULE:-replay}
    fi
    settings+=(
        algorithm.cipo.replay_fraction="$REPLAY_FRACTION"
        algorithm.cipo.schedule="$SCHEDULE"
        algorithm.cipo.prompt.template="$REWARD"
    )
fi

if [[ $MODE != sync ]]; then
    settings+=(
        trainer.v1.trainer_mode="$MODE"
        # Rollouts may be older than the weights they train.
        algorithm.rollout_correction.rollout_is=token
        algorithm.rollout_correction.rollout_is_threshold=2.0
    )
fi

if [[ $MODE == separate_async ]]; then
    ((TRAIN_BATCH_SIZE % MINI_BATCH_SIZE == 0)) ||
        die "MODE=separate_async: TRAIN_BATCH_SIZE=$TRAIN_BATCH_SIZE must be a multiple of" \
            "MINI_BATCH_SIZE=$MINI_BATCH_SIZE"
    if ((NNODES == 1)); then
        ROLLOUT_NNODES=1
        ROLLOUT_GPUS_PER_NODE=${ROLLOUT_GPUS_PER_NODE:-$((GPUS_PER_NODE / 2))}
        train_gpus=$((GPUS_PER_NODE - ROLLOUT_GPUS_PER_NODE))
    else
        ROLLOUT_NNODES=${ROLLOUT_NNODES:-$((NNODES / 2))}
        ROLLOUT_GPUS_PER_NODE=$GPUS_PER_NODE
        train_nodes=$((NNODES - ROLLOUT_NNODES))
    fi
    ((ROLLOUT_NNODES > 0 && ROLLOUT_GPUS_PER_NODE > 0 && train_nodes > 0 && train_gpus > 0)) ||
        die "MODE=separate_async divides NNODES=$NNODES x GPUS_PER_NODE=$GPUS_PER_NODE between training and rollout," \
            "and nothing is left for one of them"
    settings+=(
        # As many optimizer steps as in the other modes.
        trainer.v1.separate_async.parameter_sync_step=$((TRAIN_BATCH_SIZE / MINI_BATCH_SIZE))
        actor_rollout_ref.rollout.nnodes="$ROLLOUT_NNODES"
        actor_rollout_ref.rollout.n_gpus_per_node="$ROLLOUT_GPUS_PER_NODE"
        actor_rollout_ref.rollout.checkpoint_engine.backend=nccl
    )
fi

settings+=(trainer.nnodes="$train_nodes" trainer.n_gpus_per_node="$train_gpus")

# Every data file that is on this machine's file system is there.
require_files() {
    local file missing=()
    for file in $TRAIN_FILES $VAL_FILES; do
        [[ $file == *://* || -e $file ]] || missing+=("$file")
    done
    ((${#missing[@]} == 0)) || die "missing: ${missing[*]}
Make them, from the repository's root (docs/data.md), or name others in TRAIN_FILES and VAL_FILES:
$DATA_COMMANDS"
}

# launch [KEY=VALUE...]: the script's own settings and what was given on its command line; the last of a key counts.
launch() {
    local arguments=(--config-path pkg://verl_cipo.config --config-name "$CONFIG_NAME" "${settings[@]}" "$@")
    case $DRY_RUN in
        args) printf '%s\n' "${arguments[@]}" ;;
        # Looks for the model on this machine only.
        1) HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$PYTHON" -m verl_cipo.integration.dry_run "${arguments[@]}" ;;
        0)
            require_files
            mkdir -p "$OUTPUT_DIR"
            exec "$PYTHON" -m verl.trainer.main_ppo "${arguments[@]}"
            ;;
    esac
}
