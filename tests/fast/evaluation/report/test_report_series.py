"""Curves: smoothing, bands over seeds, and where pass@1 and cost come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cipo.evaluation.report.runs import Arm, Run
from verl_cipo.evaluation.report.series import (
    TURN1,
    against_tokens,
    alarms,
    benchmark_pass1,
    combine,
    first_turn,
    mean_pass1,
    metric,
    ranges,
    tokens_before,
    trailing_mean,
)


def run(steps) -> Run:
    return Run(label="arm", name="arm", metrics=steps)


def test_trailing_mean_by_hand():
    assert trailing_mean(np.array([1.0, 3.0, 5.0, 9.0]), 2) == pytest.approx([1, 2, 4, 7])
    assert trailing_mean(np.array([1.0, 3.0, 5.0, 9.0]), 3) == pytest.approx([1, 2, 3, 17 / 3])
    with pytest.raises(ValueError, match="window of 0"):
        trailing_mean(np.array([1.0]), 0)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(1, 40))
def test_trailing_mean_equals_the_mean_of_each_window(values, window):
    expected = [np.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]

    assert trailing_mean(np.array(values), window) == pytest.approx(expected, abs=1e-6)


def test_a_curve_has_mean_and_range_of_the_seeds_at_the_steps_that_all_have():
    curve = combine([{0: 0.1, 2: 0.5, 4: 0.9}, {0: 0.3, 2: 0.1}, {0: 0.2, 2: 0.3, 3: 0.0}])

    assert curve.x.tolist() == [0, 2]
    assert curve.mean == pytest.approx([0.2, 0.3])
    assert curve.low == pytest.approx([0.1, 0.1])
    assert curve.high == pytest.approx([0.3, 0.5])
    assert (curve.seeds, curve.raw) == (3, None)


def test_seeds_are_smoothed_before_their_range_is_taken():
    curve = combine([{1: 0.0, 2: 1.0}, {1: 1.0, 2: 0.0}], window=2)

    assert curve.low == pytest.approx([0.0, 0.5])
    assert curve.high == pytest.approx([1.0, 0.5])


def test_only_a_smoothed_single_run_keeps_what_was_measured():
    assert combine([{1: 0.0, 2: 1.0}], window=2).raw.tolist() == [0.0, 1.0]
    assert combine([{1: 0.0, 2: 1.0}]).raw is None


@pytest.mark.parametrize("runs", [[], [{}], [{1: 0.5}, {}], [{1: 0.5}, {2: 0.5}]])
def test_without_a_common_step_there_is_no_curve(runs):
    assert combine(runs) is None


def test_pass1_is_read_from_verls_names_and_averaged_over_benchmarks():
    steps = {
        0: {
            "val-core/openai/gsm8k/acc/mean@4": 0.2,
            "val-core/aime/acc/mean@16": 0.4,
            "val-core/aime/acc/maj@16/mean": 1.0,
        },
        5: {"val-core/openai/gsm8k/acc/mean@4": 0.6, "val-aux/aime/acc/mean@16": 1.0},
        9: {"val-core/openai/gsm8k/acc/mean@4": 0.7, "val-core/aime/reward/mean@16": 0.1},
    }

    assert benchmark_pass1(run(steps)) == {"openai/gsm8k": {0: 0.2, 5: 0.6, 9: 0.7}, "aime": {0: 0.4, 9: 0.1}}
    assert mean_pass1(run(steps)) == pytest.approx({0: 0.3, 9: 0.4})
    assert mean_pass1(run({1: {}})) == {}


def test_turn_1_is_read_the_same_way_for_all_runs():
    cipo = run({0: {TURN1: 0.5, "val-core/a/acc/mean@1": 0.4}})
    grpo = run({0: {"val-core/a/acc/mean@1": 0.3}})

    read, over = first_turn([Arm("cipo", (cipo,))])
    assert (read(cipo), over) == ({0: 0.5}, "mean over all attempts")
    read, over = first_turn([Arm("cipo", (cipo,)), Arm("grpo", (grpo,))])
    assert (read(cipo), read(grpo), over) == ({0: 0.4}, {0: 0.3}, "unweighted mean over benchmarks")


def spent(step, base, correction=None):
    figures = {"training/global_step": step, "cipo/tokens/base": base}
    return figures if correction is None else figures | {"cipo/tokens/correction": correction}


def test_tokens_add_up_over_steps_and_end_where_they_were_not_counted():
    assert tokens_before(run({0: {TURN1: 0.1}, 1: spent(1, 10.0, 5.0), 2: spent(2, 20.0)})) == {0: 0, 1: 15, 2: 35}
    assert tokens_before(run({1: spent(1, 10.0), 2: {"training/global_step": 2}, 3: spent(3, 10.0)})) == {1: 10}
    assert tokens_before(run({0: {TURN1: 0.1}, 1: {"training/global_step": 1}})) == {}


def test_what_tokens_bought_is_drawn_at_the_mean_over_seeds():
    seeds = (
        run({0: {TURN1: 0.1}, 1: spent(1, 10.0) | {TURN1: 0.3}}),
        run({0: {TURN1: 0.3}, 1: spent(1, 30.0) | {TURN1: 0.5}}),
    )
    curve = against_tokens(Arm("arm", seeds), metric(TURN1))

    assert curve.x.tolist() == [0, 20]
    assert curve.mean == pytest.approx([0.2, 0.4])
    assert against_tokens(Arm("arm", (run({0: {TURN1: 0.1}}),)), metric(TURN1)) is None


def test_alarms_and_their_ranges():
    steps = {
        1: {"cipo/guard/copying": 0.0},
        2: {"cipo/guard/copying": 1.0, "cipo/guard/entropy": 1.0},
        3: {"cipo/rho": 1.0},
    }

    assert alarms(run(steps)) == {"copying": [2], "entropy": [2]}
    assert ranges([3, 4, 5, 9, 11, 12]) == [(3, 5), (9, 9), (11, 12)]
    assert ranges([]) == []
