"""Makes the trainer of trainer.py known to verl, in the process that asks for it.

verl loads this by ``VERL_USE_EXTERNAL_MODULES`` in every process, so it imports nothing heavy:
``trainer.v1.trainer_mode=${benchmarks.generation:}`` does, where the mode is read.
"""

import importlib

from omegaconf import OmegaConf

RESOLVER = "benchmarks.generation"


def trainer_mode() -> str:
    """The registered name of the trainer, which this imports."""
    return importlib.import_module("benchmarks.generation.trainer").NAME


OmegaConf.register_new_resolver(RESOLVER, trainer_mode, replace=True)
