"""Shared by all tests: the environment of a CPU run, set before verl is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl_cipo.integration.cpu import launch

ROOT = Path(__file__).resolve().parents[1]

for name, value in launch.CPU_ENV.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory) -> Path:
    """A quickly made model and data set; it need not be any good at the task."""
    folder = tmp_path_factory.mktemp("task")
    # In a process of its own: torch's thread pool and memory go with it.
    subprocess.run(
        [sys.executable, ROOT / "examples" / "tiny" / "prepare.py", "--output", folder, "--quick"],
        check=True,
        timeout=300,
    )
    return folder
