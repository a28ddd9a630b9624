"""benchmarks/step_gain.py: its figures on made gradients, and gradients of a step that is not taken."""

import argparse

import pytest
import torch

from benchmarks import step_gain
from benchmarks.experiment import products
from benchmarks.experiment.arms import ARMS, CONTROL
from benchmarks.experiment.replica import Replica
from benchmarks.experiment.setting import Setting
from examples.tiny import prepare
from examples.tiny.warmup import Warmup

SHAPE = prepare.Shape(hidden=32, layers=1, inner=64, heads=1, kv_heads=1)
TASK = products.Products(parts=1, train=32, val=4, shape=SHAPE, warmup=Warmup(steps=2, rows=8))
SETTING = Setting(task=TASK, steps=2, prompts=4, n=4, samples=4, turn_samples=2)


def test_the_gain_is_of_adams_step_and_falls_with_noise():
    """Losses fall along -g. Parameter 0 has g = -3 each time, a step of 1; parameter 1 has -1 and 7, a mean of 3."""
    gradients = torch.tensor([[-3.0, -1.0], [-3.0, 7.0]])
    assert step_gain.gain(torch.tensor([2.0, 0.0]), gradients) == pytest.approx(2.0)
    assert step_gain.gain(torch.tensor([0.0, 1.0]), gradients) == pytest.approx(-3 / 5)
    assert step_gain.gain(torch.tensor([2.0, 1.0]), gradients) == pytest.approx(2 - 3 / 5)


def test_an_arm_is_held_against_the_first_with_an_error_over_blocks():
    """Half of the first one's batches point away: its gain is 0.5. The other arm's is 1, twice as much."""
    goal = torch.tensor([1.0])
    first = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0]] * 5)
    found = step_gain.compare(goal, {"first": first, "other": torch.full((20, 1), -2.0)})
    assert found["first"] == pytest.approx({"gain": 0, "gain_se": 0, "length": 1})
    assert found["other"]["gain"] == pytest.approx(1) and found["other"]["length"] == pytest.approx(2)
    # Blocks of two batches hold (-1, -1) or (-1, 1), so that 8 or 9 of the other 18 are the sum: 2.25 and 2 times.
    ratios = torch.tensor([18 / 8, 18 / 10] * 5).double()
    spread = (9 / 10 * ((ratios - ratios.mean()) ** 2).sum()).sqrt()
    assert found["other"]["gain_se"] == pytest.approx(float(spread))
    with pytest.raises(ValueError, match="9 batches: expected 10 or more"):
        step_gain.without_blocks(goal, first[:9])


def test_a_step_that_is_not_taken_has_the_gradient_of_one_that_is(tmp_path):
    products.prepare_products(tmp_path, TASK)
    taken = Replica(tmp_path, ARMS[CONTROL], 3, SETTING)
    taken.policy.verifier = lambda text, answer: len(text) % 2 == 0
    weights = {name: value.clone() for name, value in taken.policy.model.state_dict().items()}
    still = step_gain.Still(tmp_path, ARMS[CONTROL], 3, SETTING, weights)
    still.policy.verifier = taken.policy.verifier
    length = still.step(1)["actor/grad_norm"]
    assert length > 0
    assert all(torch.equal(value, weights[name]) for name, value in still.policy.model.state_dict().items())
    torch.manual_seed(3)
    assert taken.step(1)["actor/grad_norm"] == pytest.approx(length) == float(still.gradients[0].norm())
    # Where nothing is right there is nothing to learn.
    still.policy.verifier = lambda text, answer: False
    assert still.step(2)["actor/grad_norm"] == 0 and not still.gradients[1].any()


def test_knobs_may_follow_an_arm():
    arm = step_gain.arm_of("balanced+aux.coef=0.05+budget=fixed")
    assert arm.options == (*ARMS["balanced"].options, "+algorithm.cipo.aux.coef=0.05", "+algorithm.cipo.budget=fixed")
    assert arm.name == "balanced+aux.coef=0.05+budget=fixed"
    for wrong in ("balancd", "base"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{wrong}: expected one of grpo, "):
            step_gain.arm_of(wrong)
