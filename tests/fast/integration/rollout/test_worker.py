"""The worker's correction phase with verl's own ``_run_prompt`` around it.

Only what lies below a session (agent loop, reward loop, TransferQueue) is replaced; tests/real has the whole path.
"""

import asyncio
import pickle
import threading
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1 import agent_loop_tq

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.draws import origin
from verl_cipo.core.prompts import CorrectionPrompt, correction_prompt
from verl_cipo.core.transitions import second_turn_metrics
from verl_cipo.integration.rollout import payloads
from verl_cipo.integration.rollout import verify as verifying
from verl_cipo.integration.rollout import worker as rollouts
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.rollout.second_verifier import SecondVerifier

N = 4


class Remote:
    """A coordinator whose methods are called as a Ray actor's are."""

    def __init__(self, actor: AnchorCoordinator):
        self.actor = actor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.actor, name))


class Held:
    """A reference of Ray's to a value."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self.value


class Tokenizer:
    """A character is a token."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(map(chr, ids))

    def encode(self, text, add_special_tokens=False):
        return [ord(character) for character in text]


class Worker(rollouts.CIPOAgentLoopWorker):
    """Answers "right" in every second session; logs what would reach TransferQueue."""

    def __init__(
        self,
        cipo: CIPOConfig,
        log: list,
        *,
        broken: str = "",
        prompt_length: int = 10_000,
        texts: dict | None = None,
        filtered: str | None = None,
    ):
        self._groups = {}
        self._cipo = cipo
        self._n = cipo.n_corrections or N
        self.log = log
        self.broken = broken
        self.texts = texts or {}
        self.tokenizer = Tokenizer()
        self._second = SecondVerifier.of(cipo, self.tokenizer)
        self._filter_metric = filtered
        self.tools = []
        self.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": N, "val_kwargs": {"n": 1}}}})
        self._prompt = CorrectionPrompt(
            cipo.prompt,
            prompt_length=prompt_length,
            count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
            encode=self.tokenizer.encode,
            decode=self.tokenizer.decode,
        )


@pytest.fixture
def world(monkeypatch):
    """Replaces the session below the worker, and TransferQueue."""
    log: list[tuple] = []
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class

    async def run_agent_loop(self, sampling_params, trajectory, *, agent_name, trace, **kwargs):
        await asyncio.sleep(0)
        log.append(("session", f"{kwargs['uid']}_{kwargs['session_id']}", sampling_params, kwargs))
        if self.broken and self.broken in kwargs["uid"]:
            raise RuntimeError("the engine went away")
        text = self.texts.get(f"{kwargs['uid']}_{kwargs['session_id']}")
        if text is None:
            text = "right" if kwargs["session_id"] % 2 == 0 else "wrong"
        output = AgentLoopOutput(
            prompt_ids=self.tokenizer.encode(str(kwargs["raw_prompt"][-1]["content"])),
            response_ids=self.tokenizer.encode(text),
            response_mask=[1] * len(text),
            metrics={},
        )
        await self._agent_loop_postprocess(output, trajectory["validate"], **kwargs)

    async def compute_score(self, outputs, kwargs):
        outputs[-1].reward_score = float(self.tokenizer.decode(outputs[-1].response_ids).endswith("right"))

    async def postprocess(self, output, validate, **kwargs):
        await self._compute_score([output], kwargs)
        log.append(("row", f"{kwargs['uid']}_{kwargs['session_id']}", kwargs["raw_prompt"], output.extra_fields))

    async def kv_put(key, partition_id, tag):
        log.append(("status", key, tag["status"]))

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    monkeypatch.setattr(base, "_compute_score", compute_score)
    monkeypatch.setattr(base, "_agent_loop_postprocess", postprocess)
    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", kv_put)
    return log


def roll(
    log,
    *,
    prompts=1,
    validate=False,
    broken="",
    prompt_length=10_000,
    n_of=None,
    pool=(),
    rollout=None,
    texts=None,
    chats=None,
    columns=None,
    popped=None,
    shares=None,
    filtered=None,
    **options,
):
    """Roll a batch of ``prompts`` prompts.

    pool: groups of the step before, for schedule=replay; shares: of budget=auto; texts: session -> what it says;
    chats: prompt -> its chat; filtered: metric of algorithm.filter_groups.
    """
    cipo = CIPOConfig.from_mapping({"preset": "stream"} | options)
    actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=prompts, filters=filtered is not None)

    async def run():
        ticket = {"coordinator": Remote(actor), "batch": 0 if cipo.rolls_out and not validate else None}
        if pool:
            await actor.open(-1, uids=[group.uid for group in pool], rho=0.5, step=0)
            for group in pool:
                data = {"raw_prompt": [{"role": "user", "content": f"{group.uid}?"}], "index": "old"}
                data |= {"agent_name": "single_turn_agent", "global_steps": 0, **(columns or {})}
                await actor.add(-1, group, {a.session: (f"try {a.session}", data) for a in group.attempts})
        if ticket["batch"] is not None:
            await actor.open(0, uids=[f"p{i}" for i in range(prompts)], rho=0.5, step=1, shares=shares)
        worker = Worker(cipo, log, broken=broken, prompt_length=prompt_length, texts=texts, filtered=filtered)
        worker.config.actor_rollout_ref.rollout.update(rollout or {})
        await asyncio.gather(
            *[
                worker._run_prompt(
                    {
                        "uid": f"p{i}",
                        "index": i,
                        "raw_prompt": (chats or {}).get(i)
                        or [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Q{i}?"}],
                        "agent_name": "single_turn_agent",
                        "global_steps": 1,
                        **(columns or {}),
                        rollouts.TICKET: ticket,
                        "__rollout_n__": (n_of or {}).get(i, 1 if validate else N),
                    },
                    {},
                    {"validate": validate, "step": 1, "sample_index": i, "rollout_n": 0},
                )
                for i in range(prompts)
            ]
        )
        assert worker._groups == {}, "a finished prompt is still held"
        return await getattr(actor, popped or ("pop_validation" if validate else "pop_statistics"))()

    return asyncio.run(asyncio.wait_for(run(), 120))


def rows(log) -> list[str]:
    return [entry[1] for entry in log if entry[0] == "row"]


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_corrections_are_stored_before_the_status_that_lets_verl_sample(world, schedule):
    stats = roll(world, prompts=3, schedule=schedule)
    corrections = [name for name in rows(world) if "_c" in name]
    assert len(rows(world)) - len(corrections) == 3 * N
    assert len(corrections) == 3 * N
    assert stats["anchors/total"] == 3
    for i in range(3):
        end = world.index(("status", f"p{i}", "finished"))
        assert all(position < end for position, entry in enumerate(world) if entry[1].startswith(f"p{i}_"))


def test_correction_keeps_system_message_and_shows_question_and_attempt(world):
    roll(world)
    prompt, mark = next((entry[2], entry[3]["cipo"]) for entry in world if entry[0] == "row" and "_c" in entry[1])
    assert prompt[0] == {"role": "system", "content": "Be brief."}
    attempt = "right" if mark["anchor_correct"] else "wrong"
    assert "Q0?" in prompt[1]["content"]
    assert f"<attempt>\n{attempt}\n</attempt>" in prompt[1]["content"]


def test_row_marks_say_anchor_outcome_and_copy(world):
    roll(world, replay_fraction=4.0)
    marks = [entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" in entry[1]]
    assert len(marks) == 4 * N
    for mark in marks:
        assert mark["anchor_correct"] is (mark["anchor"] % 2 == 0)
        assert mark.get("copied", False) is (mark["correct"] == mark["anchor_correct"])


def test_n_corrections_and_replay_fraction_set_the_number_of_rows(world):
    roll(world, prompts=4, replay_fraction=0.5, n_corrections=3)
    assert sum("_c" in name for name in rows(world)) == 2 * 3


def test_a_worker_reads_its_options_from_verls_config(monkeypatch):
    """The worker of the other tests is made without verl's constructor."""

    def verls(self, config):
        self.config, self.rollout_config, self.tokenizer = config, SimpleNamespace(n=8), None

    monkeypatch.setattr(rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class, "__init__", verls)
    monkeypatch.setattr(rollouts, "agent_loop_prompt", lambda worker, cipo: cipo.prompt)

    def made(**options):
        return rollouts.CIPOAgentLoopWorker(OmegaConf.create({"algorithm": {"cipo": options}}))

    assert made(n_corrections=3)._n == 3 and made()._n == 8
    worker = made(verifier_retries=5, prompt={"attempt_view": "tail"})
    assert worker._cipo.verifier_retries == 5 and worker._prompt.attempt_view == "tail"


def test_the_correction_prompt_is_the_configured_one():
    cipo = CIPOConfig.from_mapping({"preset": "stream", "prompt": {"template": "code", "attempt_view": "whole"}})
    prompt = correction_prompt(cipo, Tokenizer(), prompt_length=10_000, count_tokens=lambda messages: 1)
    (message,), why = prompt.build([{"role": "user", "content": "Q?"}], "<think>so</think>4")
    assert why is None
    assert "one fenced code block" in message["content"] and "<think>so</think>4" in message["content"]


@pytest.mark.parametrize("threshold", [1.0, {"other": 0.0, "default": 1.0}, {"toy": 1.0, "default": 0.0}])
def test_correct_threshold_decides_where_the_verifier_gives_no_acc(world, threshold):
    stats = roll(world, correct_threshold=threshold, columns={"data_source": "toy"})
    assert stats["anchors/correct"] == 0 and stats["anchors/failed"] == 1, "a score of 1 is not above 1"


def test_prompt_options_reach_the_correction(world):
    roll(world, prompt={"template": "code"})
    prompt = next(entry[2] for entry in world if entry[0] == "row" and "_c" in entry[1])
    assert "one fenced code block" in prompt[-1]["content"]


def test_failing_corrections_cost_no_base_row_and_are_counted(world):
    stats = roll(world, prompts=2, broken="_c")
    assert len(rows(world)) == 2 * N
    assert stats["corrections/failed_sessions"] == 2 * N
    assert ("status", "p0", "finished") in world and ("status", "p1", "finished") in world


def test_a_failing_prompt_does_not_hold_the_others_up(world):
    stats = roll(world, prompts=2, broken="p1", schedule="barrier")
    assert ("status", "p1", "failure") in world
    assert ("status", "p0", "finished") in world
    assert stats["anchors/total"] == 2, "the budget of the failed prompt goes to the other one"


def test_a_lost_coordinator_costs_no_base_row(world, monkeypatch, caplog):
    async def gone(*_, **__):
        raise ConnectionError("the coordinator died")

    monkeypatch.setattr(AnchorCoordinator, "add", gone)
    roll(world)
    assert len(rows(world)) == N
    assert ("status", "p0", "finished") in world
    assert "corrections of prompt p0 were lost" in caplog.text


def test_prompt_that_does_not_fit_is_counted(world):
    stats = roll(world, prompt_length=40)
    assert len(rows(world)) == N
    assert stats["anchors/skipped/too_long"] == N, "none of the attempts could be an anchor"
    assert stats["anchors/total"] == 0


def test_validation_corrections_are_recorded_and_stay_out_of_verls_rows(world):
    records, counts = roll(world, prompts=2, validate=True, val_corrections=2)
    assert rows(world) == ["p0_0", "p1_0"]
    assert [(record["uid"], record["anchor_correct"]) for record in records] == [("p0", True), ("p1", True)]
    assert [[turn["correct"] for turn in record["corrections"]] for record in records] == [[True, False]] * 2
    assert counts["corrections/failed_sessions"] == 0
    metrics = second_turn_metrics(records, counts)
    assert metrics["cipo/val/accuracy_turn1"] == 1.0
    assert metrics["cipo/val/accuracy_turn2"] == metrics["cipo/val/c2c"] == 0.5
    assert metrics["cipo/val/rows"] == 4


def test_validation_attempt_without_a_second_turn_keeps_its_verdict(world):
    records, counts = roll(world, prompts=2, validate=True, prompt_length=40)
    metrics = second_turn_metrics(records, counts)
    assert metrics["cipo/val/skipped"] == 2
    assert metrics["cipo/val/accuracy_turn1"] == metrics["cipo/val/accuracy_turn2"] == 1.0
    assert "cipo/val/c2c" not in metrics


def test_a_prompt_without_sessions_does_not_hold_the_others_up(world):
    stats = roll(world, prompts=2, schedule="barrier", n_of={0: 0})
    assert ("status", "p1", "finished") in world
    assert stats["anchors/total"] == 2


def test_a_session_that_returns_nothing_is_counted(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        if "_c" not in kwargs["uid"] or kwargs["session_id"] > 0:
            await whole(self, *args, **kwargs)

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    assert roll(world)["corrections/failed_sessions"] == 1


# ---- schedule=replay


def old_group(uid: str, outcomes: str) -> Group:
    return Group(uid, tuple(Attempt(uid, "old", i, o == "c", float(o == "c")) for i, o in enumerate(outcomes)))


def test_replayed_corrections_start_before_the_attempts_have_ended(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        if "_c" not in kwargs["uid"]:
            await asyncio.sleep(0.2)
        await whole(self, *args, **kwargs)

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    stats = roll(world, prompts=2, schedule="replay", pool=[old_group("a", "cw"), old_group("b", "cw")])
    assert stats["anchors/total"] == 2
    assert sum("_c" in name for name in rows(world)) == 2 * N
    assert all("_c" in name for name in rows(world)[: 2 * N]), "corrections waited for the attempts"
    for i in range(2):
        end = world.index(("status", f"p{i}", "finished"))
        assert all(position < end for position, entry in enumerate(world) if entry[1].startswith(f"p{i}_"))


def test_a_replayed_correction_asks_about_its_own_prompt_and_has_the_step_of_its_host(world):
    roll(world, schedule="replay", pool=[old_group("a", "w")])
    kwargs = next(entry[3] for entry in world if entry[0] == "session" and "_c" in entry[1])
    assert kwargs["uid"] == "p0_c0"
    assert kwargs["index"] == "old"
    assert kwargs["global_steps"] == 1
    assert "a?" in kwargs["raw_prompt"][-1]["content"] and "try 0" in kwargs["raw_prompt"][-1]["content"]
    mark = next(entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" in entry[1])
    assert mark["anchor_correct"] is False


def test_a_correction_is_marked_with_what_its_prompt_had(world):
    """Scores 1, 0, 1, 0: mean and spread are both a half."""
    roll(world, replay_fraction=4.0)
    had = {"prompt_right": 2, "prompt_attempts": 4, "prompt_score": 0.5, "prompt_spread": 0.5}
    marks = [(name, mark["cipo"]) for kind, name, *_, mark in world if kind == "row"]
    assert all(had.items() <= mark.items() for name, mark in marks if "_c" in name)
    assert not any(had.keys() & mark.keys() for name, mark in marks if "_c" not in name)


def test_a_replayed_correction_is_marked_with_what_its_own_prompt_had(world):
    roll(world, schedule="replay", pool=[old_group("a", "wwcw")])
    mark = next(entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" in entry[1])
    assert (mark["prompt_right"], mark["prompt_attempts"], mark["prompt_score"]) == (1, 4, 0.25)
    assert mark["prompt_spread"] == pytest.approx(3**0.5 / 4)


@pytest.mark.parametrize(
    ("knobs", "noted"),
    [
        ({"transfer": {"kind": "inject"}}, True),
        ({"transfer": {"kind": "inject", "coef": 0}}, False),
        ({}, False),
    ],
)
def test_a_replayed_correction_carries_the_plain_question_where_transfer_is_on(world, knobs, noted):
    """The corrections of a right anchor are not transferred."""
    roll(world, prompts=2, schedule="replay", pool=[old_group("a", "wc")], replay_fraction=1.0, **knobs)
    marks = [entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" in entry[1]]
    assert {mark["anchor_correct"] for mark in marks} == {True, False}
    for mark in marks:
        carried = noted and not mark["anchor_correct"]
        assert mark.get("question") == ([{"role": "user", "content": "a?"}] if carried else None)


def test_without_replay_the_plain_question_is_in_the_batch(world):
    roll(world, replay_fraction=4.0, transfer={"kind": "inject"})
    assert not any("question" in entry[3]["cipo"] for entry in world if entry[0] == "row")


def test_of_a_question_with_an_image_the_rest_is_carried():
    worker = Worker(
        CIPOConfig.from_mapping({"preset": "stream", "schedule": "replay", "transfer": {"kind": "inject"}}), []
    )
    text, image, nothing = ({"role": "user", "content": what} for what in ("Q?", [{"type": "image"}], None))
    shown = {**image, "content": [{"type": "image", "image": "a.png"}]}
    for chat, carried in (([shown, text], [image, text]), ([text], [text]), ([text, nothing], None)):
        anchor = rollouts.Anchor(0, "try", False, {"raw_prompt": chat}, [], None)
        assert worker._question(anchor) == carried


def test_corrections_of_an_older_pool_are_rolled_out_and_know_nothing_of_their_prompt(world, monkeypatch):
    """cipo_pool.pt of a version whose candidates have no outcome."""
    whole = AnchorCoordinator.hosted

    async def hosted(self, batch_id, uid):
        found = await whole(self, batch_id, uid)
        for candidate in found.anchors:
            del candidate.__dict__["outcome"]
        return pickle.loads(pickle.dumps(found))

    monkeypatch.setattr(AnchorCoordinator, "hosted", hosted)
    roll(world, schedule="replay", pool=[old_group("a", "w")], transfer={"kind": "inject"})
    marks = [entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" in entry[1]]
    assert len(marks) == N and all(mark["question"] and "prompt_attempts" not in mark for mark in marks)


def test_replay_without_a_step_before_rolls_the_attempts_out(world):
    stats = roll(world, prompts=2, schedule="replay")
    assert stats["anchors/total"] == 0
    assert len(rows(world)) == 2 * N


def test_the_attempts_are_left_to_the_next_step_with_their_prompt(world):
    cipo = CIPOConfig.from_mapping({"preset": "stream", "schedule": "replay"})
    actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=1)

    async def run():
        await actor.open(0, uids=["p0"], rho=0.5, step=1)
        prompt = {"uid": "p0", "index": 7, "raw_prompt": [{"role": "user", "content": "Q?"}], "data_source": "d"}
        ticket = {"coordinator": Remote(actor), "batch": 0}
        await Worker(cipo, world)._run_prompt(
            {**prompt, "agent_name": "single_turn_agent", rollouts.TICKET: ticket},
            {},
            {"validate": False, "step": 1, "sample_index": 7, "rollout_n": 0},
        )
        await actor.open(1, uids=["q"], rho=0.0, step=2)
        return (await actor.hosted(1, "q")).anchors

    (candidate,) = asyncio.run(run())
    text, data, others = candidate.payload
    assert others == ((), (0,))
    assert text == "wrong" and candidate.attempt.index == 7
    assert data["raw_prompt"] == [{"role": "user", "content": "Q?"}] and data["data_source"] == "d"
    assert not {"uid", "session_id", "trace", rollouts.TICKET} & data.keys()


def test_source_paired_rolls_no_corrections_out(world):
    stats = roll(world, source="paired", aux={"coef": 0.1})
    assert len(rows(world)) == N
    assert stats["anchors/total"] == 0
    assert all("correct" in entry[3]["cipo"] for entry in world if entry[0] == "row")


# ---- faults


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(verifying, "FIRST_PAUSE_S", 0.0)


def test_a_verifier_that_fails_once_is_asked_again(world, monkeypatch, no_pause):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole, asked = base._compute_score, set()

    async def compute_score(self, outputs, kwargs):
        name = (kwargs["uid"], kwargs["session_id"])
        if name not in asked:
            asked.add(name)
            raise ConnectionError("the sandbox is away")
        await whole(self, outputs, kwargs)

    monkeypatch.setattr(base, "_compute_score", compute_score)
    stats = roll(world)
    assert len(rows(world)) == 2 * N
    assert stats["verifier/errors"] == 2 * N
    assert stats["verifier/given_up"] == stats["corrections/failed_sessions"] == 0


def test_an_infrastructure_error_is_never_a_score_of_0(world, monkeypatch, no_pause):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._compute_score

    async def compute_score(self, outputs, kwargs):
        if outputs[-1].reward_score is None:  # as verl does
            await whole(self, outputs, kwargs)
            if "_c" in kwargs["uid"]:
                outputs[-1].reward_score = 0.0
                outputs[-1].extra_fields["reward_extra_info"] = {"outcome": "infrastructure_error"}

    monkeypatch.setattr(base, "_compute_score", compute_score)
    stats = roll(world, verifier_retries=1)
    assert len(rows(world)) == N, "the attempts are there, the corrections without a verdict are not"
    assert ("status", "p0", "finished") in world
    assert stats["verifier/errors"] == 2 * N
    assert stats["verifier/given_up"] == stats["corrections/failed_sessions"] == N


def test_a_correction_that_takes_too_long_is_given_up(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        if "_c" in kwargs["uid"] and kwargs["session_id"] == 1:
            await asyncio.sleep(60)
        await whole(self, *args, **kwargs)

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    stats = roll(world, correction_timeout=0.2)
    assert len(rows(world)) == 2 * N - 1
    assert stats["corrections/timed_out"] == stats["corrections/failed_sessions"] == 1
    assert ("status", "p0", "finished") in world


def test_a_correction_whose_row_is_not_stored_counts_as_failed(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._agent_loop_postprocess

    async def postprocess(self, output, validate, **kwargs):
        if "_c" in kwargs["uid"] and kwargs["session_id"] == 1:
            await self._compute_score([output], kwargs)
            raise ConnectionError("the storage went away")
        await whole(self, output, validate, **kwargs)

    monkeypatch.setattr(base, "_agent_loop_postprocess", postprocess)
    stats = roll(world)
    assert len(rows(world)) == 2 * N - 1
    assert stats["corrections/failed_sessions"] == 1


# ---- full_determinism


def seeds_of(log) -> dict[str, int]:
    return {entry[1]: entry[2].get("seed") for entry in log if entry[0] == "session"}


def test_full_determinism_gives_every_session_a_seed_of_its_own(world):
    roll(world, prompts=2, replay_fraction=4.0, rollout={"full_determinism": True, "seed": 42})
    seeds = seeds_of(world)
    assert len(seeds) == 2 * N + 8 * N
    assert len(set(seeds.values())) == len(seeds)
    world.clear()
    roll(world, prompts=2, replay_fraction=4.0, rollout={"full_determinism": True, "seed": 42})
    assert seeds_of(world) == seeds
    world.clear()
    roll(world, prompts=2, rollout={"full_determinism": True, "seed": 43})
    assert seeds_of(world)["p0_0"] != seeds["p0_0"]


def test_without_it_the_sampling_parameters_are_verls(world):
    roll(world)
    assert set(seeds_of(world).values()) == {None}


def test_the_seed_is_named_as_the_engine_names_it(world):
    roll(world, rollout={"full_determinism": True, "seed": 42, "name": "sglang"})
    sampling = [entry[2] for entry in world if entry[0] == "session"]
    assert all("sampling_seed" in params and "seed" not in params for params in sampling)
    assert len({params["sampling_seed"] for params in sampling}) == 2 * N


# ---- an attempt that is lost


@pytest.fixture
def failing_verifier(world, monkeypatch, no_pause):
    """A set of sessions of which the verifier never gives a verdict."""
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole, away = base._compute_score, set()

    async def compute_score(self, outputs, kwargs):
        if f"{kwargs['uid']}_{kwargs['session_id']}" in away:
            raise ConnectionError("the sandbox is away")
        await whole(self, outputs, kwargs)

    monkeypatch.setattr(base, "_compute_score", compute_score)
    return away


def test_an_attempt_without_a_verdict_costs_its_own_row_alone(world, failing_verifier):
    """With the status failure verl's asynchronous replay buffers would evict the whole group."""
    failing_verifier.add("p0_1")
    stats = roll(world, verifier_retries=1)
    assert ("status", "p0", "finished") in world and ("status", "p0", "failure") not in world
    assert sorted(name for name in rows(world) if "_c" not in name) == ["p0_0", "p0_2", "p0_3"]
    assert sum("_c" in name for name in rows(world)) == N, "its corrections are there"
    assert stats["attempts/failed_sessions"] == stats["verifier/given_up"] == 1


@pytest.mark.parametrize("schedule", ["streaming", "barrier", "replay"])
def test_a_prompt_without_any_row_is_a_failure(world, failing_verifier, schedule):
    failing_verifier.update(f"p0_{session}" for session in range(N))
    stats = roll(world, schedule=schedule, prompts=2)
    assert [entry for entry in world if entry[:2] == ("status", "p0")][-1][2] == "failure"
    assert [entry for entry in world if entry[:2] == ("status", "p1")][-1][2] == "finished"
    assert stats["attempts/failed_sessions"] == N


def test_a_prompt_that_returns_nothing_at_all_is_a_failure(world, monkeypatch):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class

    async def nothing(self, *args, **kwargs):
        await self._agent_loop_postprocess([], False, **{"uid": kwargs["uid"], "session_id": kwargs["session_id"]})

    async def store(self, output, validate, **kwargs):
        assert output == []

    monkeypatch.setattr(base, "_run_agent_loop", nothing)
    monkeypatch.setattr(base, "_agent_loop_postprocess", store)
    roll(world)
    assert world[-1] == ("status", "p0", "failure")


def test_corrections_that_are_stored_keep_their_prompt(world, failing_verifier):
    """Those of the step before need none of this prompt's attempts."""
    failing_verifier.update(f"p0_{session}" for session in range(N))
    roll(world, schedule="replay", pool=[old_group("a", "w")])
    assert len(rows(world)) == N and world[-1] == ("status", "p0", "finished")


def test_faults_in_a_validation_are_reported(world, failing_verifier):
    failing_verifier.add("p1_0")
    records, counts = roll(world, prompts=2, validate=True, verifier_retries=1)
    faults = {"cipo/val/failed_attempts": 1, "cipo/val/verifier_errors": 2, "cipo/val/verifier_given_up": 1}
    assert len(records) == 1 and faults.items() <= second_turn_metrics(records, counts).items()


def test_faults_in_a_validation_without_a_second_turn_are_among_those_of_the_step(world, failing_verifier):
    failing_verifier.add("p1_0")
    stats = roll(world, prompts=2, validate=True, val_corrections=0, verifier_retries=1, popped="pop_statistics")
    assert stats["attempts/failed_sessions"] == stats["verifier/given_up"] == 1 and stats["verifier/errors"] == 2


# ---- a prompt that hangs or cannot be stored


@pytest.mark.parametrize("schedule", ["streaming", "barrier", "replay"])
@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_prompt_whose_status_cannot_be_stored_holds_no_other_up(world, monkeypatch, schedule, status):
    whole, failed = agent_loop_tq.tq.async_kv_put, []

    async def kv_put(key, partition_id, tag):
        if key == "p0" and tag["status"] == status and not failed:
            failed.append(key)
            raise ConnectionError("the storage is away")
        await whole(key, partition_id, tag)

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", kv_put)
    stats = roll(world, prompts=2, schedule=schedule)
    assert failed and ("status", "p1", "finished") in world
    assert [entry for entry in world if entry[:2] == ("status", "p0")][-1][2] == "failure"
    assert stats["anchors/total"] == (0 if schedule == "replay" else 2)


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_an_attempt_that_hangs_holds_the_others_up_for_report_timeout(world, monkeypatch, caplog, schedule):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        while kwargs["uid"] == "p0" and kwargs["session_id"] == 1 and ("status", "p1", "finished") not in world:
            await asyncio.sleep(0.01)
        await whole(self, *args, **kwargs)

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    stats = roll(world, prompts=2, schedule=schedule, report_timeout=0.2)
    assert stats["anchors/total"] == 2 and stats["anchors/unreported"] == 1
    assert "1 of 2 prompts have not reported" in caplog.text and "p0" in caplog.text
    assert sum(name.startswith("p1_c") for name in rows(world)) == 2 * N
    # What hung is trained as it is when it comes.
    assert sum(name.startswith("p0") for name in rows(world)) == N
    assert [entry for entry in world if entry[:2] == ("status", "p0")][-1][2] == "finished"


# ---- attempts that cannot be corrected

NO_QUESTION = [{"role": "user", "content": []}]


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_anchors_are_drawn_of_what_can_be_corrected(world, schedule):
    stats = roll(world, prompts=3, schedule=schedule, chats={0: NO_QUESTION, 1: NO_QUESTION})
    assert stats["anchors/total"] == 3, "none is wasted"
    assert stats["anchors/skipped/no_text_question"] == 2 * N
    assert {name.split("_c")[0] for name in rows(world) if "_c" in name} == {"p2"}


def test_an_attempt_that_would_show_nothing_is_not_drawn(world):
    texts = {f"p0_{session}": "<think>so it is</think>" for session in (1, 3)}
    stats = roll(world, replay_fraction=4.0, texts=texts)
    assert stats["anchors/total"] == 2 and stats["anchors/correct"] == 2
    assert stats["anchors/skipped/empty_attempt"] == 2


def test_what_cannot_be_corrected_stays_out_of_the_pool(world):
    async def run():
        cipo = CIPOConfig.from_mapping({"preset": "stream", "schedule": "replay"})
        actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=2)
        await actor.open(0, uids=["p0", "p1"], rho=0.5, step=1)
        ticket = {"coordinator": Remote(actor), "batch": 0}
        for uid, chat in (("p0", NO_QUESTION), ("p1", [{"role": "user", "content": "Q?"}])):
            prompt = {"uid": uid, "index": 0, "raw_prompt": chat, "multi_modal_data": {"image": [uid]}}
            await Worker(cipo, world)._run_prompt(
                {**prompt, "agent_name": "single_turn_agent", rollouts.TICKET: ticket},
                {},
                {"validate": False, "step": 1, "sample_index": 0, "rollout_n": 0},
            )
        return await actor.pool_state()

    state = asyncio.run(run())
    assert {candidate.attempt.uid for candidate in state["filling"]} == {"p1"}
    assert "'image': ['p0']" not in str(state)


def test_a_chat_template_that_refuses_the_prompt_costs_no_row(world, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("Conversation roles must alternate")

    monkeypatch.setattr(CorrectionPrompt, "refusals", refuse)
    stats = roll(world, prompts=2, schedule="barrier")
    assert len(rows(world)) == 2 * N and stats["anchors/skipped/prompt_failed"] == 2 * N
    assert "Conversation roles must alternate" in caplog.text


# ---- texts


def test_texts_are_read_beside_the_event_loop_and_where_they_are_needed_alone(world, monkeypatch):
    threads = []
    whole = Tokenizer.decode

    def decode(self, ids, skip_special_tokens=True):
        threads.append(threading.current_thread() is threading.main_thread())
        return whole(self, ids)

    monkeypatch.setattr(Worker, "_compute_score", rollouts.CIPOAgentLoopWorker._compute_score)
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class

    async def score(self, outputs, kwargs):
        outputs[-1].reward_score = 1.0

    monkeypatch.setattr(base, "_compute_score", score)
    monkeypatch.setattr(Tokenizer, "decode", decode)
    roll(world)
    assert len(threads) == 2 * N and not any(threads), "every attempt and every correction once"
    threads.clear()
    roll(world, source="paired", aux={"coef": 0.1})
    roll(world, validate=True, val_corrections=0)
    assert threads == []


def test_the_coordinator_is_sent_references_and_the_host_fetches_the_texts(world, monkeypatch):
    monkeypatch.setattr(payloads.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(payloads.ray, "put", Held)
    sent = []
    whole = AnchorCoordinator.add

    async def add(self, batch, group, held):
        sent.append(held)
        await whole(self, batch, group, held)

    async def run():
        cipo = CIPOConfig.from_mapping({"preset": "stream", "schedule": "replay"})
        actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=1)
        for step in (1, 2):
            await actor.open(step, uids=[f"s{step}"], rho=0.5, step=step)
            prompt = {"uid": f"s{step}", "index": step, "raw_prompt": [{"role": "user", "content": f"Q{step}?"}]}
            ticket = {"coordinator": Remote(actor), "batch": step}
            await Worker(cipo, world)._run_prompt(
                {**prompt, "agent_name": "single_turn_agent", rollouts.TICKET: ticket},
                {},
                {"validate": False, "step": step, "sample_index": 0, "rollout_n": 0},
            )

    monkeypatch.setattr(AnchorCoordinator, "add", add)
    asyncio.run(run())
    assert all(isinstance(reference, Held) for held in sent for reference in held.values())
    assert [sorted(held) for held in sent] == [[0, 1, 2, 3]] * 2
    assert len({id(reference.value[1]) for reference in sent[0].values()}) == 1, "the prompt is held once"
    chat = next(entry[2] for entry in world if entry[0] == "row" and entry[1].startswith("s2_c"))
    assert "Q1?" in chat[-1]["content"]


def test_texts_that_are_lost_cost_the_corrections_alone(world, monkeypatch, caplog):
    async def lost(payload):
        raise payloads.ray.exceptions.ObjectLostError("00", "", "")

    monkeypatch.setattr(payloads, "fetch", lost)
    roll(world, schedule="replay", pool=[old_group("a", "w")])
    assert len(rows(world)) == N and ("status", "p0", "finished") in world
    assert "what prompt p0 hosts beside its attempts was lost" in caplog.text


def test_a_copy_is_told_by_what_was_shown(world):
    texts = {f"p0_{i}": f"<think>{i}</think>so 7" for i in range(N)}
    texts |= {f"p0_c{i}_{j}": f"<think>no, {j}</think>so {7 + j}" for i in range(N) for j in range(N)}
    roll(world, texts=texts)
    marks = {entry[1]: entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" in entry[1]}
    assert {name: mark.get("copied", False) for name, mark in marks.items()} == {
        name: name.endswith("_0") for name in marks
    }
    assert len(marks) == N


def test_a_copy_in_the_validation_is_told_likewise(world):
    texts = {"p0_0": "<think>a</think>so 7", "p0_c0_0": "<think>b</think>so 7", "p0_c0_1": "<think>a</think>so 8"}
    (record,), _ = roll(world, validate=True, val_corrections=2, texts=texts)
    assert [turn["copied"] for turn in record["corrections"]] == [True, False]


def test_an_agent_loop_that_ignores_raw_prompt_is_noticed(world, monkeypatch, caplog):
    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    whole = base._run_agent_loop

    async def run_agent_loop(self, *args, **kwargs):
        await whole(self, *args, **{**kwargs, "raw_prompt": [{"role": "user", "content": "its own question"}]})

    monkeypatch.setattr(base, "_run_agent_loop", run_agent_loop)
    stats = roll(world)
    assert stats["corrections/not_asked"] == N and "ignores raw_prompt" in caplog.text


def test_prompts_of_one_index_are_told_apart_by_what_they_ask(world):
    """The mark of a row and the report to the coordinator have it."""
    roll(world, prompts=2)
    marks = {entry[1]: entry[3]["cipo"] for entry in world if entry[0] == "row" and "_c" not in entry[1]}
    assert len({mark["origin"] for mark in marks.values()}) == 2
    assert (
        marks["p0_0"]["origin"]
        == marks["p0_3"]["origin"]
        == origin(None, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q0?"}])
    )
