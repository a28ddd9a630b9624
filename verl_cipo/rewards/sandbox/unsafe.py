"""The subprocess backend: the same warm interpreter without namespaces. Not a sandbox.

Limits and the seccomp filter hold here, too, so a program can start nothing, write no file and open no socket, but it
reads every file that this user can read, the data set's expected outputs among them.
"""

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import seccomp
from verl_cipo.rewards.sandbox.launch import interpreter, supervisor_command
from verl_cipo.rewards.sandbox.warm_sandbox import Sandbox


def spawn(*, numpy: bool = False) -> Sandbox:
    """An interpreter, with numpy imported in it or not. Call it from a thread that outlives it.

    Raises: VerifierInfrastructureError.
    """
    if not seccomp.supported():
        raise VerifierInfrastructureError("backend=subprocess has no seccomp filter for this processor")
    packages = interpreter().numpy
    return Sandbox.spawn(
        lambda channels: supervisor_command(channels, packages=str(packages[0].parent) if packages else "", numpy=numpy)
    )
