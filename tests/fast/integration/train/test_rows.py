"""Rows laid out for the estimator, after verl padded and reordered the batch."""

import numpy as np
import torch
from transfer_queue import KVBatchMeta

from verl_cipo.core.advantage import BASE, CORRECTION, PADDING, Rows
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.train.estimator import BatchRows, compute_cipo_advantage, rows_of_batch
from verl_cipo.integration.train.rows import RowTable, _sessions, row_sums

KEYS = ["a_0_0", "a_1_0", "a_c0_0_0", "a_c0_1_0"]


def table() -> RowTable:
    session, final = _sessions(KEYS)
    return RowTable(
        keys=KEYS,
        rows=Rows(
            stream=np.array([BASE, BASE, CORRECTION, CORRECTION], dtype=np.int8),
            group=np.array(["a", "a", "a_c0", "a_c0"], dtype=object),
            session=session,
            final=final,
            correct=np.array([True, False, True, False]),
            anchor_correct=np.array([False, False, True, True]),
        ),
        index=[7, 7, 7, 7],
        scores=np.array([1.0, 0.0, 1.0, 0.0]),
        tokens=np.array([3, 2, 3, 1]),
        copied=np.array([False, False, True, False]),
    )


def meta(keys: list[str]) -> KVBatchMeta:
    return KVBatchMeta(partition_id="train", keys=keys, tags=[{"is_padding": key.startswith("pad")} for key in keys])


def test_rows_follow_the_order_of_the_batch_and_mark_padding():
    rows = table().rows_in_order(meta(["pad1_0_0", "a_c0_1_0", "a_1_0", "pad1_1_0", "a_0_0", "a_c0_0_0"]))
    assert rows.stream.tolist() == [PADDING, CORRECTION, BASE, PADDING, BASE, CORRECTION]
    assert rows.group.tolist() == ["padding", "a_c0", "a", "padding", "a", "a_c0"]
    assert rows.correct.tolist() == [False, False, False, False, True, True]
    assert rows.anchor_correct.tolist() == [False, True, False, False, False, True]


def test_rows_of_a_foreign_batch_are_an_error():
    try:
        table().rows_in_order(meta(["b_0_0"]))
    except KeyError as error:
        assert "b_0_0" in str(error)
    else:
        raise AssertionError("a row that was never sampled was accepted")


def test_only_the_last_output_of_a_session_is_final():
    session, final = _sessions(["a_0_0", "a_0_1", "a_c1_0_0", "a_c1_0_1", "a_c1_0_2"])
    assert session.tolist() == ["a_0", "a_0", "a_c1_0", "a_c1_0", "a_c1_0"]
    assert final.tolist() == [False, True, False, False, True]


def test_estimator_gets_the_rows_and_shapes_once():
    """Anchor right: the wrong correction scores 0 - lambda_risk = -1, the right one 1."""
    laid_out = table()
    rewards = torch.zeros(4, 3)
    rewards[:, -1] = torch.tensor(laid_out.scores)
    mask = torch.ones(4, 3)
    context = BatchRows(rows=laid_out.rows, config=CIPOConfig(), loss_agg_mode="seq-mean-token-mean")
    with rows_of_batch(context):
        advantages, returns = compute_cipo_advantage(rewards, mask, config={"norm_adv_by_std_in_grpo": False})
    # base: mean .5 -> +-.5; corrections: mean of (1, -1) = 0 -> +1, -1; both streams have two rows.
    assert advantages[:, 0].tolist() == [0.5, -0.5, 1.0, -1.0]
    assert returns is advantages
    assert rewards[:, -1].tolist() == laid_out.scores.tolist()


def test_estimator_outside_the_cipo_trainer_is_an_error():
    import pytest

    with pytest.raises(RuntimeError, match="outside the CIPO trainer"):
        compute_cipo_advantage(torch.zeros(1, 1), torch.ones(1, 1), config={})


def test_metrics_follow_from_the_rows():
    metrics = table().metrics()
    assert metrics["cipo/transitions/c2c"] == 0.5
    assert metrics["cipo/copy_rate"] == 0.5
    assert "cipo/transitions/w2c" not in metrics


def test_rows_of_unequal_length_are_summed():
    rows = [torch.tensor([0.0, 0.5]), torch.tensor([]), torch.tensor([1.0]), torch.tensor([0.0, 0.25, -1.0])]
    jagged = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    assert row_sums(jagged).tolist() == [0.5, 0.0, 1.0, -0.75]


def test_the_order_of_prompts_that_share_an_index_does_not_depend_on_uids():
    """Rows of two prompts are not mixed, either."""

    def ordered(first, second):
        keys = [f"{uid}_{session}_0" for session in (0, 1) for uid in (first, second)]
        source = {first: "a", second: "b"}
        marks = [{"correct": True, "origin": source[key[0]]} for key in keys]
        nothing = np.zeros(4)
        whole = RowTable.of_marks(
            keys, marks, group=[key[0] for key in keys], index=[7] * 4, scores=nothing, tokens=nothing
        )
        return [(source[keys[i][0]], keys[i][2]) for i in whole.stable_order(keys, seed=1, step=1)]

    assert ordered("x", "y") == ordered("y", "x") == [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")]
