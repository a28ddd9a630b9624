"""python -m verl_cipo: every command and every knob is in it, and it answers at once."""

import re
import subprocess
import sys

from tests.conftest import ROOT
from verl_cipo.__main__ import COMMANDS, main, overview
from verl_cipo.core.config import CIPOConfig


def test_the_overview_names_every_command(capsys):
    found = {path.stem for path in (ROOT / "verl_cipo").glob("[!_]*.py") if "__main__" in path.read_text()}
    assert found == set(COMMANDS)
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"python -m verl_cipo.{name} " in shown for name in COMMANDS)


def test_every_knob_is_listed_with_default_and_range(capsys):
    assert main(["knobs"]) == 0
    listed = re.findall(r"^([\w.]+)=(.*?)  \((.+)\)$", capsys.readouterr().out, re.MULTILINE)
    known = CIPOConfig(preset="stream").to_mapping()
    sections = {name: inner for name, inner in known.items() if isinstance(inner, dict)}
    names = {name for name in known if name not in sections}
    names |= {f"{section}.{name}" for section, inner in sections.items() for name in inner}
    assert {name for name, _, _ in listed} == names and len(listed) == len(names)
    assert ("rho_init", "0.3", "a finite number in [0, 1]") in listed
    assert ("prompt.max_attempt_tokens", "null", "an integer >= 16 or null") in listed


def test_knobs_are_found_by_a_word(capsys):
    assert main(["--knobs", "retention"]) == 0
    assert "rho_target=0.8" in (shown := capsys.readouterr().out) and "n_corrections" not in shown
    assert main(["knobs", "correction", "prompt"]) == 0
    assert capsys.readouterr().out.startswith("prompt.template=math")
    assert main(["knobs", "--help"]) == 0
    assert capsys.readouterr().out == overview() + "\n"
    assert main(["knobs", "no such word"]) == 2
    assert "no knob has 'no such word'" in capsys.readouterr().err


def test_what_there_is_not_is_said_with_what_there_is(capsys):
    assert main(["reprot"]) == 2
    assert "unknown command: reprot" in (said := capsys.readouterr().err) and "python -m verl_cipo.report" in said
    assert main(["report", "run"]) == 2
    assert capsys.readouterr().err == "use python -m verl_cipo.report\n"


def test_it_imports_nothing_heavy():
    code = "import sys; from verl_cipo.__main__ import main; main(['knobs']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "verl", "ray", "numpy", "hydra"} & set(result.stderr.split())


def test_help_of_the_check_does_not_import_verl():
    code = """
import sys
from verl_cipo.check import main
try:
    main(["--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--config-name" in result.stdout and not {"torch", "verl", "ray"} & set(result.stderr.split())
