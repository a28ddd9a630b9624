"""What verl's trainer and CIPO count and time in the steps of a run, and its ratios to a control."""

import gzip
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from transformers import PreTrainedTokenizerBase

from benchmarks.cost.model import CHECKED, Lengths, cipo, grpo
from benchmarks.experiment.arms import ARMS
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import correction_prompt

PHASES = {
    "generation_s": "timing_s/gen",
    "log_prob_s": "timing_s/old_log_prob",
    "update_s": "timing_s/update_actor",
    "step_s": "timing_s/step",
}
"""Name of a figure -> verl's metric, seconds."""

ROLES = {
    "training_cpu_s": "ray::WorkerDict",
    "engine_cpu_s": "VLLM::",
    "rollout_cpu_s": "AgentLoopWorker",
    "driver_cpu_s": "TaskRunner",
}
"""Name of a figure -> what the title of the processes that spend it holds."""

Figures = dict[str, float]


class ProcessorTime:
    """Processor seconds of all processes below this one, by what they do, read when a step is logged."""

    def __init__(self) -> None:
        self._at: dict[int, Figures] = {}

    def __call__(self, line: Mapping) -> None:
        """Take the time of a line of verl's file logger."""
        total = dict.fromkeys((*ROLES, "cpu_s"), 0.0)
        for process in psutil.Process().children(recursive=True):
            try:
                title, times = " ".join(process.cmdline()), process.cpu_times()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue  # It ended since it was listed.
            seconds = times.user + times.system
            total["cpu_s"] += seconds
            for role, part in ROLES.items():
                total[role] += seconds * (part in title)
        self._at[line["step"]] = total

    def a_step(self, after: int) -> Figures:
        """cpu_s of all, and those of `ROLES`: mean over the steps after step ``after``.

        Raises:
            ValueError: there are no such steps.
        """
        if (last := max(self._at, default=0)) <= after:
            raise ValueError(f"the last step logged is {last}: expected more than {after}")
        return {name: (total - self._at[after][name]) / (last - after) for name, total in self._at[last].items()}


def of_step(data: Mapping[str, float], *, rows: int) -> Figures:
    """The figures of one step.

    Args:
        data: its metrics.
        rows: of a step of GRPO.

    Returns:
        generated, trained: tokens; corrections, extra, padding: rows of corrections, for what is added to the loss, and
        to fill up; `PHASES`, and rest_s, what they leave of step_s; driver_s: of CIPO's own code in the driver.
    """
    of_cipo = "cipo/tokens/base" in data
    figures = {
        "generated": (
            data["cipo/tokens/base"] + data.get("cipo/tokens/correction", 0.0)
            if of_cipo
            else data["response_length/mean"] * rows
        ),
        "trained": data["perf/total_num_tokens"],
        "corrections": data.get("cipo/rows/correction", 0.0),
        "extra": data.get("cipo/rows/aux", 0.0) + data.get("cipo/transfer/rows", 0.0),
        "padding": data.get("cipo/rows/padding", 0.0),
        "prompt": data["prompt_length/mean"],
        "response": data["response_length/mean"],
        **{name: data[metric] for name, metric in PHASES.items()},
        "driver_s": data.get("cipo/seconds/driver", 0.0),
    }
    figures["rest_s"] = 2 * figures["step_s"] - sum(figures[name] for name in PHASES)
    figures["driver_share"] = figures["driver_s"] / figures["step_s"]
    return figures


def median(steps: Sequence[Figures]) -> Figures:
    """The median of each figure over the steps of a run."""
    return {name: statistics.median(step[name] for step in steps) for name in steps[0]}


def over_control(
    rounds: Sequence[Mapping[str, Mapping[str, float]]], arm: str, control: str, name: str
) -> dict[str, float]:
    """A figure of ``arm`` as a multiple of that of ``control``: mean, low and high over the rounds that have both.

    Raises:
        ValueError: no round has both.
    """
    ratios = [runs[arm][name] / runs[control][name] for runs in rounds if arm in runs and control in runs]
    if not ratios:
        raise ValueError(f"no round has runs of both {arm} and {control}: run them with the same --output")
    return {"mean": statistics.mean(ratios), "low": min(ratios), "high": max(ratios)}


def published(folder: Path, *, prompts: int, n: int) -> dict[str, dict[int, Figures]]:
    """The runs that `learning.py --json` left in ``folder``: by arm and seed, the mean figures of their steps."""
    found: dict[str, dict[int, Figures]] = {}
    for file in sorted(folder.glob("*_seed*.jsonl.gz")):
        name, _, seed = file.name.removesuffix(".jsonl.gz").rpartition("_seed")
        rows = prompts * n * ARMS[name].rollouts if name in ARMS else prompts * n
        with gzip.open(file, "rt") as lines:
            logged = [record["data"] for line in lines if "data" in (record := json.loads(line))]
        steps = [of_step(data, rows=rows) for data in logged if "timing_s/step" in data]
        if steps:
            means = {figure: statistics.mean(step[figure] for step in steps) for figure in steps[0]}
            found.setdefault(name, {})[int(seed)] = means
    return found


def frame_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the default correction prompt has beside those of the attempt's prompt and the attempt."""

    def count(messages: list[dict]) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    question = [{"role": "user", "content": "1 + 1"}]
    prompt = correction_prompt(CIPOConfig(preset="stream"), tokenizer, prompt_length=2048, count_tokens=count)
    built, refused = prompt.build(question, "1")
    if built is None:
        raise ValueError(f"no correction prompt with this tokenizer: {refused}")
    return count(built) - count(question) - len(tokenizer.encode("1", add_special_tokens=False))


def predicted(control: Mapping[str, float], *, n: int, prompts: int, corrections: float, frame: float) -> Figures:
    """`CHECKED` of CIPO over those of the control by ``benchmarks.cost.model``, from the lengths of the control's rows.

    Args:
        n: attempts a prompt, half of the control's; as many corrections an anchor, an anchor a prompt.
        corrections: rows of corrections in a step.
        frame: `frame_tokens`.
    """
    lengths = Lengths(
        question=control["prompt"],
        answer=control["response"],
        shown=control["response"] - 1,  # without its end token
        frame=frame,
        correction=control["response"],
    )
    ratios = cipo(lengths, n, corrections=n, share=min(1.0, corrections / (prompts * n))).over(grpo(lengths, 2 * n))
    return {name: ratios[name] for name in CHECKED}
