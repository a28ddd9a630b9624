"""The report's pictures: matplotlib figures, as PNG and as SVG whose colors and font the page's style sheet sets."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator

from verl_cipo.evaluation.report.series import Curve

INK, MUTED, GRID, PAPER = "#1b1f24", "#59616b", "#e2e5e9", "#fefefe"
# Any two are at least 22 apart in CIELAB, with normal sight and without red, green or blue cones (Machado et al. 2009),
# and each is 4.5 : 1 on paper, since labels have the color of their line. So are those of the page's dark scheme.
COLORS = ("#0067a5", "#b84e00", "#0f0069", "#4b000f", "#757557")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{index}" for index, color in enumerate(COLORS)
}
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)))
_SIZE_INCHES, _MARGIN_INCHES, _FONT_POINTS, _PNG_DPI = (5.0, 3.0), 0.08, 9.5, 240
# Least distance of two labels, as a share of the axes' height.
_LABEL_GAP = 0.085
_LABEL_LENGTH, _TITLE_LENGTH = 26, 45
"""Characters that there is room for."""
# The least span of an axis of shares: a narrower one would make much of little.
_SHARE_SPAN = 0.1
_TICK_STEPS = [1, 2, 5, 10]


@dataclass(frozen=True)
class Series:
    """One line: its curve, its label, which arm it is of and which of the chart's quantities it shows."""

    curve: Curve
    label: str
    arm: int
    kind: int = 0


@dataclass(frozen=True)
class Chart:
    """A picture of lines.

    name: file name and prefix of ids, unlike that of any other chart; title, x_label: as shown; lines: not empty;
    shares: whether y is a share in [0, 1], shown in percent, and not a count; powers: whether x is 1, 2, 4 ...;
    counted: whether x is a count of tokens and not of steps; points: whether every measurement gets a mark;
    by_arm: whether a line has the color of its arm, as in the page's legend, and not that of its quantity.
    """

    name: str
    title: str
    lines: tuple[Series, ...]
    x_label: str = "step"
    shares: bool = True
    powers: bool = False
    counted: bool = False
    points: bool = False
    by_arm: bool = False


@dataclass(frozen=True)
class Strips:
    """A picture of when something was on.

    rows: label, number of the arm, and the unbroken ranges of steps, both ends included; last: the last step drawn.
    """

    name: str
    title: str
    rows: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]
    last: int


def number(value: float, *, shares: bool) -> str:
    """A share as percent, a count with a metric prefix: 0.4567 as "45.7 %", 12340 as "12.3 k", 0.0714 as "0.0714"."""
    if shares:
        return f"{100 * value:.1f} %"
    return EngFormatter(places=1)(value) if abs(value) >= 999.5 else f"{value:.3g}"


def draw(chart: Chart | Strips) -> Figure:
    """The figure of a chart, in the colors of light paper."""
    with matplotlib.rc_context({"font.size": _FONT_POINTS, "axes.titlesize": _FONT_POINTS + 1}):
        height = _SIZE_INCHES[1] if isinstance(chart, Chart) else 0.9 + 0.3 * len(chart.rows)
        layout = ConstrainedLayoutEngine(w_pad=_MARGIN_INCHES, h_pad=_MARGIN_INCHES)
        figure = Figure(figsize=(_SIZE_INCHES[0], height), layout=layout, facecolor=PAPER)
        axes = figure.add_subplot()
        _dress(axes, chart.title)
        if isinstance(chart, Chart):
            _draw_lines(axes, chart)
        else:
            _draw_strips(axes, chart)
    return figure


def png(chart: Chart | Strips) -> bytes:
    """The chart as a PNG of 1200 pixels' width."""
    buffer = io.BytesIO()
    draw(chart).savefig(buffer, format="png", dpi=_PNG_DPI)
    return buffer.getvalue()


def svg(chart: Chart | Strips) -> str:
    """The chart as an ``svg`` element for a page that defines ``--ink``, ``--paper`` ... and ``--series-0`` on.

    Text stays text, so that it takes the page's font and can be searched. The same chart gives the same element.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name}):
        draw(chart).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    found = buffer.getvalue()
    found = found[found.index("<svg") :]
    # In a page its style would apply to all of the page.
    found = re.sub(r"<(metadata|style)\b.*?</\1>", "", found, flags=re.DOTALL)
    # All charts share one page, and so one set of ids.
    found = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{chart.name}-", found)
    for color, variable in _VARIABLES.items():
        found = found.replace(color, f"var(--{variable})")
    # Width and height in points would keep it from following its column.
    return re.sub(r'<svg\b[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', found, count=1)


def fitted(text: str, length: int) -> str:
    """The text in `length` characters. What tells names of runs apart, and a line's quantity, stand at their ends."""
    if len(text) <= length:
        return text
    head = length // 3
    return f"{text[:head]}\u2026{text[head + 1 - length :]}"


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Positions at least `gap` apart, none above `top`, in the order of those wanted and near to them.

    Neighbours that are too close become a block around the mean of what they wanted; blocks that meet are joined. What
    is above `top` then moves down, and pushes what is below.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _top(blocks[-2], wanted, gap) + gap > _bottom(blocks[-1], wanted, gap):
            last = blocks.pop()
            blocks[-1].extend(last)
    placed = [0.0] * len(wanted)
    for block in blocks:
        for rank, index in enumerate(block):
            placed[index] = _bottom(block, wanted, gap) + rank * gap
    for index in reversed(order):
        placed[index] = min(placed[index], top)
        top = placed[index] - gap
    return placed


def _bottom(block: Sequence[int], wanted: Sequence[float], gap: float) -> float:
    return sum(wanted[index] for index in block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[int], wanted: Sequence[float], gap: float) -> float:
    return _bottom(block, wanted, gap) + gap * (len(block) - 1)


def _dress(axes: Axes, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(fitted(title, _TITLE_LENGTH), loc="left", color=INK, fontweight="bold", pad=10, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=0, labelcolor=MUTED)
    axes.tick_params(axis="x", length=3)
    axes.set_axisbelow(True)


def _draw_lines(axes: Axes, chart: Chart) -> None:
    colors = [COLORS[line.arm if chart.by_arm else line.kind] for line in chart.lines]
    for line, color in zip(chart.lines, colors, strict=True):
        curve = line.curve
        if curve.seeds > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)
        if curve.raw is not None and not chart.by_arm:
            axes.plot(curve.x, curve.raw, color=color, alpha=0.28, linewidth=0.8)
        mark = "o" if chart.points or len(curve.x) == 1 else None
        style = _DASHES[line.kind % len(_DASHES)]
        axes.plot(curve.x, curve.mean, color=color, linestyle=style, linewidth=1.8, marker=mark, markersize=4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    _scale(axes, chart)
    _label_ends(axes, chart, colors)


def _scale(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.x_label, color=MUTED)
    # Of all that is drawn: the steps of a single run, too, whose peaks may be far above their mean.
    least, greatest = axes.dataLim.ymin, axes.dataLim.ymax
    if chart.shares:
        # Never more than 0 to 100 %, unless a verifier's score is no share.
        floor, ceiling = min(0.0, least), max(1.0, greatest)
        low, high = axes.get_ylim()
        low, high = max(floor, low), min(ceiling, high)
        if high - low < _SHARE_SPAN:
            low = min(max(floor, (low + high - _SHARE_SPAN) / 2), ceiling - _SHARE_SPAN)
            high = low + _SHARE_SPAN
        # A line at 0 % or 100 % is drawn whole, not cut in half by the edge.
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    else:
        axes.set_ylim(1.05 * min(0.0, least), 1.05 * max(0.0, greatest) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.yaxis.set_major_formatter(lambda value, _: EngFormatter()(value) if abs(value) >= 1000 else f"{value:g}")
    measured = np.unique(np.concatenate([line.curve.x for line in chart.lines]))
    if chart.powers:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    elif chart.counted:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
        axes.xaxis.set_major_formatter(EngFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=_TICK_STEPS, integer=True))
    if chart.powers or len(measured) == 1:
        # Around a single x matplotlib would write fractions of a step.
        axes.xaxis.set_major_locator(FixedLocator(measured.tolist()))


def _label_ends(axes: Axes, chart: Chart, colors: Sequence[str]) -> None:
    """Name and last value of every line at the right edge, in its color, as high as its end where there is room."""
    low, high = axes.get_ylim()
    ends = [float(line.curve.mean[-1]) for line in chart.lines]
    heights = spread([(end - low) / (high - low) for end in ends], _LABEL_GAP, top=1.0)
    for line, color, end, height in zip(chart.lines, colors, ends, heights, strict=True):
        name = fitted(line.label, _LABEL_LENGTH)
        axes.annotate(
            f"{name}: {number(end, shares=chart.shares)}" if name else number(end, shares=chart.shares),
            xy=(1.02, height),
            xycoords="axes fraction",
            va="center",
            color=color,
            # A label is the user's: a dollar sign is one, and not the start of a formula.
            parse_math=False,
        )


def _draw_strips(axes: Axes, chart: Strips) -> None:
    for row, (_, arm, spans) in enumerate(chart.rows):
        axes.hlines(row, 0, chart.last + 0.5, color=GRID, linewidth=1, zorder=0)
        axes.broken_barh([(first - 0.5, end - first + 1) for first, end in spans], (row - 0.3, 0.6), color=COLORS[arm])
    labels = [fitted(label, _LABEL_LENGTH) for label, _, _ in chart.rows]
    axes.set_yticks(range(len(chart.rows)), labels, parse_math=False)
    axes.set(xlim=(0, chart.last + 0.5), ylim=(len(chart.rows) - 0.4, -0.6))
    axes.set_xlabel("step", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=_TICK_STEPS, integer=True))
