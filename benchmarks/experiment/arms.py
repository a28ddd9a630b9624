"""What the learning experiment compares."""

from dataclasses import dataclass

CONTROL = "grpo_equal_rollouts"
"""The honest control: GRPO that samples as many responses a step as CIPO does."""
DEFAULT = "balanced"
"""What a user gets who asks for nothing but CIPO."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train, or not to.

    algo: verl's `algorithm.adv_estimator`, None for the model as it starts; rollouts: responses a prompt as a multiple
    of the setting's n, so that every arm but `grpo` samples the same number a step; options: further ones for verl.
    """

    name: str
    what: str
    algo: str | None
    rollouts: int = 1
    options: tuple[str, ...] = ()


def _cipo(
    name: str, what: str, *knobs: str, rollouts: int = 1, preset: str = "stream", of_verl: tuple[str, ...] = ()
) -> Arm:
    options = (*(f"+algorithm.cipo.{knob}" for knob in (f"preset={preset}", *knobs)), *of_verl)
    return Arm(name=name, what=what, algo="cipo", rollouts=rollouts, options=options)


CONSTANT = "aux.by_signal=false"
"""Of arms that were run before the default had pairs count by the signal of a step."""
MAIN = (
    Arm(name="base", what="the model before training", algo=None),
    Arm(name="grpo", what="GRPO, half the rollouts", algo="grpo"),
    Arm(name=CONTROL, what="GRPO, n doubled", algo="grpo", rollouts=2),
    _cipo("balanced", "CIPO, preset=balanced, the default", preset="balanced"),
    _cipo("cipo", "CIPO, preset=stream (schedule=streaming)"),
    _cipo("cipo_barrier", "CIPO, schedule=barrier", "schedule=barrier"),
    _cipo("cipo_replay", "CIPO, schedule=replay", "schedule=replay"),
)
ABLATIONS = (
    _cipo("no_rho_control", "rho stays at .3", "rho_adaptive=false"),
    _cipo("no_risk_shaping", "no penalty for c->w", "lambda_risk=0"),
    _cipo("no_difficulty", "anchors from any prompt", "delta_low=0", "delta_high=1"),
    _cipo("lambda_025", "correction stream at .25", "lambda_corr=0.25"),
    _cipo("lambda_05", "correction stream at .5", "lambda_corr=0.5"),
    _cipo("lambda_2", "correction stream at 2", "lambda_corr=2"),
    _cipo("aux_nll", "log-likelihood of right corrections added, .1", "aux.coef=0.1"),
    _cipo(
        "paired", "pairs in place of sampled corrections, .1; n doubled", "source=paired", "aux.coef=0.1", rollouts=2
    ),
    _cipo("paired_05", "the same at .5; n doubled", "source=paired", "aux.coef=0.5", rollouts=2),
    _cipo("regress", "corrections of mostly failing prompts trained on the plain prompt too", "transfer.kind=regress"),
    _cipo("inject", "one right correction joins its prompt's group", "transfer.kind=inject", "transfer.coef=8"),
    _cipo("auto", "sessions go where they are worth more", "budget=auto"),
    _cipo("auto_regress", "both of these", "budget=auto", "transfer.kind=regress"),
    _cipo(
        "auto_inject",
        "sessions go where they are worth more; one right correction joins its prompt's group",
        "budget=auto",
        "transfer.kind=inject",
        "transfer.coef=8",
    ),
    _cipo(
        "balanced_constant",
        "preset=balanced, pairs weigh the same whatever the attempts of a step teach",
        CONSTANT,
        preset="balanced",
    ),
    _cipo(
        "balanced_own",
        "balanced_constant, rare right attempts trained like what corrections find",
        CONSTANT,
        "transfer.own=true",
        preset="balanced",
    ),
    _cipo(
        "aggregated",
        "balanced_constant, up to three wrong attempts shown",
        CONSTANT,
        "prompt.attempts=3",
        preset="balanced",
    ),
    _cipo(
        "think_twice",
        "attempts drawn like ThinkTwice's: of any prompt, as many right ones as wrong, no std, no penalty for c->w",
        "delta_low=0",
        "delta_high=1",
        "rho_adaptive=false",
        "rho_init=0.5",
        "lambda_risk=0",
        of_verl=("algorithm.norm_adv_by_std_in_grpo=false",),
    ),
    Arm(
        name="grpo_own",
        what="GRPO, n doubled, rare right attempts trained once more (replica only)",
        algo="grpo",
        rollouts=2,
        options=("replica.own=0.3",),
    ),
    _cipo(
        "nudge",
        "attempts under strategy contexts, no corrections (NudgeRL); n doubled; stuck_contexts has contexts",
        "nudge.contexts=contexts",
        "replay_fraction=0",
        rollouts=2,
    ),
    _cipo(
        "balanced_nudge",
        "balanced_constant with attempts under strategy contexts",
        CONSTANT,
        "nudge.contexts=contexts",
        preset="balanced",
    ),
    _cipo(
        "balanced_nudge_both",
        "the same, with corrections under contexts, too",
        CONSTANT,
        "nudge.contexts=contexts",
        "nudge.corrections=true",
        preset="balanced",
    ),
    _cipo("failed_only", "anchors are failed attempts", "rho_adaptive=false", "rho_init=0", "rho_min=0"),
    _cipo(
        "failed_only_lambda_025",
        "anchors are failed attempts, correction stream at .25",
        "rho_adaptive=false",
        "rho_init=0",
        "rho_min=0",
        "lambda_corr=0.25",
    ),
    _cipo("hard_prompts", "anchors from prompts solved at most 3 times in 8 first", "delta_low=0", "delta_high=0.375"),
)
ARMS = {arm.name: arm for arm in (*MAIN, *ABLATIONS)}
