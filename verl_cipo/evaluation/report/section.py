"""A section of the report: its pictures and tables, and what the runs lack for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from verl_cipo.evaluation.report.charts import Chart, Series, Strips
from verl_cipo.evaluation.report.runs import Arm, Run
from verl_cipo.evaluation.report.series import Points, combine, metric

Kind = tuple[str, str, Callable[[Run], Points]]
"""One quantity of a picture: its label, the metrics it needs in words, and how a run is read."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column heads its row. title: above it; folded: whether a reader has to open it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    folded: bool = False


@dataclass
class Section:
    """Title, what to know when reading it, its pictures and tables, and what could not be shown, and why."""

    name: str
    title: str
    lead: str
    charts: list[Chart | Strips] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add_lines(self, name: str, title: str, arms: Sequence[Arm], kinds: Sequence[Kind], **how):
        """A chart of every arm's curves of each kind.

        how: fields of `Chart`, and `window`, see `combine`.
        """
        window = how.pop("window", 1)
        lines = []
        for kind, (label, needs, read) in enumerate(kinds):
            lacking = []
            for index, arm in enumerate(arms):
                curve = combine((read(run) for run in arm.runs), window)
                if curve is None:
                    lacking.append(arm.label)
                else:
                    lines.append(Series(curve, label_of(arm, arms, label if len(kinds) > 1 else ""), index, kind))
            if lacking:
                self.missing.append(f"{title}: no {needs} in {', '.join(lacking)}")
            self.lead += "".join(told for told in _undefined(needs, arms) if told not in self.lead)
        if lines:
            self.charts.append(Chart(name=name, title=title, lines=tuple(lines), by_arm=len(arms) > 1, **how))


def _undefined(needs: str, arms: Sequence[Arm]) -> Iterator[str]:
    """What to say of each run that logged a needed metric as no finite number, as one does that diverged."""
    for run in (run for arm in arms for run in arm.runs):
        for name in needs.split():
            if steps := run.undefined.get(name):
                at = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, the first of them {steps[0]}"
                yield f" {name} was no finite number in {run.name} at {at}."


def kind_of(label: str, name: str) -> Kind:
    """A kind that is a metric."""
    return label, name, metric(name)


def label_of(arm: Arm, arms: Sequence[Arm], kind: str = "") -> str:
    """What a line is called: its arm where there are several, then its kind."""
    return " ".join(part for part in (arm.label if len(arms) > 1 else "", kind) if part)


def recorded(arms: Sequence[Arm], read: Callable[[Run], Points]) -> bool:
    """Whether any run has a value."""
    return any(read(run) for arm in arms for run in arm.runs)
