import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.transitions import (
    Transitions,
    attempt_record,
    correction_record,
    generations_table,
    is_copy,
    problem_of,
    retried,
    second_turn_metrics,
)


def test_counts_and_rates():
    # anchors c c c c w w; corrections c c c w c w: 3 stay of 4, 1 is mended of 2
    counts = Transitions.from_arrays(np.array([1, 1, 1, 1, 0, 0], bool), np.array([1, 1, 1, 0, 1, 0], bool))
    assert counts == Transitions(cc=3, cw=1, wc=1, ww=1)
    assert (counts.c2c, counts.w2c, counts.retention) == (0.75, 0.5, 0.75)
    assert counts.rates() == {"c2c": 0.75, "c2w": 0.25, "w2c": 0.5, "w2w": 0.5}


def test_a_rate_over_nothing_is_none_and_not_zero():
    assert Transitions(0, 0, 1, 3).rates() == {"w2c": 0.25, "w2w": 0.75}
    assert Transitions(0, 0, 1, 3).retention is None
    assert Transitions(0, 4, 0, 0).rates() == {"c2c": 0.0, "c2w": 1.0}
    assert Transitions.from_arrays([], []) == Transitions(0, 0, 0, 0)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        Transitions.from_arrays([True, False], [True])


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans())))
def test_every_correction_is_counted_once(pairs):
    counts = Transitions.from_arrays([a for a, _ in pairs], [c for _, c in pairs])
    assert counts.cc + counts.cw + counts.wc + counts.ww == len(pairs)
    assert counts.cc + counts.cw == sum(a for a, _ in pairs)
    assert counts.cc + counts.wc == sum(c for _, c in pairs)


def test_a_copy_is_equal_up_to_white_space():
    assert is_copy("x = 1\n\n  so 2", " x = 1 so\t2 ")
    assert not is_copy("x = 1", "x = 2")
    assert not is_copy("x = 1", "x = 1 and more")
    assert not is_copy("ab", "a b")


def test_what_was_cut_off_is_held_against_the_end_of_the_correction():
    assert is_copy("le 4 is the answer", "the whole 4 is the answer", cut=True)
    assert is_copy("le 4 is the answer", "le 4 is the answer", cut=True)
    assert not is_copy("le 4 is the answer", "the whole 4 is the answer")
    assert not is_copy("le 4 is the answer", "the whole 5 is the answer", cut=True)
    assert not is_copy("le 4 is the answer", "the hole, 4 is the answer", cut=True), "another first word"
    assert not is_copy("le 4 is the answer", "is the answer", cut=True)
    assert not is_copy("le 4 is the answer", "", cut=True)


def test_a_retry_is_judged_by_the_other_attempts():
    assert retried([0, 1, 3, 4], [2, 4, 4, 4]).tolist() == [0, 1 / 3, 1, 4 / 3]
    with pytest.raises(ValueError, match="1 attempts: what a further one brings takes at least 2"):
        retried([0, 1], [2, 1])


def attempted(question, session, text, *, correct, corrections=()):
    return attempt_record(
        {"uid": f"u{question}", "index": 17, "raw_prompt": [{"role": "user", "content": question}]},
        session=session,
        text=text,
        correct=correct,
        score=0.75 if correct else 0.0,
        corrections=list(corrections),
    )


def test_problems_are_told_apart_by_the_whole_chat_and_shown_by_their_question():
    """A prefilled answer comes last, and one instruction may end every chat; both with the answer of the others."""

    def records(*chats):
        row = {"reward_model": {"ground_truth": "A"}}
        return [
            attempt_record(
                {"uid": str(i), "raw_prompt": chat, **row}, session=i % 2, text="t", correct=i < 2, score=0.0,
                corrections=[] if i < 2 else [correction_record("t", correct=False, score=0.0, copied=False)],
            )
            for i, chat in enumerate(chat for chat in chats for _ in range(2))
        ]  # fmt: skip

    def user(text):
        return {"role": "user", "content": text}

    prefilled = [[user(text), {"role": "assistant", "content": "<think>"}] for text in ("easy", "hard")]
    found = records(*prefilled)
    assert [record["question"] for record in found] == ["easy", "easy", "hard", "hard"]
    assert second_turn_metrics(found, {})["cipo/val/retry"] == 0
    assert generations_table(found)["inputs"] == ["easy", "easy", "hard", "hard"]
    constant = [[user(text), {"role": "assistant", "content": "?"}, user("Answer.")] for text in ("easy", "hard")]
    assert second_turn_metrics(records(*constant), {})["cipo/val/retry"] == 0
    image = [[user([{"type": "image", "image": object()}]), user("Answer.")]]
    assert len({problem_of({**record, "uid": 0}) for record in records(*image, *image)}) == 1
    rows = [{"input": "easy", "gts": "A", "chat": extra} for extra in ("of a verifier", ["of", "a", "verifier"])]
    assert problem_of(rows[0]) == problem_of(rows[1]) == problem_of({"input": "easy", "gts": "A"})
    alone = records([user("easy")])[0]
    assert problem_of(alone) == problem_of({"input": "easy", "gts": "A"}), "as dumps of older versions have it"


def test_the_table_of_generations_has_corrections_beneath_their_attempts():
    better = correction_record("4", correct=True, score=0.5, copied=False)
    same = correction_record("5", correct=False, score=0.0, copied=True)
    records = [
        attempted("2 + 2", 1, "4", correct=True),
        attempted([{"type": "image", "image": object()}], 0, "a cat", correct=False),
        attempted("2 + 2", 0, "5", correct=False, corrections=[better, same]),
    ]
    assert generations_table(records) == {
        "inputs": ["2 + 2", "2 + 2", '[{"type": "image", "index": 17}]'],
        "outputs": [
            "5\n\n--- correction, wrong -> right, score 0.5:\n\n4\n\n--- correction, wrong -> wrong, score 0.0:\n\n5",
            "4\n\n--- right, not corrected",
            "a cat\n\n--- wrong, not corrected",
        ],
        "scores": [0.0, 0.75, 0.0],
    }
