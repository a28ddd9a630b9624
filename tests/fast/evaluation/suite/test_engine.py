"""How much memory vLLM is asked to take, and what is said when it does not start; vLLM itself runs in test_generate."""

import os
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.engine import GIB, KV_CACHE_VARIABLE, VLLMEngine, with_cpu_memory


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Weights of 2 GiB, and the same once more in the format that vLLM leaves alone."""
    monkeypatch.delenv(KV_CACHE_VARIABLE, raising=False)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(GIB)
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        file.truncate(2 * GIB)
    return str(tmp_path)


def options(checkpoint, given=None, *, total=16 * GIB, free=10 * GIB):
    return with_cpu_memory(given or {}, checkpoint, total=total, free=free)


def test_the_default_is_half_of_what_the_weights_leave(checkpoint):
    assert options(checkpoint) == {"kv_cache_memory_bytes": 4 * GIB}
    assert options(checkpoint, {"dtype": "float32"}, free=3 * GIB) == {
        "dtype": "float32",
        "kv_cache_memory_bytes": GIB // 2,
    }


def test_workers_share_it(checkpoint):
    given = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert options(checkpoint, given) == {**given, "kv_cache_memory_bytes": GIB}
    with pytest.raises(EvaluationError, match="12.0 GiB for the KV cache"):
        options(checkpoint, {**given, "kv_cache_memory_bytes": 3 * GIB})


@pytest.mark.parametrize(
    "fits", [{"gpu_memory_utilization": 0.625}, {"kv_cache_memory_bytes": 8 * GIB}], ids=lambda given: next(iter(given))
)
def test_what_is_given_stays_if_it_fits(fits, checkpoint):
    """.625 of 16 GiB is the 10 that are free."""
    assert options(checkpoint, fits) == fits
    ((name, value),) = fits.items()
    with pytest.raises(EvaluationError, match=f"^--engine {name}=.* take less, or free some$"):
        options(checkpoint, {name: value * 1.01})


def test_vllms_variable_is_heard_before_any_option(checkpoint, monkeypatch):
    monkeypatch.setenv(KV_CACHE_VARIABLE, "8")
    assert options(checkpoint) == {}
    monkeypatch.setenv(KV_CACHE_VARIABLE, "9")
    with pytest.raises(EvaluationError, match="^VLLM_CPU_KVCACHE_SPACE=9: 9.0 GiB .* 2.0 GiB .* 10.0 GiB"):
        options(checkpoint)


def test_weights_that_do_not_fit_are_an_error(checkpoint):
    with pytest.raises(EvaluationError, match="2.0 GiB for the weights do not fit into the 1.5 GiB"):
        options(checkpoint, free=3 * GIB // 2)


def test_what_is_no_number_is_an_error(checkpoint):
    with pytest.raises(EvaluationError, match="^--engine kv_cache_memory_bytes=much: expected a number$"):
        options(checkpoint, {"kv_cache_memory_bytes": "much"})


@settings(deadline=None)
@given(free=st.integers(1, 2**45), workers=st.integers(1, 8))
def test_the_default_fits_whatever_is_free(free, workers):
    with mock.patch.dict("os.environ"):
        os.environ.pop(KV_CACHE_VARIABLE, None)
        made = options("a/model", {"tensor_parallel_size": workers}, total=2**46, free=free)
    assert 1 <= made["kv_cache_memory_bytes"] * workers <= max(free, workers)


@pytest.fixture
def vllm(monkeypatch):
    """In vLLM's place: it notes what it is asked for, and raises what a test puts there."""
    fake = ModuleType("vllm")
    fake.raised, fake.asked, fake.cpu = None, {}, True

    class LLM:
        def __init__(self, **asked):
            fake.asked.update(asked)
            if fake.raised:
                raise fake.raised
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=256))

        def get_tokenizer(self):
            return None

    fake.LLM = LLM
    fake.platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: fake.cpu))
    memory = SimpleNamespace(total_memory=100 * GIB, available_memory=12 * GIB)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.utils", ModuleType("vllm.utils"))
    monkeypatch.setitem(
        sys.modules, "vllm.utils.cpu_resource_utils", SimpleNamespace(get_memory_node_info=lambda: memory)
    )
    return fake


def test_an_engine_on_the_cpu_takes_of_what_is_free(checkpoint, vllm):
    VLLMEngine(checkpoint, options={"dtype": "float32"}, template={})
    assert vllm.asked["kv_cache_memory_bytes"] == 5 * GIB
    with pytest.raises(EvaluationError, match="gpu_memory_utilization=0.13: 11.0 GiB"):
        VLLMEngine(checkpoint, options={"gpu_memory_utilization": 0.13}, template={})


def test_an_engine_on_a_gpu_gets_what_is_given(checkpoint, vllm):
    vllm.cpu = False
    VLLMEngine(checkpoint, options={"dtype": "float32"}, template={})
    assert vllm.asked == {"model": checkpoint, "dtype": "float32"}


@pytest.mark.parametrize("raised", [ValueError, RuntimeError, TypeError])
def test_an_engine_that_does_not_start_is_one_line(raised, checkpoint, vllm):
    vllm.raised = raised("Engine core\n  initialization failed.")
    with pytest.raises(EvaluationError) as told:
        VLLMEngine(checkpoint, options={"max_model_len": 64}, template={})
    message = str(told.value)
    assert "\n" not in message
    assert message.startswith(f"vLLM did not start, {raised.__name__}: Engine core initialization failed.")
    assert "--engine KEY=VALUE" in message and "gpu_memory_utilization" in message and "'max_model_len': 64" in message
