"""Tests with other names in them: which words are replaced, when that is allowed, and which programs fail."""

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fast.evaluation.rescore.test_rescore import QUESTION, row, write
from verl_cipo import evaluate
from verl_cipo.evaluation.rescore.isomorphic import constants, rename, renamed_tests, shortcut
from verl_cipo.evaluation.rescore.judge import Strictness, rescore_step
from verl_cipo.evaluation.rescore.prompts import References
from verl_cipo.rewards.sandbox import pool
from verl_cipo.rewards.sandbox.cases import CallTest, CheckTest, ProgramTest


def call(*args, gives, name="f", **kwargs):
    return CallTest(name, list(args), kwargs, (gives,), exact=False)


OWNERS = ProgramTest("3\nbuy Ann 4\nbuy Bob 2\nsell Ann 1\n", "Ann 3\nBob 2\n")


@pytest.mark.parametrize(
    ("test", "words"),
    [
        # In the output, or twice in the input; x2 and a_b are no words of letters.
        (OWNERS, ["Ann", "Bob", "buy"]),
        (ProgramTest("x2 x2 a_b a_b red", "YES"), []),
        (ProgramTest("red blue red", "YES"), ["red"]),
        (call(["red", "blue"], gives="blue"), ["blue"]),
        (call({"k": ["v", "v"]}, gives=0), ["v"]),
        (call(1, who="Tom", gives={"Tom": 1}), ["Tom"]),
        (call([1, 2], gives=3), []),
    ],
)
def test_words_that_stand_for_things(test, words):
    assert constants(test) == words


def test_many_words_are_cut_to_eight():
    text = " ".join(chr(97 + i) * 3 for i in range(12))
    assert constants(ProgramTest(text, text)) == [chr(97 + i) * 3 for i in range(8)]


def test_names_change_in_input_and_output_alike_and_keep_shape_and_order():
    for seed in range(20):
        other = rename(OWNERS, ["Ann", "Bob"], random.Random(seed))
        first, second = re.fullmatch(
            r"3\nbuy ([A-Z][a-z]{2}) 4\nbuy ([A-Z][a-z]{2}) 2\nsell \1 1\n", other.stdin
        ).groups()
        assert other.expected == f"{first} 3\n{second} 2\n"
        assert first < second and not {first, second} & {"Ann", "Bob"}


def test_the_names_of_arguments_are_left_and_the_keys_of_data_are_not():
    test = CallTest("f", [("Tom", 1)], {"Tom": {"Tom": 2}}, ({"Tom": [1]}, "Tom"), exact=True)
    other = rename(test, ["Tom"], random.Random(0))
    ((new, one),) = other.args
    assert new != "Tom" and one == 1 and isinstance(other.args[0], tuple)
    assert other.kwargs == {"Tom": {new: 2}} and other.readings == ({new: [1]}, new)
    assert (other.name, other.exact) == ("f", True)


def test_without_a_free_word_there_is_no_renaming():
    letters = " ".join(chr(97 + i) for i in range(26))
    assert rename(ProgramTest(letters, "a"), ["a"], random.Random(0)) is None


@pytest.fixture(scope="module")
def worker():
    with pool.get_pool("bubblewrap", workers=1, memory_mb=1024).worker() as worker:
        yield worker


LEDGER = """
left = {}
for _ in range(int(input())):
    what, name, n = input().split()
    left[name] = left.get(name, 0) + (int(n) if what == "buy" else -int(n))
for name, n in left.items():
    print(name, n)
"""
BY_HEART = "input()\nwhat, name, n = input().split()\nprint('Ann 3\\nBob 2' if name == 'Ann' else '')"


def pairs_of(tests, references, worker, **how):
    return renamed_tests(tests, references, **({"changes": 2, "worker": worker, "timeout_s": 10} | how))


def test_a_program_that_knows_the_names_took_a_shortcut(worker):
    pairs, why = pairs_of([OWNERS], [LEDGER], worker)
    assert why == "" and [one for one, _ in pairs] == [OWNERS]
    assert "buy" in pairs[0][1].stdin and "Ann" not in pairs[0][1].stdin, "a word with a meaning is left"
    how = {"worker": worker, "timeout_s": 10}
    assert shortcut(LEDGER, pairs, **how) == "passed"
    assert shortcut(BY_HEART, pairs, **how) == "shortcut"
    assert shortcut("print(1)", pairs, **how) == "undecided", "it fails the test as it stands"
    assert shortcut("while True: pass", pairs, worker=worker, timeout_s=0.5) == "undecided"


def test_functions_too(worker):
    tests = [call(["b", "a", "b"], gives="b"), CheckTest("check(f)", "f")]
    most = "def f(names):\n    return max(set(names), key=names.count)"
    pairs, _ = pairs_of(tests, ["def f(names):\n    return 1", most], worker)
    how = {"worker": worker, "timeout_s": 10}
    assert len(pairs) == 1 and shortcut(most, pairs, **how) == "passed"
    assert shortcut("def f(names):\n    return 'b'", pairs, **how) == "shortcut"


def test_a_problem_that_cares_about_names_is_not_renamed(worker):
    """Letters are counted; a color has a meaning."""
    letters = "print(input().count('n'))"
    assert pairs_of([ProgramTest("banana banana", "4")], [letters], worker) == ([], "no_renaming")
    color = "print('stop red' if input() == 'red red' else 'go')"
    assert pairs_of([ProgramTest("red red", "stop red")], [color], worker) == ([], "no_renaming")
    assert pairs_of([ProgramTest("1 2", "3")], ["print(3)"], worker) == ([], "no_renaming")


def test_names_that_are_sorted_keep_their_order(worker):
    test = ProgramTest("bob ann cat", "ann bob cat")
    pairs, why = pairs_of([test], ["print(*sorted(input().split()))"], worker)
    assert why == "" and len(pairs) == 1


def test_without_a_reference_that_passes_nothing_is_said(worker):
    for references in ([], ["print('wrong')"]):
        assert pairs_of([OWNERS], references, worker) == ([], "no_reference")
    assert pairs_of([CheckTest("check(f)", "f")], [LEDGER], worker) == ([], "no_reference")


# ---- in the rescoring

TRUTH = json.dumps({"inputs": [OWNERS.stdin], "outputs": [OWNERS.expected]})


def answers(*programs):
    return [row(f"a_{i}_0", f"```python\n{program}\n```", gts=TRUTH) for i, program in enumerate(programs)]


def test_shortcuts_have_a_rate_of_their_own_and_change_no_judgment(tmp_path):
    rows = [*answers(LEDGER, BY_HEART, "print('wrong')"), row("b_0_0", r"\boxed{16}")]
    rows.append(rows[0] | {"uid": "c_0_0", "input": "user\nAnother?\n", "gts": TRUTH + " "})
    file = write(tmp_path / "1.jsonl", rows)
    plain = rescore_step(file, Strictness())["streams"]["base"]
    found = rescore_step(file, Strictness(references=References([("How many?", [LEDGER])])))
    base = found["streams"]["base"]
    isomorphic = base.pop("isomorphic")
    assert base == plain and "isomorphic" not in plain
    # "wrong" fails its own tests, \boxed{16} is no program, and the other problem has no reference.
    rate = isomorphic.pop("rate")
    assert isomorphic == {"no_reference": 1, "passed": 1, "shortcut": 1}
    assert rate["estimate"] == 0.5
    assert ("a_1_0", "isomorphic_tests") in [(one["uid"], one["reason"]) for one in found["examples"]]
    none = rescore_step(file, Strictness(references=References([("How few?", [LEDGER])])))["streams"]["base"]
    assert none["isomorphic"] == {"no_reference": 3, "rate": None}
    off = Strictness(references=References([("How many?", [LEDGER])]), changes=0)
    assert "isomorphic" not in rescore_step(file, off)["streams"]["base"]


VERLS = {"data_source": "s", "reward_model": {"style": "rule", "ground_truth": "1"}}


def test_the_command_reads_references_and_shows_the_rate(tmp_path, capsys):
    prompt = [{"role": "user", "content": QUESTION.split("\n")[1]}]
    table = [VERLS | {"prompt": prompt, "extra_info": {"index": 0, "solutions": [LEDGER]}}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "train.parquet")
    write(tmp_path / "1.jsonl", answers(LEDGER, BY_HEART))
    output = tmp_path / "out" / "gap.json"
    arguments = ["--rescore", tmp_path, "--output", output, "--markdown"]
    arguments += ["--references", tmp_path / "train.parquet"]
    assert evaluate.main(list(map(str, arguments))) == 0
    assert json.loads(output.read_text())["steps"][0]["streams"]["base"]["isomorphic"]["shortcut"] == 1
    head, _, line = output.with_suffix(".md").read_text().splitlines()
    assert "base: shortcuts" in head and "50.0 " in line


def test_rows_without_solutions_have_no_reference(tmp_path):
    asked = [{"role": "user", "content": text} for text in ("How many?", "How few?")]
    extra = [{"index": 0, "solutions": None}, {"index": 1, "solutions": [LEDGER]}]
    table = [VERLS | {"prompt": [one], "extra_info": more} for one, more in zip(asked, extra, strict=True)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "train.parquet")
    assert References.read([tmp_path / "train.parquet"]).find(QUESTION) == []
