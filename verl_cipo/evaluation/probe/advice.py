"""What the figures of a probe mean, and the options that follow from them. Rules only: nothing here samples or reads.

Every threshold has its reason beneath it. Most rest on our own small experiments (docs/results.md), so they say where
to begin and not what is best.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verl_cipo.core.config import CIPOConfig
from verl_cipo.evaluation.intervals import Interval

DEFAULTS = CIPOConfig()

WHOLE = 0.99
"""Share of attempts to show whole: of a longer one the end is shown, which has the answer and may lack the mistake."""
ROUND_TO = 128
"""prompt_length is rounded up to this many tokens: the sample does not know the next few."""
FEW_WAVES = 2.0
"""Rollouts of a step per sequence that the engines take at a time, up to which `replay` is worth its older attempts. In
our simulation `streaming` took 25 % longer than `replay` at 1, 14 % at 2, and as long at 4."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A recommendation. settings: option -> value, as on verl's command line, empty to leave the defaults alone."""

    name: str
    settings: Mapping[str, str]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was measured. Shares are in [0, 1]; a rate over no correction of its kind is None.

    n: attempts a prompt; max_tokens: of an answer; all_right, all_wrong: shares of prompts; hard: share of prompts with
    a pass rate of at most transfer.below; hard_w2c: w2c of these; prompts: tokens of the plain prompts; corrections:
    tokens that the correction prompt of each attempt takes when the attempt is whole; longest_over_mean: of a prompt's
    attempts the longest over the mean, averaged; most_tokens: of prompt and answer together, that the model takes, None
    where its config does not say.
    """

    n: int
    max_tokens: int
    pass_at_1: Interval
    all_right: Interval
    all_wrong: Interval
    hard: Interval
    w2c: Interval | None
    retry: Interval | None
    w2c_over_retry: Interval | None
    c2c: Interval | None
    hard_w2c: Interval | None
    prompts: Sequence[int]
    corrections: Sequence[int]
    longest_over_mean: float
    most_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step as it is planned. prompts: data.train_batch_size; sequences: that all engines take at a time."""

    prompts: int
    n: int
    sequences: int


def recommend(probed: Probed, step: Step) -> list[Option]:
    """The options for CIPO on this checkpoint; plain GRPO where no attempt is wrong."""
    if probed.pass_at_1.estimate == 1:
        reason = "all attempts are right: there is nothing to correct, and nothing to learn from"
        return [Option(name="estimator", settings={"algorithm.adv_estimator": "grpo"}, reason=reason)]
    return [
        Option(name="estimator", settings={"algorithm.adv_estimator": "cipo"}, reason="switches CIPO on"),
        prompt_length(
            probed.corrections,
            longest_prompt=max(probed.prompts),
            most=None if probed.most_tokens is None else probed.most_tokens - probed.max_tokens,
        ),
        schedule(step, probed.longest_over_mean),
        budget(probed.w2c_over_retry),
        transfer(probed.hard, probed.hard_w2c),
        anchors(probed.c2c),
    ]


def line(options: Sequence[Option]) -> str:
    """The settings of all options, as verl's command line takes them."""
    return " ".join(f"{name}={value}" for option in options for name, value in option.settings.items())


def shown_whole(corrections: Sequence[int], length: int) -> float:
    """Share of attempts whose correction prompt fits `length` tokens whole; nan without one."""
    return sum(tokens <= length for tokens in corrections) / len(corrections) if corrections else math.nan


def prompt_length(corrections: Sequence[int], *, longest_prompt: int, most: int | None) -> Option:
    """Room for the correction prompt (actor_rollout_ref.rollout.prompt_length).

    Args:
        corrections: tokens that each attempt's prompt takes whole; empty where no attempt can be shown.
        longest_prompt: tokens of the longest plain prompt, which has to fit too.
        most: tokens that the model leaves beside the answer; None where that is not known.
    """
    ordered = sorted(corrections)
    wanted = ordered[math.ceil(WHOLE * len(ordered)) - 1] if ordered else 0
    length = math.ceil(max(wanted, longest_prompt + 1) / ROUND_TO) * ROUND_TO
    limited = False
    if most is not None and length > most:
        length, limited = most, True
    share = shown_whole(ordered, length)
    told = "no attempt has text to show" if math.isnan(share) else f"shows {share:.1%} of the attempts whole"
    why = (
        "all that the model leaves beside the answer" if limited else f"the longest of {WHOLE:.0%} of them, rounded up"
    )
    return Option(
        name="prompt_length",
        settings={"actor_rollout_ref.rollout.prompt_length": str(length)},
        reason=f"{told}, {why}; it must be above data.max_prompt_length",
    )


def schedule(step: Step, longest_over_mean: float) -> Option:
    """When anchors are drawn: from the previous step where the engines have room for most rollouts at once."""
    waves = step.prompts * step.n / step.sequences
    few = waves <= FEW_WAVES
    told = f"{step.prompts * step.n} attempts a step are {waves:.3g} times what the engines take at a time"
    if few:
        why = (
            f"{told}, and a prompt's longest attempt is {longest_over_mean:.1f} times its mean: corrections that wait "
            "for it leave engines idle"
        )
    else:
        why = f"{told}: corrections fill the engines as prompts finish, and show attempts of the same step"
    return Option(
        name="schedule", settings={"+algorithm.cipo.schedule": "replay" if few else DEFAULTS.schedule}, reason=why
    )


def budget(over_retry: Interval | None) -> Option:
    """That sessions become further attempts where prompts have a signal, whatever a correction is worth there."""
    if over_retry is not None and over_retry.low > 0:
        why = (
            "a correction is worth more than another attempt; yet where a prompt has right attempts, corrections in "
            "place of further ones cost the first turn, so they go to prompts without one"
        )
    elif over_retry is not None and over_retry.high < 0:
        why = "another attempt is worth more than a correction: nearly all slots become attempts"
    else:
        why = "whether a correction is worth another attempt cannot be told yet: training measures it"
    return Option(name="budget", settings={"+algorithm.cipo.budget": DEFAULTS.budget}, reason=why)


def transfer(hard: Interval, hard_w2c: Interval | None) -> Option:
    """That what corrections find is trained on the plain prompt; where there is little of it, the term is small."""
    knobs = DEFAULTS.transfer
    share = f"{hard.estimate:.0%} of the prompts have at most {knobs.below:.1%} right"
    if hard_w2c is None or not hard_w2c.low > 0:
        why = f"{share}; that corrections find anything there cannot be told yet, and without a find nothing is added"
    else:
        found = f"{hard_w2c.estimate:.0%} of their corrections are right"
        why = f"{share}, and {found}: what these find is trained on the plain prompt, too"
    settings = {f"+algorithm.cipo.transfer.{knob}": f"{getattr(knobs, knob)}" for knob in ("kind", "coef", "below")}
    return Option(name="transfer", settings=settings, reason=why)


def anchors(c2c: Interval | None) -> Option:
    """Which attempts are corrected: by the rule of rho."""
    target = DEFAULTS.rho_target
    if c2c is not None and c2c.high < target:
        why = (
            f"of right attempts {c2c.estimate:.0%} stay right, below rho_target = {target}: rho will rise, and most "
            "anchors will be right attempts until they do; with budget=auto they cost few sessions"
        )
    else:
        told = "cannot be told" if c2c is None else f"are {c2c.estimate:.0%}{_of_too_few(c2c)}"
        why = f"right attempts that stay right {told}, not clearly below rho_target = {target}"
    settings = {
        "+algorithm.cipo.rho_adaptive": "true",
        "+algorithm.cipo.rho_init": f"{DEFAULTS.rho_init}",
        "+algorithm.cipo.lambda_corr": f"{DEFAULTS.lambda_corr}",
    }
    return Option(name="anchors", settings=settings, reason=why)


def meaning(probed: Probed, *, factor: float) -> list[str]:
    """What the figures say, in three sentences.

    factor: tokens that a step of CIPO samples over those of GRPO with the same n.
    """
    n = probed.n
    signal = (
        f"{_percent(probed.pass_at_1)} of the attempts are right; of the groups of {n}, {_percent(probed.all_right)} "
        f"are all right and {_percent(probed.all_wrong)} all wrong, and GRPO learns nothing from these."
    )
    over = probed.w2c_over_retry
    if over is None or probed.w2c is None or probed.retry is None:
        worth = (
            "What a correction is worth cannot be told: there is no prompt with a wrong attempt beside another attempt."
        )
    else:
        found = (
            f"A correction of a wrong attempt is right in {_percent(probed.w2c)}, another attempt at the same prompts "
            f"in {_percent(probed.retry)}"
        )
        points = f"{over.estimate * 100:+.1f} points [{over.low * 100:+.1f}, {over.high * 100:+.1f}]"
        if too_few := _of_too_few(over):
            worth = (
                f"{found}: a difference of {over.estimate * 100:+.1f} points{too_few}, so more prompts (--limit) would "
                "have to decide."
            )
        elif over.low > 0:
            worth = f"{found}: showing the attempt is worth {points}, so corrections find what further attempts do not."
        elif over.high < 0:
            worth = f"{found}: showing the attempt costs {-over.estimate * 100:.1f} points [{-over.high * 100:.1f}, "
            worth += f"{-over.low * 100:.1f}], so further attempts are likely to teach more than corrections."
        else:
            worth = f"{found}: the difference, {points}, may be chance, so more prompts (--limit) would have to decide."
    cost = (
        f"A step of CIPO with the default number of sessions, all of them corrections, samples {factor:.2f} times the "
        f"tokens of GRPO with n={n}, so compare it with GRPO with n={max(n, round(n * factor))}."
    )
    return [signal, worth, cost]


def _of_too_few(figure: Interval) -> str:
    """That a figure rests on problems too few for an interval; empty where it has one."""
    if not math.isnan(figure.low):
        return ""
    return " in a single problem, which cannot tell" if figure.problems == 1 else ", which has no interval"


def _percent(figure: Interval) -> str:
    return f"{figure.estimate * 100:.1f} %"
