"""python -m verl_cipo.chat with a small model that has learned nothing, and with answers that are given."""

import io
from dataclasses import replace

import pytest

from examples.tiny import prepare
from verl_cipo import chat
from verl_cipo.core.prompts import TEMPLATES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A Hugging Face folder."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = prepare.make_tokenizer(TEMPLATES["math"])
    shape = replace(prepare.QUICK.shape, hidden=32, layers=1, inner=32, heads=1, kv_heads=1)
    for part in (prepare.make_model(shape, tokenizer), tokenizer):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def answers(monkeypatch) -> list[str]:
    """What the model says, first to last; then it is no longer asked. Chats come back in their places."""
    said: list = []
    places = iter(range(100))

    def answer(self, messages):
        place = next(places)
        text, said[place] = said[place], messages
        return text

    monkeypatch.setattr(chat.Chat, "answer", answer)
    return said


def test_a_model_answers_and_is_asked_for_a_correction(checkpoint, capsys):
    options = ["--checkpoint", checkpoint, "--seed", "3", "--max-tokens", "8", "--instruction", "Think."]
    assert chat.main(["What is 2 + 3?", *options, "--show-prompt"]) == 0
    out = capsys.readouterr().out
    heads = [line for line in out.splitlines() if line.startswith("--- ")]
    assert heads == ["--- attempt", "--- what the model is shown", "--- correction"]
    attempt = out.split("--- attempt\n")[1].split("\n--- what")[0]
    assert attempt and "[user]\nWhat is 2 + 3? Think.\n" in out and f"<attempt>\n{attempt}\n</attempt>" in out
    assert chat.main(["What is 2 + 3?", *options]) == 0
    assert capsys.readouterr().out == out.split("--- what")[0] + out[out.index("--- correction") :]


def test_the_likeliest_tokens_are_the_same_each_time(checkpoint, capsys):
    options = ["--checkpoint", checkpoint, "--temperature", "0", "--max-tokens", "8"]
    printed = []
    for _ in range(2):
        assert chat.main(["What is 2 + 3?", *options]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_the_correction_prompt_is_that_of_a_validation(checkpoint, answers, capsys):
    answers += ["5", "4", "5"]
    knobs = ["--prompt", "form=assistant_turn", "verdict=told", "standalone=false"]
    assert chat.main(["2 + 2?", "--checkpoint", checkpoint, *knobs]) == 0
    assert capsys.readouterr().out == "--- attempt\n5\n--- correction\n4\n\n"
    asked, shown, _ = answers
    assert asked == [{"role": "user", "content": "2 + 2?"}]
    assert shown[:2] == [*asked, {"role": "assistant", "content": "5"}]
    assert "may or may not be right" in shown[2]["content"], "nobody has judged it"


def test_a_correction_that_repeats_the_attempt_is_called_so(checkpoint, answers, capsys):
    answers += ["It is 5.", "It  is 5.\n"]
    assert chat.main(["2 + 2?", "--checkpoint", checkpoint]) == 0
    assert "--- correction, the same text\nIt  is 5.\n" in capsys.readouterr().out


def test_an_attempt_without_text_is_not_corrected(checkpoint, answers, capsys):
    answers += [" "]
    assert chat.main(["2 + 2?", "--checkpoint", checkpoint]) == 0
    assert "--- no correction\nempty_attempt: no correction prompt" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["", "\n3 + 3?\n"])
def test_questions_are_read_up_to_an_empty_line(checkpoint, answers, capsys, monkeypatch, end):
    answers += ["4", "4", "3", "3", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"2 + 2?\n1 + 2?\n{end}"))
    assert chat.main(["--checkpoint", checkpoint, "--instruction", "Think."]) == 0
    assert capsys.readouterr().out.count("--- attempt") == 2
    assert [answers[place][0]["content"] for place in (0, 2)] == ["2 + 2? Think.", "1 + 2? Think."]
    assert answers[4] == "never"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-tokens", "0"], "--max-tokens 0: expected 1 or more"),
        (["--temperature", "-1"], "--temperature -1.0: expected 0 or more"),
        (["--max-tokens", "500"], "--max-tokens 500: a correction prompt takes 92 tokens or more, and of the 512"),
        (["--prompt", "tone=kind"], "tone"),
        (["--prompt", "tone"], "--prompt tone: expected KEY=VALUE"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere: no such folder"),
        (["--instruction", "x " * 300], "the question takes"),
    ],
)
def test_what_cannot_be_done_is_one_line(checkpoint, capsys, options, message):
    assert chat.main(["2 + 2?", "--checkpoint", checkpoint, *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and message in said
