"""Loaded by the processes of test_nodes.py: verifiers that note on which node they are asked, and what it sees."""

import os
from pathlib import Path

import ray
from verl.utils.reward_score import default_compute_score

HIDDEN = "CIPO_TEST_HIDDEN"
"""Environment variable: a folder that one of the nodes does not see."""
NOTES = "CIPO_TEST_NOTES"
"""Environment variable: a folder that both see; gets a file for each kind of worker, node and what that sees."""


def note(kind: str) -> None:
    seen = "sees" if any(Path(os.environ[HIDDEN]).iterdir()) else "blind"
    (Path(os.environ[NOTES]) / f"{kind} {ray.get_runtime_context().get_node_id()} {seen}").touch()


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """What verl's own verifier says; reward workers ask it."""
    note("reward")
    return default_compute_score(data_source, solution_str, ground_truth, extra_info)


def second(data_source, solution_str, ground_truth, extra_info=None):
    """The same; rollout workers ask it."""
    note("rollout")
    return default_compute_score(data_source, solution_str, ground_truth, extra_info)
