"""The auxiliary losses against autograd and hand-computed numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.aux_loss.losses import aux_loss, aux_weights, contrastive, mean_log_prob, nll, partner_scores

MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]])


def model(seed=0):
    """A small policy: log-probabilities (4, 4) of fixed tokens, differentiable in its parameters."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    inputs, tokens = torch.randn(4, 4, 3, dtype=torch.float64), torch.randint(5, (4, 4, 1))
    return net, lambda: torch.log_softmax(net(inputs), dim=-1).gather(-1, tokens).squeeze(-1)


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


# ---- weights


def test_weights_by_hand():
    # Two chosen rows, three steps: 3 / 2 a row, over 2 and over 4 tokens.
    weights = aux_weights(MASK, torch.tensor([1.0, 0.0, 1.0, 0.0]), optimizer_steps=3)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [[0.75, 0.75, 0, 0], [0, 0, 0, 0], [0.375, 0.375, 0.375, 0.375], [0, 0, 0, 0]]
    third = aux_weights(MASK, torch.tensor([1.0, 0.0, 1.0, 0.0]), optimizer_steps=3, share=1 / 3)
    torch.testing.assert_close(third, weights / 3)
    assert not aux_weights(MASK, torch.tensor([1.0, 0.0, 1.0, 0.0]), optimizer_steps=3, share=0.0).any()


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_loss_that_counts_by_a_share_has_that_share_of_the_gradient(kind, share):
    """What contrastive compares are means over tokens, which a share leaves alone."""
    found = []
    for scale in (1.0, share):
        weights = aux_weights(MASK, SIGN, optimizer_steps=2, share=scale)
        log_prob = (-torch.rand(MASK.shape, generator=torch.Generator().manual_seed(3))).requires_grad_()
        partner = torch.linspace(-1.0, -0.1, len(MASK))
        loss, _ = aux_loss(log_prob, weights, SIGN, partner, kind=kind, beta=2.0)
        loss.backward()
        found.append(log_prob.grad)
    torch.testing.assert_close(found[1], share * found[0])
    assert found[0].any()


def test_a_rejected_row_weighs_as_much_as_its_chosen_one():
    weights = aux_weights(MASK, torch.tensor([1.0, -1.0, 0.0, 0.0]), optimizer_steps=1)
    torch.testing.assert_close(weights.sum(dim=-1), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert weights[1, 1] == 0


def test_nothing_to_train_weighs_nothing():
    assert not aux_weights(MASK, torch.zeros(4), optimizer_steps=2).any()
    # A row without a token is fine as long as it is not to be trained.
    assert not aux_weights(torch.zeros(2, 3), torch.zeros(2), optimizer_steps=1).any()
    assert aux_weights(torch.zeros(0, 3), torch.zeros(0), optimizer_steps=1).shape == (0, 3)


@given(
    signs=st.lists(st.sampled_from([1.0, 0.0]), min_size=1, max_size=12).filter(any),
    steps=st.integers(1, 6),
    width=st.integers(1, 5),
)
def test_the_nll_of_all_steps_is_that_many_means(signs, steps, width):
    """Sum over the batch = steps * mean over chosen rows of the mean over tokens."""
    sign = torch.tensor(signs)
    mask = torch.arange(width) <= torch.arange(len(signs)).unsqueeze(-1) % width
    log_prob = -torch.rand(len(signs), width, generator=torch.Generator().manual_seed(1))
    rows = [-(log_prob[i][mask[i]]).mean() for i in range(len(signs)) if signs[i]]
    loss = nll(log_prob, aux_weights(mask, sign, optimizer_steps=steps))
    torch.testing.assert_close(loss, steps * torch.stack(rows).mean())


@pytest.mark.parametrize(
    ("mask", "sign", "steps", "message"),
    [
        (MASK, torch.zeros(3), 1, "expected"),
        (MASK[0], torch.zeros(4), 1, "expected"),
        (MASK, torch.tensor([0.5, 0, 0, 0]), 1, "sign holds"),
        (MASK, torch.zeros(4), 0, "optimizer_steps = 0"),
        (MASK * torch.tensor([[1], [0], [1], [1]]), torch.tensor([0, 1.0, 0, 0]), 1, r"rows \[1\]"),
        (MASK * torch.tensor([[1], [1], [1], [0]]), torch.tensor([0, 1.0, 0, -1]), 1, r"rows \[3\]"),
    ],
)
def test_weights_refuse(mask, sign, steps, message):
    with pytest.raises(ValueError, match=message):
        aux_weights(mask, sign, optimizer_steps=steps)


# ---- log-likelihood


def test_nll_by_hand():
    log_prob = torch.tensor([[-1.0, -3.0, -50.0, -50.0], [-9.0] * 4, [-2.0, -2.0, -4.0, -4.0], [-9.0] * 4])
    weights = aux_weights(MASK, torch.tensor([1.0, 0.0, 1.0, 0.0]), optimizer_steps=1)
    # Row means -2 and -3.
    assert nll(log_prob, weights).item() == pytest.approx(2.5)
    assert mean_log_prob(log_prob, weights).tolist() == pytest.approx([-2, 0, -3, 0])


def test_nll_has_the_gradient_of_the_mean_log_likelihood():
    net, log_prob = model()
    weights = aux_weights(MASK, torch.tensor([1.0, 0.0, 1.0, 0.0]), optimizer_steps=1)
    expected = -(log_prob()[0, :2].mean() + log_prob()[2].mean()) / 2
    torch.testing.assert_close(gradient(nll(log_prob(), weights), net), gradient(expected, net), rtol=1e-6, atol=1e-9)


# ---- contrastive

SIGN = torch.tensor([1.0, -1.0, -1.0, 1.0])
PAIRS = torch.tensor([7, 3, 7, 3])


def preference(log_prob, beta):
    """-logsigmoid(beta * (s_chosen - s_rejected)), mean over the two pairs (0, 2) and (3, 1)."""
    score = (log_prob * MASK).sum(dim=-1) / MASK.sum(dim=-1)
    return -F.logsigmoid(beta * torch.stack([score[0] - score[2], score[3] - score[1]])).mean()


def test_partners_by_hand():
    log_prob = torch.tensor([[-1.0, -3.0, 9, 9], [-6.0, 9, -6.0, -6.0], [-2.0, -2.0, -4.0, -4.0], [9.0, -5.0, 9, 9]])
    weights = aux_weights(MASK, SIGN, optimizer_steps=4)
    assert partner_scores(log_prob, weights, SIGN, PAIRS).tolist() == pytest.approx([-3, -5, -2, -6])
    # Untrained rows have none, whatever their pair says.
    sign = torch.tensor([1.0, 0.0, -1.0, 0.0])
    weights = aux_weights(MASK, sign, optimizer_steps=4)
    assert partner_scores(log_prob, weights, sign, torch.tensor([7, 7, 7, -1])).tolist() == pytest.approx(
        [-3, 0, -2, 0]
    )
    assert partner_scores(log_prob, weights * 0, torch.zeros(4), PAIRS).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("sign", "pair"),
    [
        ([1, -1, 1, -1], [0, 0, 1, 2]),
        ([1, -1, -1, 0], [0, 0, 0, 0]),
        ([1, 1, 0, 0], [0, 0, 0, 0]),
        ([-1, -1, 0, 0], [0, 0, 0, 0]),
        ([1, 0, 0, 0], [0, 0, 0, 0]),
        ([-1, 0, 0, 0], [0, 0, 0, 0]),
        ([-1, 1, 0, 0], [0, 1, 0, 0]),
        ([1, -1, 1, -1], [0, 0, 0, 0]),
    ],
)
def test_an_incomplete_pair_is_an_error(sign, pair):
    sign = torch.tensor(sign, dtype=torch.float32)
    with pytest.raises(ValueError, match="a pair"):
        partner_scores(torch.zeros(4, 4), aux_weights(MASK, sign, optimizer_steps=1), sign, torch.tensor(pair))


def test_contrastive_by_hand():
    log_prob = torch.tensor([[-1.0, -3.0, 9, 9], [0.0] * 4, [-2.0, -2.0, -4.0, -4.0], [0.0] * 4])
    sign = torch.tensor([1.0, 0.0, -1.0, 0.0])
    weights = aux_weights(MASK, sign, optimizer_steps=1)
    partner = torch.tensor([-2.5, 0.0, -1.0, 0.0])
    # Chosen: 2 * (-2 - -2.5) = 1. Rejected: 2 * (-1 - -3) = 4.
    expected = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-4))
    assert contrastive(log_prob, weights, sign, partner, beta=2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_at_the_old_policy_gradient_and_value_are_those_of_the_preference(beta):
    net, log_prob = model()
    weights = aux_weights(MASK, SIGN, optimizer_steps=1).double()
    partner = partner_scores(log_prob(), weights, SIGN, PAIRS).double()
    loss, value = aux_loss(log_prob(), weights, SIGN, partner, kind="contrastive", beta=beta)
    expected = preference(log_prob(), beta)
    torch.testing.assert_close(gradient(loss, net), gradient(expected, net), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)
    assert not value.requires_grad


def test_away_from_the_old_policy_each_side_saturates_by_itself():
    """A row that is far beyond its partner has hardly a gradient left, the other one keeps its own."""
    log_prob = torch.tensor([[-1.0], [-5.0]], requires_grad=True)
    sign, weights = torch.tensor([1.0, -1.0]), torch.ones(2, 1)
    loss = contrastive(log_prob, weights, sign, torch.tensor([-21.0, -5.0]), beta=1.0)
    (grad,) = torch.autograd.grad(loss, log_prob)
    assert abs(grad[0].item()) < 1e-8
    assert grad[1].item() == pytest.approx(0.5)


def test_the_partner_is_a_constant():
    net, log_prob = model()
    assert not partner_scores(log_prob(), aux_weights(MASK, SIGN, optimizer_steps=1), SIGN, PAIRS).requires_grad


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_parts_add_up_to_the_whole(kind):
    """Rows may be split over micro-batches and ranks in any way, a pair's rows included."""
    _, log_prob = model()
    sign = SIGN if kind == "contrastive" else SIGN.clamp(min=0)
    weights = aux_weights(MASK, sign, optimizer_steps=2)
    partner = torch.tensor([-1.0, -2.0, -0.5, -1.5])
    whole, _ = aux_loss(log_prob(), weights, sign, partner, kind=kind, beta=2.0)
    parts = [
        aux_loss(log_prob()[rows], weights[rows], sign[rows], partner[rows], kind=kind, beta=2.0)[0]
        for rows in ([0, 1], [2], [3])
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_without_weights_there_is_neither_loss_nor_gradient(kind):
    net, log_prob = model()
    zeros = torch.zeros(4)
    loss, value = aux_loss(log_prob(), torch.zeros(4, 4), zeros, zeros, kind=kind, beta=2.0)
    assert loss.item() == value.item() == 0
    assert not gradient(loss, net).any()


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="kind = 'dpo'"):
        aux_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), kind="dpo", beta=1.0)
