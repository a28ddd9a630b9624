"""The dependency arrow: core stands on torch and numpy alone."""

import subprocess
import sys

HEAVY = ("verl", "ray", "vllm", "transformers", "omegaconf", "tensordict", "transfer_queue", "hydra")


def test_core_imports_only_torch_and_numpy():
    code = f"import sys, verl_cipo.core; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_that_is_exported_exists_once():
    import verl_cipo.core as core

    assert all(hasattr(core, name) for name in core.__all__)
    assert len(set(core.__all__)) == len(core.__all__)
