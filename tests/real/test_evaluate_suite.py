"""`python -m verl_cipo.evaluate --suite` and `python -m verl_cipo.probe` with real vLLM."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from verl_cipo.evaluation.suite.engine import KV_CACHE_VARIABLE
from verl_cipo.rewards.math import compute_score

pytestmark = pytest.mark.real

SUITE = """
benchmarks:
  tiny: {file: data/val.parquet, converter: python examples/tiny/prepare.py --quick, verifier: math}
suites:
  tiny:
    sampling: {n: 4, temperature: 1.0, top_p: 1.0, max_tokens: 64}
    corrections: 1
    benchmarks: {tiny: {}}
"""


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(module, *options):
    """The end of a command of the package that succeeds; how much memory the KV cache takes is left to it."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, options)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != KV_CACHE_VARIABLE},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_command_with_real_vllm(task_folder, tmp_path):
    (tmp_path / "suites.yaml").write_text(SUITE)
    output = tmp_path / "out"
    options = ["--suite", "tiny", "--suites", tmp_path / "suites.yaml", "--data-dir", task_folder]
    options += ["--checkpoint", task_folder / "model", "--output", output, "--limit", "8", "--batch", "12"]
    options += ["--engine", "dtype=float32", "enforce_eager=true", "max_model_len=256", "max_num_seqs=64"]
    # Less than the prompts of a batch take: were they computed in parts, seeded requests would end vLLM on a CPU.
    options += ["max_num_batched_tokens=256"]
    run("verl_cipo.evaluate", *options)
    attempts, records = rows(output / "tiny" / "0.jsonl"), rows(output / "tiny" / "corrections" / "0.jsonl")
    assert len(attempts) == len(records) == 32
    assert any(row["output"] for row in attempts)
    assert len({row["output"] for row in attempts if row["uid"].startswith("tiny-0_")}) > 1, "the seeds are one"
    for row in attempts:
        assert row["acc"] == (compute_score("", row["output"], row["gts"])["score"] == 1.0)
        assert 0 < row["response_tokens"] <= 64
    told = json.loads((output / "results.json").read_text())["benchmarks"]["tiny"]
    share = sum(row["acc"] for row in attempts) / 32
    assert told["turn1"]["pass@1"]["estimate"] == pytest.approx(share)
    assert told["corrections"]["accuracy_turn1"]["estimate"] == pytest.approx(share)
    assert "| tiny | 8 | 4 |" in (output / "results.md").read_text()


@pytest.mark.nightly
def test_the_probe_with_real_vllm(task_folder, tmp_path):
    """With no option about the engine: it fits the memory and starts on a CPU by itself."""
    options = ["--checkpoint", task_folder / "model", "--data", task_folder / "data" / "train.parquet"]
    options += ["--reward", "pkg://verl_cipo.rewards.math", "--limit", "16", "--samples", "4", "--max-tokens", "64"]
    done = run("verl_cipo.probe", *options, "--json", tmp_path / "probe.json")
    found = json.loads((tmp_path / "probe.json").read_text())
    figures = found["figures"]
    assert (figures["pass_at_1"]["problems"], figures["copy_rate"]["problems"]) == (16, 16)
    assert figures["accuracy_turn1"]["estimate"] == pytest.approx(figures["pass_at_1"]["estimate"])
    # A correction prompt holds a question, an attempt and the template.
    assert 20 < found["prompts"]["plain_longest"] < found["prompts"]["correction"][-1] < 256
    assert found["step"]["tokens"]["cipo"]["rollouts"] == 2 * found["step"]["tokens"]["grpo"]["rollouts"]
    assert done.stdout.startswith("in percent"), "vLLM's log stands between the figures"
    assert done.stdout.splitlines()[-1].startswith(f"{found['line']}")
