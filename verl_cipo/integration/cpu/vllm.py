"""What vLLM's CPU build needs under verl; an entry point of ``vllm.general_plugins``.

vLLM packs the weights of linear layers for oneDNN (and, on AMX machines, for its own kernels) when it loads a model.
verl writes new weights into the parameters in place, so packed copies would keep serving the first ones. Only the
alias distribution ``vllm`` of the CPU environment names this entry point: GPU users never load it.

verl's ``rollout.full_determinism`` asks vLLM for its batch-invariant kernels, which are written in Triton and end the
engine of a CPU build at the first request. The seeds of the requests, the flag's other half, work without them.
"""

import os


def register() -> None:
    """Keep linear weights unpacked in this vLLM process, and the batch-invariant kernels out of it.

    Raises:
        ImportError, AttributeError: vLLM moved the switches; weight sync would silently stop working.
    """
    os.environ["VLLM_BATCH_INVARIANT"] = "0"
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils as layers

    if not hasattr(ops, "_supports_onednn"):
        raise AttributeError(
            "vllm._custom_ops._supports_onednn is gone: synced weights would not reach the CPU kernels"
        )
    ops._supports_onednn = False
    if not hasattr(layers, "check_cpu_sgl_kernel"):
        raise AttributeError("vllm's check_cpu_sgl_kernel is gone: the AMX kernels would keep the first weights")
    layers.check_cpu_sgl_kernel = lambda *_: False
