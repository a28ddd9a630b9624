"""The code verifier as a reward function: arguments, the answer's block, what it says and what it raises."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest
from omegaconf import OmegaConf

from verl_cipo.rewards import code
from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox.pool import Pool, close_pools, get_pool

DOUBLE = json.dumps({"inputs": ["1\n", "2\n", "3\n"], "outputs": ["2\n", "4\n", "6\n"]})


def block(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```"


def score(code: str, ground_truth=DOUBLE, **settings) -> dict:
    return compute_score("test", block(code), ground_truth, **{"workers": 2, **settings})


def test_right():
    assert score("print(int(input()) * 2)") == {
        "score": 1.0,
        "acc": True,
        "pred": "passed 3 of 3 tests",
        "outcome": "right",
    }


def test_wrong_says_where():
    verdict = score("n = int(input())\nprint(n * 2 if n < 2 else 0)")
    assert verdict == {
        "score": 0.0,
        "acc": False,
        "pred": "test 2: wrong answer; passed 1 of 2 tests run, 3 in all",
        "outcome": "wrong",
    }


def test_error_is_named():
    assert score("print(1 // 0)")["pred"].startswith("test 1: raised ZeroDivisionError;")


def test_without_a_block_it_is_unparsable():
    verdict = compute_score("test", "print(int(input()) * 2)", DOUBLE)
    assert verdict == {"score": 0.0, "acc": False, "pred": "", "outcome": "unparsable"}


def test_ground_truth_may_be_an_object():
    assert score("print(int(input()) * 2)", json.loads(DOUBLE))["acc"] is True


def test_max_tests_judges_by_the_first():
    assert score("n = int(input())\nprint(n * 2 if n < 3 else 0)", max_tests=2)["acc"] is True


def test_continuous_is_the_share_passed_and_acc_stays_strict():
    verdict = score("n = int(input())\nprint(n * 2 if n != 2 else 0)", continuous=True)
    assert verdict["score"] == pytest.approx(2 / 3) and verdict["acc"] is False
    assert verdict["pred"] == "test 2: wrong answer; passed 2 of 3 tests run, 3 in all"


def test_continuous_is_1_when_right():
    verdict = score("print(int(input()) * 2)", continuous=True)
    assert verdict["score"] == 1.0 and verdict["acc"] is True


def test_continuous_counts_tests_that_were_not_reached():
    tests = {"inputs": ["1", "2", "3", "4", "5"], "outputs": ["2", "4", "6", "8", "10"]}
    slow = "import time\nn = int(input())\ntime.sleep(100 if n > 1 else 0)\nprint(n * 2)"
    score(slow, json.dumps(tests), max_tests=1)  # A sandbox is started before the time below begins.
    verdict = score(slow, json.dumps(tests), continuous=True, timeout_s=5.0, total_timeout_s=2.0)
    assert verdict["score"] == pytest.approx(1 / 5) and verdict["outcome"] == "timeout"
    assert verdict["pred"] == "test 2: time limit; passed 1 of 2 tests run, 5 in all"


def test_time_of_all_tests():
    tests = {"inputs": ["1"] * 20, "outputs": ["2"] * 20}
    slow = "import time\ntime.sleep(0.3)\nprint(2)"
    verdict = score(slow, json.dumps(tests), timeout_s=20, total_timeout_s=1.0)
    assert verdict["outcome"] == "timeout" and "time limit" in verdict["pred"]


def test_time_of_calls_is_not_the_time_of_the_test_code():
    check = {"check": "def check(f):\n    for i in range(5): assert f(i) == i", "entry_point": "g"}
    slow = "import time\ndef g(x):\n    time.sleep(0.5)\n    return x"
    assert score(slow, json.dumps(check), timeout_s=2.0)["acc"] is True


def test_two_readings_of_wrapped_outputs_are_counted_apart():
    tests = {"inputs": ["1", "2", "3"], "outputs": ["[5]", "[6]", "[7]"], "fn_name": "f"}
    mixed = "def f(x): return x + 4 if x < 3 else [7]"
    assert score(mixed, json.dumps(tests), continuous=True)["score"] == pytest.approx(2 / 3)


def test_float_tolerance():
    tests = json.dumps({"inputs": [""], "outputs": ["1.5"]})
    assert score("print(1.501)", tests)["acc"] is False
    assert score("print(1.501)", tests, float_tolerance=0.01)["acc"] is True
    assert score("print(1.5000001)", tests, float_tolerance=0)["acc"] is False


def test_memory_mb_reaches_the_program():
    code = "a = bytearray(200 * 2**20)\nprint(int(input()) * 2)"
    assert score(code, memory_mb=512)["acc"] is True
    assert score(code, memory_mb=128)["acc"] is False


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"timeout": 3}, TypeError, "timeout_s"),
        ({"backend": "docker"}, ValueError, "bubblewrap, sandbox_fusion, subprocess"),
        ({"backend": "subprocess"}, ValueError, "allow_unsafe=true"),
        ({"backend": "sandbox_fusion"}, ValueError, "sandbox_fusion_url"),
        ({"sandbox_fusion_url": "http://localhost:1"}, ValueError, "backend=sandbox_fusion"),
        ({"timeout_s": 0}, ValueError, "timeout_s = 0"),
        ({"total_timeout_s": -1}, ValueError, "total_timeout_s = -1"),
        ({"memory_mb": 1}, ValueError, "64 or more"),
        ({"workers": 0}, ValueError, "workers = 0"),
        ({"max_tests": 0}, ValueError, "max_tests = 0"),
        ({"float_tolerance": -1}, ValueError, "float_tolerance"),
        ({"timeout_s": float("nan")}, ValueError, "timeout_s"),
        ({"memory_mb": float("inf")}, ValueError, "memory_mb = inf"),
        ({"memory_mb": "512"}, ValueError, "memory_mb = '512'"),
        ({"memory_mb": None}, ValueError, "memory_mb = None"),
    ],
)
def test_bad_arguments(settings, error, said):
    with pytest.raises(error, match=said):
        score("pass", **settings)


def test_what_verl_adds_is_accepted():
    assert score("print(int(input()) * 2)", reward_router_address="a", reward_model_tokenizer=None)["acc"] is True


def test_a_malformed_ground_truth_is_no_verdict():
    with pytest.raises(ValueError, match="ground truth of data source 'test': ground_truth is not JSON"):
        score("pass", "{")


@pytest.mark.parametrize("settings", [{"memory_mb": 512.0}, {"workers": 2.0}, {"max_tests": 2.0}])
def test_whole_numbers_may_be_written_with_a_point(settings):
    assert score("print(int(input()) * 2)", **settings)["acc"] is True


@pytest.mark.parametrize("settings", [{"memory_mb": 512.5}, {"workers": 1.5}, {"max_tests": 1.5}])
def test_parts_of_whole_numbers_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} = .*whole number"):
        score("pass", **settings)


@pytest.mark.parametrize("source", ["codecontests", "deepmind/code_contests", "Code-Contests"])
@pytest.mark.parametrize("printed", ["20\n0 2 1", "20 0 2 1", "20\n0\n2\n1\n", "YES", "Yes"])
def test_code_contests_has_its_own_rule(source, printed):
    expected = "yes" if printed.isalpha() else "20\n0 2 1"
    tests = {"inputs": [""], "outputs": [expected]}
    judged = [compute_score(name, block(f"print({printed!r})"), tests, workers=2)["acc"] for name in (source, "apps")]
    assert judged == [True, printed == expected]


def test_code_contests_has_no_other_leniency():
    tests = {"inputs": [""], "outputs": ["20\n0 2 1"]}
    for printed in ("20 0 1 2", "20 0 2", "20 0 2 1 1", "2 00 2 1"):
        assert compute_score("codecontests", block(f"print({printed!r})"), tests, workers=2)["acc"] is False


def check(source: str) -> dict:
    return {"check": f"def check(c):\n    {source}", "entry_point": "f"}


@pytest.mark.parametrize(
    "tests",
    [
        {"inputs": ["1", "2"], "outputs": ["null", "null"], "fn_name": "f"},
        {"inputs": [[1], [2]], "outputs": [None, None], "fn_name": "f"},
        {"inputs": [[1], [2]], "outputs": [[None], [None]], "fn_name": "f"},
        {"asserts": ["assert f(1) == None", "assert f(2) is None"]},
        {"asserts": ["assert f(1) is None"]},
        {"asserts": ["assert not f(1)", "assert f(2) != 3"]},
        check("assert c(1) is None"),
        check("c(1)"),
        check("assert not c(1)\n    assert c(2) is None"),
        check("assert len(c(1) or '') == 0"),
        check("try:\n        assert c(1) == 1\n    except Exception:\n        pass"),
    ],
)
def test_tests_that_nothing_fails_are_no_verdict(tests):
    with pytest.raises(ValueError, match="would pass"):
        score("def f(x): pass", json.dumps(tests))


@pytest.mark.parametrize(
    "source",
    [
        "assert all(abs(a - b) < 1e-6 for a, b in zip(c(1), [0.5, 0.25]))",
        "assert all(item > 0 for item in c(1))",
        "for item in c(1): assert item > 0",
        "import numpy as np\n    assert np.all(np.abs(np.array(c(1)) - 0.5) < 1e-6)",
    ],
)
def test_tests_that_no_empty_value_fails_are_no_verdict(source):
    with pytest.raises(ValueError, match=r"`return \[\]` and of `return \(\)` would pass"):
        score("def f(x): return []", json.dumps(check(source)))


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ({"inputs": ["1", "2"], "outputs": ["null", "2"], "fn_name": "f"}, "def f(x): return x if x == 2 else None"),
        ({"asserts": ["assert f(1) is None", "assert f(2) == 2"]}, "def f(x): return x if x == 2 else None"),
        (check("assert c(1) == []"), "def f(x): return []"),
        (check("assert c(1) is None\n    assert c(2) == []"), "def f(x): return [] if x == 2 else None"),
        (check("assert not c(1)\n    assert c(2)"), "def f(x): return x == 2"),
    ],
)
def test_tests_that_expect_nothing_in_part_are_judged(tests, code):
    assert score(code, json.dumps(tests))["acc"] is True
    assert score("def f(x): pass", json.dumps(tests))["acc"] is False


def test_the_first_tests_alone_may_be_tests_that_nothing_fails():
    tests = {"inputs": ["1", "2"], "outputs": ["null", "2"], "fn_name": "f"}
    with pytest.raises(ValueError, match="would pass"):
        score("def f(x): pass", json.dumps(tests), max_tests=1)


@pytest.mark.parametrize("empty", ["[]", "()", "''", "{}", "set()", "[[]]", "np.array([])", "iter([])"])
@pytest.mark.parametrize(
    "compare",
    [
        "assert np.allclose({}, 7.5)",
        "assert np.allclose(7.5, {})",
        "assert np.allclose({}, [7.5])",
        "assert np.isclose({}, 7.5).all()",
        "np.testing.assert_allclose({}, 7.5)",
        "np.testing.assert_almost_equal({}, 7.5)",
        "np.testing.assert_array_equal({}, 7.5)",
        "assert np.array_equal({}, [7.5])",
    ],
)
def test_an_empty_array_is_close_to_nothing(empty, compare):
    tests = {"check": f"import numpy as np\ndef check(c):\n    {compare.format('c(1)')}", "entry_point": "f"}
    assert score(f"import numpy as np\ndef f(x): return {empty}", tests)["outcome"] == "wrong"
    right = "[7.5]" if "[7.5]" in compare else "7.5"
    assert score(f"def f(x): return {right}", tests)["acc"] is True


@pytest.mark.parametrize("source", ["assert undefined_thing", "raise RuntimeError('broken')", "candidate(object())"])
def test_test_code_that_no_solution_can_pass_is_no_verdict(source):
    tests = {"check": f"def check(candidate):\n    {source}", "entry_point": "f"}
    with pytest.raises(ValueError, match="fails whatever the solution does"):
        score("def f(x): return x", json.dumps(tests))


@pytest.mark.parametrize(
    "source",
    [
        "assert c(1) == undefined_name",
        "assert c(1) == 1\n    undefined_call(2)",
        "assert c(1) == 1\n    import no_such_module",
        "assert c(1) == 1\n    from no_such_module.sub import thing",
        "assert c(lambda: 1) == 1",
        "assert c(1) == 1\n    assert c(object()) == 1",
    ],
)
def test_test_code_that_breaks_after_its_first_call_is_no_verdict(source):
    with pytest.raises(ValueError, match="fails whatever the solution does"):
        score("def f(x): return x", json.dumps(check(source)))


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (
            "try:\n        r = c(1)\n    except ValueError:\n        pass\n    assert r == 1",
            "def f(x): raise ValueError",
        ),
        ("assert eval(c(1)) == 1", "def f(x): return 'undefined_name'"),
        ("assert c(1) == 1", "def f(x): return undefined_name"),
        ("assert c(1) == 1", "import no_such_module"),
        ("assert len(c(1)) == 1", "def f(x): return None"),
        ("assert c(1).attribute == 1", "def f(x): return 1"),
    ],
)
def test_test_code_that_breaks_by_the_solution_is_a_wrong_answer(source, code):
    """No answer may pass for a fault of the data."""
    assert score(code, json.dumps(check(source)))["outcome"] == "wrong"


RAISES = "def f(x):\n    if x < 0: raise {}\n    return x"


@pytest.mark.parametrize(
    ("caught", "raised", "right"),
    [
        ("ValueError", "ValueError('no')", True),
        ("ValueError", "UnicodeDecodeError('utf-8', b'', 0, 1, 'no')", True),
        ("(TypeError, ValueError)", "TypeError", True),
        ("Exception", "RuntimeError", True),
        ("ArithmeticError", "ZeroDivisionError", True),
        ("ValueError", "type('Own', (ValueError,), {})('no')", True),
        ("LookupError", "KeyError('no')", True),
        ("AssertionError", "AssertionError('no')", True),
        ("ValueError", "TypeError", False),
        ("ValueError", "SystemExit", False),
        ("ValueError", "StopIteration", False),
        ("Exception", "StopIteration", False),
    ],
)
def test_test_code_may_expect_an_error(caught, raised, right):
    source = f"assert c(3) == 3\n    try:\n        c(-1)\n    except {caught}:\n        return\n    assert False"
    if caught != "AssertionError":
        source = source.replace("assert False", "raise AssertionError")
    verdict = score(RAISES.format(raised), json.dumps(check(source)))
    assert verdict["outcome"] == ("right" if right else "wrong")
    assert score("def f(x): return x", json.dumps(check(source)))["outcome"] == "wrong"


def test_the_text_of_an_expected_error_is_the_solutions():
    source = "assert c(3) == 3\n    try:\n        c(-1)\n    except ValueError as e:\n        assert str(e) == 'no'"
    source += "\n    else:\n        assert False"
    assert score(RAISES.format("ValueError('no')"), json.dumps(check(source)))["acc"] is True
    assert score(RAISES.format("ValueError('yes')"), json.dumps(check(source)))["acc"] is False


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "return object()",
        "a = []\n    for _ in range(999): a = [a]\n    return a",
        "send(b'{}')",
        'send(b\'{"value": {"nope": 1}}\')',
        'send(b\'{"value": 1, "error": "TypeError"}\')',
        'send(b\'{"error": "TypeError"}\')',
        'send(b\'{"error": "TypeError", "kind": "no_such"}\')',
        'send(b\'{"error": "TypeError", "kind": "print"}\')',
        'send(b\'{"error": "StopIteration", "kind": "StopIteration"}\')',
        'send(b\'{"error": "GeneratorExit", "kind": "GeneratorExit"}\')',
        "send(b'[')",
    ],
)
@pytest.mark.parametrize("caught", ["TypeError", "Exception", "BaseException"])
def test_no_error_but_the_solutions_own_is_one_that_a_test_expects(attack, caught):
    send = (
        "import os\nfrom struct import pack\ndef send(text):\n    for fd in range(3, 32):\n"
        "        try: os.write(fd, pack('<I', len(text)) + text)\n        except OSError: pass\n    os._exit(0)\n"
    )
    source = f"assert c(3) == 3\n    try:\n        c('x')\n    except {caught}:\n        return\n    assert False"
    code = f"{send}def f(x):\n    if x == 3: return 3\n    {attack}"
    assert score(code, json.dumps(check(source)))["outcome"] == "wrong"


def test_an_error_does_not_end_a_loop_of_the_test_in_silence():
    source = "assert all(map(lambda x: c(x) == x + 1, range(9)))"
    assert score("def f(x): raise StopIteration", json.dumps(check(source)))["outcome"] == "wrong"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("assert list(f(3)) == [0, 1, 2]", "def f(n): yield from range(n)"),
        ("assert list(f(3)) == [0, 1, 2]", "def f(n): return range(n)"),
        ("assert list(f(3)) == [0, 1, 2]", "def f(n): return map(int, range(n))"),
        ("assert list(f(3)) == [0, 1, 2]", "def f(n): return iter(range(n))"),
        ("assert list(f(3)) == [(0, 0), (1, 1), (2, 2)]", "def f(n): return zip(range(n), range(n))"),
        ("assert sorted(f(3)) == [0, 1, 2]", "def f(n): return dict.fromkeys(range(n)).keys()"),
        ("assert sorted(f(3)) == [0, 1, 2]", "def f(n): return {i: i for i in range(n)}.values()"),
        ("assert f(3) == {0, 1, 2}", "def f(n): return dict.fromkeys(range(n)).keys()"),
        ("assert list(f(2)) == [(0, 'a'), (1, 'a')]", "def f(n): return dict.fromkeys(range(n), 'a').items()"),
        ("assert next(f(3)) == 0", "def f(n): return itertools.count()"),
        ("assert list(itertools.islice(f(3), 5)) == [0, 1, 2, 3, 4]", "def f(n): yield from itertools.count()"),
        ("assert f(3) == range(3)", "def f(n): return range(n)"),
        ("assert f(1) == 0.5", "def f(n): return Fraction(n, 2)\nfrom fractions import Fraction"),
        ("assert f(1) == 0.5", "def f(n): return Decimal(n) / 2\nfrom decimal import Decimal"),
        ("assert f(2) == 1", "def f(n): return Fraction(n, 2)\nfrom fractions import Fraction"),
        ("assert float(f(1)) == 0.5", "def f(n): return Fraction(n, 2)\nfrom fractions import Fraction"),
        ("assert f(1).numerator == 1", "def f(n): return Fraction(n, 2)\nfrom fractions import Fraction"),
        ("assert f(1) == Decimal('0.5')", "def f(n): return Decimal(n) / 2\nfrom decimal import Decimal"),
        ("assert list(f(3)) == [0, 1, 2]", "def f(n): return deque(range(n))"),
        ("assert f(3) == b'abc'", "def f(n): return bytearray(b'abc')"),
        ("assert f(range(3)) == 3", "def f(it): return sum(it)"),
        ("assert f(iter([1, 2])) == 3", "def f(it): return sum(it)"),
        ("assert f(x for x in (1, 2)) == 3", "def f(it): return sum(it)"),
        ("assert f({1: 2}.keys()) == 1", "def f(it): return sum(it)"),
        ("assert f(Decimal(1)) == 2", "def f(n): return n + 1"),
    ],
)
def test_values_that_are_not_plain(source, code):
    tests = {"asserts": [source], "setup": "import itertools\nfrom decimal import Decimal", "entry_point": "f"}
    assert score(code, json.dumps(tests))["acc"] is True


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("assert f(3) == [0, 1, 2]", "def f(n): yield from range(n)"),
        ("assert f(3) == [0, 1, 2]", "def f(n): return range(n)"),
        ("assert f(3) == [0, 1, 2]", "def f(n): return {i: i for i in range(n)}.values()"),
        ("assert len(f(3)) == 3", "def f(n): yield from range(n)"),
        ("assert list(f(3)) == [0, 1, 2]", "def f(n): return itertools.count()"),
        ("assert f(1) == 0.1", "def f(n): return Decimal('0.1')\nfrom decimal import Decimal"),
        ("assert f(1) == 1 / 3", "def f(n): return Fraction(1, 3)\nfrom fractions import Fraction"),
    ],
)
def test_values_that_are_not_plain_are_equal_as_in_python(source, code):
    assert score(code, json.dumps({"asserts": [source]}))["outcome"] == "wrong"


def test_the_verdict_does_not_depend_on_the_sandbox():
    code = "def f(s): return max(set(s), key=s.count)"
    tests = {"asserts": ["assert f('data') == 'a'", "assert f('brilliant girl') == 'i'"]}
    seen = set()
    for _ in range(4):
        seen.add(score(code, tests, workers=1, memory_mb=333)["acc"])
        close_pools()
    assert len(seen) == 1


def test_a_call_that_cannot_enter_the_sandbox_is_no_verdict():
    with pytest.raises(ValueError, match="call of f has a value of type ellipsis"):
        score("def f(x): return x", json.dumps({"asserts": ["assert f(...) == 1"]}))


def test_test_code_that_calls_nothing_is_no_verdict():
    with pytest.raises(ValueError, match="never calls the solution"):
        score("def f(x): return x", json.dumps({"check": "def check(candidate): pass", "entry_point": "f"}))


def test_a_missing_bubblewrap_is_no_verdict(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VerifierInfrastructureError, match="apt-get install bubblewrap"):
        score("print(int(input()) * 2)", workers=1, memory_mb=777)


def test_subprocess_backend_when_allowed():
    assert score("print(int(input()) * 2)", backend="subprocess", allow_unsafe=True)["acc"] is True
    assert score("import os\nos.fork()\nprint(2)", backend="subprocess", allow_unsafe=True)["acc"] is False


def test_the_docs_name_every_argument():
    rows = (Path(__file__).parents[4] / "docs" / "code-verifier.md").read_text().splitlines()
    named = [row.split("`")[1] for row in rows[: rows.index("## The program")] if row.startswith("| `")]
    parameters = inspect.signature(compute_score).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert named == [*own, "right", "wrong", "unparsable", "timeout"]


def test_from_many_threads_at_once():
    def check(n: int) -> bool:
        return score(f"print(int(input()) * {n})")["acc"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(check, [1, 2] * 20)) == [False, True] * 20


def test_waiting_for_a_sandbox_is_no_part_of_the_time(monkeypatch):
    waited_s = 0.0
    lend = Pool.worker

    def after_an_hour(self):
        nonlocal waited_s
        waited_s += 3600
        return lend(self)

    monkeypatch.setattr(Pool, "worker", after_an_hour)
    monkeypatch.setattr(code.time, "monotonic", lambda: monotonic() + waited_s)
    assert score("print(int(input()) * 2)")["acc"] is True


def test_in_a_forked_process():
    assert score("print(int(input()) * 2)")["acc"] is True
    settings = {"workers": 2, "memory_mb": 1024}
    pool = get_pool("bubblewrap", **settings)
    pid = os.fork()
    if pid == 0:
        right = score("print(int(input()) * 2)")["acc"] and get_pool("bubblewrap", **settings) is not pool
        close_pools()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert score("print(int(input()) * 2)")["acc"] is True


def test_through_verls_loader_and_reward_loop():
    import numpy as np
    import torch
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://verl_cipo.rewards.code",
                    "name": "compute_score",
                    "reward_kwargs": {"timeout_s": 5, "workers": 2},
                }
            }
        }
    )

    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return block(f"print(int(input()) * {int(ids[0])})")

    async def scores() -> list[dict]:
        manager = NaiveRewardManager(config, Tokenizer(), get_custom_reward_fn(config))
        batch = DataProto.from_dict(
            {"responses": torch.tensor([[2], [3]]), "attention_mask": torch.ones(2, 1, dtype=torch.long)},
            {
                "data_source": np.array(["code"] * 2, dtype=object),
                "reward_model": np.array([{"ground_truth": DOUBLE}] * 2, dtype=object),
                "extra_info": np.array([{}, {}], dtype=object),
            },
        )
        return await asyncio.gather(*(manager.run_single(batch[i : i + 1]) for i in range(2)))

    right, wrong = asyncio.run(scores())
    assert (right["reward_score"], wrong["reward_score"]) == (1.0, 0.0)
    assert right["reward_extra_info"].keys() == wrong["reward_extra_info"].keys() == {"score", "acc", "pred", "outcome"}


def test_no_process_is_left_when_the_interpreter_ends():
    program = (
        "from verl_cipo.rewards.code import compute_score\n"
        f"print(compute_score('x', {block('print(int(input()) * 2)')!r}, {DOUBLE!r}, workers=1)['acc'], flush=True)\n"
        "import os\nos.system('ps -o pid= --ppid %d' % os.getpid())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    said, *children = done.stdout.split()
    assert said == "True" and children
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
