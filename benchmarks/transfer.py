"""Does what corrections teach reach the first attempt? The gradient of each stream against that of pass@1.

    python benchmarks/transfer.py --task outputs/learning/full/tasks/seed11                  # at the starting model
    python benchmarks/transfer.py --task ... --model outputs/learning/full/cipo_seed11/checkpoint

From one model, for a number of batches of 16 prompts: 8 and 16 attempts a prompt, and 8 corrections of each of 16 wrong
and of 16 right ones of the first 8 attempts, drawn and weighed by the package's own code. With the model as it is, the
policy gradient of each is compared with the gradient of pass@1 that a much larger sample of other prompts gives.

A step of Adam has nearly the same length whatever the gradient's, so the gain of a step is, to first order,
proportional to the cosine between its gradient and that of pass@1: of two arms the one with the larger cosine learns
faster. Plain PyTorch, no verl: this explains the runs of learning.py, it does not take part in them.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.experiment.policy import Policy, Sample
from benchmarks.json_file import write_json
from verl_cipo.core.advantage import BASE, CORRECTION, Rows, two_stream_advantage
from verl_cipo.core.anchors import Attempt, Group, anchor_budget, select_anchors
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import TEMPLATES, render

PROMPTS, N = 16, 8
RHOS = (0.0, 0.3, 0.8, 1.0)
LAMBDAS = (0.25, 0.5, 1.0)
CONTROL = "GRPO, twice the rollouts"


@dataclass(frozen=True)
class Question:
    """A problem of the task: its number, the chat that asks it, and the right answer."""

    index: int
    chat: list[dict]
    answer: str


def gradient(policy: Policy, samples: Sequence[Sample], weights: np.ndarray) -> Tensor:
    """(parameters,) gradient of the sum of each sample's log-likelihood times its weight."""
    policy.model.zero_grad()
    rows = [(s.prompt, s.response, float(w)) for s, w in zip(samples, weights, strict=True) if w]
    for places, log_prob in policy.log_probs([(prompt, response) for prompt, response, _ in rows]):
        (log_prob.sum(dim=-1) * torch.tensor([rows[place][2] for place in places])).sum().backward()
    return flat_gradient(policy)


def flat_gradient(policy: Policy) -> Tensor:
    """(parameters,) gradient that the model holds, 0 where it has none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.model.parameters()]
    return torch.cat([part.flatten() for part in parts])


def weights_of(samples: Sequence[Sample], *, n: int, anchors: Sequence[Attempt] | None = None) -> np.ndarray:
    """(N,) weight of each sample's tokens in the token-mean loss of its stream, which `samples` are.

    Args:
        n: samples a group, which stand together.
        anchors: of each group, where the stream is that of the corrections.
    """
    verdicts = [False] * len(samples) if anchors is None else [a.correct for a in anchors for _ in range(n)]
    rows = Rows(
        stream=np.full(len(samples), BASE if anchors is None else CORRECTION, dtype=np.int8),
        group=np.array([str(i // n) for i in range(len(samples))], dtype=object),
        session=np.array([str(i) for i in range(len(samples))], dtype=object),
        final=np.ones(len(samples), dtype=bool),
        correct=np.array([sample.right for sample in samples]),
        anchor_correct=np.array(verdicts),
    )
    rewards = torch.tensor([[float(sample.right)] for sample in samples])
    found = two_stream_advantage(
        rewards,
        torch.ones_like(rewards),
        rows,
        lambda_corr=1.0,
        lambda_risk=CIPOConfig().lambda_risk,
        norm_by_std=True,
        loss_agg_mode="token-mean",
    )
    return found[:, 0].numpy() / sum(len(sample.response) for sample in samples)


@dataclass
class Batch:
    """What one batch gives: by stream its gradient, and the shares of right samples and of groups that have both."""

    gradient: dict[str, Tensor]
    right: dict[str, float]
    mixed: dict[str, float]


def corrections_at(rho: float) -> str:
    """The name of a stream of corrections."""
    return f"corrections, rho {rho:g}"


def one_batch(policy: Policy, questions: Sequence[Question], *, step: int) -> Batch:
    """Sample as GRPO, GRPO with twice the rollouts and CIPO do, and take the gradient of each stream."""
    config, batch = CIPOConfig(), Batch({}, {}, {})

    def add(stream: str, samples: Sequence[Sample], *, n: int, anchors: Sequence[Attempt] | None = None) -> None:
        rates = np.array([s.right for s in samples], dtype=float).reshape(-1, n).mean(axis=1)
        batch.right[stream], batch.mixed[stream] = float(rates.mean()), float(((rates > 0) & (rates < 1)).mean())
        batch.gradient[stream] = gradient(policy, samples, weights_of(samples, n=n, anchors=anchors))

    twice = policy.sample([(q.chat, q.answer) for q in questions for _ in range(2 * N)])
    attempts = [s for i, s in enumerate(twice) if i % (2 * N) < N]
    add("attempts", attempts, n=N)
    add("attempts, twice", twice, n=2 * N)
    groups = [
        Group(str(i), tuple(Attempt(str(i), q.index, j, s.right, float(s.right)) for j, s in enumerate(own)))
        for i, q in enumerate(questions)
        for own in [attempts[i * N : (i + 1) * N]]
    ]
    for rho in RHOS:
        anchors = select_anchors(
            groups,
            budget=anchor_budget(PROMPTS, config.replay_fraction),
            rho=rho,
            delta_low=config.delta_low,
            delta_high=config.delta_high,
            seed=config.seed,
            step=step,
        )
        asked = []
        for anchor in anchors:
            question, attempt = questions[int(anchor.uid)], attempts[int(anchor.uid) * N + anchor.session]
            text = render(TEMPLATES["math"], question.chat[0]["content"], attempt.text.strip())
            asked += [([{"role": "user", "content": text}], question.answer)] * N
        add(corrections_at(rho), policy.sample(asked), n=N, anchors=anchors)
    return batch


@dataclass(frozen=True)
class Goal:
    """The gradient of pass@1 over many questions, in two halves with noise of their own."""

    halves: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, policy: Policy, questions: Sequence[Question], *, samples: int) -> "Goal":
        """From `samples` attempts at each question."""
        halves = []
        for part in (questions[::2], questions[1::2]):
            drawn = policy.sample([(q.chat, q.answer) for q in part for _ in range(samples)])
            right = np.array([s.right for s in drawn], dtype=float).reshape(-1, samples)
            # Against the mean of the others, which keeps the estimate unbiased.
            weights = (right - right.mean(axis=1, keepdims=True)) / (samples - 1) / len(part)
            halves.append(gradient(policy, drawn, weights.flatten()))
        return cls((halves[0], halves[1]))

    @property
    def length(self) -> float:
        """Its length without the noise, which the two halves do not share.

        Raises: ValueError where noise is all there is.
        """
        squared = float(self.halves[0] @ self.halves[1])
        if squared <= 0:
            raise ValueError("the gradient of pass@1 is lost in its noise: take more prompts for it (--goal)")
        return float(np.sqrt(squared))

    @property
    def agreement(self) -> float:
        """Cosine of the two halves."""
        return float(self.halves[0] @ self.halves[1] / self.halves[0].norm() / self.halves[1].norm())

    def along(self, gradient: Tensor) -> float:
        """How far `gradient` goes in this direction."""
        return float(gradient @ (self.halves[0] + self.halves[1])) / 2 / self.length


def cosines(goal: Goal, gradients: Sequence[Tensor]) -> np.ndarray:
    """(batches,) the cosine of each batch's gradient with the goal."""
    return np.array([goal.along(g) / float(g.norm()) for g in gradients])


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def measure(goal: Goal, gradients: Sequence[Tensor]) -> dict[str, float]:
    """Of one stream over the batches.

    Returns:
        `signal`: length of the expected gradient; `length`: mean length of one batch's; `expected`: cosine of the
        expected gradient with the goal, free of noise.
    """
    lengths = [float(g.norm()) for g in gradients]
    total = torch.stack(list(gradients)).sum(dim=0)
    n = len(gradients)
    squared = (float(total @ total) - sum(length**2 for length in lengths)) / (n * (n - 1))
    signal = float(np.sqrt(squared)) if squared > 0 else float("nan")
    return {
        "signal": signal,
        "length": float(np.mean(lengths)),
        "expected": float(np.mean([goal.along(g) for g in gradients])) / signal,
    }


def read_questions(task: Path) -> list[Question]:
    """The training problems of a task folder that `examples/tiny/prepare.py` made."""
    rows = pq.read_table(task / "data" / "train.parquet").to_pylist()
    return [Question(row["extra_info"]["index"], row["prompt"], row["reward_model"]["ground_truth"]) for row in rows]


def compare(goal: Goal, batches: Sequence[Batch]) -> dict[str, dict[str, dict[str, float]]]:
    """The streams by themselves, and the arms, which add them up.

    Of an arm, `step` is the mean cosine of one batch's gradient with the goal, and `minus_twice` that less the
    control's, batch by batch; both with the standard error over the batches, `..._se`.
    """
    streams = {name: [batch.gradient[name] for batch in batches] for name in batches[0].gradient}
    arms = {"GRPO": streams["attempts"], CONTROL: streams["attempts, twice"]}
    for rho in RHOS:
        for weight in LAMBDAS:
            arms[f"CIPO, rho {rho:g}, lambda {weight:g}"] = [
                own + weight * more for own, more in zip(streams["attempts"], streams[corrections_at(rho)], strict=True)
            ]
    steps = {name: cosines(goal, found) for name, found in arms.items()}
    shares = {
        name: {
            "right": float(np.mean([b.right[name] for b in batches])),
            "mixed": float(np.mean([b.mixed[name] for b in batches])),
        }
        for name in streams
    }
    return {
        "streams": {name: shares[name] | measure(goal, found) for name, found in streams.items()},
        "arms": {
            name: {
                "step": float(own.mean()),
                "step_se": standard_error(own),
                "minus_twice": float((own - steps[CONTROL]).mean()),
                "minus_twice_se": standard_error(own - steps[CONTROL]),
            }
            for name, own in steps.items()
        },
    }


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Both parts in Markdown."""
    lines = ["| stream | right | mixed groups | signal | length of one batch's | cosine of the expected with pass@1 |"]
    lines.append("|---|---|---|---|---|---|")
    for name, f in found["streams"].items():
        cells = [f"{f[key]:.3f}" for key in ("right", "mixed", "signal", "length", "expected")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"| arm | cosine of one step with pass@1 | minus {CONTROL} |", "|---|---|---|"]
    for name, f in found["arms"].items():
        lines.append(
            f"| {name} | {f['step']:.3f} +- {f['step_se']:.3f} | {f['minus_twice']:+.3f} +- {f['minus_twice_se']:.3f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, required=True, help="folder of examples/tiny/prepare.py")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default the task's starting model")
    parser.add_argument("--batches", type=int, default=16, help=f"of {PROMPTS} prompts (default 16)")
    parser.add_argument("--goal", type=int, default=256, help="other prompts for the gradient of pass@1 (default 256)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    questions = read_questions(args.task)
    if (wanted := args.batches * PROMPTS + args.goal) > len(questions):
        parser.error(
            f"--batches {args.batches} --goal {args.goal} take {wanted} prompts, {args.task} has {len(questions)}"
        )
    torch.manual_seed(args.seed)
    drawn = random.Random(args.seed).sample(questions, wanted)
    policy = Policy(args.model or args.task / "model")
    goal = Goal.of(policy, drawn[: args.goal], samples=2 * N)
    try:
        print(f"gradient of pass@1: length {goal.length:.4f}, cosine of its two halves {goal.agreement:.2f}")
    except ValueError as lost:
        parser.error(str(lost))
    batches = [
        one_batch(policy, drawn[args.goal + i * PROMPTS : args.goal + (i + 1) * PROMPTS], step=i)
        for i in tqdm(range(args.batches), desc="batches", dynamic_ncols=True)
    ]
    found = compare(goal, batches)
    print(table(found))
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
