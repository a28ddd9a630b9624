"""What a program may not get by pretending: a pass that it has not earned. One property a program."""

import pytest

CALL = {"inputs": ["3", "4"], "outputs": ['"secret-nine"', '"secret-sixteen"'], "fn_name": "f"}
NUMBER = {"inputs": ["3", "4"], "outputs": ["9", "16"], "fn_name": "f"}
PROGRAM = {"inputs": ["3\n", "4\n"], "outputs": ["secret-nine\n", "secret-sixteen\n"]}
ASSERTS = {
    "asserts": ["assert f(3) == 'secret-nine'", "assert len(f(4)) == len('secret-sixteen') and f(4) == 'secret-16'"]
}
CHECK = {
    "check": "def check(candidate):\n    for given, wanted in [(3, 'secret-nine'), (4, 'secret-16')]:\n"
    "        assert candidate(given) == wanted",
    "entry_point": "f",
}
HUNT = """
import gc, sys
def hunt():
    seen, found = set(), []
    def look(item):
        if type(item) is str:
            if item.startswith('secret' + '-'): found.append(item)
        elif id(item) not in seen and len(seen) < 200_000:
            seen.add(id(item))
            try: gc.get_referents(item) and [look(other) for other in gc.get_referents(item)]
            except RecursionError: pass
    frame = sys._getframe()
    while frame is not None:
        for value in (frame.f_locals, frame.f_globals): look(value)
        frame = frame.f_back
    for item in gc.get_objects(): look(item)
    return found[0] if found else 'nothing'
"""
ALWAYS_EQUAL = """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 0
    def __getattr__(self, name): return self
    def __instancecheck__(self, kind): return True
"""
FORGE = """
import os, json, struct
def forge(*claims):
    body = b''.join(struct.pack('<I', len(text)) + text for text in (json.dumps(claim).encode() for claim in claims))
    for fd in range(1, 64):
        try: os.write(fd, body)
        except OSError: pass
"""
HOSTILE = {
    "equality_override_int": (NUMBER, f"{ALWAYS_EQUAL}\ndef f(x): return Equal(1)"),
    "equality_override_str": (CALL, "class S(str):\n    def __eq__(self, o): return True\ndef f(x): return S('x')"),
    "equality_override_list": (
        {"inputs": ["1"], "outputs": ["[1, 2]"], "fn_name": "f"},
        "class L(list):\n    def __eq__(self, o): return True\ndef f(x): return L()",
    ),
    "equality_override_in_assert": (
        {"asserts": ["assert f(3) == 9", "assert not f(3) != 9 and f(3) == 9"]},
        f"{ALWAYS_EQUAL}\ndef f(x): return Equal(1)",
    ),
    "equality_override_in_check": (CHECK, f"{ALWAYS_EQUAL}\ndef f(x): return Equal(1)"),
    "equality_override_by_object": (NUMBER, "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()"),
    "pretends_to_be_numpy": (
        NUMBER,
        "class A:\n    __module__ = 'numpy'\n    def tolist(self): return self\n    def __eq__(self, o): return True\n"
        "def f(x): return A()",
    ),
    "hunt_in_call": (CALL, f"{HUNT}\ndef f(x): return hunt()"),
    "hunt_in_program": (PROGRAM, f"{HUNT}\nprint(hunt())"),
    "hunt_in_assert": (ASSERTS, f"{HUNT}\ndef f(x): return hunt()"),
    "hunt_in_check": (CHECK, f"{HUNT}\ndef f(x): return hunt()"),
    "caller_locals": (CALL, "import sys\ndef f(x):\n    return sys._getframe(1).f_locals.get('expected', '')"),
    "value_the_test_cannot_hand_on": (
        {"check": "def check(candidate):\n    assert candidate(candidate(1)) == 2", "entry_point": "f"},
        "def f(x):\n    a = []\n    for _ in range(99): a = [a]\n    return a",
    ),
    "source_of_the_test": (CHECK, "import inspect\ndef f(x):\n"
        "    return inspect.getsource(inspect.currentframe().f_back)"),
    "exit_in_call": (CALL, "import sys\ndef f(x): sys.exit(0)"),
    "exit_on_definition": (CALL, "import sys\nsys.exit(0)"),
    "hard_exit_in_call": (CALL, "import os\ndef f(x): os._exit(0)"),
    "hard_exit_in_program": (PROGRAM, "import os\nos._exit(0)"),
    "exit_in_program": (PROGRAM, "raise SystemExit"),
    "exit_in_check": (CHECK, "import sys\ndef f(x): sys.exit(0)"),
    "exit_in_assert": (ASSERTS, "import os\ndef f(x): os._exit(0)"),
    "forged_value_and_exit": (NUMBER, f"{FORGE}\ndef f(x):\n    forge({{'value': True}})\n    os._exit(0)"),
    "forged_many_values": (NUMBER, f"{FORGE}\ndef f(x):\n    forge({{'value': 9}}, {{'value': 16}})\n    os._exit(0)"),
    "forged_verdict": (CHECK, f"{FORGE}\nforge({{'passed': True, 'fault': None}})\nos._exit(0)\ndef f(x): pass"),
    "forged_call": (CHECK, f"{FORGE}\ndef f(x):\n    forge({{'call': 'f', 'args': [], 'kwargs': {{'dict': []}}}})"),
    "forged_fault": (CHECK, f"{FORGE}\ndef f(x):\n    forge({{'passed': False, 'fault': 'mine'}})\n    os._exit(0)"),
    "forged_status": (NUMBER, "import os\ndef f(x):\n    for fd in range(1, 64):\n"
        "        try: os.write(fd, b'\\x11\\x1a\\0\\0' * 9)\n"
    "        except OSError: pass\n    os._exit(0)"),
    "forged_garbage": (NUMBER, "import os\ndef f(x):\n    for fd in range(1, 64):\n"
        "        try: os.write(fd, b'\\xff' * 99)\n"
    "        except OSError: pass\n    os._exit(0)"),
    "patched_json": (CALL, "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\ndef f(x): return 1"),
    "patched_harness": (CALL, "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    frame.f_globals['encode'] = lambda *a: True\n"
    "    frame = frame.f_back\ndef f(x): return 1"),
    "patched_builtins": (CALL, "import builtins\nbuiltins.isinstance = lambda *a: True\n"
        "builtins.type = lambda *a: str\n"
    "builtins.len = lambda *a: 0\ndef f(x): return 1"),
    "patched_print": (PROGRAM, "import builtins, sys\nbuiltins.print = lambda *a: None\nsys.stdout = None"),
    "patched_exit": (NUMBER, "import os\nos._exit = lambda status: None\ndef f(x): return 1"),
    "always_true_module": (NUMBER, "import operator\noperator.eq = lambda a, b: True\ndef f(x): return 1"),
    "nan": ({"inputs": ["1"], "outputs": ["NaN"], "fn_name": "f"}, "def f(x): return float('nan')"),
    "nan_text": ({"inputs": [""], "outputs": ["1.5"]}, "print('nan')"),
    "infinity_for_a_float": ({"inputs": [""], "outputs": ["1e300"]}, "print('inf')"),
    "beyond_tolerance": ({"inputs": [""], "outputs": ["1.5"]}, "print(1.50001)"),
    "tolerance_on_integers": ({"inputs": [""], "outputs": ["3"]}, "print(3.0000001)"),
    "tolerance_on_big_integers": ({"inputs": [""], "outputs": ["50000000000000000"]}, "print(50000000000000001)"),
    "digits_of_another_script": ({"inputs": [""], "outputs": ["12"]}, "print('\\u0661\\u0662')"),
    "underscored_digits": ({"inputs": [""], "outputs": ["1000"]}, "print('1_000')"),
    "permuted_tokens": ({"inputs": [""], "outputs": ["1 2 3"]}, "print('3 2 1')"),
    "repeated_tokens": ({"inputs": [""], "outputs": ["1 2"]}, "print('1 2 2 1')"),
    "many_answers": ({"inputs": [""], "outputs": ["7"]}, "for i in range(10): print(i)"),
    "first_element_only": ({"inputs": ["1"], "outputs": ["[5, 6]"], "fn_name": "f"}, "def f(x): return 5"),
    "two_readings": (
        {"inputs": ["1", "2"], "outputs": ["[5]", "[6]"], "fn_name": "f"},
        "def f(x): return 5 if x == 1 else [6]",
    ),
    "nothing_for_some": ({"inputs": ["a", "b"], "outputs": ["", "x"]}, "pass"),
    "right_then_crash": ({"inputs": [""], "outputs": ["7"]}, "print(7)\n1 / 0"),
    "right_then_status_1": ({"inputs": [""], "outputs": ["7"]}, "import sys\nprint(7)\nsys.exit(1)"),
    "right_then_killed": ({"inputs": [""], "outputs": ["7"]}, "import ctypes\nprint(7, flush=True)\n"
        "ctypes.string_at(0)"),
    "value_by_print": (NUMBER, "def f(x): print(x * x)"),
    "generator": ({"inputs": ["1"], "outputs": ["[1]"], "fn_name": "f"}, "def f(x): yield 1"),
    "itself_inside": ({"inputs": ["1"], "outputs": ["[[]]"], "fn_name": "f"}, "def f(x):\n    a = []\n"
        "    a.append(a)\n    return a"),
    "deeply_nested": (
        {"inputs": ["1"], "outputs": ["[]"], "fn_name": "f"},
        "def f(x):\n    a = []\n    for _ in range(40000): a = [a]\n    return a",
    ),
    "forged_deep_json": (
        NUMBER,
        "import os, struct\ndef f(x):\n    text = b'{\"value\":' + b'[' * 50000 + b']' * 50000 + b'}'\n"
        "    for fd in range(3, 64):\n        try: os.write(fd, struct.pack('<I', len(text)) + text)\n"
        "        except OSError: pass\n    os._exit(0)",
    ),
    "lone_surrogate": ({"inputs": [""], "outputs": ["?"]}, "print('\\ud800')"),
    "bytes_that_are_no_utf8": ({"inputs": [""], "outputs": ["?"]}, "import sys\n"
        "sys.stdout.buffer.write(b'\\xff\\xfe')"),
    "null_byte_in_the_source": ({"inputs": [""], "outputs": ["7"]}, "print(7)\0"),
    "surrogate_in_the_source": ({"inputs": [""], "outputs": ["7"]}, "print(7)  # \ud800"),
    "not_python": ({"inputs": [""], "outputs": ["7"]}, "print 7"),
    "empty": ({"inputs": [""], "outputs": ["7"]}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_does_not_pass(judge, name):
    ground_truth, code = HOSTILE[name]
    verdict = judge(code, ground_truth)
    assert (verdict["score"], verdict["acc"], verdict["outcome"]) == (0.0, False, "wrong"), verdict


def test_what_a_test_lacks_is_not_the_programs_to_define(judge):
    check = {"check": "def check(f):\n    assert same(f(3), 'secret-nine')", "entry_point": "f"}
    with pytest.raises(ValueError, match="name 'same' is not defined"):
        judge("def f(x): return 1\ndef same(one, other): return True", check)


def test_the_hunt_finds_what_is_there(judge):
    """What the programs above look for they would find: here the text is in the process, as it should not be."""
    planted = f"{HUNT}\nplanted = 'secret-' + 'nine'\ndef f(x): return hunt()"
    assert judge(planted, {"inputs": ["3"], "outputs": ['"secret-nine"'], "fn_name": "f"})["acc"] is True


def test_pred_gives_no_expected_output_away(judge):
    verdict = judge("print('no')", PROGRAM)
    assert "secret" not in str(verdict)


def test_a_forged_value_is_worth_no_more_than_a_returned_one(judge):
    code = f"{FORGE}\ndef f(x):\n    forge({{'value': x * x}})\n    os._exit(0)"
    # It writes to stdout as well, which a call's verdict does not depend on.
    assert judge(code, NUMBER)["acc"] is True
