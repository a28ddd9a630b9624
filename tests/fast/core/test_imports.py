"""The dependency arrow: core stands on torch and numpy alone."""

import subprocess
import sys
from pathlib import Path

from verl_cipo import core

HEAVY = ("verl", "ray", "vllm", "transformers", "omegaconf", "tensordict", "transfer_queue", "hydra")
MODULES = [path.stem for path in Path(core.__path__[0]).glob("[a-z]*.py")]


def imported(modules, names):
    """Which of `names` are imported with `modules` of core."""
    code = f"import sys; {'; '.join(f'import verl_cipo.core.{module}' for module in modules)}; "
    code += f"print([name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_core_imports_only_torch_and_numpy():
    assert imported(MODULES, HEAVY) == "[]"


def test_what_evaluation_stands_on_starts_without_torch():
    assert imported(sorted(set(MODULES) - {"advantage", "losses", "metrics"}), ("torch",)) == "[]"
