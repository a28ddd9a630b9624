"""verl's policy loss and what its workers hand to a loss; see test_engines.py for the engines below."""

import inspect
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tensordict import NonTensorData, TensorDict

from tests.contracts.support.seams import check_parameters, load, seam

LOSS, WORKERS = "verl.workers.utils.losses", "verl.workers.engine_workers"
OURS = "verl_cipo/integration/train/loss.py"


def nested(*rows: list[float]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def micro_batch() -> TensorDict:
    """Two rows: prompts of 2 and 1 tokens, responses of 2 and 1."""
    data = TensorDict(
        {
            "prompts": nested([1, 1], [1]),
            "responses": nested([2, 2], [2]),
            "response_mask": nested([1, 1], [1]),
            "old_log_probs": nested([-1.0, -1.0], [-1.0]),
            "advantages": nested([1.0, 1.0], [2.0]),
            "cipo_probe": nested([5.0, 6.0], [7.0]),
        },
        batch_size=2,
    )
    for name, value in {"dp_size": 2, "batch_num_tokens": 6, "global_batch_size": 4}.items():
        data[name] = NonTensorData(value)
    return data


@pytest.fixture
def actor(config):
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = 1
    return load("verl.utils.config:omega_conf_to_dataclass")(config.actor_rollout_ref.actor)


@seam("losses.ppo_loss", OURS)
def test_the_policy_loss_is_a_sum_over_the_global_batch_times_the_ranks(actor):
    check_parameters(f"{LOSS}:ppo_loss", ["config", "model_output", "data", "dp_group"])
    # Packed over prompts and responses: 4 tokens of row one, 2 of row two.
    output = {"log_probs": torch.tensor([0.0, -1.0, -1.0, 0.0, -1.0, 0.0])}
    loss, metrics = load(f"{LOSS}:ppo_loss")(actor, output, micro_batch())
    # Ratio 1: -(1 + 1 + 2) / 6 tokens * 2 ranks.
    assert loss.item() == pytest.approx(-4 / 3)
    assert all(type(value).__name__ in ("Metric", "float") for value in metrics.values()), f"{metrics}"


@seam("workers.utils.padding.no_padding_2_padding", OURS)
def test_packed_log_probs_become_padded_ones_of_the_responses():
    path = "verl.workers.utils.padding:no_padding_2_padding"
    check_parameters(path, ["tensor", "data"])
    packed = torch.tensor([10.0, 11.0, 12.0, 13.0, 20.0, 21.0])
    assert load(path)(packed, micro_batch()).tolist() == [[11.0, 12.0], [20.0, 0.0]], "they are shifted by one token"


@seam("the micro-batch's fields", OURS)
def test_fields_of_a_micro_batch_can_be_selected_and_padded_and_ranks_read_off_it():
    data = micro_batch()
    assert data.select("cipo_probe").to_padded_tensor()["cipo_probe"].tolist() == [[5.0, 6.0], [7.0, 0.0]]
    assert data["dp_size"] == 2


@seam("utils.metric.Metric, AggregationType", OURS)
def test_a_metric_that_is_a_sum_is_added_up_over_micro_batches_and_averaged_over_ranks():
    metric, kind = load("verl.utils.metric:Metric"), load("verl.utils.metric:AggregationType")
    ranks = []
    for values in ((1.0, 2.0), (3.0, 4.0)):
        rank = metric(value=torch.tensor(values[0]), aggregation=kind.SUM)
        rank.append(metric(value=values[1], aggregation=kind.SUM))
        ranks.append(rank)
    assert ranks[0].aggregate() == 3.0
    assert metric.aggregate_dp(ranks) == 5.0, "the auxiliary loss's metric is multiplied by the ranks for this mean"


@seam("set_loss_fn of the actor's workers", OURS, "verl_cipo/integration/train/trainer.py")
@pytest.mark.parametrize("worker", ["ActorRolloutRefWorker", "TrainingWorker"])
def test_the_loss_of_the_workers_can_be_set_from_the_trainer(worker):
    check_parameters(f"{WORKERS}:{worker}.set_loss_fn", ["loss_fn"])
    method = load(f"{WORKERS}:{worker}.set_loss_fn")
    mark = load("verl.single_controller.base.decorator:MAGIC_ATTR")
    assert hasattr(method, mark), f"{worker}.set_loss_fn is no RPC of its worker group any more"
    held = SimpleNamespace(loss_fn=None, set_loss_fn=lambda loss_fn: setattr(held, "loss_fn", loss_fn))
    method(SimpleNamespace(actor=held) if worker == "ActorRolloutRefWorker" else held, "loss")
    assert held.loss_fn == "loss"


@seam("TrainingWorker.train_batch", OURS)
def test_the_loss_that_was_set_is_the_one_that_trains(monkeypatch):
    seen = {}

    def train_batch(data, loss_function):
        seen["loss"] = loss_function
        raise InterruptedError

    worker = SimpleNamespace(
        loss_fn=partial(dict, config=None),
        engine_config=load("verl.workers.config:FSDPEngineConfig")(),
        model_config={"use_remove_padding": False},
        engine=SimpleNamespace(
            train_batch=train_batch, get_data_parallel_size=lambda: 1, train_mode=lambda **_: NullContext()
        ),
    )
    data = micro_batch()
    data["global_token_num"] = NonTensorData([4, 2])
    method = inspect.unwrap(load(f"{WORKERS}:TrainingWorker.train_batch"))
    with pytest.raises(InterruptedError):
        method(worker, data)
    assert seen["loss"] is worker.loss_fn


class NullContext:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


@seam("ActorRolloutRefWorker.init_model", OURS)
def test_the_worker_configures_its_own_loss_as_cipo_configures_its_loss():
    """A partial of ppo_loss over the actor's dataclass, with the configuration under the name config."""
    source = inspect.getsource(load(f"{WORKERS}:ActorRolloutRefWorker.init_model"))
    assert "partial(ppo_loss, config=actor_config)" in source, "verl's own loss is configured in another way"


@seam("workers.config.ActorConfig", OURS)
def test_the_actors_dataclass_is_made_of_its_place_in_the_config(actor):
    assert isinstance(actor, load("verl.workers.config:ActorConfig"))
    assert actor.loss_agg_mode == "token-mean" and actor.global_batch_info == {}
    assert actor.policy_loss.get("loss_mode", "vanilla") == "vanilla"


@seam("core_algos.agg_loss, its modes", "verl_cipo/core/advantage.py", "verl_cipo/core/aux_loss/losses.py")
def test_losses_are_joined_over_tokens_or_over_sequences():
    agg = load("verl.trainer.ppo.core_algos:agg_loss")
    loss, mask = torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    for mode, expected in {
        "token-mean": (1 + 3 + 5) / 3,
        "seq-mean-token-sum": ((1 + 3) + 5) / 2,
        "seq-mean-token-mean": (2 + 5) / 2,
    }.items():
        assert agg(loss, mask, mode).item() == pytest.approx(expected), f"loss_agg_mode={mode}"
    expected = 3 * 9 / 6
    assert agg(loss, mask, "token-mean", dp_size=3, batch_num_tokens=6).item() == pytest.approx(expected)
