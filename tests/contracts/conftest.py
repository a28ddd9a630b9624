"""What all contracts share: the message of a failure, verl's default config, TransferQueue in memory.

A verl outside of verl_cipo's range can be examined, too, though the plugin refuses it: of verl_cipo only the CPU
platform is then loaded, without which verl cannot be imported here.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import transfer_queue
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from packaging.version import Version

from tests.contracts.support.store import FUNCTIONS, Store
from verl_cipo.doctor import VERL_REQUIRED, fits

BROKEN = {
    "0.9.0": {
        "test_the_worker_offers_what_correction_prompts_are_made_of": "the worker has no hf_model_type",
        "test_the_builder_counts_the_tokens_of_a_chat_as_the_agent_loops_render_it": "the builder takes no model type",
    },
}
"""Contracts that a version outside of the range is known to break, and why: CI holds that it breaks no other."""

if not fits(version("verl"), VERL_REQUIRED):
    # A module of verl's name `tests` may be installed beside verl, so ours is found by its folder.
    folder = str(Path(__file__).parents[1] / "real")
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    os.environ["VERL_USE_EXTERNAL_MODULES"] = "platform_only"


def imported() -> dict[str, str]:
    """Version, spelled as in a package's metadata, and folder of the verl that this process imports."""
    import verl

    return {"VERSION": str(Version(verl.__version__)), "FOLDER": str(Path(verl.__file__).parents[1])}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seam(what, files): the part of verl that a contract guards, and who needs it")
    wanted = {
        name: os.environ[f"CONTRACTS_VERL_{name}"]
        for name in ("VERSION", "FOLDER")
        if f"CONTRACTS_VERL_{name}" in os.environ
    }
    if wanted and (found := imported()) != {**found, **wanted}:
        raise pytest.UsageError(f"verl {wanted} was to be examined, {found} was imported")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = imported()
    terminalreporter.write_line(f"contracts with verl {found['VERSION']} of {found['FOLDER']}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = BROKEN.get(version("verl"), {})
    for item in items:
        if item.get_closest_marker("seam") and item.name in known:
            item.add_marker(pytest.mark.xfail(reason=f"verl {version('verl')}: {known[item.name]}", strict=True))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = (yield).get_result()
    marker = item.get_closest_marker("seam")
    if not report.failed or marker is None:
        return
    import verl

    what, files = marker.args
    text = f"{what} changed in verl {verl.__version__}; used by {', '.join(files)}"
    report.sections.insert(0, ("seam", text))
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = f"{text}: {crash.message}"
    else:
        report.longrepr = f"{text}: {report.longrepr}"


@pytest.fixture
def config() -> DictConfig:
    """verl's default config as `main_ppo` composes it, with the one key that has no default."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["actor_rollout_ref.rollout.name=vllm"])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """TransferQueue in memory, in all modules of verl that use it: they hold the module, not its functions."""
    store = Store()
    for name in FUNCTIONS:
        monkeypatch.setattr(transfer_queue, name, getattr(store, name))
    return store
