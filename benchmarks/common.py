"""What the benchmarks of the driver's path share: made-up batches in verl's layout, timing.

Figures are milliseconds of processor time, torch on one thread: Ray starts verl's driver with OMP_NUM_THREADS=1. On a
quiet machine that is the wall time, and other work on the machine changes it little.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options that all have: --quick and --json."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="smaller and fewer, under a minute")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return result


def milliseconds(arms: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """Median processor time of each, called in turn ``rounds`` times after one call that is not counted.

    What a call returns is freed outside of its time.
    """
    took: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds + 1):
        for name, arm in arms.items():
            start = time.process_time()
            result = arm()
            seconds = time.process_time() - start
            del result
            if i:
                took[name].append(1000 * seconds)
    return {name: statistics.median(values) for name, values in took.items()}


def lengths_of(n: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """int64 (n,): response lengths up to ``tokens``, which the first row has: verl pads to the longest."""
    lengths = rng.integers(max(1, tokens // 8), tokens + 1, size=n)
    lengths[:1] = tokens
    return lengths


def token_fields(scores: np.ndarray, lengths: np.ndarray) -> dict[str, Tensor]:
    """Rewards with each score on the row's last token, float32, and the mask, int64 as verl's agent loops make it."""
    last = torch.from_numpy(lengths) - 1
    rewards = torch.zeros(len(scores), int(lengths.max()))
    rewards[torch.arange(len(scores)), last] = torch.from_numpy(scores).float()
    mask = torch.zeros(rewards.shape, dtype=torch.int64)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        row[:length] = 1
    return {"token_level_rewards": rewards, "response_mask": mask}


def batch_of(fields: dict[str, Tensor], uid: np.ndarray) -> DataProto:
    """A new batch over the same tensors: verl's functions add fields to theirs."""
    return DataProto(batch=TensorDict(dict(fields), batch_size=len(uid)), non_tensor_batch={"uid": uid})
