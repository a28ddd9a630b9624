"""`python -m verl_cipo.contexts` with a scripted model in vLLM's place."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fast.evaluation.suite.scripted import ScriptedEngine
from verl_cipo import contexts
from verl_cipo.core.nudge import listed
from verl_cipo.evaluation import strategies

IMAGE = [{"role": "user", "content": "<image> What is it?"}]


def rows():
    def row(prompt, number):
        told = {"index": number, "split": "train"}
        return {"data_source": "m", "prompt": prompt, "reward_model": {"ground_truth": "1"}, "extra_info": told}

    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say 0."}]
    return [row(asked, 0), row([{"role": "user", "content": "Say 1."}], 1), row([{"role": "user", "content": ""}], 2)]


@pytest.fixture
def data(tmp_path):
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "train.parquet")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.fixture
def engine(monkeypatch):
    """Says one of two things about a question, in turns; thinks first."""
    seen = []

    def answer(prompt, seed):
        seen.append(prompt)
        if "Say 1" in prompt:
            return ["Count.", "x" * 400, "  \n"][len(seen) % 3]
        return f"<think>hm</think>\n\n Look at it {len(seen) % 2} \nand more"

    return ScriptedEngine(answer).instead_of_vllm(monkeypatch, strategies)


def run(data, *more):
    given = ["--checkpoint", data / "model", "--data", data / "train.parquet", "--output", data / "out.parquet"]
    return contexts.main([*map(str, given), *map(str, more)])


def test_the_file_is_written_again_with_a_column(data, engine, capsys):
    assert run(data, "-n", 3, "--engine", "max_model_len=900") == 0
    made = pq.read_table(data / "out.parquet").to_pylist()
    assert [{name: value for name, value in row.items() if name != "contexts"} for row in made] == rows()
    assert sorted(made[0]["contexts"]) == ["Look at it 0", "Look at it 1"], "each once, without thoughts"
    assert made[1]["contexts"] == ["Count."], "what was cut off and what is empty is left out"
    assert [listed(row, "contexts") for row in made] == [row["contexts"] for row in made]
    assert engine.made_with["options"] == {"max_model_len": 900}
    said = capsys.readouterr().out
    assert "3 of 3 rows have strategies" in said and "+algorithm.cipo.nudge.contexts=contexts" in said
    assert "7 of 9 that were asked for were usable" in said


def test_they_are_sampled_as_the_options_say(data, engine, monkeypatch):
    used, sample = [], engine.sample
    monkeypatch.setattr(engine, "sample", lambda *given, **how: used.append(how["sampling"]) or sample(*given, **how))
    given = ["-n", 2, "--max-tokens", 40, "--temperature", 0.5, "--top-p", 0.9]
    assert run(data, *given, "--chat-template", "enable_thinking=false") == 0
    (sampling,) = used
    assert (sampling.n, sampling.max_tokens, sampling.temperature, sampling.top_p) == (2, 40, 0.5, 0.9)
    assert engine.made_with["template"] == {"enable_thinking": False}


def test_the_column_has_the_name_that_is_given(data, engine, capsys):
    assert run(data, "--column", "hints") == 0
    (made, *_) = pq.read_table(data / "out.parquet").to_pylist()
    assert listed(made, "hints") and "contexts" not in made
    assert "nudge.contexts=hints" in capsys.readouterr().out


def test_a_seed_has_its_own_draws(data, engine):
    def seeds(number):
        engine.asked.clear()
        assert run(data, "--seed", number) == 0
        return [seed for _, seed in engine.asked]

    first = seeds(1)
    assert seeds(1) == first and not set(seeds(2)) & set(first)


def test_strategies_are_asked_of_the_question_alone(data, engine):
    assert run(data, "-n", 2, "--request", "How? {question}", "--seed", 5) == 0
    prompts = {prompt for prompt, _ in engine.asked}
    assert prompts == {
        "<system>Be brief.<user>How? Say 0.<assistant>",
        "<user>How? Say 1.<assistant>",
        "<user>How? <assistant>",
    }
    assert len({seed for _, seed in engine.asked}) == 6
    assert "ground_truth" not in strategies.REQUEST and strategies.REQUEST.count("{question}") == 1


def test_what_is_too_long_or_no_text_has_none(data, engine):
    engine.max_model_len = 380
    table = pa.Table.from_pylist([{**row, "prompt": row["prompt"]} for row in rows()])
    chats = [strategies.asked(p, strategies.REQUEST) for p in (*table.column("prompt").to_pylist()[:1], IMAGE, None)]
    chats[1] = strategies.asked([{"role": "user", "content": "long " * 100}], strategies.REQUEST)
    sampling = strategies.Sampling(n=1, temperature=1.0, top_p=1.0, max_tokens=100)
    found, kept = strategies.strategies(chats, engine, sampling=sampling, seed=1)
    assert [bool(own) for own in found] == [True, False, False] and kept == 1
    engine.max_model_len = 50
    with pytest.raises(ValueError, match=r"no question .* fits into the 50 tokens"):
        strategies.strategies(chats, engine, sampling=sampling, seed=1)
    assert strategies.asked([{"role": "user", "content": [{"type": "image"}]}], "{question}") is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-n", "0"], ["-n 0: expected >= 1"]),
        (["--max-tokens", "0"], ["--max-tokens 0: expected >= 1"]),
        (["--request", "Name one."], ["--request 'Name one.'", "{question} once"]),
        (["--column", "prompt"], ["--column prompt", "another name"]),
        (["--data", "no.parquet"], ["--data no.parquet: no such file"]),
        (["--output", "{data}/train.parquet"], ["is a file that is read, and would be lost"]),
        (["--output", "{data}/model"], ["is a folder, expected a file"]),
        (["--checkpoint", "{data}"], ["--checkpoint", "expected config.json"]),
        (["--engine", "x"], ["--engine x: expected KEY=VALUE"]),
    ],
)
def test_errors_before_a_model_is_loaded(data, engine, capsys, more, words):
    assert run(data, *(text.replace("{data}", str(data)) for text in more)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and all(word in said for word in words), said
    assert not hasattr(engine, "made_with") and not (data / "out.parquet").exists()
