"""What a preset asks for and a run cannot have: left out with a line, and refused where it is asked for by name."""

import pytest
import verl  # noqa: F401 - loads the plugin; Hydra forgets what is registered while it composes
from hydra import compose, initialize_config_module

from verl_cipo.core.config import CIPOConfigError
from verl_cipo.integration.settings import check_combination, settle

NEEDED = ["algorithm.adv_estimator=cipo", "actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=4"]
ASYNC = "trainer.v1.trainer_mode=colocate_async"
DAPO = ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc"]
V0 = ["trainer.use_v1=false", "+algorithm.cipo.lambda_corr=0"]
TOOLS = "actor_rollout_ref.rollout.multi_turn.tool_config_path=tools.yaml"
NOTHING_ADDED = {"source": "resample", "transfer.kind": "none"}
BYPASS = "algorithm.rollout_correction.bypass_mode=true"
# Settings -> what gives way; the rest of the preset stays.
CANNOT = {
    "bypass mode": ([BYPASS], NOTHING_ADDED),
    "geo mean": (["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"], NOTHING_ADDED),
    "distillation": (["distillation.enabled=true"], NOTHING_ADDED),
    "V0 without a stream": (V0, NOTHING_ADDED),
    "DAPO, asynchronous": ([*DAPO, ASYNC], {"budget": "fixed"}),
}
PRESET = {"source": "both", "transfer.kind": "inject", "budget": "auto"}


def composed(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*NEEDED, *overrides])


def knobs(cipo):
    return {"source": cipo.source, "transfer.kind": cipo.transfer.kind, "budget": cipo.budget}


@pytest.mark.parametrize("case", CANNOT)
def test_what_the_run_cannot_have_is_left_out_with_a_line(case, capsys):
    settings, left = CANNOT[case]
    config = composed(*settings)
    cipo = settle(config)
    assert knobs(cipo) == PRESET | left
    assert cipo.aux.coef == (0.1 if cipo.pairs else 0.0)
    said = capsys.readouterr().out.splitlines()
    assert not any("=None" in line for line in said), "a setting of the run is named, not a knob that was not set"
    assert [line.partition(", since ")[0] for line in said] == [
        f"[verl_cipo] algorithm.cipo.{knob}={value}" for knob, value in left.items()
    ]
    # Workers get it as it was settled, without another word.
    assert knobs(settle(config)) == PRESET | left and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ([BYPASS], "+algorithm.cipo.source=both"),
        ([BYPASS], "+algorithm.cipo.transfer.kind=inject"),
        ([BYPASS], "+algorithm.cipo.transfer.own=true"),
        ([*DAPO, ASYNC], "+algorithm.cipo.budget=auto"),
        (V0, "+algorithm.cipo.transfer.kind=regress"),
    ],
)
def test_what_is_asked_for_by_name_is_refused(settings, asked):
    with pytest.raises(CIPOConfigError, match="does not work with adv_estimator=cipo"):
        check_combination(composed(*settings, asked))


@pytest.mark.parametrize(
    "settings",
    [[], ["trainer.use_v1=false"], [ASYNC], DAPO, ["+algorithm.cipo.lambda_corr=0"], [TOOLS], [TOOLS, ASYNC]],
)
def test_other_runs_have_all_of_it(settings, capsys):
    assert knobs(settle(composed(*settings))) == PRESET and capsys.readouterr().out == ""
    stream = settle(composed(*settings, "+algorithm.cipo.preset=stream"))
    assert knobs(stream) == NOTHING_ADDED | {"budget": "fixed"}


def test_another_reason_to_refuse_is_none_to_leave_something_out():
    with pytest.raises(CIPOConfigError, match="critic.enable"):
        check_combination(composed("critic.enable=true"))
