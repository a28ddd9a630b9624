"""The report as one HTML page that loads nothing: style, script, pictures and examples are inside it."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from verl_cipo.evaluation.report.charts import Chart, Strips, number, svg
from verl_cipo.evaluation.report.examples import TRANSITIONS, Examples
from verl_cipo.evaluation.report.runs import Arm
from verl_cipo.evaluation.report.section import Section, Table
from verl_cipo.evaluation.report.series import TURN2, Curve, combine, first_turn, metric


@dataclass(frozen=True)
class Live:
    """Of a page that is served: version, unlike that of any page before; seconds, how often it looks for another."""

    version: str
    seconds: float


def page(
    *,
    title: str,
    arms: Sequence[Arm],
    sections: Sequence[Section],
    examples: Examples,
    bad_lines: int = 0,
    window: int = 1,
    live: Live | None = None,
) -> str:
    """The page's HTML.

    Args:
        title: of the page.
        arms: for the legend and the overview; their order is that of the colors.
        sections: as they follow one another.
        examples: to page through.
        bad_lines: how many malformed lines were left out, which stands on top.
        window: steps of the running mean in the sections.
        live: of a page that is served; None for a file.
    """
    return _render(
        "page.html",
        live,
        title=title,
        arms=arms,
        runs=sum(len(arm.runs) for arm in arms),
        seeds=max(len(arm.runs) for arm in arms),
        window=window,
        bad_lines=bad_lines,
        overview=overview(arms),
        sections=sections,
        figures=figures,
        svg=svg,
        shown=Counter(example.transition for example in examples.shown),
        found=examples.found,
        transitions=TRANSITIONS,
        data=[vars(example) for example in examples.shown],
    )


def waiting_page(*, title: str, waiting: str, live: Live) -> str:
    """The HTML of a served page before there is anything to draw. waiting: what it waits for."""
    return _render("waiting.html", live, title=title, waiting=waiting)


def _render(template: str, live: Live | None, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("verl_cipo.evaluation.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = {"script": _part("page.js")} | ({"live_script": _part("live.js")} if live else {})
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts.values())
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    if live:
        policy += "; connect-src 'self'"
    return environment.get_template(template).render(
        style=_part("page.css"), policy=Markup(policy), live=live, **scripts, **values
    )


def overview(arms: Sequence[Arm]) -> Table:
    """One row an arm: seeds, the last step that all of them have, and the validation's figures, first and last."""
    read, _ = first_turn(arms)
    columns = [
        ("solved, turn 1", read),
        ("after turn 2", metric(TURN2)),
        ("w\u2192c", metric("cipo/val/w2c")),
        ("retry", metric("cipo/val/retry")),
        ("c\u2192c", metric("cipo/val/c2c")),
        ("w copied", metric("cipo/val/copy_rate_failed")),
    ]
    rows = []
    for arm in arms:
        steps = combine({step: 0.0 for step in run.metrics} for run in arm.runs)
        last = f"{steps.x[-1]:g}" if steps else "none in common"
        cells = [_first_and_last(combine(read(run) for run in arm.runs)) for _, read in columns]
        rows.append((arm.label, str(len(arm.runs)), last, *cells))
    return Table(head=("arm", "seeds", "steps", *(name for name, _ in columns)), rows=tuple(rows))


def figures(chart: Chart | Strips) -> Table:
    """The numbers behind a picture: a row for each x that any of its lines has, or for each of its strips."""
    if isinstance(chart, Strips):
        strips = [
            (label, ", ".join(f"{first}" if first == end else f"{first}\u2013{end}" for first, end in spans))
            for label, _, spans in chart.rows
        ]
        return Table(head=("alarm", "steps"), rows=tuple(strips))
    columns = [dict(zip(line.curve.x, line.curve.mean, strict=True)) for line in chart.lines]
    xs = sorted(set().union(*columns))
    names = [line.label or chart.title for line in chart.lines]
    rows = [
        (f"{x:.10g}", *(number(column[x], shares=chart.shares) if x in column else "" for column in columns))
        for x in xs
    ]
    return Table(head=(chart.x_label, *names), rows=tuple(rows))


def _first_and_last(curve: Curve | None) -> str:
    if curve is None:
        return "\u2013"
    first, last = (number(float(value), shares=True) for value in (curve.mean[0], curve.mean[-1]))
    return f"{first} \u2192 {last}" if len(curve.x) > 1 else last


def _part(name: str) -> str:
    return files("verl_cipo.evaluation.report").joinpath(name).read_text(encoding="utf-8")
