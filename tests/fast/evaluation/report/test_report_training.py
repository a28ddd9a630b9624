"""How training itself is read: lengths and truncation of each stream, seconds of each phase."""

import pytest

from verl_cipo.evaluation.report.runs import Arm, Run
from verl_cipo.evaluation.report.series import attempts_in_training, rho, tokens, tokens_before
from verl_cipo.evaluation.report.settings import Settings
from verl_cipo.evaluation.report.training import length, log_probabilities, responses, rest, truncated, update


def run(steps, **settings) -> Run:
    values = {key.replace("__", "."): value for key, value in settings.items()}
    return Run("arm", "arm", steps, settings=Settings(values, frozenset()) if settings else None)


def arms(*runs):
    return [Arm(f"arm {number}", (each,)) for number, each in enumerate(runs)]


def test_length_by_stream_at_the_steps_that_have_rows():
    steps = {
        1: {
            "cipo/tokens/base": 30.0,
            "cipo/rows/base": 10.0,
            "cipo/tokens/correction": 0.0,
            "cipo/rows/correction": 0.0,
        },
        2: {
            "cipo/tokens/base": 40.0,
            "cipo/rows/base": 10.0,
            "cipo/tokens/correction": 9.0,
            "cipo/rows/correction": 2.0,
        },
        3: {"cipo/tokens/base": 40.0},
    }

    assert length("base")(run(steps)) == {1: 3.0, 2: 4.0}
    assert length("correction")(run(steps)) == {2: 4.5}


def test_what_was_truncated_without_streams_takes_the_longest_length_allowed():
    """verl's clip_ratio is the share that is as long as the longest of the batch."""
    steps = {
        1: {"response_length/clip_ratio": 0.25, "response_length/max": 64.0},
        2: {"response_length/clip_ratio": 0.5, "response_length/max": 63.0},
        3: {"response_length/clip_ratio": 0.5},
    }

    assert truncated(run(steps, data__max_response_length=64)) == {1: 0.25, 2: 0.0}
    assert truncated(run(steps)) == {}
    assert truncated(run(steps, data__other=1)) == {}


def test_a_run_with_streams_is_not_read_as_one_without():
    """Its response_length/* are over both streams."""
    cipo = run({1: {"cipo/rows/base": 0.0, "response_length/mean": 9.0}})
    verls = run({1: {"response_length/mean": 7.0}})
    section = responses(arms(cipo, verls), window=1)

    (chart,) = section.charts
    assert [(line.arm, line.curve.mean.tolist()) for line in chart.lines] == [(1, [7.0])]


def test_seconds_by_phase():
    steps = {
        1: {"timing_s/step": 10.0, "timing_s/gen": 4.0, "timing_s/old_log_prob": 1.0, "timing_s/update_actor": 3.0}
    }
    with_reference = {1: steps[1] | {"timing_s/ref": 1.5}}

    assert (log_probabilities(run(steps)), rest(run(steps))) == ({1: 1.0}, {1: 2.0})
    assert (log_probabilities(run(with_reference)), rest(run(with_reference))) == ({1: 2.5}, {1: 0.5})
    assert log_probabilities(run({1: {}})) == rest(run({1: {}})) == {}


def test_a_kl_that_is_always_0_is_said_and_not_drawn():
    still = update(arms(run({1: {"actor/ppo_kl": 0.0}, 2: {"actor/ppo_kl": 0.0}})), window=1)
    moving = update(arms(run({1: {"actor/ppo_kl": 0.0}, 2: {"actor/ppo_kl": 0.1}})), window=1)

    assert "No run had a KL of an update other than 0" in still.lead and still.charts == []
    assert [chart.title for chart in moving.charts] == ["KL of an update"] and "other than 0" not in moving.lead


@pytest.mark.parametrize("name", ["actor/kl_loss", "actor/reward_kl_penalty"])
def test_the_kl_to_the_reference_is_drawn_where_there_is_a_reference(name):
    section = update(arms(run({1: {name: 0.5}})), window=1)

    assert "KL to the reference" in [chart.title for chart in section.charts]
    assert not any("reference" in note for note in update(arms(run({1: {}})), window=1).missing)


def test_outcomes_in_training_are_verdicts_where_all_runs_have_them_and_else_scores():
    cipo = run({1: {"cipo/accuracy/base": 0.5, "cipo/reward/base": 0.4, "critic/score/mean": 0.3}})
    verls = run({1: {"critic/score/mean": 0.2}})

    verdicts, _, read = attempts_in_training(arms(cipo))
    assert verdicts and read(cipo) == {1: 0.5}
    verdicts, _, read = attempts_in_training(arms(cipo, verls))
    assert not verdicts and (read(cipo), read(verls)) == ({1: 0.4}, {1: 0.2})


def test_rho_is_read_where_a_step_has_anchors():
    steps = {
        1: {"cipo/rho": 0.3},
        2: {"cipo/rho": 0.4, "cipo/rows/correction": 8.0},
        3: {"cipo/rho": 0.5, "cipo/rows/correction": 0.0},
        4: {"cipo/rho": 0.6, "cipo/rows/correction": 0.0, "cipo/aux/pairs": 3.0},
    }

    assert rho(run(steps)) == {1: 0.3, 2: 0.4, 4: 0.6}


def test_response_tokens_of_verls_trainer_are_their_share_of_all_tokens():
    verls = {"perf/total_num_tokens": 1000.0, "response_length/mean": 30.0, "prompt_length/mean": 20.0}
    step = {"training/global_step": 1}

    assert tokens(run({1: step | verls, 2: step | {"cipo/tokens/base": 7.0} | verls, 3: step})) == {1: 600.0, 2: 7.0}
    assert tokens_before(run({1: step | verls, 2: step | verls, 3: step})) == {1: 600.0, 2: 1200.0}
