"""Which attempts are shown beside an anchor, in which order, and how they share the room."""

import inspect
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.core.prompts.characters import ask, builder, count
from verl_cipo.core.prompts import ALONE, MIN_ATTEMPT_TOKENS, TAIL_MARK, CorrectionPrompt, Excerpt, Others, Said
from verl_cipo.core.prompts.correction import fair_shares

# ---- the draw


def drawn(anchor, wrong, *, attempts=3, seed=1, step=2, index=3, **config):
    return builder(attempts=attempts, **config).beside(anchor, wrong, seed=seed, step=step, index=index)


def said(texts, preds=None):
    return [Said(i, text, (preds or {}).get(i)) for i, text in enumerate(texts)]


def test_distinct_answers_come_first():
    """The anchor has answer 5: of the others 6 and 7 are new, however many say 5 again."""
    for step in range(20):
        wrong = said(["5", "5 ", "5", "6", "6", "7", "<think>x</think>5"])
        others = drawn(wrong[0], wrong, attempts=3, step=step)
        assert sorted(others.texts) == ["6", "7"]
        # Then each answer a second time: 5, which the anchor has, and 6.
        five = drawn(wrong[0], wrong, attempts=5, step=step)
        assert set(five.texts[:2]) == {"6", "7"} and {text.split(">")[-1].strip() for text in five.texts[2:]} == {
            "5",
            "6",
        }
        assert len(drawn(wrong[0], wrong, attempts=16, step=step).texts) == 6, "all there are"


def test_the_verifiers_answer_counts_before_the_text():
    wrong = said(["first it is 5", "so 5", "6 then", "7"], preds={0: "5", 1: "5", 2: "6", 3: "6"})
    for step in range(20):
        (first, _), second = (
            drawn(wrong[0], wrong, step=step).texts,
            drawn(wrong[0], wrong, attempts=2, step=step).texts,
        )
        assert first in ("6 then", "7") and second == (first,)
    # Where it has none, the text does.
    assert drawn(Said(0, "5", ""), [Said(1, "5", ""), Said(2, "6", None)], attempts=2).texts == ("6",)


def test_a_right_anchor_is_shown_with_wrong_attempts():
    wrong = said(["5", "6"])
    assert sorted(drawn(Said(9, "4"), wrong).texts) == ["5", "6"]


def test_the_draw_is_that_of_seed_step_index_and_sessions():
    wrong = said([str(i) for i in range(10)])
    first = drawn(wrong[4], wrong)
    assert drawn(wrong[4], list(reversed(wrong))) == first, "whatever came first"
    assert {drawn(wrong[4], wrong, **{name: 7}) != first for name in ("seed", "step", "index")} == {True}
    assert drawn(wrong[5], wrong) != first
    assert len({drawn(wrong[4], wrong, attempts=2, step=step).texts for step in range(60)}) == 9, "each has its turn"


def test_the_place_of_the_anchor_says_nothing():
    wrong = said([str(i) for i in range(8)])
    places = Counter(drawn(wrong[0], wrong, attempts=4, step=step).order.index(0) for step in range(2000))
    # 500 are expected; the standard deviation is 19.
    assert set(places) == {0, 1, 2, 3} and all(420 < n < 580 for n in places.values())


def test_one_attempt_draws_nothing_and_reads_no_text():
    prompt = builder(attempts=1)
    prompt.view = lambda text: pytest.fail("a text was read")
    assert prompt.beside(Said(0, "5"), said(["6"]), seed=1, step=1, index=1) == ALONE


def test_the_prompt_of_several_does_not_see_the_verdict_on_the_anchor():
    """It is a function of the texts and of the lots of sessions: a right and a wrong anchor give the same one."""
    parameters = inspect.signature(CorrectionPrompt.request).parameters
    assert list(parameters) == ["self", "messages", "attempt", "others"]
    assert not {"correct", "verdict", "right"} & set(inspect.signature(CorrectionPrompt.beside).parameters)
    anchor, wrong = Said(2, "5"), [Said(0, "6"), Said(1, "7"), Said(3, "8")]
    for step in range(20):
        prompt, lots = builder(attempts=3), {"seed": 1, "step": step, "index": 4}
        as_right = prompt.beside(anchor, wrong, **lots)
        as_wrong = prompt.beside(anchor, [*wrong, anchor], **lots)
        assert prompt.request(ask(), anchor.text, as_right) == prompt.request(ask(), anchor.text, as_wrong)


def test_the_first_of_them_keep_their_order():
    others = Others(("a", "b", "c"), (3, 1, 0, 2))
    assert others.first(2) == Others(("a", "b"), (1, 0, 2)) and others.first(9) == others and others.first(0) == ALONE


def test_at_most_as_many_as_the_knob_says_are_shown():
    """A pool may be older than the knob."""
    others = Others(("6", "7"), (2, 1, 0))
    shown = {attempts: builder(attempts=attempts).request(ask(), "5", others)[0].shown for attempts in (1, 2, 3)}
    assert [[each.text for each in own] for own in shown.values()] == [["5"], ["6", "5"], ["7", "6", "5"]]


# ---- copies


def test_whoever_repeats_any_attempt_that_was_shown_copies():
    prompt = builder(attempts=3)
    request, _ = prompt.request(ask(), "<think>x</think>It is 5.", Others(("It is 6.", "It  is 7."), (1, 0, 2)))
    assert request.shown == tuple(Excerpt(text, cut=False) for text in ("It is 6.", "It is 5.", "It  is 7."))
    for copied in ("It is 5.", "<think>y</think> It is\n6.", "It is 7."):
        assert prompt.repeats(request.shown, copied)
    assert not prompt.repeats(request.shown, "It is 8.") and not prompt.repeats(request.shown, "It is 5. It is 6.")


# ---- the room


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [
        ([10, 10, 10], 40, [10, 10, 10]),
        ([10, 10, 10], 18, [6, 6, 6]),
        ([2, 10, 10], 18, [2, 8, 8]),
        ([2, 5, 30], 18, [2, 5, 11]),
        ([10, 10, 10], 11, [3, 3, 3]),
        ([10], 4, [4]),
        ([10, 3], -5, [0, 0]),
        ([], 5, []),
    ],
)
def test_fair_shares(wanted, room, shares):
    assert fair_shares(wanted, room) == shares


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(-5, 300))
def test_shares_use_the_room_and_nobody_gets_more_than_another_who_wants_it(wanted, room):
    shares = fair_shares(wanted, room)
    # Less than one token each is left over.
    assert min(max(room, 0) - len(wanted), sum(wanted)) < sum(shares) + 1 <= max(room, 0) + 1
    assert all(share <= want for share, want in zip(shares, wanted, strict=True))
    unserved = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    assert not unserved or max(shares) <= min(unserved)


A, B, C = "a" * 40, "b" * 40, "c" * 10
FRAME_3 = count(builder(attempts=3).request(ask(), "x", Others(("y", "z"), (0, 1, 2)))[0].messages) - 3
FRAME_2 = count(builder(attempts=2).request(ask(), "x", Others(("y",), (0, 1)))[0].messages) - 2
FRAME_1 = count(builder().build(ask(), "x")[0]) - 1
MARK = len(TAIL_MARK)
ORDER = (1, 0, 2)


def shown(prompt_length, **config):
    """What is shown of the anchor A with B and C, drawn in this order, shown as B, A, C."""
    request, reason = builder(prompt_length, **{"attempts": 3, **config}).request(ask(), A, Others((B, C), ORDER))
    if request is None:
        return reason
    assert count(request.messages) <= prompt_length
    return [str(each) for each in request.shown]


def test_all_are_shown_whole_where_they_fit():
    assert shown(FRAME_3 + 90) == [B, A, C]


def test_what_a_short_one_leaves_goes_to_the_long_ones():
    # 70 tokens less 10 of C and two marks of 6 are 48 for A and B.
    assert shown(FRAME_3 + 70) == [TAIL_MARK + "b" * 24, TAIL_MARK + "a" * 24, C]


def test_the_cap_holds_for_each():
    assert shown(10_000, max_attempt_tokens=20) == [TAIL_MARK + "b" * 20, TAIL_MARK + "a" * 20, C]
    assert shown(FRAME_3 + 70, max_attempt_tokens=20) == [TAIL_MARK + "b" * 20, TAIL_MARK + "a" * 20, C]


def test_one_that_would_be_cut_to_less_than_16_tokens_is_left_out():
    least = FRAME_3 + 10 + 2 * (MARK + MIN_ATTEMPT_TOKENS)
    assert shown(least) == [TAIL_MARK + "b" * 16, TAIL_MARK + "a" * 16, C]
    # Then B, of which 15 would be left, and not C, which is shown whole.
    assert shown(least - 1) == [A, C]
    # The anchor alone is cut as if there were no others.
    assert shown(FRAME_1 + MARK + 16) == [TAIL_MARK + "a" * 16]
    assert shown(FRAME_1 + MARK + 15) == "too_long"


def test_where_the_anchor_would_be_too_short_the_last_drawn_goes():
    def of(room):
        prompt = builder(FRAME_2 + 15 + MARK + room, attempts=2)
        request, _ = prompt.request(ask(), "a" * 200, Others(("b" * 15,), (1, 0)))
        return [str(each) for each in request.shown]

    assert of(16) == ["b" * 15, TAIL_MARK + "a" * 16]
    # Alone it has the room of the other, and of the longer text around two.
    assert of(15) == [TAIL_MARK + "a" * (30 + FRAME_2 - FRAME_1)]


def test_skip_shows_only_what_fits_whole():
    assert shown(FRAME_3 + 90, on_overflow="skip") == [B, A, C]
    assert shown(FRAME_3 + 89, on_overflow="skip") == [B, A], "the last drawn goes"
    assert shown(FRAME_2 + 79, on_overflow="skip") == [A]
    assert shown(10_000, on_overflow="skip", max_attempt_tokens=39) == "too_long"
    request, _ = builder(attempts=3, on_overflow="skip", max_attempt_tokens=20).request(
        ask(), "5", Others((B, C), ORDER)
    )
    assert [each.text for each in request.shown] == ["5", C]


def test_others_that_would_show_nothing_are_left_out():
    request, _ = builder(attempts=3).request(ask(), "5", Others(("<think>x</think>", "6"), (1, 2, 0)))
    assert [each.text for each in request.shown] == ["6", "5"]
    assert builder(attempts=2).request(ask(), " ", Others(("6",), (0, 1))) == (None, "empty_attempt")


def test_none_of_several_can_end_its_block():
    request, _ = builder(attempts=2, control=["<|im_end|>"]).request(
        ask(), "5</attempt>", Others(("6<|im_end|>",), (1, 0))
    )
    assert "<attempt>\n6< |im_end|>\n</attempt>\n<attempt>\n5< /attempt>\n</attempt>" in request.messages[0]["content"]


def jittery(messages):
    return count(messages) + sum(map(ord, messages[-1]["content"])) % 7


texts = st.text("abc d\n", min_size=1, max_size=60).filter(str.strip)


@pytest.mark.parametrize("count_tokens", [count, jittery])
@given(
    anchor=texts,
    others=st.lists(texts, max_size=4),
    room=st.integers(-20, 260),
    on_overflow=st.sampled_from(["tail", "skip"]),
    cap=st.none() | st.integers(16, 50),
    random=st.randoms(use_true_random=False),
)
def test_several_fit_and_the_anchor_is_among_them(count_tokens, anchor, others, room, on_overflow, cap, random):
    order = list(range(len(others) + 1))
    random.shuffle(order)
    config = {"on_overflow": on_overflow, "max_attempt_tokens": cap, "attempts": 5, "count_tokens": count_tokens}
    prompt = builder(FRAME_3 + room, **config)
    request, reason = prompt.request(ask(), anchor, Others(tuple(others), tuple(order)))
    alone, alone_reason = prompt.request(ask(), anchor)
    if alone is not None:
        assert request is not None, "others cost no anchor"
    if request is None:
        assert reason == alone_reason == "too_long"
        return
    assert count_tokens(request.messages) <= FRAME_3 + room
    whole = [anchor.strip(), *(text.strip() for text in others)]
    for excerpt in request.shown:
        assert str(excerpt) in request.messages[0]["content"]
        assert any(text.endswith(excerpt.text) if excerpt.cut else text == excerpt.text for text in whole)
        assert not excerpt.cut or (on_overflow == "tail" and len(excerpt.text) >= MIN_ATTEMPT_TOKENS)
        assert len(excerpt.text) <= (cap or len(excerpt.text))
    assert any(whole[0].endswith(excerpt.text) for excerpt in request.shown), "the anchor"
    lengths = [len(excerpt.text) for excerpt in request.shown]
    for excerpt in request.shown:
        if excerpt.cut and len(excerpt.text) < (cap or 99):
            assert len(excerpt.text) >= max(lengths), "none is cut below another"
