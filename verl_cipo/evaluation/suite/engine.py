"""Sampling from a checkpoint with vLLM's offline engine."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from verl_cipo.evaluation.files import existing_folder
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.problems import Sampling

GIB = 2**30
KV_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's: GiB of the KV cache on a CPU, before any option."""

_ENVIRONMENT = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
"""Of vLLM, where nothing else is set: its log would come between the figures on stdout."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An answer. text: without special tokens; tokens: how many it took; truncated: it was cut off by max_tokens."""

    text: str
    tokens: int
    truncated: bool


class Engine(Protocol):
    """What generation needs of a model."""

    tokenizer: Any
    max_model_len: int
    """Tokens of prompt and answer together, at most."""

    def encode(self, messages: list[dict]) -> list[int]:
        """Tokens of a chat, with the generation prompt."""
        ...

    def sample(self, prompts: Sequence[list[int]], *, seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """One answer a prompt."""
        ...


def model_folder(checkpoint: str) -> str:
    """The checkpoint, which is a Hugging Face folder with weights. No name of the hub is tried in its place.

    Raises: EvaluationError for anything else; for a checkpoint of verl it names the folder within, or verl's merger.
    """
    folder = existing_folder("--checkpoint", checkpoint)
    if (folder / "lora_adapter").is_dir():
        raise EvaluationError(
            f"--checkpoint {checkpoint}: verl's merger left the adapter beside the weights, in lora_adapter; "
            "docs/launch.md ('Use a checkpoint') has the command that adds it to them"
        )
    if (folder / "config.json").is_file() and weight_files(folder):
        return str(folder)
    for actor in (folder, folder / "actor"):
        # Megatron's weights are such a folder already, unless use_dist_checkpointing is on.
        saved = actor / "model" / "huggingface"
        if weight_files(saved):
            raise EvaluationError(f"--checkpoint {checkpoint}: verl's Megatron engine saved it; give {saved}")
        if any(actor.glob("model_world_size_*_rank_*.pt")):
            backend = "fsdp"
        elif (actor / "model" / "dist_ckpt").is_dir():
            backend = "megatron"
        else:
            continue
        raise EvaluationError(
            f"--checkpoint {checkpoint}: a checkpoint of verl in shards; merge it first and give --target_dir:\n"
            f"    python -m verl.model_merger merge --backend {backend} --local_dir {actor} "
            f"--target_dir {folder / 'merged'}"
        )
    raise EvaluationError(f"--checkpoint {checkpoint}: expected config.json and *.safetensors or *.bin in it")


def weight_files(folder: Path) -> list[Path]:
    """The files with weights of a Hugging Face folder; vLLM loads the first of two formats."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def with_cpu_memory(options: Mapping[str, Any], checkpoint: str, *, total: int, free: int) -> dict[str, Any]:
    """`options` of an engine on the CPU, with half of what the weights leave of the free memory for the KV cache.

    vLLM's own default is .92 of all memory, as if the machine did nothing else.

    Args:
        total, free: bytes of memory.

    Raises: EvaluationError when the weights, or what is asked for beside them, are more than is free.
    """
    weights = sum(file.stat().st_size for file in weight_files(Path(checkpoint)))
    left = free - weights
    workers = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    setting = "--engine kv_cache_memory_bytes"
    if space := os.environ.get(KV_CACHE_VARIABLE):
        setting = f"{KV_CACHE_VARIABLE}={space}"
        asked = _number(setting, space) * GIB * workers
    elif (given := options.get("kv_cache_memory_bytes")) is not None:
        setting = f"{setting}={given}"
        asked = _number(setting, given) * workers
    elif (given := options.get("gpu_memory_utilization")) is not None:
        setting = f"--engine gpu_memory_utilization={given}"
        asked = _number(setting, given) * total * workers - weights
    else:
        asked = max(left // 2, 1)
        options = {**options, "kv_cache_memory_bytes": max(asked // workers, 1)}
    if asked > left:
        raise EvaluationError(
            f"{setting}: {asked / GIB:.1f} GiB for the KV cache and {weights / GIB:.1f} GiB for the weights do not fit "
            f"into the {free / GIB:.1f} GiB of memory that are free: take less, or free some"
        )
    return dict(options)


def _number(setting: str, given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError):
        raise EvaluationError(f"{setting}: expected a number") from None


class VLLMEngine:
    """vLLM's `LLM`.

    Args:
        checkpoint: Hugging Face folder.
        options: arguments of `vllm.LLM`, such as tensor_parallel_size, max_model_len, dtype.
        template: arguments of the tokenizer's chat template, such as enable_thinking.

    Raises: EvaluationError when vLLM is missing or does not start.
    """

    def __init__(self, checkpoint: str, *, options: Mapping[str, Any], template: Mapping[str, Any]) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
        except ImportError as error:
            raise EvaluationError(f"generation needs vLLM, which cannot be imported: {error}") from error
        self._vllm = vllm
        self._template = dict(template)
        if vllm.platforms.current_platform.is_cpu():
            # As vLLM will see it: within a container's limit.
            from vllm.utils.cpu_resource_utils import get_memory_node_info

            memory = get_memory_node_info()
            options = with_cpu_memory(options, checkpoint, total=memory.total_memory, free=memory.available_memory)
            # vLLM 0.28 rewinds a request's generator after a prompt that was computed in parts, which torch's generator
            # of the CPU cannot do: the engine dies with "CPU Generator does not use offset". Compiling takes minutes
            # on few cores, and vLLM's sampler compiles even under enforce_eager.
            options = {"enable_chunked_prefill": False, "enforce_eager": True, **options}
            if options["enforce_eager"]:
                os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        try:
            self._llm = vllm.LLM(model=checkpoint, **options)
        except Exception as error:
            # The cause is often in the log of another process, above.
            raise EvaluationError(
                f"vLLM did not start, {type(error).__name__}: {' '.join(str(error).split())}; --engine KEY=VALUE sets "
                f"its arguments, gpu_memory_utilization, max_model_len and max_num_seqs what memory it takes; it got "
                f"{options}"
            ) from error
        self.tokenizer = self._llm.get_tokenizer()
        self.max_model_len = self._llm.llm_engine.model_config.max_model_len

    def encode(self, messages: list[dict]) -> list[int]:
        """Tokens of a chat, with the generation prompt."""
        return self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **self._template
        )

    def sample(self, prompts: Sequence[list[int]], *, seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """One answer a prompt, each drawn with its own seed, so that an answer does not depend on its batch."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                self._vllm.SamplingParams(
                    n=1,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=seed,
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )
        answers = [output.outputs[0] for output in outputs]
        return [
            Completion(
                text=self.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
                tokens=len(answer.token_ids),
                truncated=answer.finish_reason == "length",
            )
            for answer in answers
        ]
