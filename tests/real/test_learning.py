"""benchmarks/learning.py: its small setting through real verl and vLLM."""

import gzip
import json

import pytest

from benchmarks import learning
from benchmarks.experiment import runs
from benchmarks.experiment.arms import CONTROL

pytestmark = [pytest.mark.real, pytest.mark.nightly]


def test_the_small_setting_runs_is_kept_and_is_written(tmp_path, monkeypatch, capsys):
    summary = tmp_path / "results" / "learning.json"
    monkeypatch.setattr(
        "sys.argv", ["learning.py", "--quick", "--output", str(tmp_path / "runs"), "--json", str(summary)]
    )
    assert learning.main() == 0
    first = json.loads(summary.read_text())
    assert first["seeds"] == [11] and set(first["arms"]) == {CONTROL, "cipo"}
    assert {"diff", "ci95"} <= first["cipo_minus_grpo_equal_rollouts"]["pass@8"].keys()
    steps, prompts, n = learning.QUICK.steps, learning.QUICK.prompts, learning.QUICK.n
    kept = {path.name: gzip.decompress(path.read_bytes()).splitlines() for path in summary.parent.glob("learning/*.gz")}
    assert set(kept) == {"cipo_seed11.jsonl.gz", f"{CONTROL}_seed11.jsonl.gz"}
    *metrics, last = map(json.loads, kept["cipo_seed11.jsonl.gz"])
    assert [line["data"]["cipo/rows/correction"] for line in metrics] == [prompts * n] * steps
    assert len(last["right"]) == learning.QUICK.task.val and last["tokens"] > 0

    # What is done is not done again: neither trains without verl.
    monkeypatch.setattr(runs.launch, "train", None)
    assert learning.main() == 0
    assert json.loads(summary.read_text()) == first
    assert "| cipo | 1 |" in capsys.readouterr().out
