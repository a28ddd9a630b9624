"""The sandbox_fusion backend against a service that runs what it is sent, as the real one does."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import fusion

PROGRAM = {"inputs": ["1\n"], "outputs": ["secret 2\n"]}
CALL = {"inputs": ["1\n[2]"], "outputs": ['["secret", 3]'], "fn_name": "f"}


@pytest.fixture
def service(monkeypatch):
    """A server; `requests` is what it was sent, `answers` what it says in place of running it: (status, body)."""
    monkeypatch.setattr(fusion, "RETRY_DELAY_S", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(request)
            status, answer = server.answers.pop(0) if server.answers else (200, run(request))
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.answers = [], []
    # A client that has read enough hangs up.
    server.handle_error = lambda *arguments: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(request: dict) -> dict:
    assert request["language"] == "python"
    try:
        done = subprocess.run(
            [sys.executable, "-c", request["code"]],
            input=request["stdin"],
            capture_output=True,
            text=True,
            timeout=request["run_timeout"],
        )
    except subprocess.TimeoutExpired:
        return {"status": "Failed", "run_result": {"status": "TimeLimitExceeded"}}
    result = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    return {"status": "Failed" if done.returncode else "Success", "run_result": result}


def score(service, code: str, ground_truth: dict, **settings) -> dict:
    url = f"http://127.0.0.1:{service.server_port}/run_code"
    text = f"```python\n{code}\n```"
    settings = {"backend": "sandbox_fusion", "sandbox_fusion_url": url, **settings}
    return compute_score("x", text, json.dumps(ground_truth), **settings)


@pytest.mark.parametrize(
    ("code", "ground_truth", "outcome"),
    [
        ("print('secret', int(input()) + 1)", PROGRAM, "right"),
        ("print('secret', int(input()) + 2)", PROGRAM, "wrong"),
        ("print('secret', 2)\nraise SystemExit(1)", PROGRAM, "wrong"),
        ("def f(a, b):\n    print('noise')\n    return 'secret', a + b[0]", CALL, "right"),
        ("def f(a, b: List[int]): return ['secret', reduce(max, b)]", CALL, "wrong"),
        ("import os\ndef f(a, b): os._exit(0)", CALL, "wrong"),
        ("def f(a, b): return {1}", {"asserts": ["assert f(1, 2) == {1}"]}, "right"),
        ("class S(str):\n    __eq__ = lambda *a: True\ndef f(a, b): return S()", CALL, "wrong"),
    ],
)
def test_verdicts(service, code, ground_truth, outcome):
    assert score(service, code, ground_truth)["outcome"] == outcome


def test_output_limit(service, monkeypatch):
    verdict = score(service, "print('x' * 5_000_000)", PROGRAM)
    assert verdict["outcome"] == "wrong" and "output limit" in verdict["pred"]
    monkeypatch.setattr(fusion, "MAX_RESPONSE_BYTES", 1000)
    assert "output limit" in score(service, "print('x' * 5_000)", PROGRAM)["pred"]
    value = score(service, "def f(a, b): return 'x' * 5_000_000", CALL)
    assert "output limit" in value["pred"]


def test_time_limit(service):
    assert score(service, "while True: pass", PROGRAM, timeout_s=0.5)["outcome"] == "timeout"


def test_the_request_is_verls_and_holds_no_expected_output(service):
    score(service, "print(input())", PROGRAM, memory_mb=300)
    (request,) = service.requests
    assert "secret" not in json.dumps(request)
    assert request.pop("code") and request == {
        "compile_timeout": 10.0,
        "run_timeout": 10.0,
        "stdin": "1\n",
        "memory_limit_MB": 300,
        "language": "python",
        "files": {},
        "fetch_files": [],
    }


def test_a_busy_service_is_asked_again(service):
    service.answers[:] = [(504, b""), (503, b"")]
    assert score(service, "print('secret', 2)", PROGRAM)["acc"] is True
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    "answers",
    [
        [(504, b"")] * 3,
        [(500, b"")],
        [(200, b"no json")] * 3,
        [(200, [])] * 3,
        [(200, {"status": "SandboxError", "message": "full"})],
        [(200, {"status": "Success", "run_result": None})],
        [(200, {"status": "Failed", "run_result": {"status": "Unknown"}})],
    ],
)
def test_without_a_result_there_is_no_verdict(service, answers):
    service.answers[:] = answers
    with pytest.raises(VerifierInfrastructureError, match="sandbox_fusion_url"):
        score(service, "print('secret', 2)", PROGRAM)


def test_a_service_that_is_not_there(service, monkeypatch):
    with pytest.raises(VerifierInfrastructureError, match="gave no result"):
        score(service, "pass", PROGRAM, sandbox_fusion_url="http://127.0.0.1:9/run_code")


def test_test_code_needs_another_backend(service):
    check = {"check": "def check(c):\n    assert c(1)", "entry_point": "f"}
    with pytest.raises(ValueError, match="backend=bubblewrap can"):
        score(service, "def f(x): return 1", check)


def test_the_semaphore_is_held_during_a_request(service):
    held = []

    class Semaphore:
        def __enter__(self):
            held.append(len(service.requests))

        def __exit__(self, *error):
            held.append(len(service.requests))

    assert score(service, "print('secret', 2)", PROGRAM, concurrent_semaphore=Semaphore())["acc"] is True
    assert held == [0, 1]
