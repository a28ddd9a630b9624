import numpy as np
import pytest

from verl_cipo.core.metrics import METRICS, PREFIX, batch_metrics, check_names
from verl_cipo.core.rows import Mark, Rows, RowTable

SPEC = """rho retention anchors/total anchors/correct anchors/failed anchors/medium anchors/other
anchors/skipped/too_long anchors/skipped/no_text_question anchors/skipped/empty_attempt corrections/failed_sessions
transitions/c2c transitions/c2w transitions/w2c transitions/w2w copy_rate reward/base reward/correction accuracy/base
accuracy/correction rows/base rows/correction rows/padding tokens/base tokens/correction groups/base/all_right
groups/base/all_wrong groups/base/mixed groups/correction/all_right groups/correction/all_wrong groups/correction/mixed
seconds/correction seconds/selection seconds/advantage val/accuracy_turn1 val/accuracy_turn2 val/w2c val/c2w val/c2c
val/w2w val/copy_rate val/rows""".split()


def rows(table):
    """One line a row: stream, group, session, final, correct, anchor_correct."""
    columns = list(zip(*table, strict=True))
    dtypes = (np.int8, object, object, bool, bool, bool)
    return Rows(*(np.array(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True)))


def test_the_names_are_declared_with_one_line_each():
    assert {PREFIX + name for name in SPEC} <= set(METRICS)
    assert all(name.startswith("cipo/") for name in METRICS)
    assert all(line.endswith(".") and "\n" not in line and line.isascii() for line in METRICS.values())


def test_an_undeclared_name_is_refused():
    check_names({"cipo/rho": 0.3, "actor/loss": 1.0})
    with pytest.raises(KeyError, match="cipo/ro, cipo/x"):
        check_names({"cipo/x": 1.0, "cipo/rho": 0.3, "cipo/ro": 0.3})


BATCH = rows(
    [
        # Prompt a: two sessions, right and wrong; the first one has two outputs.
        (0, "a", "a0", False, False, False),
        (0, "a", "a0", True, True, False),
        (0, "a", "a1", True, False, False),
        # Prompt b: all right. Prompt c: all wrong.
        (0, "b", "b0", True, True, False),
        (0, "c", "c0", True, False, False),
        # Corrections of the right a0: right, right, wrong. Of the wrong c0: wrong, right.
        (1, "a_0", "k0", True, True, True),
        (1, "a_0", "k1", True, True, True),
        (1, "a_0", "k2", False, True, True),
        (1, "a_0", "k2", True, False, True),
        (1, "c_0", "k3", True, False, False),
        (1, "c_0", "k4", True, True, False),
        (2, "a", "p0", True, True, True),
    ]
)
SCORES = np.array([9, 1, 0, 1, 0, 1, 1, 9, -1, 0, 1, 9], dtype=np.float32)
TOKENS = np.array([5, 1, 2, 3, 4, 10, 20, 7, 30, 40, 50, 100])
COPIED = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1], dtype=bool)


def metrics_of(idx, second=None, longest=None):
    """Of the rows of BATCH at these positions; second: of each row of BATCH, the second verifier's verdict."""
    idx = np.array(idx, dtype=np.int64)
    n = len(idx)
    return batch_metrics(
        RowTable(
            keys=[""] * n,
            rows=BATCH.take(idx),
            index=[0] * n,
            scores=SCORES[idx],
            tokens=TOKENS[idx],
            copied=COPIED[idx],
            origin=[""] * n,
            outcome=[None] * n,
            question=[None] * n,
            second=np.full(n, np.nan) if second is None else np.array(second, dtype=float)[idx],
        ),
        longest=longest,
    )


def test_accuracy_is_that_of_the_attempts_that_every_prompt_has():
    """Of attempts 1 0 and a further 0; all three are rows and outcomes of the group."""
    marks = [Mark(correct=True), Mark(correct=False), Mark(correct=False, further=True)]
    scores, tokens = np.array([1.0, 0.0, 0.0]), np.array([5, 5, 5])
    keys = ["a_0_0", "a_1_0", "a_2_0"]
    metrics = batch_metrics(RowTable.of_marks(keys, marks, index=[0] * 3, scores=scores, tokens=tokens))
    assert metrics["cipo/accuracy/base"] == metrics["cipo/reward/base"] == 0.5
    assert metrics["cipo/rows/base"] == 3 and metrics["cipo/tokens/base"] == 15
    right = RowTable.of_marks(keys[:2], [marks[0], marks[2]], index=[0] * 2, scores=scores[:2], tokens=tokens[:2])
    assert batch_metrics(right)["cipo/groups/base/mixed"] == 1.0


def test_by_hand():
    metrics = metrics_of(range(12))
    assert metrics == pytest.approx(
        {
            "cipo/rows/base": 5,
            "cipo/rows/correction": 6,
            "cipo/rows/padding": 1,
            # 5 + 1 + 2 + 3 + 4 and 10 + 20 + 7 + 30 + 40 + 50
            "cipo/tokens/base": 15,
            "cipo/tokens/correction": 157,
            # final rows only: (1 + 0 + 1 + 0) / 4 and (1 + 1 - 1 + 0 + 1) / 5
            "cipo/reward/base": 0.5,
            "cipo/reward/correction": 0.4,
            "cipo/accuracy/base": 0.5,
            "cipo/accuracy/correction": 0.6,
            # a mixed, b right, c wrong; both anchors mixed
            "cipo/groups/base/all_right": 1 / 3,
            "cipo/groups/base/all_wrong": 1 / 3,
            "cipo/groups/base/mixed": 1 / 3,
            "cipo/groups/correction/all_right": 0,
            "cipo/groups/correction/all_wrong": 0,
            "cipo/groups/correction/mixed": 1,
            # of 3 corrections of right attempts 2 stay right, of 2 of wrong ones 1 becomes right
            "cipo/transitions/c2c": 2 / 3,
            "cipo/transitions/c2w": 1 / 3,
            "cipo/transitions/w2c": 1 / 2,
            "cipo/transitions/w2w": 1 / 2,
            "cipo/retention": 2 / 3,
            # k0 and k3 of the 5 final corrections
            "cipo/copy_rate": 0.4,
            # k3 of k3 and k4
            "cipo/copy_rate_failed": 0.5,
        }
    )
    check_names(metrics)
    assert all(type(value) is float for value in metrics.values())


def test_truncated_by_hand():
    """Of the final attempts, with 1, 2, 3 and 4 tokens, and corrections, with 10, 20, 30, 40 and 50."""
    metrics = metrics_of(range(12), longest=4)
    assert (metrics["cipo/truncated/base"], metrics["cipo/truncated/correction"]) == (0.25, 1.0)
    assert metrics_of(range(12), longest=40)["cipo/truncated/correction"] == 0.4
    assert "cipo/truncated/correction" not in metrics_of(range(5), longest=4)
    check_names(metrics)


def test_the_hacking_gap_by_hand():
    """Rows that are not the last of their session, and those without a second verdict, count on neither side."""
    no = np.nan
    #         a0 (not final), a0, a1, b0, c0 | k0, k1, k2 (not final), k2, k3, k4 | padding
    second = [0, 0, 0, 1, no, 1, no, 0, 1, 0, 0, 0]
    both = metrics_of(range(12), second)
    # Right by the run: a0 and b0 of a0, a1, b0; by the second: b0.
    assert both["cipo/hacking_gap"] == pytest.approx(2 / 3 - 1 / 3)
    # Of k0, k2, k3, k4: k0 and k4 by the run, k0 and k2 by the second: it may be stricter here and laxer there.
    assert both["cipo/hacking_gap_corrections"] == pytest.approx(2 / 4 - 2 / 4)
    check_names(both)
    rest = {name: value for name, value in both.items() if "hacking" not in name}
    assert rest == metrics_of(range(12)), "no other metric changes, and there is no gap without a second verdict"
    lax = metrics_of(range(12), [1] * 12)
    assert lax["cipo/hacking_gap"] == pytest.approx(2 / 4 - 1) and lax["cipo/hacking_gap_corrections"] < 0


def test_what_there_is_none_of_is_left_out():
    base = metrics_of(range(5))
    assert base["cipo/rows/correction"] == 0
    missing = ("transitions", "copy_rate", "retention", "correction/", "reward/correction", "accuracy/correction")
    assert not [name for name in base if any(part in name.removeprefix("cipo/") for part in missing)]
    only_wrong = metrics_of([9, 10])
    assert only_wrong["cipo/transitions/w2c"] == 0.5
    assert "cipo/transitions/c2c" not in only_wrong and "cipo/retention" not in only_wrong
    assert metrics_of([]) == {
        f"cipo/{name}": 0.0 for name in ("rows/padding", "rows/base", "tokens/base", "rows/correction")
    } | {"cipo/tokens/correction": 0.0}


def test_a_metric_of_the_validation_may_name_a_data_source():
    check_names(["cipo/val/w2c", "cipo/val/openai/gsm8k/w2c"])
    with pytest.raises(KeyError, match="cipo/val/openai/gsm8k/nothing"):
        check_names(["cipo/val/openai/gsm8k/nothing"])
    with pytest.raises(KeyError, match="cipo/openai/rho"):
        check_names(["cipo/openai/rho"])
