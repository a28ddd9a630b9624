"""What the auxiliary loss trains in a batch of verl's DataProto: the rows that are appended for it, and its fields."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.utils.model import compute_position_id_with_mask
from verl.workers.utils.padding import left_right_2_no_padding

from tests.fast.integration.scored_batch import FIELDS, PAD, R, appended, decode, encode, scored, text_of
from verl_cipo.core.aux_loss.plan import AuxPlan, NewRow
from verl_cipo.core.config import AuxConfig, CIPOConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.integration.v0.aux import append_rows, fill_partners
from verl_cipo.integration.v0.rows import objects

ON = CIPOConfig(preset="stream", aux=AuxConfig(coef=0.1))

# ---- pairs


def test_contrastive_has_the_failed_attempt_under_the_same_prompt():
    batch = scored(["-+"])
    out, _ = appended(batch, kind="contrastive", optimizer_steps=2)
    assert out.batch["cipo_aux_sign"].tolist() == [0, 0, 1, -1]
    assert out.batch["cipo_aux_pair"].tolist() == [-1, -1, 2, 2]
    assert out.batch["cipo_aux_weights"].sum(-1).tolist() == pytest.approx([0, 0, 2, 2])
    assert torch.equal(out.batch["prompts"][2], out.batch["prompts"][3])
    assert torch.equal(out.batch["responses"][2:], batch.batch["responses"][[1, 0]])
    assert not out.batch["cipo_aux_partner"].any()


def test_partners_are_filled_in_whatever_the_order_of_the_rows():
    out, counts = appended(scored(["-+", "+-+", "-"]), kind="contrastive")
    assert counts["aux/pairs"] == 2
    order = torch.randperm(len(out), generator=torch.Generator().manual_seed(4))
    out.reorder(order)
    out.batch["old_log_probs"] = -torch.arange(len(out) * R).reshape(-1, R).float()
    fill_partners(out, out.batch["old_log_probs"])
    mask = out.batch["cipo_aux_weights"] > 0
    for i in range(len(out)):
        pair, sign = out.batch["cipo_aux_pair"][i], out.batch["cipo_aux_sign"][i]
        if sign == 0:
            assert out.batch["cipo_aux_partner"][i] == 0
            continue
        (other,) = torch.nonzero((out.batch["cipo_aux_pair"] == pair) & (out.batch["cipo_aux_sign"] == -sign)).flatten()
        expected = out.batch["old_log_probs"][other][mask[other]].mean()
        torch.testing.assert_close(out.batch["cipo_aux_partner"][i], expected)


def test_only_the_tokens_that_the_policy_wrote_are_trained():
    batch = scored(["-+"], seed=3)
    batch.batch["responses"][1] = torch.tensor(encode("abcd"))
    batch.batch["attention_mask"][1, -R:] = 1
    batch.batch["response_mask"][1] = torch.tensor([1, 0, 0, 1])
    out, _ = appended(batch, optimizer_steps=3)
    assert out.batch["cipo_aux_weights"][2].tolist() == pytest.approx([1.5, 0, 0, 1.5])


# ---- the batch that comes back

outcome_lists = st.lists(st.text("+-", min_size=1, max_size=3), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(
    outcomes=outcome_lists,
    kind=st.sampled_from(["nll", "contrastive"]),
    channels=st.sampled_from([None, 4]),
    width=st.integers(3, 700),
    extra=st.booleans(),
    seed=st.integers(0, 5),
)
def test_base_rows_are_kept_and_new_rows_are_whole(outcomes, kind, channels, width, extra, seed):
    batch = scored(outcomes, width=width, channels=channels, seed=seed, extra=extra)
    before = {key: value.clone() for key, value in batch.batch.items()}
    out, counts = appended(batch, kind=kind, step=seed)
    n, new_width = len(batch), out.batch["prompts"].shape[1]
    by = new_width - width
    sides = 2 if kind == "contrastive" else 1
    assert len(out) == n + sides * counts["aux/pairs"]
    marks = "".join(outcomes)
    own = "".join(marks for marks in outcomes if "+" in marks)
    assert counts["aux/pairs"] + counts["aux/skipped/other_question"] == (marks.count("-") if "+" in marks else 0)
    assert counts["aux/skipped/other_question"] == 0 if kind == "nll" else counts["aux/pairs"] == own.count("-")
    assert out.meta_info == batch.meta_info

    # The union of keys, on all rows.
    assert set(out.batch.keys()) == set(before) | FIELDS
    assert set(out.non_tensor_batch) == set(batch.non_tensor_batch)
    assert all(len(value) == len(out) for value in [*out.batch.values(), *out.non_tensor_batch.values()])

    # The input is not touched, and base rows are those of the input, left-padded.
    for key, value in before.items():
        assert torch.equal(batch.batch[key], value)
        kept = out.batch[key][:n]
        assert kept.dtype == value.dtype
        if key in ("prompts", "input_ids", "attention_mask", "position_ids", "sequence_extra") or (
            # One as wide as prompts and responses is taken for one over the response.
            key == "prompt_extra" and width != R
        ):
            axis = -1 if key == "position_ids" else 1
            padding, kept = kept.split([by, kept.shape[axis] - by], dim=axis)
            assert not padding.any()
        assert torch.equal(kept, value)
    for key, value in batch.non_tensor_batch.items():
        assert out.non_tensor_batch[key][:n].tolist() == value.tolist()
    assert not out.batch["cipo_aux_weights"][:n].any() and not out.batch["cipo_aux_sign"][:n].any()

    # New rows: nothing that verl's losses or statistics see.
    uids = out.non_tensor_batch["uid"]
    assert not set(uids[n:]) & set(uids[:n])
    for key in ("response_mask", "rm_scores", "rollout_log_probs"):
        assert not out.batch[key][n:].any()
    # A whole sequence each.
    attention, ids = out.batch["attention_mask"], out.batch["input_ids"]
    assert torch.equal(ids, torch.cat([out.batch["prompts"], out.batch["responses"]], dim=1))
    expected = compute_position_id_with_mask(attention)
    positions = out.batch["position_ids"]
    assert all(torch.equal(channel, expected) for channel in (positions.unbind(1) if channels else [positions]))
    for i in range(n, len(out)):
        assert text_of(out, i, "prompts") == out.non_tensor_batch["raw_prompt"][i][0]["content"] + ">"
        assert torch.equal(out.batch["cipo_aux_weights"][i] > 0, attention[i, -R:] > 0)
        if extra:
            source = int(out.batch["row_extra"][i])
            assert marks[source] == ("+" if out.batch["cipo_aux_sign"][i] > 0 else "-")
            for key in ("responses", "token_extra", "vector_extra"):
                assert torch.equal(out.batch[key][i], before[key][source])
            assert torch.equal(attention[i, -R:], before["attention_mask"][source, -R:])
            assert out.non_tensor_batch["note"][i] is batch.non_tensor_batch["note"][source]
            assert not out.batch["sequence_extra"][i, :new_width].any()
            assert torch.equal(out.batch["sequence_extra"][i, new_width:], before["sequence_extra"][source, width:])
            assert width == R or not out.batch["prompt_extra"][i].any()


def test_the_unpadded_batch_is_what_the_engine_reads():
    """verl's conversion before the update finds prompt and response of each row."""
    out, _ = appended(scored(["-+", "-"], channels=4), kind="contrastive")
    n = len(out)
    texts = [text_of(out, i, "prompts") + text_of(out, i, "responses") for i in range(n)]
    data = left_right_2_no_padding(out.to_tensordict())
    assert [decode(row.tolist()) for row in data["input_ids"].unbind()] == texts
    assert [row.tolist() for row in data["position_ids"].unbind()] == [[[*range(len(text))]] * 4 for text in texts]


def test_batches_concatenate_and_chunk_as_ever():
    out, _ = appended(scored(["-+", "-+"]))
    again = DataProto.concat(out.chunk(2))
    assert all(torch.equal(again.batch[key], out.batch[key]) for key in out.batch.keys())


@pytest.mark.parametrize("key", ["teacher_logprobs", "teacher_ids"])
def test_what_cannot_be_made_for_a_new_row_is_refused(key):
    batch = scored(["-+"])
    batch.batch[key] = torch.zeros(2, R)
    with pytest.raises(ValueError, match=f"has '{key}'"):
        appended(batch)


def test_routing_that_is_recorded_for_metrics_alone_is_that_of_the_response():
    """rollout.enable_rollout_routing_replay with the actor's router_replay off, as verl logs the load of experts."""
    batch = scored(["-+"])
    width = batch.batch["input_ids"].shape[1]
    batch.batch["routed_experts"] = torch.arange(1, 1 + 2 * width * 4).reshape(2, width, 2, 2).to(torch.int16)
    out, _ = appended(batch)
    routed, before = out.batch["routed_experts"], batch.batch["routed_experts"]
    assert routed.dtype == before.dtype and torch.equal(routed[:2, -R:], before[:, -R:])
    assert torch.equal(routed[2, -R:], before[1, -R:]) and not routed[2, :-R].any()


def test_a_batch_that_lacks_a_part_is_an_error():
    batch = scored(["-+"])
    row = NewRow(source="u0_1_0", key=RowKey("x", 0), messages=[], prompt_ids=[5], sign=1.0, pair=0)
    del batch.batch["position_ids"]
    with pytest.raises(ValueError, match="position_ids must be among"):
        append_rows(batch, AuxPlan(rows=[row]), config=ON, pad_token_id=PAD, optimizer_steps=1)


def test_without_new_rows_a_batch_of_any_kind_is_trained():
    batch = scored(["-+"])
    batch.batch["teacher_ids"] = torch.zeros(2, R)
    out = append_rows(batch, AuxPlan(chosen={"u0_1_0": 0}), config=ON, pad_token_id=PAD, optimizer_steps=1)
    assert out.batch["cipo_aux_sign"].tolist() == [0, 1] and out.batch["cipo_aux_pair"].tolist() == [-1, 0]
    assert out.batch["cipo_aux_weights"].sum(-1).tolist() == pytest.approx([0, 1])
    half = AuxPlan(chosen={"u0_1_0": 0}, share=0.5)
    out = append_rows(scored(["-+"]), half, config=ON, pad_token_id=PAD, optimizer_steps=1)
    assert out.batch["cipo_aux_weights"].sum(-1).tolist() == pytest.approx([0, 0.5])


def test_a_second_time_is_an_error():
    with pytest.raises(ValueError, match="rows were appended before"):
        append_rows(appended(scored(["-+"]))[0], AuxPlan(), config=ON, pad_token_id=PAD, optimizer_steps=1)


def test_an_image_of_another_row_is_not_appended():
    batch = scored(["-+", "-+", "-+"])
    images = np.array([{"pixels": 1}, None, None, {"pixels": 1}, {}, {}], dtype=object)
    batch.non_tensor_batch["multi_modal_inputs"] = images
    out, counts = appended(batch)
    assert counts["aux/skipped/no_text_question"] == 2
    assert out.non_tensor_batch["multi_modal_inputs"].tolist() == [*images.tolist(), {}]


# ---- corrections that were rolled out


def corrected():
    """One prompt: attempt 0 failed, 1 and 2 are right; three corrections of 0, the last two right; one of 1, right."""
    batch = scored(["-++-+++"], extra=False)
    batch.non_tensor_batch["uid"] = objects(["u0"] * 3 + ["u0_c0"] * 3 + ["u0_c1"])
    batch.non_tensor_batch["session_id"] = np.array([0, 1, 2, 0, 1, 2, 0])
    for row, mark in enumerate(batch.non_tensor_batch["cipo"]):
        if row > 2:
            mark["anchor_correct"] = row == 6
    batch.non_tensor_batch["raw_prompt"][4] = [{"role": "user", "content": "Q0 corrected"}]
    # What is seen of the corrections' own prompts.
    batch.batch["prompts"][3:] = ord("c")
    return batch


def test_the_first_right_correction_is_preferred_over_its_attempt():
    batch = corrected()
    out, _ = appended(batch, kind="contrastive", source="resample")
    assert out.batch["cipo_aux_sign"].tolist() == [0, 0, 0, 0, 1, 0, 0, -1]
    assert out.batch["cipo_aux_pair"].tolist() == [-1, -1, -1, -1, 0, -1, -1, 0]
    assert torch.equal(out.batch["responses"][7], batch.batch["responses"][0])
    assert torch.equal(out.batch["prompts"][7], batch.batch["prompts"][4])
    assert out.non_tensor_batch["raw_prompt"][7] == batch.non_tensor_batch["raw_prompt"][4]
    assert out.non_tensor_batch["uid"][7] == "u0_c0r"
    fill_partners(out, -torch.ones(8, R))


def test_corrections_are_trained_where_they_are_but_for_rejected_ones():
    batch = corrected()
    batch.batch["response_mask"][[0, 4]] = 0
    out, _ = appended(batch, source="resample")
    assert out.batch["cipo_aux_sign"].tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert out.batch["cipo_aux_weights"].sum(-1).tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 0])


# ---- verl's own statistics


def with_old_log_probs(batch, n):
    """Old log-probabilities, equal on the first n rows whatever follows them."""
    generator = torch.Generator().manual_seed(9)
    noise = 0.4 * torch.randn(n, R, generator=generator)
    new = -5 * torch.rand(len(batch) - n, R, generator=generator)
    batch.batch["old_log_probs"] = torch.cat([batch.batch["rollout_log_probs"][:n] + noise, new])
    return batch


@pytest.mark.parametrize(
    "settings_",
    [
        {"rollout_is": "token", "rollout_is_threshold": 1.1},
        {"rollout_is": "sequence", "rollout_is_threshold": 1.5},
        {"rollout_is": "token", "rollout_is_threshold": 1.1, "rollout_is_batch_normalize": True},
        {"rollout_is": "sequence", "rollout_is_batch_normalize": True},
        {"rollout_is": "token", "rollout_is_threshold": "0.5_2.0"},
        {"rollout_is": "token", "rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.2"},
        {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.7_1.3"},
        {"rollout_rs": "seq_max_k2", "rollout_rs_threshold": "0.1"},
        {"rollout_rs": "seq_mean_k3,token_k2", "rollout_rs_threshold": "0.05,0.2"},
    ],
    ids=lambda settings_: "-".join(map(str, settings_.values())),
)
def test_rollout_correction_does_not_see_the_new_rows(settings_):
    batch = scored(["-+-", "+--+", "-", "++-"])
    n = len(batch)
    out, counts = appended(batch, kind="contrastive")
    assert counts["aux/pairs"] == 5
    corrected, metrics = compute_rollout_correction_and_add_to_batch(
        with_old_log_probs(out, n), OmegaConf.create(settings_)
    )
    alone, expected = compute_rollout_correction_and_add_to_batch(
        with_old_log_probs(batch, n), OmegaConf.create(settings_)
    )
    for key in {"response_mask", "rollout_is_weights"} & set(alone.batch.keys()):
        torch.testing.assert_close(corrected.batch[key][:n], alone.batch[key], rtol=1e-6, atol=0)
    assert not corrected.batch["response_mask"][n:].any()
    # Token metrics are the same. Those that are means over sequences count every row of a batch, verl's padding too.
    assert metrics.keys() == expected.keys()
    different = [key for key in metrics if metrics[key] != pytest.approx(expected[key], rel=1e-5)]
    by_row = ("_seq", "ppl", *(["ratio_fraction"] if settings_.get("rollout_is") == "sequence" else []))
    assert [key for key in different if not any(mark in key for mark in by_row)] == []


def test_appended_right_before_the_update_nothing_of_verls_has_seen_the_rows():
    batch = with_old_log_probs(scored(["-+-", "+--+", "-", "++-"]), 11)
    n = len(batch)
    batch, _ = compute_rollout_correction_and_add_to_batch(
        batch, OmegaConf.create({"rollout_is": "token", "rollout_rs": "seq_max_k2", "rollout_rs_threshold": "0.3"})
    )
    rejected = int((batch.batch["response_mask"].sum(-1) == 0).sum())
    assert 0 < rejected < n
    for key in ("ref_log_prob", "values", "advantages", "returns", "token_level_rewards"):
        batch.batch[key] = torch.rand(n, R)
    out, counts = appended(batch)
    assert counts["aux/pairs"] > 0
    computed = (
        "response_mask",
        "old_log_probs",
        "rollout_is_weights",
        "ref_log_prob",
        "values",
        "advantages",
        "returns",
    )
    for key in (*computed, "token_level_rewards"):
        assert torch.equal(out.batch[key][:n], batch.batch[key])
        assert not out.batch[key][n:].any()
    # What rollout rejection took out is neither shown nor learnt.
    assert all(batch.batch["response_mask"][i].any() for i in out.batch["row_extra"][n:].tolist())


@pytest.mark.parametrize("by_std", [True, False])
def test_grpo_advantages_are_those_without_the_new_rows(by_std):
    batch = scored(["-+-", "+--+", "-", "++-"])
    out, _ = appended(batch, kind="contrastive")
    for one in (batch, out):
        one.batch["token_level_rewards"] = one.batch["rm_scores"]
        compute_advantage(one, adv_estimator="grpo", norm_adv_by_std_in_grpo=by_std)
    assert torch.equal(out.batch["advantages"][: len(batch)], batch.batch["advantages"])
    assert not out.batch["advantages"][len(batch) :].any()
    assert batch.batch["advantages"].any()
