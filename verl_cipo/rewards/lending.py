"""What the verifiers' pools of processes share: fair lending, and pools that belong to one process."""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


Item = TypeVar("Item")
Pool = TypeVar("Pool", bound=_Closable)


class Lender(Generic[Item]):
    """Lends each item to one holder at a time, to the one that has waited longest.

    A semaphore would let the thread that leaves come in again.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._lock = threading.Lock()
        # Last in, first out: an item that was used, and is warm, before one that was not.
        self._idle = list(items)
        self._waiting: deque[Future[Item]] = deque()

    @contextmanager
    def lend(self) -> Iterator[Item]:
        """An item for this caller alone; waits for its turn."""
        turn: Future[Item] = Future()
        with self._lock:
            if self._idle:
                turn.set_result(self._idle.pop())
            else:
                self._waiting.append(turn)
        try:
            item = turn.result()
        except BaseException:
            self._give_up(turn)
            raise
        try:
            yield item
        finally:
            self._give_back(item)

    def _give_back(self, item: Item) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(item)
            else:
                self._idle.append(item)

    def _give_up(self, turn: Future[Item]) -> None:
        """For one that was interrupted while it waited."""
        with self._lock:
            if not turn.done():
                self._waiting.remove(turn)
                return
        self._give_back(turn.result())


class Pools(Generic[Pool]):
    """The pools of this process by their settings, closed when the interpreter ends.

    A forked process begins without any: its parent's are connected to the parent.
    """

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self.close)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[Hashable, Pool] = {}

    def get(self, settings: Hashable, make: Callable[[], Pool]) -> Pool:
        """The pool for these settings, made at the first call."""
        with self._lock:
            if settings not in self._pools:
                self._pools[settings] = make()
            return self._pools[settings]

    def close(self) -> None:
        """Close all; later calls of `get` make new ones."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()
