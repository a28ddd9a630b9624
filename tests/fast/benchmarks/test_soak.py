"""benchmarks/soak.py counts what is missing; the soak itself takes real runs and is no test."""

import json

import pytest

from benchmarks import soak

STEP = {
    "training/global_step": 1,
    "cipo/anchors/total": 4.0,
    # An attempt that was left out before the draw, which is no anchor.
    "cipo/anchors/skipped/empty_attempt": 1.0,
    "cipo/rows/base": 16.0,
    "cipo/rows/correction": 16.0,
    "cipo/verifier/given_up": 0.0,
    "cipo/corrections/timed_out": 0.0,
}


def accounted(tmp_path, *steps, faults=(), scores=(0.0, 1.0), run_of=None):
    (tmp_path / "rollouts").mkdir()
    lines = [{"step": i, "data": STEP | step} for i, step in enumerate(steps, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "faults.jsonl").write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    for line in lines:
        rows = "".join(json.dumps({"score": score}) + "\n" for score in scores)
        (tmp_path / "rollouts" / f"{line['step']}.jsonl").write_text(rows)
    soaked = soak.Soaked([], run_of or {line["step"]: 0 for line in lines}, [])
    return soak.account(tmp_path, soaked, steps=len(steps))[1]


def test_nothing_is_missing_where_every_row_is_trained_or_lost_by_a_known_fault(tmp_path):
    lost = {"cipo/rows/base": 14.0, "cipo/rows/correction": 14.0, "cipo/verifier/given_up": 1.0}
    lost |= {"cipo/corrections/timed_out": 1.0}
    faults = [
        {"kind": "session raises", "run": 1, "step": 1, "correction": False},
        {"kind": "row is not stored", "run": 1, "step": 1, "correction": True},
        # Of the run that was killed in this step, and of those that cost no row.
        {"kind": "session raises", "run": 0, "step": 1, "correction": False},
        {"kind": "verifier raises", "run": 1},
    ]
    assert accounted(tmp_path, lost, faults=faults, run_of={1: 1}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cipo/rows/base": 15.0}, "31 rows trained and 0 lost by a known fault, of 32"),
        ({"cipo/rows/correction": 20.0}, "36 rows trained"),
        ({"cipo/anchors/total": 3.0, "cipo/rows/correction": 12.0}, "3 anchors, not 4"),
    ],
)
def test_a_row_or_an_anchor_that_no_fault_explains_is_missing(tmp_path, changes, said):
    (line,) = accounted(tmp_path, changes)
    assert line.startswith("step 1: ") and said in line


def test_a_step_or_a_verdict_that_is_missing_is_named(tmp_path):
    (line,) = accounted(tmp_path, {}, scores=(0.0, 0.5))
    assert "step 1" in line and "0.5" in line


def test_steps_have_to_be_logged_once_and_in_order(tmp_path):
    lines = [{"step": 2, "data": STEP}]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    (tmp_path / "faults.jsonl").write_text("")
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "2.jsonl").write_text("")
    missing = soak.account(tmp_path, soak.Soaked([], {2: 0}, []), steps=2)[1]
    assert missing == ["steps: [2] were logged"]
