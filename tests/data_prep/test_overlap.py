"""Equal questions, and runs of words shared with evaluation questions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common import overlap
from data_prep.common.overlap import EvaluationSets, read_questions, text_key, words
from data_prep.common.rows import PrepError

WORDS = st.lists(st.sampled_from("alpha beta gamma delta eps zeta".split()), min_size=1, max_size=12)


def test_texts_are_equal_up_to_white_space_case_and_unicode_form():
    assert text_key("What  is\nX?") == text_key("what is x?") == text_key("\uff37hat is x?")
    assert text_key("3 + 4") != text_key("3 - 4")
    assert text_key("1 11") != text_key("11 1")


def test_words_are_runs_of_letters_and_digits():
    assert words("Find $\\frac{a}{12}$, Ann's \u00c4pfel!") == ["find", "frac", "a", "12", "ann", "s", "\u00e4pfel"]


def test_a_run_of_n_words_is_an_overlap_and_one_of_fewer_is_not():
    sets = EvaluationSets(["a b c d e f"], n=4)
    assert sets.overlap("x B, c. D e! y")
    assert not sets.overlap("x b c d y d e f")


def test_short_questions_are_met_by_equal_ones_alone():
    sets = EvaluationSets(["What is 3 + 4?"], n=13)
    assert sets.overlap("what  is 3 + 4?")
    assert not sets.overlap("What is 3 - 4?")
    assert not sets.overlap("Tell me: What is 3 + 4?")


def test_a_run_that_many_evaluation_questions_share_does_not_count(monkeypatch):
    monkeypatch.setattr(overlap, "STOCK_PHRASE", 3)
    stock = "where m and n are prime"
    shared_by_two = EvaluationSets([f"q{i} {stock}" for i in range(2)], n=6)
    shared_by_three = EvaluationSets([f"q{i} {stock}" for i in range(3)], n=6)
    repeated = EvaluationSets([f"q0 {stock}"] * 3, n=6)
    within = EvaluationSets([f"q0 {stock}; q1 {stock}; q2 {stock}"], n=6)
    assert shared_by_two.overlap(f"other {stock}")
    assert not shared_by_three.overlap(f"other {stock}")
    assert shared_by_three.overlap(f"q1 {stock}")
    assert repeated.overlap(f"other {stock}"), "one question in three files is one question"
    assert within.overlap(f"other {stock}"), "and so is one that says it three times"


@given(WORDS, WORDS, WORDS, st.integers(1, 5))
@settings(deadline=None)
def test_overlap_is_what_a_search_for_each_run_finds(first, second, asked, n):
    def runs(text):
        return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}

    expected = bool((runs(first) | runs(second)) & runs(asked)) or any(
        len(text) < n and text == asked for text in (first, second)
    )
    questions = [" ".join(text) for text in (first, second)]
    assert EvaluationSets(questions, n).overlap(" ".join(asked)) == expected


def test_questions_are_found_in_raw_files_and_in_converted_ones(tmp_path, write):
    raw = write(tmp_path / "a.jsonl", [{"problem": "One?"}, {"Problem": "Two?"}, {"question_content": "Three?"}])
    made = write(tmp_path / "b.parquet", [{"prompt": [{"content": "x"}], "extra_info": {"question": "Four?"}}])
    assert read_questions([raw, made]) == ["One?", "Two?", "Three?", "Four?"]


def test_files_without_questions_are_named(tmp_path, write):
    with pytest.raises(PrepError, match="--decontaminate .*none.jsonl: expected a file ending in"):
        read_questions([tmp_path / "none.jsonl"])
    bad = write(tmp_path / "a.jsonl", [{"text": "One?"}])
    with pytest.raises(PrepError, match="a.jsonl:1: field question or problem or .*: missing or null"):
        read_questions([bad])
