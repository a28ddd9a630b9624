"""Shared by all tests: the environment of a CPU run, set before verl is imported."""

import os
from pathlib import Path

from examples.tiny import launch

ROOT = Path(__file__).resolve().parents[1]

for name, value in launch.CPU_ENV.items():
    os.environ.setdefault(name, value)
