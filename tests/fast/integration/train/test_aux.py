"""What the auxiliary loss trains in a TransferQueue batch: the rows that are appended for it, and its fields."""

import numpy as np
import pytest
import torch
import transfer_queue as tq
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

from tests.contracts.support.store import FUNCTIONS, Store
from tests.fast.core.aux_loss.test_plan import ROWS
from tests.fast.integration.scored_batch import FIELDS, R, appended, chats_of, decode, encode, scored
from verl_cipo.core.anchors import Outcome
from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS
from verl_cipo.core.aux_loss.losses import PARTNER, SIGN, WEIGHTS
from verl_cipo.core.aux_loss.plan import AuxPlan, plan_metrics
from verl_cipo.core.aux_loss.transfer import TRANSFER_WEIGHTS
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.train.aux import AuxRows, add_aux_rows, aux_row, aux_tag
from verl_cipo.integration.train.rows import fetch_table


def text(row: dict, name: str) -> str:
    return decode(row[name].tolist())


@pytest.fixture
def store(monkeypatch):
    store = Store()
    for name in FUNCTIONS:
        monkeypatch.setattr(tq, name, getattr(store, name))
    for key, (answer, right, anchor) in ROWS.items():
        asked = f"{key[0]}?" if anchor is None else f"{key[0]}? try: ..."
        prompt, response = encode(asked), encode(answer)
        mark = {"correct": right} | ({} if anchor is None else {"anchor_correct": anchor, "copied": False})
        ones = torch.ones(len(response), dtype=torch.int64)
        store.put(
            key,
            {"prompt_len": len(prompt), "response_len": len(response), "seq_len": len(prompt) + len(response)},
            prompts=torch.tensor(prompt),
            responses=torch.tensor(response),
            input_ids=torch.tensor(prompt + response),
            position_ids=torch.arange(len(prompt) + len(response)),
            response_mask=ones,
            loss_mask=ones,
            rm_scores=torch.tensor([0.0] * (len(response) - 1) + [float(right)]),
            old_log_probs=torch.full((len(response),), -2.0),
            uid=key.rsplit("_", 2)[0],
            index="ab".index(key[0]),
            data_source="toy",
            raw_prompt=[{"role": "user", "content": asked}],
            extra_fields={"cipo": mark},
            multi_modal_inputs={},
        )
    return store


def grown(store, *, in_stream=True, norm_by_std=True, **options):
    config = CIPOConfig.from_mapping({"preset": "stream", "aux": {"coef": 1.0, **options.pop("aux", {})}, **options})
    batch = store.meta(*ROWS)
    table = fetch_table(batch, threshold=lambda _: 0.5)
    how = {"config": config, "rendering": chats_of(config), "step": 1, "in_stream": in_stream}
    return add_aux_rows(batch, table, norm_by_std=norm_by_std, **how)


def written(store, batch, rows, *, optimizer_steps=1, kind="nll", **knobs) -> dict[str, dict]:
    config = CIPOConfig.from_mapping({"preset": "stream", "aux": {"coef": 1.0, "kind": kind}, **knobs})
    rows.put_fields(batch, config=config, optimizer_steps=optimizer_steps)
    return {key: store.rows[key] for key in batch.keys}


def test_rows_of_the_batch_are_trained_where_they_are(store):
    batch, aux = grown(store)
    assert batch.keys == list(ROWS), "nothing is appended"
    rows = written(store, batch, aux, optimizer_steps=2)
    # Two chosen rows, two optimizer steps: weight 2 / 2 = 1 a row, spread over 7 and 4 tokens.
    assert rows["a_c1_1_0"][WEIGHTS].tolist() == pytest.approx([1 / 7] * 7)
    assert rows["a_c1_2_0"][WEIGHTS].tolist() == pytest.approx([1 / 4] * 4)
    assert {key for key, row in rows.items() if row[WEIGHTS].any()} == {"a_c1_1_0", "a_c1_2_0"}
    assert all(len(row[WEIGHTS]) == len(row["responses"]) for row in rows.values())


def test_with_by_signal_rows_weigh_by_the_prompts_whose_attempts_differ(store):
    """One of two."""
    batch, aux = grown(store, aux={"coef": 1.0, "by_signal": True})
    rows = written(store, batch, aux, optimizer_steps=2)
    assert rows["a_c1_1_0"][WEIGHTS].tolist() == pytest.approx([1 / 14] * 7)
    assert rows["a_c1_2_0"][WEIGHTS].tolist() == pytest.approx([1 / 8] * 4)


def test_appended_rows_hold_a_response_under_another_prompt_which_this_loss_alone_trains(store):
    batch, aux = grown(store, in_stream=False)
    sources, new = ["a_c1_1_0", "a_c1_2_0"], batch.keys[len(ROWS) :]
    assert new == ["a_c1a_0_0", "a_c1a_1_0"]
    rows = written(store, batch, aux)
    for key, source in zip(new, sources, strict=True):
        asked = "a? try: ..."
        assert text(rows[key], "prompts") == asked and rows[key]["raw_prompt"] == [{"role": "user", "content": asked}]
        assert text(rows[key], "input_ids") == asked + text(rows[source], "responses")
        assert rows[key]["uid"] == key.rsplit("_", 2)[0]
        assert not rows[key]["response_mask"].any() and not rows[key]["rm_scores"].any()
        assert batch.tags[batch.keys.index(key)]["is_padding"] is True
        assert rows[key][WEIGHTS].sum() == pytest.approx(1 / 2) and not rows[source][WEIGHTS].any()


def note_outcomes(store):
    """Of prompt a one of three attempts was right."""
    for key, row in store.rows.items():
        if "_c" in key:
            row["extra_fields"]["cipo"] |= Outcome(1, 3, 1 / 3, 2**0.5 / 3)._asdict()


def test_transfer_appends_corrections_under_the_plain_prompt(store):
    note_outcomes(store)
    on = {"aux": {"coef": 0.0}, "transfer": {"kind": "regress", "below": 0.5}}
    batch, aux = grown(store, **on)
    new = batch.keys[len(ROWS) :]
    assert new == ["a_c1q_0_0", "a_c1q_1_0", "a_c1q_2_0"] and batch.keys[: len(ROWS)] == list(ROWS)
    rows = written(store, batch, aux, optimizer_steps=2, **on)
    # A = -1/3, 2/3, 2/3; two prompts, three rows of one, two steps; "wrong", "now yes" and "yes!".
    for key, source, advantage, tokens in zip(
        new, ["a_c1_0_0", "a_c1_1_0", "a_c1_2_0"], [-1 / 3, 2 / 3, 2 / 3], [5, 7, 4], strict=True
    ):
        row = rows[key]
        assert text(row, "input_ids") == "a?" + text(rows[source], "responses")
        assert row["raw_prompt"] == [{"role": "user", "content": "a?"}] and row["uid"] == "a_c1q"
        assert row["position_ids"].tolist() == list(range(2 + tokens))
        assert not row["response_mask"].any() and not row["rm_scores"].any() and not row["old_log_probs"].any()
        assert row[TRANSFER_WEIGHTS].tolist() == pytest.approx([2 * advantage / 2 / 3 / tokens] * tokens)
        assert batch.tags[batch.keys.index(key)]["is_padding"] is True
    assert not any(rows[key][TRANSFER_WEIGHTS].any() for key in ROWS)
    assert not any(name in row for row in rows.values() for name in (WEIGHTS, SIGN, PARTNER))


def test_what_is_replayed_is_appended_under_a_prompt_that_the_batch_does_not_have(store):
    note_outcomes(store)
    for key, row in store.rows.items():
        if "_c" in key:
            row["extra_fields"]["cipo"]["question"] = [{"role": "user", "content": "old?"}]
    on = {"transfer": {"kind": "inject", "below": 0.5}, "schedule": "replay"}
    batch, aux = grown(store, aux={"coef": 0.0}, **on)
    (new,) = batch.keys[len(ROWS) :]
    row = written(store, batch, aux, aux={"coef": 0.0}, **on)[new]
    assert text(row, "prompts") == "old?>" and text(row, "input_ids") == "old?>" + text(row, "responses")
    # Scores 1, 0, 0 and 1: a mean of .5 and a variance of 1/3; three attempts, two prompts.
    assert row[TRANSFER_WEIGHTS].sum() == pytest.approx(0.5 / (1 / 3) ** 0.5 / 3 / 2, rel=1e-4)


def test_attempts_under_contexts_are_appended_under_the_plain_prompt(store):
    """a_0 and a_1 had one context, in a prompt of three attempts with 1, 0 and 0; b's two are wrong."""
    for key in ("a_0_0", "a_1_0"):
        store.rows[key]["extra_fields"]["cipo"] |= {"context": 0, "question": [{"role": "user", "content": "a?"}]}
        store.rows[key]["raw_prompt"] = [{"role": "user", "content": "a? hint"}]
        store.rows[key]["prompts"] = torch.tensor(encode("a? hint"))
    on = {"aux": {"coef": 0.0}, "nudge": {"contexts": "hints", "between": 2.0}, "lambda_corr": 1.0}
    batch, aux = grown(store, norm_by_std=False, **on)
    assert batch.keys[len(ROWS) :] == ["a_n0_0_0", "a_n1_0_0"]
    rows = written(store, batch, aux, optimizer_steps=2, **on)
    # mean 1/3, of the context 1/2: .5 + 1/3, -.5 + 1/3, -1/3; their mean is 1/9. Five attempts, two steps.
    for key, source, advantage in (("a_n0_0_0", "a_0_0", 13 / 18), ("a_n1_0_0", "a_1_0", -5 / 18)):
        row, tokens = rows[key], len(rows[source]["responses"])
        assert text(row, "input_ids") == "a?" + text(rows[source], "responses")
        assert row["raw_prompt"] == [{"role": "user", "content": "a?"}] and not row["response_mask"].any()
        assert row[NUDGE_WEIGHTS].tolist() == pytest.approx([2 * advantage / 5 / tokens] * tokens)
        assert not rows[source][NUDGE_WEIGHTS].any()
    assert rows["a_2_0"][NUDGE_WEIGHTS].sum() == pytest.approx(2 * (-4 / 9) / 5), "where it is"
    assert not any(rows[key][NUDGE_WEIGHTS].any() for key in ROWS if key[0] == "b" or "_c" in key)
    assert TRANSFER_WEIGHTS not in rows["a_2_0"]


def test_with_both_each_has_fields_of_its_own(store):
    note_outcomes(store)
    on = {"transfer": {"kind": "inject", "below": 0.5}}
    batch, aux = grown(store, in_stream=False, **on)
    rows = written(store, batch, aux, **on)
    assert batch.keys[len(ROWS) : -1] == ["a_c1a_0_0", "a_c1a_1_0"] and "q" in batch.keys[-1]
    assert {key for key, row in rows.items() if row[WEIGHTS].any()} == {"a_c1a_0_0", "a_c1a_1_0"}
    assert {key for key, row in rows.items() if row[TRANSFER_WEIGHTS].any()} == {batch.keys[-1]}


def test_a_row_that_wrote_nothing_is_not_transferred(store):
    """A response of a tool alone."""
    note_outcomes(store)
    store.rows["a_c1_1_0"]["response_mask"] = torch.zeros(7, dtype=torch.int64)
    on = {"aux": {"coef": 0.0}, "transfer": {"kind": "regress", "below": 0.5}}
    batch, aux = grown(store, **on)
    rows = written(store, batch, aux, **on)
    assert not rows["a_c1q_1_0"][TRANSFER_WEIGHTS].any() and rows["a_c1q_2_0"][TRANSFER_WEIGHTS].any()


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_a_batch_with_nothing_to_train_has_the_fields_all_the_same(store, kind):
    """The workers fetch them from every row."""
    batch = store.meta(*ROWS)
    rows = written(store, batch, AuxRows(AuxPlan(), {}), kind=kind, transfer={"kind": "regress"})
    assert len(rows) == len(ROWS)
    for row in rows.values():
        assert len(row[WEIGHTS]) == len(row[TRANSFER_WEIGHTS]) == len(row["responses"])
        assert not any(row[name].any() for name in (WEIGHTS, TRANSFER_WEIGHTS, SIGN, PARTNER))


def test_each_side_of_a_pair_sees_the_other(store):
    batch, aux = grown(store, aux={"kind": "contrastive"})
    (new,) = batch.keys[len(ROWS) :]
    store.rows[new]["old_log_probs"] = torch.tensor([-1.0, -2.0, -3.0, -6.0])  # mean -3
    rows = written(store, batch, aux, kind="contrastive")
    assert text(rows[new], "prompts") == text(rows["a_c1_1_0"], "prompts") and text(rows[new], "responses") == "nope"
    assert {key: row[SIGN].item() for key, row in rows.items() if row[SIGN]} == {"a_c1_1_0": 1.0, new: -1.0}
    assert rows["a_c1_1_0"][PARTNER] == -3.0 and rows[new][PARTNER] == -2.0
    assert rows[new][WEIGHTS].tolist() == [0.25] * 4


def test_a_pair_that_lost_a_side_is_left_out(store):
    """Rollout correction may reject every token of a row."""
    batch, aux = grown(store, aux={"kind": "contrastive"})
    store.rows["a_c1_1_0"]["response_mask"] = torch.zeros(7, dtype=torch.int64)
    rows = written(store, batch, aux, kind="contrastive")
    assert not any(row[WEIGHTS].any() or row[SIGN] for row in rows.values())


def test_what_was_rejected_since_is_neither_trained_nor_counted(store):
    """A right attempt of three at a, and one of its two right corrections of wrong attempts."""
    on = {"transfer": {"kind": "inject", "below": 0.5, "own": True}}
    config = CIPOConfig.from_mapping({"preset": "stream", "aux": {"coef": 1.0}, **on})

    def trained(*rejected):
        batch, aux = grown(store, **on)
        for key in rejected:
            store.rows[key]["response_mask"] = torch.zeros_like(store.rows[key]["response_mask"])
        rows = written(store, batch, aux, **on)
        metrics = plan_metrics([aux.plan], config)
        found = {key for key, row in rows.items() if row[WEIGHTS].any() or row[TRANSFER_WEIGHTS].any()}
        return found, metrics["cipo/aux/rows"], metrics["cipo/transfer/own"]

    assert trained() == ({"a_0_0", "a_c1_1_0", "a_c1_2_0"}, 2, 1)
    assert trained("a_0_0", "a_c1_1_0") == ({"a_c1_2_0"}, 1, 0)


def test_all_pairs_weigh_as_much_together_as_one_loss(store):
    batch, aux = grown(store, source="both", replay_fraction=2.0, aux={"kind": "contrastive"})
    rows = written(store, batch, aux, kind="contrastive")
    assert sum(row[SIGN] > 0 for row in rows.values()) == 3
    assert sum(row[WEIGHTS].sum().item() for row in rows.values()) == pytest.approx(2.0), "1 for each side"
    assert {text(rows[key], "responses") for key in ("a_p1_0_0", "a_p2_0_0")} == {"yes"}
    assert "nope" in text(rows["a_p1_0_0"], "prompts") and text(rows["a_p1_1_0"], "responses") == "nope"


# ---- one row, the same as in a batch of DataProto


def sample(batch, row):
    """Row of a padded batch as TransferQueue holds it, without padding or batch dimension."""
    mask = batch.batch["attention_mask"][row].bool()
    width, length = batch.batch["prompts"].shape[1], int(mask[-R:].sum())
    out = {key: values[row] for key, values in batch.non_tensor_batch.items()}
    for key, values in batch.batch.items():
        value = values[row]
        if key in ("input_ids", "attention_mask", "sequence_extra"):
            value = value[mask]
        elif key == "position_ids":
            value = value[..., mask]
        elif key == "prompts":
            value = value[mask[:width]]
        elif value.dim() and value.shape[0] == R:
            value = value[:length]
        out[key] = value
    return out


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_it_is_the_row_of_the_batch(channels, kind):
    batch = scored(["-+", "-"], channels=channels, width=5)
    del batch.batch["prompt_extra"]
    batch.batch["loss_mask"] = batch.batch["response_mask"]
    batch.non_tensor_batch["multi_modal_inputs"] = np.array([None, {}, {}], dtype=object)
    out, counts = appended(batch, kind=kind)
    assert counts["aux/pairs"] == (2 if kind == "nll" else 1)
    for i in range(len(batch), len(out)):
        expected = sample(out, i)
        source = sample(batch, int(out.batch["row_extra"][i]))
        held = {key: value.clone() for key, value in source.items() if isinstance(value, torch.Tensor)}
        row = aux_row(source, expected["prompts"].tolist(), uid=expected["uid"], messages=expected["raw_prompt"])
        assert set(row) == set(source) == set(expected) - FIELDS
        for key, value in row.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == source[key].dtype
                assert torch.equal(value, expected[key]), key
                assert torch.equal(source[key], held[key])
            else:
                assert value == expected[key]


def test_it_is_to_verl_what_its_own_padding_is():
    """Same zeros under the same keys as verl's padding row, which no loss or statistic of verl sees."""
    batch = scored(["-+"], extra=False)
    source = sample(batch, 1)
    source["loss_mask"] = source["response_mask"]
    tag = {"status": "success", "prompt_len": 3, "response_len": len(source["responses"]), "seq_len": 9, "x": 1}
    padding, padding_tag = construct_minimal_padding_template(source, tag, eos_token_id=1)
    row = aux_row(source, [5, 6], uid="u0_p0", messages=[])
    for key, value in padding.items():
        if isinstance(value, torch.Tensor) and value.shape == (1,) and key != "responses":
            assert not value.any() and not row[key].any()
            assert row[key].dtype == value.dtype
    own_tag = aux_tag(tag, row)
    assert own_tag.keys() == padding_tag.keys()
    length = len(source["responses"])
    assert own_tag == tag | {"prompt_len": 2, "response_len": length, "seq_len": 2 + length, "is_padding": True}


def test_routing_that_is_recorded_for_metrics_alone_is_that_of_the_response():
    source = sample(scored(["-+"]), 1)
    length, response = len(source["input_ids"]), len(source["responses"])
    routed = torch.arange(1, 1 + length * 4).reshape(length, 2, 2).to(torch.int16)
    row = aux_row(source | {"routed_experts": routed}, [5, 6, 7], uid="x", messages=[])["routed_experts"]
    assert row.shape == (3 + response, 2, 2) and row.dtype == routed.dtype
    assert torch.equal(row[3:], routed[-response:]) and not row[:3].any()


def test_what_a_batch_is_refused_for():
    source = sample(scored(["-+"]), 1)
    with pytest.raises(ValueError, match="has 'teacher_ids'"):
        aux_row(source | {"teacher_ids": torch.zeros(5, 1)}, [5], uid="x", messages=[])
    del source["response_mask"]
    with pytest.raises(ValueError, match="response_mask must be among"):
        aux_row(source, [5], uid="x", messages=[])
