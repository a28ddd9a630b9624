"""What the report shows: its sections, with their charts, and what the runs lack for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from verl_cipo.evaluation.jsonl import BadLine
from verl_cipo.evaluation.report.charts import Chart, Series, Strips
from verl_cipo.evaluation.report.runs import Arm, Run
from verl_cipo.evaluation.report.series import (
    TURN2,
    Points,
    against_tokens,
    alarms,
    benchmark_pass1,
    combine,
    first_turn,
    metric,
    pass_curves,
    ranges,
)

_READ = Callable[[Run], Points]


@dataclass
class Section:
    """Title, what to know when reading it, its pictures, and what could not be shown, and why."""

    name: str
    title: str
    lead: str
    charts: list[Chart | Strips] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add_lines(self, name: str, title: str, arms: Sequence[Arm], kinds: Sequence[tuple[str, str, _READ]], **how):
        """A chart of every arm's curves: a kind is its label, the metrics it needs in words, and how a run is read.

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
                    lines.append(Series(curve, _label(arm, arms, label, kinds), index, kind))
            if lacking:
                self.missing.append(f"{title}: no {needs} in {', '.join(lacking)}")
        if lines:
            self.charts.append(Chart(name=name, title=title, lines=tuple(lines), **how))


def sections(arms: Sequence[Arm], *, window: int, bad: list[BadLine]) -> list[Section]:
    """All sections, in the order in which they are read.

    Args:
        arms: one or more.
        window: steps of the running mean of what is measured on every training step.
        bad: takes the malformed lines of dumps, which are left out.
    """
    return [
        _learning(arms, window),
        _pass_k(arms, bad),
        _transitions(arms, window),
        _replay(arms, window),
        _collapse(arms, window),
        *_hacking(arms, window),
        _cost(arms, window),
    ]


def _metric(label: str, name: str) -> tuple[str, str, _READ]:
    """A kind that is a metric."""
    return label, name, metric(name)


def _label(arm: Arm, arms: Sequence[Arm], kind: str, kinds: Sequence[object]) -> str:
    parts = [arm.label] if len(arms) > 1 else []
    parts += [kind] if len(kinds) > 1 else []
    return " ".join(parts)


def _learning(arms: Sequence[Arm], window: int) -> Section:
    read, over = first_turn(arms)
    section = Section(
        name="learning",
        title="Learning",
        lead=f"Share of held-out attempts that are right at once (turn 1, pass@1: {over}) and after the policy has "
        "seen its attempt and was asked to correct it (turn 2); next to it, the same for the training batches.",
    )
    kinds = [("turn 1", "val-core/*/mean@n or cipo/val/accuracy_turn1", read), _metric("turn 2", TURN2)]
    section.add_lines("validation", "Held-out problems solved", arms, kinds, points=True)
    kinds = [_metric("attempts", "cipo/accuracy/base"), _metric("corrections", "cipo/accuracy/correction")]
    section.add_lines("training", "Right in training", arms, kinds, window=window)
    sources = sorted({source for arm in arms for run in arm.runs for source in benchmark_pass1(run)})
    if len(sources) > 1:
        for index, source in enumerate(sources):
            kinds = [("", f"val-core/{source}", lambda run, source=source: benchmark_pass1(run).get(source, {}))]
            section.add_lines(f"benchmark-{index}", f"{source}: pass@1", arms, kinds, points=True)
    return section


def _pass_k(arms: Sequence[Arm], bad: list[BadLine]) -> Section:
    section = Section(
        name="passk",
        title="pass@K",
        lead="Chance that at least one of K held-out attempts is right (unbiased), from the validation's dumps: "
        "at the last step that all seeds of an arm have dumped and, dashed, at their first.",
    )
    lines = []
    for index, arm in enumerate(arms):
        curves = pass_curves(arm, bad)
        if not curves:
            section.missing.append(f"no validation/<step>.jsonl in {arm.label}, or none of a step that all seeds have")
        for kind, (step, curve) in enumerate(reversed(curves.items())):
            name = f"{arm.label} step {step}" if len(arms) > 1 else f"step {step}"
            lines.append(Series(curve, name, index, kind))
    if lines:
        section.charts.append(
            Chart("pass-at-k", "Solved within K attempts", tuple(lines), x_label="K", powers=True, points=True)
        )
    return section


def _transitions(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="transitions",
        title="What corrections do",
        lead="Verdict on the attempt, then on its correction: c is right, w is wrong; w\u2192c corrects, c\u2192w "
        "breaks. The upper pictures show training, the lower ones held-out problems.",
    )
    trained, held_out = ("cipo/transitions", "training", {"window": window}), ("cipo/val", "held-out", {"points": True})
    for prefix, where, how in (trained, held_out):
        for start, title in (("w", "Corrections of wrong attempts"), ("c", "Corrections of right attempts")):
            kinds = [_metric(f"{start}\u2192{end}", f"{prefix}/{start}2{end}") for end in ("c", "w")]
            section.add_lines(f"transitions-{where}-{start}", f"{title}, {where}", arms, kinds, **how)
    return section


def _replay(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="replay",
        title="Replay ratio and retention",
        lead="rho is the target share of right attempts among a step's anchors. It rises while retention, the share of "
        "corrections of right attempts that are right, is below its target.",
    )
    section.add_lines("rho", "rho", arms, [_metric("", "cipo/rho")])
    section.add_lines("retention", "Retention", arms, [_metric("", "cipo/retention")], window=window)
    share = "cipo/budget/correction_share"
    if any(metric(share)(run) for arm in arms for run in arm.runs):
        section.lead += " With budget=auto some slots of a step, an anchor's sessions each, become further attempts."
        section.add_lines("budget", "Slots that are corrections", arms, [_metric("", share)], window=window)
    return section


def _collapse(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="collapse",
        title="Copying and alarms",
        lead="A policy that learns to repeat what it is shown keeps right attempts right and corrects nothing.",
    )
    kinds = [_metric("", "cipo/copy_rate")]
    section.add_lines("copies", "Corrections that repeat their attempt, training", arms, kinds, window=window)
    rows, quiet, unwatched, last = [], [], [], 0
    for index, arm in enumerate(arms):
        for run in arm.runs:
            found = alarms(run)
            last = max(last, *run.metrics)
            rows += [(f"{run.name}: {name}", index, tuple(ranges(on))) for name, on in found.items() if on]
            if not found:
                unwatched.append(run.name)
            elif not any(found.values()):
                quiet.append(run.name)
    if rows:
        section.charts.append(Strips("alarms", "Steps with an alarm of the guard", tuple(rows), last))
    if quiet:
        section.lead += f" The guard raised no alarm in {', '.join(quiet)}."
    if unwatched:
        section.missing.append(f"Alarms: no cipo/guard/* in {', '.join(unwatched)}")
    return section


def _hacking(arms: Sequence[Arm], window: int) -> list[Section]:
    """None where no run has a second verifier."""
    trained = [_metric("attempts", "cipo/hacking_gap"), _metric("corrections", "cipo/hacking_gap_corrections")]
    held_out = [_metric("", "cipo/val/hacking_gap")]
    if not any(read(run) for _, _, read in (*trained, *held_out) for arm in arms for run in arm.runs):
        return []
    section = Section(
        name="hacking",
        title="Hacking gap",
        lead="Share that the run's verifier calls right minus the share that the second verifier does. A gap that "
        "grows while the reward grows is a policy that learns to please its verifier.",
    )
    section.add_lines("gap-training", "Hacking gap, training", arms, trained, window=window)
    section.add_lines("gap-held-out", "Hacking gap, held-out", arms, held_out, points=True)
    return [section]


def _cost(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="cost",
        title="Token cost",
        lead="Response tokens that training generated, and what they bought: the same pass@1 as above, against the "
        "tokens spent since the first step logged.",
    )
    kinds = [_metric("attempts", "cipo/tokens/base"), _metric("corrections", "cipo/tokens/correction")]
    section.add_lines("tokens", "Response tokens per step", arms, kinds, window=window, shares=False)
    read, _ = first_turn(arms)
    lines, lacking = [], []
    for index, arm in enumerate(arms):
        curve = against_tokens(arm, read)
        if curve is None:
            lacking.append(arm.label)
        else:
            lines.append(Series(curve, _label(arm, arms, "", [""]), index))
    if lines:
        title, x_label = "Held-out problems solved, turn 1", "response tokens generated before"
        section.charts.append(Chart("bought", title, tuple(lines), x_label=x_label, counted=True, points=True))
    if lacking:
        section.missing.append(f"Solved against tokens: no cipo/tokens/* or no validation in {', '.join(lacking)}")
    return section
