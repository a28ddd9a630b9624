"""What the report shows: its sections, with their charts, and what the runs lack for them."""

from collections.abc import Sequence
from pathlib import Path

from verl_cipo.evaluation.jsonl import BadLine
from verl_cipo.evaluation.report import training
from verl_cipo.evaluation.report.charts import Chart, Series, Strips
from verl_cipo.evaluation.report.knobs import settings
from verl_cipo.evaluation.report.runs import Arm
from verl_cipo.evaluation.report.section import Section, kind_of, label_of, recorded
from verl_cipo.evaluation.report.series import (
    TURN2,
    against_tokens,
    alarms,
    attempts_in_training,
    benchmark_pass1,
    first_turn,
    metric,
    pass_curves,
    ranges,
    rho,
    tokens,
)


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
        training.update(arms, window),
        training.responses(arms, window),
        _cost(arms, window),
        training.time(arms, window),
        settings(arms),
    ]


def _learning(arms: Sequence[Arm], window: int) -> Section:
    read, over = first_turn(arms)
    section = Section(
        name="learning",
        title="Learning",
        lead=f"Share of held-out attempts that are right at once (turn 1, pass@1: {over}) and after the policy has "
        "seen its attempt and was asked to correct it (turn 2); next to it, the same for the training batches.",
    )
    kinds = [("turn 1", "val-core/*/mean@n or cipo/val/accuracy_turn1", read), kind_of("turn 2", TURN2)]
    section.add_lines("validation", "Held-out problems solved", arms, kinds, points=True)
    verdicts, needs, read = attempts_in_training(arms)
    kinds = [
        ("attempts", needs, read),
        kind_of("corrections", "cipo/accuracy/correction" if verdicts else "cipo/reward/correction"),
    ]
    title = "Right in training" if verdicts else "Mean score in training"
    section.add_lines("training", title, arms, kinds, window=window, shares=verdicts)
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
        empty: list[Path] = []
        curves = pass_curves(arm, bad, empty)
        section.missing += [f"no attempt in {path}: its step is left out" for path in empty]
        if not curves:
            section.missing.append(f"no validation/<step>.jsonl in {arm.label}, or none of a step that all seeds have")
        for kind, (step, curve) in enumerate(reversed(curves.items())):
            name = f"{arm.label} step {step}" if len(arms) > 1 else f"step {step}"
            lines.append(Series(curve, name, index, kind))
    if lines:
        section.charts.append(
            Chart(
                "pass-at-k",
                "Solved within K attempts",
                tuple(lines),
                x_label="K",
                powers=True,
                points=True,
                by_arm=len(arms) > 1,
            )
        )
    return section


def _transitions(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="transitions",
        title="What corrections do",
        lead="Verdict on the attempt, then on its correction: c is right, w is wrong; w\u2192c corrects, c\u2192w "
        "breaks. retry is what w\u2192c would be with another attempt in place of each correction: where the two are "
        "alike, the attempt that is shown does not help. The upper pictures show training, the lower ones held-out "
        "problems.",
    )
    names = ("Wrong attempts corrected (w\u2192c)", "Right attempts broken (c\u2192w)")
    for kind, title in zip(("w2c", "c2w"), names, strict=True):
        kinds = [kind_of("", f"cipo/transitions/{kind}")]
        section.add_lines(f"transitions-training-{kind}", f"{title}, training", arms, kinds, window=window)
    kinds = [kind_of("w\u2192c", "cipo/val/w2c"), kind_of("retry", "cipo/val/retry")]
    section.add_lines("transitions-held-out-w2c", f"{names[0]}, held-out", arms, kinds, points=True)
    kinds = [kind_of("", "cipo/val/c2w")]
    section.add_lines("transitions-held-out-c2w", f"{names[1]}, held-out", arms, kinds, points=True)
    return section


def _replay(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="replay",
        title="Replay ratio and retention",
        lead="rho is the target share of right attempts among a step's anchors. It rises while retention, the share of "
        "corrections of right attempts that are right, is below its target.",
    )
    section.add_lines("rho", "rho", arms, [("", "cipo/rho", rho)])
    section.add_lines("retention", "Retention", arms, [kind_of("", "cipo/retention")], window=window)
    share = "cipo/budget/correction_share"
    if recorded(arms, metric(share)):
        section.lead += " With budget=auto some slots of a step, an anchor's sessions each, become further attempts."
        section.add_lines("budget", "Slots that are corrections", arms, [kind_of("", share)], window=window)
    return section


def _collapse(arms: Sequence[Arm], window: int) -> Section:
    section = Section(
        name="collapse",
        title="Copying and alarms",
        lead="A policy that learns to repeat what it is shown keeps right attempts right and corrects nothing. Copies "
        "of right attempts do no harm and are not counted.",
    )
    kinds = [kind_of("", "cipo/copy_rate_failed")]
    section.add_lines("copies", "Corrections that repeat a wrong attempt, training", arms, kinds, window=window)
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
    trained = [kind_of("attempts", "cipo/hacking_gap"), kind_of("corrections", "cipo/hacking_gap_corrections")]
    held_out = [kind_of("", "cipo/val/hacking_gap")]
    if not any(recorded(arms, read) for _, _, read in (*trained, *held_out)):
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
    kinds = [
        ("attempts", "cipo/tokens/base or perf/total_num_tokens", tokens),
        kind_of("corrections", "cipo/tokens/correction"),
    ]
    section.add_lines("tokens", "Response tokens per step", arms, kinds, window=window, shares=False)
    read, _ = first_turn(arms)
    lines, lacking = [], []
    for index, arm in enumerate(arms):
        curve = against_tokens(arm, read)
        if curve is None:
            lacking.append(arm.label)
        else:
            lines.append(Series(curve, label_of(arm, arms), index))
    if lines:
        section.charts.append(
            Chart(
                "bought",
                "Held-out problems solved, turn 1",
                tuple(lines),
                x_label="response tokens generated before",
                counted=True,
                points=True,
                by_arm=len(arms) > 1,
            )
        )
    if lacking:
        section.missing.append(f"Solved against tokens: no tokens or no validation in {', '.join(lacking)}")
    return section
