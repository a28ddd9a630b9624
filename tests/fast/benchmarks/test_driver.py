"""benchmarks/driver.py and estimator.py in a small setting: they run, and their JSON has what others read."""

import json

import numpy as np
import pytest
import torch

from benchmarks import common, driver, estimator


@pytest.fixture(autouse=True)
def threads():
    """The benchmarks compute on one thread."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_made_batches_are_laid_out_as_in_verl():
    fields = common.token_fields(np.array([1, 0, 1]), np.array([3, 1, 2]))
    assert fields["token_level_rewards"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert fields["response_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert fields["response_mask"].dtype == torch.int64


def test_milliseconds_are_those_of_each_arm_in_turn():
    calls = []
    took = common.milliseconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and took.keys() == {"a", "b"}


def test_estimator_writes_its_figures(tmp_path, capsys):
    assert estimator.main(["--quick", "--json", str(tmp_path / "new" / "e.json")], sizes=(16, 32), tokens=8) == 0
    figures = json.loads((tmp_path / "new" / "e.json").read_text())
    assert list(figures["rows"]) == ["16", "32"]
    for line in figures["rows"].values():
        assert line["max_difference"] == 0 and {"floor_ms", "floor_product_ms"} <= line.keys()
        for level in (line["trainer"], line["function"]):
            assert level["speedup"] == pytest.approx(level["verl_ms"] / level["cipo_ms"])
    assert capsys.readouterr().out.count("| 16 |") == 1


def test_estimator_tells_a_difference(monkeypatch):
    original = estimator.compute_cipo_advantage
    monkeypatch.setattr(estimator, "compute_cipo_advantage", lambda *a, **k: (original(*a, **k)[0] + 1e-3, None))
    with pytest.raises(RuntimeError, match="16 rows.*more than 1e-6"):
        estimator.measure(16, 8, rounds=1)


@pytest.mark.nightly
def test_driver_writes_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(driver, "MEMORY_STEPS", 40)
    status = driver.main(["--quick", "--json", str(tmp_path / "d.json")], shape=(32, 4, 64))
    figures = json.loads((tmp_path / "d.json").read_text())
    # 4 prompts x 4 attempts, and an anchor a prompt with 4 corrections.
    assert figures["rows"] == 32
    parts = figures["parts_ms"]
    assert parts.keys() == {"selection", "prompts", "rows", "estimator", "metrics"}
    assert figures["overhead_ms"] == pytest.approx(sum(max(0.0, part) for part in parts.values()))
    # References and ranks of 4 x 4 attempts: some hundred bytes each, and no text.
    assert 0.001 < figures["coordinator_mb"] < 0.03
    assert figures["limit_ms"] == pytest.approx(50 + figures["grpo_compute_advantage_ms"] / 10)
    assert figures["pairs_ms"] > 0 and figures["pairs_limit_ms"] == 10 * 4
    over = figures["overhead_ms"] > figures["limit_ms"] or figures["pairs_ms"] > figures["pairs_limit_ms"]
    assert status == int(over)
    assert figures["memory"]["steps"] == 8
    assert "| selection |" in capsys.readouterr().out


def test_a_made_step_goes_through_every_part(monkeypatch):
    step = driver.Step(4, 4, 16)
    step.roll_out()
    step.lay_out()
    assert step.table.scores.tolist() == step.scores.tolist()
    assert sum(map(len, step.anchors.values())) == 4 and len(step.keys) == len(step.rows) == 32
    queue = driver.Queue(dict(zip(step.keys, step.lengths.tolist(), strict=True)))
    monkeypatch.setattr(driver.aux, "tq", queue)
    grown = step.pair(driver.rendering_of(512))
    assert grown.keys[:32] == step.keys and len(grown.keys) == 32 + 4, "a pair a prompt"
    fields = step.fields()
    base = step.rows.stream == 0
    cipo, grpo = (step.advantages(fields, name)[base][:, 0] for name in (estimator.NAME, "grpo"))
    # token-mean: the attempts' advantages are GRPO's times T / Tb.
    ratio = fields["response_mask"].sum() / fields["response_mask"][torch.from_numpy(base)].sum()
    assert torch.allclose(cipo, grpo * ratio)
    own = step.measure()
    assert own["cipo/anchors/total"] == 4 and own["cipo/rows/base"] == 16 and "cipo/rho" in own
