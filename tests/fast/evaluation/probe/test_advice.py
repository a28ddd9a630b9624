"""Every rule of the probe by hand-made figures, on both sides of its threshold."""

import math
from dataclasses import replace

import pytest

from verl_cipo.core.config import CIPOConfig
from verl_cipo.evaluation.intervals import Interval
from verl_cipo.evaluation.probe import advice
from verl_cipo.evaluation.probe.advice import Probed, Step


def figure(estimate, low=None, high=None):
    low, high = (estimate if low is None else low), (estimate if high is None else high)
    return Interval(estimate, low, high, problems=50)


WORSE, OPEN, BETTER = figure(-0.04, -0.07, -0.01), figure(0.0, -0.03, 0.03), figure(0.1, 0.05, 0.15)
ALONE = Interval(0.2, math.nan, math.nan, problems=1)

PROBED = Probed(
    n=8,
    max_tokens=1000,
    pass_at_1=figure(0.4),
    all_right=figure(0.1),
    all_wrong=figure(0.2),
    hard=figure(0.3),
    w2c=figure(0.18),
    retry=figure(0.22),
    w2c_over_retry=WORSE,
    c2c=figure(0.6, 0.5, 0.7),
    hard_w2c=figure(0.05, 0.02, 0.08),
    prompts=[40, 60],
    corrections=[300, 400, 500],
    longest_over_mean=2.5,
    most_tokens=4096,
)
STEP = Step(prompts=128, n=8, sequences=1024)


def settings(option):
    return {name.rpartition("cipo.")[2]: value for name, value in option.settings.items()}


@pytest.mark.parametrize(
    "corrections, longest, most, length, told",
    [
        # 99 of 100 at most 500, so room for 500: 4 x 128.
        ([100] * 98 + [500, 900], 60, None, "512", "99.0% of the attempts whole"),
        # 98 of 100: the 99th has 900.
        ([100] * 98 + [900, 900], 60, None, "1024", "100.0%"),
        ([512], 60, None, "512", "100.0%"),
        ([513], 60, None, "640", "100.0%"),
        # A plain prompt has to fit, with room beside it.
        ([100], 640, None, "768", "100.0%"),
        ([], 60, None, "128", "no attempt has text to show"),
        # Beside the answer the model has 600: of four attempts one fits.
        ([500, 700, 800, 900], 60, 600, "600", "25.0% of the attempts whole, all that the model leaves"),
    ],
)
def test_prompt_length(corrections, longest, most, length, told):
    option = advice.prompt_length(corrections, longest_prompt=longest, most=most)
    assert option.settings == {"actor_rollout_ref.rollout.prompt_length": length}
    assert told in option.reason


@pytest.mark.parametrize("sequences, value", [(1024, "replay"), (512, "replay"), (511, "auto"), (256, "auto")])
def test_schedule(sequences, value):
    option = advice.schedule(replace(STEP, sequences=sequences), 2.5)
    assert settings(option) == {"schedule": value}
    assert "1024 attempts a step" in option.reason


@pytest.mark.parametrize(
    "over_retry, why",
    [
        (BETTER, "go to prompts without one"),
        (WORSE, "become attempts"),
        (OPEN, "cannot be told"),
        (None, "cannot be told"),
    ],
)
def test_budget(over_retry, why):
    option = advice.budget(over_retry)
    assert settings(option) == {"budget": "auto"} and why in option.reason


@pytest.mark.parametrize(
    "hard_w2c, told",
    [
        (figure(0.05, 0.02, 0.08), "5% of their corrections are right"),
        (figure(0.0), "cannot be told yet"),
        (None, "cannot be told yet"),
        (ALONE, "cannot be told yet"),
    ],
)
def test_transfer(hard_w2c, told):
    option = advice.transfer(figure(0.25), hard_w2c)
    assert settings(option) == {"transfer.kind": "inject", "transfer.coef": "8.0", "transfer.below": "0.125"}
    assert told in option.reason and "25% of the prompts have at most 12.5% right" in option.reason


@pytest.mark.parametrize(
    "c2c, told",
    [
        (figure(0.7, 0.6, 0.79), "70% stay right, below rho_target = 0.8"),
        (figure(0.7, 0.6, 0.8), "are 70%, not clearly below"),
        (None, "cannot be told"),
        (ALONE, "are 20% in a single problem, which cannot tell, not clearly below"),
    ],
)
def test_anchors(c2c, told):
    option = advice.anchors(c2c)
    assert settings(option) == {"rho_adaptive": "true", "rho_init": "0.3", "lambda_corr": "1.0"}
    assert told in option.reason


def test_the_line_holds_all_options():
    assert advice.line(advice.recommend(PROBED, STEP)) == (
        "algorithm.adv_estimator=cipo actor_rollout_ref.rollout.prompt_length=512 +algorithm.cipo.schedule=replay "
        "+algorithm.cipo.budget=auto +algorithm.cipo.transfer.kind=inject +algorithm.cipo.transfer.coef=8.0 "
        "+algorithm.cipo.transfer.below=0.125 +algorithm.cipo.rho_adaptive=true +algorithm.cipo.rho_init=0.3 "
        "+algorithm.cipo.lambda_corr=1.0"
    )


def test_where_all_attempts_are_right_plain_grpo_is_left():
    (option,) = advice.recommend(replace(PROBED, pass_at_1=figure(1.0), corrections=[]), STEP)
    assert option.settings == {"algorithm.adv_estimator": "grpo"}


@pytest.mark.parametrize("over_retry", [WORSE, OPEN, BETTER, None])
@pytest.mark.parametrize("c2c", [figure(0.5), None])
@pytest.mark.parametrize("sequences", [256, 1024])
def test_whatever_is_recommended_is_a_config(over_retry, c2c, sequences):
    probed = replace(PROBED, w2c_over_retry=over_retry, c2c=c2c)
    mapping = {}
    for option in advice.recommend(probed, replace(STEP, sequences=sequences)):
        for name, value in option.settings.items():
            if name.startswith("+algorithm.cipo."):
                section, _, knob = name.removeprefix("+algorithm.cipo.").rpartition(".")
                read = {"true": True, "false": False}.get(value, value)
                read = float(value) if value.replace(".", "").isdecimal() else read
                (mapping.setdefault(section, {}) if section else mapping)[knob] = read
    CIPOConfig.from_mapping(mapping)


@pytest.mark.parametrize(
    "over_retry, told",
    [
        (WORSE, "costs 4.0 points [1.0, 7.0], so further attempts are likely to teach more than corrections."),
        (OPEN, "the difference, +0.0 points [-3.0, +3.0], may be chance"),
        (BETTER, "is worth +10.0 points [+5.0, +15.0], so corrections find what further attempts do not."),
        (None, "cannot be told"),
        (ALONE, "a difference of +20.0 points in a single problem, which cannot tell, so more prompts (--limit) would"),
        (replace(ALONE, problems=3), "+20.0 points, which has no interval, so more prompts"),
    ],
)
def test_the_meaning_in_three_sentences(over_retry, told):
    signal, worth, cost = advice.meaning(replace(PROBED, w2c_over_retry=over_retry), factor=1.9)
    assert signal == (
        "40.0 % of the attempts are right; of the groups of 8, 10.0 % are all right and 20.0 % all wrong, and GRPO "
        "learns nothing from these."
    )
    assert told in worth and "nan" not in worth
    assert "1.90 times the tokens of GRPO with n=8, so compare it with GRPO with n=15." in cost
