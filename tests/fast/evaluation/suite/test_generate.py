import json
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.fast.evaluation.suite.scripted import ScriptedEngine, benchmark, generation, problems
from verl_cipo.core.config import PromptConfig
from verl_cipo.core.prompts import TEMPLATES, render
from verl_cipo.evaluation.append_log import AppendLog
from verl_cipo.evaluation.dumps.rows import read_dumps
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.engine import model_folder
from verl_cipo.evaluation.suite.generate import run_benchmark, step_of
from verl_cipo.evaluation.suite.verifier import Verifier, load_function
from verl_cipo.rewards.math import compute_score


def right_then_wrong(prompt: str, seed: int) -> str:
    """Right at a first turn with an even seed; a correction says what the seed's parity has it say."""
    wanted = prompt.partition("Say ")[2].partition(".")[0]
    return rf"\boxed{{{wanted}}}" if seed % 2 == 0 else rf"\boxed{{{wanted}00{seed % 7}}}"


def generate(output, engine, *, verifier=None, made=None, asked=None, **how):
    made = made or benchmark()
    folder = run_benchmark(
        made,
        problems() if asked is None else asked,
        engine=engine,
        verifier=verifier or Verifier(compute_score),
        how=generation(output, **how),
    )
    return folder / "7.jsonl", folder / "corrections" / "7.jsonl"


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_attempts_are_written_as_verl_writes_them(tmp_path):
    engine = ScriptedEngine(right_then_wrong)
    attempts, _ = generate(tmp_path, engine)
    written = rows(attempts)
    assert [row["uid"] for row in written] == [f"made-up-{i}_{session}_0" for i in range(5) for session in (0, 1)]
    for row, (prompt, seed) in zip(written, engine.asked[:10], strict=False):
        right = seed % 2 == 0
        assert row["input"] == prompt and row["output"] == right_then_wrong(prompt, seed)
        assert (row["score"], row["acc"], row["outcome"]) == (float(right), right, "right" if right else "wrong")
        assert (row["step"], row["data_source"], row["truncated"]) == (7, "made/up", False)
        assert row["response_tokens"] == len(row["output"])
    found = read_dumps([attempts])
    assert [len(problem.samples) for problem in found.problems] == [2] * 5
    assert found.problems[0].benchmark == "made/up"


def test_every_draw_has_a_seed_of_its_own(tmp_path):
    engine = ScriptedEngine(right_then_wrong)
    generate(tmp_path, engine, made=benchmark(corrections=2))
    seeds = [seed for _, seed in engine.asked]
    assert len(seeds) == 5 * 2 + 5 * 2 * 2 == len(set(seeds))


def test_a_correction_is_asked_for_with_the_prompt_of_training(tmp_path):
    engine = ScriptedEngine(right_then_wrong)
    attempts, corrections = generate(tmp_path, engine)
    records = rows(corrections)
    assert [(record["uid"], record["session"]) for record in records] == [
        (f"made-up-{i}", session) for i in range(5) for session in (0, 1)
    ]
    for record, attempt, (prompt, seed) in zip(records, rows(attempts), engine.asked[10:], strict=True):
        assert prompt == f"<user>{render(TEMPLATES['math'], record['question'], attempt['output'])}<assistant>"
        (turn,) = record["corrections"]
        assert record["attempt"] == attempt["output"] and record["anchor_correct"] is attempt["acc"]
        assert turn["correction"] == right_then_wrong(prompt, seed) and turn["correct"] is (seed % 2 == 0)
        assert turn["copied"] is (turn["correction"] == record["attempt"]) and record["skipped"] is None


def test_a_second_turn_shows_its_attempt_alone_and_tells_nothing(tmp_path):
    engine = ScriptedEngine(right_then_wrong)
    generate(tmp_path, engine, prompt=PromptConfig(attempts=4, verdict="told", standalone=True))
    for prompt, _ in engine.asked[10:]:
        assert prompt.count("<attempt>") == 1 and "The attempt may or may not be right." in prompt
        assert "must stand on its own" in prompt


def test_a_folder_from_before_a_knob_was_there_goes_on(tmp_path):
    whole = generate(tmp_path, ScriptedEngine(right_then_wrong))
    settings = tmp_path / "made_up" / "settings.json"
    written = json.loads(settings.read_text())
    for knob in ("attempts", "verdict", "form", "standalone"):
        del written["prompt"][knob]
    settings.write_text(json.dumps(written))
    engine = ScriptedEngine(right_then_wrong)
    assert generate(tmp_path, engine) == whole and engine.asked == []
    with pytest.raises(EvaluationError, match="standalone"):
        generate(tmp_path, engine, prompt=PromptConfig(standalone=True))


@pytest.mark.parametrize("content", ['{"torn', "[]", "{}"])
def test_settings_of_something_else_are_refused(content, tmp_path):
    settings = tmp_path / "made_up" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(content)
    with pytest.raises(EvaluationError, match=f"{settings}: is there, and not .*take another --output"):
        generate(tmp_path, ScriptedEngine(right_then_wrong))
    assert settings.read_text() == content


@pytest.mark.parametrize("answers", [1, 5, 9, 12, 17])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_files(answers, tmp_path):
    whole = generate(tmp_path / "whole", ScriptedEngine(right_then_wrong))

    def dies(prompt, seed):
        if len(dying.asked) > answers:
            raise KeyboardInterrupt
        return right_then_wrong(prompt, seed)

    dying = ScriptedEngine(dies)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "killed", dying)
    second = ScriptedEngine(right_then_wrong)
    killed = generate(tmp_path / "killed", second)
    assert [file.read_bytes() for file in killed] == [file.read_bytes() for file in whole]
    # Two problems of two attempts each, or four corrections, are a batch: what was written is not asked again.
    assert len(second.asked) == 20 - answers // 4 * 4 if answers < 10 else 20 - 10 - (answers - 10) // 4 * 4


@pytest.mark.parametrize("lost", [1, 30, 300])
@pytest.mark.parametrize("file", [0, 1])
def test_a_torn_end_is_mended(lost, file, tmp_path):
    files = generate(tmp_path, ScriptedEngine(right_then_wrong))
    whole = [each.read_bytes() for each in files]
    with open(files[file], "r+b") as torn:
        torn.truncate(len(whole[file]) - lost)
    engine = ScriptedEngine(right_then_wrong)
    generate(tmp_path, engine)
    assert [each.read_bytes() for each in files] == whole
    assert 1 <= len(engine.asked) <= 4


def test_a_finished_run_asks_nothing(tmp_path):
    generate(tmp_path, ScriptedEngine(right_then_wrong))
    engine = ScriptedEngine(right_then_wrong)
    generate(tmp_path, engine)
    assert engine.asked == []


def test_a_broken_line_before_the_end_is_named(tmp_path):
    attempts, _ = generate(tmp_path, ScriptedEngine(right_then_wrong))
    lines = attempts.read_text().splitlines(keepends=True)
    attempts.write_text("".join([*lines[:3], "{\n", *lines[4:]]))
    with pytest.raises(EvaluationError, match=r"7\.jsonl:4: not a line of this log"):
        generate(tmp_path, ScriptedEngine(right_then_wrong))


def test_lines_of_a_problem_that_are_apart_are_named(tmp_path):
    attempts, _ = generate(tmp_path, ScriptedEngine(right_then_wrong))
    lines = attempts.read_text().splitlines(keepends=True)
    attempts.write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(EvaluationError, match=r"7\.jsonl:2: made-up-1 does not stand with its 2 lines"):
        generate(tmp_path, ScriptedEngine(right_then_wrong))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"described": {"checkpoint": "other"}}, "checkpoint was 'm', is 'other'"),
        ({"made": benchmark(max_tokens=99)}, "sampling was"),
        ({"asked": problems(4)}, "problems was"),
    ],
)
def test_other_settings_do_not_go_on_in_the_folder(changes, told, tmp_path):
    generate(tmp_path, ScriptedEngine(right_then_wrong))
    with pytest.raises(EvaluationError, match=told):
        generate(tmp_path, ScriptedEngine(right_then_wrong), **changes)


def test_a_folder_that_another_process_writes_is_refused(tmp_path):
    attempts, _ = generate(tmp_path, ScriptedEngine(right_then_wrong))
    code = (
        f"import fcntl; f = open({str(attempts)!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(EvaluationError, match="another process is writing it"):
            generate(tmp_path, ScriptedEngine(right_then_wrong))
        other.communicate(b"\n")
    generate(tmp_path, ScriptedEngine(right_then_wrong))


def test_a_log_has_one_writer(tmp_path):
    with AppendLog(tmp_path / "log", key=str):
        with pytest.raises(EvaluationError, match="another process is writing it"):
            AppendLog(tmp_path / "log", key=str)


def test_what_append_returns_from_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with AppendLog(tmp_path / "log", key=lambda row: row["uid"]) as log:
        log.append([{"uid": "a"}])
        log.append([{"uid": "b"}])
    assert synced == [13, 26]


def test_a_prompt_without_room_for_the_answer_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="made-up-0: its prompt takes 23 tokens.*max_model_len = 122"):
        generate(tmp_path, ScriptedEngine(right_then_wrong, max_model_len=122))
    with pytest.raises(EvaluationError, match="a correction prompt takes .* leaves 23"):
        generate(tmp_path / "two", ScriptedEngine(right_then_wrong, max_model_len=123))


def test_an_attempt_without_text_gets_no_correction_and_the_reason(tmp_path):
    _, corrections = generate(tmp_path, ScriptedEngine(lambda prompt, seed: " "), asked=problems(1))
    assert [(record["corrections"], record["skipped"]) for record in rows(corrections)] == [([], "empty_attempt")] * 2


def test_an_answer_at_the_limit_is_truncated(tmp_path):
    attempts, _ = generate(tmp_path, ScriptedEngine(lambda prompt, seed: "x" * 101), asked=problems(1))
    assert [(row["truncated"], row["response_tokens"]) for row in rows(attempts)] == [(True, 100)] * 2
    attempts, _ = generate(tmp_path / "fits", ScriptedEngine(lambda prompt, seed: "x" * 100), asked=problems(1))
    assert [row["truncated"] for row in rows(attempts)] == [False, False]


def test_a_copy_is_told_by_the_answer_and_not_by_the_thinking(tmp_path):
    def answer(prompt: str, seed: int) -> str:
        return f"<think>{seed}</think>{'as before' if 'Say 1.' in prompt else seed}"

    _, records = generate(tmp_path, ScriptedEngine(answer))
    for record in rows(records):
        assert [turn["copied"] for turn in record["corrections"]] == [record["question"] == "Say 1."]


def test_of_a_request_to_correct_a_program_the_given_one_is_the_anchor(tmp_path):
    given = replace(problems(1)[0], extra_info={"response": "def f():\n    return 0", "response_correct": False})
    answers = iter(["It is fine:\n```python\ndef f():\n  return 0\n```", "```python\ndef f():\n    return 1\n```"])
    attempts, _ = generate(
        tmp_path,
        ScriptedEngine(lambda prompt, seed: next(answers)),
        made=benchmark(verifier="code", corrections=0),
        asked=[given],
        verifier=Verifier(lambda **given: 1.0),
    )
    assert [(row["anchor_correct"], row["copied"]) for row in rows(attempts)] == [(False, True), (False, False)]


def test_a_users_reward_function_decides(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def reward(data_source, solution_str, ground_truth, extra_info, bonus):\n"
        "    assert (data_source, extra_info) == ('made/up', {'question': 'Say it.'})\n"
        "    return float(len(solution_str) % 2) + bonus\n"
    )
    asked = [replace(one, extra_info={"question": "Say it."}) for one in problems()]
    verifier = Verifier(load_function(f"{tmp_path / 'mine.py'}:reward"), kwargs={"bonus": 0.25})
    attempts, _ = generate(tmp_path, ScriptedEngine(right_then_wrong), verifier=verifier, asked=asked)
    for row in rows(attempts):
        assert row["score"] == len(row["output"]) % 2 + 0.25 and row["acc"] is (len(row["output"]) % 2 == 1)


def test_what_a_reward_function_returns_is_written_as_numbers_and_lists(tmp_path):
    def reward(**given):
        return {
            "score": np.float32(1),
            "acc": np.bool_(True),
            "f1": np.float32(0.5),
            "tests": np.array([1, 0]),
            "each": (np.int64(3), torch.tensor(2.0)),
            "rate": np.float64("nan"),
            "why": Fraction(1, 3),
        }

    attempts, corrections = generate(tmp_path, ScriptedEngine(right_then_wrong), verifier=Verifier(reward))
    assert len(rows(attempts)) == len(rows(corrections)) == 10
    for row in rows(attempts):
        assert {name: row[name] for name in ("score", "acc", "f1", "tests", "each", "rate", "why")} == {
            "score": 1.0, "acc": True, "f1": 0.5, "tests": [1, 0], "each": [3, 2.0], "rate": None, "why": "1/3",
        }  # fmt: skip


def test_columns_of_the_dump_stand_over_what_a_reward_function_calls_alike(tmp_path):
    clash = dict.fromkeys(("input", "output", "gts", "step", "uid", "data_source", "truncated"), "mine")
    verifier = Verifier(lambda **given: {"score": 1.0, "note": "kept"} | clash)
    theirs, _ = generate(tmp_path / "theirs", ScriptedEngine(right_then_wrong), verifier=verifier)
    plain, _ = generate(tmp_path / "plain", ScriptedEngine(right_then_wrong), verifier=Verifier(lambda **given: 1.0))
    assert rows(theirs) == [row | {"note": "kept"} for row in rows(plain)]


@pytest.mark.parametrize(
    "raised, told",
    [(RuntimeError("no sandbox"), "no sandbox"), (ValueError("7"), "the reward function failed on made-up-2")],
)
def test_a_verifier_that_fails_ends_the_run_and_keeps_what_is_written(raised, told, tmp_path):
    calls = []

    def fails(**given):
        calls.append(given)
        if len(calls) == 6:
            raise raised
        return 1.0

    with pytest.raises(RuntimeError, match=told):
        generate(tmp_path, ScriptedEngine(right_then_wrong), verifier=Verifier(fails, threads=1))
    assert len(rows(tmp_path / "made_up" / "7.jsonl")) == 4


@pytest.mark.parametrize(
    "name, told",
    [("maths", "expected math, code, critique"), ("os:nothing", "nothing"), ("gone.py:f", "No such file")],
)
def test_a_reward_function_that_is_not_there_is_named(name, told):
    with pytest.raises(EvaluationError, match=told):
        load_function(name)


def test_an_asynchronous_reward_function_is_awaited_in_one_loop(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import asyncio\nloops, busy = set(), [0, 0]\n"
        "async def compute_score(solution_str, **given):\n"
        "    loops.add(id(asyncio.get_running_loop()))\n"
        "    busy[0] += 1\n    busy[1] = max(busy)\n    await asyncio.sleep(0)\n    busy[0] -= 1\n"
        "    return {'score': len(solution_str), 'loops': len(loops), 'busy': busy[1]}\n"
    )
    verifier = Verifier(load_function(str(tmp_path / "mine.py")), threads=2)
    (one,) = problems(1)
    for _ in range(2):
        found = verifier.judge([(one, "x" * i) for i in range(5)])
    assert [each.score for each in found] == [0, 1, 2, 3, 4]
    assert found[-1].extra == {"loops": 1, "busy": 2}


@pytest.mark.parametrize("name", ["{}/mine.py", "file://{}/mine.py:compute_score", "pkg://verl_cipo.rewards.math"])
def test_a_reward_function_is_named_as_verl_names_it(name, tmp_path):
    (tmp_path / "mine.py").write_text("def compute_score(**given):\n    return 1.0\n")
    assert load_function(name.format(tmp_path)).__name__ == "compute_score"


def test_what_a_reward_function_cannot_judge_is_known_before_a_model_is_asked():
    def known(data_source, **given):
        if data_source != "made/up":
            raise NotImplementedError(data_source)
        return 1.0

    asked = problems(2)
    Verifier(known).try_out(asked)
    with pytest.raises(EvaluationError, match="cannot judge data_source 'other': NotImplementedError: other"):
        Verifier(known).try_out([*asked, replace(asked[0], data_source="other")])


def test_the_step_is_read_from_the_checkpoint():
    assert step_of("runs/global_step_120/actor/huggingface") == 120
    assert step_of("Qwen/Qwen3-4B") == 0


def test_a_checkpoint_of_verl_is_refused_with_the_merge_command(tmp_path):
    shards = tmp_path / "global_step_3" / "actor"
    (shards / "huggingface").mkdir(parents=True)
    (shards / "huggingface" / "config.json").write_text("{}")
    (shards / "model_world_size_1_rank_0.pt").write_bytes(b"")
    wanted = f"python -m verl.model_merger merge --backend fsdp --local_dir {shards} --target_dir "
    for given in (shards, shards.parent):
        with pytest.raises(EvaluationError) as error:
            model_folder(str(given))
        assert wanted in str(error.value)
    with pytest.raises(EvaluationError, match="no such folder"):
        model_folder(str(tmp_path / "gone"))
    with pytest.raises(EvaluationError, match="expected config.json"):
        model_folder(str(shards / "huggingface"))
    (shards / "huggingface" / "model.safetensors").write_bytes(b"")
    assert model_folder(str(shards / "huggingface")) == str(shards / "huggingface")
    with pytest.raises(EvaluationError, match="hf download Qwen/Qwen3-4B --local-dir DIR, and give --checkpoint DIR"):
        model_folder("Qwen/Qwen3-4B")


def test_a_checkpoint_of_megatron_names_its_folder_or_the_merge_command(tmp_path):
    """verl saves the weights in Hugging Face's format, or with use_dist_checkpointing in shards."""
    actor = tmp_path / "global_step_3" / "actor"
    (actor / "model" / "dist_ckpt").mkdir(parents=True)
    for given in (actor, actor.parent):
        with pytest.raises(EvaluationError, match=f"merge --backend megatron --local_dir {actor} --target_dir "):
            model_folder(str(given))
    saved = actor / "model" / "huggingface"
    saved.mkdir()
    (saved / "config.json").write_text("{}")
    (saved / "model-00001-of-00002.safetensors").write_bytes(b"")
    for given in (actor, actor.parent):
        with pytest.raises(EvaluationError, match=f"give {saved}$"):
            model_folder(str(given))
    assert model_folder(str(saved)) == str(saved)


def test_merged_weights_without_their_adapter_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "lora_adapter").mkdir()
    with pytest.raises(EvaluationError, match="left the adapter beside the weights, in lora_adapter"):
        model_folder(str(tmp_path))
