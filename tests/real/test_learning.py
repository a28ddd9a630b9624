"""benchmarks/learning.py: its small setting through real verl and vLLM."""

import gzip
import json

import pytest

from benchmarks import learning
from benchmarks.experiment import runs
from benchmarks.experiment.arms import CONTROL, DEFAULT
from benchmarks.experiment.setting import QUICK

pytestmark = [pytest.mark.real, pytest.mark.nightly]


def test_the_small_setting_runs_is_kept_and_is_written(tmp_path, monkeypatch, capsys):
    summary = tmp_path / "results" / "learning.json"
    monkeypatch.setattr(
        "sys.argv", ["learning.py", "--quick", "--output", str(tmp_path / "runs"), "--json", str(summary)]
    )
    assert learning.main() == 0
    written = summary.read_text()
    first = json.loads(written)["tasks"]["quick"]
    assert first["seeds"] == [11] and set(first["arms"]) == {CONTROL, DEFAULT}
    assert {"diff", "ci95"} <= first["minus_control"][DEFAULT]["pass@8"].keys()
    steps, prompts, n = QUICK.steps, QUICK.prompts, QUICK.n
    files = summary.parent.glob("learning/quick/*.gz")
    kept = {path.name: gzip.decompress(path.read_bytes()).splitlines() for path in files}
    assert set(kept) == {f"{DEFAULT}_seed11.jsonl.gz", f"{CONTROL}_seed11.jsonl.gz"}
    *metrics, last = map(json.loads, kept[f"{DEFAULT}_seed11.jsonl.gz"])
    moved = [line["data"]["cipo/rows/correction"] + line["data"]["cipo/budget/attempts"] for line in metrics]
    assert moved == [prompts * n] * steps
    assert len(last["right"]) == QUICK.task.val and last["tokens"] > 0

    # What is done is not done again: neither trains without verl.
    monkeypatch.setattr(runs.launch, "train", None)
    assert learning.main() == 0
    assert summary.read_text() == written
    assert f"| {DEFAULT} | 1 |" in capsys.readouterr().out
