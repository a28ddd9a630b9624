"""The sandboxes of this process: as many as `workers`, started when first needed, replaced when they end.

The kernel kills a sandbox when the thread that started it ends (--die-with-parent), so one thread that lives as long as
the process starts them all; any thread may use them.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from verl_cipo.rewards.lending import Lender, Pools
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
        return _starter_thread.submit(self._starter, numpy=role[1])

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
        self._lender = Lender(self._workers)

    def worker(self) -> AbstractContextManager[Worker]:
        """A worker for this caller alone; waits for its turn."""
        return self._lender.lend()

    def close(self) -> None:
        """Ends all sandboxes, also those at work."""
        for worker in self._workers:
            worker.close()


_pools: Pools[Pool] = Pools()


def get_pool(backend: str, *, workers: int, memory_mb: int) -> Pool:
    """This process's pool for these settings, made at the first call."""
    settings = (backend, workers, memory_mb)
    return _pools.get(settings, lambda: Pool(STARTERS[backend], size=workers, memory_mb=memory_mb))


def close_pools() -> None:
    """Ends all sandboxes of this process; later checks start new ones."""
    _pools.close()


def _new_starter_thread() -> None:
    global _starter_thread
    _starter_thread = ThreadPoolExecutor(1, "sandbox-starter")


_new_starter_thread()
os.register_at_fork(after_in_child=_new_starter_thread)
