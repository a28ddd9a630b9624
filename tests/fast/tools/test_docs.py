"""tools/check_docs.py finds what is wrong with a page; tools/write_pages.py writes its tables and keeps the rest."""

import pytest

from tools import check_docs, write_pages
from verl_cipo.core.metrics import METRICS


def test_what_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "[here](page.md) [there](gone.md#part) [far](https://example.org) `tools/check_docs.py` `tools/gone.py`\n"
        "`core/gone.py` `core/config.py`\n"
    )
    assert [problem.split()[0] for problem in check_docs.lost_files(page)] == [
        "gone.md",
        "tools/gone.py",
        "core/gone.py",
    ]


def test_a_cited_test_that_does_not_exist_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`tests/fast/tools/test_docs.py::test_rows_by_hand`, `::test_gone`, `fast/test_gone.py`, `::test_rows_by_hand`"
    )
    assert list(check_docs.lost_tests(page)) == [
        "the test ::test_gone does not exist",
        "the test fast/test_gone.py does not exist",
        "the test ::test_rows_by_hand does not exist",
    ]


def test_a_readme_that_is_unfinished_or_names_no_knob_is_found(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("TODO\n| `transfer.kind`, `replay_fractions` | x |\n" + "\n" * check_docs.README_LINES)
    lines, unfinished, knob = check_docs.readme_problems(page)
    assert lines.startswith("122 lines") and unfinished == "unfinished: TODO" and knob.startswith("replay_fractions ")


def test_rows_by_hand():
    rows = write_pages.tables()["knobs"].splitlines()
    assert rows[3].startswith("| `replay_fraction` | `1.0` | a finite number >= 0 | Anchors per step")
    assert any(row.startswith("| `n_corrections` | `null` | an integer >= 2 or null |") for row in rows)
    assert any(row.startswith("| `rho_adaptive` | `true` | true or false |") for row in rows)
    prompt = write_pages.tables()["knobs/prompt"].splitlines()
    assert prompt[3].startswith("| `prompt.attempt_view` | `no_thinking` | one of whole, no_thinking, tail | Part of ")
    # GitHub would take a bare <think> for HTML and show nothing.
    assert r"\<think>" in prompt[3]
    names = ("cipo/verifier/errors", "cipo/verifier/given_up", "cipo/verifier/undecided")
    rows = write_pages.tables()["metrics/verifier"].splitlines()[2:]
    assert rows == [f"| `{name}` | {METRICS[name]} |" for name in names]


def test_what_is_written_by_hand_is_kept():
    text = (
        "# Above\n<!-- table knobs/aux, written by tools/write_pages.py -->\nold\n<!-- end of table -->\nbelow\n"
        "<!-- table metrics/val, written by tools/write_pages.py -->\n<!-- end of table -->\n"
    )
    lines = write_pages.filled(text).splitlines()
    assert lines[0] == "# Above" and "old" not in lines
    assert lines[lines.index("below") - 1] == "<!-- end of table -->"
    assert "| `aux.kind` |" in lines[4] and lines[-1] == "<!-- end of table -->"


def test_a_table_that_does_not_exist_is_named():
    with pytest.raises(KeyError, match="knobs/prompts"):
        write_pages.filled("<!-- table knobs/prompts, written by tools/write_pages.py -->\n<!-- end of table -->")
