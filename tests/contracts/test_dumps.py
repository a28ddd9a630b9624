"""What verl writes for others to read: rollout and validation dumps, and the lines of its file logger."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.contracts.support.seams import calls_in_order, check_parameters, load, seam

BASE = "verl.trainer.ppo.v1:PPOTrainer"
DUMPS, REPORT, LAUNCH = (
    "verl_cipo/evaluation/dumps/rows.py",
    "verl_cipo/evaluation/report/runs.py",
    "verl_cipo/integration/cpu/launch.py",
)


@seam("PPOTrainer._log_rollout_data, _dump_generations, _write_generations", DUMPS, REPORT)
def test_a_line_of_a_rollout_dump(store, tmp_path):
    for key, reward in (("b_0_0", 0.0), ("a_c1_0_0", 1.0)):
        store.put(
            key,
            {},
            uid=key.rsplit("_", 2)[0],
            prompts=torch.tensor([65, 66]),
            responses=torch.tensor([67]),
            rm_scores=torch.tensor([reward]),
            reward_model={"ground_truth": "4"},
        )
    trainer = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=0, decode=lambda ids, skip_special_tokens: "".join(map(chr, ids))),
        global_steps=5,
        _dump_executor=ThreadPoolExecutor(1),
        _dump_futures=[],
        _write_generations=load(f"{BASE}._write_generations"),
    )
    trainer._dump_generations = partial(load(f"{BASE}._dump_generations"), trainer)
    load(f"{BASE}._log_rollout_data")(trainer, store.meta("b_0_0", "a_c1_0_0"), {}, str(tmp_path))
    trainer._dump_executor.shutdown()
    lines = [json.loads(line) for line in (tmp_path / "5.jsonl").read_text().splitlines()]
    shared = {"input": "AB", "output": "C", "gts": "4", "step": 5}
    assert lines == [{**shared, "score": 1.0, "uid": "a_c1_0_0"}, {**shared, "score": 0.0, "uid": "b_0_0"}]


@seam("PPOTrainer._write_generations", DUMPS)
def test_a_verifiers_fields_are_columns_of_the_dump(tmp_path):
    extra = {"acc": [np.float64(1.0)], "pred": ["4"], "torn": []}
    load(f"{BASE}._write_generations")(["Q"], ["A"], ["4"], [1.0], extra, str(tmp_path), 3)
    assert json.loads((tmp_path / "3.jsonl").read_text()) == {
        **{"input": "Q", "output": "A", "gts": "4", "score": 1.0, "step": 3},
        **{"acc": 1.0, "pred": "4"},
    }


@seam("PPOTrainer._validate", "verl_cipo/integration/train/trainer.py", "verl_cipo/core/transitions.py", DUMPS)
def test_a_validation_dispatches_samples_clears_and_dumps():
    calls_in_order(f"{BASE}._validate", "generate_sequences", "sample", "kv_batch_get", "kv_clear", "_dump_generations")
    constants = load(f"{BASE}._validate").__code__.co_consts
    assert {"validate", "global_steps", "validation_data_dir", "val"} <= set(map(str, constants)), (
        "the validation is told to the manager, or dumped, in another way"
    )


@pytest.mark.parametrize(
    ("base", "file"),
    [
        pytest.param(base, file, marks=seam(f"{base.split(':')[1]}._maybe_log_val_generations", file))
        for base, file in (
            (BASE, "verl_cipo/integration/train/trainer.py"),
            ("verl.trainer.ppo.ray_trainer:RayPPOTrainer", "verl_cipo/integration/v0/trainer.py"),
        )
    ],
)
def test_the_table_of_validation_samples_is_drawn_from_columns_at_the_end_of_a_validation(base, file, config):
    """CIPO's trainers let it pass there, and call it with their own columns once verl's validation has returned."""
    calls_in_order(f"{base}._validate", "generate_sequences", "_maybe_log_val_generations")
    config.trainer.log_val_generations = 2
    logged = []
    logger = SimpleNamespace(log=lambda *given: logged.append(given))
    trainer = SimpleNamespace(config=config, global_steps=5, validation_generations_logger=logger)
    columns = {"inputs": ["Q1", "Q2", "Q3"], "outputs": ["A1", "A2", "A3"], "scores": [1.0, 2.0, 3.0]}
    load(f"{base}._maybe_log_val_generations")(trainer, **columns)
    ((loggers, rows, step),) = logged
    assert loggers == config.trainer.logger and step == 5
    assert len(rows) == 2 and set(rows) < {("Q1", "A1", 1.0), ("Q2", "A2", 2.0), ("Q3", "A3", 3.0)}


@seam("utils.tracking.FileLogger, VERL_FILE_LOGGER_PATH", LAUNCH, REPORT)
def test_a_line_of_the_file_logger(monkeypatch, tmp_path):
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    logger = load("verl.utils.tracking:FileLogger")("project", "experiment")
    logger.log({"cipo/rho": np.float32(0.5), "training/global_step": 2}, 2)
    logger.finish()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "data": {"cipo/rho": 0.5, "training/global_step": 2}}
    ]
    check_parameters("verl.utils.tracking:FileLogger.log", ["data", "step"])


@seam("utils.tracking.Tracking", "verl_cipo/integration/values.py")
def test_the_names_of_loggers():
    """What `python -m verl_cipo.check` takes for trainer.logger, and the launch scripts for LOGGER."""
    known = load("verl.utils.tracking:Tracking").supported_backend
    assert {"console", "file", "wandb", "tensorboard", "mlflow"} <= set(known)
