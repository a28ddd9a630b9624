"""The demo, killed with SIGKILL and resumed, against the same demo left alone.

Every metric must come out equal but times, memory, what measures vLLM's rounding, which depends on the requests that
share a batch, and verl's best@2 and worst@2 of the validation, which are drawn from samples in the order of arrival.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.real import demo
from tests.real.conftest import Run
from tests.real.demo import STEPS

pytestmark = pytest.mark.real

NOT_REPEATED = ("timing", "perf/", "seconds", "rollout_corr/", "training/rollout_", "/best@", "/worst@")


@pytest.fixture(scope="session")
def killed(task_folder, tmp_path_factory) -> Path:
    """In the middle of a step, some time after a checkpoint."""
    output = demo.prepared(tmp_path_factory.mktemp("killed"), task_folder)
    process = demo.start(output)
    demo.wait_until(process, lambda: demo.logged(output) >= 2)
    demo.kill(process)
    assert 2 <= demo.newest(output) < STEPS
    return output


@pytest.fixture(scope="session", params=["killed once", pytest.param("killed twice", marks=pytest.mark.nightly)])
def resumed(request, killed, tmp_path_factory) -> Run:
    """The second kill comes while a checkpoint is being written."""
    output = tmp_path_factory.mktemp("resumed") / "demo"
    shutil.copytree(killed, output)
    if request.param == "killed twice":
        process = demo.start(output, "--resume")
        next_one = output / "checkpoints" / f"global_step_{demo.newest(output) + 1}"
        demo.wait_until(process, next_one.exists)
        demo.kill(process)
        assert demo.newest(output) < STEPS
    demo.finish(demo.start(output, "--resume"))
    return Run.of(output)


def metrics(run: Run) -> list[tuple[int, dict]]:
    """To 12 digits: the last ones of numpy's sums depend on where an array lies in memory."""
    return [
        (line["step"], {k: f"{v:.12g}" for k, v in line["data"].items() if not any(part in k for part in NOT_REPEATED)})
        for line in run.metrics
    ]


def test_metrics_are_those_of_the_run_that_was_not_killed(whole, resumed):
    assert [step for step, _ in metrics(whole)] == list(range(STEPS + 1)), "validation before step 1, then the steps"
    assert metrics(resumed) == metrics(whole)


def test_rollouts_are_those_of_the_run_that_was_not_killed(whole, resumed):
    for step in range(1, STEPS + 1):
        both = [
            sorted((row["input"], row["output"], row["gts"], row["score"]) for row in run.rollouts(step))
            for run in (whole, resumed)
        ]
        assert both[0] == both[1]


def test_state_is_that_of_the_run_that_was_not_killed(whole, resumed):
    state = [
        json.loads((run.folder / "checkpoints" / f"global_step_{STEPS}" / "cipo.json").read_text())
        for run in (whole, resumed)
    ]
    assert state[0] == state[1]
    assert state[0]["rho"]["prev_retention"] is not None, "rho has not moved: nothing was compared"
