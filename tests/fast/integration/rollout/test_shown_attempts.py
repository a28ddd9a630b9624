"""What correction prompts show in a rollout: other attempts beside the anchor, and wrong anchors alone; V1 and V0."""

import asyncio
import pickle
from collections import Counter

import pytest

from tests.fast.integration.rollout import test_worker
from tests.fast.integration.rollout.test_worker import N, Remote, Worker, old_group, roll
from tests.fast.integration.scored_batch import decode, encode, scored
from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.prompts import ALONE, CorrectionPrompt
from verl_cipo.core.replay import Candidate
from verl_cipo.integration.rollout import payloads
from verl_cipo.integration.rollout import worker as rollouts
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.rollout.groups import PromptGroup, Session
from verl_cipo.integration.v0.material import materials
from verl_cipo.integration.v0.rows import objects

world = test_worker.world
TOLD = {"rho_adaptive": False, "rho_init": 0.0}
TEXTS = {"p0_0": "so right", "p0_1": "so 5", "p0_2": "thus right", "p0_3": "so 6"}


def asked(log) -> dict[str, str]:
    """Correction group -> what it was asked."""
    return {
        name.rpartition("_")[0]: chat[-1]["content"] for kind, name, chat, *_ in log if kind == "row" and "_c" in name
    }


def shown(text: str) -> list[str]:
    return [part.split("\n</attempt>")[0] for part in text.split("<attempt>\n")[1:]]


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_wrong_attempts_of_the_prompt_stand_beside_every_anchor(world, schedule):
    stats = roll(world, schedule=schedule, replay_fraction=4.0, texts=TEXTS, prompt={"attempts": 3})
    assert stats["anchors/total"] == 4
    found = {group: shown(text) for group, text in asked(world).items()}
    assert {group: sorted(own) for group, own in found.items()} == {
        "p0_c0": ["so 5", "so 6", "so right"],
        "p0_c1": ["so 5", "so 6"],
        "p0_c2": ["so 5", "so 6", "thus right"],
        "p0_c3": ["so 5", "so 6"],
    }
    assert all("attempts at this problem" in text for text in asked(world).values())


def test_a_prompt_without_other_wrong_attempts_shows_one(world):
    texts = {f"p0_{i}": "so right" for i in range(N)} | {"p0_1": "so 5"}
    roll(world, replay_fraction=4.0, texts=texts, prompt={"attempts": 3})
    found = asked(world)
    assert shown(found["p0_c1"]) == ["so 5"] and "Here is an attempt" in found["p0_c1"]
    assert sorted(shown(found["p0_c0"])) == ["so 5", "so right"]


def test_an_attempt_that_could_be_no_anchor_stands_beside_none(world):
    roll(world, replay_fraction=4.0, texts=TEXTS | {"p0_3": "<think>so</think>"}, prompt={"attempts": 3})
    assert {group: sorted(shown(text)) for group, text in asked(world).items()} == {
        "p0_c0": ["so 5", "so right"],
        "p0_c1": ["so 5"],
        "p0_c2": ["so 5", "thus right"],
    }


def test_the_verifiers_pred_tells_answers_apart(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._compute_score

    async def compute_score(self, outputs, kwargs):
        await whole(self, outputs, kwargs)
        text = self.tokenizer.decode(outputs[-1].response_ids)
        info = {"acc": text.endswith("right"), "score": 0.0, "pred": text.split()[-1]}
        outputs[-1].extra_fields["reward_extra_info"] = info

    monkeypatch.setattr(base, "_compute_score", compute_score)
    texts = {"p0_0": "a 5", "p0_1": "b 5", "p0_2": "c 5", "p0_3": "d 6"}
    roll(world, replay_fraction=4.0, texts=texts, prompt={"attempts": 2})
    found = {group: shown(text) for group, text in asked(world).items()}
    assert all("d 6" in own for own in found.values()) and len(found) == N


def test_whoever_repeats_an_attempt_beside_the_anchor_copies(world):
    texts = TEXTS | {f"p0_c1_{i}": text for i, text in enumerate(("so 5", "so  6", "so right", "so 7"))}
    roll(world, replay_fraction=4.0, texts=texts, prompt={"attempts": 2})
    marks = {entry[1]: entry[3]["cipo"].get("copied", False) for entry in world if entry[0] == "row"}
    assert [marks[f"p0_c1_{i}"] for i in range(N)] == [True, True, False, False]


def test_a_validation_shows_one_attempt_and_tells_nothing(world):
    knobs = {"prompt": {"attempts": 3, "verdict": "told"}, "texts": TEXTS, "n_of": {0: 4}}
    records, _ = roll(world, validate=True, **TOLD, **knobs)
    assert len(records) == 4
    chats = {entry[1]: entry[3]["raw_prompt"][-1]["content"] for entry in world if entry[0] == "session"}
    turns = {name: text for name, text in chats.items() if "_c" in name}
    assert len(turns) == 4 and all("The attempt may or may not be right." in text for text in turns.values())
    assert {name[:5]: shown(text) for name, text in turns.items()} == {f"p0_c{i}": [TEXTS[f"p0_{i}"]] for i in range(N)}


def test_the_assistants_own_turn_is_sent(world):
    roll(world, prompt={"form": "assistant_turn"}, texts=TEXTS)
    chat = next(entry[2] for entry in world if entry[0] == "row" and "_c" in entry[1])
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "user"]
    assert chat[1]["content"] == "Q0?" and chat[2]["content"] in TEXTS.values()
    assert chat[3]["content"].startswith("Your answer may or may not be right.")


# ---- verdict=told


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_right_attempts_do_not_fill_up_where_the_prompt_says_wrong(world, schedule):
    stats = roll(world, schedule=schedule, replay_fraction=4.0, prompt={"verdict": "told"}, texts=TEXTS, **TOLD)
    assert (stats["anchors/total"], stats["anchors/correct"], stats["anchors/failed"]) == (2, 0, 2)
    assert set(asked(world)) == {"p0_c1", "p0_c3"}
    assert all("The attempt is wrong." in text for text in asked(world).values())
    world.clear()
    hidden = roll(world, schedule=schedule, replay_fraction=4.0, texts=TEXTS, **TOLD)
    assert hidden["anchors/total"] == 4, "with hidden they do"


def test_a_step_without_a_wrong_attempt_has_no_anchor(world):
    stats = roll(world, texts={f"p0_{i}": "so right" for i in range(N)}, prompt={"verdict": "told"}, **TOLD)
    assert stats["anchors/total"] == 0 and ("status", "p0", "finished") in world


# ---- schedule=replay


def two_steps(log, *, resumed=lambda state: state, **options):
    """A step with TEXTS and the next one, which is drawn from it; ``resumed`` sees the pool between them."""
    cipo = CIPOConfig.from_mapping({"preset": "stream", "schedule": "replay", "replay_fraction": 4.0, **options})

    async def run():
        actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=1)
        for step in (1, 2):
            if step == 2:
                state = resumed(await actor.pool_state())
                actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=1)
                await actor.restore_pool(state)
            await actor.open(step, uids=[f"p{step}"], rho=0.0, step=step)
            texts = {name.replace("p0", "p1"): text for name, text in TEXTS.items()}
            prompt = {"uid": f"p{step}", "index": step, "raw_prompt": [{"role": "user", "content": f"Q{step}?"}]}
            await Worker(cipo, log, texts=texts)._run_prompt(
                {**prompt, "agent_name": "a", rollouts.TICKET: {"coordinator": Remote(actor), "batch": step}},
                {},
                {"validate": False, "step": step, "sample_index": 0, "rollout_n": 0},
            )
        return await actor.pop_statistics()

    return asyncio.run(run())


def pickled(state):
    return pickle.loads(pickle.dumps(state))


@pytest.mark.parametrize("resumed", [lambda state: state, pickled])
def test_attempts_of_the_step_before_stand_beside_its_anchors(world, resumed):
    two_steps(world, resumed=resumed, prompt={"attempts": 3})
    found = [shown(text) for text in asked(world).values()]
    assert sorted(map(sorted, found)) == [
        ["so 5", "so 6"],
        ["so 5", "so 6"],
        ["so 5", "so 6", "so right"],
        ["so 5", "so 6", "thus right"],
    ]
    assert all("Q1?" in text for text in asked(world).values())
    # As the step itself would have shown them.
    own = own_step(world, schedule="barrier", replay_fraction=4.0, prompt={"attempts": 3})
    assert sorted(found) == sorted(shown(text) for text in own)


def own_step(world, **options):
    """What the barrier asks of the same attempts in their own step: index, session and step are those of two_steps."""
    cipo = CIPOConfig.from_mapping({"preset": "stream"} | options)
    world.clear()

    async def run():
        actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=1)
        await actor.open(1, uids=["p1"], rho=0.0, step=1)
        texts = {name.replace("p0", "p1"): text for name, text in TEXTS.items()}
        prompt = {"uid": "p1", "index": 1, "raw_prompt": [{"role": "user", "content": "Q1?"}], "agent_name": "a"}
        await Worker(cipo, world, texts=texts)._run_prompt(
            {**prompt, rollouts.TICKET: {"coordinator": Remote(actor), "batch": 1}},
            {},
            {"validate": False, "step": 1, "sample_index": 0, "rollout_n": 0},
        )

    asyncio.run(run())
    return asked(world).values()


def test_a_pool_from_before_attempts_stood_beside_one_another_shows_one(world):
    def older(state):
        for candidate in state["filling"]:
            object.__setattr__(candidate, "payload", candidate.payload[:2])
        return pickled(state)

    two_steps(world, resumed=older, prompt={"attempts": 3})
    assert sorted(shown(text) for text in asked(world).values()) == sorted([text] for text in TEXTS.values())
    old = ("text", {"index": 1})
    assert asyncio.run(payloads.fetch(old)) == ("text", {"index": 1}, (), ALONE)


def test_a_pool_that_was_made_with_more_attempts_shows_as_many_as_the_knob_says(world):
    def with_more(state):
        for candidate in state["filling"]:
            text, data, _ = candidate.payload
            object.__setattr__(candidate, "payload", (text, data, (("x", "y"), (2, 0, 1))))
        return pickled(state)

    two_steps(world, resumed=with_more, prompt={"form": "assistant_turn"})
    chats = [entry[2] for entry in world if entry[0] == "row" and "_c" in entry[1]]
    assert {chat[1]["content"] for chat in chats} == set(TEXTS.values())
    world.clear()
    two_steps(world, resumed=with_more, prompt={"attempts": 2})
    assert {tuple(shown(text)) for text in asked(world).values()} == {(text, "x") for text in TEXTS.values()}


def test_an_older_pool_has_no_right_anchor_where_the_prompt_says_wrong(world):
    stats = two_steps(world, prompt={"verdict": "told"}, **TOLD)
    assert sorted(shown(text)[0] for text in asked(world).values()) == ["so 5", "so 6"]
    assert (stats["anchors/total"], stats["anchors/correct"]) == (2, 0)

    cipo = CIPOConfig.from_mapping({"preset": "stream", "schedule": "replay", "prompt": {"verdict": "told"}, **TOLD})
    actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=4)
    pool = [
        Candidate((False, (0, bytes([i]), "a", i)), attempt, ("text", {}), None)
        for i, attempt in enumerate(old_group("a", "ccwc").attempts)
    ]

    async def run():
        await actor.restore_pool({"step": 1, "ready": pool, "filling": pool})
        await actor.open(0, uids=list("pqrs"), rho=0.0, step=2)
        return [candidate.attempt for uid in "pqrs" for candidate in (await actor.hosted(0, uid)).anchors]

    found = asyncio.run(run())
    assert [(attempt.session, attempt.correct) for attempt in found] == [(2, False)]


# ---- V0


def request_of(prompt: CorrectionPrompt, outcomes: str, batch, preds, session: int, step: int):
    """The V1 worker's: from a prompt's group."""
    group = PromptGroup(uid="u0", index=0, origin="", pending=0, n=6, validate=False, ticket={})
    for i, mark in enumerate(outcomes):
        ids = batch_response(batch, i)
        group.attempts[i] = Session((), ids, mark == "+", 0.0, pred=preds[i], text=decode(ids))
    group.attempts[REFUSED].refusal = "too_long"
    others = group.beside(prompt, [session], seed=1, step=step)[session]
    return prompt.request([{"role": "user", "content": "Q0"}], group.attempts[session].text, others)


REFUSED = 4
"""An attempt that stands beside none."""


def batch_response(batch, row):
    return [i for i in batch.batch["responses"][row].tolist() if i]


@pytest.mark.parametrize("preds", [None, ["1", "2", "2", "", None, "3"]])
@pytest.mark.parametrize("step", range(4))
def test_both_data_planes_ask_the_same(step, preds):
    outcomes = "+--+--"
    batch = scored([outcomes, "--++"], seed=step, extra=False)
    if preds is not None:
        batch.non_tensor_batch["pred"] = objects([*preds, *"abcd"])
    prompt = CorrectionPrompt(
        PromptConfig(attempts=3),
        prompt_length=10_000,
        count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
        encode=encode,
        decode=decode,
    )
    batch.non_tensor_batch["cipo"][REFUSED]["refusal"] = "too_long"
    offered = materials(batch, batch, range(6), alone=False)
    assert [sorted(response.session for response in each.wrong) for each in offered] == [[1, 2, 5]] * 6
    for session, each in enumerate(offered):
        assert each.prompt["index"] == 0
        (ours,), reason = each.asked(prompt, CIPOConfig(), Counter(), n=1, step=step, validate=False)
        expected = request_of(prompt, outcomes, batch, preds or [None] * 6, session, step)
        assert (ours.request, reason) == expected and len(ours.request.shown) == 3
    assert [each.wrong for each in materials(batch, batch, range(6), alone=True)] == [()] * 6


def test_what_is_lost_or_cannot_be_corrected_stands_beside_none_in_v0():
    batch = scored(["----"], extra=False)
    batch.non_tensor_batch["cipo"][1]["lost"] = True
    batch.non_tensor_batch["cipo"][2]["refusal"] = "empty_attempt"
    (asked,) = materials(batch, batch, [0], alone=False)
    assert [response.session for response in asked.wrong] == [0, 3]


def test_v0_draws_no_right_anchor_where_the_prompt_says_wrong(monkeypatch):
    from tests.fast.integration.v0.test_v0_rollout import Worker as WorkerV0
    from tests.fast.integration.v0.test_v0_rollout import manager

    knobs = {"prompt": PromptConfig(verdict="told", attempts=2), **TOLD}
    sent = WorkerV0()
    made, prompts, _ = manager(monkeypatch, ["+++-", "++++"], [sent], rho=0.0, replay_fraction=4.0, **knobs)
    made.generate_sequences(prompts)
    stats = made.pop_statistics()
    assert (stats["anchors/total"], stats["anchors/correct"]) == (1, 0)
    assert set(sent.requests[0].non_tensor_batch["uid"]) == {"u0_c3"}
    ((validate, asked),) = sent.asked
    assert not validate and [response.session for response in asked.wrong] == [3]
    prompts.meta_info["validate"] = True
    made.generate_sequences(prompts)
    assert [(validate, asked.wrong) for validate, asked in sent.asked[1:]] == [(True, ())] * 2
