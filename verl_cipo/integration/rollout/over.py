"""CIPO over a manager and workers that are the user's and not verl's: algorithm.cipo.manager."""

from typing import Any

from verl.trainer.ppo.v1 import AgentLoopWorkerTQ

from verl_cipo.core.config import ROOT, CIPOConfigError
from verl_cipo.integration.rollout.worker import CIPOAgentLoopWorker, CorrectsAttempts

OF_VERL = AgentLoopWorkerTQ.__ray_metadata__.modified_class
"""verl's worker, beneath the actor that Ray makes of it."""


def worker_over(named: Any) -> type[CorrectsAttempts]:
    """The worker that a manager names, as verl's managers do, with corrections.

    Raises:
        CIPOConfigError: it is no subclass of verl's ``AgentLoopWorkerTQ``.
    """
    base = named.__ray_metadata__.modified_class if hasattr(named, "__ray_metadata__") else named
    if base is OF_VERL:
        return CIPOAgentLoopWorker
    if not (isinstance(base, type) and issubclass(base, OF_VERL)):
        raise CIPOConfigError(
            f"agent_loop_workers_class={base!r} of {ROOT}.manager: expected a subclass of verl's AgentLoopWorkerTQ; "
            "its plain class is AgentLoopWorkerTQ.__ray_metadata__.modified_class"
        )
    return type(f"CIPO{base.__name__}", (CorrectsAttempts, base), {})
