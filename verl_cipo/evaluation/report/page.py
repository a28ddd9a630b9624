"""The report as one HTML page that loads nothing: style, script, pictures and examples are inside it."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from verl_cipo.evaluation.report.charts import Chart, Strips, svg
from verl_cipo.evaluation.report.examples import TRANSITIONS, Examples
from verl_cipo.evaluation.report.runs import Arm
from verl_cipo.evaluation.report.sections import Section
from verl_cipo.evaluation.report.tables import Table, figures

_BROWSER = """\
<noscript><p class="missing">Paging through the examples needs JavaScript.</p></noscript>
<div class="card" id="browser" hidden>
<div class="controls">
<div class="choices" id="kinds" role="group" aria-label="Transition"></div>
<label>Run <select id="run"><option value="">all</option></select></label>
<label>Copies <select id="copied"><option value="">all</option><option value="true">only copies</option>\
<option value="false">no copies</option></select></label>
<input type="search" id="search" placeholder="Search" aria-label="Search in the texts">
</div>
<table id="rows"><thead><tr><th scope="col">Question</th><th scope="col">Attempt</th><th scope="col">Correction</th>\
</tr></thead><tbody></tbody></table>
<div class="pager"><button type="button" id="previous">Previous</button><button type="button" id="next">Next</button>
<span id="count" aria-live="polite"></span></div>
</div>"""


def page(
    *,
    title: str,
    arms: Sequence[Arm],
    overview: Table,
    sections: Sequence[Section],
    examples: Examples,
    notice: str = "",
    window: int = 1,
) -> str:
    """The page's HTML.

    Args:
        title: of the page.
        arms: for the legend; their order is that of the colours.
        overview: the table on top.
        sections: as they follow one another.
        examples: to page through.
        notice: what a reader must know before all else, such as lines that were left out; may be empty.
        window: steps of the running mean in the sections, to be told to the reader.
    """
    script = _part("js")
    return Template(_part("html")).substitute(
        title=escape(title),
        style=_part("css"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        about=escape(_about(arms, window)),
        legend=_legend(arms),
        navigation="".join(
            f'<a href="#{name}">{escape(text)}</a>'
            for name, text in [*((section.name, section.title) for section in sections), ("examples", "Examples")]
        ),
        notice=f'<p class="notice">{escape(notice)}</p>' if notice else "",
        overview=f'<div class="card scroll" tabindex="0">{_table(overview)}</div>',
        sections="\n".join(map(_section, sections)),
        examples=_examples(examples),
        # Within a script element only "<" can end it; escaped, it is the same character to JSON.
        data=json.dumps([example.to_mapping() for example in examples.shown]).replace("<", "\\u003c"),
    )


def _part(ending: str) -> str:
    return files("verl_cipo.evaluation.report").joinpath(f"page.{ending}").read_text(encoding="utf-8")


def _about(arms: Sequence[Arm], window: int) -> str:
    runs = sum(len(arm.runs) for arm in arms)
    said = [f"{runs} run{'s' if runs > 1 else ''} in {len(arms)} arm{'s' if len(arms) > 1 else ''}."]
    if window > 1:
        said.append(f"Training curves are a running mean of {window} steps.")
        if runs == 1:
            said.append("Thin lines are the steps themselves.")
    if any(len(arm.runs) > 1 for arm in arms):
        said.append("Lines are means over seeds, at the steps that all seeds of the arm have.")
        said.append("Bands reach from the least to the greatest seed.")
    return " ".join(said)


def _legend(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return ""
    items = (
        f'<li style="--colour: var(--series-{index})">{escape(arm.label)}'
        f"{f' ({len(arm.runs)} seeds)' if len(arm.runs) > 1 else ''}</li>"
        for index, arm in enumerate(arms)
    )
    return f'<ul class="legend" aria-label="Arms">{"".join(items)}</ul>'


def _section(section: Section) -> str:
    cards = [_figure(chart) for chart in section.charts]
    body = [f'<section id="{section.name}">', f"<h2>{escape(section.title)}</h2>"]
    body.append(f'<p class="lead">{escape(section.lead)}</p>')
    if cards:
        body.append(f'<div class="grid">{"".join(cards)}</div>')
    if section.missing:
        notes = "".join(f"<p>{escape(note)}</p>" for note in section.missing)
        body.append(f'<div class="missing" role="note"><p>Not recorded:</p>{notes}</div>')
    return "\n".join([*body, "</section>"])


def _figure(chart: Chart | Strips) -> str:
    # The numbers are also what a screen reader reads in place of the picture.
    numbers = (
        f'<details><summary>Numbers</summary><div class="scroll" tabindex="0">{_table(figures(chart))}</div></details>'
    )
    return f'<figure role="group" aria-label="{escape(chart.title)}">{svg(chart)}{numbers}</figure>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _examples(examples: Examples) -> str:
    if not examples.shown:
        return (
            '<div class="missing" role="note"><p>Not recorded: no validation/corrections/&lt;step&gt;.jsonl with a '
            "correction in the runs; trainer.validation_data_dir makes CIPO write it.</p></div>"
        )
    shown = Counter(example.transition for example in examples.shown)
    kinds = ", ".join(f"{shown[kind]} of {examples.found[kind]} " + kind.replace("2", "\u2192") for kind in TRANSITIONS)
    lead = f"From the last validation of each run: {kinds}. Lines of a correction that its attempt lacks are marked."
    return f'<p class="lead">{escape(lead)}</p>\n{_BROWSER}'
