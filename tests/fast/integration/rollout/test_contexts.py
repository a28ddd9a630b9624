"""Strategy contexts in the worker, with verl's own ``_run_prompt`` around it, and in the data set before a run."""

import logging

import pytest

from tests.fast.integration.rollout.test_worker import N, old_group, roll, rows, world
from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.core.draws import session_seed
from verl_cipo.core.nudge import drawn_contexts
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.core.rows import PLAIN
from verl_cipo.core.steering.budget import KINDS, PROBE
from verl_cipo.integration.data_set import check_contexts

__all__ = ["world"]

HINTS = ["add first", "look twice"]
NUDGE = {"contexts": "hints", "template": "{context}: {question}"}
COLUMNS = {"extra_info": {"hints": HINTS}}


def drawn(index=0, contexts=2, **more):
    return drawn_contexts(contexts, N, **{"plain_share": 0.5, "seed": 1, "step": 1, "index": index, **more})


def asked(log) -> dict[str, str]:
    """Row -> the last message of its prompt."""
    return {entry[1]: entry[2][-1]["content"] for entry in log if entry[0] == "row"}


def marks(log) -> dict[str, dict]:
    return {entry[1]: entry[3]["cipo"] for entry in log if entry[0] == "row"}


@pytest.mark.parametrize("schedule", ["streaming", "barrier", "replay"])
def test_attempts_have_the_contexts_that_were_drawn(world, schedule):
    roll(world, prompts=3, schedule=schedule, nudge=NUDGE, columns=COLUMNS)
    seen, noted = asked(world), marks(world)
    numbers = [number for i in range(3) for number in drawn(i)]
    assert {PLAIN, 0, 1} == set(numbers), "else this says little"
    for i in range(3):
        for session, number in enumerate(drawn(i)):
            name, plain = f"p{i}_{session}", f"Q{i}?"
            if number == PLAIN:
                assert seen[name] == plain and "context" not in noted[name] and "question" not in noted[name]
            else:
                assert seen[name] == f"{HINTS[number]}: {plain}" and noted[name]["context"] == number
                assert noted[name]["question"][-1]["content"] == plain
                assert noted[name]["question"][0]["content"] == "Be brief."


def test_corrections_are_asked_the_plain_question(world):
    """Of every attempt, also of one under a context, and though the one that ended last may have had one."""
    stats = roll(world, prompts=2, replay_fraction=4.0, nudge=NUDGE | {"plain_share": 0.0}, columns=COLUMNS)
    corrections = {name: text for name, text in asked(world).items() if "_c" in name}
    assert len(corrections) == 2 * N * N and stats["corrections/not_asked"] == 0
    assert all(f"Q{name[1]}?" in text for name, text in corrections.items())
    assert not any(hint in text for text in corrections.values() for hint in HINTS)
    assert not any("context" in mark for name, mark in marks(world).items() if "_c" in name)


def test_what_the_next_step_corrects_has_the_plain_question(world):
    roll(world, schedule="replay", nudge=NUDGE | {"plain_share": 0.0}, columns=COLUMNS, pool=[old_group("a", "ww")])
    texts = asked(world)
    assert any("_c" in name for name in texts)
    assert all(not any(hint in text for hint in HINTS) for name, text in texts.items() if "_c" in name)
    assert all(text.endswith(": Q0?") for name, text in texts.items() if "_c" not in name)


def test_further_attempts_are_plain(world):
    shares = dict.fromkeys(KINDS, PROBE)
    roll(world, budget="auto", shares=shares, nudge=NUDGE | {"plain_share": 0.0}, columns=COLUMNS)
    texts = asked(world)
    assert sorted(name for name, text in texts.items() if text == "Q0?") == [f"p0_{i}" for i in range(N, 2 * N)]
    assert all(marks(world)[f"p0_{i}"]["further"] for i in range(N, 2 * N))


def test_a_validation_is_never_nudged(world):
    nudge = NUDGE | {"plain_share": 0.0, "corrections": True}
    roll(world, validate=True, n_of={0: 4}, nudge=nudge, columns=COLUMNS)
    assert {text for name, text in asked(world).items() if "_c" not in name} == {"Q0?"}
    second = [entry[3]["raw_prompt"][-1]["content"] for entry in world if entry[0] == "session" and "_c" in entry[1]]
    assert len(second) == 4 and not any(hint in text for text in second for hint in HINTS)


def test_it_is_off_without_a_column(world):
    roll(world, columns=COLUMNS)
    assert {text for name, text in asked(world).items() if "_c" not in name} == {"Q0?"}


@pytest.mark.parametrize("columns", [{}, {"hints": []}, {"hints": None}, {"extra_info": {"other": ["a"]}}])
def test_a_row_without_contexts_has_plain_attempts(world, columns):
    stats = roll(world, nudge=NUDGE, columns=columns)
    assert {text for name, text in asked(world).items() if "_c" not in name} == {"Q0?"}
    assert {name: stats[name] for name in stats if name.startswith("nudge")} == {
        f"nudge/skipped/{reason}": 0.0 for reason in ("bad_list", "no_text_question", "too_long")
    }


def test_what_is_no_list_costs_the_contexts_alone(world, caplog):
    stats = roll(world, nudge=NUDGE, columns={"hints": "add first"})
    assert len(rows(world)) == 2 * N and world[-1] == ("status", "p0", "finished")
    assert stats["nudge/skipped/bad_list"] == 1
    assert "prompt 0 goes without contexts" in caplog.text and "expected a list of texts" in caplog.text
    caplog.clear()
    world.clear()
    stats = roll(world, nudge=CORRECTED, columns={"hints": "add first"}, replay_fraction=4.0)
    assert len(rows(world)) == N + N * N and stats["nudge/skipped/bad_list"] == 1
    assert caplog.text.count("goes without contexts") == 1, "once, not for each anchor"
    assert stats["nudge/skipped/correction_too_long"] == 0


def test_a_question_with_an_image_has_plain_attempts(world):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    stats = roll(world, nudge=NUDGE, columns=COLUMNS, chats={0: chat}, prompt_length=10_000, replay_fraction=0)
    assert stats["nudge/skipped/no_text_question"] == 1 and len(rows(world)) == N


def test_a_context_that_makes_the_prompt_too_long_is_left_out(world):
    """verl would cut off the start of the question."""
    hints = ["short", "x" * 500, "brief"]
    nudge = NUDGE | {"plain_share": 0.0}
    stats = roll(world, prompt_length=100, nudge=nudge, columns={"hints": hints}, replay_fraction=0)
    assert stats["nudge/skipped/too_long"] == 1
    assert set(asked(world).values()) == {"short: Q0?", "brief: Q0?"}
    # The number is that of the whole list.
    assert {mark["context"] for mark in marks(world).values()} == {0, 2}


def test_seeds_of_sessions_stay(world):
    rollout = {"full_determinism": True, "seed": 5, "name": "vllm"}
    roll(world, nudge=NUDGE, columns=COLUMNS, rollout=rollout, replay_fraction=0)
    seeds = [entry[2]["seed"] for entry in world if entry[0] == "session"]
    where = {"step": 1, "validate": False, "index": 0, "anchor": None}
    assert seeds == [session_seed(5, **where, session=i) for i in range(N)]


def test_a_fault_in_drawing_does_not_hold_up_others(world, monkeypatch):
    from verl_cipo.integration.rollout import worker

    def broken(*_, **__):
        raise RuntimeError("no tokenizer")

    monkeypatch.setattr(worker, "contexts_of", broken)
    roll(world, prompts=2, nudge=NUDGE, columns=COLUMNS)
    assert [entry for entry in world if entry[0] == "status"][-1][2] == "failure"


# ---- corrections under contexts

CORRECTED = NUDGE | {"corrections": True}


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_corrections_have_the_contexts_that_were_drawn(world, schedule):
    """Those of each anchor by themselves, whatever its attempt had."""
    roll(world, prompts=2, replay_fraction=4.0, schedule=schedule, nudge=CORRECTED, columns=COLUMNS)
    seen, noted = asked(world), marks(world)
    corrections = {name: text for name, text in seen.items() if "_c" in name}
    assert len(corrections) == 2 * N * N
    draws = {(i, anchor): drawn(i, anchor=anchor) for i in range(2) for anchor in range(N)}
    assert len(set(map(tuple, draws.values()))) > 2, "else this says little"
    for (i, anchor), numbers in draws.items():
        for session, number in enumerate(numbers):
            name = f"p{i}_c{anchor}_{session}"
            found = [hint for hint in HINTS if f"{hint}: Q{i}?" in corrections[name]]
            assert found == ([] if number == PLAIN else [HINTS[number]])
            assert noted[name].get("context", PLAIN) == number and f"Q{i}?" in corrections[name]
    for i in range(2):
        assert [noted[f"p{i}_{session}"].get("context", PLAIN) for session in range(N)] == drawn(i), "as without them"


def test_corrections_of_the_step_before_have_the_contexts_of_their_own_prompt(world):
    pool = [old_group("a", "ww")]
    roll(world, schedule="replay", nudge=CORRECTED | {"plain_share": 0.0}, columns=COLUMNS, pool=pool)
    corrections = {name: text for name, text in asked(world).items() if "_c" in name}
    assert corrections
    (anchor,) = {text.partition("try ")[2][0] for text in corrections.values()}
    numbers = drawn("old", plain_share=0.0, anchor=int(anchor))
    for name, text in corrections.items():
        number = numbers[int(name.rsplit("_")[-1])]
        assert f"{HINTS[number]}: a?" in text and marks(world)[name]["context"] == number


def test_a_context_that_leaves_no_room_is_left_out_of_the_corrections(world):
    """The attempt has room under it, and the correction prompt has none."""
    hints = ["short", "x" * 400]
    nudge = CORRECTED | {"plain_share": 0.0}
    stats = roll(world, prompt_length=500, nudge=nudge, columns={"hints": hints})
    corrections = {name: text for name, text in asked(world).items() if "_c" in name}
    assert len(corrections) == N and all("short: Q0?" in text for text in corrections.values())
    assert stats["nudge/skipped/correction_too_long"] == 1 and stats["nudge/skipped/too_long"] == 0
    assert any("x" * 400 in text for name, text in asked(world).items() if "_c" not in name)


def test_what_a_correction_copies_is_what_it_was_shown_itself(world):
    """Under a context there is room for less of the attempt."""
    hint, said = "h" * 100, "".join(f"{i:03}" for i in range(100))
    texts = {f"p0_{i}": said for i in range(N)}
    how = {"prompt_length": 500, "replay_fraction": 4.0, "nudge": CORRECTED, "columns": {"hints": [hint]}}
    roll(world, texts=texts, **how)
    shown = {}
    for name, text in asked(world).items():
        if "_c" in name:
            shown[hint in text] = text.partition("[...] ")[2].partition("\n")[0]
    assert len(shown[True]) < len(shown[False])
    world.clear()
    roll(world, texts=texts | {f"p0_c{a}_{i}": shown[True] for a in range(N) for i in range(N)}, **how)
    noted = {name: mark for name, mark in marks(world).items() if "_c" in name}
    assert {mark.get("copied", False) for mark in noted.values()} == {True, False}
    assert all(mark.get("copied", False) == ("context" in mark) for mark in noted.values())


# ---- the data set


def data(*hints):
    asked = [{"role": "user", "content": "1+1?"}]
    return [{"raw_prompt": asked, "index": i, "extra_info": {"hints": own}} for i, own in enumerate(hints)]


def look(rows, *, prompt_length=100, nudge=NUDGE):
    cipo = CIPOConfig.from_mapping({"nudge": nudge})
    prompt = CorrectionPrompt(
        cipo.prompt,
        prompt_length=prompt_length,
        count_tokens=lambda messages: len(messages[-1]["content"]),
        encode=list,
        decode="".join,
    )
    check_contexts(rows, cipo, prompt)


def test_data_with_contexts_is_fine(caplog):
    look(data(HINTS, None, []))
    look([], nudge=NUDGE)
    look(data("no list"), nudge={})
    assert not caplog.records


def test_contexts_that_leave_no_room_for_any_attempt_are_refused_for_corrections():
    look(data(HINTS), prompt_length=200)
    with pytest.raises(CIPOConfigError) as refused:
        look(data(HINTS, HINTS), prompt_length=200, nudge=CORRECTED)
    said = str(refused.value)
    assert "rollout.prompt_length=200 is too small for algorithm.cipo.nudge.corrections=true" in said
    look(data(HINTS), prompt_length=400, nudge=CORRECTED)


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(CIPOConfigError) as refused:
        look(data(None, None))
    said = str(refused.value)
    assert "algorithm.cipo.nudge.contexts=hints: none of the 2 rows" in said and "verl_cipo.contexts" in said


def test_a_column_of_something_else_is_refused():
    with pytest.raises(CIPOConfigError, match=r"row 1: algorithm\.cipo\.nudge\.contexts=hints: .*a list of texts"):
        look(data(HINTS, "add first"))


def test_contexts_that_never_fit_are_refused_and_some_are_a_warning(caplog):
    with pytest.raises(CIPOConfigError, match=r"prompt_length=10 is too small .*up to 16 tokens"):
        look(data(HINTS, ["add first"]), prompt_length=10)
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        look(data(HINTS, ["add"]), prompt_length=10)
    assert "with their contexts 1 of the 2 prompts looked at take more than" in caplog.text
    assert "cipo/nudge/skipped/too_long" in caplog.text
