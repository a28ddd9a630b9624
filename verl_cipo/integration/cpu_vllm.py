"""What vLLM's CPU build needs to take synced weights; an entry point of ``vllm.general_plugins``.

vLLM packs the weights of linear layers for oneDNN (and, on AMX machines, for its own kernels) when it loads a model.
verl writes new weights into the parameters in place, so packed copies would keep serving the first ones. Only the
alias distribution ``vllm`` of the CPU environment names this entry point: GPU users never load it.
"""


def register() -> None:
    """Keep linear weights unpacked in this vLLM process.

    Raises:
        ImportError, AttributeError: vLLM moved the switches; weight sync would silently stop working.
    """
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
