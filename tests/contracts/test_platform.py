"""verl's extension point for devices, and what the CPU platform has to step around."""

import inspect

import pytest

from tests.contracts.support.seams import check_parameters, load, seam

CPU = "verl_cipo/integration/cpu/platform.py"
PLATFORM = "verl.plugin.platform"
WANTED = {
    *("device_name", "vendor_name", "device_module", "is_available", "current_device", "device_count", "set_device"),
    *("synchronize", "manual_seed", "manual_seed_all", "set_allocator_settings", "empty_cache"),
    *("get_device_capability", "communication_backend_name", "visible_devices_envvar", "nvtx_range"),
    *("profiler_start", "profiler_stop", "ray_resource_name", "ray_noset_envvars", "is_ipc_supported", "cudart"),
}


@seam("plugin.platform.PlatformBase, its abstract methods", CPU)
def test_a_platform_must_define_what_ours_defines():
    found = set(load(f"{PLATFORM}:PlatformBase").__abstractmethods__)
    assert found == WANTED, f"new: {sorted(found - WANTED)}, gone: {sorted(WANTED - found)}"


@seam("plugin.platform.PlatformRegistry.register", CPU)
def test_a_platform_can_be_registered_by_name(monkeypatch):
    registry = load(f"{PLATFORM}:PlatformRegistry")
    monkeypatch.setattr(registry, "_platforms", dict(registry._platforms))
    probe = type("Probe", (load(f"{PLATFORM}:PlatformBase"),), {})
    assert registry.register(platform="contract_probe")(probe) is probe
    assert registry.get("contract_probe") is probe


@seam("platform_manager._detect_platform_name, VERL_PLATFORM", CPU, "verl_cipo/plugin.py")
def test_the_environment_chooses_the_platform(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", " CPU ")
    assert load(f"{PLATFORM}.platform_manager:_detect_platform_name")() == "cpu"


@seam("utils.distributed.initialize_global_process_group_ray", CPU)
def test_the_process_group_takes_a_backend_and_its_caller_gives_none(monkeypatch):
    """verl would name gloo twice on a CPU; the wrapper gives the backend that its caller leaves out."""
    path = "verl.utils.distributed:initialize_global_process_group_ray"
    function = inspect.unwrap(load(path))
    found = list(inspect.signature(function).parameters)
    assert found == ["timeout_second", "backend"], f"{path} takes {found}"
    seen = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda **kwargs: seen.append(kwargs["backend"]))
    function(timeout_second=None, backend="cpu:gloo")
    assert seen == ["cpu:gloo"]


@seam("engine_workers, its import of initialize_global_process_group_ray", CPU)
def test_the_workers_import_the_process_group_function_by_name_after_the_plugin():
    workers, distributed = load("verl.workers.engine_workers"), load("verl.utils.distributed")
    name = "initialize_global_process_group_ray"
    assert getattr(workers, name, None) is getattr(distributed, name), f"engine_workers gets {name} from elsewhere"


@seam("EngineRegistry.get_engine_cls, VERL_ENGINE_DEVICE", CPU)
def test_the_engine_of_another_device_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    load("verl.workers.engine.fsdp")
    registry = load("verl.workers.engine.base:EngineRegistry")
    assert registry.get_engine_cls("language_model", "fsdp2").__name__.startswith("FSDPEngine")
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "contract_probe")
    with pytest.raises(ValueError, match="contract_probe"):
        registry.get_engine_cls("language_model", "fsdp2")


@seam("workers.engine.BaseEngine registry", CPU)
def test_the_registry_is_asked_by_model_type_and_backend():
    check_parameters("verl.workers.engine.base:EngineRegistry.get_engine_cls", ["model_type", "backend"])
