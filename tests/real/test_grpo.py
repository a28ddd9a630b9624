"""GRPO in real verl and vLLM: with the plugin installed it is what it is without."""

import pytest

from tests.real.conftest import GREEDY, STOCK, Run

pytestmark = [pytest.mark.real, pytest.mark.nightly]


@pytest.fixture(scope="session")
def grpo_run(run, tmp_path_factory) -> Run:
    """GRPO with the plugin installed."""
    return run(tmp_path_factory.mktemp("grpo"), *GREEDY)


@pytest.fixture(scope="session")
def stock_run(run, tmp_path_factory) -> Run:
    """GRPO without the plugin."""
    return run(tmp_path_factory.mktemp("stock"), *GREEDY, env=STOCK)


@pytest.fixture(scope="session")
def second_turn_run(run, tmp_path_factory) -> Run:
    """What the launch scripts run for ALGO=grpo: second turns in the validation, no corrections in training."""
    ours = "algorithm.adv_estimator=cipo", "+algorithm.cipo.replay_fraction=0"
    return run(tmp_path_factory.mktemp("second"), *GREEDY, *ours)


def test_grpo_with_the_plugin_gives_the_rollouts_of_stock_verl(grpo_run, stock_run):
    def content(run, step):
        return sorted((row["input"], row["output"], row["gts"], row["score"]) for row in run.rollouts(step))

    for step in (1, 2):
        assert content(grpo_run, step) == content(stock_run, step)
    for ours, stock in zip(grpo_run.steps, stock_run.steps, strict=True):
        assert ours.keys() == stock.keys()
        for name in ("actor/grad_norm", "actor/pg_loss", "critic/advantages/max", "perf/total_num_tokens"):
            assert ours[name] == stock[name]
    assert not any("_c" in row["uid"] for row in grpo_run.rollouts(1))
    assert not any(name.startswith("cipo/") for line in grpo_run.metrics for name in line["data"])
    assert "CIPO" not in stock_run.log


def test_grpo_with_second_turns_trains_what_grpo_trains(grpo_run, second_turn_run):
    def content(run, step):
        return sorted((row["input"], row["output"], row["gts"], row["score"]) for row in run.rollouts(step))

    for step in (1, 2):
        assert content(second_turn_run, step) == content(grpo_run, step)
    for ours, stock in zip(second_turn_run.steps, grpo_run.steps, strict=True):
        assert ours["cipo/rows/correction"] == ours["cipo/anchors/total"] == 0
        assert ours["perf/total_num_tokens"] == stock["perf/total_num_tokens"]
        assert ours["critic/advantages/max"] == stock["critic/advantages/max"]
        # The rows are summed in another order.
        assert ours["actor/grad_norm"] == pytest.approx(stock["actor/grad_norm"], rel=1e-3)
    # verl's own accuracy is of first turns alone.
    first, ours = grpo_run.metrics[-1]["data"], second_turn_run.metrics[-1]["data"]
    accuracy = [name for name in first if name.startswith("val-core/")]
    assert accuracy and all(ours[name] == pytest.approx(first[name]) for name in accuracy)
    assert "cipo/val/accuracy_turn2" in ours and "cipo/val/accuracy_turn1" in ours
    assert not any(name.startswith("cipo/") for name in first)
