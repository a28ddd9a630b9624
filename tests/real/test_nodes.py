"""Training on two Ray nodes, both on this machine; the second does not see the files of the first.

A mount namespace hides the folder. The nodes share everything else: one disk, one address, and so no network.
Nightly: four starts.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.real.conftest import PROMPTS, N, streams, train
from tests.real.node_verifiers import HIDDEN, NOTES
from verl_cipo.integration.cpu import launch


def can_hide() -> bool:
    try:
        return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.real,
    pytest.mark.nightly,
    pytest.mark.skipif(not can_hide(), reason="only root can hide a folder from a node: it takes a mount namespace"),
]

TEMPLATE = "{question}\n\nThe driver's own text.\n<attempt>\n{attempt}\n</attempt>"
OPTIONS = (
    "algorithm.adv_estimator=cipo",
    "actor_rollout_ref.rollout.agent.num_workers=2",
    "reward.num_workers=2",
    "reward.custom_reward_function.name=compute_score",
    "+algorithm.cipo.second_verifier=pkg://node_verifiers:second",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
)
VERIFIER = "reward.custom_reward_function.path=pkg://node_verifiers"
RESUMED = "trainer.resume_mode=resume_path"


@contextmanager
def second_node(address: str, folder: Path, *, hidden: Path, env: dict[str, str]) -> Iterator[None]:
    """Beside the one of the cluster: with CPUs and no GPU, another working directory, and ``hidden`` empty."""
    elsewhere, nothing = folder / "elsewhere", folder / "nothing"
    elsewhere.mkdir()
    nothing.mkdir()
    # Paths of sockets are short. In Ray's own folder the node would note an address that other programs then join.
    with open(folder / "node.log", "w") as log, TemporaryDirectory(prefix="ray") as own:
        join = (
            f"{sys.executable} -m ray.scripts.scripts start --address={address} --num-cpus=16 --num-gpus=0 "
            f"--temp-dir={own} --block"
        )
        node = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"mount --bind {nothing} {hidden} && exec {join}"],
            cwd=elsewhere,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **launch.CPU_ENV, **env, "RAY_AUTH_MODE": "token"},
            start_new_session=True,
        )
        try:
            wait_for_two(address, node, folder / "node.log")
            yield
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)


def wait_for_two(address: str, node: subprocess.Popen, log: Path) -> None:
    count = (
        f"import ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline = time.monotonic() + 120
    while True:
        env = {**os.environ, "RAY_AUTH_MODE": "token"}
        found = subprocess.run([sys.executable, "-c", count], env=env, capture_output=True, text=True, check=True)
        if found.stdout.split()[-1:] == ["2"]:
            return
        assert node.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> Path:
    """What the first node sees alone: a template and a verifier."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "template.txt").write_text(TEMPLATE)
    (folder / "mine.py").write_text("from node_verifiers import compute_score\n")
    return folder


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def run_on_two(task_folder, hidden, notes, cluster, tmp_path_factory):
    """run_on_two(folder, *options) takes two steps on the two nodes."""
    env = {HIDDEN: str(hidden), NOTES: str(notes)}
    with second_node(cluster, tmp_path_factory.mktemp("second"), hidden=hidden, env=env):
        yield partial(train, task_folder, cluster=cluster, env=env)


@pytest.fixture(scope="module")
def runs(run_on_two, hidden, tmp_path_factory):
    """Two steps each of both schedules, and the second one of replay once more, from the checkpoint of the first."""
    template = f"algorithm.cipo.prompt.template={hidden / 'template.txt'}"
    options = (*OPTIONS, VERIFIER, f"+{template}")
    made, replay = {}, ("+algorithm.cipo.schedule=replay", "trainer.save_freq=1")
    made["barrier"] = run_on_two(tmp_path_factory.mktemp("barrier"), *options, "+algorithm.cipo.schedule=barrier")
    made["replay"] = run_on_two(tmp_path_factory.mktemp("replay"), *options, *replay)
    first = made["replay"].folder / "checkpoints" / "global_step_1"
    resumed = (RESUMED, f"trainer.resume_from_path={first}")
    made["resumed"] = run_on_two(tmp_path_factory.mktemp("resumed"), *options, *replay, *resumed)
    return made


def test_both_kinds_of_workers_were_on_both_nodes(runs, notes):
    """And on the second one the driver's files were not."""
    found = [tuple(path.name.split()) for path in notes.iterdir()]
    for kind in ("reward", "rollout"):
        nodes = {node: seen for name, node, seen in found if name == kind}
        assert sorted(nodes.values()) == ["blind", "sees"], found
    assert len({node for _, node, _ in found}) == 2


@pytest.mark.parametrize("schedule", ["barrier", "replay", "resumed"])
def test_corrections_of_both_nodes_have_the_text_of_the_drivers_file(runs, schedule):
    made = runs[schedule]
    steps = [line["step"] for line in made.metrics if "training/global_step" in line["data"]]
    assert steps == ([2] if schedule == "resumed" else [1, 2])
    for step, metrics in zip(steps, made.steps, strict=True):
        expected = 0 if schedule == "replay" and step == 1 else PROMPTS
        assert metrics["cipo/anchors/total"] == expected and metrics["cipo/rows/correction"] == expected * N
        assert metrics["cipo/rows/base"] == PROMPTS * N and metrics["cipo/corrections/failed_sessions"] == 0
        assert metrics["cipo/anchors/unreported"] == 0
        _, corrections, _ = streams(made.rollouts(step))
        assert len(corrections) == expected
        assert all("The driver's own text." in row["input"] for rows in corrections.values() for row in rows)


def test_the_step_after_the_checkpoint_asks_what_it_asked_before(runs):
    """Texts that waited on both nodes are in the checkpoint."""
    asked = [sorted(row["input"] for row in runs[name].rollouts(2)) for name in ("replay", "resumed")]
    assert asked[0] == asked[1]


def test_a_verifier_that_one_node_lacks_is_refused_before_the_first_step(run_on_two, hidden, tmp_path):
    with pytest.raises(launch.TrainingFailed):
        run_on_two(tmp_path, *OPTIONS, f"reward.custom_reward_function.path={hidden / 'mine.py'}")
    log = (tmp_path / "train.log").read_text(errors="replace")
    lacking = {line for line in log.splitlines() if line.endswith(f"{hidden / 'mine.py'} does not exist")}
    assert len(lacking) == 1 and "node " in lacking.pop(), log[-2000:]
    assert "not all have what they need" in log and not (tmp_path / "rollouts").exists()
