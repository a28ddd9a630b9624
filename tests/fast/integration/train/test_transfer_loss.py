"""The loss that the workers get with transfer: beside verl's own and the auxiliary loss, through verl's own packing."""

import math
import pickle
from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_module
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.workers.utils.losses import ppo_loss

from tests.fast.integration.train.test_loss import (
    AUX,
    PROMPTS,
    RESPONSES,
    Policy,
    actor_config,
    gradients,
    micro_batch,
    padded_rows,
    run,
    with_fields,
)
from verl_cipo.core.advantage import LOSS_AGG_MODES
from verl_cipo.core.aux_loss.transfer import transfer_weights
from verl_cipo.core.config import AuxConfig, TransferConfig
from verl_cipo.integration.train.loss import METRIC, TRANSFER_METRIC, build_loss, cipo_loss, taken_metrics

# Rows 4 and 5 are in the batch for transfer alone.
ROW_WEIGHTS = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.75, -0.5])
TRANSFER = {kind: TransferConfig(kind=kind, coef=0.3, gamma=0.2, floor=-2.4) for kind in ("inject", "regress")}
OFF, NONE = AuxConfig(coef=0.0), TransferConfig(kind="none")


@pytest.fixture(scope="module")
def actor_node():
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"])
    return config.actor_rollout_ref.actor


def transferred(rows, row_weights=ROW_WEIGHTS):
    rows = dict(rows)
    weights = transfer_weights(rows.pop("trained"), row_weights, optimizer_steps=1)
    return rows | {"cipo_transfer_weights": weights}


def term_by_hand(policy, rows, kind, row_weights=ROW_WEIGHTS):
    """Row by row and token by token; also of rows 4 and 5 how many tokens, and the sum of their log-probabilities."""
    term, total, tokens = torch.zeros(()), 0.0, 0
    for row in row_weights.nonzero().flatten().tolist():
        ids = rows["input_ids"][row][rows["attention_mask"][row].bool()]
        logits = policy.head(policy.embed(ids[:-1]))
        found = torch.log_softmax(logits, dim=-1).gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1)[PROMPTS[row] - 1 :]
        written = [t for t in range(RESPONSES[row]) if (row, t) != (4, 2)]  # a tool's token
        for t in written:
            p = found[t].exp()
            if kind == "inject":
                term = term - row_weights[row] / len(written) * p / (p + 0.2)
            elif found[t] >= -2.4:
                term = term - row_weights[row] / len(written) * found[t]
            total += found[t].item() * (row >= 4)
        tokens += len(written) * (row >= 4)
    return term, total, tokens


def assert_the_sum(policy, config, rows, kind, layout, row_weights=ROW_WEIGHTS):
    """The loss and its gradient are verl's and the term's; reported are the term and the mean of corrections."""
    loss_fn = partial(cipo_loss, config=config, aux=OFF, transfer=TRANSFER[kind])
    loss, metrics = run(policy, loss_fn, micro_batch(rows, layout=layout))
    own, _ = run(policy, partial(ppo_loss, config), micro_batch(rows, layout=layout))
    term, total, tokens = term_by_hand(policy, rows, kind, row_weights)
    torch.testing.assert_close(loss, own + 0.3 * term)
    expected = zip(gradients(policy, own), gradients(policy, term), strict=True)
    for got, (base, extra) in zip(gradients(policy, loss), expected, strict=True):
        torch.testing.assert_close(got, base + 0.3 * extra)
    reported = {f"actor/{name}": value.aggregate() for name, value in metrics.items() if name.startswith("cipo_")}
    assert taken_metrics(reported) == pytest.approx(
        {"cipo/transfer/loss": term.item(), "cipo/transfer/mean_log_prob": total / tokens}, rel=1e-5
    )
    assert not reported, "all that is CIPO's was taken"


@pytest.mark.parametrize("layout", ["nested", "padded"])
@pytest.mark.parametrize("kind", TRANSFER)
@pytest.mark.parametrize("loss_mode", sorted(set(POLICY_LOSS_REGISTRY)))
def test_loss_and_gradient_are_the_sum(actor_node, loss_mode, kind, layout):
    policy, rows = Policy(), transferred(padded_rows())
    config = actor_config(actor_node, loss_mode)
    assert_the_sum(policy, config, rows, kind, layout)


@pytest.mark.parametrize("layout", ["nested", "padded"])
@pytest.mark.parametrize("kind", TRANSFER)
def test_attempts_are_trained_where_they_are_and_do_not_enter_the_mean_of_corrections(actor_node, kind, layout):
    """Row 0, which the policy loss trains as well. Attempts are likely anyway, corrections become so."""
    with_own = ROW_WEIGHTS + torch.tensor([0.9, 0.0, 0.0, 0.0, 0.0, 0.0])
    policy, rows = Policy(), transferred(padded_rows(), with_own)
    config = actor_config(actor_node)
    assert_the_sum(policy, config, rows, kind, layout, with_own)


def test_the_floor_masks_something_here(actor_node):
    """Else the tests above would say nothing of it."""
    policy, rows = Policy(), transferred(padded_rows())
    config, losses = actor_config(actor_node), []
    for floor in (-2.4, None):
        transfer = TransferConfig(kind="regress", coef=2.0, floor=floor)
        losses.append(run(policy, partial(cipo_loss, config=config, aux=OFF, transfer=transfer), micro_batch(rows))[0])
    assert abs(losses[0] - losses[1]) > 0.01


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("kind", TRANSFER)
def test_no_aggregation_of_the_policy_loss_changes_it(actor_node, kind, mode):
    policy, rows = Policy(), transferred(padded_rows())
    config = actor_config(actor_node, loss_agg_mode=mode, loss_scale_factor=5)
    loss, _ = run(policy, partial(cipo_loss, config=config, aux=OFF, transfer=TRANSFER[kind]), micro_batch(rows))
    own, _ = run(policy, partial(ppo_loss, config), micro_batch(rows))
    torch.testing.assert_close(loss - own, 0.3 * term_by_hand(policy, rows, kind)[0])


@pytest.mark.parametrize("kind", TRANSFER)
@pytest.mark.parametrize("split", [[[0, 1, 4], [2, 3, 5]], [[5], [3, 0], [1, 4], [2]]])
@pytest.mark.parametrize("dp_size", [1, 2])
def test_micro_batches_and_ranks_add_up(actor_node, kind, split, dp_size):
    """Each part is a micro-batch of one of the ranks; verl adds up what a rank has and averages over the ranks."""
    policy, rows = Policy(), transferred(padded_rows())
    n_tokens = int(rows["response_mask"].sum())
    loss_fn = partial(cipo_loss, config=actor_config(actor_node), aux=OFF, transfer=TRANSFER[kind])

    def parts(index, dp):
        return run(policy, loss_fn, micro_batch(rows, index, dp_size=dp, n_tokens=n_tokens))

    whole, whole_metrics = parts([0, 1, 2, 3, 4, 5], 1)
    expected = gradients(policy, whole)
    total = [torch.zeros_like(g) for g in expected]
    reported = dict.fromkeys((f"actor/{name}" for name in whole_metrics if name.startswith("cipo_")), 0.0)
    for index in split:
        loss, metrics = parts(index, dp_size)
        total = [t + g / dp_size for t, g in zip(total, gradients(policy, loss), strict=True)]
        for name in reported:
            reported[name] += metrics[name.removeprefix("actor/")].aggregate() / dp_size
    for got, want in zip(total, expected, strict=True):
        torch.testing.assert_close(got, want)
    once = {f"actor/{name}": value.aggregate() for name, value in whole_metrics.items() if name.startswith("cipo_")}
    assert taken_metrics(reported) == pytest.approx(taken_metrics(once), rel=1e-5)


@pytest.mark.parametrize("kind", TRANSFER)
def test_both_terms_together(actor_node, kind):
    """Row 4 is trained by both, as a correction and as an answer to the plain prompt would be."""
    policy, rows = Policy(), padded_rows()
    both = with_fields(rows, "nll") | {"cipo_transfer_weights": transferred(rows)["cipo_transfer_weights"]}
    config = actor_config(actor_node)

    def added(aux, transfer):
        loss, metrics = run(policy, partial(cipo_loss, config=config, aux=aux, transfer=transfer), micro_batch(both))
        assert (METRIC in metrics) == (aux.coef > 0) and (TRANSFER_METRIC in metrics) == (transfer.kind != "none")
        return loss

    own = added(OFF, NONE)
    expected = added(AUX["nll"], NONE) + added(OFF, TRANSFER[kind]) - own
    torch.testing.assert_close(added(AUX["nll"], TRANSFER[kind]), expected)
    assert not math.isclose(expected.item(), own.item(), rel_tol=1e-3)


def test_rows_without_weight_leave_verls_loss_bit_for_bit(actor_node):
    policy, rows = Policy(), transferred(padded_rows())
    rows["cipo_transfer_weights"] = torch.zeros_like(rows["cipo_transfer_weights"])
    config = actor_config(actor_node)
    loss, metrics = run(
        policy, partial(cipo_loss, config=config, aux=OFF, transfer=TRANSFER["inject"]), micro_batch(rows)
    )
    own, _ = run(policy, partial(ppo_loss, config), micro_batch(rows))
    assert torch.equal(loss, own) and all(map(torch.equal, gradients(policy, loss), gradients(policy, own)))
    reported = {f"actor/{name}": value.aggregate() for name, value in metrics.items() if name.startswith("cipo_")}
    assert taken_metrics(reported) == {"cipo/transfer/loss": 0.0}, "a mean over nothing is left out"


def test_a_batch_without_the_field_is_an_error(actor_node):
    rows = transferred(padded_rows())
    del rows["cipo_transfer_weights"]
    loss_fn = partial(cipo_loss, config=actor_config(actor_node), aux=OFF, transfer=TRANSFER["inject"])
    with pytest.raises(KeyError, match="cipo_transfer_weights"):
        run(Policy(), loss_fn, micro_batch(rows))


def test_it_travels_to_the_workers(actor_node):
    loss_fn = pickle.loads(pickle.dumps(build_loss(actor_node, OFF, TRANSFER["regress"])))
    assert loss_fn.keywords["transfer"] == TRANSFER["regress"]
    rows = transferred(padded_rows())
    assert TRANSFER_METRIC in run(Policy(), loss_fn, micro_batch(rows))[1]


def test_an_update_that_was_left_out_reports_nothing():
    assert taken_metrics({"actor/loss": 1.0}) == {}
