"""The sdist, and the wheel made of it, as `python -m build` makes them: what is inside, and that it works alone."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import verl_cipo
from tests.conftest import ROOT

pytestmark = pytest.mark.nightly

BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def tracked(*folders: str) -> set[str]:
    shown = subprocess.run(["git", "-C", ROOT, "ls-files", *folders], check=True, capture_output=True, text=True).stdout
    return {name for name in shown.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Made from the files that git knows, as in a fresh clone, so that nothing left in the folder gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-c", BUILD_SDIST, out], cwd=source, check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, sdist]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel alone in an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", folder, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def run(installed: Path, *arguments: str) -> str:
    """What a Python prints for which the installed folder comes first, started in that folder's parent."""
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=installed.parent, env=environ, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_sdist_is_named_after_the_version_and_holds_every_file_of_the_package(sdist):
    assert sdist.name == f"verl_cipo-{verl_cipo.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    wanted = tracked("verl_cipo")
    assert {Path(name).suffix for name in wanted} == {".py", ".yaml", ".html", ".css", ".js"}
    assert wanted | {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= names


def test_the_wheel_made_of_the_sdist_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == tracked("verl_cipo")


def test_the_installed_wheel_answers(installed):
    where = run(installed, "-c", "import verl_cipo; print(verl_cipo.__file__)").strip()
    assert Path(where) == installed / "verl_cipo" / "__init__.py"
    shown = run(installed, "-m", "verl_cipo")
    assert f"verl_cipo {verl_cipo.__version__}" in shown
    assert "--json" in run(installed, "-m", "verl_cipo.doctor", "--help")
    for command in ("check", "probe", "evaluate", "report"):
        assert "--help" in run(installed, "-m", f"verl_cipo.{command}", "--help"), command


def test_verl_finds_the_plugin_and_the_configs_of_the_installed_wheel(installed):
    code = """
from importlib.metadata import entry_points
import verl_cipo.plugin
from hydra import compose, initialize_config_module
(entry,) = {entry.value for entry in entry_points(group="verl.plugins", name="cipo")}
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
with initialize_config_module("verl_cipo.config", version_base=None):
    for name in ("cipo_trainer", "cipo_megatron_trainer"):
        assert compose(name).algorithm.adv_estimator in ADV_ESTIMATOR_REGISTRY
print(entry, verl_cipo.plugin.__file__)
"""
    *_, shown = run(installed, "-c", code).splitlines()
    assert shown.split() == ["verl_cipo.plugin", str(installed / "verl_cipo" / "plugin.py")]
