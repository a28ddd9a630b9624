"""A seed of its own for every session, under verl's ``rollout.full_determinism``.

verl 0.9 then gives all requests of a replica one seed, so that the n attempts of a prompt, which are the same request
n times, would be equal and no group would have an advantage. A seed that verl finds in the sampling parameters stays.
"""

from collections.abc import Mapping
from typing import Any

from verl_cipo.core.config import CIPOConfigError
from verl_cipo.core.draws import lot

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
            f"takes the seed of a request is not known, allowed are {', '.join(SEED_OF_ENGINE)}, or "
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

    The rest is as for :func:`session_seed`.

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


def session_seed(rollout_seed: int, *, step: int, validate: bool, index: Any, anchor: int | None, session: int) -> int:
    """A 31-bit seed that depends on what the session is and not on when it runs or on its random uid.

    Args:
        index: the prompt's id in the data set.
        anchor: number of the anchor among those of its prompt, None for an attempt.
    """
    return int.from_bytes(lot(rollout_seed, step, validate, index, anchor, session, size=4), "big") >> 1
