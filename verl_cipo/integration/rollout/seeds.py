"""A seed of its own for every session, under verl's ``rollout.full_determinism``.

verl 0.9 then gives all requests of a replica one seed, so that the n attempts of a prompt, which are the same request
n times, would be equal and no group would have an advantage. A seed that verl finds in the sampling parameters stays.
"""

from collections.abc import Mapping
from typing import Any

from verl_cipo.core.config import CIPOConfigError
from verl_cipo.core.draws import session_seed

SEED_OF_ENGINE = {"vllm": "seed", "sglang": "sampling_seed", "trtllm": "seed"}
"""``rollout.name`` -> what its sampling parameters call the seed of a request."""


def seed_name(rollout: Mapping[str, Any]) -> str:
    """What the engine of ``actor_rollout_ref.rollout`` calls the seed of a request.

    Raises:
        CIPOConfigError: it is another engine.
    """
    engine = rollout.get("name", "vllm")
    if engine not in SEED_OF_ENGINE:
        raise CIPOConfigError(
            f"actor_rollout_ref.rollout.full_determinism=true with actor_rollout_ref.rollout.name={engine}: how it "
            f"takes the seed of a request is not known, expected {', '.join(SEED_OF_ENGINE)}, or "
            "full_determinism=false"
        )
    return SEED_OF_ENGINE[engine]


def seeded(
    sampling_params: dict[str, Any],
    trajectory: Mapping[str, Any],
    rollout: Mapping[str, Any],
    *,
    index: Any,
    anchor: int | None,
    session: int,
) -> dict[str, Any]:
    """``sampling_params``, with the session's own seed under ``rollout.full_determinism``.

    Args:
        trajectory: ``step`` and ``validate``, as verl hands it to a session.
        rollout: ``actor_rollout_ref.rollout``.

    The rest is as for :func:`verl_cipo.core.draws.session_seed`.

    Raises:
        CIPOConfigError: as :func:`seed_name`.
    """
    if not rollout.get("full_determinism", False):
        return sampling_params
    where = {"step": trajectory["step"], "validate": trajectory["validate"], "index": index}
    return {
        **sampling_params,
        seed_name(rollout): session_seed(rollout["seed"], **where, anchor=anchor, session=session),
    }
