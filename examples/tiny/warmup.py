"""Supervised warm-up of the tiny model: it learns the format, and to make use of a correction prompt.

Each step draws fresh training problems and takes the cross-entropy of two kinds of rows: solutions of plain problems,
and solutions that answer a correction prompt whose attempt is right, corrupted, or (later) the model's own.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tiny.evaluate import correction_message, evaluate, is_right, prompt_ids, sample, user_message
from examples.tiny.muon import Muon
from examples.tiny.problems import Level, Problem, corrupt, sample_problem

Row = tuple[list[int], list[int]]  # token ids of prompt and response


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """What the warm-up is made of."""

    steps: int = 500  # optimizer steps at most
    rows: int = 32  # rows a step, half of them corrections
    lr: float = 5e-3  # held after a linear rise over the first 20 steps, then cosine down to a tenth at `steps`
    right_share: float = 0.25  # share of shown attempts that are right
    own_share: float = 0.7  # share of the wrong ones that the model wrote itself, from step own_from on
    own_from: int = 150
    own_every: int = 50  # steps between samplings of the model's own attempts
    look_from: int = 160  # the first step with a look at fresh training problems
    look_every: int = 10
    stop_pass1: float = 0.42  # stop at this sampled accuracy ...
    stop_w2c: float = 0.20  # ... once this share of wrong attempts is corrected


class Optimizers:
    """Muon for the weight matrices, AdamW for embeddings and norms; half the steps that AdamW alone takes here."""

    def __init__(self, model: PreTrainedModel, plan: Warmup) -> None:
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._optimizers = (
            Muon(matrices, lr=plan.lr),
            torch.optim.AdamW(others, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: rate(s, plan)) for o in self._optimizers]

    def step(self) -> None:
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def rate(step: int, plan: Warmup) -> float:
    """The learning rate's factor at a step counted from 0."""
    return min(1.0, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / plan.steps))


def encode_row(tokenizer: PreTrainedTokenizerBase, content: str, solution: str) -> Row:
    response = tokenizer.encode(solution, add_special_tokens=False)
    return prompt_ids(tokenizer, content), [*response, tokenizer.eos_token_id]


def loss_of(model: PreTrainedModel, pad: int, rows: list[Row]) -> torch.Tensor:
    """Mean cross-entropy over the response tokens of all rows."""
    length = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.tensor([p + r + [pad] * (length - len(p) - len(r)) for p, r in rows])
    labels = torch.tensor([[-100] * len(p) + r + [-100] * (length - len(p) - len(r)) for p, r in rows])
    logits = model(input_ids=ids).logits  # no mask: padding is on the right, where a causal model does not see it
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def warm_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    level: Level,
    plan: Warmup,
    rng: random.Random,
) -> dict[str, int]:
    """Train `model` in place until a look meets the plan's targets or the steps are spent.

    Looks sample fresh problems of the training side, so the held-out problems decide nothing. Returns steps and tokens.
    """
    optimizers = Optimizers(model, plan)
    watched = [sample_problem(rng, level) for _ in range(192)]
    own: list[tuple[Problem, str]] = []  # the model's own wrong attempts
    tokens = step = 0
    bar = tqdm(range(1, plan.steps + 1), desc="warm-up", unit="step", dynamic_ncols=True)
    for step in bar:
        if step >= plan.own_from and (step - plan.own_from) % plan.own_every == 0:
            asked = [sample_problem(rng, level) for _ in range(plan.own_every * plan.rows // 4)]
            attempts = sample(model, tokenizer, [user_message(p) for p in asked])
            own = [(p, a) for p, a in zip(asked, attempts, strict=True) if not is_right(a, p.answer)]
        plain, corrections = [], []
        for _ in range(plan.rows // 2):
            problem = sample_problem(rng, level)
            plain.append(encode_row(tokenizer, user_message(problem), problem.solution))
            problem = sample_problem(rng, level)
            if rng.random() < plan.right_share:
                attempt = problem.solution
            elif own and rng.random() < plan.own_share:
                problem, attempt = rng.choice(own)
            else:
                attempt = corrupt(rng, problem)
            corrections.append(encode_row(tokenizer, correction_message(template, problem, attempt), problem.solution))
        for rows in (plain, corrections):  # apart, since corrections are longer: less padding
            (loss_of(model, tokenizer.pad_token_id, rows) / 2).backward()
            tokens += sum(len(prompt) + len(response) for prompt, response in rows)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step()
        if step >= plan.look_from and step % plan.look_every == 0:
            seen = evaluate(model, tokenizer, watched, template)
            bar.set_postfix({k: f"{seen[k]:.2f}" for k in ("pass1", "w2c", "c2c")})
            if seen["pass1"] >= plan.stop_pass1 and seen["w2c"] >= plan.stop_w2c:
                break
    bar.close()
    return {"steps": step, "tokens": tokens}
