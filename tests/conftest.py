"""Shared by all tests: the tiers, and the environment of a CPU run, set before verl is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from verl_cipo.integration.cpu import launch

ROOT = Path(__file__).resolve().parents[1]

for name, value in launch.CPU_ENV.items():
    os.environ.setdefault(name, value)
# A test that imports vLLM's server must not silence the root logger, and with it caplog, for those that follow.
os.environ["SAGEMAKER_CONTAINER_LOG_LEVEL"] = "WARNING"

# No deadline: a machine that is busy is no failure. The same examples each time by day, new ones by night.
settings.register_profile("fast", deadline=None, max_examples=20, derandomize=True, database=None)
settings.register_profile("nightly", deadline=None, max_examples=100)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also what is marked nightly, and more examples of each")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("nightly" if config.getoption("nightly") else "fast")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("nightly"):
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("nightly")])
    items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.fixture(scope="session")
def task_folder() -> Path:
    """A quickly made model and data set; it need not be any good at the task.

    prepare.py keeps a folder that was made by the code of today, so this one outlives the session.
    """
    folder = ROOT / ".pytest_cache" / "task"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        # In a process of its own: torch's thread pool and memory go with it.
        subprocess.run(
            [sys.executable, ROOT / "examples" / "tiny" / "prepare.py", "--output", folder, "--quick"],
            check=True,
            timeout=600,
        )
    return folder
