"""The rows of a TransferQueue batch, and what the estimator makes of them."""

import numpy as np
import pytest
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_cipo.core.advantage import BASE, CORRECTION, PADDING
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.integration.train.estimator import BatchRows, compute_cipo_advantage, rows_of_batch
from verl_cipo.integration.train.rows import each_row, row_sums, rows_in_order, without_torn_rows

# Anchor right.
TABLE = RowTable.of_marks(
    ["a_0_0", "a_1_0", "a_c0_0_0", "a_c0_1_0"],
    [
        Mark(correct=True),
        Mark(correct=False),
        Mark(correct=True, anchor_correct=True),
        Mark(correct=False, anchor_correct=True),
    ],
    index=[7] * 4,
    scores=np.array([1.0, 0.0, 1.0, 0.0]),
    tokens=np.array([3, 2, 3, 1]),
)


def test_rows_are_laid_out_as_verl_padded_and_reordered_them():
    keys = ["pad1_0_0", "a_c0_1_0", "a_0_0"]
    tags = [{"is_padding": True}, {"is_padding": False}, {}]
    rows = rows_in_order(TABLE, KVBatchMeta(partition_id="train", keys=keys, tags=tags))
    assert rows.stream.tolist() == [PADDING, CORRECTION, BASE]


def test_estimator_gets_the_rows_and_shapes_once():
    """The wrong correction scores 0 - lambda_risk = -1, the right one 1."""
    rewards = torch.zeros(4, 3)
    rewards[:, -1] = torch.tensor(TABLE.scores)
    mask = torch.ones(4, 3)
    context = BatchRows(rows=TABLE.rows, config=CIPOConfig(preset="stream"), loss_agg_mode="seq-mean-token-mean")
    with rows_of_batch(context):
        advantages, returns = compute_cipo_advantage(rewards, mask, config={"norm_adv_by_std_in_grpo": False})
    # base: mean .5 -> +-.5; corrections: mean of (1, -1) = 0 -> +1, -1; both streams have two rows.
    assert advantages[:, 0].tolist() == [0.5, -0.5, 1.0, -1.0]
    assert returns is advantages
    assert rewards[:, -1].tolist() == TABLE.scores.tolist()


def test_estimator_outside_the_cipo_trainer_is_an_error():
    with pytest.raises(RuntimeError, match="outside the CIPO trainer"):
        compute_cipo_advantage(torch.zeros(1, 1), torch.ones(1, 1), config={})


def test_rows_of_unequal_length_are_summed():
    rows = [torch.tensor([0.0, 0.5]), torch.tensor([]), torch.tensor([1.0]), torch.tensor([0.0, 0.25, -1.0])]
    jagged = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    assert row_sums(jagged).tolist() == [0.5, 0.0, 1.0, -0.75]


def test_a_row_that_was_stored_in_part_is_cleared(monkeypatch):
    cleared = []
    monkeypatch.setattr(tq, "kv_clear", lambda keys, partition_id: cleared.extend(keys))
    tags = [{"status": "success"} for _ in TABLE.keys]
    whole = KVBatchMeta(partition_id="train", keys=list(TABLE.keys), tags=tags)
    assert without_torn_rows(whole) is whole
    torn = KVBatchMeta(partition_id="train", keys=[*TABLE.keys, "a_c1_3_0", "a_3_0"], tags=[*tags, {}, {}])
    assert without_torn_rows(torn).keys == TABLE.keys
    assert cleared == ["a_3_0", "a_c1_3_0"]


def test_rows_are_read_as_they_were_stored():
    """Jagged fields with their last dimension jagged, plain tensors, and what is no tensor."""
    rows = [
        {
            "responses": torch.arange(length),
            "position_ids": torch.ones(4, length + 1),
            "score": torch.tensor(0.5 * length),
            "raw_prompt": [{"role": "user", "content": f"{length}?"}],
            "extra_fields": {"cipo": {"correct": True}},
            "uid": "u",
            "nothing": None,
        }
        for length in (2, 1, 3)
    ]
    found = each_row(list_of_dict_to_tensordict(rows))
    assert [row.keys() for row in found] == [row.keys() for row in rows]
    for one, row in zip(found, rows, strict=True):
        for name, value in row.items():
            assert torch.equal(one[name], value) if isinstance(value, torch.Tensor) else one[name] == value, name
