"""What a run of the demo shows: a table, curves.png and summary.json, all from metrics.jsonl."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

VAL_PASS1 = re.compile(r"val-core/.+/acc/mean@\d+")
W2C, C2C = "cipo/val/w2c", "cipo/val/c2c"


def validations(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Each validation in order: step, pass1, and w2c, c2c where the run measured a second turn."""
    found = []
    for line in lines:
        name = next((name for name in line["data"] if VAL_PASS1.fullmatch(name)), None)
        if name is None:
            continue
        found.append(
            {
                "step": line["step"],
                "pass1": line["data"][name],
                "w2c": line["data"].get(W2C),
                "c2c": line["data"].get(C2C),
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
        "val_pass1_before": before["pass1"],
        "val_pass1_after": after["pass1"],
        "w2c_before": before["w2c"],
        "w2c_after": after["w2c"],
        "c2c_before": before["c2c"],
        "c2c_after": after["c2c"],
        **figures,
    }


def table(summary: dict[str, Any]) -> str:
    """A short table of before and after, and a plain word on whether the run learned."""

    def cell(value: float | None) -> str:
        return "   -  " if value is None else f"{value:6.3f}"

    rows = [
        ("solved at the first attempt (pass@1)", "val_pass1"),
        ("wrong attempts corrected (w->c)", "w2c"),
        ("right attempts kept right (c->c)", "c2c"),
    ]
    lines = [f"{'held-out problems':38} before  after"]
    lines += [f"{label:38} {cell(summary[f'{key}_before'])} {cell(summary[f'{key}_after'])}" for label, key in rows]
    gain = summary["val_pass1_after"] - summary["val_pass1_before"]
    word = "improved" if gain > 0 else "did NOT improve"
    lines.append(
        f"{summary['adv_estimator']}, {summary['steps']} steps, {summary['correction_rows']} correction rows, "
        f"{summary['wall_s']:.0f} s, peak {summary['peak_rss_mb']} MiB: pass@1 {word} ({gain:+.3f})"
    )
    return "\n".join(lines)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Three panels over the steps: validation accuracy, the four transition rates of training, rho and retention."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    val = validations(lines)
    steps = [v["step"] for v in val]
    left.plot(steps, [v["pass1"] for v in val], "o-", color="#1f4e79", label="first attempt (pass@1)")
    if val[0]["w2c"] is not None:
        left.plot(steps, [v["w2c"] for v in val], "s--", color="#c55a11", label="wrong -> corrected")
        left.plot(steps, [v["c2c"] for v in val], "^--", color="#548235", label="right -> kept right")
    left.set(title="Held-out problems", ylabel="share")

    def curve(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line["data"][name]) for line in lines if name in line["data"]]
        return [step for step, _ in points], [value for _, value in points]

    def smooth(values: list[float], steps: int = 5) -> list[float]:
        return [sum(part) / len(part) for part in (values[max(0, i - steps + 1) : i + 1] for i in range(len(values)))]

    colors = {"c2c": "#548235", "c2w": "#a9d18e", "w2c": "#c55a11", "w2w": "#f4b183"}
    labels = {"c2c": "right -> right", "c2w": "right -> wrong", "w2c": "wrong -> right", "w2w": "wrong -> wrong"}
    for kind, color in colors.items():
        at, rates = curve(f"cipo/transitions/{kind}")
        middle.plot(at, rates, color=color, alpha=0.25, linewidth=1)
        middle.plot(at, smooth(rates), color=color, label=labels[kind])
    middle.set(title="Corrections in training (mean of 5 steps)")
    right.plot(*curve("cipo/rho"), color="#7030a0", label="rho (share of correct anchors)")
    right.plot(*curve("cipo/retention"), color="#548235", alpha=0.6, label="retention")
    right.set(title="Replay ratio")
    for axes in (left, middle, right):
        axes.set(xlabel="step", ylim=(0, 1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.savefig(path, dpi=130)
    plt.close(figure)
