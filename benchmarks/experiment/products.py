"""Tasks of several products in one answer, whose starting model is made to have, or not to have, what CIPO stands on.

    What is 12*7, 45*9, 80*3?        #### 084405240

All products must be right, as in any task whose answer has several parts. What the starting model does with a question,
and with a wrong attempt at it, is taught: so a task states a premise about corrections, and shows what follows from it.
Answers and verifier are GSM8K's: the number after "####", all products in a row, three digits each.
"""

import json
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.tiny import prepare
from examples.tiny.evaluate import INSTRUCTION, correction_message, evaluate, user_message
from examples.tiny.problems import held_out
from examples.tiny.tokenizer import build_tokenizer
from examples.tiny.warmup import Optimizers, Warmup, encode_row, loss_of
from verl_cipo.core.config import NudgeConfig
from verl_cipo.core.nudge import nudged
from verl_cipo.core.prompts import TEMPLATES

Factors = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Products:
    """A task, and what its starting model is taught.

    parts: products in a question; first, second: ranges of their factors, both ends included; misread: second factors
    that are read as one less, with the probability `held`; slip: probability that one digit of a product is another;
    shown_slip: the same in the attempts that are shown in the warm-up; fix: probability that a wrong product is
    corrected where an attempt is shown; right ones are kept; warmup: of its fields steps, rows and lr count.
    """

    parts: int
    first: tuple[int, int] = (10, 99)
    second: tuple[int, int] = (3, 9)
    misread: tuple[int, ...] = ()
    held: float = 0.0
    slip: float = 0.0
    shown_slip: float = 0.0
    fix: float = 1.0
    seed: int = 1
    train: int = 4000
    val: int = 192
    shape: prepare.Shape = field(default_factory=prepare.Shape)
    warmup: Warmup = field(default_factory=lambda: Warmup(steps=1200, rows=64))


@dataclass(frozen=True, kw_only=True)
class ProductsWithContexts(Products):
    """The same, with strategy contexts that the starting model knows: it is taught what to make of each.

    contexts: text of a context -> probability that a second factor of `misread` is misread under it, in place of held;
    under_context: share of the taught attempts that have a context, any of them alike.
    """

    contexts: dict[str, float]
    under_context: float = 0.5


@dataclass(frozen=True)
class Problem:
    """A question; `examples.tiny.evaluate` asks it and judges the answers."""

    factors: tuple[Factors, ...]

    @property
    def question(self) -> str:
        return "What is " + ", ".join(f"{a}*{b}" for a, b in self.factors) + "?"

    @property
    def values(self) -> tuple[int, ...]:
        """The products."""
        return tuple(a * b for a, b in self.factors)

    @property
    def answer(self) -> str:
        return "".join(f"{value:03d}" for value in self.values)

    @property
    def solution(self) -> str:
        return written(self.values)


def written(values: tuple[int, ...]) -> str:
    """An answer with these products, in the format that is asked for."""
    return "#### " + "".join(f"{value:03d}" for value in values)


def draw(rng: random.Random, task: Products, *, from_held_out: bool = False) -> Problem:
    """A problem of one side of the split, which share none."""
    while True:
        factors = tuple((rng.randint(*task.first), rng.randint(*task.second)) for _ in range(task.parts))
        problem = Problem(factors)
        if held_out(problem.question) == from_held_out:
            return problem


def taught_attempt(
    rng: random.Random, task: Products, problem: Problem, *, slip: float, held: float | None = None
) -> tuple[int, ...]:
    """The products as the starting model is taught to answer the question, where a digit slips so often.

    held: in place of the task's.
    """
    values = []
    for a, b in problem.factors:
        value = a * (b - 1) if b in task.misread and rng.random() < (task.held if held is None else held) else a * b
        if rng.random() < slip:
            place = 10 ** rng.randrange(3)
            digit = value // place % 10
            value += place * (rng.choice([d for d in range(10) if d != digit]) - digit)
        values.append(value)
    return tuple(values)


def taught_question(rng: random.Random, task: Products, problem: Problem) -> tuple[str, float | None]:
    """What the starting model is asked for an attempt, and the probability of misreading, None for the task's."""
    if not isinstance(task, ProductsWithContexts) or rng.random() >= task.under_context:
        return user_message(problem), None
    context = rng.choice(list(task.contexts))
    return with_context(user_message(problem), context), task.contexts[context]


def with_context(question: str, context: str) -> str:
    """The message of an attempt under a context, as training asks it by default."""
    chat = nudged([{"role": "user", "content": question}], context, NudgeConfig())
    assert chat is not None
    return chat[-1]["content"]


def taught_correction(
    rng: random.Random, task: Products, problem: Problem, attempt: tuple[int, ...]
) -> tuple[int, ...]:
    """The products as it is taught to answer when it is shown `attempt`."""
    return tuple(
        value if shown == value or rng.random() < task.fix else shown
        for shown, value in zip(attempt, problem.values, strict=True)
    )


def warm_up(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Products, rng: random.Random) -> int:
    """Teach `model`, in place; returns the tokens that it saw."""
    optimizers, template, tokens = Optimizers(model, task.warmup), TEMPLATES["math"], 0
    for _ in tqdm(range(task.warmup.steps), desc="warm-up", unit="step", dynamic_ncols=True):
        plain, corrections = [], []
        for _ in range(task.warmup.rows // 2):
            problem = draw(rng, task)
            asked, held = taught_question(rng, task, problem)
            answer = written(taught_attempt(rng, task, problem, slip=task.slip, held=held))
            plain.append(encode_row(tokenizer, asked, answer))
            problem = draw(rng, task)
            attempt = taught_attempt(rng, task, problem, slip=task.shown_slip)
            answer = written(taught_correction(rng, task, problem, attempt))
            corrections.append(encode_row(tokenizer, correction_message(template, problem, written(attempt)), answer))
        for rows in (plain, corrections):
            (loss_of(model, tokenizer.pad_token_id, rows) / 2).backward()
            tokens += sum(len(prompt) + len(response) for prompt, response in rows)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step()
    return tokens


def make_tokenizer(task: Products) -> PreTrainedTokenizerBase:
    """The same for every task without contexts; the sentences that every prompt repeats are one token each.

    So is what a context adds to a prompt.
    """
    frame = TEMPLATES["math"].replace("{attempt}", "{question}").split("{question}")
    texts = ["system\nuser\nassistant\n", "What is 12*7, 45*9?", written((84, 405))]
    contexts = [with_context("", text) for text in task.contexts] if isinstance(task, ProductsWithContexts) else []
    return build_tokenizer(texts, [" " + INSTRUCTION, *filter(None, frame), *contexts])


def data_rows(task: Products, problems: list[Problem], split: str) -> list[dict]:
    """Rows as verl has them; those of training hold the contexts in extra_info."""
    rows = prepare.verl_rows(problems, split)
    if isinstance(task, ProductsWithContexts) and split == "train":
        for row in rows:
            row["extra_info"]["contexts"] = list(task.contexts)
    return rows


def prepare_products(output: Path, task: Products) -> dict:
    """As `examples.tiny.prepare.prepare`: data, model and prepare.json under `output`, or what is there already."""
    started, record = time.monotonic(), output / "prepare.json"
    made_with = json.loads(json.dumps(asdict(task)))
    if record.exists() and (before := json.loads(record.read_text()))["settings"] == made_with:
        return before
    record.unlink(missing_ok=True)
    (output / "data").mkdir(parents=True, exist_ok=True)
    rng = random.Random(task.seed)
    sides = {"train": [draw(rng, task) for _ in range(task.train)]}
    sides["val"] = [draw(rng, task, from_held_out=True) for _ in range(task.val)]
    for split, problems in sides.items():
        pq.write_table(pa.Table.from_pylist(data_rows(task, problems, split)), output / "data" / f"{split}.parquet")
    torch.manual_seed(task.seed)
    tokenizer = make_tokenizer(task)
    model = prepare.make_model(task.shape, tokenizer)
    tokens = warm_up(model, tokenizer, task, random.Random(task.seed + 1))
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    figures = evaluate(model, tokenizer, sides["val"], TEMPLATES["math"], repeats=8)
    seconds = round(time.monotonic() - started, 1)
    result = {**figures, "tokens": tokens, "seconds": seconds, "seed": task.seed, "settings": made_with}
    record.write_text(json.dumps(result, indent=2) + "\n")
    return result
