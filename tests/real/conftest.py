"""Real runs of verl with vLLM on the CPU, each made once and looked at by several tests."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from examples.tiny.task import Task, overrides
from tests.conftest import ROOT
from verl_cipo.integration.cpu import launch

TASK = {"train_batch_size": 4, "n": 4, "val_n": 1}
STEPS = 2
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    task: Task
    metrics: list[dict]

    def rollouts(self, step: int) -> list[dict]:
        """verl's dump of one step: a dict a row with input, output, gts, score, uid."""
        return [json.loads(line) for line in (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict]:
        """Metrics of the training steps."""
        return [line["data"] for line in self.metrics if "training/global_step" in line["data"]]


def run(task_folder: Path, folder: Path, *options: str, config_args=None, env=None) -> Run:
    """Two steps of verl."""
    task = Task(folder=task_folder, **TASK)
    extra = {} if config_args is None else {"config_args": config_args}
    launch.train(
        [
            *overrides(task),
            f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}",
            f"trainer.total_training_steps={STEPS}",
            "data.val_max_samples=16",
            f"trainer.test_freq={STEPS}",
            f"trainer.rollout_data_dir={folder / 'rollouts'}",
            f"trainer.validation_data_dir={folder / 'validation'}",
            f"trainer.default_local_dir={folder / 'checkpoints'}",
            *options,
        ],
        output=folder,
        env=env,
        timeout=600,
        **extra,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Run(folder=folder, task=task, metrics=lines)


def cpu_options() -> list[str]:
    """The leaves of cpu.yaml as command-line overrides, for a run with verl's own config."""
    config = OmegaConf.load(ROOT / "verl_cipo" / "config" / "cpu.yaml")
    del config["hydra"], config["defaults"]

    def leaves(node: DictConfig, path: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            name = f"{path}{key}"
            found += leaves(value, f"{name}.") if OmegaConf.is_dict(value) else [f"++{name}={value}"]
        return found

    return [*leaves(config), "hydra.run.dir=.", "hydra.output_subdir=null"]


@pytest.fixture(scope="session")
def cipo_run(task_folder, tmp_path_factory) -> Run:
    """verl's own entry point and verl's own config; algorithm.adv_estimator=cipo is all that asks for CIPO."""
    return run(
        task_folder,
        tmp_path_factory.mktemp("cipo"),
        *cpu_options(),
        "algorithm.adv_estimator=cipo",
        "trainer.save_freq=2",
        # Seeds: of so few prompts, unseeded rollouts may all come out alike, and then there is no gradient to see.
        "actor_rollout_ref.rollout.full_determinism=true",
        config_args=(),
    )


@pytest.fixture(scope="session")
def resumed_run(task_folder, tmp_path_factory, cipo_run) -> Run:
    """Goes on from cipo_run's checkpoint with cipo_trainer.yaml, two rollout workers, a barrier, and lambda_corr=0."""
    return run(
        task_folder,
        tmp_path_factory.mktemp("resumed"),
        *cpu_options(),
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={cipo_run.folder / 'checkpoints' / f'global_step_{STEPS}'}",
        f"trainer.total_training_steps={2 * STEPS}",
        "trainer.val_before_train=false",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "algorithm.cipo.schedule=barrier",
        "algorithm.cipo.lambda_corr=0",
        "algorithm.cipo.val_corrections=0",
        config_args=("--config-path", "pkg://verl_cipo.config", "--config-name", "cipo_trainer"),
    )


# Greedy decoding: vLLM's sampling depends on which requests happen to share a batch.
GREEDY = ("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.top_k=1")


@pytest.fixture(scope="session")
def grpo_run(task_folder, tmp_path_factory) -> Run:
    """GRPO with the plugin installed."""
    return run(task_folder, tmp_path_factory.mktemp("grpo"), *GREEDY)


@pytest.fixture(scope="session")
def stock_run(task_folder, tmp_path_factory) -> Run:
    """GRPO without the plugin: only the CPU platform is loaded, which stock verl needs to run here at all."""
    env = {
        "VERL_USE_EXTERNAL_PLUGINS": "none",
        "VERL_USE_EXTERNAL_MODULES": "platform_only",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return run(task_folder, tmp_path_factory.mktemp("stock"), *GREEDY, env=env)
