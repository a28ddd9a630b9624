"""The code verifier as a reward function: arguments, the answer's block, what it says and what it raises."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_cipo.rewards.code import compute_score, last_program
from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox.pool import close_pools, get_pool

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
    verdict = score(slow, json.dumps(tests), continuous=True, timeout_s=1.0, total_timeout_s=1.5)
    assert verdict["score"] == pytest.approx(1 / 5) and verdict["outcome"] == "timeout"
    assert verdict["pred"] == "test 2: time limit; passed 1 of 3 tests run, 5 in all"


def test_time_of_all_tests():
    tests = {"inputs": ["1"] * 20, "outputs": ["2"] * 20}
    slow = "import time\ntime.sleep(0.3)\nprint(2)"
    verdict = score(slow, json.dumps(tests), timeout_s=20, total_timeout_s=2.0)
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


@pytest.mark.parametrize("source", ["assert undefined_thing", "raise RuntimeError('broken')", "candidate(object())"])
def test_test_code_that_no_solution_can_pass_is_no_verdict(source):
    tests = {"check": f"def check(candidate):\n    {source}", "entry_point": "f"}
    with pytest.raises(ValueError, match="fails whatever the solution does"):
        score("def f(x): return x", json.dumps(tests))


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
    rows = (Path(__file__).parents[2] / "docs" / "code-verifier.md").read_text().splitlines()
    named = [row.split("`")[1] for row in rows[: rows.index("## The program")] if row.startswith("| `")]
    parameters = inspect.signature(compute_score).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert named == [*own, "right", "wrong", "unparsable", "timeout"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a"),
        ("```\na\n```", "a"),
        ("```py\na\n```\nbetter:\n```python\nb\n```", "b"),
        ("```python\na\n```\nIt prints:\n```text\n3\n```", "a"),
        ("```cpp\na\n```", None),
        ("no code", None),
        ("", None),
        ("```python\na\n```\n```python\nb", "b"),
        ("```python\nprint('''\n```text\n''')\n```", "print('''\n```text\n''')"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("~~~python\na\n~~~", "a"),
        ("  ```Python\n  a\n  ```", "a"),
        ("inline ```python is no fence\n```python\na\n```", "a"),
        ("```python\n```", ""),
        ("```python\r\na\r\n```\r\n", "a\r"),
        ("```python\nprint('a\x0cb\u2028c')\n```", "print('a\x0cb\u2028c')"),
        ("``\na\n``\n```\nb\n```", "b"),
        ("```python\na\n~~~\nb\n```", "a\n~~~\nb"),
        ("``` \tpython\na\n```", "a"),
        ("```python title=x\na\n```", "a"),
    ],
)
def test_last_program(text, code):
    assert last_program(text) == code


def test_an_answer_made_to_be_slow_to_read_is_not():
    # Quadratic at 2e5 characters would be minutes.
    for text in ("```" + " " * 200_000 + "`", "`" * 200_000 + "x`", " " * 200_000 + "`", "```x\n" * 100_000):
        assert last_program(text) in (None, "")


def test_from_many_threads_at_once():
    def check(n: int) -> bool:
        return score(f"print(int(input()) * {n})")["acc"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(check, [1, 2] * 20)) == [False, True] * 20


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
