"""A seed of its own for every session, under verl's ``rollout.full_determinism``.

verl 0.9 then gives all requests of a replica one seed, so that the n attempts of a prompt, which are the same request
n times, would be equal and no group would have an advantage. A seed that verl finds in the sampling parameters stays.
"""

from typing import Any

from verl_cipo.core.lots import lot


def session_seed(rollout_seed: int, *, step: int, validate: bool, index: Any, anchor: int | None, session: int) -> int:
    """A 31-bit seed that depends on what the session is and not on when it runs or on its random uid.

    Args:
        index: the prompt's id in the data set.
        anchor: number of the anchor among those of its prompt, None for an attempt.
    """
    return int.from_bytes(lot(rollout_seed, step, validate, index, anchor, session, size=4), "big") >> 1
