"""Transfer and distillation on both data planes: rows and weights of a DataProto are those of a TransferQueue batch."""

import numpy as np
import pytest
import torch
import transfer_queue as tq
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts.support.store import FUNCTIONS, Store
from tests.fast.integration.scored_batch import PAD, R, chats_of, encode_chat, scored, text_of
from tests.fast.integration.train.test_aux import sample
from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS
from verl_cipo.core.aux_loss.transfer import TRANSFER_WEIGHTS
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.tools import NO_TOOLS, RunTools
from verl_cipo.integration.train.aux import add_aux_rows
from verl_cipo.integration.train.rows import fetch_table
from verl_cipo.integration.v0.aux import append_rows, plan_of_batch
from verl_cipo.integration.v0.rows import Padding, objects, row_keys, row_table


def corrected(outcomes, corrections):
    """Attempts, a string of + and - a prompt, and the corrections of each prompt's attempt 0, likewise."""
    batch = scored([*outcomes, *corrections], extra=False)
    groups = [f"u{i}" for i in range(len(outcomes))] + [f"u{i}_c0" for i in range(len(corrections))]
    whole = list(zip(groups, [*outcomes, *corrections], strict=True))
    batch.non_tensor_batch["uid"] = objects([name for name, own in whole for _ in own])
    number = np.array([int(name[1:].partition("_")[0]) for name, own in whole for _ in own])
    batch.non_tensor_batch["index"] = number
    batch.non_tensor_batch["raw_prompt"] = objects([[{"role": "user", "content": f"Q{i}"}] for i in number])
    for name, mark in zip(batch.non_tensor_batch["uid"], batch.non_tensor_batch["cipo"], strict=True):
        mark["score"] = float(mark["correct"])
        if "_c" in name:
            own = outcomes[int(name[1:].partition("_")[0])]
            attempts = (Attempt(name, 0, i, sign == "+", float(sign == "+")) for i, sign in enumerate(own))
            outcome = Group(name, tuple(attempts)).outcome
            mark |= {"anchor_correct": own[0] == "+", **(outcome._asdict() if outcome else {})}
    batch.batch["position_ids"] = (batch.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return batch


def on_v0(batch, config, *, steps=1, norm_by_std=True, field=TRANSFER_WEIGHTS, tools=NO_TOOLS):
    """The grown batch, and key -> (prompt, response, weights) of the rows that have weights in ``field``."""
    how = {"config": config, "rendering": chats_of(config, tools=tools), "step": 3, "norm_by_std": norm_by_std}
    plan = plan_of_batch(batch, row_table(batch), **how)
    grown = append_rows(batch, plan, config=config, pad_token_id=PAD, optimizer_steps=steps)
    keys = [*row_keys(batch), *(str(row.key) for row in plan.rows)]
    weights = grown.batch[field]
    return grown, {
        key: (text_of(grown, i, "prompts"), text_of(grown, i, "responses"), weights[i][weights[i] != 0].tolist())
        for i, key in enumerate(keys)
        if weights[i].any()
    }


def on_v1(batch, config, *, steps=1, norm_by_std=True, field=TRANSFER_WEIGHTS, tools=NO_TOOLS):
    """The same, of a batch of TransferQueue with these rows."""
    store = Store()
    with pytest.MonkeyPatch.context() as patch:
        for name in FUNCTIONS:
            patch.setattr(tq, name, getattr(store, name))
        for i, key in enumerate(row_keys(batch)):
            row = sample(batch, i)
            tag = {"prompt_len": len(row["prompts"]), "response_len": len(row["responses"]), "status": "success"}
            info = batch.non_tensor_batch["extra_info"][i] if "extra_info" in batch.non_tensor_batch else {}
            row |= {"extra_fields": {"cipo": row["cipo"]}, "multi_modal_inputs": {}, "extra_info": info}
            store.put(key, tag, **row)
        meta = store.meta(*store.rows)
        table = fetch_table(meta, threshold=lambda _: 0.5)
        how = {"config": config, "rendering": chats_of(config, tools=tools), "step": 3, "norm_by_std": norm_by_std}
        meta, aux = add_aux_rows(meta, table, in_stream=True, **how)
        meta = aux.put_fields(meta, config=config, optimizer_steps=steps)
        rows = {key: store.rows[key] for key in meta.keys}
    return {
        key: ("".join(map(chr, row["prompts"])), "".join(map(chr, row["responses"])), found[found != 0].tolist())
        for key, row in rows.items()
        if (found := row[field]).any()
    }


marks = st.text("+-", min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(marks, marks), min_size=1, max_size=4),
    st.sampled_from(["regress", "inject"]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_both_trainers_transfer_the_same(prompts, kind, below, steps, norm_by_std, own):
    batch = corrected([attempts for attempts, _ in prompts], [fixed for _, fixed in prompts])
    config = CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": kind, "below": below, "own": own}})
    _, found = on_v0(batch, config, steps=steps, norm_by_std=norm_by_std)
    other = on_v1(batch, config, steps=steps, norm_by_std=norm_by_std)
    assert found.keys() == other.keys()
    for key, (prompt, response, weights) in found.items():
        assert (prompt, response) == other[key][:2] and prompt == f"Q{key[1:].partition('_')[0]}>"
        assert weights == pytest.approx(other[key][2], rel=1e-5)


def test_appended_rows_are_trained_by_transfer_alone():
    batch = corrected(["----", "++-+"], ["+-", "+"])
    config = CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "regress"}})
    grown, moved = on_v0(batch, config, steps=2)
    assert list(moved) == ["u0_c0q_0_0"], "the other one has no advantage"
    # A = 1, two prompts, two rows of the prompt, two steps.
    assert sum(moved["u0_c0q_0_0"][2]) == pytest.approx(2 / 2 / 2)
    n = len(batch)
    assert len(grown) == n + 1
    assert torch.equal(grown.batch["responses"][n], batch.batch["responses"][8])
    for key in ("response_mask", "rm_scores", "rollout_log_probs"):
        assert not grown.batch[key][n:].any() and torch.equal(grown.batch[key][:n], batch.batch[key])
    assert not {"cipo_aux_sign", "cipo_aux_weights"} & set(grown.batch.keys())
    with pytest.raises(ValueError, match=r"\['cipo_transfer_weights'\]: rows were appended before"):
        on_v0(grown.select_idxs(np.arange(n)), config)


def test_a_row_that_fills_the_batch_up_is_not_transferred():
    grown, moved = on_v0(
        corrected(["----"], ["+"]), CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "inject"}})
    )
    assert len(moved) == 1 and len(grown) == 6
    # The row itself is the shortest.
    grown.batch["attention_mask"][5, :-1] = 0
    padded = Padding(np.array([True] * 6 + [False] * 2)).add(grown)
    assert torch.equal(padded.batch["responses"][6], grown.batch["responses"][5])
    assert padded.batch["cipo_transfer_weights"].any(dim=-1).tolist() == [False] * 5 + [True] + [False] * 2
    assert padded.batch["cipo_transfer_weights"].shape == (8, R)


def test_a_correction_that_rollout_correction_rejected_is_left_out():
    batch = corrected(["----"], ["++"])
    batch.batch["response_mask"][4] = 0
    _, moved = on_v0(batch, CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "regress"}}))
    assert list(moved) == ["u0_c0q_1_0"] and sum(moved["u0_c0q_1_0"][2]) == pytest.approx(1.0)


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_both_trainers_distil_the_same(norm_by_std):
    """Attempts 0 and 1 of the first prompt have contexts; the second has none."""
    batch = corrected(["+-+-", "-+"], ["+-"])
    for row in (0, 1):
        batch.non_tensor_batch["raw_prompt"][row] = [{"role": "user", "content": "Q0 hint"}]
        chat = [{"role": "user", "content": "Q0"}]
        batch.non_tensor_batch["cipo"][row] |= {"context": row, "question": chat}
    config = CIPOConfig.from_mapping({"preset": "stream", "nudge": {"contexts": "hints", "between": 1.5}})
    how = {"steps": 2, "norm_by_std": norm_by_std, "field": NUDGE_WEIGHTS}
    grown, found = on_v0(batch, config, **how)
    other = on_v1(batch, config, **how)
    assert set(found) == set(other) == {"u0_2_0", "u0_3_0", "u1_0_0", "u1_1_0", "u0_n0_0_0", "u0_n1_0_0"}
    for key, (prompt, response, weights) in found.items():
        assert (prompt, response) == other[key][:2] and prompt == f"Q{key[1]}>"
        assert weights == pytest.approx(other[key][2], rel=1e-5)
    if not norm_by_std:
        # Right, wrong, right, wrong under 0, 1 and plainly: .75, -.75, .5, -.5; six attempts, two steps.
        assert [sum(found[key][2]) for key in ("u0_n0_0_0", "u0_2_0")] == pytest.approx([0.75 / 3, 0.5 / 3])
    padded = Padding(np.array([True] * len(grown) + [False])).add(grown)
    assert not padded.batch[NUDGE_WEIGHTS][-1].any()
    with pytest.raises(ValueError, match=r"\['cipo_nudge_weights'\]: rows were appended before"):
        on_v0(grown.select_idxs(np.arange(len(batch))), config, field=NUDGE_WEIGHTS)


def test_an_attempt_that_rollout_correction_rejected_is_not_distilled():
    batch = corrected(["+-"], ["++"])
    batch.non_tensor_batch["cipo"][0] |= {"context": 0, "question": [{"role": "user", "content": "Q0"}]}
    config = CIPOConfig.from_mapping({"preset": "stream", "nudge": {"contexts": "hints"}})
    batch.batch["response_mask"][0] = 0
    grown, found = on_v0(batch, config, norm_by_std=False, field=NUDGE_WEIGHTS)
    assert list(found) == ["u0_1_0"] and len(grown) == len(batch)
    # .55 under the context and -.5, less their mean; two attempts.
    assert sum(found["u0_1_0"][2]) == pytest.approx(-0.525 / 2)


def test_both_trainers_offer_the_tools_that_a_row_selects():
    """All attempts have a context, so the plain prompt is rendered anew."""
    batch = corrected(["+-"], ["++"])
    schemas = [{"type": "function", "function": {"name": name}} for name in ("find", "add", "ask")]
    for row in range(len(batch)):
        batch.non_tensor_batch["cipo"][row] |= {"context": 0, "question": [{"role": "user", "content": "Q0"}]}
        batch.non_tensor_batch["raw_prompt"][row] = [{"role": "user", "content": "Q"}]
    batch.non_tensor_batch["extra_info"] = objects([{"tool_selection": ["ask", "find"]}] * len(batch))
    config = CIPOConfig.from_mapping({"preset": "stream", "nudge": {"contexts": "hints"}})
    tools = RunTools(schemas)
    asked = encode_chat([{"role": "user", "content": "Q"}], [schemas[2], schemas[0]])
    batch.batch["prompts"], batch.batch["input_ids"], batch.batch["attention_mask"] = with_prompt(batch, asked)
    batch.batch["position_ids"] = (batch.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    how = {"field": NUDGE_WEIGHTS, "tools": tools}
    for found in (on_v0(batch, config, **how)[1], on_v1(batch, config, **how)):
        assert {prompt for prompt, *_ in found.values()} == {"Q0>[ask][find]"} and len(found) == 2


def with_prompt(batch, ids):
    """Prompts, input ids and attention mask with the same prompt in all rows."""
    n = len(batch)
    prompts = torch.tensor([ids] * n)
    mask = torch.cat([torch.ones_like(prompts), batch.batch["attention_mask"][:, -R:]], dim=1)
    return prompts, torch.cat([prompts, batch.batch["responses"]], dim=1), mask
