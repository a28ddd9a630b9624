"""What the knobs have a correction prompt say, word for word."""

import itertools
import re

import pytest

from tests.fast.core.prompts.characters import ask, builder
from verl_cipo.core.config import CIPOConfigError, PromptConfig
from verl_cipo.core.prompts import Others, load_template, with_text

ONE = "What is 2+2?\n\nHere is an attempt at this problem:\n<attempt>\n5\n</attempt>\n\n"
SEVERAL = "What is 2+2?\n\nHere are attempts at this problem:\n<attempt>\n5\n</attempt>\n<attempt>\n6\n</attempt>\n\n"
MATH = "then give a complete solution and the final answer in the format that the problem asks for."
CODE = "Check it against the problem step by step, then give the complete corrected or confirmed program in one fenced "
TOLD_CODE = "Find the mistakes step by step, then give the complete corrected program in one fenced code block."
ALONE = " What you write must stand on its own: do not mention "

TEXTS = [
    ({}, ONE + "The attempt may or may not be right. Check it step by step, " + MATH),
    ({"attempts": 2}, SEVERAL + "Each may or may not be right. Check them step by step, " + MATH),
    ({"verdict": "told"}, ONE + "The attempt is wrong. Find the mistake step by step, " + MATH),
    ({"verdict": "told", "attempts": 2}, SEVERAL + "All of them are wrong. Find the mistakes step by step, " + MATH),
    ({"template": "code"}, ONE + "The attempt may or may not be right. " + CODE + "code block."),
    ({"template": "code", "verdict": "told", "attempts": 2}, SEVERAL + "All of them are wrong. " + TOLD_CODE),
    (
        {"standalone": True},
        ONE + "The attempt may or may not be right. Check it step by step, " + MATH + ALONE + "the attempt.",
    ),
    (
        {"standalone": True, "attempts": 2},
        SEVERAL + "Each may or may not be right. Check them step by step, " + MATH + ALONE + "the attempts.",
    ),
]
REVIEWS = [
    ({}, "Your answer may or may not be right. Check it step by step, " + MATH),
    ({"verdict": "told"}, "Your answer is wrong. Find the mistake step by step, " + MATH),
    ({"template": "code"}, "Your answer may or may not be right. " + CODE + "code block."),
    (
        {"verdict": "told", "standalone": True},
        "Your answer is wrong. Find the mistake step by step, " + MATH + ALONE + "your earlier answer.",
    ),
]


@pytest.mark.parametrize(("knobs", "text"), TEXTS)
def test_one_message(knobs, text):
    request, _ = builder(**knobs).request(ask(), "5", Others(("6",), (0, 1)))
    assert request.messages == [{"role": "user", "content": text}]


@pytest.mark.parametrize(("knobs", "text"), REVIEWS)
def test_the_assistants_own_turn(knobs, text):
    request, _ = builder(form="assistant_turn", **knobs).request(ask(), "<think>no</think>5")
    assert request.messages == [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": text},
    ]


def test_a_single_attempt_is_shown_as_with_attempts_1():
    assert builder(attempts=4).build(ask(), "5") == builder().build(ask(), "5")


@pytest.mark.parametrize(
    ("template", "form", "standalone"), itertools.product(("math", "code"), ("message",), (True, False))
)
def test_hidden_texts_say_nothing_of_the_verdict(template, form, standalone):
    told = {"wrong", "incorrect", "correct", "failed", "error", "mistake", "mistakes", "passed", "verified"}
    for form, attempts in (("message", 1), ("message", 2), ("assistant_turn", 1)):
        prompt = builder(template=template, form=form, standalone=standalone, attempts=attempts)
        request, _ = prompt.request(ask("?"), "5", Others(("6",), (1, 0)))
        text = request.messages[-1]["content"]
        assert not set(re.findall(r"[a-z]+", text.lower())) & told
        assert "may or may not be right" in text


def test_in_a_validation_nothing_is_told_and_one_attempt_is_shown():
    for knobs in ({"verdict": "told", "attempts": 3}, {"verdict": "told", "form": "assistant_turn"}, {"attempts": 2}):
        shown, _ = builder(**knobs).in_validation.request(ask(), "5", Others(("6", "7"), (1, 0, 2)))
        plain = {name: value for name, value in knobs.items() if name == "form"}
        assert shown == builder(**plain).request(ask(), "5")[0]
    standalone, _ = builder(standalone=True).in_validation.build(ask(), "5")
    assert "stand on its own" in standalone[0]["content"]


# ---- a template of one's own


def test_several_attempts_stand_in_blocks_where_the_template_has_the_attempt():
    own = "Tries:\n{attempt}\nat {question}"
    request, _ = builder(template=own, attempts=3).request(ask(), "5", Others(("6", "{question}"), (1, 0, 2)))
    blocks = "\n".join(f"<attempt>\n{text}\n</attempt>" for text in ("6", "5", "{question}"))
    assert request.messages[0]["content"] == f"Tries:\n{blocks}\nat What is 2+2?"
    alone, _ = builder(template=own, attempts=3).request(ask(), "5")
    assert alone.messages[0]["content"] == "Tries:\n5\nat What is 2+2?"


@pytest.mark.parametrize("knobs", [{"verdict": "told"}, {"standalone": True}])
@pytest.mark.parametrize("form", ["message", "assistant_turn"])
def test_what_chooses_among_built_in_texts_is_refused_with_ones_own(knobs, form):
    own = "Again:\n" if form == "assistant_turn" else "{question}{attempt}"
    ((name, value),) = knobs.items()
    for use in (with_text, lambda config: builder(**vars(config))):
        with pytest.raises(CIPOConfigError) as refused:
            use(PromptConfig(template=own, form=form, **knobs))
        assert f"algorithm.cipo.prompt.{name} = {value!r} with algorithm.cipo.prompt.template = " in str(refused.value)
        assert "use math or code" in str(refused.value)


def test_ones_own_review_is_the_last_message(tmp_path):
    (tmp_path / "mine.txt").write_text("Look again.\n\n")
    given = with_text(PromptConfig(template=str(tmp_path / "mine.txt"), form="assistant_turn"))
    (tmp_path / "mine.txt").unlink()
    assert with_text(given) == given, "who gets the text opens no file"
    for template in (given.template, "Look again.\n"):
        messages, _ = builder(template=template, form="assistant_turn").build(ask(), "5")
        assert [message["content"] for message in messages] == ["What is 2+2?", "5", "Look again."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Look at {attempt} again.\n", "{question} 0 times and {attempt} 1 times"),
        ("{question}", "{question} 1 times and {attempt} 0 times"),
        (" \n", "is empty"),
        ("Look again.", "No such file"),
    ],
)
def test_a_review_that_cannot_be_used(text, said):
    with pytest.raises(CIPOConfigError) as refused:
        load_template(text, review=True)
    for part in ("algorithm.cipo.prompt.template", said, "neither {question} nor {attempt}", "line break"):
        assert part in str(refused.value)


def test_a_message_needs_its_placeholders_as_before():
    with pytest.raises(CIPOConfigError, match="once each"):
        with_text(PromptConfig(template="Look again.\n"))
