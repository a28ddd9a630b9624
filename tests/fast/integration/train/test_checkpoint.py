"""What CIPO puts beside verl's checkpoint and reads back."""

import json
import logging
from dataclasses import replace

import pytest

from verl_cipo.core.anchors import Attempt
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.replay import Candidate
from verl_cipo.core.steering.budget import BudgetState, Sums
from verl_cipo.core.steering.guard import GuardState, Signals, update_guard
from verl_cipo.core.steering.rho import RhoState, update_rho
from verl_cipo.integration.train.checkpoint import POOL_FILE, STATE_FILE, TrainerState, load, save

CONFIG = CIPOConfig(preset="stream")
INITIAL = TrainerState.initial(CONFIG)
MOVED = TrainerState(
    rho=update_rho(RhoState.initial(CONFIG), 0.4, config=CONFIG),
    guard=update_guard(GuardState.initial(), Signals(w2c=0.2, c2c=0.7, copy_rate=0.5, entropy=1.0, accuracy=0.4)),
    budget=BudgetState(w2c=Sums.of([(1, 0.25)]), retry=Sums.of([(0.5, 0.5)]), slots=2.0, of_none=1.0),
)
POOL = {
    "step": 3,
    "ready": [],
    "filling": [Candidate((False, (0, b"lot", "u", 1)), Attempt("u", 7, 1, True, 1.0), ("text", {"raw_prompt": []}))],
}


def test_state_and_pool_come_back(tmp_path):
    folder = tmp_path / "global_step_3"
    save(str(folder), MOVED, CONFIG, POOL)
    assert load(str(folder), CONFIG, wants_pool=True) == (MOVED, POOL)
    assert MOVED != INITIAL


def test_a_checkpoint_without_cipo_starts_anew_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        assert load(str(tmp_path), CONFIG, wants_pool=True) == (INITIAL, None)
    assert "cipo.json is missing" in caplog.text and "rho starts at 0.3" in caplog.text


def test_a_checkpoint_of_before_guard_and_pool_goes_on_with_its_rho(tmp_path, caplog):
    (tmp_path / STATE_FILE).write_text(json.dumps({"rho": MOVED.rho.to_mapping()}))
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        state, pool = load(str(tmp_path), CONFIG, wants_pool=True)
    assert (state.rho, state.guard, state.budget, pool) == (MOVED.rho, INITIAL.guard, BudgetState(), None)
    assert POOL_FILE in caplog.text


def test_without_a_pool_the_state_alone_is_written_and_nothing_is_missed(tmp_path, caplog):
    save(str(tmp_path), MOVED, CONFIG, None)
    assert [file.name for file in tmp_path.iterdir()] == [STATE_FILE]
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        assert load(str(tmp_path), CONFIG, wants_pool=False) == (MOVED, None)
    assert not caplog.text


@pytest.mark.parametrize(
    ("knobs", "rho"),
    [
        pytest.param({"rho_adaptive": False, "rho_init": 0.0}, 0.0, id="held at another value"),
        pytest.param({"rho_adaptive": False}, 0.3, id="held"),
        pytest.param({"rho_max": 0.35}, 0.35, id="a lower end"),
        pytest.param({"rho_min": 0.5, "rho_init": 0.5}, 0.5, id="a higher beginning"),
        pytest.param({"rho_init": 0.25}, 0.25, id="another beginning"),
    ],
)
def test_the_config_outranks_the_checkpoint_and_says_so(tmp_path, caplog, knobs, rho):
    moved = replace(MOVED, rho=RhoState(rho=0.44, prev_retention=0.4, steps_below_target=2))
    save(str(tmp_path), moved, CONFIG, None)
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        state, _ = load(str(tmp_path), CIPOConfig(preset="stream", **knobs), wants_pool=False)
    assert state == replace(moved, rho=replace(moved.rho, rho=rho))
    assert f"rho was 0.44 and continues at {rho:g}" in caplog.text


def test_a_checkpoint_that_does_not_know_its_rho_init_goes_on_where_it_was(tmp_path, caplog):
    (tmp_path / STATE_FILE).write_text(json.dumps({"rho": MOVED.rho.to_mapping()}))
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        state, _ = load(str(tmp_path), CIPOConfig(preset="stream", rho_init=0.25), wants_pool=False)
    assert state.rho == MOVED.rho and not caplog.text
