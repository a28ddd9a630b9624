"""A CPU platform for verl: development, tests and CI on machines without an accelerator.

Loaded by the plugin only under ``VERL_PLATFORM=cpu``; the algorithm knows nothing of it.
Seam: ``verl.plugin.platform.PlatformRegistry``, verl's own extension point for other chips. Ray's resource keeps the
name "GPU" (``+ray_kwargs.ray_init.num_gpus=1`` makes a logical one), so resource pools work unchanged.
"""

import functools
import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import fsdp
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _nothing(*_: Any, **__: Any) -> None:
    """A device call that has no meaning on a CPU."""


def _zero(*_: Any, **__: Any) -> int:
    return 0


_DEVICE_MODULE = SimpleNamespace(
    is_available=lambda: True,
    current_device=lambda: "cpu",
    device_count=lambda: 1,
    get_device_name=lambda *_: "cpu",
    memory_allocated=_zero,
    memory_reserved=_zero,
    max_memory_allocated=_zero,
    max_memory_reserved=_zero,
    mem_get_info=lambda *_: (0, 0),
    set_device=_nothing,
    synchronize=_nothing,
    empty_cache=_nothing,
    ipc_collect=_nothing,
    reset_peak_memory_stats=_nothing,
    manual_seed=torch.manual_seed,
    manual_seed_all=torch.manual_seed,
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
)
"""What verl calls of ``torch.<device>``; anything else raises AttributeError and names itself."""


class PlatformCPU(PlatformBase):
    """One CPU posing as the accelerator."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        """ "cpu" rather than an index: verl hands it to ``tensor.to``, where an index would mean an accelerator."""
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed
    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False


def _use_gloo_once() -> None:
    """Name gloo a single time when verl opens its process group.

    verl builds "cpu:gloo,{device}:{backend}", here "cpu:gloo,cpu:gloo", which torch refuses, and no option of verl
    reaches that string. Engine workers import the function by name after this plugin has run.
    """
    from verl.utils import distributed

    original = distributed.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second=None, backend=None):
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize


class _Unpinned(fsdp.CPUOffloadPolicy):
    """Offloading without pinned memory, whatever is asked for."""

    def __init__(self, pin_memory: bool = False):
        super().__init__(pin_memory=False)


def _pin_nothing() -> None:
    """Let a reference policy load: verl offloads it with pinned memory, which torch has only beside an accelerator.

    No option of verl reaches the policy. verl imports it by name after this plugin has run.
    """
    fsdp.CPUOffloadPolicy = _Unpinned


def register() -> None:
    """Make ``VERL_PLATFORM=cpu`` known to verl and let its FSDP2 engine resolve on it."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    # verl's engine registry has no CPU entry; the FSDP engine registered for cuda runs on any torch device.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    _use_gloo_once()
    _pin_nothing()
