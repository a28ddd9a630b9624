"""The sandboxes of this process: as many as `workers`, started when first needed, replaced when they end.

The kernel kills a sandbox when the thread that started it ends (--die-with-parent), so one thread that lives as long as
the process starts them all; any thread may use them.
"""

import atexit
import json
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import bubblewrap, unsafe
from verl_cipo.rewards.sandbox.cases import CheckTest, missing_names
from verl_cipo.rewards.sandbox.claims import MAX_ERROR_BYTES
from verl_cipo.rewards.sandbox.warm_sandbox import Run, Sandbox, SandboxDiedError

Starter = Callable[..., Sandbox]
STARTERS: dict[str, Starter] = {"bubblewrap": bubblewrap.spawn, "subprocess": unsafe.spawn}
_MIB = 2**20
# Of a checker, whose arguments and results may be long; nothing of them is read here.
_MAX_CALL = 2**26
_MAX_CLAIM = 2**22
_MAX_VERDICT = 2**13
_NO_VERDICT = {"passed": False, "fault": None, "lacks": None}
_NOTHING = b"{}"


@dataclass(frozen=True)
class Verdict:
    """What test code says of a solution.

    run: of the test code, or of the call that timed out; fault: what is wrong with the test code itself.
    """

    run: Run
    passed: bool
    fault: str | None


class Worker:
    """Runs jobs for one check at a time. A data set's test code has a sandbox of its own, apart from the programs'.

    Source that names numpy goes to a sandbox that has it imported already: that takes 80 ms, a run 2 ms.
    """

    def __init__(self, starter: Starter, memory_mb: int) -> None:
        self._starter = starter
        self._memory = memory_mb * _MIB
        self._sandboxes: dict[tuple[str, bool], Sandbox] = {}
        # Those that take the place of closed ones.
        self._starting: dict[tuple[str, bool], Future[Sandbox]] = {}

    def program(self, code: str, stdin: str, *, timeout_s: float, max_stdout: int) -> Run:
        """Runs `code` as a program. Raises: VerifierInfrastructureError when the run was lost twice."""
        job = {"kind": "program", "code": code, "stdin": stdin}
        role = ("solution", "numpy" in code)
        return self._run(role, job, timeout_s=timeout_s, max_stdout=max_stdout, max_claim=MAX_ERROR_BYTES)

    def call(self, code: str, name: str, args: Any, kwargs: Any, *, timeout_s: float, max_claim: int) -> Run:
        """Calls function `name` of `code`; args, kwargs: encoded. The value is in the claim. Errors as above."""
        arguments = json.dumps({"call": {"args": args, "kwargs": kwargs}}).encode()
        return self._call(code, name, arguments, timeout_s, max_claim)

    def _call(self, code: str, name: str, arguments: bytes, timeout_s: float, max_claim: int) -> Run:
        job = {"kind": "call", "code": code, "name": name}
        role = ("solution", "numpy" in code)
        return self._run(role, job, timeout_s=timeout_s, max_claim=max_claim, arguments=arguments)

    def check(self, test: CheckTest, code: str, *, timeout_s: float, deadline: float) -> Verdict:
        """Runs test code whose calls of the solution run in the sandbox of `code`, where the test code is not.

        timeout_s: for each call, and for the test's own work; deadline: time.monotonic() at which calls end.
        """
        timed_out = False

        def answer(call: bytes) -> bytes:
            nonlocal timed_out
            left = min(timeout_s, deadline - time.monotonic())
            if timed_out or left <= 0:
                timed_out = True
                return _NOTHING
            run = self._call(code, test.name, call, left, _MAX_CLAIM)
            timed_out = run.end == "timeout"
            return run.claim or _NOTHING

        verdict = self._check(test, {}, timeout_s=timeout_s, answer=answer)
        return replace(verdict, run=Run("timeout")) if timed_out else verdict

    def check_constant(self, test: CheckTest, constant: Any, *, timeout_s: float) -> Verdict:
        """Runs test code with a solution whose function returns `constant`, encoded, whatever it is given."""
        return self._check(test, {"constant": constant}, timeout_s=timeout_s)

    def _check(self, test: CheckTest, more: dict[str, Any], **options: Any) -> Verdict:
        job = {"kind": "check", "source": test.source, "name": test.name, **more}
        run = self._run(("check", "numpy" in test.source), job, max_claim=_MAX_CALL, **options)
        # Nothing but test code can write there, so it is JSON.
        said = json.loads(run.claim)["verdict"] if run.claim and len(run.claim) <= _MAX_VERDICT else _NO_VERDICT
        fault, lacks = said["fault"], said["lacks"]
        if lacks and lacks["name"] in missing_names(test.source):
            fault = lacks["said"]
        return Verdict(run, said["passed"], fault)

    def _run(self, role: tuple[str, bool], job: dict[str, Any], *, timeout_s: float, **options: Any) -> Run:
        job["limits"] = {"memory": self._memory, "cpu": int(timeout_s) + 2}
        why = ""
        for _ in range(2):
            try:
                sandbox = self._sandbox(role)
                run = sandbox.run(job, timeout_s=timeout_s, **options)
            except SandboxDiedError as error:
                why = str(error)
                continue
            if sandbox.closed:
                # Warm again by the time that it is needed.
                self._starting[role] = self._start(role)
            # No program can send this signal (see `seccomp`): as a rule the kernel did, which was short of memory.
            if run.code != -signal.SIGKILL:
                return run
            why = "the program was killed from outside"
        raise VerifierInfrastructureError(f"no verdict: {why}, twice in a row")

    def _sandbox(self, role: tuple[str, bool]) -> Sandbox:
        sandbox = self._sandboxes.get(role)
        if sandbox is None or sandbox.closed:
            sandbox = self._sandboxes[role] = (self._starting.pop(role, None) or self._start(role)).result()
        return sandbox

    def _start(self, role: tuple[str, bool]) -> Future[Sandbox]:
        return _in_starter_thread(lambda: self._starter(numpy=role[1]))

    def close(self) -> None:
        """Ends its sandboxes."""
        started = [starting.result() for starting in self._starting.values() if starting.exception() is None]
        for sandbox in (*self._sandboxes.values(), *started):
            sandbox.close()
        self._starting.clear()


class Pool:
    """`size` workers, lent to one check each, to the one that has waited longest."""

    def __init__(self, starter: Starter, *, size: int, memory_mb: int) -> None:
        self._workers = [Worker(starter, memory_mb) for _ in range(size)]
        self._lock = threading.Lock()
        # Last in, first out: a worker that is warm is taken before one that has yet to start.
        self._idle = list(self._workers)
        self._waiting: deque[Future[Worker]] = deque()

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker of one's own; waits for its turn."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
            if worker is None:
                self._waiting.append(turn := Future())
        if worker is None:
            try:
                worker = turn.result()
            except BaseException:
                self._give_up(turn)
                raise
        try:
            yield worker
        finally:
            self._give_back(worker)

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(worker)
            else:
                self._idle.append(worker)

    def _give_up(self, turn: Future[Worker]) -> None:
        """For one that was interrupted while it waited."""
        with self._lock:
            if not turn.done():
                self._waiting.remove(turn)
                return
        self._give_back(turn.result())

    def close(self) -> None:
        """Ends all sandboxes, also those at work."""
        for worker in self._workers:
            worker.close()


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


def _in_starter_thread(starter: Callable[[], Sandbox]) -> Future[Sandbox]:
    with _state.lock:
        if _state.to_start is None:
            _state.to_start = queue.SimpleQueue()
            threading.Thread(target=_start_all, args=(_state.to_start,), name="sandbox-starter", daemon=True).start()
    started: Future[Sandbox] = Future()
    _state.to_start.put((starter, started))
    return started


def _start_all(to_start: "queue.SimpleQueue[tuple[Callable[[], Sandbox], Future[Sandbox]]]") -> None:
    while True:
        starter, started = to_start.get()
        try:
            started.set_result(starter())
        except Exception as error:
            started.set_exception(error)


atexit.register(close_pools)
os.register_at_fork(after_in_child=_begin_anew)
