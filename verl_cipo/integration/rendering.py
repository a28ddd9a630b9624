"""Correction prompts and attempts as a run renders and reads them: in the driver, and in its rollout workers."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop import AgentLoopWorker
from verl.utils.tokenizer import continuous_token_wiring
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.prompts import CorrectionPrompt, correction_prompt

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
class Rendering:
    """Making prompts in the driver, where no agent loop renders the chat (tools are left out)."""

    prompt: CorrectionPrompt
    encode: Callable[[list[dict]], list[int]]
    """Tokens of a chat, with the generation prompt."""

    @classmethod
    def of(cls, config: DictConfig, cipo: CIPOConfig, tokenizer: Any) -> "Rendering":
        """With the tokenizer and the chat template options of a run."""
        warn_of_thinking(tokenizer, cipo.prompt)
        options = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create({}))

        def encode(messages: list[dict]) -> list[int]:
            return tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
            )

        prompt = correction_prompt(
            cipo,
            tokenizer,
            prompt_length=config.actor_rollout_ref.rollout.prompt_length,
            count_tokens=lambda messages: len(encode(messages)),
        )
        return cls(prompt=prompt, encode=encode)


def agent_loop_prompt(worker: AgentLoopWorker, cipo: CIPOConfig) -> CorrectionPrompt:
    """The correction prompt of a rollout worker: tokens are counted as its agent loops render the chat.

    That a model has no token builder of its own, verl says at each session; from here on it says it once.
    """
    logging.getLogger(continuous_token_wiring.__name__).addFilter(_ONCE)
    builder = create_continuous_token_builder(
        worker.tokenizer,
        hf_model_type=worker.hf_model_type,
        chat_template_kwargs=worker.config.data.get("apply_chat_template_kwargs", {}),
        processor=worker.processor,
    )
    # An agent loop may offer the model a selection of the tools: counting all of them is never too few tokens.
    tools = [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in worker.tools]
    return correction_prompt(
        cipo,
        worker.tokenizer,
        prompt_length=worker.rollout_config.prompt_length,
        count_tokens=lambda messages: len(builder.build_initial_tokens(messages, tools=tools or None)),
    )
