"""docs/knobs.md and docs/metrics.md say what the code says."""

import re

import pytest

from tools import write_pages
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.metrics import METRICS

AGAIN = "run `python tools/write_pages.py` and commit what it writes"


@pytest.mark.parametrize("page", write_pages.PAGES.values(), ids=lambda page: page.name)
def test_the_page_is_current(page):
    text = page.read_text()
    assert write_pages.filled(text) == text, AGAIN


def test_every_table_is_on_its_page():
    assert write_pages.missing() == [], "add the lines of these tables to their page, then " + AGAIN


def test_every_knob_has_a_row():
    rows = re.findall(r"^\| `([\w.]+)` \| `", write_pages.PAGES["knobs"].read_text(), re.MULTILINE)
    knobs = CIPOConfig().to_mapping()
    inner = [f"{section}.{name}" for section in ("prompt", "aux") for name in knobs.pop(section)]
    assert sorted(rows) == sorted([*knobs, *inner]), AGAIN


def test_every_metric_has_a_row():
    rows = re.findall(r"^\| `(cipo/\S+)` \|", write_pages.PAGES["metrics"].read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(METRICS), AGAIN


def test_rows_by_hand():
    rows = write_pages.tables()["knobs"].splitlines()
    assert rows[2].startswith("| `replay_fraction` | `1.0` | a finite number >= 0 | Anchors per step")
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


CITED = re.compile(r"`(?:tests/)?((?:\w+/)+test_\w+\.py)?(?:::(test_\w+))?`")
"""`folder/test_x.py`, `folder/test_x.py::test_y`, and `::test_z` of the file that was named last."""


@pytest.mark.parametrize("page", sorted(write_pages.DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_test_that_a_page_cites_exists(page):
    tests, file, lost = write_pages.DOCS.parent / "tests", None, []
    for name, test in CITED.findall(page.read_text()):
        file = tests / name if name else file
        if (name or test) and not (file and file.exists() and (not test or f"def {test}(" in file.read_text())):
            lost.append(f"{name}::{test}")
    assert not lost, f"cited tests that do not exist: {lost}"
