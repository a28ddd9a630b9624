"""The sandboxes of this process: as many as `workers`, started when first needed, replaced when they end.

The kernel kills a sandbox when the thread that started it ends (--die-with-parent), so one thread that lives as long as
the process starts them all; any thread may use them.
"""

import atexit
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import bubblewrap, unsafe
from verl_cipo.rewards.sandbox.warm_sandbox import Run, Sandbox, SandboxDiedError

Starter = Callable[..., Sandbox]
STARTERS: dict[str, Starter] = {"bubblewrap": bubblewrap.start, "subprocess": unsafe.start}
_MIB = 2**20


class Worker:
    """Runs jobs for one check at a time. A data set's test code has a sandbox of its own, apart from the programs'.

    Source that names numpy goes to a sandbox that has it imported already: that takes 80 ms, a run 2 ms.
    """

    def __init__(self, starter: Starter, memory_mb: int) -> None:
        self._starter = starter
        self._memory = memory_mb * _MIB
        self._sandboxes: dict[tuple[str, bool], Sandbox] = {}

    def program(self, code: str, stdin: str, *, timeout_s: float, max_stdout: int) -> Run:
        """Runs `code` as a program. Raises: VerifierInfrastructureError when two sandboxes died under it."""
        job = {"kind": "program", "code": code, "stdin": stdin}
        return self._run(("solution", "numpy" in code), job, timeout_s=timeout_s, max_stdout=max_stdout)

    def call(self, code: str, name: str, args: Any, kwargs: Any, *, timeout_s: float, max_claim: int = 2**22) -> Run:
        """Calls function `name` of `code`; args, kwargs: encoded. The value is claim["value"]. Errors as above."""
        job = {"kind": "call", "code": code, "name": name, "args": args, "kwargs": kwargs}
        return self._run(("solution", "numpy" in code), job, timeout_s=timeout_s, max_claim=max_claim)

    def check(self, source: str, name: str, code: str, *, timeout_s: float, deadline: float) -> Run:
        """Runs test code whose calls of function `name` run in the sandbox of `code`, where the test code is not.

        timeout_s: for each call, and for the test's own work; deadline: time.monotonic() at which calls end.
        The verdict is claim["passed"] and claim["fault"]. A call that timed out ends the run as "timeout".
        """
        calls: list[Run] = []

        def answer(call: dict[str, Any]) -> dict[str, Any]:
            left = min(timeout_s, deadline - time.monotonic())
            timed_out = left <= 0 or any(run.end == "timeout" for run in calls)
            run = Run("timeout") if timed_out else self.call(code, name, call["args"], call["kwargs"], timeout_s=left)
            calls[:] = [run]
            return {"value": run.claim["value"]} if is_value(run.claim) else {"error": run.end}

        job = {"kind": "check", "source": source, "name": name}
        run = self._run(("check", "numpy" in source), job, timeout_s=timeout_s, answer=answer)
        return Run("timeout") if any(run.end == "timeout" for run in calls) else run

    def _run(self, role: tuple[str, bool], job: dict[str, Any], *, timeout_s: float, **options: Any) -> Run:
        job["limits"] = {"memory": self._memory, "cpu": int(timeout_s) + 2}
        for _ in range(2):
            sandbox = self._sandboxes.get(role)
            if sandbox is None or sandbox.closed:
                sandbox = self._sandboxes[role] = _in_starter_thread(lambda: self._starter(numpy=role[1]))
            try:
                return sandbox.run(job, timeout_s=timeout_s, **options)
            except SandboxDiedError as error:
                died = error
        raise VerifierInfrastructureError(f"no verdict: {died}, twice in a row") from died

    def close(self) -> None:
        """Ends its sandboxes."""
        for sandbox in self._sandboxes.values():
            sandbox.close()


class Pool:
    """`size` workers, lent to one thread each."""

    def __init__(self, starter: Starter, *, size: int, memory_mb: int) -> None:
        self._workers = [Worker(starter, memory_mb) for _ in range(size)]
        # Last in, first out: a worker that is warm is taken before one that has yet to start.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker of one's own; waits until one is free."""
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all sandboxes, also those at work."""
        for worker in self._workers:
            worker.close()


def is_value(claim: Any) -> bool:
    """Whether a claim, which anything may be, holds a value."""
    return isinstance(claim, dict) and claim.keys() == {"value"}


def get_pool(backend: str, *, workers: int, memory_mb: int) -> Pool:
    """This process's pool for these settings, made at the first call."""
    key = (backend, workers, memory_mb)
    with _state.lock:
        if key not in _state.pools:
            _state.pools[key] = Pool(STARTERS[backend], size=workers, memory_mb=memory_mb)
        return _state.pools[key]


def close_pools() -> None:
    """Ends all sandboxes of this process; later checks start new ones."""
    with _state.lock:
        pools = list(_state.pools.values())
        _state.pools.clear()
    for pool in pools:
        pool.close()


class _State:
    """What belongs to one process; a forked one begins with its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pools: dict[tuple[str, int, int], Pool] = {}
        self.to_start: queue.SimpleQueue[tuple[Callable[[], Sandbox], Future[Sandbox]]] | None = None


_state = _State()


def _begin_anew() -> None:
    global _state
    _state = _State()


def _in_starter_thread(starter: Callable[[], Sandbox]) -> Sandbox:
    with _state.lock:
        if _state.to_start is None:
            _state.to_start = queue.SimpleQueue()
            threading.Thread(target=_start_all, args=(_state.to_start,), name="sandbox-starter", daemon=True).start()
    started: Future[Sandbox] = Future()
    _state.to_start.put((starter, started))
    return started.result()


def _start_all(to_start: "queue.SimpleQueue[tuple[Callable[[], Sandbox], Future[Sandbox]]]") -> None:
    while True:
        starter, started = to_start.get()
        try:
            started.set_result(starter())
        except Exception as error:
            started.set_exception(error)


atexit.register(close_pools)
os.register_at_fork(after_in_child=_begin_anew)
