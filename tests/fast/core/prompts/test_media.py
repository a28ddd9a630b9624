"""Questions of parts: text and media. Correction prompts keep all media of a chat, once, in their order."""

import pytest

from verl_cipo.core.config import PromptConfig
from verl_cipo.core.contents import is_content, media_of, with_media, without_media
from verl_cipo.core.prompts import ADJACENT_TEMPLATE, TEMPLATES, CorrectionPrompt, Others
from verl_cipo.core.prompts.templates import fill_content

CAT, DOG, FILM = {"type": "image", "image": "cat.png"}, {"type": "image", "image": "dog.png"}, {"type": "video"}
HEAD, TAIL = TEMPLATES["math"].replace("{question}", "").split("{attempt}")


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def builder(prompt_length=10_000, **knobs):
    """A character is a token, an image is ten."""

    def count(messages):
        contents = [message["content"] for message in messages]
        return 10 * len(media_of(messages)) + sum(
            len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content)
            for content in contents
        )

    return CorrectionPrompt(
        PromptConfig(**{"standalone": False, **knobs}),
        prompt_length=prompt_length,
        count_tokens=count,
        encode=list,
        decode="".join,
    )


@pytest.mark.parametrize(
    "parts", [[CAT, text("What is it?")], [text("Is "), CAT, text(" a cat?")], [text("Look: "), FILM], [CAT]]
)
def test_media_stand_where_they_stood_and_the_template_goes_around(parts):
    asked = user(*parts)
    messages, reason = builder().build([{"role": "system", "content": "Be brief."}, asked], "5")
    assert reason is None and messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1] == user(*parts, text(f"{HEAD}5{TAIL}"))
    messages[1]["content"][0]["type"] = "changed"
    assert asked == user(*parts)


def test_what_a_template_says_before_the_question_is_text_before_its_parts():
    template = "Look again.\n{question}\nYou said: {attempt} {not_a_name}"
    (message,), _ = builder(template=template).build([user(CAT, text("What?"))], "a {question}")
    assert message == user(text("Look again.\n"), CAT, text("What?"), text("\nYou said: a {question} {not_a_name}"))
    assert fill_content("{question}", question=[CAT]) == [CAT] and fill_content("{a}", a="b") == "b"


def test_several_attempts_are_shown_beneath_one_question():
    request, _ = builder(attempts=2).request([user(CAT, text("What?"))], "5", Others(("6",), (1, 0)))
    first, question, rest = request.messages[0]["content"]
    assert (first, question) == (CAT, text("What?"))
    assert rest["text"].index("<attempt>\n6\n</attempt>") < rest["text"].index("<attempt>\n5\n</attempt>")


def test_the_assistants_own_turn_is_in_parts_where_the_question_is():
    chat = [user(CAT, text("What?"))]
    messages, _ = builder(form="assistant_turn").build(chat, "A dog.")
    assert messages[0] == chat[0] and messages[1] == {"role": "assistant", "content": [text("A dog.")]}
    assert messages[2]["role"] == "user" and messages[2]["content"][0]["text"].startswith("Your answer may or may not")
    assert len(messages[2]["content"]) == 1


def test_where_the_question_is_kept_its_media_are_not_repeated():
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]}
    chat = [user(CAT, text("What?")), called, {"role": "tool", "content": "a dog"}]
    messages, _ = builder().build(chat, "5")
    assert messages[:3] == chat and messages[3] == user(text("What?"), text(f"{HEAD}5{TAIL}"))
    assert media_of(messages) == [CAT]


def test_the_budget_is_what_the_media_leave():
    frame = len(HEAD + TAIL) + len("What?")
    for shown in (1, 3):
        room = builder(frame + 10 * shown + 26)
        (message,), _ = room.build([user(*[CAT] * shown, text("What?"))], "x" * 90)
        assert message["content"][-1]["text"] == f"{HEAD}[...] {'x' * 20}{TAIL}"
    assert builder(frame + 31).build([user(CAT, text("What?"))], "x" * 90) == (None, "too_long")
    assert builder(frame + 31).refusals([user(CAT, text("What?"))], ["x" * 90]) == ["too_long"]


def test_the_adjacent_prompt_shows_the_media_of_both_problems():
    asked, other = [user(CAT, text("What?"))], [user(text("And "), DOG, text("?"))]
    (message,), reason = builder().build_adjacent(asked, "5", attempted=other)
    assert reason is None and media_of([message]) == [CAT, DOG]
    before, after = ADJACENT_TEMPLATE.replace("{question}", "").replace("{attempt}", "5").split("{example}")
    assert message == user(CAT, text("What?"), text(before), text("And "), DOG, text("?"), text(after))
    (message,), _ = builder().build_adjacent([{"role": "user", "content": "1+1?"}], "5", attempted=other)
    assert media_of([message]) == [DOG] and message["content"][0]["text"].startswith("1+1?\n")


def test_media_can_be_taken_out_and_put_back():
    chat = [user(CAT, text("a")), {"role": "assistant", "content": "b"}, user(text("c"), FILM | {"video": "f"}, DOG)]
    bare = without_media(chat)
    assert bare == [user({"type": "image"}, text("a")), chat[1], user(text("c"), FILM, {"type": "image"})]
    assert with_media(bare, media_of(chat)) == chat
    assert with_media(bare, media_of(chat)[:2]) is None and with_media(bare, [CAT, DOG, FILM]) is None
    assert without_media([*chat, {"role": "assistant", "content": None}]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", True),
        ([text("")], True),
        ([CAT], True),
        ([], False),
        (None, False),
        (["a"], False),
        ([{"text": "a"}], False),
    ],
)
def test_what_says_something(value, expected):
    assert is_content(value) is expected
