import pytest

from verl_cipo.rewards.critique import compute_score, read_label


@pytest.mark.parametrize(
    "text, label",
    [
        (r"It is \boxed{correct}.", "correct"),
        (r"\boxed{\text{Wrong}}", "wrong"),
        (r"At first \boxed{correct}, but no: \boxed{ incorrect }", "wrong"),
        ("The response is wrong.", ""),
        (r"\boxed{42}", ""),
        (r"\boxed{correct}, no: \boxed{**wrong**}", "wrong"),
        (r"\boxed{correct}, no: \boxed{\mathrm{wrong}}", "wrong"),
        (r"\boxed{correct}, no: \boxed{\text{**Wrong.**}}", "wrong"),
        (r"\boxed{correct}, no: \boxed{\{wrong", ""),
        (r"\boxed{correct}, no: \boxed{42}", ""),
        (r"\boxed{correct} or \boxed{wrong}", ""),
        (r"\boxed{correct or wrong}", ""),
        (r"\boxed{wrong}, in \boxed{} as asked", "wrong"),
        ("", ""),
    ],
)
def test_the_label_is_what_the_last_box_says(text, label):
    assert read_label(text) == label


def test_a_critique_is_scored_against_what_the_response_is():
    right = compute_score("s", r"\boxed{wrong}", "wrong")
    assert right == {"score": 1.0, "acc": True, "pred": "wrong", "outcome": "right"}
    assert compute_score("s", r"\boxed{wrong}", "correct")["outcome"] == "wrong"
    assert compute_score("s", "no idea", "correct") == {"score": 0.0, "acc": False, "pred": "", "outcome": "unparsable"}
    with pytest.raises(ValueError, match="'s' is '4': expected correct or wrong"):
        compute_score("s", "", "4")
