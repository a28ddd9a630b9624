"""The sandbox_fusion backend: programs run in a Sandbox Fusion service (github.com/bytedance/SandboxFusion).

Its isolation is the service's. The request has the fields that verl sends. Expected outputs stay here, too: they are
neither in the request nor compared by the service.
"""

import json
import secrets
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import inside
from verl_cipo.rewards.sandbox.cases import CheckTest
from verl_cipo.rewards.sandbox.launch import program
from verl_cipo.rewards.sandbox.warm_sandbox import Run

ATTEMPTS = 3
RETRY_DELAY_S = 1.0
# Beyond the run's own limits, for the service to queue and answer.
EXTRA_TIMEOUT_S = 30.0
MAX_RESPONSE_BYTES = 64 * 2**20
# Of an answer: what the program wrote to stderr, and a character of stdout as JSON writes it.
_SPARE_BYTES, _BYTES_A_CHARACTER = 2**23, 6


class FusionWorker:
    """Runs programs and calls at one URL; as `pool.Worker` otherwise."""

    def __init__(self, url: str, memory_mb: int, semaphore: AbstractContextManager[Any] | None = None) -> None:
        self._url = url
        self._memory_mb = memory_mb
        self._semaphore = semaphore or nullcontext()

    def program(self, code: str, stdin: str, *, timeout_s: float, max_stdout: int) -> Run:
        """Runs `code` as a program. Raises: VerifierInfrastructureError when the service gives no result."""
        run = self._run({"kind": "program", "code": code}, stdin, "", timeout_s, max_stdout)
        return Run("flood") if len(run.stdout) > max_stdout else run

    def call(self, code: str, name: str, args: Any, kwargs: Any, *, timeout_s: float, max_claim: int) -> Run:
        """Calls function `name` of `code`; args, kwargs: encoded. The value is in the claim. Errors as above."""
        # What the program prints comes the same way, so the claim's line has a mark that cannot occur by chance.
        marker = secrets.token_hex(16)
        job = {"kind": "call", "code": code, "name": name, "call": {"args": args, "kwargs": kwargs}}
        run = self._run(job, "", marker, timeout_s, max_claim)
        claims = [line for line in run.stdout.split(b"\n") if line.startswith(marker.encode())]
        if len(claims) == 1 and len(claims[0]) > max_claim:
            return Run("flood")
        return Run(run.end, run.code, claim=claims[0][len(marker) :] if len(claims) == 1 else None)

    def check(self, test: CheckTest, code: str, *, timeout_s: float, deadline: float) -> NoReturn:
        """Not possible here: the service cannot ask back. Raises: ValueError."""
        raise _no_test_code()

    def check_constant(self, test: CheckTest, constant: Any, *, timeout_s: float) -> NoReturn:
        """As `check`."""
        raise _no_test_code()

    def _run(self, job: dict[str, Any], stdin: str, marker: str, timeout_s: float, most: int) -> Run:
        end = (
            f"import json\nfrom {inside.__name__}.runs import run_remotely\n"
            f"sys.exit(run_remotely(json.loads({json.dumps(job)!r}), {marker!r}))"
        )
        request = {
            "compile_timeout": timeout_s,
            "run_timeout": timeout_s,
            "code": program(end),
            "stdin": stdin,
            "memory_limit_MB": self._memory_mb,
            "language": "python",
            "files": {},
            "fetch_files": [],
        }
        with self._semaphore:
            limit = min(MAX_RESPONSE_BYTES, _SPARE_BYTES + _BYTES_A_CHARACTER * most)
            body = self._post(request, 2 * timeout_s + EXTRA_TIMEOUT_S, limit)
        return Run("flood") if body is None else _as_run(body, self._url)

    def _post(self, content: dict[str, Any], timeout_s: float, limit: int) -> dict[str, Any] | None:
        """The service's answer; None when it is longer than `limit` bytes."""
        request = urllib.request.Request(
            self._url, json.dumps(content).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
        )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(request, timeout=timeout_s) as response:
                    body = response.read(limit + 1)
                if len(body) > limit:
                    return None
                answer = json.loads(body)
                if not isinstance(answer, dict):
                    raise ValueError("its answer is no object")
                return answer
            except urllib.error.HTTPError as error:
                if error.code not in (502, 503, 504) or attempt == ATTEMPTS:
                    raise self._no_verdict(error) from error
            except (OSError, ValueError) as error:
                if attempt == ATTEMPTS:
                    raise self._no_verdict(error) from error
            time.sleep(RETRY_DELAY_S * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _no_verdict(self, error: Exception) -> VerifierInfrastructureError:
        return VerifierInfrastructureError(f"sandbox_fusion_url = {self._url!r} gave no result: {error}")


def _no_test_code() -> ValueError:
    return ValueError(
        "the ground truth holds test code that is more than `assert f(...) == literal`; "
        "backend=sandbox_fusion cannot run it, backend=bubblewrap can"
    )


def _as_run(answer: dict[str, Any], url: str) -> Run:
    """The service's answer as a Run. Raises: VerifierInfrastructureError when it says nothing about the program."""
    ran = answer.get("run_result") or {}
    if answer.get("status") in ("Success", "Failed"):
        if ran.get("status") == "TimeLimitExceeded":
            return Run("timeout")
        code = ran.get("return_code")
        if ran.get("status") in ("Finished", "Error"):
            return Run("exit", 1 if code is None else code, (ran.get("stdout") or "").encode("utf-8", "replace"))
    raise VerifierInfrastructureError(
        f"sandbox_fusion_url = {url!r} answered status {answer.get('status')!r}, run_result.status "
        f"{ran.get('status')!r}: {str(answer.get('message'))[:200]}"
    )
