"""The dependency arrows: core stands on torch and numpy alone, and no modules of the package import each other."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import verl_cipo
from verl_cipo import core

HEAVY = ("verl", "ray", "vllm", "transformers", "omegaconf", "tensordict", "transfer_queue", "hydra")
FOLDER = Path(core.__path__[0])
MODULES = [".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("[a-z]*.py")]


def imported(modules, names):
    """Which of `names` are imported with `modules` of core."""
    code = f"import sys; {'; '.join(f'import verl_cipo.core.{module}' for module in modules)}; "
    code += f"print([name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_core_imports_only_torch_and_numpy():
    assert imported(MODULES, HEAVY) == "[]"


def test_what_evaluation_stands_on_starts_without_torch():
    used = [module for module in MODULES if module != "advantage" and not module.startswith("aux_loss.")]
    assert "prompts.correction" in used and imported(used, ("torch",)) == "[]"


def arrows(folder):
    """Module of the package in `folder` -> those that it imports anywhere in its code or names for import_module."""
    files = {}
    for path in folder.rglob("*.py"):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    found = {}
    for name, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                # `from package import module` is an arrow to the module.
                named |= {one if one in files else node.module for one in inside}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
        found[name] = (named & files.keys()) - {folder.name}
    return found


def test_no_modules_import_each_other():
    found = arrows(Path(verl_cipo.__path__[0]))
    assert "verl_cipo.integration.train.trainer" in found["verl_cipo.integration.switch"], "a lazy one is seen"
    TopologicalSorter(found).prepare()


@pytest.mark.parametrize(
    "back",
    [
        "from made.part import a",
        "from made.part.a import f",
        "def f():\n    import made.part.a",
        "import importlib\ndef f():\n    importlib.import_module('made.part.a')",
    ],
)
def test_a_circle_is_seen(tmp_path, back):
    part = tmp_path / "made" / "part"
    part.mkdir(parents=True)
    for folder in (part.parent, part):
        (folder / "__init__.py").write_text("")
    (part / "a.py").write_text("from made.part import b")
    (part / "b.py").write_text("from made import c")
    (part.parent / "c.py").write_text(back)
    with pytest.raises(CycleError):
        TopologicalSorter(arrows(part.parent)).prepare()
