"""The loss that the workers get with strategy contexts: beside verl's own, through verl's own packing."""

from functools import partial

import pytest
import torch
from verl.workers.utils.losses import ppo_loss

from tests.fast.integration.train.test_loss import PROMPTS, RESPONSES, Policy, actor_config, gradients, micro_batch, run
from tests.fast.integration.train.test_loss import padded_rows as base_rows
from tests.fast.integration.train.test_transfer_loss import NONE, OFF, TRANSFER, actor_node, transferred
from verl_cipo.core.aux_loss.transfer import transfer_weights
from verl_cipo.integration.train.loss import NUDGE_METRIC, TRANSFER_METRIC, build_loss, cipo_loss, taken_metrics

__all__ = ["actor_node"]

# Row 1 is an attempt at the plain prompt, in the policy loss too; row 4 was appended.
ROW_WEIGHTS = torch.tensor([0.0, -0.25, 0.0, 0.0, 0.75, 0.0])


def padded_rows():
    rows = base_rows()
    weights = transfer_weights(rows.pop("trained"), ROW_WEIGHTS, optimizer_steps=1)
    return rows | {"cipo_nudge_weights": weights}


def term_by_hand(policy, rows):
    """Row by row: minus its weight times the mean log-probability of the tokens that the policy wrote."""
    term = torch.zeros(())
    for row in (1, 4):
        ids = rows["input_ids"][row][rows["attention_mask"][row].bool()]
        logits = policy.head(policy.embed(ids[:-1]))
        found = torch.log_softmax(logits, dim=-1).gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1)[PROMPTS[row] - 1 :]
        written = (rows["cipo_nudge_weights"][row, : RESPONSES[row]] != 0).nonzero()[:, 0].tolist()
        assert written
        term = term - ROW_WEIGHTS[row] * found[written].mean()
    return term


@pytest.mark.parametrize("layout", ["nested", "padded"])
def test_loss_and_gradient_are_the_sum(actor_node, layout):
    policy, rows = Policy(), padded_rows()
    config = actor_config(actor_node, "vanilla")
    loss_fn = partial(cipo_loss, config=config, aux=OFF, nudge=0.1)
    loss, metrics = run(policy, loss_fn, micro_batch(rows, layout=layout))
    own, _ = run(policy, partial(ppo_loss, config), micro_batch(rows, layout=layout))
    term = term_by_hand(policy, rows)
    torch.testing.assert_close(loss, own + 0.1 * term)
    for got, base, extra in zip(*(gradients(policy, one) for one in (loss, own, term)), strict=True):
        torch.testing.assert_close(got, base + 0.1 * extra)
    reported = {f"actor/{name}": value.aggregate() for name, value in metrics.items() if name.startswith("cipo_")}
    assert taken_metrics(reported) == pytest.approx({"cipo/nudge/loss": term.item()}, rel=1e-5)
    assert not reported


@pytest.mark.parametrize("dp_size", [1, 2])
def test_micro_batches_and_ranks_add_up(actor_node, dp_size):
    policy, rows = Policy(), padded_rows()
    n_tokens = int(rows["response_mask"].sum())
    loss_fn = partial(cipo_loss, config=actor_config(actor_node), aux=OFF, nudge=0.1)
    whole, _ = run(policy, loss_fn, micro_batch(rows, [0, 1, 2, 3, 4, 5], dp_size=1, n_tokens=n_tokens))
    expected = gradients(policy, whole)
    total = [torch.zeros_like(gradient) for gradient in expected]
    for index in ([0, 1, 4], [2, 3, 5]):
        loss, _ = run(policy, loss_fn, micro_batch(rows, index, dp_size=dp_size, n_tokens=n_tokens))
        total = [one + more / dp_size for one, more in zip(total, gradients(policy, loss), strict=True)]
    for got, want in zip(total, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_beside_transfer_each_has_a_field_of_its_own(actor_node):
    policy, config = Policy(), actor_config(actor_node)
    rows = padded_rows() | {"cipo_transfer_weights": transferred(base_rows())["cipo_transfer_weights"]}

    def added(transfer, nudge):
        loss, metrics = run(
            policy, partial(cipo_loss, config=config, aux=OFF, transfer=transfer, nudge=nudge), micro_batch(rows)
        )
        assert (NUDGE_METRIC in metrics) == (nudge > 0) and (TRANSFER_METRIC in metrics) == (transfer.kind != "none")
        return loss

    own = added(NONE, 0.0)
    expected = added(TRANSFER["inject"], 0.0) + added(NONE, 0.1) - own
    torch.testing.assert_close(added(TRANSFER["inject"], 0.1), expected)


def test_a_batch_without_the_field_is_an_error(actor_node):
    rows = padded_rows()
    del rows["cipo_nudge_weights"]
    with pytest.raises(KeyError, match="cipo_nudge_weights"):
        run(Policy(), build_loss(actor_node, OFF, NONE, 0.1), micro_batch(rows))
