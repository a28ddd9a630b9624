"""tools/first_hour.sh: what it takes from the pages, and how it types it, in a repository of two small pages."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = ("README.md", "docs/quickstart.md")
MARKS = {"typed", "gpu", "hub", "docker", "yours"}


def start(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TMPDIR": str(root.parent)}
    return subprocess.run([root / "tools/first_hour.sh", *arguments], env=environ, capture_output=True, text=True)


def listed(root: Path) -> list[list[str]]:
    result = start(root, "--list")
    assert result.returncode == 0, result.stderr
    return [line.split("\t") for line in result.stdout.splitlines()]


@pytest.fixture
def repository(tmp_path):
    """make(README, QUICKSTART): a repository with these pages."""

    def make(readme: str, quickstart: str = "") -> Path:
        root = tmp_path / "repository"
        for name in ("docs", "tools", "examples"):
            (root / name).mkdir(parents=True)
        shutil.copy(ROOT / "tools/first_hour.sh", root / "tools")
        (root / "README.md").write_text(readme)
        (root / "docs/quickstart.md").write_text(quickstart)
        (root / "examples/run_x.sh").write_text('echo "dry run: $DRY_RUN, $ALGO"\n')
        git = ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "init", "--quiet", root], check=True)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "pages"], check=True)
        return root

    return make


def test_every_block_of_the_two_pages_is_a_fence_with_a_known_mark():
    for name in PAGES:
        page = (ROOT / name).read_text()
        assert not re.search(r"\n\n {4}\S", page), f"{name}: an indented block, of which first_hour.sh sees nothing"
        opened = re.findall(r"^```(\S.*)$", page, re.MULTILINE)
        assert set(opened) <= {"sh", "text", *(f"sh {mark}" for mark in MARKS)}, name
    assert {mark for mark, _ in listed(ROOT)} == MARKS


def test_what_is_typed_has_no_place_for_a_name_of_the_reader():
    typed = [re.sub(" +# .*", "", command) for mark, command in listed(ROOT) if mark == "typed"]
    assert not [command for command in typed if re.search(r"\.\.\.|\b[A-Z]{3,}\b(?!=)", command)]
    assert typed[:2] == ["make demo", "make test"] and typed[2].startswith("make chat QUESTION=")
    assert typed[3] == "source .venv/bin/activate"
    assert "pip install ." in typed


def test_commands_are_typed_in_order_in_one_shell_and_in_a_clone(repository):
    root = repository(
        "# A\n\n```sh\nNAME=first     # a comment\nexport NAME\nmkdir made && cd made\n```\n\n```text\nfalse\n```\n",
        '```sh\n# a comment\necho "$NAME" \\\n    "and second" >file\ncat file; pwd\n```\n',
    )
    result = start(root)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "first and second\n" in result.stdout and "all went well" in result.stdout
    clone = Path(re.search(r"^(/.*)/made$", result.stdout, re.MULTILINE).group(1))
    assert clone != root and not clone.exists() and not (root / "made").exists()
    assert re.findall(r"^ +\d+ +0  (.*)$", result.stdout, re.MULTILINE) == [
        "NAME=first     # a comment",
        "export NAME",
        "mkdir made && cd made",
        'echo "$NAME" "and second" >file',
        "cat file; pwd",
    ]


def test_the_first_failure_ends_it(repository):
    result = start(repository("```sh\ntrue\n(exit 3)\necho never\n```\n"))
    assert result.returncode == 1
    assert re.search(r"^ +\d+ +3  \(exit 3\)$", result.stdout, re.MULTILINE) and "never" not in result.stdout
    left = re.search(r"the clone is left in (\S+)", result.stderr).group(1)
    assert (Path(left) / "README.md").exists()


def test_marked_commands_are_not_typed_and_a_launch_script_is_dry_run(repository):
    root = repository(
        "```sh gpu\nALGO=grpo bash examples/run_x.sh\nfalse gpu\n```\n```sh hub\nfalse hub\n```\n"
        "```sh docker\nfalse docker\n```\n```sh yours\nfalse ...\n```\n```sh\nfalse skip   # why\n```\n"
    )
    result = start(root, "--skip", "false skip")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "dry run: 1, grpo\n" in result.stdout
    assert re.findall(r"^ +- +(\w+)  ", result.stdout, re.MULTILINE) == ["gpu", "hub", "docker", "yours", "skip"]


@pytest.mark.parametrize(
    ("page", "arguments", "reason"),
    [
        ("```sh\ntrue\n```\n", ["--skip", "tru"], "--skip 'tru': no such command in README.md docs/quickstart.md"),
        ("```sh\ntrue\n```\n", ["--quick"], "--quick is not an option"),
        ("```sh gup\ntrue\n```\n", [], "```sh gup: the marks are gpu, hub, docker and yours"),
        ("nothing\n", [], "no command in README.md docs/quickstart.md"),
    ],
)
def test_what_is_wrong_is_said(repository, page, arguments, reason):
    result = start(repository(page), *arguments)
    assert result.returncode == 1 and reason in result.stderr


def test_changes_that_are_not_committed_are_not_in_the_clone_and_it_says_so(repository):
    root = repository("```sh\necho committed\n```\n")
    (root / "README.md").write_text("```sh\necho changed\n```\n")
    result = start(root)
    assert result.returncode == 0
    assert "committed" in result.stdout and "changed\n" not in result.stdout
    assert "changes that are not committed are not in the clone" in result.stderr
