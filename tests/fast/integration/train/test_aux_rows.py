"""A row for the auxiliary loss from one sample of TransferQueue: the same as in a batch of DataProto."""

import numpy as np
import pytest
import torch
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

from tests.fast.integration.scored_batch import FIELDS, R, appended, scored
from verl_cipo.integration.train.aux_rows import aux_row, aux_tag


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
    assert counts["pairs"] == (2 if kind == "nll" else 1)
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


def test_what_a_batch_is_refused_for():
    source = sample(scored(["-+"]), 1)
    with pytest.raises(ValueError, match="has 'routed_experts'"):
        aux_row(source | {"routed_experts": torch.zeros(5, 1)}, [5], uid="x", messages=[])
    del source["response_mask"]
    with pytest.raises(ValueError, match="response_mask must be among"):
        aux_row(source, [5], uid="x", messages=[])
