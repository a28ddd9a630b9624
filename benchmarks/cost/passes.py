"""Processor seconds of the passes that train a step, in one process: the demo's model, and rows as long as the demo's.

Where padding is kept, a micro-batch costs its rows times its longest row. Which rows are together is then what decides.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from benchmarks.cost.measured import frame_tokens
from examples.tiny.evaluate import prompt_ids, user_message
from examples.tiny.prepare import Shape, make_model, make_tokenizer
from examples.tiny.problems import Level, sample_problem
from verl_cipo.core.prompts import TEMPLATES
from verl_cipo.integration.train.joint_update import by_length, interleaved

TOKEN_LIMIT, ROWS = 8192, 16
"""Of a micro-batch: `ppo_max_token_len_per_gpu` of the demo, and rows where their number is fixed."""
Cut = Literal["dynamic", "mixed", "by length"]
"""dynamic, use_dynamic_bsz=true: verl chooses the rows; else ROWS of the batch's order, as they come or by length."""
ARMS: dict[str, tuple[float, tuple[Cut, ...]]] = {
    "grpo_equal_rollouts": (0.0, ("dynamic", "mixed")),
    "cipo": (1.0, ("dynamic", "mixed", "by length")),
    "cipo, a quarter of the slots": (0.25, ("dynamic", "by length")),
}
"""Name -> share of the slots that correct, and how its rows are cut; verl's GRPO leaves its rows as they come."""

MicroBatches = list[tuple[int, int]]
"""(rows, width) of each."""


@dataclass(frozen=True)
class Passes:
    """Of one step: tokens of its rows and with their padding, and processor seconds."""

    trained: int
    padded: int
    log_prob_s: float
    update_s: float


def step_lengths(prompts: int, n: int, share: float, *, seed: int) -> np.ndarray:
    """(2 * prompts * n,) tokens of the rows of a step, attempts of all prompts and then corrections.

    ``share`` of the prompts have n corrections, the others n further attempts. An answer is a worked solution of the
    demo's task, of which each row draws another.
    """
    rng = random.Random(seed)
    tokenizer = make_tokenizer(TEMPLATES["math"])
    frame = frame_tokens(tokenizer)
    answers = [len(tokenizer.encode(sample_problem(rng, Level()).solution)) + 1 for _ in range(500)]
    questions = [len(prompt_ids(tokenizer, user_message(sample_problem(rng, Level())))) for _ in range(prompts)]
    corrected = round(prompts * share)
    attempts, corrections = [], []
    for number, question in enumerate(questions):
        sessions = n if number < corrected else 2 * n
        attempts += [question + rng.choice(answers) for _ in range(sessions)]
        if number < corrected:
            prompt = question + frame + rng.choice(answers) - 1
            corrections += [prompt + rng.choice(answers) for _ in range(n)]
    for rows in (attempts, corrections):
        rng.shuffle(rows)  # In the order in which they are done.
    return np.array(attempts + corrections)


def cut(lengths: np.ndarray, corrections: int, how: Cut) -> MicroBatches:
    """The micro-batches of a step with one optimizer step, whose last ``corrections`` rows are corrections."""
    if how == "dynamic":
        return _dynamic(lengths)
    streams = np.repeat([0, 1], [len(lengths) - corrections, corrections])
    ordered = lengths[interleaved(streams)]
    if how == "by length":
        ordered = ordered[by_length(ordered.tolist(), stretches=1)]
    parts = [ordered[at : at + ROWS] for at in range(0, len(ordered), ROWS)]
    return [(len(part), int(part.max())) for part in parts]


def _dynamic(lengths: np.ndarray) -> MicroBatches:
    """As verl's rearrange_micro_batches cuts them."""
    workloads = calculate_workload(torch.from_numpy(lengths)).tolist()
    for count in range(-(-int(lengths.sum()) // TOKEN_LIMIT), len(lengths) + 1):
        parts = get_seqlen_balanced_partitions(workloads, count, equal_size=False)
        if all(lengths[part].sum() <= TOKEN_LIMIT for part in parts):
            return [(len(part), int(lengths[part].max())) for part in parts]
    raise ValueError(f"a row is longer than {TOKEN_LIMIT} tokens")


def measure(prompts: int, n: int, *, rounds: int) -> dict[tuple[str, Cut], Passes]:
    """Each arm and cut, the medians over ``rounds`` in which all take turns."""
    model = make_model(Shape(), make_tokenizer(TEMPLATES["math"]))
    steps = {}
    for name, (share, cuts) in ARMS.items():
        lengths = step_lengths(prompts, n, share, seed=1)
        for how in cuts:
            steps[name, how] = (int(lengths.sum()), cut(lengths, round(prompts * share) * n, how))
    took: dict[tuple[str, Cut], list[tuple[float, float]]] = {key: [] for key in steps}
    _seconds(model, next(iter(steps.values()))[1], backward=True)  # What is done once is not counted.
    for _ in range(rounds):
        for key, (_, micro_batches) in steps.items():
            took[key].append(
                (_seconds(model, micro_batches, backward=False), _seconds(model, micro_batches, backward=True))
            )
    return {
        key: Passes(trained, sum(rows * width for rows, width in batches), *np.median(took[key], axis=0).tolist())
        for key, (trained, batches) in steps.items()
    }


def _seconds(model: PreTrainedModel, micro_batches: Sequence[tuple[int, int]], *, backward: bool) -> float:
    """Processor seconds of the log-probabilities of tokens that are all the same, with their gradient if asked."""
    started = time.process_time()
    for rows, width in micro_batches:
        ids = torch.ones((rows, width), dtype=torch.int64)
        with torch.set_grad_enabled(backward):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            log_probs = torch.log_softmax(logits, dim=-1).gather(-1, ids[..., None])
            if backward:
                log_probs.mean().backward()
    return time.process_time() - started


def table(found: dict[tuple[str, Cut], Passes]) -> str:
    """Markdown: each as a multiple of the control's, cut dynamically."""
    control = found["grpo_equal_rollouts", "dynamic"]
    first = control.log_prob_s + control.update_s
    lines = [
        "| arm | micro-batches | trained | padded | log-probs, s | update, s | both / first line |",
        "|" + "---|" * 7,
    ]
    for (name, how), passes in found.items():
        both = (passes.log_prob_s + passes.update_s) / first
        tokens = f"{passes.trained:,} | {passes.padded:,}"
        lines.append(f"| {name} | {how} | {tokens} | {passes.log_prob_s:.2f} | {passes.update_s:.2f} | {both:.2f} |")
    return "\n".join(lines)
