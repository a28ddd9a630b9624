"""Equal questions, and evaluation questions that training questions repeat."""

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.common.overlap import EvaluationSets, Question, read_questions, text_key, words
from data_prep.common.rows import PrepError

WORDS = st.lists(st.sampled_from("alpha beta gamma delta eps zeta".split()), min_size=1, max_size=12)
STOCK = "can be written as $\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
CANDY = (
    "Jen enters a lottery by picking 4 distinct numbers from the set of the first ten whole numbers, and 4 numbers are "
    f"drawn. She wins a prize if at least two of hers are drawn. The chance of the grand prize {STOCK}"
)


def sets(*questions: str, n: int = 4, training: tuple[str, ...] = ()) -> EvaluationSets:
    """The evaluation questions, with the training questions counted."""
    made = EvaluationSets([Question(text, f"e:{number}") for number, text in enumerate(questions, start=1)], n)
    for text in training:
        made.count(text)
    return made


def test_texts_are_equal_up_to_white_space_case_and_unicode_form():
    assert text_key("What  is\nX?") == text_key("what is x?") == text_key("\uff37hat is x?")
    assert text_key("3 + 4") != text_key("3 - 4")
    assert text_key("1 11") != text_key("11 1")


def test_words_are_letters_digits_and_operators_without_diagrams_and_links():
    assert words("Find $\\frac{a}{12}$, Ann's \u00c4pfel!") == [
        "find",
        "frac",
        "a",
        "12",
        "ann",
        "s",
        "\u00e4pfel",
        "!",
    ]
    link = "https://artofproblemsolving.com/wiki/index.php/Square_(geometry)"
    assert words(f"A [square]({link}), ([see]({link})) (x) [y](z)") == ["a", "square", "see", "x", "y", "z"]
    assert words("$x^2-1$ [asy]\ndraw((0,0));\n[/asy] is") == ["x", "^", "2", "-", "1", "is"]


def test_half_of_an_evaluation_question_is_an_overlap_and_less_is_not():
    found = sets("a b c d e f").overlap("x B, c. D e! y f a b c d")
    assert (found.question, found.share) == (Question("a b c d e f", "e:1"), pytest.approx(2 / 3))
    assert sets("a b c d e f g").overlap("a b c d e x").share == pytest.approx(1 / 2)
    assert sets("a b c d e f g h").overlap("a b c d e x") is None


def test_short_questions_are_met_by_equal_ones_alone():
    made = sets("What is 3 + 4?", n=13)
    assert made.overlap("what  is 3 + 4?").share == 1
    assert made.overlap("What is 3 - 4?") is None
    assert made.overlap("Tell me: What is 3 + 4?") is None


def test_signs_tell_questions_apart():
    assert sets("What is 3 + 4 * 5?").overlap("What is 3 * 4 - 5?") is None


def test_a_phrase_that_other_questions_have_is_no_overlap():
    """It is most of the question; that many others have it too is what tells."""
    phrase = "of the garden of Eden in which seven bears dance around an old oak tree at night?"
    asked, *others = (
        f"{start} {phrase}" for start in ("What is the area", *(f"Give {word}" for word in "abcdefghijkl"))
    )
    assert sets(asked).overlap(others[0]).share == pytest.approx(14 / 18), "seen once, it is the question's own"
    assert sets(asked, training=tuple(others)).overlap(others[0]) is None
    assert sets(asked, *others[1:]).overlap(others[0]) is None


@pytest.mark.parametrize("start", ["The number", "A fair coin lands heads twice running. The probability of this"])
def test_the_stock_phrases_of_contests_are_known_to_a_single_question(start):
    assert sets(f"{start} {STOCK}").overlap(f"The area of the disk {STOCK}") is None
    assert sets(CANDY).overlap(f"The area of the disk {STOCK}") is None
    assert sets(f"{start} {STOCK}").overlap(f"Say: {start} {STOCK}").share == pytest.approx(1)


@pytest.mark.parametrize(
    "reworded",
    [
        CANDY.replace("Jen", "Mary").replace("She wins", "Mary gets"),
        CANDY.replace("by picking", "and picks").replace("whole", "natural"),
        CANDY.replace(f"The chance of the grand prize {STOCK}", "What is the chance of the grand prize?"),
        f"Solve this. {CANDY} Explain.",
        CANDY.replace(" $\\frac{m}{n}$", " \\(\\dfrac mn\\)").upper(),
    ],
)
def test_reworded_questions_are_overlaps(reworded):
    others = tuple(f"In how many of {number} ways it {STOCK}" for number in range(20))
    found = sets(f"What {STOCK}", CANDY, training=(*others, reworded)).overlap(reworded)
    assert found.question.where == "e:2"


def test_a_question_that_is_all_phrase_is_met_by_equal_ones_alone():
    asked = "What is the value of x?"
    rows = tuple(f"In row {row} of the table x is {row} times y. {asked}" for row in "abcdefgh")
    made = sets(f"{asked} [asy]draw(A--B);[/asy]", training=rows)
    assert not any(map(made.overlap, rows))
    assert sets(asked, training=rows).overlap(asked).share == 1


def test_copies_of_a_question_with_other_diagrams_are_one():
    triangle = "Triangle $ABC$ is isosceles, with $AB=AC$ and altitude $AM=11$. Find its perimeter."
    assert sets(f"{triangle} [asy]draw(A--B);[/asy]").overlap(f"{triangle} [asy]pair A; label(A);[/asy]").share == 1


def test_equal_questions_are_counted_once():
    phrase = "where all bears are very old"
    repeated = sets(*[f"q0 {phrase}"] * 3, training=(f"q1 {phrase}",) * 3)
    assert repeated.overlap(f"other {phrase}").share == pytest.approx(3 / 2 / (3 / 2 + 1))


@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, max_size=3), WORDS, st.integers(1, 5))
@settings(deadline=None)
def test_the_share_is_as_defined(asked, training, text, n):
    """Counted anew for each run, in fractions."""

    def runs(text):
        return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}

    asked, training = (list(map(list, dict.fromkeys(map(tuple, texts)))) for texts in (asked, training))
    others = asked + [other for other in training if other != text]
    everyone = asked + training

    def share(question):
        shared = [Fraction(1, sum(run in runs(o) for o in others)) for run in runs(question) & runs(text)]
        rest = [Fraction(1, sum(run in runs(o) for o in everyone)) for run in runs(question) - runs(text)]
        assume(sum(shared) != 1)  # where rounding decides
        return sum(shared) / (sum(shared) + sum(rest)) if sum(shared) > 1 else Fraction(0)

    expected = 1 if text in asked else max(map(share, asked))
    assume(expected != Fraction(1, 2))
    joined = [" ".join(words) for words in training]
    found = sets(*(" ".join(words) for words in asked), n=n, training=tuple(joined)).overlap(" ".join(text))
    assert (found.share if found else 0) == pytest.approx(float(expected if expected > Fraction(1, 2) else 0))


def test_questions_are_found_in_raw_files_and_in_converted_ones(tmp_path, write):
    raw = write(tmp_path / "a.jsonl", [{"problem": "One?"}, {"Problem": "Two?"}, {"question_content": "Three?"}])
    made = write(tmp_path / "b.parquet", [{"prompt": [{"content": "x"}], "extra_info": {"question": "Four?"}}])
    found = read_questions([raw, made])
    assert [question.text for question in found] == ["One?", "Two?", "Three?", "Four?"]
    assert [question.where for question in found[2:]] == [f"{raw}:3", f"{made}:1"]


def test_files_without_questions_are_named(tmp_path, write):
    with pytest.raises(PrepError, match="--decontaminate .*none.jsonl: expected a file ending in"):
        read_questions([tmp_path / "none.jsonl"])
    bad = write(tmp_path / "a.jsonl", [{"text": "One?"}])
    with pytest.raises(PrepError, match="a.jsonl:1: field question or problem or .*: missing; fields read: text;"):
        read_questions([bad])
