"""Sections on how training itself goes: the update, the responses, and the time of a step. verl logs most of it."""

from collections.abc import Callable, Sequence

from verl_cipo.evaluation.report.runs import Arm, Run
from verl_cipo.evaluation.report.section import Kind, Section, kind_of, recorded
from verl_cipo.evaluation.report.series import Points, metric

_REFERENCE_KL = ("actor/kl_loss", "actor/reward_kl_penalty")
"""verl's name with use_kl_loss, and with use_kl_in_reward."""
_LENGTH = "response_length/mean"
_LOG_PROBS = ("timing_s/old_log_prob", "timing_s/ref")


def update(arms: Sequence[Arm], window: int) -> Section:
    """Entropy, KL and gradient norm."""
    section = Section(
        name="update",
        title="Policy and update",
        lead="Entropy of the policy per token, the KL of an update to the policy that made the rollouts, and the norm "
        "of the gradient before it is clipped. In a run with corrections they are over both streams.",
    )
    how = {"window": window, "shares": False}
    section.add_lines("entropy", "Entropy", arms, [kind_of("", "actor/entropy")], **how)

    def to_reference(run: Run) -> Points:
        return next(filter(None, (metric(name)(run) for name in _REFERENCE_KL)), {})

    if recorded(arms, to_reference):
        section.add_lines("kl", "KL to the reference", arms, [("", " or ".join(_REFERENCE_KL), to_reference)], **how)
    # A batch that is trained in one step has none.
    if recorded(arms, lambda run: {step: kl for step, kl in metric("actor/ppo_kl")(run).items() if kl}):
        section.add_lines("kl-update", "KL of an update", arms, [kind_of("", "actor/ppo_kl")], **how)
    else:
        section.lead += " No run had a KL of an update other than 0."
    section.add_lines("gradient", "Gradient norm", arms, [kind_of("", "actor/grad_norm")], **how)
    return section


def responses(arms: Sequence[Arm], window: int) -> Section:
    """Length and truncation of each stream."""
    section = Section(
        name="responses",
        title="Responses",
        lead="Length of the responses in training, and the share of them that reached the longest length allowed and "
        "so were cut off. Of a run of verl's own trainer, all responses are attempts.",
    )
    kinds = [
        ("attempts", "cipo/tokens/base or response_length/mean", _attempts(length("base"), metric(_LENGTH))),
        ("corrections", "cipo/tokens/correction", length("correction")),
    ]
    section.add_lines("length", "Tokens per response", arms, kinds, window=window, shares=False)
    cut = "cipo/truncated/base, or no response_length/* with data.max_response_length in the run's settings"
    kinds = [
        ("attempts", cut, _attempts(metric("cipo/truncated/base"), truncated)),
        kind_of("corrections", "cipo/truncated/correction"),
    ]
    section.add_lines("truncated", "Responses cut off", arms, kinds, window=window)
    return section


def time(arms: Sequence[Arm], window: int) -> Section:
    """Seconds a step: by phase, of a single arm in one picture, of several in a picture a phase."""
    section = Section(
        name="time",
        title="Time",
        lead="Seconds of a training step, without its validation. Log-probabilities are those of the old policy and of "
        "the reference; the rest is advantages, weight sync and checkpoints. Runs that shared a machine with others, "
        "or were on different ones, cannot be compared.",
    )
    phases: list[Kind] = [
        kind_of("step", "timing_s/step"),
        kind_of("generation", "timing_s/gen"),
        ("log-probabilities", _LOG_PROBS[0], log_probabilities),
        kind_of("update", "timing_s/update_actor"),
    ]
    how = {"window": window, "shares": False}
    if len(arms) == 1:
        phases.append(("rest", "timing_s/step", rest))
        section.add_lines("seconds", "Seconds per step", arms, phases, **how)
    else:
        for label, needs, read in phases:
            title = "Seconds per step" if label == "step" else f"Seconds per step: {label}"
            section.add_lines(f"seconds-{label}", title, arms, [("", needs, read)], **how)
    if recorded(arms, metric("cipo/seconds/correction")):
        kinds = [kind_of("attempts", "cipo/seconds/rollout"), kind_of("corrections", "cipo/seconds/correction")]
        section.add_lines("seconds-streams", "Seconds of attempts, then of corrections", arms, kinds, **how)
        section.lead += " Corrections take the seconds from the last verified attempt to the last verified correction."
    return section


def length(stream: str) -> Callable[[Run], Points]:
    """Reads the tokens of a stream's response, a mean over its rows, at the steps that have rows."""
    tokens, rows = f"cipo/tokens/{stream}", f"cipo/rows/{stream}"
    return lambda run: {
        step: figures[tokens] / figures[rows]
        for step, figures in run.metrics.items()
        if tokens in figures and figures.get(rows)
    }


def truncated(run: Run) -> Points:
    """Share of all responses that are as long as one may be, from verl's figures and the run's settings.

    verl's V1 trainer computes response_length/clip_ratio as the share of responses that are as long as the longest of
    the batch: it says something only at steps whose longest is as long as one may be.
    """
    limit = run.settings.response_length if run.settings else None
    if limit is None:
        return {}
    return {
        step: figures["response_length/clip_ratio"] if figures["response_length/max"] >= limit else 0.0
        for step, figures in run.metrics.items()
        if {"response_length/clip_ratio", "response_length/max"} <= figures.keys()
    }


def log_probabilities(run: Run) -> Points:
    """Seconds spent on log-probabilities by step."""
    return {
        step: sum(figures.get(name, 0.0) for name in _LOG_PROBS)
        for step, figures in run.metrics.items()
        if _LOG_PROBS[0] in figures
    }


def rest(run: Run) -> Points:
    """Seconds of a step that are in none of the phases shown."""
    phases = ("timing_s/gen", "timing_s/update_actor", *_LOG_PROBS)
    return {
        step: figures["timing_s/step"] - sum(figures.get(name, 0.0) for name in phases)
        for step, figures in run.metrics.items()
        if "timing_s/step" in figures
    }


def _attempts(ours: Callable[[Run], Points], verls: Callable[[Run], Points]) -> Callable[[Run], Points]:
    """Reads a run of CIPO's trainer by stream, and one of verl's, which knows no streams, as it is."""
    return lambda run: ours(run) if any("cipo/rows/base" in figures for figures in run.metrics.values()) else verls(run)
