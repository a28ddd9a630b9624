"""Pictures of the learning experiment."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiment.arms import CONTROL
from verl_cipo.evaluation.report.series import combine

PANELS = {
    "pass@1": "pass@1",
    "pass@8": "pass@8",
    "pass@32": "pass@32",
    "w2c": "wrong attempts corrected (w->c)",
    "c2w": "right attempts turned wrong (c->w)",
    "turn2": "right after a correction turn",
}
COLORS = {
    "grpo": "#9dc3e6",
    CONTROL: "#1f4e79",
    "balanced": "#c55a11",
    "cipo": "#bf9000",
    "paired": "#7030a0",
    "failed_only_lambda_025": "#548235",
}
OTHER = "#f4b183"
MEAN_OF = 8
"""Steps that a training curve is averaged over: a step asks few problems."""


def plot_differences(differences: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel a figure, a row an arm: its difference to the control as a bar, each seed as a point, and the interval.

    Args:
        differences: `figures.difference` of each arm, drawn from top to bottom in this order; the model before
            training and arms without a seed of the control are left out.
    """
    rows = {name: one for name, one in differences.items() if one and name != "base"}
    panels = {key: title for key, title in PANELS.items() if all(key in one for one in rows.values())}
    columns = 3
    figure, all_axes = _axes(len(panels), columns=columns, height=1.4 + 0.28 * len(rows))
    for place, (axes, (key, title)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        for row, (name, one) in enumerate(rows.items()):
            gap, values = one[key], [100 * value for value in one[key]["values"]]
            axes.barh(row, 100 * gap["diff"], color=COLORS.get(name, OTHER), height=0.65)
            if gap["ci95"]:
                axes.plot([100 * end for end in gap["ci95"]], [row, row], color="black", linewidth=1)
            axes.plot(values, [row] * len(values), "o", color="black", markersize=3, alpha=0.7)
        axes.axvline(0, color=COLORS[CONTROL], linewidth=1.2)
        axes.set(title=title, yticks=range(len(rows)), yticklabels=rows if place % columns == 0 else [])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.25)
    figure.supxlabel(f"points minus {CONTROL}, same seeds; bar: mean, dots: seeds, line: 95 % interval", fontsize=10)
    _save(figure, path)


def plot_training(
    arms: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    path: Path,
    panels: Mapping[str, Callable[[Mapping[str, float]], float | None]] | None = None,
) -> None:
    """A panel a figure over the steps: by default accuracy of the attempts, w->c and c->c of the corrections, and rho.

    A line an arm, the mean of its runs, in a band from the least to the greatest of them.

    Args:
        arms: of each, its runs; of a run, what verl logged at each step.
        panels: title of each, and how its share is read off a step.
    """
    panels = panels or {
        "Attempts that are right": attempts,
        "Corrections of wrong attempts that are right": lambda step: step.get("cipo/transitions/w2c"),
        "Corrections of right attempts that stay right": lambda step: step.get("cipo/transitions/c2c"),
        "rho, the share of right attempts among the anchors": rho,
    }
    figure, all_axes = _axes(len(panels), columns=2, height=3.4)
    for axes, (title, value) in zip(all_axes, panels.items(), strict=True):
        _curves(axes, title, arms, value, window=MEAN_OF)
    _save(figure, path)


def plot_tasks(tasks: Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, float]]]]], path: Path) -> None:
    """A panel a task: the share of right attempts over the steps, drawn as `plot_training` draws it.

    tasks: of each, its arms and their runs. A curve is averaged over a twentieth of the steps.
    """
    figure, all_axes = _axes(len(tasks), columns=3, height=3.2)
    for axes, (task, arms) in zip(all_axes, tasks.items(), strict=True):
        steps = max(len(run) for runs in arms.values() for run in runs)
        _curves(
            axes,
            f"{task}: attempts in training that are right",
            arms,
            attempts,
            window=max(steps // 20, 1),
            legend="upper left",
        )
    _save(figure, path)


def _curves(
    axes: Any,
    title: str,
    arms: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    value: Callable[[Mapping[str, float]], float | None],
    *,
    window: int,
    legend: str = "lower right",
) -> None:
    for name, runs in arms.items():
        if curve := combine([_points(steps, value) for steps in runs], window=window):
            color = COLORS.get(name, OTHER)
            axes.plot(curve.x, curve.mean, color=color, label=name, linewidth=1.8)
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.12, linewidth=0)
    axes.set(title=title, xlabel="step", ylim=(0, 1))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc=legend)


def attempts(step: Mapping[str, float]) -> float | None:
    """Share of right attempts: CIPO logs it apart from its corrections, GRPO's rewards are nothing else."""
    return step.get("cipo/accuracy/base", step.get("critic/score/mean"))


def rho(step: Mapping[str, float]) -> float | None:
    """rho where it counted: a step without anchors has only its first value."""
    return step.get("cipo/rho") if step.get("cipo/anchors/total") else None


def _points(
    steps: Sequence[Mapping[str, float]], value: Callable[[Mapping[str, float]], float | None]
) -> dict[float, float]:
    found = {float(i): value(step) for i, step in enumerate(steps, 1)}
    return {i: y for i, y in found.items() if y is not None}


def _axes(n: int, *, columns: int, height: float) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-n // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(13, height * rows), constrained_layout=True, squeeze=False)
    for axes in grid.flat[n:]:
        axes.remove()
    for axes in grid.flat[:n]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid.flat[:n])


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
