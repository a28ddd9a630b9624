"""A checkpoint engine for verl that hands weights over in a file: all processes on one machine, no device to copy from.

verl's separate_async mode refuses the engine of the colocated modes, and its others need a GPU.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

WAIT_S = 120.0


@CheckpointEngineRegistry.register("file")
class FileCheckpointEngine(CheckpointEngine):
    """Rank 0 of the actor writes; every rollout worker reads what was written for the same sync."""

    def __init__(self, bucket_size: int, is_master: bool = False):
        self.is_master = is_master
        self.path: Path | None = None

    def prepare(self) -> dict:
        return {"path": os.path.join(tempfile.mkdtemp(prefix="weights_"), "weights.pt")}

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]):
        path = metadata[0]["path"]
        return {"path": [path] * actor_wg_world_size}, {"path": [path] * rollout_world_size}

    def init_process_group(self, path: str) -> None:
        self.path = Path(path)

    def finalize(self) -> None:
        self.path = None

    async def send_weights(self, weights, global_steps: int | None = None) -> None:
        state = {name: tensor.detach().cpu().clone() for name, tensor in weights}
        if self.is_master:
            part = self.path.with_suffix(".part")
            torch.save(state, part)
            part.replace(self.path)

    async def receive_weights(self, global_steps: int | None = None):
        deadline = time.monotonic() + WAIT_S
        while not self.path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no weights in {self.path} after {WAIT_S:.0f} s")
            time.sleep(0.02)
        for name, tensor in torch.load(self.path).items():
            yield name, tensor
