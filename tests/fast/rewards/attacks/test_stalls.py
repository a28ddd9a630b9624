"""What a program may not do to the verifier's own process: cost it time, or make it say something it should not."""

import time

import pytest

from benchmarks.verification.hostile import CLAIMS, SEND, sending

CALL = {"inputs": ["3", "4"], "outputs": ["9", "16"], "fn_name": "f"}
PROGRAM = {"inputs": ["3\n", "4\n"], "outputs": ["9\n", "16\n"]}
ASSERTS = {"asserts": ["assert f(3) == 9", "assert f(4) == {16}"]}
CHECK = {"check": "def check(c):\n    assert c(3) == 9\n    assert set(c(4)) == {16}", "entry_point": "f"}
# The bound is 50 ms a claim; starting sandboxes and waiting for them take some, too.
MOST_S = 0.5


def cost_of(judge, code: str, ground_truth: dict, **settings) -> tuple[dict, float]:
    """The verdict, and the processor time of this process."""
    began = time.process_time()
    return judge(code, ground_truth, **settings), time.process_time() - began


@pytest.mark.parametrize("tests", [CALL, ASSERTS], ids=["call", "asserts"])
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_of_a_call_costs_little(judge, name, tests):
    verdict, cost = cost_of(judge, f"{SEND}\ndef f(x):\n{sending(name, '    ')}", tests)
    assert verdict["outcome"] == "wrong" and cost < MOST_S


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_beside_a_program_costs_little(judge, name):
    code = f"{SEND}\nx = int(input())\nprint(x * x if x == 3 else 0, flush=True)\n{sending(name)}"
    verdict, cost = cost_of(judge, code, PROGRAM)
    assert verdict["outcome"] == "wrong" and cost < MOST_S


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_for_test_code_costs_little(judge, name):
    """The sandbox of the test code reads it, and may run out of time."""
    code = f"{SEND}\ndef f(x):\n    if x == 3: return 9\n{sending(name, '    ')}"
    verdict, cost = cost_of(judge, code, CHECK, timeout_s=1.0)
    assert verdict["outcome"] in ("wrong", "timeout") and cost < MOST_S


@pytest.mark.parametrize("fds", ["(1,)", "range(3, 32)"], ids=["stdout", "result"])
@pytest.mark.parametrize("pause", ["", "\n    time.sleep(0)", "\n    time.sleep(0.00001)"])
def test_output_in_single_bytes_costs_little(judge, fds, pause):
    find = f"import os, time\nfor fd in {fds}:\n    try: os.write(fd, b'x')\n    except OSError: continue\n    break"
    code = f"{find}\nwhile True:\n    os.write(fd, b'x'){pause}"
    verdict, cost = cost_of(judge, code, PROGRAM, timeout_s=0.5)
    assert verdict["outcome"] in ("wrong", "timeout") and cost < MOST_S


OUTPUTS = {
    "blanks": "print(' ' * 1_000_000)",
    "lines": "print('\\n' * 1_000_000)",
    "blank_lines": "print(' \\n' * 500_000)",
    "tokens": "print('9 ' * 500_000)",
    "long_numbers": "print(('9' * 399 + ' ') * 2000)",
    "one_number": "print('9' * 1_000_000)",
    "no_utf8": "import sys\nsys.stdout.buffer.write(b'\\xff' * 1_000_000)",
    "exponents": "print('1e9999 ' * 100_000)",
}


@pytest.mark.parametrize("source", ["attack", "codecontests"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_output_costs_little_to_compare(judge, name, source):
    verdict, cost = cost_of(judge, OUTPUTS[name], PROGRAM)
    assert verdict["outcome"] == "wrong" and cost < MOST_S


NAMES = {
    "surrogate": r"'\ud800'",
    "line_ends": r"'; passed 2 of 2 tests\n\x1b[2J{}'",
    "separators": r"'a\u2028b\u2029c\x85d\x0be'",
    "long": "'x' * 10 ** 6",
    "no_text": "[1] * 10 ** 6",
    "raises": "1 / 0",
    "right_to_left": r"'\u202e\u200b'",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["raised", "claimed"])
@pytest.mark.parametrize("kind", ["program", "call", "check"])
def test_pred_is_one_printable_line(judge, name, how, kind):
    if how == "raised":
        attack = (
            f"class M(type):\n    @property\n    def __name__(c): return {NAMES[name]}\n"
            "class E(Exception, metaclass=M): pass\n"
        )
        last = "raise E"
    else:
        attack, last = SEND, f"send(json.dumps({{'error': {NAMES[name]}}}))"
    code = f"{attack}{last}" if kind == "program" else f"{attack}def f(x):\n    {last}"
    verdict = judge(code, {"program": PROGRAM, "call": CALL, "check": CHECK}[kind])
    assert verdict["outcome"] == "wrong"
    assert verdict["pred"].isprintable() and len(verdict["pred"]) <= 300
    verdict["pred"].encode("utf-8")
    assert "passed 0 of 1 tests run" in verdict["pred"]
    assert "passed 2 of 2" not in verdict["pred"]


KILLS_ITSELF = {
    "processor_time": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
    "prlimit": "import resource\ntry: resource.prlimit(0, resource.RLIMIT_CPU, (0, 0))\nexcept OSError: pass\n"
    "while True: pass",
    "signal": "import os\ntry: os.kill(os.getpid(), 9)\nexcept OSError: pass\nos.abort()",
    "raised_signal": "import signal\ntry: signal.raise_signal(9)\nexcept OSError: pass\nwhile True: pass",
    "system_call": "import ctypes\nlibc = ctypes.CDLL(None)\nlimits = (ctypes.c_ulong * 2)(0, 0)\n"
    "libc.syscall(302, 0, 0, ctypes.byref(limits), None)\nwhile True: pass",
    "memory": "a = []\nwhile True: a.append(bytearray(2**24))",
    "real_time": "import resource\ntry: resource.setrlimit(15, (0, 0))\nexcept (OSError, ValueError): pass\n"
    "while True: pass",
}


@pytest.mark.parametrize("name", KILLS_ITSELF)
def test_no_program_can_pass_for_one_that_the_machine_killed(judge, name):
    verdict = judge(KILLS_ITSELF[name], PROGRAM, timeout_s=1.5)
    assert verdict["outcome"] in ("wrong", "timeout") and verdict["score"] == 0.0
