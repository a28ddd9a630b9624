import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.rewards.math.answers import last_answer, reference_answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # boxes
        (r"\boxed{2} then \boxed{3}", "3"),
        (r"\fbox{3}", "3"),
        (r"\boxed 5.", "5."),
        (r"\boxed {5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}} and more", r"\{1, 2\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{2} and \boxed{3", ""),
        (r"\boxed", ""),
        (r"\boxedness{3}", None),
        (r"\framebox{3}", "3"),
        (r"\boxed{3}, \boxed{5} and $\boxed{7}$", "3, 5, 7"),
        (r"\boxed{3}, that is \boxed{5}", "5"),
        (r"\boxed{3} and \boxed{3}", "3"),
        (r"\boxed{2}\boxed{3}", "3"),
        (r"\boxed{5}. The final answer is in \boxed{} as required.", "5"),
        (r"\boxed{5}, as \boxed{...} asks for, and \boxed{\text{your answer}}, \boxed{\ldots}", "5"),
        (r"\boxed{5}. The final answer is \boxed{}", "5"),
        (r"\boxed{3}, \boxed{5}. It is in \boxed{}.", "3, 5"),
        (r"\boxed{...}", "..."),
        (r"\boxed{5} is in \boxed{", ""),
        (r"$x=\boxed{3}$ or $x = \boxed{5}$", r"3 \text{ or } 5"),
        (r"$\boxed{3} \text{ or } \boxed{5}$", r"3 \text{ or } 5"),
        (r"$\boxed{3} \text{ and } \boxed{5}$", "3, 5"),
        (r"$x=\boxed{3}$ and $y=\boxed{5}$", "5"),
        # hashes
        ("9 * 2\n#### 18", "18"),
        ("#### 17\n#### 18", "18"),
        ("####18 apples", "18 apples"),
        ("##### 18", None),
        (r"\boxed{3}" + "\n#### Conclusion", "3"),
        (r"\boxed{3}" + "\n#### 2. Check", "3"),
        (r"\boxed{3}" + "\n#### 4", "4"),
        ("#### 4\n" + r"\boxed{3}", "3"),
        ("#### Evelyn", "Evelyn"),
        (r"so \boxed{5}" + "\n#### 2 Checks", "5"),
        (r"so \boxed{5}" + "\n#### 2 Verification", "5"),
        # phrases
        ("Final Answer: The final answer is $x^2$. I hope it is correct.", "$x^2$"),
        ("The final answer is 5. I hope it is correct.", "5"),
        ("**Final Answer:**\n\n$5$", "$5$"),
        ("Final answer:\n\\[\n 5 \n\\]", "5"),
        ("Answer: $3.5$.", "$3.5$"),
        ("**Answer:** 34", "34"),
        ("Answer: 33\nNo.\nAnswer: 34", "34"),
        (r"Answer: \boxed{34}", "34"),
        (r"\boxed{3}" + "\nAnswer: 4", "4"),
        (r"\boxed{3}" + "\nAnswer: as above", "3"),
        (r"\boxed{3}. So the final answer is correct.", "3"),
        (r"\boxed{3}. This answer is 3 times the other.", "3"),
        ("The final answer is (C).", "(C)"),
        ("**Final Answer**\n\n42", "42"),
        ("## Final Answer\n$x^2$", "$x^2$"),
        ("#### Final Answer\n\n\\boxed{3}", "3"),
        ("\\boxed{?}\nOption C.\n#### C", "C"),
        ("**Final Answer:** $5$ \u2705", "$5$"),
        ("**Final Answer: 5** \u2705", "5"),
        (r"Final Answer: \(5\), which is prime.", r"\(5\)"),
        (r"\boxed{5}. Thus the final answer is $5$, and we are done.", "$5$"),
        (r"\boxed{5}. Thus the final answer is $6$, and we are done.", "$6$"),
        (r"\boxed{5}. The final answer is $5$ or $6$.", "$5$ or $6$"),
        (r"\boxed{5}. The final answer is $5$, or six.", "$5$, or six"),
        (r"\boxed{5}. The final answer is $5$, squared.", "$5$, squared"),
        (r"\boxed{5}. The final answer is $5$ cm.", "$5$ cm"),
        ("The final answer is $5$ as well as $6$.", "$5$ as well as $6$"),
        ("The final answer is $5$; $6$; $7$.", "$5$; $6$; $7$"),
        ("The final answer is $5$; it is prime.", "$5$"),
        ("The final answer is $5$ is the positive one.", "$5$"),
        ("The final answer is $5$, both signs.", "$5$, both signs"),
        ("The final answer is $5$ (VI).", "$5$ (VI)"),
        (r"so \boxed{5}" + "\n#### 2 Apples", "2 Apples"),
        ("Answer: $n=5$ is the number of ways", "$n=5$"),
        ("Answer: $5$ \u2014 verified.", "$5$"),
        ("Answer: $5 for the first and $6 for the other", "$5 for the first and $6 for the other"),
        (r"\boxed{5}" + "\nFinal Answer: (in the box)", "5"),
        (r"\boxed{5}" + "\nFinal Answer: \\sqrt{abc}", r"\sqrt{abc}"),
        (r"\boxed{5}" + "\nFinal Answer: [see box]", "5"),
        (r"\boxed{5}" + "\nFinal Answer: (1, 2) and (3, 4)", "(1, 2) and (3, 4)"),
        (r"\boxed{5}" + "\nFinal Answer: \\frac{\\pi}{2} \\text{ square units}", r"\frac{\pi}{2} \text{ square units}"),
        ("### Answer\n18", "18"),
        ("**Answer**\n\n$18$", "$18$"),
        # tags
        ("<think>\\boxed{19}</think>\n<answer> 18 </answer>", "18"),
        ("<think>\\boxed{18}</think>\n<answer> 2x+1 </answer>", "2x+1"),
        ("<answer>17</answer> No: <answer>18</answer>", "18"),
        (r"<answer>So it is \boxed{18}.</answer>", "18"),
        ("<answer>The answer is 18.</answer>", "The answer is 18."),
        ("<answer>So the final answer is $x$.</answer>", "$x$"),
        (r"\boxed{18}, in <answer></answer> and <answer>...</answer> as asked for.", "18"),
        (r"\boxed{18}, as <answer> and </answer> ask for.", "18"),
        ("<answer>Evelyn</answer>", "Evelyn"),
        ("<answer>18", None),
        ("18</answer>", None),
        # Chinese
        ("\u7b54\u6848\uff1a18", "18"),
        ("\u6545\u7b54\u6848\u4e3a\uff1a$18$\u3002", "$18$"),
        ("**\u7b54\u6848**\u662f 18\uff0c\u56e0\u4e3a 9*2=18\u3002", "18"),
        ("\\boxed{18}\u3002\u7b54\u6848\u662f\u6b63\u786e\u7684\u3002", "18"),
        # prose
        ("So the answer is 18.", "18"),
        ("So the answer is 18 because 9 * 2 = 18.", "18"),
        ("So the answer is $x=1$ and $x=2$.", "$x=1$ and $x=2$"),
        ("The answer is 3 or 4.", "3 or 4"),
        ("The answer is $5. 2$ here. Done.", "$5. 2$ here"),
        ("The answer is Evelyn!", "Evelyn"),
        ("The answer is\n", None),
        ("2 + 4 = 6", None),
        ("", None),
    ],
)
def test_the_answer_stated_last(text, answer):
    assert last_answer(text) == answer


def test_the_last_number_only_where_asked_for_and_nothing_better_is_there():
    assert last_answer("2 + 4 = 1,006") is None
    assert last_answer("2 + 4 = 1,006", last_number=True) == "1,006"
    assert last_answer(r"\boxed{6} of 10", last_number=True) == "6"
    assert last_answer("none", last_number=True) is None


@given(st.text(alphabet="ab{}\\$ .#\nboxed:answris0123", max_size=200))
def test_any_text_is_read(text):
    answer = last_answer(text)
    assert answer is None or answer in text


@given(st.integers(), st.integers(), st.text(alphabet="abc .\n", max_size=30))
def test_of_two_boxes_the_later_counts(first, last, between):
    assert last_answer(rf"\boxed{{{first}}}{between}\boxed{{{last}}}{between}") == str(last)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 2 * 10**5,
        "\\boxed{" * 10**5,
        "{" * 2 * 10**5 + "\\boxed{",
        "####" * 10**5,
        "#### " + "1," * 10**5,
        "final " * 10**5,
        "final" + " " * 2 * 10**5,
        "answer" + " " * 2 * 10**5,
        "answer is " * 10**5,
        "<answer>" * 10**5 + "</answer>" * 10**5,
        "answer: " + "*" * 2 * 10**5,
        "answer is " + "$" * 2 * 10**5,
        "answer is " + "( as " * 10**5,
        "1," * 10**5,
        "\n" * 2 * 10**5,
    ],
)
@pytest.mark.timeout(20)
def test_long_texts_do_not_hold_it_up(text):
    last_answer(text, last_number=True)


@pytest.mark.parametrize(
    ("ground_truth", "answers"),
    [
        ("42", ["42"]),
        (42, ["42"]),
        (27.0, ["27.0"]),
        (np.int64(3), ["3"]),
        (r"so \boxed{7}, no: \boxed{8}", ["8"]),
        (r"$\boxed{-2}$ and $\boxed{1}$", ["-2, 1"]),
        ("6 * 7 = <<6*7=42>>42\n#### 42", ["42"]),
        ("the answer is 5", ["the answer is 5"]),
        (["1", "2"], ["1", "2"]),
        (("1", r"\boxed{2}"), ["1", "2"]),
        (np.array(["1", "2"], dtype=object), ["1", "2"]),
        (json.dumps(["1", "\\frac{1}{2}"]), ["1", "\\frac{1}{2}"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["a" is the word', ['["a" is the word']),
    ],
)
def test_references(ground_truth, answers):
    assert reference_answers(ground_truth) == answers


@pytest.mark.parametrize(
    ("ground_truth", "said"),
    [
        ("", "holds no answer"),
        (" $ $ ", "holds no answer"),
        (r"\boxed{}", "holds no answer"),
        ("#### ", "holds no answer"),
        ([], "empty list"),
        (["1", ""], "holds no answer"),
        (None, "not NoneType"),
        (True, "not bool"),
        ({"answer": "1"}, "not dict"),
        (float("nan"), "nan is no number"),
    ],
)
def test_a_ground_truth_without_an_answer_is_an_error(ground_truth, said):
    with pytest.raises(ValueError, match=said):
        reference_answers(ground_truth)
