"""A correction that is given up stops generating, where the engine supports it: vLLM does.

verl's client awaits a Ray call to a rollout server. When the session that awaits is cancelled, the call goes on: the
request keeps its slot in the engine until it ends by itself, and a drain of the engine waits for it.

Seam: ``LLMServerClient._acquire_server``, which hands out the server of each request; a worker's client is its own.
"""

import asyncio
from typing import Any

import ray
from verl.workers.rollout.llm_server import LLMServerClient


class _Server:
    """A rollout server whose ``generate`` ends when nobody waits for it any more."""

    def __init__(self, server: ray.actor.ActorHandle):
        self._server = server
        self.generate = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    async def remote(self, **kwargs: Any) -> Any:
        call = self._server.generate.remote(**kwargs)
        try:
            return await call
        except asyncio.CancelledError:
            # The server's coroutine is cancelled, and with it vLLM's request. SGLang's goes on to its end.
            ray.cancel(call)
            raise


class EndsRequests:
    """Part of a rollout worker: a request to a rollout server ends with the session that awaits it."""

    @property
    def llm_client(self) -> Any:
        """What sessions ask, which verl's constructor sets; a client that is not verl's is left as it is."""
        return self._llm_client

    @llm_client.setter
    def llm_client(self, client: Any) -> None:
        self._llm_client = client
        if not isinstance(client, LLMServerClient):
            return
        acquire = client._acquire_server

        async def acquire_server(*args: Any, **kwargs: Any) -> tuple[str, _Server]:
            server_id, server = await acquire(*args, **kwargs)
            return server_id, _Server(server)

        client._acquire_server = acquire_server
