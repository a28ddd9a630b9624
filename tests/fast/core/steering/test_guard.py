import json
import math
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.guard import drawn
from verl_cipo.core.steering.guard import ALARMS, LIMITS, GuardState, Level, Signals, explain, update_guard

shares = st.floats(0, 1)
signals = st.builds(
    Signals,
    w2c=st.none() | shares,
    c2c=st.none() | shares,
    copy_rate=st.none() | shares,
    entropy=st.none() | st.floats(0, 5),
    accuracy=st.none() | shares,
)


def run(*steps: Signals, state: GuardState | None = None) -> GuardState:
    state = state or GuardState.initial()
    for step in steps:
        state = update_guard(state, step)
    return state


def wobble(values, by=0.05):
    """The values, alternately a little above and below."""
    return [value + (by if i % 2 else -by) for i, value in enumerate(values)]


def level_of(*values: float) -> Level:
    level = Level()
    for value in values:
        level = level.add(value)
    return level


def test_level_of_the_first_measurements():
    # Weights of two: .05 / (1 - .95^2) = .05 / .0975 = .512821 for the second, .487179 for the first.
    level = level_of(0.4, 0.6)
    assert level.count == 2 and level.last == 0.6
    assert level.value == pytest.approx(0.4 * 0.487179 + 0.6 * 0.512821, abs=1e-6)
    assert level.spread == pytest.approx(0.487179**2 + 0.512821**2, abs=1e-6)
    assert level.change == pytest.approx(0.2)
    # sqrt(pi) / 2 * .2
    assert level.noise == pytest.approx(0.1772454)


def test_level_weighs_changes_as_it_weighs_measurements():
    # Changes .2 and .1: .2 * .487179 + .1 * .512821
    assert level_of(0.4, 0.6, 0.5).change == pytest.approx(0.1487179, abs=1e-6)


def test_level_after_many_steps_is_the_plain_exponential_mean():
    level = level_of(*[0.3] * 400)
    # Sum of (.05 * .95^k)^2 = .05^2 / (1 - .95^2) = .025641
    assert level.value == pytest.approx(0.3) and level.spread == pytest.approx(0.025641, abs=1e-6)
    after = level.add(0.7)
    assert after.value == pytest.approx(0.32) and after.change == pytest.approx(0.02)


@given(values=st.lists(shares, min_size=1, max_size=40))
def test_level_is_a_weighted_mean(values):
    level = level_of(*values)
    assert min(values) - 1e-9 <= level.value <= max(values) + 1e-9
    assert 1 / len(values) - 1e-9 <= level.spread <= 1 + 1e-9


def test_nothing_measured_changes_nothing():
    state = run(Signals(0.3, 0.7, 0.4, 0.1, 0.5), Signals(0.4, 0.6, 0.5, 0.2, 0.4))
    assert run(Signals(), state=state) == state
    assert run(Signals()) == GuardState.initial()


def test_a_rate_of_zero_is_a_measurement():
    assert run(Signals(w2c=0.0)).w2c.count == 1


@pytest.mark.parametrize("name", [item.name for item in fields(Signals)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_signal_that_is_not_finite_is_refused(name, value):
    with pytest.raises(ValueError, match=f"signal {name} = {value!r}"):
        update_guard(GuardState.initial(), Signals(**{name: value}))


def copying(w2c, c2c) -> list[Signals]:
    return [Signals(w2c=w, c2c=c) for w, c in zip(wobble(w2c), wobble(c2c, by=-0.05), strict=True)]


def test_copying_is_wrong_attempts_fixed_less_while_right_ones_are_kept_more():
    calm = run(*copying([0.4] * 40, [0.6] * 40))
    assert calm.alarms == ()
    state = run(*copying([0.1] * 60, [0.9] * 60), state=calm)
    assert state.alarms == ("copying",)
    # The last 60 of 100 steps weigh (1 - .95^60) / (1 - .95^100) = .9596: .4 - .3 * .9596 and .6 + .3 * .9596.
    assert explain(state) == {
        "copying": "the policy may be learning to copy: w->c fell from 0.40 to 0.11 while c->c rose from 0.60 to 0.89"
    }


@pytest.mark.parametrize(
    ("w2c", "c2c"),
    [(0.1, 0.6), (0.4, 0.9), (0.1, 0.3), (0.7, 0.9)],
    ids=["w2c falls alone", "c2c rises alone", "both fall", "both rise"],
)
def test_no_copying_when_only_one_of_the_two_moves_that_way(w2c, c2c):
    assert run(*copying([0.4] * 40 + [w2c] * 40, [0.6] * 40 + [c2c] * 40)).alarms == ()


@pytest.mark.parametrize(("by", "alarms"), [(0.05, ("copying",)), (0.3, ())])
def test_copying_counts_in_units_of_the_noise(by, alarms):
    def steps(w2c, c2c):
        return [Signals(w2c=w, c2c=c) for w, c in zip(wobble([w2c] * 40, by), wobble([c2c] * 40, by), strict=True)]

    # Noise of +-.05: .0886, 3 * .0886 * sqrt(2 * .0256 or more) ~ .07 < .18; of +-.3 six times that.
    assert run(*steps(0.5, 0.5), *steps(0.3, 0.7)).alarms == alarms


@pytest.mark.parametrize(
    ("fall", "rise", "raised", "kept"),
    [(0.07, 0.07, True, True), (0.055, 0.07, False, True), (0.07, 0.055, False, True), (0.028, 0.07, False, False)],
)
def test_three_errors_raise_copying_and_half_of_them_keep_it(fall, rise, raised, kept):
    calm = run(*copying([0.4] * 60, [0.6] * 60))
    # One error is .0886 * sqrt(.0281 + .0281) = .0210; .07 is 3.3 of them, .055 2.6 and .028 1.3.
    w2c, c2c = calm.best_w2c.value - fall, calm.c2c_then.value + rise
    moved = replace(
        calm, w2c=replace(calm.w2c, value=w2c, last=w2c + 0.1), c2c=replace(calm.c2c, value=c2c, last=c2c + 0.1)
    )
    step = Signals(w2c=w2c, c2c=c2c)
    assert ("copying" in run(step, state=moved).alarms) == raised
    assert ("copying" in run(step, state=replace(moved, alarms=("copying",))).alarms) == kept


def test_a_small_fall_without_any_noise_is_no_alarm():
    assert run(*[Signals(w2c=0.5, c2c=0.5)] * 40, *[Signals(w2c=0.48, c2c=0.52)] * 40).alarms == ()
    assert run(*[Signals(accuracy=0.5)] * 40, *[Signals(accuracy=0.46)] * 40).alarms == ()


def test_copying_is_seen_when_c2c_was_first_measured_after_the_best_w2c():
    early = [Signals(w2c=w) for w in wobble([0.5] * 20)]
    assert run(*early, *copying([0.3] * 30, [0.5] * 30), *copying([0.1] * 60, [0.95] * 60)).alarms == ("copying",)


def test_copying_without_right_anchors_is_not_judged():
    assert run(*[Signals(w2c=w) for w in wobble([0.5] * 40 + [0.1] * 40)]).alarms == ()


def test_the_best_w2c_is_not_a_lucky_first_step():
    # Noise of +-.2 is .354: .7 - 3 * .354 < .4 - 3 * .354 * sqrt(.026), the level of many steps around .4.
    noisy = [Signals(w2c=w) for w in wobble([0.4] * 60, by=0.2)]
    assert run(Signals(w2c=0.7), *noisy).best_w2c.count > 10
    # Noise of +-.05 cannot explain .9.
    assert run(Signals(w2c=0.9), *[Signals(w2c=w) for w in wobble([0.4] * 60)]).best_w2c.count == 1


def test_the_best_becomes_surer_as_long_as_nothing_changes():
    assert run(*[Signals(accuracy=0.5)] * 20).best_accuracy == level_of(*[0.5] * 20)


def test_accuracy_that_falls_is_an_alarm_that_ends_with_half_the_fall():
    calm = run(*[Signals(accuracy=a) for a in wobble([0.6] * 60)])
    low = run(*[Signals(accuracy=a) for a in wobble([0.3] * 60)], state=calm)
    assert low.alarms == ("accuracy",)
    assert explain(low) == {"accuracy": "accuracy of the attempts fell from 0.60 to 0.31"}
    # Noise .0886, spread .0281 after 60 steps and .0257 after 120: 5 * .0886 * sqrt(.0538) = .1028 raises it.
    margin = 5 * low.accuracy.noise * math.sqrt(low.accuracy.spread + low.best_accuracy.spread)
    assert margin == pytest.approx(0.1028, abs=0.001)
    seen = low
    while seen.alarms:
        fall = seen.best_accuracy.value - seen.accuracy.value
        seen = run(Signals(accuracy=0.55), Signals(accuracy=0.65), state=seen)
    assert 0.03 < fall < 0.07


def test_accuracy_between_the_two_margins_keeps_the_alarm_as_it_was():
    calm = run(*[Signals(accuracy=a) for a in wobble([0.6] * 60)])
    # A fall of .09 is 4.3 standard errors: 5 raise the alarm, 2.5 keep it.
    step = Signals(accuracy=0.54)
    at_rest = replace(calm, accuracy=replace(calm.accuracy, value=0.51))
    assert run(step, state=at_rest).alarms == ()
    assert run(step, state=replace(at_rest, alarms=("accuracy",))).alarms == ("accuracy",)


def test_a_collapse_of_the_first_steps_is_seen():
    # A real run with a learning rate of 5e-4, which held-out accuracy confirms: .63 before, .35 after ten steps.
    measured = [0.781, 0.320, 0.297, 0.172, 0.203, 0.086, 0.203, 0.188, 0.188, 0.438]
    assert run(*[Signals(accuracy=a) for a in measured[:5]]).alarms == ()
    assert run(*[Signals(accuracy=a) for a in measured]).alarms == ("accuracy",)


def test_nothing_is_said_about_changes_before_the_noise_is_known():
    steps = [Signals(w2c=0.9, c2c=0.2, accuracy=0.9)] * 3 + [Signals(w2c=0.0, c2c=1.0, accuracy=0.0)]
    flat = run(*steps[:3])
    assert flat.accuracy.noise == 0 and run(*steps).alarms == ()
    # Without noise the margins are the least ones, so from the fifth measurement on a change counts.
    still = replace(
        flat, accuracy=replace(flat.accuracy, count=4, value=0.5), best_accuracy=replace(flat.accuracy, spread=0.0)
    )
    assert run(Signals(accuracy=0.9), state=still).alarms == ("accuracy",)


@pytest.mark.parametrize("seed", range(20))
def test_at_the_demos_size_noise_is_no_alarm_and_a_collapse_is_one(seed):
    rng = random.Random(seed)
    state = run()
    for _ in range(120):
        state = run(drawn(rng, 0.45, 0.65, 0.5), state=state)
        assert state.alarms == ()
    seen = set()
    for step in range(60):
        part = min(1.0, step / 20)
        state = run(drawn(rng, 0.45 - 0.3 * part, 0.65 + 0.25 * part, 0.5 - 0.2 * part), state=state)
        seen |= set(state.alarms)
    assert seen == {"copying", "accuracy"}


def test_copy_rate_is_an_alarm_above_85_percent_until_it_is_below_75():
    state = run(*[Signals(copy_rate=0.9)] * 9)
    assert state.alarms == ()
    state = run(Signals(copy_rate=0.9), state=state)
    assert state.alarms == ("copy_rate",)
    assert explain(state) == {"copy_rate": "90% of the corrections repeat the attempt that they were shown"}
    assert run(*[Signals(copy_rate=0.84)] * 40).alarms == ()
    # An exponential mean of .9 then .7 passes .85 on its way; at .76 it still holds, below .75 it ends.
    held = replace(state, copy_rate=replace(state.copy_rate, count=400, value=0.76))
    assert run(Signals(copy_rate=0.76), state=held).alarms == ("copy_rate",)
    assert run(*[Signals(copy_rate=0.7)] * 10, state=held).alarms == ()


def test_entropy_is_an_alarm_below_a_quarter_of_its_start_until_it_is_above_35_percent():
    start = run(*[Signals(entropy=e) for e in (0.3, 0.5) * 5])
    assert start.start_entropy == pytest.approx(0.4, abs=0.005)
    # The start stays what it was.
    # .05 + (.403 - .05) * .4013 * .95^100 / .9965 = .0508
    low = run(*[Signals(entropy=0.05)] * 100, state=start)
    assert low.start_entropy == start.start_entropy and low.alarms == ("entropy",)
    assert explain(low) == {"entropy": f"entropy fell from {start.start_entropy:.3g} to 0.0508 nats a token"}
    for value, fresh, held in ((0.11, (), ("entropy",)), (0.15, (), ()), (0.09, ("entropy",), ("entropy",))):
        at = replace(low, entropy=replace(low.entropy, value=value), alarms=())
        assert run(Signals(entropy=value), state=at).alarms == fresh
        assert run(Signals(entropy=value), state=replace(at, alarms=("entropy",))).alarms == held


def test_no_entropy_alarm_before_the_start_is_known():
    state = run(Signals(entropy=1.0), *[Signals(entropy=0.0)] * 8)
    assert state.start_entropy is None and state.alarms == ()


def test_alarms_come_in_a_fixed_order_and_each_has_its_line():
    good = [
        Signals(w2c=w, c2c=1 - w, copy_rate=0.3, entropy=0.4, accuracy=a)
        for w, a in zip(wobble([0.5] * 60), wobble([0.6] * 60), strict=True)
    ]
    bad = [
        Signals(w2c=w, c2c=1 - w, copy_rate=0.99, entropy=0.02, accuracy=a)
        for w, a in zip(wobble([0.1] * 80), wobble([0.2] * 80), strict=True)
    ]
    state = run(*good, *bad)
    assert state.alarms == ALARMS
    assert tuple(explain(state)) == ALARMS and all("\n" not in line for line in explain(state).values())
    assert explain(run(*good)) == {}


def test_lambda_falls_while_an_alarm_lasts_and_recovers():
    calm = GuardState.initial()
    assert calm.lambda_factor == 1.0
    alarmed = run(*[Signals(copy_rate=0.95)] * 10)
    assert alarmed.lambda_factor == pytest.approx(0.8)
    twice = run(Signals(copy_rate=0.95), state=alarmed)
    assert twice.lambda_factor == pytest.approx(0.64)
    assert run(*[Signals(copy_rate=0.95)] * 50, state=twice).lambda_factor == LIMITS.lambda_floor == 0.25
    over = replace(twice, copy_rate=Level())
    assert run(Signals(), state=over).lambda_factor == pytest.approx(0.704)
    assert run(*[Signals()] * 5, state=over).lambda_factor == 1.0


@pytest.mark.parametrize(
    ("alarm", "factor"), [("accuracy", 0.8), ("copying", 0.8), ("copy_rate", 0.8), ("entropy", 1.0)]
)
def test_every_alarm_but_entropy_lowers_lambda(alarm, factor):
    good = Signals(w2c=0.6, c2c=0.3, copy_rate=0.2, entropy=0.5, accuracy=0.7)
    level = {
        "accuracy": {"accuracy": 0.2},
        "copying": {"w2c": 0.1, "c2c": 0.9},
        "copy_rate": {"copy_rate": 0.95},
        "entropy": {"entropy": 0.01},
    }[alarm]
    calm = run(*[good] * 20)
    moved = {name: replace(getattr(calm, name), value=value, last=value) for name, value in level.items()}
    state = run(Signals(**level), state=replace(calm, **moved))
    assert state.alarms == (alarm,)
    assert state.lambda_factor == pytest.approx(factor)


@given(steps=st.lists(signals, max_size=60))
def test_lambda_stays_in_its_range_and_alarms_are_known_names(steps):
    state = run(*steps)
    assert 0.25 <= state.lambda_factor <= 1.0
    assert set(state.alarms) <= set(ALARMS)


@given(before=st.lists(signals, max_size=30), after=st.lists(signals, max_size=30))
def test_a_checkpoint_gives_the_state_back(before, after):
    state = run(*before)
    restored = GuardState.from_mapping(json.loads(json.dumps(state.to_mapping())))
    assert restored == state
    assert run(*after, state=restored) == run(*after, state=state)


def test_the_state_does_not_grow():
    def names(values):
        return {key: names(value) for key, value in values.items()} if isinstance(values, dict) else type(values)

    step = Signals(0.3, 0.7, 0.4, 0.1, 0.5)
    assert names(run(*[step] * 20).to_mapping()) == names(run(*[step] * 200).to_mapping())


def test_a_checkpoint_with_other_keys_is_refused():
    values = GuardState.initial().to_mapping()
    with pytest.raises(TypeError, match="alarms"):
        GuardState.from_mapping({key: value for key, value in values.items() if key != "alarms"})
    with pytest.raises(TypeError, match="more"):
        GuardState.from_mapping(values | {"more": 1})
