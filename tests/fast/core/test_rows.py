"""What is noted on rows, and tables of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.rows import APPENDED, BASE, CORRECTION, PADDING, Mark, RowTable


@given(
    st.builds(
        Mark,
        correct=st.booleans(),
        score=st.none() | st.floats(-1, 1),
        origin=st.text(),
        refusal=st.none() | st.text(),
        text=st.none() | st.text(),
        anchor=st.none() | st.integers(0, 9),
        anchor_correct=st.none() | st.booleans(),
        copied=st.booleans(),
        further=st.booleans(),
        prompt_right=st.none() | st.integers(0, 9),
        prompt_attempts=st.none() | st.integers(1, 9),
        prompt_score=st.none() | st.floats(-1, 1),
        prompt_spread=st.none() | st.floats(0, 1),
        question=st.none() | st.just([{"role": "user", "content": "Q?"}]),
    )
)
def test_a_mark_travels_as_a_plain_dict(mark):
    assert Mark.from_mapping(mark.to_mapping()) == mark
    assert Mark(correct=False, anchor=0, anchor_correct=False).to_mapping() == {
        "correct": False,
        "anchor": 0,
        "anchor_correct": False,
    }


def test_marks_of_older_checkpoints_are_read():
    """Rows that wait in TransferQueue are saved with the checkpoint of an asynchronous run."""
    assert Mark.from_mapping({"correct": True}) == Mark(correct=True)
    stored = {"anchor": 0, "anchor_correct": False, "copied": True, "correct": True, "score": 1.0}
    read = Mark.from_mapping(stored)
    assert read == Mark(correct=True, score=1.0, anchor=0, anchor_correct=False, copied=True)
    assert read.outcome is None


def table(rows, index=None):
    """rows: key -> (right, verdict on the anchor or None)."""
    return RowTable.of_marks(
        list(rows),
        [Mark(correct=right, anchor_correct=anchor) for right, anchor in rows.values()],
        index=index or [7] * len(rows),
        scores=np.array([float(right) for right, _ in rows.values()]),
        tokens=np.ones(len(rows), dtype=np.int64),
    )


FOUR = table({"a_0_0": (True, None), "a_1_0": (False, None), "a_c0_0_0": (True, True), "a_c0_1_0": (False, True)})


def test_further_attempts_are_rows_of_their_prompt():
    marks = [Mark(correct=True), Mark(correct=False, further=True), Mark(correct=True, anchor=0, anchor_correct=False)]
    keys = ["a_0_0", "a_4_0", "a_c0_0_0"]
    made = RowTable.of_marks(keys, marks, index=[7] * 3, scores=np.zeros(3), tokens=np.zeros(3))
    assert made.rows.stream.tolist() == [BASE, BASE, CORRECTION] and made.rows.further.tolist() == [False, True, False]
    (group,), key_of = made.attempts()
    assert [attempt.session for attempt in group.attempts] == [0, 4] and set(key_of.values()) == {"a_0_0", "a_4_0"}
    padded = made.in_order(["a_4_0", "pad", "a_0_0"], padding=np.array([False, True, False]))
    assert padded.further.tolist() == [True, False, False]
    order = made.stable_order(["a_c0_0_0", "a_4_0", "a_0_0"], seed=1, step=1)
    assert order == [2, 1, 0], "attempts, further attempts, corrections"


def test_only_the_last_output_of_a_session_is_final():
    rows = table(dict.fromkeys(["a_0_0", "a_0_1", "a_c1_0_0", "a_c1_0_1", "a_c1_0_2"], (True, None))).rows
    assert rows.session.tolist() == ["a_0", "a_0", "a_c1_0", "a_c1_0", "a_c1_0"]
    assert rows.group.tolist() == ["a", "a", "a_c1", "a_c1", "a_c1"]
    assert rows.final.tolist() == [False, True, False, False, True]


def test_rows_follow_the_order_of_the_batch_and_mark_padding():
    keys = ["pad1_0_0", "a_c0_1_0", "a_1_0", "pad1_1_0", "a_0_0", "a_c0_0_0"]
    rows = FOUR.in_order(keys, padding=np.array([key.startswith("pad") for key in keys]))
    assert rows.stream.tolist() == [PADDING, CORRECTION, BASE, PADDING, BASE, CORRECTION]
    assert rows.group.tolist() == ["padding", "a_c0", "a", "padding", "a", "a_c0"]
    assert rows.correct.tolist() == [False, False, False, False, True, True]
    assert rows.anchor_correct.tolist() == [False, True, False, False, False, True]
    two = table(dict.fromkeys(["a_0_0", "a_0_1"], (True, None))).in_order(
        ["pad", "a_0_1"], padding=np.array([1, 0]) > 0
    )
    assert two.final.all() and two.session.tolist() == ["pad", "a_0"]


def test_rows_of_a_foreign_batch_are_an_error():
    with pytest.raises(KeyError, match="b_0_0"):
        FOUR.in_order(["b_0_0"], padding=np.array([False]))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"lengths .*'tokens': 3.*: expected one"):
        RowTable.of_marks(["a_0_0"], [Mark(correct=True)], index=[0], scores=np.zeros(1), tokens=np.zeros(3))


def test_the_attempts_of_each_prompt_and_their_last_rows():
    rows = {"b_0_0": (True, None), "a_1_0": (False, None), "a_1_1": (True, None), "b_1_0": (False, None)}
    groups, key_of = table(rows | {"a_c1_0_0": (True, False)}).attempts()
    assert [(group.uid, [attempt.correct for attempt in group.attempts]) for group in groups] == [
        ("b", [True, False]),
        ("a", [True]),
    ]
    assert [key_of[attempt] for group in groups for attempt in group.attempts] == ["b_0_0", "b_1_0", "a_1_1"]


def test_a_right_correction_is_preferred_over_its_own_failed_attempt():
    rows = {
        "a_0_0": (True, None),
        "a_1_0": (False, None),
        "a_2_0": (False, None),
        "a_c1_10_0": (True, False),
        "a_c1_9_0": (True, False),
        "a_c1_9_1": (True, False),
        "a_c1_8_0": (False, False),
        "a_c0_0_0": (True, True),
        # The row of attempt 3 could not be stored.
        "a_c3_0_0": (True, False),
    }
    assert table(rows).right_corrections() == ["a_c1_10_0", "a_c1_9_1", "a_c3_0_0"]
    assert table(rows).preferences() == {"a_c1_9_1": "a_1_0"}, "the first by its number"


def test_the_plain_prompt_is_the_first_output_of_any_attempt():
    """An attempt of several outputs shows the earlier ones in the prompts of the later."""
    rows = {
        "a_0_1": (True, None),
        "a_0_0": (True, None),
        "a_2_0": (False, None),
        "b_0_0": (True, None),
        "a_c1_0_0": (True, False),
        "b_c0_0_0": (True, False),
    }
    whole = table(rows)
    assert [whole.plain_prompt(i) for i in (4, 5)] == [("a_0_0", []), ("b_0_0", [])]
    alone = {"b_1_1": (False, None), "b_c1_0_0": (True, False), "a_c1_0_0": (True, False)}
    assert [table(alone).plain_prompt(i) for i in (1, 2)] == [(None, [])] * 2, "a later output, and no attempt"
    assert table(rows, index=[1, 1, 1, 2, 1, 1]).plain_prompt(5) == (None, []), "b hosts a correction of another prompt"


def test_tables_are_joined():
    assert RowTable.joined([FOUR]) is FOUR
    both = RowTable.joined([FOUR, table({"b_0_0": (False, None)})])
    assert both.keys == [*FOUR.keys, "b_0_0"] and both.rows.correct.tolist() == [True, False, True, False, False]
    assert both.scores.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0] and both.index == [7] * 5 and both.origin == [""] * 5
    assert both.outcome == both.question == [None] * 5


def test_the_order_of_prompts_that_share_an_index_does_not_depend_on_uids():
    """Rows of two prompts are not mixed, either."""

    def ordered(first, second):
        keys = [f"{uid}_{session}_0" for session in (0, 1) for uid in (first, second)]
        source = {first: "a", second: "b"}
        marks = [Mark(correct=True, origin=source[key[0]]) for key in keys]
        nothing = np.zeros(4)
        whole = RowTable.of_marks(keys, marks, index=[7] * 4, scores=nothing, tokens=nothing)
        return [(source[keys[i][0]], keys[i][2]) for i in whole.stable_order(keys, seed=1, step=1)]

    assert ordered("x", "y") == ordered("y", "x") == [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")]


def test_appended_rows_keep_their_place_in_the_stable_order():
    rows = {"a_0_0": (True, None), "a_1_0": (False, None), "b_0_0": (False, None), "b_c0_0_0": (True, False)}
    whole = table(rows, index=[0, 0, 1, 1])
    keys = [*rows, "b_p0_0_0", "a_p0_0_0", "b_c0q_0_0"]
    ordered = [keys[i] for i in whole.stable_order(keys, seed=1, step=1)]
    assert ordered == [keys[::-1][i] for i in whole.stable_order(keys[::-1], seed=1, step=1)]
    assert [key[0] for key in ordered] in (list("aaabbbb"), list("bbbbaaa"))
    assert whole.streams(keys).tolist() == [BASE, BASE, BASE, CORRECTION, APPENDED, APPENDED, APPENDED]
