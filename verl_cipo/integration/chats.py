"""Correction prompts over a Hugging Face tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import CorrectionPrompt


def correction_prompt(
    cipo: CIPOConfig, tokenizer: Any, *, prompt_length: int, count_tokens: Callable[[list[dict]], int]
) -> CorrectionPrompt:
    """The correction prompt; ``count_tokens`` knows the chat as it will be rendered."""
    return CorrectionPrompt(
        cipo.prompt,
        prompt_length=prompt_length,
        count_tokens=count_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Making prompts and reading attempts in the driver, where no agent loop renders the chat (tools are left out)."""

    prompt: CorrectionPrompt
    encode: Callable[[list[dict]], list[int]]
    """Tokens of a chat, with the generation prompt."""
    decode: Callable[[list[int]], str]
    """Text of an attempt's tokens, without special tokens."""

    @classmethod
    def of(cls, config: DictConfig, cipo: CIPOConfig, tokenizer: Any) -> "Chats":
        """With the tokenizer and the chat template options of a run."""
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
        return cls(prompt=prompt, encode=encode, decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
