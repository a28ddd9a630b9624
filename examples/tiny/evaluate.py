"""Sampling from the tiny model and scoring both turns: the attempt, and its correction."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tiny.problems import Problem
from verl_cipo.core.prompts import render

# verl's own GSM8K example appends this sentence to every question.
INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
MAX_NEW_TOKENS = 56  # the longest worked solution takes 47
ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def is_right(text: str, answer: int) -> bool:
    """Whether the last `#### N` in the last 300 characters is the answer, as verl's GSM8K scorer has it (strict)."""
    found = ANSWER.findall(text[-300:])
    return bool(found) and found[-1].replace(",", "") == str(answer)


def user_message(problem: Problem) -> str:
    return f"{problem.question} {INSTRUCTION}"


def correction_message(template: str, problem: Problem, attempt: str) -> str:
    return render(template, user_message(problem), attempt.strip())


def prompt_ids(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    """Token ids of a chat with one user message, up to where the answer begins."""
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


@torch.no_grad()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contents: list[str], *, temperature: float = 1.0
) -> list[str]:
    """One response a user message, drawn from the model at `temperature` (0: greedy), without the end token."""
    model.eval()
    greedy = {"do_sample": False}
    draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else greedy
    texts: list[str] = []
    for at in range(0, len(contents), 256):
        prompts = [prompt_ids(tokenizer, content) for content in contents[at : at + 256]]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        ids = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, **draw)[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    model.train()
    return texts


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    template: str,
    *,
    repeats: int = 1,
) -> dict[str, float]:
    """Sampled accuracy and what the correction turn makes of each attempt, over `repeats` attempts a problem.

    pass1      share of attempts that are right
    w2c, c2c   share of wrong, of right attempts whose correction is right
    corrected  share of corrections that are right
    format     share of attempts that state an answer
    """
    problems = problems * repeats
    attempts = sample(model, tokenizer, [user_message(p) for p in problems])
    turns = [correction_message(template, p, a) for p, a in zip(problems, attempts, strict=True)]
    first = [is_right(text, p.answer) for p, text in zip(problems, attempts, strict=True)]
    second = [is_right(text, p.answer) for p, text in zip(problems, sample(model, tokenizer, turns), strict=True)]
    kept = sum(a and b for a, b in zip(first, second, strict=True))
    return {
        "pass1": sum(first) / len(problems),
        "w2c": (sum(second) - kept) / max(1, len(problems) - sum(first)),
        "c2c": kept / max(1, sum(first)),
        "corrected": sum(second) / len(problems),
        "format": sum(bool(ANSWER.search(text)) for text in attempts) / len(problems),
    }
