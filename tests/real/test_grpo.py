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
