"""`python -m verl_cipo.probe` with a scripted model in vLLM's place; the real one is in tests/real."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fast.evaluation.suite.scripted import ScriptedEngine
from verl_cipo import probe
from verl_cipo.evaluation.probe import command
from verl_cipo.evaluation.probe.advice import Step
from verl_cipo.evaluation.probe.figures import Tokens

REWARD = (
    "def judge(data_source, solution_str, ground_truth, extra_info):\n    return float(solution_str == ground_truth)\n"
)


def rows(n=4):
    return [
        {
            "data_source": "made/up",
            "prompt": [{"role": "user", "content": f"Say {i}."}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
        }
        for i in range(n)
    ]


@pytest.fixture
def data(tmp_path):
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "train.parquet")
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 4000}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.fixture
def engine(monkeypatch):
    """Problem 0 is always solved and 1 never, 2 and 3 by half of the attempts; corrections say what they are shown."""
    spoken = {"0": ["0"], "1": ["7"], "2": ["2", "7"], "3": ["3", "7"]}
    turns = {}

    def answer(prompt, seed):
        asked = prompt.partition("Say ")[2][0]
        if "attempt" in prompt:
            return prompt.partition("<attempt>\n")[2].partition("\n")[0]
        turns[asked] = turns.get(asked, -1) + 1
        return spoken[asked][turns[asked] % len(spoken[asked])]

    return ScriptedEngine(answer).instead_of_vllm(monkeypatch, command)


def run(data, *more):
    given = ["--checkpoint", data / "model", "--data", data / "train.parquet", "--reward", f"{data / 'mine.py'}:judge"]
    given += ["--samples", 2, "--max-tokens", 100, "--prompt-length", 3000]
    return probe.main([*map(str, given), *map(str, more)])


def test_the_figures_of_a_model_that_copies(data, engine, capsys):
    assert run(data, "--json", data / "found.json") == 0
    found = json.loads((data / "found.json").read_text())
    figures = {name: value["estimate"] for name, value in found["figures"].items() if value is not None}
    # 4 of 8 attempts are right; of the wrong ones 2 have no right one beside them, and 2 have one.
    assert figures["pass_at_1"] == 0.5
    assert figures["all_right"] == figures["all_wrong"] == 0.25
    assert (figures["w2c"], figures["retry"], figures["w2c_over_retry"], figures["c2c"]) == (0.0, 0.5, -0.5, 1.0)
    assert figures["copy_rate"] == figures["copy_rate_failed"] == 1.0
    assert engine.made_with["options"] == {"max_model_len": 3100}
    assert found["problems"] == 4 and found["prompts"]["shown_whole"] == 1.0
    out = capsys.readouterr().out
    assert "pass@1" in out and "50.0 [" in out
    assert out.splitlines()[-1] == found["line"]
    assert len(found["meaning"]) == 3 and all(sentence in out for sentence in found["meaning"])
    assert all(option["reason"] in out for option in found["options"])


def test_the_tokens_of_a_step_by_hand():
    measured = Tokens(attempt=(50.0, 100.0), correction={False: (200.0, 80.0), True: (250.0, 60.0)})
    step = Step(prompts=10, n=4, sequences=256)
    # 40 attempts; 10 anchors x 4 corrections, 3 anchors of them right.
    assert measured.of_step(step, 0.3) == {
        "grpo": {"rollouts": 40, "sampled": 4000.0, "trained": 6000.0},
        "cipo": {"rollouts": 80, "sampled": 4000 + 28 * 80 + 12 * 60, "trained": 6000 + 28 * 280 + 12 * 310},
    }
    alone = Tokens(attempt=(50.0, 100.0), correction={True: (250.0, 60.0)})
    assert alone.of_step(step, 0.0)["cipo"]["sampled"] == 4000 + 40 * 60, "the kind that was measured stands in"


def test_a_tokenizer_decides_the_room_where_no_prompt_length_is_given(data, engine, task_folder):
    """Longest plain prompt, attempt, template and answer; the model's positions at most."""
    given = ["--checkpoint", task_folder / "model", "--data", data / "train.parquet", "--samples", 2]
    given += ["--reward", f"{data / 'mine.py'}:judge", "--max-tokens"]
    assert probe.main(list(map(str, [*given, 20]))) == 0
    plain = engine.made_with["options"]["max_model_len"] - 20 - 20 - command.BEYOND
    assert 3 <= plain <= 30
    assert probe.main(list(map(str, [*given, 200]))) == 0
    assert engine.made_with["options"]["max_model_len"] == 512


def test_problems_are_drawn_by_the_seed(data):
    pq.write_table(pa.Table.from_pylist(rows(50)), data / "many.parquet")
    drawn = [command.draw_problems(data / "many.parquet", limit=10, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len({problem.key for problem in drawn[0]}) == 10
    assert max(int(problem.ground_truth) for problem in drawn[0]) > 10, "not the first ones"
    assert all(problem.key == f"probe-{problem.ground_truth}" for problem in drawn[0])


def test_answers_are_kept_where_asked(data, engine):
    assert run(data, "--output", data / "out") == 0
    asked = len(engine.asked)
    assert run(data, "--output", data / "out") == 0
    assert asked == len(engine.asked) == 16


def test_knobs_of_the_prompt_are_in_the_line(data, engine, capsys):
    assert run(data, "--prompt", "attempt_view=whole", "thinking_open=<t>") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(" +algorithm.cipo.prompt.attempt_view=whole '+algorithm.cipo.prompt.thinking_open=<t>'")


def test_for_programs_the_template_is_that_of_code(data, engine, capsys, monkeypatch):
    monkeypatch.setattr("verl_cipo.rewards.code.compute_score", lambda **given: 0.0)
    assert run(data, "--reward", "pkg://verl_cipo.rewards.code") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("+algorithm.cipo.prompt.template=code")


def test_the_reward_is_verls_own_where_none_is_named(data, engine, capsys):
    options = ["--reward", "verl", "--limit", 1]
    assert run(data, *options) == 1
    assert "cannot judge data_source 'made/up': NotImplementedError" in capsys.readouterr().err
    pq.write_table(
        pa.Table.from_pylist([row | {"data_source": "openai/gsm8k"} for row in rows()]), data / "train.parquet"
    )
    assert run(data, *options) == 0


@pytest.mark.parametrize(
    "more, told",
    [
        (
            ["--checkpoint", "Qwen/Qwen3-4B"],
            "--checkpoint Qwen/Qwen3-4B: no such folder; if it is a name of the Hugging",
        ),
        (["--checkpoint", "{data}/train.parquet"], "is a file, expected a folder"),
        (["--checkpoint", "{data}"], "expected config.json and *.safetensors"),
        (["--data", "{data}/gone.parquet"], "gone.parquet: no such file"),
        (["--data", "{data}/mine.py"], "mine.py: cannot be read as parquet"),
        (["--data", "{data}/lacking.parquet"], "no column reward_model; it has data_source, prompt"),
        (["--data", "{data}/text.parquet"], "row 0: prompt is 'q', expected a list of messages"),
        (["--data", "{data}/ungraded.parquet"], "row 0: reward_model is {{'style': 'rule'}}, expected a mapping with"),
        (["--reward", "{data}/mine.py:other"], "has no attribute 'other'"),
        (["--reward", "{data}/gone.py:judge"], "No such file"),
        (["--reward", "maths"], "verifier 'maths': expected math, code, critique, verl"),
        (["--samples", "1"], "--samples 1: expected 2 or more"),
        (["--temperature", "0"], "--temperature 0"),
        (["--engine", "seed=["], "--engine seed=[: the value is not YAML"),
        (["--prompt", "view=whole"], "prompt.view = 'whole': unknown key"),
        (["--prompt", "attempts=2"], "attempts above 1 cannot be probed"),
        (["--output", "{data}/mine.py"], "--output {data}/mine.py: is a file, expected a folder"),
        (["--json", "{data}"], "--json {data}: is a folder, expected a file"),
        (["--json", "{data}/train.parquet"], "--json {data}/train.parquet: is a file that is read, and would be lost"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(more, told, data, engine, capsys):
    first = rows(1)[0]
    broken = {
        "lacking": {name: first[name] for name in ("data_source", "prompt")},
        "text": first | {"prompt": "q"},
        "ungraded": first | {"reward_model": {"style": "rule"}},
    }
    for name, row in broken.items():
        pq.write_table(pa.Table.from_pylist([row]), data / f"{name}.parquet")
    assert run(data, *(part.format(data=data) for part in more)) == 1
    assert told.format(data=data) in capsys.readouterr().err
    assert not hasattr(engine, "made_with")
