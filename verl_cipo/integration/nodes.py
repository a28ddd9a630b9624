"""What the nodes of a Ray cluster lack: rollout workers, verifiers and the coordinator run on any of them.

verl finds out at the first session, or at the first verdict, on whichever node it is.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from importlib import metadata

import ray
from omegaconf import DictConfig, OmegaConf
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.import_utils import resolve_config_path

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration.reward_function import FILE, PACKAGE

TIMEOUT_S = 120.0
"""A worker process has to start on each node."""
OF_VERL = (
    "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "actor_rollout_ref.rollout.multi_turn.tool_config_path",
)
"""Keys of files that verl looks for below its own package, too."""
FILES = (
    "reward.custom_reward_function.path",
    *OF_VERL,
    "actor_rollout_ref.rollout.multi_turn.function_tool_path",
)
"""Keys that name what workers open, wherever they run."""
PACKAGES = ("verl_cipo", "verl", "TransferQueue")
"""Of the version that is installed here."""


def ask_nodes(*, files: Sequence[str] = (), modules: Sequence[str] = (), sandbox: bool = False) -> dict[str, list[str]]:
    """What each live node of the cluster that this process is connected to lacks, by its address; empty for nothing.

    Args:
        files: paths that must exist.
        modules: modules that must be importable.
        sandbox: whether the code verifier's sandbox must work.
    """
    versions = {name: metadata.version(name) for name in PACKAGES}
    asked = {}
    for node in filter(lambda node: node["Alive"], ray.nodes()):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ask = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_asks(versions, files, modules, sandbox))
        asked[f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = ask.remote()
    found = {}
    for name, answer in asked.items():
        try:
            found[name] = ray.get(answer, timeout=TIMEOUT_S)
        except ray.exceptions.RayError as error:
            found[name] = [f"no answer: {str(error).splitlines()[0]}"]
    return found


def ask_cluster(address: str) -> dict[str, list[str]]:
    """:func:`ask_nodes` of a cluster that runs, with the sandbox. Raises: ConnectionError where there is none."""
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    try:
        return ask_nodes(sandbox=True)
    finally:
        ray.shutdown()


def _asks(
    versions: dict[str, str], files: Sequence[str], modules: Sequence[str], sandbox: bool
) -> Callable[[], list[str]]:
    """A function that needs nothing but Python on the node where it runs: Ray pickles it with its code."""

    def problems() -> list[str]:
        import importlib
        import importlib.metadata
        import os

        found = []
        for name, expected in versions.items():
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found.append(f"{name} is not installed")
                continue
            if version != expected:
                found.append(f"{name} is {version} and not {expected}")
        found += [f"{path} does not exist" for path in files if not os.path.exists(path)]
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                found.append(f"{module} cannot be imported: {type(error).__name__}: {error}")
        if sandbox and not found:
            from verl_cipo.rewards.sandbox import bubblewrap

            problem = bubblewrap.problem()
            found += [problem] if problem else []
        return found

    return problems


def check_nodes(config: DictConfig, cipo: CIPOConfig) -> None:
    """Ask the nodes for what a run needs on all of them, where the cluster has more than one.

    Raises:
        CIPOConfigError: names each node that lacks something, and what.
    """
    if not ray.is_initialized() or sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    files, modules = needed(config, cipo)
    found = ask_nodes(files=files, modules=modules, sandbox="verl_cipo.rewards.code" in modules)
    lacking = [f"node {name}: {'; '.join(problems)}" for name, problems in found.items() if problems]
    if lacking:
        raise CIPOConfigError(
            "rollout workers and verifiers run on every node of the cluster, and not all have what they need:\n"
            + "\n".join(lacking)
        )


def _located(key: str, path: str) -> str:
    """The path of a file that verl finds below its package; others, and what is nowhere, as they are."""
    if key in OF_VERL:
        with contextlib.suppress(FileNotFoundError):  # whoever is asked for it says that it is missing
            return resolve_config_path(path)
    return path


def needed(config: DictConfig, cipo: CIPOConfig) -> tuple[list[str], list[str]]:
    """Files and modules that a run's workers open on whatever node they are."""
    named = [_located(key, value) for key in FILES if (value := OmegaConf.select(config, key))]
    if cipo.second_verifier is not None:
        named.append(cipo.second_verifier.rpartition(":")[0])
    modules = [name.removeprefix(PACKAGE) for name in named if name.startswith(PACKAGE)]
    files = [os.path.abspath(name.removeprefix(FILE)) for name in named if not name.startswith(PACKAGE)]
    if cipo.manager is not None:
        modules.append(cipo.manager.rpartition(".")[0])
    return files, modules
