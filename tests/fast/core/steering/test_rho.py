from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.steering.rho import RhoState, update_rho

CONFIG = CIPOConfig(preset="stream")
START = RhoState.initial(CONFIG)
shares = st.floats(0, 1)


def test_initial():
    assert START == RhoState(rho=0.3, prev_retention=None, steps_below_target=0)


def test_first_step_below_the_target():
    # .3 * (1 + .8 * (.8 - .6) + .3 * 0 + .05 * min(1, 3)) = .3 * 1.21 = .363
    state = update_rho(START, 0.6, config=CONFIG)
    assert state.rho == pytest.approx(0.363)
    assert (state.prev_retention, state.steps_below_target) == (0.6, 1)


def test_a_drop_and_a_second_step_below():
    # .363 * (1 + .8 * (.8 - .5) + .3 * (.6 - .5) + .05 * 2) = .363 * 1.37 = .49731
    state = update_rho(update_rho(START, 0.6, config=CONFIG), 0.5, config=CONFIG)
    assert state.rho == pytest.approx(0.49731)
    assert state.steps_below_target == 2


def test_a_rise_adds_no_drop_term():
    # .363 * (1 + .8 * .1 + .3 * 0 + .05 * 2) = .363 * 1.18 = .42834
    state = update_rho(update_rho(START, 0.6, config=CONFIG), 0.7, config=CONFIG)
    assert state.rho == pytest.approx(0.42834)


def test_above_the_target_rho_falls_and_the_count_restarts():
    # .5 * (1 + .8 * (.8 - .9) + 0 + .05 * 0) = .5 * .92 = .46
    state = update_rho(RhoState(0.5, 0.7, 4), 0.9, config=CONFIG)
    assert state == RhoState(pytest.approx(0.46), 0.9, 0)


def test_at_the_target_nothing_moves():
    assert update_rho(RhoState(0.5, 0.8, 2), 0.8, config=CONFIG) == RhoState(0.5, 0.8, 0)


def test_patience_counts_on_but_weighs_three_at_most():
    # .4 * (1 + .8 * .1 + 0 + .05 * 3) = .4 * 1.23 = .492 with 7 steps below as with 3
    for before in (2, 6):
        state = update_rho(RhoState(0.4, 0.7, before), 0.7, config=CONFIG)
        assert state.rho == pytest.approx(0.492)
        assert state.steps_below_target == before + 1


def test_clipped_at_both_ends():
    # .7 * (1 + .8 * .8 + .3 * .8 + .15) = .7 * 2.03 = 1.421 -> .8
    assert update_rho(RhoState(0.7, 0.8, 5), 0.0, config=CONFIG).rho == 0.8
    # .21 * (1 + .8 * (.8 - 1)) = .21 * .84 = .1764 -> .2
    assert update_rho(RhoState(0.21, 0.8, 0), 1.0, config=CONFIG).rho == 0.2


def test_every_gain_is_the_configured_one():
    config = CIPOConfig(
        preset="stream", rho_target=0.5, rho_gain=1.0, rho_drop_gain=2.0, rho_patience_gain=0.1, rho_min=0.0
    )
    # .1 * (1 + 1 * (.5 - .4) + 2 * (.6 - .4) + .1 * 2) = .1 * 1.7 = .17
    assert update_rho(RhoState(0.1, 0.6, 1), 0.4, config=config).rho == pytest.approx(0.17)


def test_start_and_bounds_are_the_configured_ones():
    config = CIPOConfig(preset="stream", rho_init=0.45, rho_min=0.4, rho_max=0.5)
    assert RhoState.initial(config).rho == 0.45
    # As above: 1.421 and .1764 without bounds.
    assert update_rho(RhoState(0.7, 0.8, 5), 0.0, config=config).rho == 0.5
    assert update_rho(RhoState(0.21, 0.8, 0), 1.0, config=config).rho == 0.4


def test_without_a_correct_anchor_nothing_changes():
    state = RhoState(0.4, 0.7, 2)
    assert update_rho(state, None, config=CONFIG) == state


def test_not_adaptive_keeps_rho_and_tracks_the_retention():
    config = replace(CONFIG, rho_adaptive=False)
    state = update_rho(update_rho(START, 0.1, config=config), 0.2, config=config)
    assert state == RhoState(0.3, 0.2, 2)


@given(rho=st.floats(0.2, 0.8), prev=st.none() | shares, steps=st.integers(0, 9), retention=shares)
def test_rho_stays_in_its_range_and_moves_the_right_way(rho, prev, steps, retention):
    state = update_rho(RhoState(rho, prev, steps), retention, config=CONFIG)
    assert 0.2 <= state.rho <= 0.8
    if retention < 0.8:
        assert state.rho >= rho
    if retention >= 0.8 and (prev is None or prev <= retention):
        assert state.rho <= rho


@given(rho=shares, prev=st.none() | shares, steps=st.integers(0, 9))
def test_a_checkpoint_gives_the_state_back(rho, prev, steps):
    state = RhoState(rho, prev, steps)
    values = state.to_mapping()
    assert type(values) is dict and RhoState.from_mapping(values) == state


def test_a_checkpoint_with_other_keys_is_refused():
    with pytest.raises(TypeError, match="prev_retention"):
        RhoState.from_mapping({"rho": 0.3, "steps_below_target": 0})
