"""Correction rollouts of the V0 trainer: what the manager dispatches and keeps, and what a failure in a worker costs.

verl's rollout is replaced; tests/real/test_v0.py has the whole path.
"""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, _InternalAgentLoopOutput

from tests.fast.integration.scored_batch import R, decode, encode, scored
from verl_cipo.core.anchors import Outcome
from verl_cipo.core.config import AuxConfig, CIPOConfig, NudgeConfig
from verl_cipo.core.draws import origin
from verl_cipo.core.nudge import drawn_contexts
from verl_cipo.core.prompts import CorrectionPrompt, Excerpt, Request
from verl_cipo.core.rows import PLAIN
from verl_cipo.core.steering.budget import KINDS, PROBE
from verl_cipo.integration.contexts import Contexts, SessionRequest
from verl_cipo.integration.rollout.groups import NoRowsError
from verl_cipo.integration.rollout.reports import COUNTED, Reports
from verl_cipo.integration.rollout.second_verifier import SecondVerifier
from verl_cipo.integration.rollout.slots import Slots
from verl_cipo.integration.v0 import rollout as legacy_rollouts
from verl_cipo.integration.v0.material import Material, Response
from verl_cipo.integration.v0.rollout import CIPOAgentLoopManagerV0
from verl_cipo.integration.v0.rows import NOTED, objects, response_ids, without_lost
from verl_cipo.integration.v0.second_dispatch import ANCHOR, FURTHER
from verl_cipo.integration.v0.worker import CIPOAgentLoopWorkerV0

# ---- the manager


class Worker:
    """A rollout worker without Ray: notes what it was sent; corrections whose uid is in ``lost`` fail."""

    def __init__(self, lost=(), too_long=()):
        self.requests: list[DataProto] = []
        self.asked: list[tuple[bool, Material]] = []
        self.lost, self.too_long = lost, too_long
        self.counts = Counter()
        for name in ("draw_contexts", "build_prompts", "generate_sequences", "pop_counts"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _build_prompts(self, anchors, *, n, step, validate):
        assert step == 3
        self.asked += [(validate, anchor) for anchor in anchors]
        built = []
        for asked in anchors:
            question, text = asked.prompt["raw_prompt"][0]["content"], decode(asked.anchor.ids)
            chat = [{"role": "user", "content": f"{question} fix {text}"}]
            request = SessionRequest(Request(chat, (Excerpt(text, False),)))
            built.append(([], "too_long") if question in self.too_long else ([request] * n, None))
        return built

    def _draw_contexts(self, prompts, *, n, step):
        """Prompts with an even index have one for their sessions 0 and 2."""
        assert step == 3 and n == 4 and all(prompt["hints"] == ["hint"] for prompt in prompts)
        drawn = []
        for prompt in prompts:
            plain = prompt["raw_prompt"]
            nudged = [{"role": "user", "content": f"{plain[0]['content']} hint"}]
            drawn.append(Contexts(plain, {0: 0, 2: 0}, {0: nudged}) if prompt["index"] % 2 == 0 else Contexts())
        return drawn

    def _generate_sequences(self, request):
        self.requests.append(request)
        kept = [i for i, uid in enumerate(request.non_tensor_batch["uid"]) if uid not in self.lost]
        if not kept:
            return DataProto()
        out = scored(["+" * len(kept)], seed=len(self.requests), extra=False)
        for key in ("uid", "session_id", "index", "raw_prompt"):
            out.non_tensor_batch[key] = request.non_tensor_batch[key][kept]
        anchors = request.non_tensor_batch[ANCHOR][kept]
        out.non_tensor_batch["cipo"] = objects(
            [
                {"correct": True, "further": True}
                if a == FURTHER
                else {"correct": True, "anchor_correct": a["correct"], "copied": False, "text": "t", "score": 1.0}
                for a in anchors
            ]
        )
        out.meta_info = {"metrics": [{}], "reward_extra_keys": []}
        return out

    def _pop_counts(self):
        counts, self.counts = self.counts, Counter()
        return counts


def manager(monkeypatch, outcomes, workers, *, rho=0.5, n=4, val_n=1, **knobs):
    """A manager whose attempts come out as ``outcomes`` says, and the batch that the trainer asks it for."""
    rolled = scored(outcomes, extra=False)
    for i, mark in enumerate(rolled.non_tensor_batch["cipo"]):
        mark |= {"text": decode(response_ids(rolled, i)), "score": 0.0}
    made = object.__new__(CIPOAgentLoopManagerV0)
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": n, "val_kwargs": {"n": val_n}}}})
    made._cipo, made.rho, made.agent_loop_workers = (
        CIPOConfig(preset="stream", schedule="barrier", **knobs),
        rho,
        workers,
    )
    made._second, made._reports, made.shares = [], Reports(), None
    made._slots = Slots(made._cipo, made._reports)
    monkeypatch.setattr(legacy_rollouts.ray, "get", lambda values: values)
    monkeypatch.setattr(AgentLoopManager, "generate_sequences", lambda self, prompts: rolled)
    columns = {key: rolled.non_tensor_batch[key] for key in ("uid", "index", "raw_prompt", "data_source")}
    columns["reward_model"] = objects([{"ground_truth": "5"}] * len(rolled))
    prompts = DataProto(non_tensor_batch=columns, meta_info={"global_steps": 3})
    return made, prompts, rolled


OUTCOMES = ["-+--", "++--", "----", "+---"]
HAD = [Outcome(1, 4, 0.25, 0.1875**0.5), Outcome(2, 4, 0.5, 0.5), Outcome(0, 4, 0.0, 0.0)]
HAD.append(HAD[0])


def test_every_anchor_gets_n_corrections_of_its_own_prompt(monkeypatch):
    workers = [Worker(), Worker(), Worker()]
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, workers, n_corrections=2)
    out = made.generate_sequences(prompts)
    assert out is rolled and len(out) == 16, "the trainer takes the attempts alone"
    assert prompts.non_tensor_batch["session_id"].tolist() == [0, 1, 2, 3] * 4
    sent = DataProto.concat([request for worker in workers for request in worker.requests])
    fields = sent.non_tensor_batch
    groups = Counter(fields["uid"].tolist())
    assert len(groups) == 4 and set(groups.values()) == {2}, "replay_fraction=1: an anchor a prompt"
    assert fields["session_id"].tolist() == [0, 1] * 4
    assert list(groups) == sorted(groups), "in the order of their attempts"
    for uid, chat, anchor, index in zip(
        fields["uid"], fields["raw_prompt"], fields[ANCHOR], fields["index"], strict=True
    ):
        prompt, session = uid.split("_c")
        row = int(prompt[1:]) * 4 + int(session)
        text = decode(response_ids(rolled, row))
        assert chat[0]["content"] == f"Q{index} fix {text}" and index == int(prompt[1:])
        assert anchor == {
            "correct": bool(rolled.non_tensor_batch["cipo"][row]["correct"]),
            "shown": (Excerpt(text, cut=False),),
            "prompt_ids": encode(f"Q{index}>"),
            "outcome": HAD[index],
            "context": None,
        }
    assert fields["priority"].tolist() == list(range(8))
    (kept,) = made.pop_second_dispatch()
    assert sorted(kept.non_tensor_batch["uid"]) == sorted(fields["uid"]) and made.pop_second_dispatch() == []
    stats = made.pop_statistics()
    # rho .5 of 4 anchors, right ones from three prompts that have them.
    assert (stats["anchors/total"], stats["anchors/correct"], stats["anchors/failed"]) == (4, 2, 2)
    assert stats["corrections/failed_sessions"] == 0
    assert made.pop_statistics()["anchors/total"] == 0


def test_the_draw_is_that_of_the_v1_trainers(monkeypatch):
    """Hashes of seed, step, index and session: the same attempts give the same anchors."""
    from verl_cipo.core.anchors import select_anchors
    from verl_cipo.integration.v0.rows import row_table

    worker = Worker()
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, [worker], replay_fraction=2.0, seed=9)
    made.generate_sequences(prompts)
    expected = select_anchors(
        row_table(rolled).attempts()[0], budget=8, rho=0.5, delta_low=0.375, delta_high=0.75, seed=9, step=3
    )
    found = set(worker.requests[0].non_tensor_batch["uid"])
    assert found == {f"{attempt.uid}_c{attempt.session}" for attempt in expected} and len(found) == 8


def test_slots_become_further_attempts_as_with_the_v1_trainers(monkeypatch):
    """The coordinator of the V1 trainers, told the same groups, corrects the same attempts."""
    from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
    from verl_cipo.integration.v0.rows import row_table

    shares = {"none": 0.5, "some": 0.3, "right": 0.6}
    sender = Worker()
    made, prompts, rolled = manager(
        monkeypatch, OUTCOMES, [sender], replay_fraction=2.0, n_corrections=2, budget="auto"
    )
    made.shares = shares
    groups = row_table(rolled).attempts()[0]

    async def v1():
        actor = AnchorCoordinator(made._cipo.to_mapping(), train_batch_size=4)
        await actor.open(0, uids=[group.uid for group in groups], rho=0.5, step=3, shares=shares)
        told = {group.uid: ([], (await actor.hosted(0, group.uid)).further) for group in groups}
        for group in groups:
            await actor.add(0, group, {})
        for group in groups:
            while (order := await actor.next(0, group.uid)) is not None:
                told[group.uid] = (told[group.uid][0] + order.anchors, told[group.uid][1] + order.further)
        return told, await actor.pop_statistics(), await actor.pool_state()

    told, counted, state = asyncio.run(v1())
    made.generate_sequences(prompts)
    fields = DataProto.concat(sender.requests).non_tensor_batch
    further = fields[ANCHOR] == FURTHER
    corrected = Counter(fields["uid"][~further].tolist())
    assert corrected == {f"{uid}_c{session}": 2 for uid, (sessions, _) in told.items() for session in sessions}
    assert Counter(fields["uid"][further].tolist()) == {uid: 2 * slots for uid, (_, slots) in told.items() if slots}
    for uid, (_, slots) in told.items():
        own = further & (fields["uid"] == uid)
        assert fields["session_id"][own].tolist() == list(range(4, 4 + 2 * slots))
        assert all(chat == [{"role": "user", "content": f"Q{uid[1:]}"}] for chat in fields["raw_prompt"][own])
    assert len(fields["uid"]) == 16 and 0 < further.sum() < 16
    counts = made.pop_statistics()
    names = [name for name in counted if name.startswith(("budget/", "anchors/"))]
    assert {name: counts[name] for name in names} == {name: counted[name] for name in names}
    assert counts["corrections/failed_sessions"] == 0
    assert made.pool_state() == {"budget": state["budget"]} and any(state["budget"].values())
    other, *_ = manager(monkeypatch, OUTCOMES, [], budget="auto")
    other.restore_pool(made.pool_state())
    assert other.pool_state() == made.pool_state()
    assert manager(monkeypatch, OUTCOMES, [])[0].pool_state() is None


def test_without_shares_the_budget_stays(monkeypatch):
    sender = Worker()
    made, prompts, _ = manager(monkeypatch, OUTCOMES, [sender])
    made.generate_sequences(prompts)
    assert FURTHER not in sender.requests[0].non_tensor_batch[ANCHOR].tolist()
    assert not any(name.startswith("budget/") for name in made.pop_statistics())


def test_a_second_dispatch_may_hold_further_attempts_alone(monkeypatch):
    made, prompts, _ = manager(monkeypatch, ["----"], [Worker()], rho=0.0, budget="auto")
    made.shares = dict.fromkeys(KINDS, 0.125)
    made.generate_sequences(prompts)
    (second,) = made.pop_second_dispatch()
    assert second.non_tensor_batch["session_id"].tolist() == [4, 5, 6, 7]
    assert made.pop_statistics()["corrections/failed_sessions"] == 0


def test_further_attempts_start_with_the_attempts(monkeypatch):
    """Eight slots, two of which are to be corrections."""
    workers = [Worker(), Worker()]
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, workers, budget="auto", n_corrections=2, replay_fraction=2.0)
    made.shares = dict.fromkeys(KINDS, 0.125) | {"right": 0.25}
    sent = []

    def attempts(self, prompts):
        sent.extend(request for worker in workers for request in worker.requests)
        return rolled

    monkeypatch.setattr(AgentLoopManager, "generate_sequences", attempts)
    assert made.generate_sequences(prompts) is rolled
    first = DataProto.concat(sent).non_tensor_batch
    assert set(first[ANCHOR]) == {FURTHER}
    # Six slots in the order of the prompts, and after the attempts in the engine's queue.
    places = [(uid, session) for uid in ("u0", "u1") for session in (4, 5, 6, 7)]
    places += [(uid, session) for uid in ("u2", "u3") for session in (4, 5)]
    assert sorted(zip(first["uid"], first["session_id"], strict=True)) == places
    assert first["priority"].tolist() == list(range(16, 28))
    second = DataProto.concat(made.pop_second_dispatch()).non_tensor_batch
    assert len(second["uid"]) == 16, "eight slots of two"
    keys = [*zip(second["uid"], second["session_id"], strict=True)]
    assert len({*keys}) == 16 and {*places} < {*keys}
    assert made.pop_statistics()["corrections/failed_sessions"] == 0


@pytest.mark.parametrize("broken", ["build_prompts", "what has begun"])
def test_an_error_costs_either_the_corrections_or_what_has_begun(monkeypatch, caplog, broken):
    """Eight slots of two sessions: six begin, two are to be corrections."""
    worker = Worker()
    made, prompts, rolled = manager(
        monkeypatch, OUTCOMES, [worker], budget="auto", n_corrections=2, replay_fraction=2.0
    )
    made.shares = {"none": 1.0, "some": 1.0, "right": 0.25}
    if broken == "build_prompts":

        def fail(*_, **__):
            raise KeyError("a field that only some rows have")

        worker.build_prompts = SimpleNamespace(remote=fail)
    else:
        rolled_out = made._rolled
        parts = iter([rolled_out, lambda _: 1 / 0])  # corrections come first
        monkeypatch.setattr(made, "_rolled", lambda rolling: next(parts)(rolling), raising=False)
    assert made.generate_sequences(prompts) is rolled
    (kept,) = made.pop_second_dispatch()
    further = (kept.non_tensor_batch["session_id"] >= 4).tolist()
    counts = made.pop_statistics()
    if broken == "build_prompts":
        assert further == [True] * 12 and "the corrections of 2 attempts were lost" in caplog.text
        assert (counts["corrections/failed_sessions"], counts["attempts/failed_sessions"]) == (4, 0)
    else:
        assert further == [False] * 4 and "12 further attempts were lost" in caplog.text
        assert (counts["corrections/failed_sessions"], counts["attempts/failed_sessions"]) == (0, 12)


def test_what_fails_or_fits_no_prompt_is_counted_and_costs_nothing_else(monkeypatch):
    worker = Worker(too_long=("Q0",))
    made, prompts, _ = manager(monkeypatch, OUTCOMES, [worker], replay_fraction=4.0)
    made.generate_sequences(prompts)
    lost = worker.requests[0].non_tensor_batch["uid"][0]
    worker.lost = (lost,)
    worker.counts = Counter({"verifier/errors": 2})
    made.pop_statistics()
    made.generate_sequences(prompts)
    stats = made.pop_statistics()
    assert stats["anchors/total"] == 16 and stats["anchors/skipped/too_long"] == 4
    assert stats["corrections/failed_sessions"] == 4 and stats["verifier/errors"] == 2
    assert lost not in made.pop_second_dispatch()[0].non_tensor_batch["uid"]


@pytest.mark.parametrize("broken", ["build_prompts", "generate_sequences"])
def test_an_error_beside_the_sessions_costs_the_corrections_and_no_attempt(monkeypatch, caplog, broken):
    worker = Worker()
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, [worker], n_corrections=2)

    def fail(*_, **__):
        raise KeyError("a field that only some rows have")

    setattr(worker, broken, SimpleNamespace(remote=fail))
    assert made.generate_sequences(prompts) is rolled
    assert made.pop_second_dispatch() == []
    assert made.pop_statistics()["corrections/failed_sessions"] == 8
    assert "the corrections of 4 attempts were lost" in caplog.text and "a field that only some rows" in caplog.text


def test_no_anchor_or_no_correction_is_no_corrections(monkeypatch):
    made, prompts, _ = manager(monkeypatch, OUTCOMES, [Worker()], replay_fraction=0)
    made.generate_sequences(prompts)
    assert made.pop_second_dispatch() == []
    made, prompts, _ = manager(monkeypatch, ["-+"], [Worker(lost=("u0_c0", "u0_c1"))], replay_fraction=2.0)
    made.generate_sequences(prompts)
    assert made.pop_second_dispatch() == [] and made.pop_statistics()["corrections/failed_sessions"] == 8
    made, prompts, _ = manager(monkeypatch, ["-+"], [Worker(too_long=("Q0",))], replay_fraction=2.0)
    made.generate_sequences(prompts)
    assert made.pop_second_dispatch() == []


def test_a_validation_corrects_every_attempt_once_and_keeps_no_rows(monkeypatch):
    worker = Worker(lost=("u1_c0",))
    # verl has filled the batch up with a second row of the first prompt, which validates one attempt.
    made, prompts, _ = manager(monkeypatch, ["-+", "-", "+"], [worker], val_corrections=2)
    prompts.meta_info["validate"] = True
    made.generate_sequences(prompts)
    assert made.pop_second_dispatch() == [] and made.pop_statistics() == {name: 0.0 for name in COUNTED}
    records, counts = made.pop_validation()
    assert [(record["uid"], record["anchor_correct"], len(record["corrections"])) for record in records] == [
        ("u0", False, 2),
        ("u1", False, 0),
        ("u2", True, 2),
    ]
    turn = {"correction": "t", "correct": True, "score": 1.0, "copied": False, "second": None}
    assert records[0]["corrections"][0] == turn
    assert records[0]["question"] == "Q0" and records[0]["gts"] == "5" and records[0]["data_source"] == "toy"
    assert counts == {"corrections/failed_sessions": 2}
    assert made.pop_validation() == ([], {})


# ---- the worker


def worker(monkeypatch, run, *, deterministic=False, **knobs):
    """A worker whose agent loop is ``run(sampling_params, **kwargs)``."""
    made = object.__new__(CIPOAgentLoopWorkerV0)
    rollout = {"full_determinism": deterministic, "seed": 5}
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})
    made._cipo, made._counts = CIPOConfig(preset="stream", **knobs), Counter()
    made.tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: decode(ids))
    made._second = SecondVerifier.of(made._cipo, made.tokenizer)
    made._prompt = CorrectionPrompt(
        made._cipo.prompt,
        prompt_length=1000,
        count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
        encode=encode,
        decode=decode,
    )

    async def agent_loop(self, sampling_params, trajectory, **kwargs):
        return await run(sampling_params, **kwargs)

    monkeypatch.setattr(AgentLoopWorker, "_run_agent_loop", agent_loop)
    return made


def padded(text, score, asked=(0, 9)):
    ids = encode(text)
    return SimpleNamespace(
        prompt_ids=torch.tensor([asked]),
        response_ids=torch.tensor([ids + [0] * (R - len(ids))]),
        attention_mask=torch.tensor([[0, 1] + [1] * len(ids) + [0] * (R - len(ids))]),
        reward_score=score,
        extra_fields={"reward_extra_info": {}},
    )


def internal(text, score):
    """What verl's worker makes of an agent loop's output."""
    made = padded(text, score)
    return _InternalAgentLoopOutput(
        prompt_ids=made.prompt_ids,
        response_ids=made.response_ids,
        input_ids=torch.cat([made.prompt_ids, made.response_ids], dim=1),
        position_ids=torch.zeros_like(made.attention_mask),
        response_mask=made.attention_mask[:, 2:],
        attention_mask=made.attention_mask,
        multi_modal_inputs={},
        num_turns=2,
        metrics=AgentLoopMetrics(),
        reward_score=score,
        extra_fields={"reward_extra_info": {"acc": True, "score": score, "pred": text}},
    )


def session(made, uid, number=0, anchor=None, validate=False, **columns):
    kwargs = {"uid": uid, "session_id": number, "index": 8, "agent_name": "single", "raw_prompt": CHAT, **columns}
    if anchor is not None:
        kwargs[ANCHOR] = anchor
    trajectory = {"step": 3, "validate": validate}
    return asyncio.run(made._run_agent_loop({"temperature": 1.0}, trajectory, **kwargs))


CHAT = [{"role": "user", "content": "Q"}]
SHOWN = {"shown": (Excerpt("ab", cut=False),), "context": None}
ANCHORED = {"correct": True, "prompt_ids": [7], "outcome": HAD[0], **SHOWN}


def test_a_row_is_marked_and_the_agent_loop_is_shown_nothing_of_it(monkeypatch):
    seen = []

    async def run(sampling_params, **kwargs):
        seen.append((sampling_params, kwargs))
        return padded("ab", 1.0)

    made = worker(monkeypatch, run)
    attempt = session(made, "u", 2)
    assert attempt.extra_fields["cipo"] == {"correct": True, "origin": origin(None, CHAT)}
    assert {key: attempt.extra_fields[key] for key in ("uid", "session_id", "index")} == {
        "uid": "u",
        "session_id": 2,
        "index": 8,
    }
    correction = session(made, "u_c2", 1, ANCHORED)
    mark = {"correct": True, "anchor": 2, "anchor_correct": True, "copied": True, **HAD[0]._asdict()}
    assert correction.extra_fields["cipo"] == mark
    assert session(made, "u_c2", 1, ANCHORED, validate=True).extra_fields["cipo"] == {
        **mark,
        "text": "ab",
        "score": 1.0,
    }
    for sampling_params, kwargs in seen:
        assert set(kwargs) == {"uid", "index", "agent_name", "raw_prompt"} and sampling_params == {"temperature": 1.0}


def test_sessions_have_seeds_of_their_own_the_v1_trainers_too(monkeypatch):
    from verl_cipo.core.draws import session_seed

    seeds = []

    async def run(sampling_params, **kwargs):
        seeds.append(sampling_params["seed"])
        return padded("ab", 1.0)

    made = worker(monkeypatch, run, deterministic=True)
    session(made, "u", 0), session(made, "u", 1), session(made, "u_c1", 0, ANCHORED)
    shared = {"step": 3, "validate": False, "index": 8}
    assert seeds == [
        session_seed(5, **shared, anchor=None, session=0),
        session_seed(5, **shared, anchor=None, session=1),
        session_seed(5, **shared, anchor=1, session=0),
    ]


def test_a_further_attempt_is_marked_as_one_and_costs_its_own_row(monkeypatch):
    seen = []

    async def run(sampling_params, **kwargs):
        seen.append((sampling_params["seed"], kwargs["uid"]))
        if len(seen) == 2:
            raise OSError("the sandbox is away")
        return padded("ab", 1.0)

    made = worker(monkeypatch, run, deterministic=True)
    attempt = session(made, "u", 4, FURTHER)
    assert attempt.extra_fields["cipo"] == {"correct": True, "origin": origin(None, CHAT), "further": True}
    assert attempt.extra_fields["uid"] == "u" and attempt.extra_fields["session_id"] == 4
    assert session(made, "u", 5, FURTHER) is None
    assert asyncio.run(made.pop_counts()) == {"attempts/failed_sessions": 1}
    assert len(set(seen)) == 2, "a seed of its own"


def test_a_further_attempt_that_hangs_is_given_up(monkeypatch):
    async def run(sampling_params, **kwargs):
        await asyncio.sleep(60)

    made = worker(monkeypatch, run, correction_timeout=0.05)
    assert session(made, "u", 4, FURTHER) is None
    assert asyncio.run(made.pop_counts()) == {"attempts/failed_sessions": 1}


def test_a_session_that_fails_costs_its_own_row(monkeypatch):
    async def run(sampling_params, **kwargs):
        if kwargs["uid"] == "u":
            return internal("ab", 1.0)
        raise OSError("the sandbox is away")

    made = worker(monkeypatch, run)
    assert session(made, "u_c2", 1, ANCHORED) is None
    kept, lost = session(made, "u", 0), session(made, "v", 1)
    assert asyncio.run(made.pop_counts()) == {"attempts/failed_sessions": 1}
    made.reward_loop_worker_handles, made.tokenizer = (), SimpleNamespace(pad_token_id=0)
    batch = made._postprocess([kept, None, lost], validate=False)
    # verl asked for two attempts, takes two rows, and knows the second as that of its prompt.
    assert batch.non_tensor_batch["uid"].tolist() == ["u", "v"] and batch.non_tensor_batch["acc"].tolist() == [
        True,
        False,
    ]
    assert batch.batch["response_mask"].sum(dim=-1).tolist() == [2, 0] and response_ids(batch, 1) == []
    assert batch.batch["rm_scores"].sum(dim=-1).tolist() == [1, 0]
    assert without_lost(batch).non_tensor_batch["uid"].tolist() == ["u"]


@pytest.mark.parametrize(("threshold", "right"), [(0.5, True), ({"toy": 0.9, "default": 0.1}, False)])
def test_the_threshold_is_that_of_the_data_source(monkeypatch, threshold, right):
    async def run(sampling_params, **kwargs):
        return padded("ab", 0.7)

    made = worker(monkeypatch, run, correct_threshold=threshold)
    for output in (session(made, "u", 0, data_source="toy"), session(made, "u_c2", 1, ANCHORED, data_source="toy")):
        assert output.extra_fields["cipo"]["correct"] is right


def test_a_worker_that_lost_all_attempts_ends_the_run(monkeypatch):
    async def run(sampling_params, **kwargs):
        raise OSError("the sandbox is away")

    made = worker(monkeypatch, run)
    made.tokenizer = SimpleNamespace(pad_token_id=0)
    with pytest.raises(NoRowsError, match="all 2 attempts"):
        made._postprocess([session(made, "u", 0), session(made, "u", 1)], validate=False)


def test_a_lost_attempt_becomes_no_anchor_and_has_no_second_turn(monkeypatch):
    sent = Worker()
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, [sent], rho=0.0)
    for mark in rolled.non_tensor_batch["cipo"][4:]:
        mark["lost"] = True
    assert len(made.generate_sequences(prompts)) == 16
    asked = made.pop_second_dispatch()[0].non_tensor_batch["uid"]
    assert {uid.split("_")[0] for uid in asked} == {"u0"} and len(asked) == 16
    prompts.meta_info["validate"] = True
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, [Worker()], val_n=4)
    rolled.non_tensor_batch["cipo"][0]["lost"] = True
    prompts.meta_info["validate"] = True
    made.generate_sequences(prompts)
    records, _ = made.pop_validation()
    assert len(records) == 15


def test_a_correction_that_cannot_be_marked_costs_its_own_row(monkeypatch):
    async def run(sampling_params, **kwargs):
        return SimpleNamespace(extra_fields={"reward_extra_info": {}}, reward_score=None)

    assert session(worker(monkeypatch, run), "u_c2", 1, ANCHORED) is None


def test_a_correction_that_takes_too_long_is_given_up(monkeypatch):
    async def run(sampling_params, **kwargs):
        await asyncio.Event().wait()

    made = worker(monkeypatch, run, correction_timeout=0.01)
    assert session(made, "u_c2", 1, ANCHORED) is None
    assert asyncio.run(made.pop_counts()) == {"corrections/timed_out": 1} and not asyncio.run(made.pop_counts())


def test_a_worker_whose_corrections_all_failed_returns_no_rows():
    made = object.__new__(CIPOAgentLoopWorkerV0)
    assert made._postprocess([None], validate=False).batch is None


def test_a_verifier_that_failed_is_asked_again(monkeypatch):
    answers = iter([OSError("away"), None])

    async def score(self, outputs, kwargs):
        if (error := next(answers)) is not None:
            raise error
        outputs[-1].reward_score = 1.0

    monkeypatch.setattr(AgentLoopWorker, "_compute_score", score)
    monkeypatch.setattr("verl_cipo.integration.rollout.verify.FIRST_PAUSE_S", 0.0)
    made = worker(monkeypatch, None)
    output = SimpleNamespace(reward_score=None, extra_fields={})
    asyncio.run(made._compute_score([output], {"uid": "u"}))
    assert output.reward_score == 1.0 and made._counts == {"verifier/errors": 1}


# ---- the second verifier

TOY = {"data_source": "toy", "reward_model": {"ground_truth": "4"}}


def judged_twice(monkeypatch, tmp_path, **knobs):
    """A worker whose run calls all right; the second verifier does so of "ab", and none of "hang"."""
    file = tmp_path / "strict.py"
    file.write_text("def compute_score(solution_str, **_): return {'ab': True, 'ba': False}.get(solution_str)")

    async def score(self, outputs, kwargs):
        outputs[-1].reward_score = 1.0

    async def run(sampling_params, **kwargs):
        output = padded(kwargs["says"], None)
        given = SimpleNamespace(
            response_ids=encode(kwargs["says"]), reward_score=None, extra_fields=output.extra_fields, num_turns=2
        )
        await made._compute_score([given], kwargs)
        output.reward_score = given.reward_score
        return output

    monkeypatch.setattr(AgentLoopWorker, "_compute_score", score)
    made = worker(monkeypatch, run, second_verifier=str(file), verifier_retries=0, **knobs)
    return made


@pytest.mark.parametrize("fraction", [0, 1.0], ids=["GRPO", "CIPO"])
def test_the_second_verdict_is_on_the_row(monkeypatch, tmp_path, fraction):
    made = judged_twice(monkeypatch, tmp_path, replay_fraction=fraction)
    outputs = [session(made, "u", i, says=text, **TOY) for i, text in enumerate(["ab", "ba", "hang"])]
    outputs.append(session(made, "u_c1", 0, ANCHORED, says="ba", **TOY))
    assert [output.extra_fields["cipo"].get("second") for output in outputs] == [True, False, None, False]
    assert all(output.extra_fields["cipo"]["correct"] for output in outputs), "the verdict is the run's"
    assert not any("second" in name for output in outputs for name in output.extra_fields), "no column of its own"
    assert asyncio.run(made.pop_counts())["second_verifier/errors"] == 1


def test_a_validation_without_a_second_turn_reports_what_was_judged_twice(monkeypatch, tmp_path):
    made = judged_twice(monkeypatch, tmp_path, val_corrections=0)
    marked = session(made, "u", 0, says="ba", validate=True, **TOY).extra_fields["cipo"]
    assert (marked["second"], marked["text"], marked["score"]) == (False, "ba", 1.0) and "refusal" not in marked
    worker_ = Worker()
    made, prompts, rolled = manager(monkeypatch, ["+", "+"], [worker_], val_corrections=0, second_verifier="given.py")
    for mark, second in zip(rolled.non_tensor_batch["cipo"], (False, True), strict=True):
        mark["second"] = second
    worker_.counts = Counter({"second_verifier/errors": 3})
    prompts.meta_info["validate"] = True
    made.generate_sequences(prompts)
    records, counts = made.pop_validation()
    assert [record["second"] for record in records] == [False, True] and worker_.requests == []
    assert counts == {"second_verifier/errors": 3} and made.pop_statistics()["second_verifier/errors"] == 0


def test_prompts_are_built_from_what_the_model_wrote(monkeypatch):
    made = worker(monkeypatch, None)
    asked = Material({"raw_prompt": CHAT, "index": 8}, Response(0, encode("<think>hm</think>ab"), None))
    ((requests, refused),) = asyncio.run(made.build_prompts([asked], n=2, step=3, validate=False))
    assert refused is None and requests[0] == requests[1] and requests[0].context is None
    built = requests[0].request
    assert built.shown == (Excerpt("ab", cut=False),)
    assert "Q" in built.messages[0]["content"] and "<attempt>\nab\n</attempt>" in built.messages[0]["content"]


HINTED = NudgeConfig(contexts="hints", template="{context}: {question}")


def test_attempts_are_asked_under_their_contexts_and_the_rest_plainly(monkeypatch):
    sent, asked = Worker(), []
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, [sent], n_corrections=2, nudge=HINTED)
    prompts.non_tensor_batch["hints"] = objects([["hint"]] * 16)

    def generate(self, batch):
        asked.append(batch)
        return rolled

    monkeypatch.setattr(AgentLoopManager, "generate_sequences", generate)
    made.generate_sequences(prompts)
    (batch,) = asked
    texts = [chat[0]["content"] for chat in batch.non_tensor_batch["raw_prompt"]]
    assert texts == [f"Q{i}" + " hint" * (i % 2 == 0 and s in (0, 2)) for i in range(4) for s in range(4)]
    plain = [{"role": "user", "content": "Q2"}]
    noted = {"context": 0, "question": plain}
    assert batch.non_tensor_batch[NOTED][8:12].tolist() == [noted, {}, noted, {}]
    corrections = [chat[0]["content"] for chat in sent.requests[0].non_tensor_batch["raw_prompt"]]
    assert len(corrections) == 8 and not any("hint" in text for text in corrections)
    assert all("hints" not in anchor.prompt for _, anchor in sent.asked), "these are asked plainly"
    assert NOTED not in prompts.non_tensor_batch and NOTED not in sent.requests[0].non_tensor_batch


def test_further_attempts_are_plain_whatever_the_first_attempt_was_asked(monkeypatch):
    sent = Worker()
    shares = dict.fromkeys(KINDS, PROBE)
    made, prompts, _ = manager(monkeypatch, OUTCOMES, [sent], n_corrections=2, nudge=HINTED, budget="auto")
    made.shares = shares
    prompts.non_tensor_batch["hints"] = objects([["hint"]] * 16)
    made.generate_sequences(prompts)
    asked = DataProto.concat(sent.requests).non_tensor_batch
    further = [chat[0]["content"] for chat in asked["raw_prompt"][asked[ANCHOR] == FURTHER]]
    assert further and not any("hint" in text for text in further)


def test_the_worker_draws_contexts_as_the_v1_trainers_do(monkeypatch):
    made = worker(monkeypatch, None, nudge=HINTED)
    prompts = [{"raw_prompt": CHAT, "index": i, "hints": ["add", "look"]} for i in range(3)]
    prompts.append({"raw_prompt": CHAT, "index": 3, "hints": "look"})
    drawn = asyncio.run(made.draw_contexts(prompts, n=8, step=2))
    for i, contexts in enumerate(drawn[:3]):
        numbers = drawn_contexts(2, 8, plain_share=0.5, seed=1, step=2, index=i)
        assert [contexts.number.get(session, PLAIN) for session in range(8)] == numbers
        assert [contexts.asked(s, CHAT)[0]["content"] for s in range(8)] == [
            "Q" if number == PLAIN else f"{['add', 'look'][number]}: Q" for number in numbers
        ]
    assert drawn[3] == Contexts() and asyncio.run(made.pop_counts())["nudge/skipped/bad_list"] == 1


def test_the_mark_of_an_attempt_under_a_context_is_that_of_its_prompt(monkeypatch):
    async def run(sampling_params, **kwargs):
        asked.append(kwargs)
        return padded("ab", 1.0)

    asked: list[dict] = []
    made = worker(monkeypatch, run, nudge=HINTED)
    under = [{"role": "user", "content": "add: Q"}]
    noted = {"context": 1, "question": CHAT}
    mark = session(made, "u", 2, **{NOTED: noted, "raw_prompt": under}).extra_fields["cipo"]
    assert mark == {"correct": True, "origin": origin(None, CHAT), **noted}
    assert asked[0]["raw_prompt"] == under and NOTED not in asked[0]


def test_corrections_under_contexts_know_theirs(monkeypatch):
    from dataclasses import replace

    made = worker(monkeypatch, None, nudge=replace(HINTED, corrections=True))
    prompt = {"raw_prompt": CHAT, "index": 8, "hints": ["add", "look"]}
    material = Material(prompt, Response(5, encode("ab"), None))
    ((requests, refused),) = asyncio.run(made.build_prompts([material], n=8, step=3, validate=False))
    numbers = drawn_contexts(2, 8, plain_share=0.5, seed=1, step=3, index=8, anchor=5)
    assert refused is None and len(set(numbers)) == 3
    assert [PLAIN if one.context is None else one.context for one in requests] == numbers
    for one in requests:
        text = one.request.messages[0]["content"]
        assert [hint in text for hint in ("add: Q", "look: Q")] == [one.context == 0, one.context == 1]
    ((second, _),) = asyncio.run(made.build_prompts([material], n=8, step=3, validate=True))
    assert {one.context for one in second} == {None}

    async def run(sampling_params, **kwargs):
        return padded("ab", 1.0)

    made = worker(monkeypatch, run)
    mark = session(made, "u_c5", 1, {**ANCHORED, "context": 1}).extra_fields["cipo"]
    assert mark["context"] == 1 and "question" not in mark


def test_attempts_that_cannot_be_corrected_are_left_out_before_the_draw(monkeypatch):
    """Four anchors of the eight attempts that are left, and none is wasted on an image."""
    sent = Worker()
    made, prompts, rolled = manager(monkeypatch, OUTCOMES, [sent])
    for mark in rolled.non_tensor_batch["cipo"][:8]:
        mark["refusal"] = "no_text_question"
    made.generate_sequences(prompts)
    stats = made.pop_statistics()
    assert stats["anchors/total"] == 4 and stats["anchors/skipped/no_text_question"] == 8
    assert {uid[:2] for uid in sent.requests[0].non_tensor_batch["uid"]} == {"u2", "u3"}


def test_the_worker_says_which_attempts_cannot_be_corrected(monkeypatch):
    async def run(sampling_params, **kwargs):
        return padded(" ", 0.0)

    marks = [session(worker(monkeypatch, run, **knobs), "u").extra_fields["cipo"] for knobs in ({}, {"source": "both"})]
    assert [mark["refusal"] for mark in marks] == ["empty_attempt"] * 2
    paired = worker(monkeypatch, run, source="paired", aux=AuxConfig(coef=0.1))
    assert "refusal" not in session(paired, "u").extra_fields["cipo"], "no text is read where nothing is rolled out"


def test_a_copy_is_told_by_the_view_that_was_shown(monkeypatch):
    async def run(sampling_params, **kwargs):
        return padded("".join(next(answers)), 1.0)

    monkeypatch.setattr("tests.fast.integration.v0.test_v0_rollout.R", 40)
    answers = iter(["<think>why</think>ab", "<think>why</think>ba"])
    made = worker(monkeypatch, run)
    assert [session(made, "u_c2", 1, ANCHORED).extra_fields["cipo"].get("copied", False) for _ in range(2)] == [
        True,
        False,
    ]


def test_an_agent_loop_that_ignores_raw_prompt_is_noticed(monkeypatch, caplog):
    async def run(sampling_params, **kwargs):
        return padded("ab", 1.0, asked=(0, 7))

    made = worker(monkeypatch, run)
    session(made, "u_c2", 1, ANCHORED)
    assert made._counts["corrections/not_asked"] == 1 and "ignores raw_prompt" in caplog.text
