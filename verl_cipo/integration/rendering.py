"""Correction prompts and attempts as a run renders and reads them: in the driver, and in its rollout workers."""

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopBase
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.utils.tokenizer import continuous_token_wiring
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_cipo.core.aux_loss.plan import Encode, Tools
from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.contents import media_of
from verl_cipo.core.prompts import CorrectionPrompt, correction_prompt
from verl_cipo.integration.tools import NO_TOOLS, RunTools, schemas

logger = logging.getLogger("verl_cipo")

THINKING_TOKENS = (
    "<think>",
    "<thinking>",
    "<thought>",
    "<reasoning>",
    "<seed:think>",
    "[THINK]",
    "<|channel|>",
    "<|think|>",
    "<|thinking|>",
    "<|START_THINKING|>",
    "<|begin_of_thought|>",
    "\u25c1think\u25b7",
)
"""Tokens that begin a thought in models that are known for it; gpt-oss's is <|channel|>analysis<|message|>."""


def warn_of_thinking(tokenizer: Any, prompt: PromptConfig) -> None:
    """Say once that the vocabulary knows thinking by another marker than attempts are stripped of."""
    if prompt.attempt_view == "no_thinking":
        markers = prompt.thinking_open + prompt.thinking_close
        known = getattr(tokenizer, "get_vocab", dict)()
        _warn_of_thinking(tuple(token for token in THINKING_TOKENS if token in known and token not in markers), prompt)


@functools.cache
def _warn_of_thinking(others: tuple[str, ...], prompt: PromptConfig) -> None:
    if others:
        logger.warning(
            "the tokenizer knows %s, and algorithm.cipo.prompt.attempt_view=no_thinking leaves out the text between "
            "%s and %s: if the model thinks between others, set prompt.thinking_open and prompt.thinking_close",
            ", ".join(others),
            prompt.thinking_open,
            prompt.thinking_close,
        )


class _Once(logging.Filter):
    """Lets each message through the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text in self._said:
            return False
        self._said.add(text)
        return True


_ONCE = _Once()


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Renders chats as verl's agent loops do: a processor puts tokens of images, video and audio where they stand."""

    builder: ContinuousTokenBuilder
    processor: Any | None
    dataset_cls: type | None
    """The data set's class, which loads media; not asked without a processor."""
    data: DictConfig
    """verl's ``data``."""

    @classmethod
    def of(
        cls,
        data: DictConfig,
        tokenizer: Any,
        *,
        processor: Any | None,
        dataset_cls: type | None,
        model_type: str | None,
    ) -> "Chats":
        """With the chat template's and the processor's options of a run."""
        builder = create_continuous_token_builder(
            tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=data.get("apply_chat_template_kwargs", {}),
            mm_processor_kwargs=data.get("mm_processor_kwargs", {}),
            processor=processor,
        )
        return cls(builder=builder, processor=processor, dataset_cls=dataset_cls, data=data)

    def tokens(self, messages: list[dict], tools: Tools = ()) -> list[int]:
        """Tokens of a chat that offers ``tools``, with the generation prompt."""
        return self.builder.build_initial_tokens(messages, tools=list(tools) or None, **self._media(messages))

    def _media(self, messages: list[dict]) -> dict[str, Any]:
        if self.processor is None or not media_of(messages):
            return {}
        # All that verl's method reads of an agent loop.
        loop: Any = SimpleNamespace(processor=self.processor, dataset_cls=self.dataset_cls, data_config=self.data)
        # In a thread of its own: whoever asks may run in an event loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, AgentLoopBase.process_multi_modal_info(loop, messages)).result()


def media_tokens(processor: Any | None) -> set[str]:
    """Texts in which a processor puts tokens of media."""
    names = (f"{kind}_token" for kind in ("image", "video", "audio"))
    return {token for name in names if isinstance(token := getattr(processor, name, None), str)}


Positions = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""Position ids (..., L) of a sequence of L tokens, int64, and what the model sees of its images and the like."""


def text_positions(tokens: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Of a model that counts tokens, whatever they stand for."""
    return torch.arange(len(tokens))


def positions_of(processor: Any | None) -> Positions:
    """As verl's rollout workers give them to a row."""
    get_rope_index = getattr(processor, "get_rope_index", None)
    if get_rope_index is None:
        return text_positions

    def positions(tokens: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        given = dict(inputs)
        if "mm_token_type_ids" in inspect.signature(get_rope_index).parameters:
            # verl makes them of the tokens where there were any, and stores none with a row.
            given["mm_token_type_ids"] = tokens
        worker: Any = SimpleNamespace(processor=processor)
        ids = tokens.unsqueeze(0)
        return AgentLoopWorker._compute_position_ids(worker, ids, torch.ones_like(ids), given).squeeze(0)

    return positions


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Making prompts in the driver, where no agent loop renders the chat."""

    prompt: CorrectionPrompt
    encode: Encode
    positions: Positions = text_positions
    tools: RunTools = NO_TOOLS

    @classmethod
    def of(
        cls,
        config: DictConfig,
        cipo: CIPOConfig,
        tokenizer: Any,
        processor: Any | None = None,
        *,
        tools: RunTools = NO_TOOLS,
    ) -> "Rendering":
        """With the tokenizer, the processor of images and the like, and the chat template options of a run."""
        warn_of_thinking(tokenizer, cipo.prompt)
        if processor is None:
            options = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create({}))

            def encode(messages: list[dict], tools: Tools = ()) -> list[int]:
                own = {**options, "tools": list(tools)} if tools else options
                return tokenizer.apply_chat_template(
                    messages, tokenize=True, add_generation_prompt=True, return_dict=False, **own
                )
        else:
            encode = Chats.of(
                config.data,
                tokenizer,
                processor=processor,
                dataset_cls=get_dataset_class(config.data),
                # verl binds the model's config to its processor.
                model_type=processor.config.model_type,
            ).tokens

        prompt = correction_prompt(
            cipo,
            tokenizer,
            prompt_length=config.actor_rollout_ref.rollout.prompt_length,
            # Counting all tools never undercounts.
            count_tokens=lambda messages: len(encode(messages, tools.all or ())),
            media_tokens=media_tokens(processor),
        )
        return cls(prompt=prompt, encode=encode, positions=positions_of(processor), tools=tools)


def agent_loop_prompt(worker: AgentLoopWorker, cipo: CIPOConfig) -> CorrectionPrompt:
    """The correction prompt of a rollout worker: tokens are counted as its agent loops render the chat.

    That a model has no token builder of its own, verl says at each session; from here on it says it once.
    """
    logging.getLogger(continuous_token_wiring.__name__).addFilter(_ONCE)
    chats = Chats.of(
        worker.config.data,
        worker.tokenizer,
        processor=worker.processor,
        dataset_cls=worker.dataset_cls,
        model_type=worker.hf_model_type,
    )
    # An agent loop may offer the model a selection of the tools: counting all of them never undercounts.
    tools = schemas(worker.tools)
    return correction_prompt(
        cipo,
        worker.tokenizer,
        prompt_length=worker.rollout_config.prompt_length,
        count_tokens=lambda messages: len(chats.tokens(messages, tools)),
        media_tokens=media_tokens(worker.processor),
    )
