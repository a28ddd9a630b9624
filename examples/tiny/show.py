"""What a run of the demo shows: a table, curves.png and summary.json, all from metrics.jsonl; and a few corrections."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.report.examples import gather
from verl_cipo.evaluation.report.runs import Run

VAL_PASS1 = re.compile(r"val-core/.+/acc/mean@\d+")
SECOND_TURN = {
    "turn2": "cipo/val/accuracy_turn2",
    "w2c": "cipo/val/w2c",
    "retry": "cipo/val/retry",
    "c2c": "cipo/val/c2c",
}
"""Name in the summary -> metric of the validation."""
HELD_OUT = {
    "val_pass1": ("right at the first attempt (pass@1)", "o-", "#1f4e79"),
    "turn2": ("right after the second turn", "D-", "#5b9bd5"),
    "c2c": ("right attempts kept right (c->c)", "^--", "#548235"),
    "w2c": ("wrong attempts corrected (w->c)", "s--", "#c55a11"),
    "retry": ("the same by another attempt (retry)", "x:", "#7f7f7f"),
}
"""Name in the summary -> label, style and colour."""


def validations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each validation in order: step, and what HELD_OUT names, None where the run did not measure it."""
    found = []
    for line in lines:
        name = next((name for name in line["data"] if VAL_PASS1.fullmatch(name)), None)
        if name is None:
            continue
        found.append(
            {
                "step": line["step"],
                "val_pass1": line["data"][name],
                **{name: line["data"].get(metric) for name, metric in SECOND_TURN.items()},
            }
        )
    return found


def summarise(lines: list[dict[str, Any]], *, adv_estimator: str, trainer: str, **figures: Any) -> dict[str, Any]:
    """The demo's ``summary.json``."""
    val = validations(lines)
    if len(val) < 2:
        raise ValueError(f"{len(val)} validations in the metrics: the demo compares one before with one after training")
    before, after = val[0], val[-1]
    steps = [line for line in lines if "training/global_step" in line["data"]]
    return {
        "adv_estimator": adv_estimator,
        "trainer": trainer,
        "rollout_backend": f"vllm {version('vllm')}",
        "steps": len(steps),
        "correction_rows": int(sum(line["data"].get("cipo/rows/correction", 0) for line in steps)),
        **{f"{name}_{when}": val[name] for name in HELD_OUT for when, val in (("before", before), ("after", after))},
        **figures,
    }


def table(summary: dict[str, Any]) -> str:
    """A short table of before and after, and a plain word on whether the run learned."""

    def cell(value: float | None) -> str:
        return "   -  " if value is None else f"{value:6.3f}"

    lines = [f"{'held-out problems':38} before  after"]
    lines += [
        f"{label:38} {cell(summary[f'{key}_before'])} {cell(summary[f'{key}_after'])}"
        for key, (label, *_) in HELD_OUT.items()
    ]
    gain = summary["val_pass1_after"] - summary["val_pass1_before"]
    word = "improved" if gain > 0 else "did NOT improve"
    lines.append(
        f"{summary['adv_estimator']}, {summary['steps']} steps, {summary['correction_rows']} correction rows, "
        f"{summary['wall_s']:.0f} s, peak {summary['peak_rss_mb']} MiB: pass@1 {word} ({gain:+.3f})"
    )
    return "\n".join(lines)


def samples(output: Path, *, limit: int) -> str:
    """Corrections of the last validation for people to read, of each transition if there are; empty without any."""
    found = gather([Run(label="", name="demo", metrics={}, folder=output)], limit=limit, characters=600, bad=[])
    words = {"c": "right", "w": "wrong"}
    return "".join(
        f"--- {words[example.transition[0]]} -> {words[example.transition[-1]]}\n"
        f"{example.question.splitlines()[0]}\n"
        f"attempt:    {_beside(example.attempt)}\n"
        f"correction: {_beside(example.correction)}\n\n"
        for example in found.shown[:limit]
    )


def _beside(text: str) -> str:
    return text.strip().replace("\n", "\n" + " " * len("correction: "))


TRANSITIONS = {
    "cipo/transitions/c2c": ("right -> right", "#548235"),
    "cipo/transitions/c2w": ("right -> wrong", "#a9d18e"),
    "cipo/transitions/w2c": ("wrong -> right", "#c55a11"),
    "cipo/transitions/w2w": ("wrong -> wrong", "#f4b183"),
}
"""Metric of a step -> label and colour; of the corrections."""
WORTH = {
    "cipo/budget/none/w2c": ("corrections that are right", "#c55a11"),
    "cipo/budget/none/retry": ("further attempts that are right", "#7f7f7f"),
    "cipo/budget/none/share": ("share of sessions that correct", "#5b9bd5"),
}
"""The same of prompts without a right attempt, by which budget=auto decides."""
TRAINED = {
    "attempts": ("attempts", "#1f4e79"),
    "further": ("further attempts", "#9dc3e6"),
    "corrections": ("corrections", "#c55a11"),
    "pairs": ("right attempts as corrections (pairs)", "#a9d18e"),
    "moved": ("right corrections as first answers", "#ffc000"),
}
"""What a step trains: name -> label and colour."""


def trained_rows(data: dict[str, float]) -> dict[str, float]:
    """Of the metrics of a step, how many rows of each of TRAINED it trained."""
    further = data.get("cipo/budget/attempts", 0)
    return {
        "attempts": data["cipo/rows/base"] - further,
        "further": further,
        "corrections": data["cipo/rows/correction"],
        "pairs": data.get("cipo/rows/aux", 0),
        "moved": data.get("cipo/transfer/rows", 0),
    }


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Over the steps: the validations; and where corrections were trained, what they are worth and what is trained.

    That is w->c against retry where budget=auto decides by them, the transition rates else.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    def curve(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line["data"][name]) for line in lines if name in line["data"]]
        return [step for step, _ in points], [value for _, value in points]

    def smooth(values: list[float], steps: int = 5) -> list[float]:
        return [sum(part) / len(part) for part in (values[max(0, i - steps + 1) : i + 1] for i in range(len(values)))]

    trained = any(line["data"].get("cipo/rows/correction", 0) > 0 for line in lines)
    figure, (panels,) = plt.subplots(
        1, 3 if trained else 1, figsize=(13 if trained else 5, 4.4), constrained_layout=True, squeeze=False
    )
    val = validations(lines)
    for key, (label, style, color) in HELD_OUT.items():
        points = [(v["step"], v[key]) for v in val if v[key] is not None]
        if points:
            panels[0].plot(*zip(*points, strict=True), style, color=color, label=label)
    panels[0].set(title="Held-out problems", ylabel="share", ylim=(0, 1))
    if trained:
        if curve("cipo/budget/none/share")[0]:
            for name, (label, color) in WORTH.items():
                panels[1].plot(*curve(name), color=color, label=label)
            panels[1].set(title="Prompts without a right attempt")
            panels[1].set_ylim(bottom=0)
        else:
            for name, (label, color) in TRANSITIONS.items():
                at, rates = curve(name)
                panels[1].plot(at, rates, color=color, alpha=0.25, linewidth=1)
                panels[1].plot(at, smooth(rates), color=color, label=label)
            panels[1].set(title="Corrections in training (mean of 5 steps)", ylim=(0, 1))
        at, _ = curve("cipo/rows/base")
        rows = [trained_rows(line["data"]) for line in lines if "cipo/rows/base" in line["data"]]
        used = [name for name in TRAINED if any(row[name] for row in rows)]
        panels[2].stackplot(
            at,
            [[row[name] for row in rows] for name in used],
            labels=[TRAINED[name][0] for name in used],
            colors=[TRAINED[name][1] for name in used],
        )
        panels[2].set(title="Rows that a step trains")
    for axes in panels:
        axes.set(xlabel="step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, ncol=2, columnspacing=1, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.savefig(path, dpi=130)
    plt.close(figure)
