"""Which rows of a TransferQueue batch the auxiliary loss trains, and what is appended for it."""

import pytest
import torch
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.losses import PARTNER, SIGN, WEIGHTS
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.integration.chats import Chats
from verl_cipo.integration.train import aux_batch
from verl_cipo.integration.train import rows as batch_rows
from verl_cipo.integration.train.aux_batch import add_aux_rows, aux_metrics
from verl_cipo.integration.train.rows import RowTable, without_torn_rows

# key -> (answer, right, anchor right or None for an attempt)
ROWS = {
    "a_0_0": ("yes", True, None),
    "a_1_0": ("nope", False, None),
    "a_2_0": ("never", False, None),
    "b_0_0": ("no", False, None),
    "b_1_0": ("not so", False, None),
    "a_c1_0_0": ("wrong", False, False),
    "a_c1_1_0": ("now yes", True, False),
    "a_c1_2_0": ("yes!", True, False),
    "a_c0_0_0": ("yes", True, True),
}
INDEX = {"a": 0, "b": 1}


class Queue:
    """TransferQueue's key-value calls over a dict."""

    def __init__(self):
        self.rows: dict[str, dict] = {}

    def kv_batch_put(self, keys, partition_id, fields, tags=None):
        for i, key in enumerate(keys):
            row = fields[i]
            self.rows.setdefault(key, {}).update({name: row[name] for name in row.keys()})  # noqa: SIM118
        return KVBatchMeta(partition_id=partition_id, keys=keys, tags=tags or [{} for _ in keys])

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        rows = [self.rows[key] for key in keys]
        return list_of_dict_to_tensordict(
            [{name: row[name] for name in select_fields or row if name in row} for row in rows]
        )


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def text(row: dict, name: str) -> str:
    return "".join(map(chr, row[name].tolist()))


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    for module in (aux_batch, batch_rows):
        monkeypatch.setattr(module, "tq", queue)
    for key, (answer, right, anchor) in ROWS.items():
        uid = key[0]
        prompt, response = ids(f"{uid}?" if anchor is None else f"{uid}? try: ..."), ids(answer)
        mark = {"correct": right} | ({} if anchor is None else {"anchor_correct": anchor, "copied": False})
        ones = torch.ones(len(response), dtype=torch.int64)
        queue.rows[key] = {
            "prompts": torch.tensor(prompt),
            "responses": torch.tensor(response),
            "input_ids": torch.tensor(prompt + response),
            "position_ids": torch.arange(len(prompt) + len(response)),
            "response_mask": ones,
            "loss_mask": ones,
            "rm_scores": torch.tensor([0.0] * (len(response) - 1) + [float(right)]),
            "uid": key.rsplit("_", 2)[0],
            "index": INDEX[uid],
            "raw_prompt": [{"role": "user", "content": "".join(map(chr, prompt))}],
            "extra_fields": {"cipo": mark},
            "multi_modal_inputs": {},
        }
    return queue


def sampled(queue) -> KVBatchMeta:
    tags = [
        {"prompt_len": len(row["prompts"]), "response_len": len(row["responses"]), "seq_len": len(row["input_ids"])}
        for row in queue.rows.values()
    ]
    return KVBatchMeta(partition_id="train", keys=list(queue.rows), tags=tags)


def grown(queue, *, in_stream=True, **options):
    config = CIPOConfig.from_mapping({"aux": {"coef": 1.0, **options.pop("aux", {})}, **options})
    prompt = CorrectionPrompt(
        config.prompt,
        prompt_length=10_000,
        count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
        encode=ids,
        decode=lambda tokens: "".join(map(chr, tokens)),
    )
    chats = Chats(
        prompt=prompt,
        encode=lambda messages: ids("".join(message["content"] for message in messages)),
        decode=lambda tokens: "".join(map(chr, tokens)),
    )
    batch = sampled(queue)
    return add_aux_rows(
        batch, RowTable.fetch(batch, threshold=lambda _: 0.5), config=config, chats=chats, step=1, in_stream=in_stream
    )


def fields(queue, batch, aux, *, optimizer_steps=1, contrastive=False) -> dict[str, dict]:
    aux.put_fields(batch, optimizer_steps=optimizer_steps, contrastive=contrastive)
    return {key: queue.rows[key] for key in batch.keys}


def test_right_corrections_of_failed_attempts_are_trained_where_they_are(queue):
    batch, aux = grown(queue)
    assert batch.keys == list(ROWS), "nothing is appended"
    rows = fields(queue, batch, aux, optimizer_steps=2)
    # Two chosen rows, two optimizer steps: weight 2 / 2 = 1 a row, spread over 7 and 4 tokens.
    assert rows["a_c1_1_0"][WEIGHTS].tolist() == pytest.approx([1 / 7] * 7)
    assert rows["a_c1_2_0"][WEIGHTS].tolist() == pytest.approx([1 / 4] * 4)
    trained = {key for key, row in rows.items() if row[WEIGHTS].any()}
    assert trained == {"a_c1_1_0", "a_c1_2_0"}, "neither wrong ones nor those of right attempts"
    assert all(len(row[WEIGHTS]) == len(row["responses"]) for row in rows.values())
    assert aux_metrics([aux])["cipo/aux/rows"] == 2 and aux_metrics([aux])["cipo/rows/aux"] == 0


def test_corrections_without_a_stream_get_rows_of_their_own(queue):
    batch, aux = grown(queue, in_stream=False)
    new = batch.keys[len(ROWS) :]
    assert len(new) == 2
    rows = fields(queue, batch, aux)
    for key, source in zip(new, ("a_c1_1_0", "a_c1_2_0"), strict=True):
        assert text(rows[key], "input_ids") == text(rows[source], "input_ids")
        assert not rows[key]["response_mask"].any() and not rows[key]["rm_scores"].any()
        assert rows[key][WEIGHTS].sum() == pytest.approx(0.5)
        assert not rows[source][WEIGHTS].any()
        assert batch.tags[batch.keys.index(key)]["is_padding"] is True


def test_contrastive_sets_the_failed_attempt_against_the_first_right_correction(queue):
    batch, aux = grown(queue, aux={"kind": "contrastive"})
    (new,) = batch.keys[len(ROWS) :]
    for key in batch.keys:
        queue.rows[key]["old_log_probs"] = torch.full((len(queue.rows[key]["responses"]),), -2.0)
    queue.rows[new]["old_log_probs"] = torch.tensor([-1.0, -2.0, -3.0, -6.0])  # mean -3
    rows = fields(queue, batch, aux, contrastive=True)
    assert text(rows[new], "prompts") == text(rows["a_c1_1_0"], "prompts") and text(rows[new], "responses") == "nope"
    assert {key: row[SIGN].item() for key, row in rows.items() if row[SIGN]} == {"a_c1_1_0": 1.0, new: -1.0}
    assert rows["a_c1_1_0"][PARTNER] == -3.0 and rows[new][PARTNER] == -2.0
    assert rows[new][WEIGHTS].tolist() == [0.25] * 4


def test_a_pair_that_lost_a_side_is_left_out(queue):
    """Rollout correction may reject every token of a row."""
    batch, aux = grown(queue, aux={"kind": "contrastive"})
    for key in batch.keys:
        queue.rows[key]["old_log_probs"] = torch.zeros(len(queue.rows[key]["responses"]))
    queue.rows["a_c1_1_0"]["response_mask"] = torch.zeros(7, dtype=torch.int64)
    rows = fields(queue, batch, aux, contrastive=True)
    assert not any(row[WEIGHTS].any() or row[SIGN] for row in rows.values())


def test_pairs_of_one_prompt_and_of_two(queue):
    batch, aux = grown(queue, source="paired", replay_fraction=2.0)
    metrics = aux_metrics([aux])
    # 4 anchors, all failed: two of prompt a, which has a right rollout, two of prompt b, which takes a's.
    assert metrics["cipo/aux/pairs"] == metrics["cipo/aux/rows"] == metrics["cipo/rows/aux"] == 4
    assert metrics["cipo/aux/adjacent"] == 2 and metrics["cipo/aux/distilled"] == 0
    rows = fields(queue, batch, aux)
    new = {key: rows[key] for key in batch.keys[len(ROWS) :]}
    assert sorted(new) == ["a_p1_0_0", "a_p2_0_0", "b_p0_0_0", "b_p1_0_0"]
    assert all(text(row, "responses") == "yes" for row in new.values())
    assert "a?" in text(new["a_p1_0_0"], "prompts") and "nope" in text(new["a_p1_0_0"], "prompts")
    assert all(part in text(new["b_p1_0_0"], "prompts") for part in ("a?", "b?", "not so"))
    assert all(row[WEIGHTS].tolist() == pytest.approx([1 / 12] * 3) for row in new.values())
    assert not any(rows[key][WEIGHTS].any() for key in ROWS), "sampled corrections are not looked at"


def test_contrastive_pairs_are_of_one_prompt_only(queue):
    batch, aux = grown(queue, source="paired", replay_fraction=2.0, aux={"kind": "contrastive"})
    metrics = aux_metrics([aux])
    assert metrics["cipo/aux/pairs"] == 2 and metrics["cipo/aux/skipped/other_question"] == 2
    assert sorted(batch.keys[len(ROWS) :]) == ["a_p1_0_0", "a_p1_1_0", "a_p2_0_0", "a_p2_1_0"]
    assert text(queue.rows["a_p1_1_0"], "responses") == "nope"
    assert text(queue.rows["a_p1_1_0"], "prompts") == text(queue.rows["a_p1_0_0"], "prompts")


def test_both_sources_are_trained_together(queue):
    batch, aux = grown(queue, source="both", replay_fraction=1.0, aux={"kind": "contrastive"})
    for key in batch.keys:
        queue.rows[key]["old_log_probs"] = torch.full((len(queue.rows[key]["responses"]),), -1.0)
    rows = fields(queue, batch, aux, contrastive=True)
    pairs = aux_metrics([aux])["cipo/aux/rows"]
    assert pairs == 1 + aux_metrics([aux])["cipo/aux/pairs"] >= 2
    assert sum(row[WEIGHTS].sum().item() for row in rows.values()) == pytest.approx(2.0), "1 for each side"


@pytest.mark.parametrize("source", ["resample", "both"])
def test_right_corrections_of_mostly_failing_prompts_are_trained_on_the_plain_prompt_too(queue, source):
    # One of prompt a's three attempts is right: a rate of 1/3.
    batch, aux = grown(queue, source=source, aux={"distill_below": 0.34})
    new = [key for key in batch.keys if "q_" in key]
    rows = fields(queue, batch, aux)
    assert new == ["a_c1q_0_0", "a_c1q_1_0"]
    for key, of in zip(new, ("a_c1_1_0", "a_c1_2_0"), strict=True):
        assert text(rows[key], "prompts") == "a?" and text(rows[key], "responses") == text(rows[of], "responses")
        assert text(rows[key], "input_ids") == "a?" + text(rows[of], "responses")
        assert rows[key]["raw_prompt"] == [{"role": "user", "content": "a?"}] and rows[key]["uid"] == "a_c1q"
        assert rows[key][SIGN] == rows[of][SIGN] == 1.0, "where they are, too"
        assert not rows[key]["response_mask"].any() and not rows[key]["rm_scores"].any()
        assert batch.tags[batch.keys.index(key)]["is_padding"] is True
    metrics = aux_metrics([aux])
    assert metrics["cipo/aux/distilled"] == 2
    chosen = 4 + metrics["cipo/aux/pairs"]
    assert metrics["cipo/aux/rows"] == chosen and metrics["cipo/rows/aux"] == chosen - 2
    assert rows[new[1]][WEIGHTS].tolist() == pytest.approx([1 / chosen / 4] * 4), "one mean over all"


@pytest.mark.parametrize("below", [0.0, 1 / 3])
def test_corrections_of_other_prompts_are_not_distilled(queue, below):
    batch, aux = grown(queue, aux={"distill_below": below})
    assert batch.keys == list(ROWS)
    assert aux_metrics([aux])["cipo/aux/distilled"] == 0 and aux_metrics([aux])["cipo/aux/rows"] == 2


def test_distilled_corrections_without_a_stream_get_both_rows(queue):
    batch, aux = grown(queue, in_stream=False, aux={"distill_below": 1.0})
    assert batch.keys[len(ROWS) :] == ["a_c1a_0_0", "a_c1a_1_0", "a_c1q_0_0", "a_c1q_1_0"]
    rows = fields(queue, batch, aux)
    assert {key for key, row in rows.items() if row[WEIGHTS].any()} == set(batch.keys[len(ROWS) :])
    assert text(rows["a_c1a_0_0"], "prompts") == "a? try: ..." and text(rows["a_c1q_0_0"], "prompts") == "a?"


def test_the_plain_prompt_is_the_first_output_of_any_attempt(queue):
    """An attempt of several outputs shows the earlier ones in the prompts of the later; the corrected one may miss."""
    del queue.rows["a_1_0"]
    queue.rows = {"a_0_1": {**queue.rows["a_0_0"], "prompts": torch.tensor(ids("a? then"))}} | queue.rows
    batch, _ = grown(queue, aux={"distill_below": 1.0})
    assert [text(queue.rows[key], "prompts") for key in batch.keys if "q_" in key] == ["a?", "a?"]


@pytest.mark.parametrize("shows", ["a_0_0", "a_c1_1_0"])
def test_an_image_is_not_distilled(queue, shows):
    queue.rows[shows]["multi_modal_inputs"] = {"pixel_values": torch.zeros(1)}
    batch, aux = grown(queue, aux={"distill_below": 1.0})
    given_up = 2 if shows == "a_0_0" else 1
    metrics = aux_metrics([aux])
    assert metrics["cipo/aux/skipped/no_text_question"] == given_up
    assert metrics["cipo/aux/distilled"] == len(batch.keys) - len(ROWS) == 2 - given_up


def test_appended_rows_keep_their_place_in_the_stable_order(queue):
    batch, _ = grown(queue, source="paired", replay_fraction=2.0)
    table = RowTable.fetch(sampled(queue).select_keys(list(ROWS)), threshold=lambda _: 0.5)
    order = table.stable_order(batch.keys, seed=1, step=1)
    shuffled = batch.keys[::-1]
    again = table.stable_order(shuffled, seed=1, step=1)
    assert [batch.keys[i] for i in order] == [shuffled[i] for i in again]
    assert sorted(order) == list(range(len(batch.keys)))
    assert table.streams(batch.keys).tolist() == [0] * 5 + [1] * 4 + [3] * 4


def test_an_attempt_whose_row_is_missing_makes_no_pair(queue):
    del queue.rows["a_1_0"]
    batch, aux = grown(queue, aux={"kind": "contrastive"})
    assert batch.keys == [key for key in ROWS if key != "a_1_0"] and not aux.sign


def test_a_correction_that_shows_an_image_gets_no_row_of_its_own(queue):
    queue.rows["a_c1_1_0"]["multi_modal_inputs"] = {"pixel_values": torch.zeros(1)}
    batch, aux = grown(queue, in_stream=False)
    assert len(batch.keys) == len(ROWS) + 1
    assert aux_metrics([aux])["cipo/aux/skipped/no_text_question"] == 1
    assert aux_metrics([aux])["cipo/aux/rows"] == 1


def test_a_row_that_was_stored_in_part_is_cleared(queue, monkeypatch):
    cleared = []
    monkeypatch.setattr(queue, "kv_clear", lambda keys, partition_id: cleared.extend(keys), raising=False)
    tags = [{"status": "success"} for _ in ROWS]
    whole = KVBatchMeta(partition_id="train", keys=list(ROWS), tags=tags)
    assert without_torn_rows(whole) is whole
    torn = KVBatchMeta(partition_id="train", keys=[*ROWS, "a_c1_3_0", "a_3_0"], tags=[*tags, {}, {}])
    assert without_torn_rows(torn).keys == list(ROWS)
    assert cleared == ["a_3_0", "a_c1_3_0"]
