"""The code verifier: a reward function for verl's `reward.custom_reward_function`.

    reward.custom_reward_function.path=pkg://verl_cipo.rewards.code
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.timeout_s=10

The program runs in a sandbox that never holds an expected output; what it gives back is data, compared here.
docs/code-verifier.md says what that covers, and what it does not.
"""

import math
import os
import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from verl_cipo.rewards.arguments import refuse_unknown
from verl_cipo.rewards.code.fences import last_program
from verl_cipo.rewards.outcome import Outcome, printable, result
from verl_cipo.rewards.sandbox import pool
from verl_cipo.rewards.sandbox.cases import CheckTest, ProgramTest, Test, read_tests
from verl_cipo.rewards.sandbox.claims import NoClaimError, bounds, error_name, read_value
from verl_cipo.rewards.sandbox.compare import agreements, same_output
from verl_cipo.rewards.sandbox.fusion import FusionWorker
from verl_cipo.rewards.sandbox.inside.values import NotPlainError, encode
from verl_cipo.rewards.sandbox.vacuous import refuse_vacuous
from verl_cipo.rewards.sandbox.warm_sandbox import Run

__all__ = ["compute_score", "last_program"]

BACKENDS = ("bubblewrap", "sandbox_fusion", "subprocess")
MIN_MEMORY_MB = 64
# What a program may give beyond twice what is expected of it.
_SPARE_BYTES = 2**20
_MAX_PRED = 300
_CODE_CONTESTS = re.compile("code[^a-z]?contests", re.IGNORECASE)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | dict[str, Any],
    extra_info: dict | None = None,
    *,
    backend: str = "bubblewrap",
    allow_unsafe: bool = False,
    timeout_s: float = 10.0,
    total_timeout_s: float = 60.0,
    memory_mb: int = 1024,
    workers: int | None = None,
    max_tests: int | None = None,
    continuous: bool = False,
    float_tolerance: float = 1e-6,
    sandbox_fusion_url: str | None = None,
    concurrent_semaphore: Any = None,
    **unknown: Any,
) -> dict[str, float | bool | str]:
    """Run the last fenced code block of a solution against the problem's tests.

    Args:
        data_source: named in errors; all are judged alike but CodeContests, whose layout and case do not count.
        solution_str: the policy's text.
        ground_truth: the tests, as JSON text or as an object; the layouts are in docs/code-verifier.md.
        extra_info: not used.
        backend: "bubblewrap", "sandbox_fusion", or "subprocess", which is no sandbox and needs allow_unsafe.
        allow_unsafe: accept that programs read this machine's files.
        timeout_s: wall clock of one test, seconds.
        total_timeout_s: wall clock of all tests, seconds; waiting for a free sandbox is not counted.
        memory_mb: address space of a program, the interpreter's included, MiB.
        workers: sandboxes of this process at most; None: a quarter of the CPUs it may use, from 2 to 8.
        max_tests: judge by the first this many tests; None: by all.
        continuous: the score is the share of tests passed. `acc` stays strict, and no test is left out after a failure.
        float_tolerance: see `compare.same_output`.
        sandbox_fusion_url: the service's run_code URL, for backend "sandbox_fusion".
        concurrent_semaphore: held during each request to the service, as in verl.
        unknown: verl's `reward_router_address` and `reward_model_tokenizer`, which are not used; nothing else.

    Returns:
        score (1.0 or 0.0), acc (bool), pred (how far it came) and outcome (right, wrong, unparsable or timeout), as
        `outcome.result` has them.

    Raises:
        VerifierInfrastructureError: no verdict could be had: the sandbox is missing or broke.
        TypeError: an argument is unknown.
        ValueError: an argument is out of range, or the ground truth is malformed.
    """
    refuse_unknown(compute_score, unknown)
    _validate(backend, allow_unsafe, sandbox_fusion_url)
    workers = min(8, max(2, len(os.sched_getaffinity(0)) // 4)) if workers is None else workers
    for name, value, least in (
        ("timeout_s", timeout_s, 0.1),
        ("total_timeout_s", total_timeout_s, 0.1),
        ("float_tolerance", float_tolerance, 0),
    ):
        if not value >= least:
            raise ValueError(f"reward_kwargs.{name} = {value!r}: expected {least} or more")
    memory_mb = _whole("memory_mb", memory_mb, MIN_MEMORY_MB)
    workers = _whole("workers", workers, 1)
    max_tests = None if max_tests is None else _whole("max_tests", max_tests, 1)
    any_layout = bool(_CODE_CONTESTS.search(data_source))
    try:
        tests = read_tests(ground_truth, max_tests)
    except ValueError as error:
        raise ValueError(f"ground truth of data source {data_source!r}: {error}") from error
    code = last_program(solution_str)
    if code is None:
        return result(Outcome.UNPARSABLE, "")
    with _worker(backend, workers, memory_mb, sandbox_fusion_url, concurrent_semaphore) as worker:
        judge = _Judge(worker, code, timeout_s, time.monotonic() + total_timeout_s, float_tolerance, any_layout)
        outcome, n_passed, pred = judge.all(tests, stop_early=not continuous)
        if outcome is Outcome.RIGHT or continuous and n_passed:
            refuse_vacuous(tests, worker, timeout_s=timeout_s)
    verdict = result(outcome, printable(pred, _MAX_PRED))
    return {**verdict, "score": n_passed / len(tests)} if continuous else verdict


def _whole(name: str, value: float, least: int) -> int:
    """The integer, which a configuration may write as 512.0."""
    if isinstance(value, bool | str | None) or not least <= value < math.inf or value != int(value):
        raise ValueError(f"reward_kwargs.{name} = {value!r}: expected a whole number, {least} or more")
    return int(value)


def _validate(backend: str, allow_unsafe: bool, url: str | None) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"reward_kwargs.backend = {backend!r}: expected one of {', '.join(BACKENDS)}")
    if backend == "subprocess" and not allow_unsafe:
        raise ValueError(
            "reward_kwargs.backend = 'subprocess' is no sandbox: programs read this machine's files, the expected "
            "outputs among them. reward_kwargs.allow_unsafe=true accepts that; backend=bubblewrap needs no such thing"
        )
    if (backend == "sandbox_fusion") != bool(url):
        raise ValueError(
            f"reward_kwargs.backend = {backend!r} with sandbox_fusion_url = {url!r}: expected backend=sandbox_fusion "
            "with a URL, and another backend without"
        )


def _worker(
    backend: str, workers: int, memory_mb: int, url: str | None, semaphore: Any
) -> AbstractContextManager["pool.Worker | FusionWorker"]:
    if url:
        return nullcontext(FusionWorker(url, memory_mb, semaphore))
    return pool.get_pool(backend, workers=workers, memory_mb=memory_mb).worker()


@dataclass(frozen=True)
class _Judge:
    """Judges one program. deadline: time.monotonic() at which it has to be done."""

    worker: "pool.Worker | FusionWorker"
    code: str
    timeout_s: float
    deadline: float
    tolerance: float
    any_layout: bool

    def all(self, tests: list[Test], *, stop_early: bool) -> tuple[Outcome, int, str]:
        """The outcome, how many tests passed, and in words what kept the first other from it."""
        # For each way to read the expected outputs: which tests passed.
        passed: list[list[bool]] = []
        first, outcome = "", Outcome.RIGHT
        for number, test in enumerate(tests, 1):
            left = min(self.timeout_s, self.deadline - time.monotonic())
            if left <= 0:
                if not first:
                    first, outcome = f"test {number}: time limit of all tests", Outcome.TIMEOUT
                break
            run, readings = self._try(test, left)
            passed.append(readings)
            if not first and not any(all(reading) for reading in zip(*passed, strict=True)):
                first = f"test {number}: {_fault(run)}"
                outcome = Outcome.TIMEOUT if run.end == "timeout" else Outcome.WRONG
                if stop_early:
                    break
        n_passed = max((sum(reading) for reading in zip(*passed, strict=True)), default=0)
        if not first:
            return outcome, n_passed, f"passed {n_passed} of {len(tests)} tests"
        return outcome, n_passed, f"{first}; passed {n_passed} of {len(passed)} tests run, {len(tests)} in all"

    def _try(self, test: Test, timeout_s: float) -> tuple[Run, list[bool]]:
        """The run of a test and, for each reading of what is expected, whether it agrees."""
        if isinstance(test, ProgramTest):
            most = 2 * len(test.expected.encode("utf-8", "replace")) + _SPARE_BYTES
            run = self.worker.program(self.code, test.stdin, timeout_s=timeout_s, max_stdout=most)
            return run, [run.end == "exit" and run.code == 0 and self._same_output(run, test)]
        if isinstance(test, CheckTest):
            verdict = self.worker.check(test, self.code, timeout_s=timeout_s, deadline=self.deadline)
            if verdict.fault:
                raise ValueError(f"the ground truth's test code fails whatever the solution does: {verdict.fault}")
            return verdict.run, [verdict.run.end == "exit" and verdict.passed]
        try:
            args, kwargs, expected = encode(test.args), encode(test.kwargs), encode(test.readings[0])
        except NotPlainError as error:
            raise ValueError(f"the ground truth's call of {test.name} has {error}") from error
        most = bounds(expected)
        run = self.worker.call(self.code, test.name, args, kwargs, timeout_s=timeout_s, max_claim=most.size)
        try:
            value = read_value(run.claim, most)
        except NoClaimError:
            return run, [False] * len(test.readings)
        return run, agreements(value, test, tolerance=self.tolerance)

    def _same_output(self, run: Run, test: ProgramTest) -> bool:
        got = run.stdout.decode("utf-8", "replace")
        return same_output(got, test.expected, tolerance=self.tolerance, any_layout=self.any_layout)


def _fault(run: Run) -> str:
    """What kept a run from passing, in words that give no expected output away."""
    if run.end == "timeout":
        return "time limit"
    if run.end == "flood":
        return "output limit"
    if error := error_name(run.claim):
        # The program may say anything here; what is no name would only be read as something else.
        return f"raised {error[:60]}" if error.isidentifier() else "raised an error"
    if run.code is not None and run.code < 0:
        return f"killed by signal {-run.code}"
    return f"exit status {run.code}" if run.code else "wrong answer"
