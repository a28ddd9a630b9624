"""Correction prompts over characters for tokens: a chat costs 3 tokens a message and one a character."""

from verl_cipo.core.config import PromptConfig
from verl_cipo.core.prompts import CorrectionPrompt


def count(messages):
    return sum(3 + len(message["content"]) for message in messages)


def builder(prompt_length=10_000, *, count_tokens=count, control=(), **config):
    return CorrectionPrompt(
        PromptConfig(**config),
        prompt_length=prompt_length,
        count_tokens=count_tokens,
        encode=lambda text: [ord(c) for c in text],
        decode=lambda ids: "".join(map(chr, ids)),
        control=control,
    )


def ask(question="What is 2+2?"):
    return [{"role": "user", "content": question}]
