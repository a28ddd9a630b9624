# Sourced by the launch scripts one folder up, after they have set the variables of their model and data.
# Gives them `launch`, which starts verl with their settings. Files of a run: docs/launch.md.

source "${BASH_SOURCE[0]%/*}/checks.sh"

ALGO=${ALGO:-cipo}  # cipo | grpo, the baseline
ROLLOUTS=${ROLLOUTS:-own}  # own | equal: with ALGO=grpo, generate as many rollouts a step as CIPO does
MODE=${MODE:-sync}  # verl's trainer: sync | colocate_async | separate_async
ROLLOUT=${ROLLOUT:-vllm}  # vllm | sglang
DRY_RUN=${DRY_RUN:-0}  # 1: check the settings and stop; config: and print verl's config; args: print the arguments
VAL_ONLY=${VAL_ONLY:-0}  # 1: no training, validate the newest checkpoint into OUTPUT_DIR/val_only/<start>

PRESET=${PRESET:-balanced}  # what the next three are where they are null: balanced | stream, docs/recipes.md
SOURCE=${SOURCE:-null}  # where corrections come from: resample | paired | both
BUDGET=${BUDGET:-null}  # what sessions of anchors are spent on: fixed, corrections | auto, or further attempts
TRANSFER=${TRANSFER:-null}  # what corrections find, trained on the plain prompt: none | inject | regress
GROUP_SIZE=${GROUP_SIZE:-8}  # attempts per prompt
REPLAY_FRACTION=${REPLAY_FRACTION:-1}  # anchors per prompt
VAL_CORRECTIONS=${VAL_CORRECTIONS:-1}  # second turns per answer of the validation, for cipo and grpo; 0: none

STEPS=${STEPS:-500}  # training steps
TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-128}  # prompts of a step
MINI_BATCH_SIZE=${MINI_BATCH_SIZE:-64}  # prompts of an optimizer step
LEARNING_RATE=${LEARNING_RATE:-1e-6}  # of AdamW, constant after the warm-up
WARMUP_STEPS=${WARMUP_STEPS:-0}  # training steps in which it rises from 0
KL_COEF=${KL_COEF:-1e-4}  # weight of the KL term of the loss; 0: none, and no reference policy
CLIP_RATIO=${CLIP_RATIO:-0.2}  # lower clip of the policy's ratio
CLIP_RATIO_HIGH=${CLIP_RATIO_HIGH:-$CLIP_RATIO}  # upper clip
OVERLONG_SHARE=${OVERLONG_SHARE:-0}  # last share of the response length in which a penalty grows to -1; 0: none
DYNAMIC_SAMPLING=${DYNAMIC_SAMPLING:-False}  # True: prompts whose attempts are all right or all wrong are replaced
LORA_RANK=${LORA_RANK:-0}  # rank of LoRA adapters; 0: train all weights

positive MAX_PROMPT_LENGTH MAX_RESPONSE_LENGTH
# A correction prompt holds the question, the attempt and some 100 tokens of its own.
with_attempt=$((MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH + 256))
CORRECTION_PROMPT_LENGTH=${CORRECTION_PROMPT_LENGTH:-$with_attempt}  # tokens; with less, an attempt's end is shown
TEMPERATURE=${TEMPERATURE:-1.0}  # of training's rollouts
VAL_TEMPERATURE=${VAL_TEMPERATURE:-0.6}  # of the validation, as in the suites of verl_cipo.evaluate
VAL_TOP_P=${VAL_TOP_P:-0.95}  # of the validation
VAL_N=${VAL_N:-4}  # samples of each validation prompt
TEST_FREQ=${TEST_FREQ:-25}  # steps between validations

LOGGER=${LOGGER:-}  # loggers of verl beside console and file, which are always kept: wandb tensorboard mlflow ...
CONFIG_NAME=${CONFIG_NAME:-cipo_trainer}  # Hydra config of verl_cipo.config
PYTHON=${PYTHON:-python3}  # interpreter
# In the asynchronous modes the other schedules hold a dispatch of prompts back until its last attempt is verified.
[[ $MODE == sync ]] && schedule=streaming || schedule=replay
SCHEDULE=${SCHEDULE:-$schedule}  # when anchors are drawn: streaming | barrier | replay, docs/knobs.md
AUX_COEF=${AUX_COEF:-null}  # weight of the auxiliary loss, which trains pairs; null: 0.1 with pairs, else 0

variant=$ALGO
[[ $ROLLOUTS == equal ]] && variant+=_equal
[[ $RECIPE == base ]] || variant+=_$RECIPE
if [[ $ALGO == cipo ]]; then
    [[ $PRESET == balanced ]] || variant+=_$PRESET
    [[ $SOURCE == null ]] || variant+=_$SOURCE
    [[ $BUDGET == null ]] || variant+=_$BUDGET
    [[ $TRANSFER == null ]] || variant+=_$TRANSFER
fi
[[ $MODE == sync ]] || variant+=_$MODE
[[ $ROLLOUT == vllm ]] || variant+=_$ROLLOUT
EXPERIMENT=${EXPERIMENT:-${MODEL_NAME}_$variant}  # name of the run
OUTPUT_DIR=${OUTPUT_DIR:-outputs/$EXPERIMENT}  # the run's folder

for option in "$@"; do
    case $option in
        -h | --help)
            show_help "$0" "${BASH_SOURCE[0]%/*}/recipes.sh" "${BASH_SOURCE[0]}"
            exit
            ;;
        trainer.val_only=[Tt]rue)
            [[ $VAL_ONLY == 1 ]] || die "$option would overwrite the files of the training run: use VAL_ONLY=1"
            ;;
    esac
done

one_of ALGO cipo grpo
one_of ROLLOUTS own equal
one_of RECIPE base dapo lora
one_of MODE sync colocate_async separate_async
one_of ROLLOUT vllm sglang
one_of DRY_RUN 0 1 config args
one_of VAL_ONLY 0 1
one_of PRESET balanced stream
one_of SOURCE null resample paired both
one_of BUDGET null fixed auto
one_of TRANSFER null none inject regress
one_of SCHEDULE streaming barrier replay auto
one_of DYNAMIC_SAMPLING True False
one_of OFFLOAD True False
[[ -z ${THINKING:-} ]] || one_of THINKING True False
[[ $DATA_DIR != *[[:space:]]* ]] || die "DATA_DIR=$DATA_DIR: use a folder without white space, which separates files"
positive STEPS GROUP_SIZE TRAIN_BATCH_SIZE MINI_BATCH_SIZE VAL_N TEST_FREQ NNODES GPUS_PER_NODE
positive CORRECTION_PROMPT_LENGTH MAX_TOKENS_PER_GPU ROLLOUT_TP
for name in {TENSOR,PIPELINE,CONTEXT,EXPERT,EXPERT_TENSOR}_PARALLEL ROLLOUT_NNODES ROLLOUT_GPUS_PER_NODE; do
    [[ -z ${!name:-} ]] || positive "$name"
done
natural VAL_CORRECTIONS WARMUP_STEPS LORA_RANK
number LEARNING_RATE 'x > 0' 'above 0'
number ROLLOUT_MEMORY 'x > 0 && x <= 1' 'above 0, at most 1'
number TEMPERATURE 'x > 0' 'above 0'
number VAL_TEMPERATURE 'x >= 0' 'of 0 or more'
number VAL_TOP_P 'x > 0 && x <= 1' 'above 0, at most 1'
number CLIP_RATIO 'x > 0 && x < 1' 'between 0 and 1'
number CLIP_RATIO_HIGH 'x > 0' 'above 0'
number OVERLONG_SHARE 'x >= 0 && x < 1' 'of 0 or more, below 1'
for name in KL_COEF REPLAY_FRACTION AUX_COEF; do
    [[ $name == AUX_COEF && $AUX_COEF == null ]] || number "$name" 'x >= 0' 'of 0 or more'
done
[[ $LORA_RANK == 0 || $CONFIG_NAME != *megatron* ]] || die "LORA_RANK=$LORA_RANK: use one of the FSDP scripts"

rollout_n=$GROUP_SIZE
if [[ $ROLLOUTS == equal ]]; then
    [[ $ALGO == grpo ]] || die "ROLLOUTS=equal is GRPO with CIPO's number of rollouts: use it with ALGO=grpo"
    rollout_n=$(awk -v n="$GROUP_SIZE" -v f="$REPLAY_FRACTION" 'BEGIN { print n * (1 + f) }')
    [[ $rollout_n =~ ^[0-9]+$ ]] ||
        die "ROLLOUTS=equal: GROUP_SIZE=$GROUP_SIZE with REPLAY_FRACTION=$REPLAY_FRACTION makes $rollout_n rollouts" \
            "a prompt, choose them so that it is a whole number"
fi

# Ray's workers have a working directory of their own.
[[ $OUTPUT_DIR == /* ]] || OUTPUT_DIR=$PWD/$OUTPUT_DIR
run_dir=$OUTPUT_DIR
[[ $VAL_ONLY == 0 ]] || run_dir+=/val_only/$(date +%Y%m%dT%H%M%S)

# hydra_list "A B": ['A','B']
hydra_list() {
    local item list=
    for item in $1; do
        list+="${list:+,}'$item'"
    done
    echo "[$list]"
}

# GRPO with second turns in its validation is CIPO without corrections in training.
estimator=$ALGO
[[ $VAL_CORRECTIONS == 0 ]] || estimator=cipo

prompt_length=$MAX_PROMPT_LENGTH
[[ $estimator == grpo ]] || prompt_length=$CORRECTION_PROMPT_LENGTH

train_nodes=$NNODES
train_gpus=$GPUS_PER_NODE
of_workers=+ray_kwargs.ray_init.runtime_env.env_vars

settings=(
    algorithm.adv_estimator="$estimator"
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
    actor_rollout_ref.actor.optim.lr_warmup_steps="$WARMUP_STEPS"
    actor_rollout_ref.actor.ppo_mini_batch_size="$MINI_BATCH_SIZE"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS_PER_GPU"
    actor_rollout_ref.actor.clip_ratio="$CLIP_RATIO"
    actor_rollout_ref.actor.clip_ratio_low="$CLIP_RATIO"
    actor_rollout_ref.actor.clip_ratio_high="$CLIP_RATIO_HIGH"
    actor_rollout_ref.actor.loss_agg_mode=token-mean
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
    actor_rollout_ref.rollout.val_kwargs.temperature="$VAL_TEMPERATURE"
    actor_rollout_ref.rollout.val_kwargs.top_p="$VAL_TOP_P"
    actor_rollout_ref.rollout.val_kwargs.n="$VAL_N"
    reward.custom_reward_function.path="pkg://verl_cipo.rewards.$REWARD"
    reward.custom_reward_function.name=compute_score
    trainer.project_name=verl_cipo
    trainer.experiment_name="$EXPERIMENT"
    trainer.default_local_dir="'$OUTPUT_DIR/checkpoints'"
    trainer.rollout_data_dir="'$run_dir/rollouts'"
    trainer.validation_data_dir="'$run_dir/validation'"
    trainer.logger="$(hydra_list "console file $LOGGER")"
    trainer.total_training_steps="$STEPS"
    trainer.total_epochs=1000
    trainer.val_before_train=True
    trainer.val_only="$([[ $VAL_ONLY == 1 ]] && echo True || echo False)"
    trainer.test_freq="$TEST_FREQ"
    trainer.save_freq=25
    trainer.max_actor_ckpt_to_keep=2
    hydra.run.dir="'$run_dir/hydra'"
    # verl's loggers run in a Ray worker, which need not inherit this shell's environment.
    $of_workers.VERL_FILE_LOGGER_PATH="'$run_dir/metrics.jsonl'"
)

if [[ " $LOGGER " == *" tensorboard "* ]]; then
    settings+=("$of_workers.TENSORBOARD_DIR='$run_dir/tensorboard'")
fi
if [[ " $LOGGER " == *" mlflow "* ]]; then
    settings+=("$of_workers.MLFLOW_TRACKING_URI='${MLFLOW_TRACKING_URI:-sqlite:///$OUTPUT_DIR/mlflow.db}'")
fi

if awk "BEGIN { exit !($KL_COEF > 0) }"; then
    settings+=(
        actor_rollout_ref.actor.use_kl_loss=True
        actor_rollout_ref.actor.kl_loss_coef="$KL_COEF"
        actor_rollout_ref.actor.kl_loss_type=low_var_kl
    )
else
    settings+=(actor_rollout_ref.actor.use_kl_loss=False)
fi

overlong_tokens=$(awk "BEGIN { printf \"%d\", $MAX_RESPONSE_LENGTH * $OVERLONG_SHARE }")
if ((overlong_tokens > 0)); then
    settings+=(
        reward.reward_manager.name=dapo
        +reward.reward_kwargs.max_resp_len="$MAX_RESPONSE_LENGTH"
        +reward.reward_kwargs.overlong_buffer_cfg.enable=True
        +reward.reward_kwargs.overlong_buffer_cfg.len="$overlong_tokens"
        +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0
        +reward.reward_kwargs.overlong_buffer_cfg.log=False
    )
fi

if [[ $DYNAMIC_SAMPLING == True ]]; then
    settings+=(algorithm.filter_groups.enable=True algorithm.filter_groups.metric=acc)
fi

if ((LORA_RANK > 0)); then
    settings+=(
        actor_rollout_ref.model.lora_rank="$LORA_RANK"
        actor_rollout_ref.model.lora_alpha="$LORA_RANK"
        actor_rollout_ref.model.target_modules=all-linear
        # The engine reads the weights itself, and the actor sends it adapters alone, a layer at a time.
        actor_rollout_ref.rollout.load_format=safetensors
        actor_rollout_ref.rollout.layered_summon=True
        # Nothing trains the weights beneath the adapters.
        actor_rollout_ref.actor.fsdp_config.model_dtype=bf16
    )
fi

if [[ $estimator == cipo ]]; then
    settings+=(
        algorithm.cipo.val_corrections="$VAL_CORRECTIONS"
        algorithm.cipo.prompt.template="$REWARD"
    )
    if [[ $ALGO == cipo ]]; then
        settings+=(
            algorithm.cipo.replay_fraction="$REPLAY_FRACTION"
            algorithm.cipo.schedule="$SCHEDULE"
            algorithm.cipo.preset="$PRESET"
            algorithm.cipo.source="$SOURCE"
            algorithm.cipo.aux.coef="$AUX_COEF"
            algorithm.cipo.budget="$BUDGET"
            algorithm.cipo.transfer.kind="$TRANSFER"
        )
    else
        settings+=(algorithm.cipo.replay_fraction=0)
    fi
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
        ROLLOUT_GPUS_PER_NODE=${ROLLOUT_GPUS_PER_NODE:-$((GPUS_PER_NODE / 2))}  # [half] separate_async: for rollout
        train_gpus=$((GPUS_PER_NODE - ROLLOUT_GPUS_PER_NODE))
    else
        ROLLOUT_NNODES=${ROLLOUT_NNODES:-$((NNODES / 2))}  # [half] separate_async: nodes for rollout
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

# verl's file logger empties its file at every start: that of an earlier one becomes metrics_1.jsonl, metrics_2.jsonl...
keep_metrics() {
    local number=1
    [[ -s $run_dir/metrics.jsonl ]] || return 0
    while [[ -e $run_dir/metrics_$number.jsonl ]]; do
        number=$((number + 1))
    done
    mv "$run_dir/metrics.jsonl" "$run_dir/metrics_$number.jsonl"
}

# launch [KEY=VALUE...]: the script's own settings and what was given on its command line; the last of a key counts.
launch() {
    local arguments=(--config-path pkg://verl_cipo.config --config-name "$CONFIG_NAME" "${settings[@]}" "$@")
    # A dry run looks for the model on this machine only.
    case $DRY_RUN in
        args) printf '%s\n' "${arguments[@]}" ;;
        1) HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$PYTHON" -m verl_cipo.check "${arguments[@]}" ;;
        config) HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} exec "$PYTHON" -m verl_cipo.check --config "${arguments[@]}" ;;
        0)
            require_files
            "$PYTHON" -m verl_cipo.check "${arguments[@]}"
            mkdir -p "$run_dir"
            keep_metrics
            echo "the run's folder: $run_dir"
            exec > >(tee -i -a "$run_dir/train.log") 2>&1
            PYTHONUNBUFFERED=1 exec "$PYTHON" -m verl.trainer.main_ppo "${arguments[@]}"
            ;;
    esac
}
