"""Which attempt has which context, what it is asked, and its advantage, by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.advantage import Rows, group_relative, nudged_relative, two_stream_advantage
from verl_cipo.core.config import NudgeConfig
from verl_cipo.core.nudge import drawn_contexts, listed, nudged
from verl_cipo.core.rows import PLAIN, Mark, RowTable

# ---- what a row lists


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"hints": ["a", "b"]}, ["a", "b"]),
        ({"extra_info": {"hints": ["a"]}}, ["a"]),
        ({"hints": ["a"], "extra_info": {"hints": ["b"]}}, ["a"]),
        ({"hints": np.array(["a", "b"], dtype=object)}, ["a", "b"]),
        ({"hints": []}, []),
        ({"hints": None}, []),
        ({"extra_info": {}}, []),
        ({"extra_info": None}, []),
        ({}, []),
    ],
)
def test_contexts_are_a_column_or_in_extra_info(row, expected):
    assert listed(row, "hints") == expected


@pytest.mark.parametrize("bad", ["a", 3, [3], ["a", ""], [["a"]], {"a": 1}])
def test_what_is_no_list_of_texts(bad):
    with pytest.raises(ValueError, match=r"algorithm\.cipo\.nudge\.contexts=hints: a row holds .*a list of texts"):
        listed({"hints": bad}, "hints")


# ---- what is asked


def test_the_context_is_in_the_last_message_of_the_user():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello {context}"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "1+1? {context}", "name": "x"},
    ]
    asked = nudged(chat, "count {question}", NudgeConfig(template="{context}: {question}"))
    assert asked == [*chat[:3], {"role": "user", "content": "count {question}: 1+1? {context}", "name": "x"}]
    assert chat[3]["content"] == "1+1? {context}", "the prompt stays"


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "system", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": "1+1?"}],
    ],
)
def test_only_text_takes_a_context(chat):
    assert nudged(chat, "count", NudgeConfig()) is None


# ---- who has which


def test_attempts_are_spread_evenly_and_the_order_is_drawn():
    draw = {"plain_share": 0.0, "seed": 1, "step": 3}
    for contexts, sessions, sizes in ((2, 8, [4, 4]), (3, 8, [2, 3, 3]), (8, 4, [1, 1, 1, 1]), (1, 3, [3])):
        found = drawn_contexts(contexts, sessions, index=0, **draw)
        assert sorted(Counter(found).values()) == sizes and set(found) <= set(range(contexts))
    assert len({tuple(drawn_contexts(8, 2, index=i, **draw)) for i in range(20)}) > 10


def test_each_goes_to_the_plain_prompt_by_itself():
    draws = [
        drawn_contexts(2, 8, plain_share=0.25, seed=1, step=step, index=index)
        for step in range(20)
        for index in range(20)
    ]
    plain = np.array(draws) == PLAIN
    assert plain.mean() == pytest.approx(0.25, abs=0.03)
    # By itself: as often as a binomial says no attempt of a prompt is plain, .75^8 = .1.
    assert (plain.sum(axis=1) == 0).mean() == pytest.approx(0.1, abs=0.05)
    assert drawn_contexts(2, 8, plain_share=1.0, seed=1, step=1, index=0) == [PLAIN] * 8
    assert drawn_contexts(0, 8, plain_share=0.0, seed=1, step=1, index=0) == [PLAIN] * 8


def test_the_draw_is_that_of_seed_step_and_index_in_every_version():
    """A run that is resumed with another version goes on with the same attempts."""
    draw = {"plain_share": 0.5, "seed": 1, "step": 1, "index": 0}
    assert drawn_contexts(2, 8, **draw) == DRAWN
    assert drawn_contexts(2, 12, **draw)[:8] == DRAWN, "what an attempt has does not depend on how many follow"
    for other in ({"seed": 2}, {"step": 2}, {"index": 7}):
        assert drawn_contexts(2, 8, **{**draw, **other}) != DRAWN


def test_corrections_of_an_anchor_are_drawn_by_themselves():
    draw = {"plain_share": 0.5, "seed": 1, "step": 1, "index": 0}
    assert drawn_contexts(2, 8, anchor=0, **draw) == DRAWN_FOR_ANCHOR_0
    draws = [drawn_contexts(2, 8, anchor=anchor, **draw) for anchor in range(8)]
    assert len({tuple(one) for one in (*draws, DRAWN)}) == 9


DRAWN = [PLAIN, 1, 0, 1, PLAIN, PLAIN, PLAIN, 1]
DRAWN_FOR_ANCHOR_0 = [PLAIN, PLAIN, PLAIN, 1, PLAIN, 1, 0, PLAIN]

# ---- the advantage

SCORES, CONTEXT = torch.tensor([1.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, PLAIN])
GROUP = ["a"] * 4
# mean .5, of context 0 .5, of 1 it is 1: .5, -.5, 1.1 * .5 = .55, and -.5 at the plain prompt; their mean is .0125.
CENTRED = [0.4875, -0.5125, 0.5375, -0.5125]
# Their squares add up to 1.051875, over 3: a std of .592136.
NORMED = [0.823290, -0.865510, 0.907731, -0.865510]


def test_the_advantage_by_hand():
    how = {"between": 1.1, "norm_by_std": False}
    assert nudged_relative(SCORES, GROUP, CONTEXT, **how).tolist() == pytest.approx(CENTRED)
    how["norm_by_std"] = True
    found = nudged_relative(SCORES, GROUP, CONTEXT, **how)
    assert found.tolist() == pytest.approx(NORMED, rel=1e-4) and found.dtype == torch.float32
    assert nudged_relative(SCORES.double(), GROUP, CONTEXT, **how).dtype == torch.float64
    wide = nudged_relative(SCORES, GROUP, CONTEXT, nudged_epsilon=1.0, **how)
    assert wide.tolist() == pytest.approx([value / 1.592136 for value in CENTRED], rel=1e-5)


def test_between_0_compares_within_a_context_alone():
    found = nudged_relative(SCORES, GROUP, CONTEXT, between=0.0, norm_by_std=False)
    # .5, -.5, 0 and -.5; their mean is -.125.
    assert found.tolist() == pytest.approx([0.625, -0.375, 0.125, -0.375])


@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=9),
    contexts=st.lists(st.integers(-1, 3), min_size=9, max_size=9),
)
def test_between_1_is_grpo(scores, contexts):
    values, context = torch.tensor(scores), np.array(contexts[: len(scores)])
    for norm in (True, False):
        ours = nudged_relative(values, ["a"] * len(scores), context, between=1.0, norm_by_std=norm)
        torch.testing.assert_close(
            ours, group_relative(values, ["a"] * len(scores), norm_by_std=norm), rtol=1e-3, atol=1e-5
        )


@given(
    scores=st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=12),
    norm_by_std=st.booleans(),
    seed=st.integers(0, 99),
)
def test_groups_without_a_context_are_grpos_bit_for_bit(scores, norm_by_std, seed):
    rng = np.random.default_rng(seed)
    group, values = rng.choice(["a", "b", "c"], len(scores)), torch.tensor(scores)
    # Those of c have contexts.
    context = np.where(group == "c", rng.integers(0, 2, len(scores)), PLAIN)
    ours = nudged_relative(values, group, context, between=1.1, norm_by_std=norm_by_std)
    plain = torch.from_numpy(group != "c")
    assert torch.equal(ours[plain], group_relative(values, group, norm_by_std=norm_by_std)[plain])


@given(seed=st.integers(0, 99), score=st.floats(-5, 5, width=32))
def test_equal_scores_have_none_and_the_order_does_not_matter(seed, score):
    rng = np.random.default_rng(seed)
    context = rng.integers(-1, 3, 7)
    context[0] = 0
    same = nudged_relative(torch.full((7,), score), ["a"] * 7, context, between=1.1, norm_by_std=True)
    assert not same.any()
    scores, order = torch.from_numpy(rng.random(7)), rng.permutation(7)
    how = {"between": 1.1, "norm_by_std": True}
    one = nudged_relative(scores, ["a"] * 7, context, **how)
    other = nudged_relative(scores[torch.from_numpy(order)], ["a"] * 7, context[order], **how)
    torch.testing.assert_close(one[torch.from_numpy(order)], other)


def test_an_attempt_alone_is_as_in_grpo():
    alone = nudged_relative(torch.tensor([0.5]), ["a"], np.array([2]), between=1.1, norm_by_std=True)
    assert torch.equal(alone, group_relative(torch.tensor([0.5]), ["a"], norm_by_std=True))


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"context \(3,\) and 4 scores"):
        nudged_relative(SCORES, GROUP, CONTEXT[:3], between=1.1, norm_by_std=True)


def test_in_a_batch_corrections_without_contexts_stay_as_they_are():
    """Four attempts, of which one is a further one at the plain prompt, a correction group, padding."""
    stream = np.array([0, 0, 0, 0, 1, 1, 2], np.int8)
    rows = Rows(
        stream=stream,
        group=np.array(["a"] * 4 + ["a_c1"] * 2 + ["pad"], dtype=object),
        session=np.array([f"s{i}" for i in range(7)], dtype=object),
        final=np.ones(7, bool),
        correct=np.zeros(7, bool),
        anchor_correct=np.zeros(7, bool),
        context=np.array([*CONTEXT, PLAIN, PLAIN, PLAIN]),
    )
    rewards = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0], [0.0], [0.0]])
    how = {"lambda_corr": 1.0, "lambda_risk": 1.0, "norm_by_std": False, "loss_agg_mode": "token-sum"}
    found = two_stream_advantage(rewards, torch.ones(7, 1), rows, between=1.1, **how)
    # Two correction tokens against four of attempts: a factor of 2.
    assert found[:, 0].tolist() == pytest.approx([*CENTRED, 1.0, -1.0, 0.0])
    plain = two_stream_advantage(rewards, torch.ones(7, 1), rows.take(np.arange(7)), between=1.0, **how)
    assert plain[:, 0].tolist() == pytest.approx([0.5, -0.5, 0.5, -0.5, 1.0, -1.0, 0.0])


# ---- rows

CHAT = [{"role": "user", "content": "a?"}]


def test_a_table_knows_contexts_and_plain_questions():
    marks = {
        "a_0_0": Mark(correct=True, context=1, question=CHAT),
        "a_1_0": Mark(correct=False),
        "b_0_0": Mark(correct=True, context=0, question=CHAT),
        "a_c0_0_0": Mark(correct=True, anchor_correct=True),
        "b_c0_0_0": Mark(correct=True, anchor_correct=True, context=1),
    }
    table = RowTable.of_marks(
        list(marks),
        [Mark.from_mapping(mark.to_mapping()) for mark in marks.values()],
        index=[0, 0, 1, 0, 1],
        scores=np.zeros(5),
        tokens=np.ones(5, dtype=np.int64),
    )
    assert table.rows.context.tolist() == [1, PLAIN, 0, PLAIN, 1]
    assert table.plain_questions() == {"a_0_0": CHAT, "b_0_0": CHAT}, "a correction is trained as it was asked"
    assert [table.plain_prompt(i) for i in (0, 3)] == [("a_1_0", [])] * 2, "that of an attempt without a context"
    assert [table.plain_prompt(i) for i in (2, 4)] == [(None, CHAT)] * 2, "no attempt of b was asked it"
    assert table.in_order(["a_0_0", "x"], padding=np.array([False, True])).context.tolist() == [1, PLAIN]
    assert RowTable.joined([table, table]).rows.context.tolist() == [1, PLAIN, 0, PLAIN, 1] * 2
