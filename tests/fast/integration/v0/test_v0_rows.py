"""The rows of the V0 trainer's batch: what they are, corrections joined to them, rows that fill a batch up."""

import numpy as np
import pytest
import torch

from tests.fast.integration.scored_batch import R, scored
from verl_cipo.core.advantage import BASE, CORRECTION
from verl_cipo.integration.v0.rows import Padding, joined, objects, places, response_ids, row_table


def attempts():
    """Two prompts of two attempts, as the trainer holds them: columns of the data set and of the rollout."""
    batch = scored(["-+", "--"], extra=False)
    batch.batch["dummy_tensor"] = torch.arange(4).unsqueeze(-1)
    batch.non_tensor_batch["notes"] = objects(["kept"] * 4)
    batch.non_tensor_batch["reward_model"] = objects([{"ground_truth": str(i)} for i in (0, 0, 1, 1)])
    return batch


def corrections():
    """Two corrections of the second prompt's attempt 1, one of the first prompt's attempt 1, as workers return them."""
    batch = scored(["+-+"], seed=5, extra=False)
    del batch.non_tensor_batch["data_source"]
    batch.non_tensor_batch |= {
        "uid": objects(["u1_c1", "u1_c1", "u0_c1"]),
        "session_id": np.array([0, 1, 0]),
        "index": np.array([1, 1, 0]),
        "cipo": objects(
            [
                {"correct": True, "anchor": 1, "anchor_correct": False, "copied": False},
                {"correct": False, "anchor": 1, "anchor_correct": False, "copied": True},
                {"correct": True, "anchor": 1, "anchor_correct": True, "copied": False},
            ]
        ),
        "tool_calls": objects([1, 2, 3]),
    }
    return batch


def test_corrections_come_after_the_attempts_and_take_what_they_lack_from_their_anchors():
    batch, new = attempts(), corrections()
    whole = joined(batch, new)
    assert len(whole) == 7
    for key in ("responses", "input_ids", "rm_scores"):
        assert torch.equal(whole.batch[key], torch.cat([batch.batch[key], new.batch[key]]))
    assert whole.batch["dummy_tensor"].flatten().tolist() == [0, 1, 2, 3, 3, 3, 1]
    assert [value["ground_truth"] for value in whole.non_tensor_batch["reward_model"][4:]] == ["1", "1", "0"]
    assert whole.non_tensor_batch["data_source"].tolist() == ["toy"] * 7
    assert whole.non_tensor_batch["uid"].tolist() == ["u0", "u0", "u1", "u1", "u1_c1", "u1_c1", "u0_c1"]
    # A column that only some sessions have is not made up from another row.
    assert whole.non_tensor_batch["tool_calls"].tolist() == [None] * 4 + [1, 2, 3]
    assert whole.non_tensor_batch["notes"].tolist() == ["kept"] * 4 + [None] * 3


def test_a_correction_of_an_attempt_that_is_not_there_is_an_error():
    new = corrections()
    new.non_tensor_batch["uid"][2] = "u0_c7"
    with pytest.raises(KeyError, match="u0_7_0"):
        joined(attempts(), new)


def test_rows_are_what_their_workers_noted():
    whole = joined(attempts(), corrections())
    table = row_table(whole)
    assert table.keys == ["u0_0_0", "u0_1_0", "u1_0_0", "u1_1_0", "u1_c1_0_0", "u1_c1_1_0", "u0_c1_0_0"]
    assert table.rows.stream.tolist() == [BASE] * 4 + [CORRECTION] * 3
    assert table.rows.correct.tolist() == [False, True, False, False, True, False, True]
    assert table.rows.anchor_correct.tolist() == [False] * 6 + [True]
    assert table.rows.final.all()
    assert table.copied.tolist() == [False] * 5 + [True, False]
    assert table.scores.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert table.tokens.tolist() == [len(response_ids(whole, row)) for row in range(7)]
    assert table.index == [0, 0, 1, 1, 1, 1, 0]


def test_attempts_by_prompt():
    groups, key_of = row_table(joined(attempts(), corrections())).attempts()
    assert [(group.uid, [attempt.correct for attempt in group.attempts]) for group in groups] == [
        ("u0", [False, True]),
        ("u1", [False, False]),
    ]
    assert [key_of[attempt] for group in groups for attempt in group.attempts] == [
        "u0_0_0",
        "u0_1_0",
        "u1_0_0",
        "u1_1_0",
    ]


def test_padding_stands_where_it_was_put_and_nothing_trains_it():
    batch = attempts()
    batch.batch["attention_mask"][2, 1:] = 0
    batch.batch["advantages"] = torch.ones(4, R)
    batch.batch["cipo_aux_sign"] = torch.ones(4)
    padding = Padding(np.array([True, True, False, True, True, False]))
    padded = padding.add(batch)
    # Row 2 is the shortest.
    assert padded.batch["dummy_tensor"].flatten().tolist() == [0, 1, 2, 2, 3, 2]
    for key in ("response_mask", "advantages", "rm_scores", "rollout_log_probs", "cipo_aux_sign"):
        assert not padded.batch[key][[2, 5]].any()
        assert torch.equal(padded.batch[key][[0, 1, 3, 4]], batch.batch[key])
    assert torch.equal(padding.remove(padded).batch["input_ids"], batch.batch["input_ids"])


def test_a_full_batch_is_handed_over_as_it_is():
    batch, padding = attempts(), Padding(np.ones(4, dtype=bool))
    assert padding.add(batch) is batch and padding.remove(batch) is batch


def test_places_count_the_rows_of_a_uid():
    assert places(np.array(["a", "a", "b", "a"])).tolist() == [0, 1, 0, 2]
