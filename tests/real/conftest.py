"""Real runs of verl with vLLM on the CPU, each made once and looked at by several tests.

A start takes more than a minute, so a run has as many features as go together. With `-n 2` two go on at a time: one
that starts Ray itself, as the files of :data:`ALONE` do, and one in the Ray cluster that all others share. What differs
from run to run:

| run | what it has |
|---|---|
| `whole`, killed and resumed | the demo: replay, both sources, the auxiliary loss, transfer, two mini-batches a step |
| `loops_run` | streaming, verl's own config, tools, custom loops, KL, entropy, rollout correction, a flaky verifier |
| `async_run` | verl's colocated asynchronous trainer, the math verifier and a second one, transfer |
| `v0_run` | verl's V0 trainer, the contrastive loss, transfer |

Nightly there are more, of GRPO with the plugin and without it among them (docs/testing.md).
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from xdist.scheduler import LoadScopeScheduling

from examples.tiny.task import Task, overrides
from tests.conftest import ROOT
from tests.real import demo
from verl_cipo.integration.cpu import launch

ALONE = (
    "test_kill_resume",
    "test_real_run",
    "test_modes",
    "test_nudge",
    "test_evaluate_suite",
    "test_learning",
    "test_budget",
)
SEPARATE = (
    "trainer.v1.trainer_mode=separate_async",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=file",
    "+actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=file_weights",
    "ray_kwargs.ray_init.num_gpus=2",
)
"""verl's asynchronous trainer with vLLM servers of its own; weights are handed over in a file."""
PROMPTS, N, STEPS = 4, 4, 2
LEARNING_RATE = 1e-4


class TwoAtATime(LoadScopeScheduling):
    """One process has all files of ALONE, the other the rest: each run is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return str(Path(nodeid.partition("::")[0]).stem in ALONE)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> TwoAtATime:
    return TwoAtATime(config, log)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    metrics: list[dict]

    @classmethod
    def of(cls, folder: Path) -> "Run":
        return cls(folder, launch.metrics_lines(folder / "metrics.jsonl"))

    def rollouts(self, step: int) -> list[dict]:
        """verl's dump of one step: a dict a row with input, output, gts, score, uid."""
        return [json.loads(line) for line in (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict]:
        """Metrics of the training steps."""
        return [line["data"] for line in self.metrics if "training/global_step" in line["data"]]

    @property
    def log(self) -> str:
        return (self.folder / "train.log").read_text(errors="replace")

    def actor(self, step: int, kind: str) -> dict:
        """The part ``kind`` of the actor's checkpoint."""
        path = self.folder / "checkpoints" / f"global_step_{step}" / "actor" / f"{kind}_world_size_1_rank_0.pt"
        return torch.load(path, weights_only=False)

    def optimizer_steps(self, step: int) -> set[float]:
        return {float(weight(state["step"])) for state in self.actor(step, "optim")["state"].values()}

    def cipo_json(self, step: int) -> dict:
        return json.loads((self.folder / "checkpoints" / f"global_step_{step}" / "cipo.json").read_text())


def weight(value: torch.Tensor) -> torch.Tensor:
    """The plain tensor in a checkpoint of FSDP2."""
    return getattr(value, "_local_tensor", value).cpu()


def streams(rows: list[dict]) -> tuple[dict[str, list[dict]], dict[str, list[dict]], dict[str, list[dict]]]:
    """Rows by the uid of their group: attempts, corrections, and rows that were made of them; padding left out.

    Attempts have the prompt's uid, corrections ``{uid}_c{session}`` of their anchor.
    """
    base, corrections, made = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in rows:
        if row["uid"].startswith("pad"):
            continue
        group, _session, _index = row["uid"].rsplit("_", 2)
        kind = (
            made
            if "_p" in group or "_n" in group or group.endswith(("r", "q"))
            else corrections
            if "_c" in group
            else base
        )
        kind[group].append(row)
    return base, corrections, made


def question(row: dict) -> str:
    return row["input"].split("user\n", 1)[1].rsplit("assistant", 1)[0].strip()


def content(run: Run, step: int) -> list[tuple]:
    """Attempts and corrections of a step, without what is random in a uid."""
    base, corrections, _ = streams(run.rollouts(step))
    return sorted(
        (row["uid"].split("_", 1)[1], row["input"], row["output"], row["gts"], row["score"])
        for rows in (*base.values(), *corrections.values())
        for row in rows
    )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[str]:
    with launch.ray_cluster(tmp_path_factory.mktemp("cluster") / "ray.log") as address:
        yield address


@pytest.fixture(scope="session")
def run(task_folder, cluster) -> Callable[..., Run]:
    """run(folder, *options) takes two steps of verl in the session's Ray cluster."""
    return partial(train, task_folder, cluster=cluster)


@pytest.fixture(scope="session")
def run_alone(task_folder) -> Callable[..., Run]:
    """The same in a cluster that the run starts itself, as the demo does."""
    return partial(train, task_folder)


def train(task_folder: Path, folder: Path, *options: str, env: dict[str, str] | None = None, **more) -> Run:
    launch.train(
        [
            *overrides(Task(folder=task_folder, train_batch_size=PROMPTS, n=N, val_n=1)),
            # Each run asks for what it tests; test_modes.py has the defaults.
            "++algorithm.cipo.preset=stream",
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
        timeout=600,
        # For loops.py and what else of this folder a run loads.
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", **(env or {})},
        **more,
    )
    return Run.of(folder)


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
def whole(task_folder, tmp_path_factory) -> Run:
    """The demo, left alone to its end."""
    folder = demo.prepared(tmp_path_factory.mktemp("whole"), task_folder)
    (folder / "printed").write_text(demo.finish(demo.start(folder)))
    return Run.of(folder)


# Greedy decoding: vLLM's sampling depends on which requests happen to share a batch.
GREEDY = ("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.top_k=1")
# Without the plugin: only the CPU platform is loaded, which stock verl needs to run here at all.
STOCK = {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "platform_only"}
