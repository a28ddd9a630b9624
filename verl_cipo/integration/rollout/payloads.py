"""Where the texts of attempts wait until the next step draws among them, with schedule=replay.

The coordinator ranks the attempts of all workers and draws a few: it is given references. A text stays in the object
store of the node that it was rolled out on; who hosts its corrections fetches it, and Ray forgets what no pool refers
to any more. In a checkpoint, in a pool that was restored from one, and where a worker is no Ray actor, the payload
itself stands in place of the reference: (text, data of the prompt, attempts beside it), without the last one in
checkpoints of older versions.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import ray

from verl_cipo.core.prompts import ALONE, Others
from verl_cipo.core.replay import Candidate

logger = logging.getLogger("verl_cipo")


def keep(
    texts: Mapping[int, str], prompt: Mapping[str, Any], prompt_ids: Sequence[int], beside: Mapping[int, Others]
) -> dict[int, Any]:
    """Session -> reference to what correcting its attempt takes.

    Args:
        texts: of the attempts of one prompt, by session.
        prompt: its data, without what belongs to one rollout of it.
        prompt_ids: its tokens, as the attempts were asked.
        beside: session -> what is shown with its attempt; nothing where it is not in there.
    """
    # Plain values: a checkpoint does not depend on where a class lives.
    others = {session: astuple(beside.get(session, ALONE)) for session in texts}
    if not ray.is_initialized():
        return {session: (text, dict(prompt), others[session]) for session, text in texts.items()}
    shared = ray.put((dict(prompt), list(prompt_ids)))
    return {session: ray.put((text, shared, others[session])) for session, text in texts.items()}


async def fetch(payload: Any) -> tuple[str, Mapping[str, Any], Sequence[int], Others]:
    """Text, data of the prompt, its tokens, which are empty where the payload itself is given, and what stands beside.

    Raises:
        ray.exceptions.RayError: the worker that kept it is gone.
    """
    if isinstance(payload, tuple):
        text, prompt, *others = payload
        return text, prompt, (), Others(*others[0]) if others else ALONE
    text, shared, others = await payload
    return (text, *await shared, Others(*others))


def fetched(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates with their payloads in place of references; those whose payload is lost are left out."""
    found = []
    for candidate in candidates:
        payload = candidate.payload
        if not isinstance(payload, tuple):
            try:
                text, shared, others = ray.get(payload)
                payload = text, ray.get(shared)[0], others
            except ray.exceptions.RayError as error:
                logger.error(
                    "an attempt of prompt %s is missing from the checkpoint: %s", candidate.attempt.index, error
                )
                continue
        found.append(replace(candidate, payload=payload))
    return found
