"""The shapes of the demo's task, and the options of verl that fit them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prepared folder (prepare.py) and the shapes that fit it. Lengths are in tokens."""

    folder: Path
    prompt_length: int = 64
    correction_prompt_length: int = 160
    response_length: int = 64
    train_batch_size: int = 16
    n: int = 8
    val_n: int = 4


def overrides(task: Task) -> list[str]:
    """verl options for ``task`` on one CPU, on top of the config ``cpu``."""
    return [
        f"data.train_files={task.folder / 'data' / 'train.parquet'}",
        f"data.val_files={task.folder / 'data' / 'val.parquet'}",
        f"data.train_batch_size={task.train_batch_size}",
        f"data.max_prompt_length={task.prompt_length}",
        f"data.max_response_length={task.response_length}",
        "data.seed=1",
        f"actor_rollout_ref.model.path={task.folder / 'model'}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={task.train_batch_size}",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
        f"actor_rollout_ref.rollout.n={task.n}",
        f"actor_rollout_ref.rollout.prompt_length={task.correction_prompt_length}",
        f"actor_rollout_ref.rollout.max_model_len={task.correction_prompt_length + task.response_length}",
        "actor_rollout_ref.rollout.max_num_seqs=256",
        # For training/rollout_probs_diff_*: shows after every weight sync that vLLM serves the new weights.
        "actor_rollout_ref.rollout.calculate_log_probs=true",
        f"actor_rollout_ref.rollout.val_kwargs.n={task.val_n}",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
        # The tokenizer spells what its prompts do not say in bytes, and answers here mention no attempt anyway.
        "+algorithm.cipo.prompt.standalone=false",
        "trainer.logger=[console,file]",
        "trainer.resume_mode=disable",
    ]
