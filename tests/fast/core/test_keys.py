"""Names of rows."""

import pytest

from verl_cipo.core.keys import GroupName, RowKey, correction_group


@pytest.mark.parametrize(
    ("name", "group", "anchor"),
    [
        ("a-1", GroupName("a-1"), None),
        ("a-1_c12", GroupName("a-1", "c", 12), 12),
        ("a-1_c12r", GroupName("a-1", "c", 12, "r"), None),
        ("a-1_p0", GroupName("a-1", "p", 0), None),
        ("data_cat_c1", GroupName("data_cat", "c", 1), 1),
    ],
)
def test_a_group_is_named_after_its_prompt_and_what_it_holds(name, group, anchor):
    assert GroupName.parse(name) == group and str(group) == name
    assert group.anchor == anchor


def test_a_key_is_the_group_the_session_and_the_output():
    key = RowKey.parse("a_c1_10_2")
    assert key == (correction_group("a", 1), 10, 2) and str(key) == "a_c1_10_2" and key.rollout == "a_c1_10"
    assert str(RowKey("a", 3)) == "a_3_0"
    for other in ("a", "a_1", "a_b_c"):
        with pytest.raises(ValueError):
            RowKey.parse(other)


def test_the_attempt_of_a_correction_has_the_number_of_its_group():
    assert str(GroupName.parse("u_c3").attempt) == "u_3_0" and GroupName.parse("u_c3").attempt.rollout == "u_3"
    with pytest.raises(ValueError, match="u is the group of a prompt's attempts"):
        GroupName.parse("u").attempt  # noqa: B018
