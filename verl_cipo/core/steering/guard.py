"""The collapse guard: alarms from running statistics of a step's signals, and what to do about them.

A policy may learn to repeat the attempt that it is shown, and correction training may cost what the policy could do
before. A step measures these on few anchors, so a change counts in units of the noise that the signal itself shows from
step to step. docs/guard.md says how often the alarms are wrong, and how late.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Thresholds:
    """Every constant of the guard; all are our choice [W]. docs/guard.md has the figures behind them."""

    rate: float = 0.05
    """Weight of a step in the running statistics, which so remember about 40 steps."""
    least_steps: int = 5
    """Measurements without which nothing is said about a change: noise is not known before."""
    accuracy_errors: float = 5.0
    """Standard errors by which accuracy must have fallen below its best ..."""
    accuracy_fall: float = 0.05
    """... and by how much at least."""
    copying_errors: float = 3.0
    """Standard errors by which w->c must have fallen, and c->c risen, since w->c was best ..."""
    copying_change: float = 0.03
    """... and by how much at least."""
    copy_rate: float = 0.85
    """Copy rate that is an alarm."""
    entropy_share: float = 0.25
    """Share of its start that entropy must have fallen to."""
    start_steps: int = 10
    """Steps whose mean entropy is the start; before it no alarm on copy rate or entropy is raised."""
    release: float = 0.5
    """An alarm ends when the change is below this share of what raises it, so that it does not flicker."""
    copy_rate_release: float = 0.75
    """Copy rate at which its alarm ends."""
    entropy_release: float = 0.35
    """Share of its start at which the entropy alarm ends."""
    lambda_decay: float = 0.8
    """Factor on lambda_factor for every step with an alarm out of ACTED_ON."""
    lambda_recovery: float = 1.1
    """Factor on lambda_factor for every step without one."""
    lambda_floor: float = 0.25
    """Least lambda_factor: the correction stream is never shut off, or nothing could tell that it recovered."""


LIMITS = Thresholds()

ALARMS = ("copying", "copy_rate", "entropy", "accuracy")
"""Names of the alarms, in the order in which they are reported."""

ACTED_ON = ("copying", "copy_rate", "accuracy")
"""Those that lower lambda_factor. GRPO alone lowers entropy too, so its alarm does not speak against corrections."""


@dataclass(frozen=True)
class Signals:
    """What one training step showed; None where it showed none (no wrong anchor: no w2c).

    w2c, c2c, copy_rate, accuracy: shares in [0, 1], of this step's corrections of wrong and of right anchors that
    are right, of corrections that repeat their attempt, of attempts that are right; entropy: mean per token, nats.
    """

    w2c: float | None = None
    c2c: float | None = None
    copy_rate: float | None = None
    entropy: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Level:
    """Where a noisy signal stands.

    count: steps that had the signal; value: its exponential mean, without the bias of a start at 0; spread: the sum of
    the squared weights in that mean, so that noise^2 * spread is its variance; last: the newest measurement;
    change: mean absolute difference of consecutive measurements, likewise exponential.
    """

    count: int = 0
    value: float = 0.0
    spread: float = 0.0
    last: float = 0.0
    change: float = 0.0

    def add(self, measured: float) -> "Level":
        """The level after one more measurement."""
        weight = _weight(self.count + 1)
        change = self.change
        if self.count:
            # Differences, unlike deviations from the mean, do not take a slow trend for noise; absolute ones, unlike
            # squared ones, are not ruled by one jump, which may be the very collapse that is looked for.
            change += _weight(self.count) * (abs(measured - self.last) - change)
        return Level(
            count=self.count + 1,
            value=self.value + weight * (measured - self.value),
            spread=(1 - weight) ** 2 * self.spread + weight**2,
            last=measured,
            change=change,
        )

    @property
    def noise(self) -> float:
        """Standard deviation of a measurement: for normal noise, sqrt(pi) / 2 times the mean absolute difference."""
        return math.sqrt(math.pi) / 2 * self.change


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers between steps; part of every checkpoint, of a fixed size.

    The first five are the levels of the signals. best_accuracy, best_w2c: those levels when they were most surely
    high; c2c_then: that of c2c at the time of best_w2c, or its first one after that; start_entropy: mean of the first
    steps, None until then; alarms: names out of ALARMS that are on; lambda_factor: what `guard: adapt` multiplies
    algorithm.cipo.lambda_corr by in the next step, in (0, 1], 1 as long as nothing was wrong.
    """

    w2c: Level = Level()
    c2c: Level = Level()
    copy_rate: Level = Level()
    entropy: Level = Level()
    accuracy: Level = Level()
    best_accuracy: Level = Level()
    best_w2c: Level = Level()
    c2c_then: Level = Level()
    start_entropy: float | None = None
    alarms: tuple[str, ...] = ()
    lambda_factor: float = 1.0

    @classmethod
    def initial(cls) -> "GuardState":
        """The state before step 1."""
        return cls()

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a checkpoint, such as JSON can hold."""
        return {**asdict(self), "alarms": list(self.alarms)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "GuardState":
        """Back from `to_mapping`. Raises: TypeError on a missing or an unknown key."""
        known = {item.name for item in fields(cls)}
        if set(values) != known:
            raise TypeError(f"guard state with the keys {sorted(values)}: expected exactly {sorted(known)}")
        plain = ("start_entropy", "alarms", "lambda_factor")
        levels = {name: Level(**values[name]) for name in known.difference(plain)}
        return cls(
            **levels,
            start_entropy=values["start_entropy"],
            alarms=tuple(values["alarms"]),
            lambda_factor=values["lambda_factor"],
        )


def update_guard(state: GuardState, signals: Signals) -> GuardState:
    """The state after a step with `signals`. Raises: ValueError on a signal that is not finite."""
    levels = {}
    for item in fields(Signals):
        measured = getattr(signals, item.name)
        level: Level = getattr(state, item.name)
        if measured is not None and not math.isfinite(measured):
            raise ValueError(f"signal {item.name} = {measured!r}: expected a finite number or None")
        levels[item.name] = level if measured is None else level.add(measured)
    state = replace(state, **levels)
    if state.start_entropy is None and state.entropy.count == LIMITS.start_steps:
        state = replace(state, start_entropy=state.entropy.value)
    if _surely_higher(state.accuracy, state.best_accuracy, errors=LIMITS.accuracy_errors):
        state = replace(state, best_accuracy=state.accuracy)
    if _surely_higher(state.w2c, state.best_w2c, errors=LIMITS.copying_errors):
        state = replace(state, best_w2c=state.w2c, c2c_then=state.c2c)
    elif state.c2c_then.count == 0:
        state = replace(state, c2c_then=state.c2c)
    raised = tuple(name for name in ALARMS if _CHECKS[name](state, name in state.alarms))
    lower = any(name in ACTED_ON for name in raised)
    factor = state.lambda_factor * (LIMITS.lambda_decay if lower else LIMITS.lambda_recovery)
    return replace(state, alarms=raised, lambda_factor=min(max(factor, LIMITS.lambda_floor), 1.0))


def explain(state: GuardState) -> dict[str, str]:
    """Alarm -> one line with its figures, for those that are on."""
    lines = {
        "copying": (
            f"the policy may be learning to copy: w->c fell from {state.best_w2c.value:.2f} to {state.w2c.value:.2f} "
            f"while c->c rose from {state.c2c_then.value:.2f} to {state.c2c.value:.2f}"
        ),
        "copy_rate": f"{state.copy_rate.value:.0%} of the corrections repeat the attempt that they were shown",
        "entropy": f"entropy fell from {state.start_entropy or 0.0:.3g} to {state.entropy.value:.3g} nats a token",
        "accuracy": f"accuracy of the attempts fell from {state.best_accuracy.value:.2f} to {state.accuracy.value:.2f}",
    }
    return {name: lines[name] for name in state.alarms}


def _weight(count: int) -> float:
    """Weight of measurement number `count` in an exponential mean that starts without bias; 1 for the first."""
    return LIMITS.rate / (1 - (1 - LIMITS.rate) ** count)


def _surely_higher(level: Level, best: Level, *, errors: float) -> bool:
    """Whether `level` less `errors` standard errors is at least `best` less as many of its own.

    A plain maximum would be that of the noise, mostly of the first steps, and so uncertain that no alarm could rest
    on it. As long as the noise is not known, the first measurement stands.
    """
    if best.count == 0:
        return level.count > 0
    if level.count < LIMITS.least_steps:
        return False
    sure, best_sure = (one.value - errors * level.noise * math.sqrt(one.spread) for one in (level, best))
    return sure >= best_sure


def _changed(now: Level, then: Level, *, errors: float, least: float, direction: int, on: bool) -> bool:
    """Whether a signal moved in `direction` by more than noise explains; by less when the alarm is on already."""
    if now.count < LIMITS.least_steps:
        return False
    margin = max(errors * now.noise * math.sqrt(now.spread + then.spread), least)
    return direction * (now.value - then.value) > margin * (LIMITS.release if on else 1.0)


def _copying(state: GuardState, on: bool) -> bool:
    rule: dict[str, Any] = {"errors": LIMITS.copying_errors, "least": LIMITS.copying_change, "on": on}
    return _changed(state.w2c, state.best_w2c, direction=-1, **rule) and _changed(
        state.c2c, state.c2c_then, direction=1, **rule
    )


def _copy_rate(state: GuardState, on: bool) -> bool:
    limit = LIMITS.copy_rate_release if on else LIMITS.copy_rate
    return state.copy_rate.count >= LIMITS.start_steps and state.copy_rate.value > limit


def _entropy(state: GuardState, on: bool) -> bool:
    share = LIMITS.entropy_release if on else LIMITS.entropy_share
    return state.start_entropy is not None and state.entropy.value < share * state.start_entropy


def _accuracy(state: GuardState, on: bool) -> bool:
    return _changed(
        state.accuracy,
        state.best_accuracy,
        errors=LIMITS.accuracy_errors,
        least=LIMITS.accuracy_fall,
        direction=-1,
        on=on,
    )


_CHECKS = {"copying": _copying, "copy_rate": _copy_rate, "entropy": _entropy, "accuracy": _accuracy}
