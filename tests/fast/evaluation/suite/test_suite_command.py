import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.fast.evaluation.suite.scripted import ScriptedEngine
from verl_cipo import evaluate
from verl_cipo.evaluation.output import for_terminal
from verl_cipo.evaluation.suite import command as cli_suite

SUITE = {
    "benchmarks": {"one": {"file": "one.parquet", "converter": "python one.py", "verifier": "math"}},
    "suites": {
        "s": {
            "sampling": {"n": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 50},
            "corrections": 1,
            "benchmarks": {"one": {}},
        }
    },
}


@pytest.fixture
def data(tmp_path):
    """A folder with a suite of one benchmark of three problems; problem i asks for i."""
    (tmp_path / "suites.yaml").write_text(yaml.safe_dump(SUITE))
    rows = [
        {
            "data_source": "made/up",
            "prompt": [{"role": "user", "content": f"Say {i}."}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i},
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one.parquet")
    (tmp_path / "global_step_4").mkdir()
    (tmp_path / "global_step_4" / "config.json").write_text("{}")
    (tmp_path / "global_step_4" / "model.safetensors").write_bytes(b"")
    return tmp_path


def run(data, *more: object) -> int:
    checkpoint = data / "global_step_4"
    given = ["--suite", "s", "--suites", data / "suites.yaml", "--data-dir", data, "--checkpoint", checkpoint]
    return evaluate.main([*map(str, given), "--output", str(data / "out"), *map(str, more)])


@pytest.fixture
def engine(monkeypatch):
    """A model in vLLM's place, which itself is tried in test_generate; `made_with` is what the command asks of it."""
    engine = ScriptedEngine(lambda prompt, seed: r"\boxed{1}" if seed % 3 else "hm")
    return engine.instead_of_vllm(monkeypatch, cli_suite)


def test_the_command_writes_dumps_and_results(data, engine, capsys):
    assert run(data, "--engine", "tensor_parallel_size=2", "--chat-template", "enable_thinking=false") == 0
    assert engine.made_with["options"] == {"tensor_parallel_size": 2}
    assert engine.made_with["template"] == {"enable_thinking": False}
    rows = [json.loads(line) for line in (data / "out" / "one" / "4.jsonl").read_text().splitlines()]
    assert [row["acc"] for row in rows] == [row["output"] != "hm" and row["gts"] == "1" for row in rows]
    told = json.loads((data / "out" / "results.json").read_text())
    assert told["checkpoint"] == str(data / "global_step_4")
    assert told["benchmarks"]["one"]["turn1"]["pass@1"]["estimate"] == sum(row["acc"] for row in rows) / 6
    assert for_terminal((data / "out" / "results.md").read_text()) in capsys.readouterr().out
    assert "| gain |" in (data / "out" / "results.md").read_text()


def test_options_take_the_place_of_the_suites(data, engine):
    given = ["--samples", 3, "--temperature", 0.5, "--top-p", 0.9, "--max-tokens", 40, "--corrections", 0, "--limit", 2]
    assert run(data, *given) == 0
    told = json.loads((data / "out" / "results.json").read_text())["benchmarks"]["one"]
    assert told["sampling"] == {"n": 3, "temperature": 0.5, "top_p": 0.9, "max_tokens": 40}
    assert told["problems"] == 2 and told["attempts"] == 6 and "corrections" not in told


def test_the_seed_decides_the_draws(data, engine):
    asked = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        engine.asked.clear()
        assert run(data, "--seed", seed, "--output", data / name) == 0
        asked.append(sorted(drawn for _, drawn in engine.asked))
    assert asked[0] == asked[1] and not set(asked[0]) & set(asked[2])


def test_the_prompt_of_a_run_can_be_given(data, engine):
    (data / "mine.txt").write_text("Q {question} A {attempt}")
    assert run(data, "--prompt", f"template={data / 'mine.txt'}", "attempt_view=whole") == 0
    assert any(prompt.startswith("<user>Q Say 1. A ") for prompt, _ in engine.asked)


def test_the_knobs_of_a_run_that_tells_are_taken(data, engine):
    assert run(data, "--prompt", "verdict=told", "attempts=3") == 0
    assert any("The attempt may or may not be right." in prompt for prompt, _ in engine.asked)


def test_a_template_is_read_before_the_model_is_loaded(data, engine, monkeypatch):
    (data / "mine.txt").write_text("Q {question} A {attempt}")
    make = cli_suite.VLLMEngine

    def loaded(*args, **kwargs):
        (data / "mine.txt").unlink()
        return make(*args, **kwargs)

    monkeypatch.setattr(cli_suite, "VLLMEngine", loaded)
    assert run(data, "--prompt", f"template={data / 'mine.txt'}", "attempt_view=whole") == 0
    settings = json.loads((data / "out" / "one" / "settings.json").read_text())
    assert settings["prompt"]["template"] == "Q {question} A {attempt}"


@pytest.mark.parametrize(
    "more, told",
    [
        (["--benchmarks", "two"], "--benchmarks two: not in suite s, which has one"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--corrections", "-1"], "--corrections -1"),
        (["--samples", "0"], "sampling.n = 0"),
        (["--engine", "dtype"], "--engine dtype: expected KEY=VALUE"),
        (["--prompt", "view=whole"], "prompt.view = 'whole': unknown key"),
        (["--prompt", "attempt_view=half"], "attempt_view = 'half'"),
        (["--reward", "nothing"], "verifier 'nothing'"),
        (["--checkpoint", "Qwen/Qwen3-4B"], "--checkpoint Qwen/Qwen3-4B: no such folder"),
        (["--data-dir", "/nowhere"], "python one.py --local_save_dir /nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(more, told, data, engine, capsys):
    assert run(data, *more) == 1
    assert told in capsys.readouterr().err
    assert not hasattr(engine, "made_with")


def test_neither_verl_nor_vllm_is_imported_before_a_model_is_wanted():
    code = (
        "import sys; import verl_cipo.evaluate; names = 'verl', 'vllm', 'ray', 'transformers', 'sympy', 'torch'; "
        "print([name for name in (*names, 'verl_cipo.integration') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
