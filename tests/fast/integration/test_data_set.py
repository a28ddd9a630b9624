"""What is looked at in verl's data set before workers start, on rows of a real file."""

import logging

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from verl.utils.dataset.rl_dataset import RLHFDataset

from examples.tiny.tokenizer import build_tokenizer
from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration.data_set import check_questions
from verl_cipo.integration.train import trainer

QUESTION = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([], [])


def dataset(folder, tokenizer, rows, processor=None, **options):
    path = folder / "rows.parquet"
    pd.DataFrame(rows).to_parquet(path)
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer").data
    config.update({"filter_overlong_prompts": False, **options})
    return RLHFDataset(data_files=str(path), tokenizer=tokenizer, config=config, processor=processor)


def rows(n=4, text="1+1?", **columns):
    made = [
        {"data_source": "sums", "prompt": [{"role": "user", "content": text}], "extra_info": {"index": i}}
        for i in range(n)
    ]
    return [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(made)]


def test_verls_data_set_gives_messages_whether_raw_chats_are_asked_for_or_not(tmp_path, tokenizer, caplog):
    for asked in (False, True):
        found = dataset(tmp_path, tokenizer, rows(), return_raw_chat=asked)
        assert found[3]["raw_prompt"] == QUESTION and found[3]["index"] == 3
        check_questions(found, CIPOConfig(preset="stream"))
    assert caplog.text == ""


def test_columns_of_the_data_set_reach_the_rollout(tmp_path, tokenizer):
    agents = ["tool_agent", "single_turn_agent"]
    made = rows(2, agent_name=agents)
    made[0]["extra_info"]["tools_kwargs"] = made[1]["extra_info"]["tools_kwargs"] = {"lookup": {"word": "a"}}
    found = dataset(tmp_path, tokenizer, made)
    assert [found[i]["agent_name"] for i in range(2)] == agents
    assert found[0]["tools_kwargs"] == {"lookup": {"word": "a"}}


def test_questions_with_images_are_questions(tmp_path, tokenizer, caplog):
    made = rows(text="<image> What is it?", images=[["a.png"]] * 4)
    found = dataset(tmp_path, tokenizer, made, processor=object())
    check_questions(found, CIPOConfig(preset="stream"))
    assert [part["type"] for part in found[0]["raw_prompt"][0]["content"]] == ["image", "text"] and caplog.text == ""


NOBODY = {"raw_prompt": [{"role": "system", "content": "a"}]}


def test_rows_without_a_question_alone_are_refused():
    with pytest.raises(CIPOConfigError) as refused:
        check_questions([{**NOBODY, "index": i} for i in range(4)], CIPOConfig(preset="stream"))
    message = str(refused.value)
    assert message.startswith("data.train_files: none of the 4 rows looked at has a question; in row 0, for example")
    assert "parts" in message and "adv_estimator=grpo" in message


def test_some_rows_without_a_question_are_a_warning(caplog):
    made = [{"raw_prompt": QUESTION, "index": i} for i in range(3)]
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        check_questions([*made, {**NOBODY, "index": 3}], CIPOConfig(preset="stream"))
    assert "1 of the 4 rows looked at have no question" in caplog.text
    assert "cipo/anchors/skipped/no_text_question" in caplog.text


def test_rows_without_a_number_are_a_warning(tmp_path, tokenizer, caplog):
    made = [{**row, "extra_info": {"split": "train"}} for row in rows()]
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        check_questions(dataset(tmp_path, tokenizer, made), CIPOConfig(preset="stream"))
    assert "all 4 rows looked at have extra_info.index=0" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"index": 0}, ["row 0 has no 'raw_prompt'", "data.custom_cls"]),
        ({"raw_prompt": QUESTION}, ["row 0 has no 'index'", "data.custom_cls"]),
        ({"raw_prompt": "1+1?", "index": 0}, ["raw_prompt of row 0 is not a list of messages but '1+1?'"]),
        ({"raw_prompt": [17, 4], "index": 0}, ["raw_prompt of row 0 is not a list of messages but '[17, 4]'"]),
        (
            {"raw_prompt": [{"role": "system", "content": "a"}], "index": 0},
            ["none of the 1 rows", "there is no user message"],
        ),
    ],
    ids=["no prompt", "no index", "text", "token ids", "nobody asks"],
)
def test_prompts_that_no_attempt_can_be_put_into_are_refused(row, words):
    with pytest.raises(CIPOConfigError) as refused:
        check_questions([row], CIPOConfig(preset="stream"))
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_without_corrections_any_questions_will_do():
    check_questions([{**NOBODY, "index": 0}], CIPOConfig(preset="stream", replay_fraction=0.0))


def test_few_rows_of_a_large_data_set_are_read():
    class Large:
        read: list[int] = []

        def __len__(self):
            return 1_000_000

        def __getitem__(self, number):
            self.read.append(number)
            return {"raw_prompt": QUESTION, "index": number}

    check_questions(Large(), CIPOConfig(preset="stream"))
    assert len(Large.read) == 32 and Large.read[0] == 0 and Large.read[-1] == 968_750


def test_the_trainer_looks_at_its_data_set_before_it_starts_workers():
    class Stock:
        def _init_dataloader(self):
            self.train_dataset = [{"raw_prompt": "1+1?", "index": 0}]

    class Trainer(trainer.CIPOTrainerMixin, Stock):
        def __init__(self):
            self.cipo = CIPOConfig(preset="stream")

    with pytest.raises(CIPOConfigError, match="raw_prompt of row 0"):
        Trainer()._init_dataloader()
