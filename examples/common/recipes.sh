# Sourced by the launch scripts first: what RECIPE puts in the place of a script's defaults. A variable that the user
# sets counts more.

RECIPE=${RECIPE:-base}  # base | dapo: clip-higher, overlong penalty, no KL, dynamic sampling | lora: adapters, one GPU

case $RECIPE in
    dapo)
        CLIP_RATIO_HIGH=${CLIP_RATIO_HIGH:-0.28}
        KL_COEF=${KL_COEF:-0}
        WARMUP_STEPS=${WARMUP_STEPS:-10}
        OVERLONG_SHARE=${OVERLONG_SHARE:-0.2}
        DYNAMIC_SAMPLING=${DYNAMIC_SAMPLING:-True}
        ;;
    lora)
        LORA_RANK=${LORA_RANK:-32}
        LEARNING_RATE=${LEARNING_RATE:-1e-5}
        GPUS_PER_NODE=${GPUS_PER_NODE:-1}
        OFFLOAD=${OFFLOAD:-True}
        TRAIN_BATCH_SIZE=${TRAIN_BATCH_SIZE:-32}
        MINI_BATCH_SIZE=${MINI_BATCH_SIZE:-16}
        MAX_RESPONSE_LENGTH=${MAX_RESPONSE_LENGTH:-2048}
        MAX_TOKENS_PER_GPU=${MAX_TOKENS_PER_GPU:-8192}
        ROLLOUT_MEMORY=${ROLLOUT_MEMORY:-0.6}
        ;;
esac
