"""What the driver checks and reports before any worker starts: lengths, the model's limits, the data set's rows.

verl finds out in a worker, at the first sequence that is too long, hours in. Corrections are the longest sequences of a
run: their prompt holds question and attempt.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.core.contents import last_question
from verl_cipo.core.nudge import listed, nudged
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.integration.group_filter import filter_metric
from verl_cipo.integration.rendering import Rendering

logger = logging.getLogger("verl_cipo")

SPLIT_BY = {
    "fsdp": "fsdp_config.ulysses_sequence_parallel_size",
    "fsdp2": "fsdp_config.ulysses_sequence_parallel_size",
    "megatron": "megatron.context_parallel_size",
    "veomni": "veomni.ulysses_parallel_size",
    "torchtitan": "torchtitan.tensor_parallel_size",
}
"""``actor.strategy`` -> the key, below actor or ref, of the number of GPUs that share a sequence."""
OLD_SPLIT = "ulysses_sequence_parallel_size"
"""FSDP's former key for it, which verl prefers where it is above 1; the reference inherits this one alone."""


def check_lengths(config: DictConfig, *, corrects: bool = True) -> None:
    """Compare ``rollout.prompt_length`` and ``response_length`` with what they must fit into.

    Args:
        corrects: whether corrections are rolled out at all. Without them verl shortens a response that has no room in
            ``max_model_len``, as it does with GRPO.

    Raises:
        CIPOConfigError: names the key, its value and what to set.
    """
    rollout = config.actor_rollout_ref.rollout
    prompt, response = rollout.prompt_length, rollout.response_length
    longest = prompt + response
    sequence = (
        f"the longest sequence, actor_rollout_ref.rollout.prompt_length={prompt} and "
        f"actor_rollout_ref.rollout.response_length={response}"
    )
    if prompt < config.data.max_prompt_length:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={prompt} would cut the start off prompts of up to "
            f"data.max_prompt_length={config.data.max_prompt_length} tokens: raise the one or lower the other"
        )
    if corrects and rollout.max_model_len is not None and rollout.max_model_len < longest:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than {sequence}: set it to "
            f"{longest} or more, or lower rollout.prompt_length"
        )
    for key, tokens, gpus in _limits(config):
        if tokens is None or tokens * gpus < longest:
            shared = f" over the {gpus} GPUs that share a sequence" if gpus > 1 else ""
            raise CIPOConfigError(
                f"actor_rollout_ref.{key}={tokens} is less than {sequence}{shared}: set it to "
                f"{math.ceil(longest / gpus)} or more, or lower rollout.prompt_length"
            )


def check_model_length(config: DictConfig, hf_config: Any) -> None:
    """The same with the model's own limit, which holds where ``rollout.max_model_len`` is null.

    verl's servers shorten the response of a prompt that leaves too little room, and fail where it leaves none.

    Raises:
        CIPOConfigError: as :func:`check_lengths`.
    """
    from verl.workers.rollout.utils import get_max_position_embeddings

    rollout = config.actor_rollout_ref.rollout
    if rollout.max_model_len is not None:
        return
    longest, positions = rollout.prompt_length + rollout.response_length, get_max_position_embeddings(hf_config)
    if positions < longest:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={rollout.prompt_length} with "
            f"actor_rollout_ref.rollout.response_length={rollout.response_length} is more than the {positions} tokens "
            f"of {config.actor_rollout_ref.model.path}: lower them to {positions} together"
        )


def _limits(config: DictConfig) -> list[tuple[str, int | None, int]]:
    """(key below ``actor_rollout_ref``, tokens of a micro-batch on a GPU, GPUs that share a sequence) of each pass."""
    worker = config.actor_rollout_ref
    strategy = worker.actor.strategy
    if strategy not in SPLIT_BY or OmegaConf.select(worker.actor, "megatron.dynamic_context_parallel"):
        return []
    limits = []
    if worker.actor.use_dynamic_bsz:
        gpus = gpus_of_a_sequence(worker.actor, strategy)
        for key in ("actor.ppo_max_token_len_per_gpu", "rollout.log_prob_max_token_len_per_gpu"):
            limits.append((key, OmegaConf.select(worker, key), gpus))
    if worker.ref.log_prob_use_dynamic_bsz and _has_reference_worker(config):
        key = "ref.log_prob_max_token_len_per_gpu"
        limits.append((key, OmegaConf.select(worker, key), gpus_of_a_sequence(worker.ref, strategy)))
    return limits


def gpus_of_a_sequence(section: DictConfig, strategy: str) -> int:
    """Over how many GPUs an engine splits each sequence; section: of the actor or the reference."""
    old = section.get(OLD_SPLIT, 1) if strategy.startswith("fsdp") else 1
    return old if old > 1 else OmegaConf.select(section, SPLIT_BY[strategy])


def _has_reference_worker(config: DictConfig) -> bool:
    """Whether a worker of its own computes the reference; with LoRA the actor does, without its adapters."""
    if not (config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss):
        return False
    model = config.actor_rollout_ref.model
    rank = OmegaConf.select(model, "lora.rank") or model.get("lora_rank") or 0
    return rank <= 0 and model.get("lora_adapter_path") is None


def load_model(config: DictConfig) -> Any | None:
    """What verl will load of the model but its weights: ``tokenizer``, ``processor`` and ``hf_config``.

    None where this machine cannot read it, because only the cluster can.

    Raises:
        hydra.errors.InstantiationException: the model's section cannot be used for another reason.
    """
    from verl.utils.config import omega_conf_to_dataclass

    try:
        return omega_conf_to_dataclass(config.actor_rollout_ref.model)
    except (OSError, InstantiationException) as error:
        # Hydra wraps what the constructor of a dataclass raises.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        logger.warning("the driver cannot load the tokenizer, so prompt lengths are checked later: %s", cause)
        return None


def check_model(config: DictConfig, cipo: CIPOConfig) -> bool:
    """Whether the driver could read the model, with which the settings then go together.

    Where it could not, the trainer still does :func:`check_prompt_length`.

    Raises:
        CIPOConfigError: as :func:`check_prompt_length` and ``check_model_length``.
    """
    model = load_model(config)
    if model is None:
        return False
    check_prompt_length(config, cipo, model.tokenizer, model.processor)
    if cipo.corrects:
        check_model_length(config, model.hf_config)
    return True


def check_prompt_length(config: DictConfig, cipo: CIPOConfig, tokenizer: Any, processor: Any | None = None) -> None:
    """Compare ``actor_rollout_ref.rollout.prompt_length`` with the shortest correction prompt.

    Raises:
        CIPOConfigError: not even an empty question with a short attempt fits, or the chat template shows no attempt.
    """
    if not cipo.corrects:
        return
    length = config.actor_rollout_ref.rollout.prompt_length
    prompt = Rendering.of(config, cipo, tokenizer, processor).prompt
    if not prompt.shows_attempts():
        raise CIPOConfigError(
            f"{ROOT}.prompt.form={cipo.prompt.form} with {config.actor_rollout_ref.model.path}: its chat template "
            f"leaves out earlier turns of the assistant; use {ROOT}.prompt.form=message"
        )
    needed = prompt.minimum_tokens()
    if length < needed:
        of_each = f"{cipo.prompt.attempts} * " if cipo.prompt.attempts > 1 else ""
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={length} is too small for any correction: the correction prompt "
            f"alone takes {needed} tokens; allow that plus question and attempt "
            f"(data.max_prompt_length + {of_each}data.max_response_length + {needed} shows every attempt in full)"
        )


LOOKED_AT = 32
"""Rows, evenly spread: an image may be decoded when its row is read."""
NEEDED = ("raw_prompt", "index")


def looked_at(dataset: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The rows of the training set that are looked at, by number."""
    numbers = sorted({len(dataset) * i // LOOKED_AT for i in range(LOOKED_AT)}) if len(dataset) else []
    return {number: dataset[number] for number in numbers}


def check_questions(dataset: Sequence[Mapping[str, Any]], cipo: CIPOConfig) -> None:
    """Look at some rows of the training set as verl's rollout will get them.

    Rows without a question are trained as GRPO trains them, which a warning says; a data set of nothing else is
    refused, where corrections are wanted of it. A warning tells, too, that all rows have one index, from which CIPO
    draws anchors.

    Args:
        dataset: verl's, its rows with ``raw_prompt``, a list of messages, and ``index``.

    Raises:
        CIPOConfigError: a row lacks one of them, ``raw_prompt`` is something else, or no row has a question.
    """
    rows = looked_at(dataset)
    numbers = list(rows)
    for number, row in rows.items():
        _check_row(number, row)
    if not (cipo.rolls_out or cipo.pairs):
        return
    without = [number for number, row in rows.items() if last_question(row["raw_prompt"]) is None]
    if without and len(without) == len(rows):
        raise CIPOConfigError(
            f"data.train_files: none of the {len(rows)} rows looked at has a question; in row {without[0]}, for "
            "example, there is no user message, or the content of the last one is neither text nor a list of parts "
            "that have a type. CIPO puts the attempt beside the question; use algorithm.adv_estimator=grpo for others"
        )
    if without:
        logger.warning(
            "data.train_files: %d of the %d rows looked at have no question (text, or parts such as images); they are "
            "trained as in GRPO and counted as cipo/anchors/skipped/no_text_question",
            len(without),
            len(rows),
        )
    if len(rows) > 1 and len({str(row["index"]) for row in rows.values()}) == 1:
        logger.warning(
            "data.train_files: all %d rows looked at have extra_info.index=%s; number the rows: CIPO "
            "identifies prompts by it when it draws anchors",
            len(rows),
            rows[numbers[0]]["index"],
        )


def _check_row(number: int, row: Mapping[str, Any]) -> None:
    for name in NEEDED:
        if name not in row:
            raise CIPOConfigError(
                f"data.train_files: row {number} has no {name!r}; your own data set (data.custom_cls) must provide it"
            )
    messages = row["raw_prompt"]
    if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
        raise CIPOConfigError(
            f"data.train_files: raw_prompt of row {number} is not a list of messages but {str(messages)[:60]!r}: CIPO "
            "puts the attempt into the chat, so it needs role and content, not plain text or token ids"
        )


def check_contexts(dataset: Sequence[Mapping[str, Any]], cipo: CIPOConfig, prompt: CorrectionPrompt) -> None:
    """Look at the contexts of some rows of the training set.

    A warning tells how many rows have a context with which the prompt is too long: it is left out when they come up.

    Args:
        prompt: of corrections; it knows ``rollout.prompt_length`` and counts tokens.

    Raises:
        CIPOConfigError: no row has contexts, a row holds something else, or none leaves room in
            ``rollout.prompt_length``, for the question or, with ``nudge.corrections``, for an attempt beside it.
    """
    if not cipo.nudges:
        return
    column, rows = str(cipo.nudge.contexts), looked_at(dataset)
    lengths: list[int] = []
    found, has_room = 0, False
    prompt_length = prompt.prompt_length
    for number, row in rows.items():
        try:
            texts = listed(row, column)
        except ValueError as error:
            raise CIPOConfigError(f"data.train_files, row {number}: {error}") from error
        found += bool(texts)
        chats = [chat for text in texts if (chat := nudged(row["raw_prompt"], text, cipo.nudge)) is not None]
        if chats:
            lengths.append(max(map(prompt.count_tokens, chats)))
        if cipo.nudge.corrections and not has_room:
            has_room = any(prompt.refusals(chat, ["attempt"])[0] != "too_long" for chat in chats)
    if rows and not found:
        raise CIPOConfigError(
            f"{ROOT}.nudge.contexts={column}: none of the {len(rows)} rows of data.train_files looked at has contexts "
            "in a column of this name, also in extra_info; python -m verl_cipo.contexts writes one, null turns them off"
        )
    too_long = [length for length in lengths if length > prompt_length]
    if too_long and len(too_long) == len(lengths):
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={prompt_length} is too small for {ROOT}.nudge.contexts={column}: "
            f"with their contexts prompts take up to {max(lengths)} tokens, raise it to that or more"
        )
    if cipo.nudge.corrections and lengths and not has_room:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.prompt_length={prompt_length} is too small for {ROOT}.nudge.corrections=true: "
            f"no correction prompt has room for an attempt beside a question with a context, of up to {max(lengths)} "
            f"tokens; raise it, or set {ROOT}.nudge.corrections=false"
        )
    if too_long:
        logger.warning(
            "data.train_files: with their contexts %d of the %d prompts looked at take more than "
            "actor_rollout_ref.rollout.prompt_length=%d tokens, up to %d: contexts that do not fit are left out and "
            "counted as cipo/nudge/skipped/too_long",
            len(too_long),
            len(lengths),
            prompt_length,
            max(lengths),
        )


def announce(config: DictConfig, cipo: CIPOConfig, *, validation: bool = True) -> None:
    """What the second turn adds to a validation, and what a group filter takes from budget=auto.

    validation: False where the first is said elsewhere.
    """
    trainer = config.trainer
    if (
        validation
        and cipo.val_corrections > 0
        and (trainer.val_before_train or trainer.test_freq > 0 or trainer.val_only)
    ):
        print(
            f"[verl_cipo] {ROOT}.val_corrections={cipo.val_corrections}: a validation samples "
            f"{1 + cipo.val_corrections} times as many answers as without second turns; set it to 0 to turn them off"
        )
    if cipo.moves_budget and cipo.keep_all_wrong == 0 and filter_metric(config) is not None:
        print(
            f"[verl_cipo] {ROOT}.budget=auto with algorithm.filter_groups.enable=true: it corrects where no attempt is "
            "right, and of these prompts those are evicted whose attempts are all alike. So nearly all its sessions "
            f"become further attempts; set {ROOT}.keep_all_wrong=0.25 to keep some for corrections, or "
            f"{ROOT}.budget=fixed"
        )
