"""benchmarks/transfer.py: its figures on made gradients, its weights and gradients on a small model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from benchmarks import transfer
from benchmarks.experiment import policy as sampling
from benchmarks.experiment.policy import Policy, Sample
from benchmarks.transfer import Goal
from examples.tiny import prepare
from verl_cipo.core.anchors import Attempt


def samples(*right: bool, tokens: int = 2) -> list[Sample]:
    return [Sample(prompt=[5, 6], response=[7] * tokens, text="", right=r) for r in right]


def test_a_step_is_held_against_the_goal_and_the_expected_one_is_free_of_noise():
    """Three batches: 3 along the goal, 4 elsewhere each time; the noise in the goal is in its halves alone."""
    axis = torch.eye(6)
    goal = Goal((2 * axis[0] + 7 * axis[4], 2 * axis[0] + 7 * axis[5]))
    gradients = [3 * axis[0] + 4 * axis[i] for i in (1, 2, 3)]
    found = transfer.measure(goal, gradients)
    assert goal.length == pytest.approx(2) and goal.agreement == pytest.approx(4 / 53)
    assert found == pytest.approx({"signal": 3, "length": 5, "expected": 1}, abs=1e-6)
    assert transfer.cosines(goal, gradients) == pytest.approx([0.6] * 3)


def test_arms_are_compared_batch_by_batch():
    """The control's cosines are .6 and 1, GRPO's .8 and 1: a mean difference of .1, and as much of a standard error."""
    axis = torch.eye(2)
    goal = Goal((axis[0], axis[0]))
    streams = {transfer.corrections_at(rho): axis[0] for rho in transfer.RHOS}
    streams |= {"attempts": 4 * axis[0] + 3 * axis[1], "attempts, twice": 3 * axis[0] + 4 * axis[1]}
    second = dict.fromkeys(streams, axis[0])
    shares = dict.fromkeys(streams, 0.5)
    arms = transfer.compare(goal, [transfer.Batch(found, shares, shares) for found in (streams, second)])["arms"]
    grpo = {"step": 0.9, "step_se": 0.1, "minus_twice": 0.1, "minus_twice_se": 0.1}
    assert arms["GRPO"] == pytest.approx(grpo)
    # (5, 3) of length 5.83.
    assert arms["CIPO, rho 0, lambda 1"]["step"] == pytest.approx((5 / 34**0.5 + 1) / 2)


def test_a_part_that_every_batch_has_aside_of_the_goal_is_no_noise():
    axis = torch.eye(3)
    found = transfer.measure(Goal((axis[0], axis[0])), [3 * axis[0] + 4 * axis[1]] * 2)
    assert found["signal"] == pytest.approx(5) and found["expected"] == pytest.approx(0.6)


def test_a_goal_that_is_noise_alone_is_refused():
    axis = torch.eye(2)
    with pytest.raises(ValueError, match="lost in its noise: take more prompts"):
        transfer.measure(Goal((axis[0], axis[1])), [axis[0], axis[1]])


def test_weights_are_grpos_over_the_tokens_of_the_stream():
    weights = transfer.weights_of(samples(True, False, False, False, True, True, True, True), n=4)
    assert weights * 16 == pytest.approx([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], abs=1e-4)


def test_weights_of_corrections_are_shaped_by_their_anchor():
    anchors = [Attempt("0", 0, 0, correct, 0.0) for correct in (True, False)]
    weights = transfer.weights_of(samples(True, False, True, False), n=2, anchors=anchors)
    assert weights * 8 == pytest.approx([1.4142, -1.4142, 0.7071, -0.7071], abs=1e-3)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    warmup = replace(prepare.QUICK.warmup, steps=2, look_from=9)
    prepare.prepare(folder, replace(prepare.QUICK, train=64, val=8, warmup=warmup))
    return folder


def test_gradient_is_that_of_the_weighted_log_likelihood(task):
    policy = Policy(task / "model")
    rows = [Sample([9, 8, 7], [6, 5], "", True), Sample([4], [3, 2, 1, 6], "", False), Sample([4], [3], "", False)]
    weights = np.array([0.5, -2.0, 0.0])
    found = transfer.gradient(policy, rows, weights)
    policy.model.zero_grad()
    for row, weight in zip(rows, weights, strict=True):
        ids = torch.tensor([row.prompt + row.response])
        chosen = log_softmax(policy.model(input_ids=ids).logits[0, :-1], dim=-1).gather(-1, ids[0, 1:, None])
        (weight * chosen[len(row.prompt) - 1 :].sum()).backward()
    wanted = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    assert wanted.norm() > 0.1 and torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.nightly
def test_the_table_has_every_stream_and_arm(task, monkeypatch, capsys, tmp_path):
    """A model that has learned nothing is right by the lots of this test."""
    lots = np.random.default_rng(0)
    monkeypatch.setattr(sampling, "is_right", lambda text, answer: lots.random() < 0.4)
    monkeypatch.setattr(sampling.Task, "response_length", 4)
    file = tmp_path / "transfer.json"
    monkeypatch.setattr(
        "sys.argv", ["transfer.py", "--task", str(task), "--batches", "2", "--goal", "16", "--json", str(file)]
    )
    assert transfer.main() == 0
    text = capsys.readouterr().out
    for name in ("attempts, twice", "corrections, rho 0.8", "GRPO, twice the rollouts", "CIPO, rho 0, lambda 0.5"):
        assert f"| {name} |" in text
    assert file.exists()


def test_too_few_problems_are_named(task, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["transfer.py", "--task", str(task)])
    with pytest.raises(SystemExit):
        transfer.main()
    assert "take 512 prompts" in capsys.readouterr().err
