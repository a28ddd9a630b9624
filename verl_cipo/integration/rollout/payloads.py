"""Where the texts of attempts wait until the next step draws among them, with schedule=replay.

The coordinator ranks the attempts of all workers and draws a few: it is given references. A text stays in the object
store of the node that it was rolled out on; who hosts its corrections fetches it, and Ray forgets what no pool refers
to any more. In a checkpoint, in a pool that was restored from one, and where a worker is no Ray actor, the payload
itself stands in place of the reference: (text, data of the prompt).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from verl_cipo.core.replay import Candidate

logger = logging.getLogger("verl_cipo")


def keep(texts: Mapping[int, str], prompt: Mapping[str, Any], prompt_ids: Sequence[int]) -> dict[int, Any]:
    """Session -> reference to what correcting its attempt takes.

    Args:
        texts: of the attempts of one prompt, by session.
        prompt: its data, without what belongs to one rollout of it.
        prompt_ids: its tokens, as the attempts were asked.
    """
    if not ray.is_initialized():
        return {session: (text, dict(prompt)) for session, text in texts.items()}
    shared = ray.put((dict(prompt), list(prompt_ids)))
    return {session: ray.put((text, shared)) for session, text in texts.items()}


async def fetch(payload: Any) -> tuple[str, Mapping[str, Any], Sequence[int]]:
    """Text, data of the prompt and its tokens, which are empty where the payload itself is given.

    Raises:
        ray.exceptions.RayError: the worker that kept it is gone.
    """
    if isinstance(payload, tuple):
        text, prompt = payload
        return text, prompt, ()
    text, shared = await payload
    return (text, *await shared)


def fetched(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates with their payloads in place of references; those whose payload is lost are left out."""
    found = []
    for candidate in candidates:
        payload = candidate.payload
        if not isinstance(payload, tuple):
            try:
                text, shared = ray.get(payload)
                payload = text, ray.get(shared)[0]
            except ray.exceptions.RayError as error:
                logger.error(
                    "an attempt of prompt %s is missing from the checkpoint: %s", candidate.attempt.index, error
                )
                continue
        found.append(replace(candidate, payload=payload))
    return found
