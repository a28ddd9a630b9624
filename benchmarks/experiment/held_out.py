"""What a policy makes of the held-out problems, in plain PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.experiment.policy import Policy
from benchmarks.experiment.setting import TURNS, Setting
from examples.tiny.evaluate import is_right
from examples.tiny.task import Task
from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.prompts import correction_prompt


def answer_of(problem: dict[str, Any]) -> str:
    """The right answer of a row of the data set."""
    return problem["reward_model"]["ground_truth"]


@torch.no_grad()
def held_out(policy: Policy, folder: Path, setting: Setting) -> dict[str, Any]:
    """`right` and `turns` of `runs.run`, sampled from the policy at the held-out problems, by the sound verifier."""
    policy.verifier = is_right
    problems = pq.read_table(folder / "data" / "val.parquet").to_pylist()
    prompt = correction_prompt(
        CIPOConfig(prompt=PromptConfig(standalone=False)),  # as in training
        policy.tokenizer,
        prompt_length=Task.correction_prompt_length,
        count_tokens=lambda messages: len(policy.ids(messages)),
    )
    torch.manual_seed(0)
    first = [(problem["prompt"], answer_of(problem)) for problem in problems for _ in range(setting.samples)]
    right = np.array([sample.right for sample in policy.sample(first)]).reshape(len(problems), -1).sum(axis=1)
    anew = [(i, problem) for i, problem in enumerate(problems) for _ in range(setting.turn_samples)]
    attempts = policy.sample([(problem["prompt"], answer_of(problem)) for _, problem in anew])
    asked = [
        (i, problem, attempt, request)
        for (i, problem), attempt in zip(anew, attempts, strict=True)
        if (request := prompt.request(problem["prompt"], attempt.text)[0]) is not None
    ]
    corrections = policy.sample([(request.messages, answer_of(problem)) for _, problem, _, request in asked])
    turns = [dict.fromkeys(TURNS, 0) for _ in problems]
    for (i, _, attempt, request), correction in zip(asked, corrections, strict=True):
        turns[i][("c" if attempt.right else "w") + "2" + ("c" if correction.right else "w")] += 1
        turns[i]["copies_failed"] += prompt.repeats(request.shown, correction.text) and not attempt.right
    return {"right": right.tolist(), "turns": turns}
