"""Anchors of a step whose prompts verl filters: drawn among those that stay, as many as the step's."""

import asyncio

import pytest

from tests.fast.integration.rollout.test_coordinator import drain
from tests.fast.integration.rollout.test_worker import roll, world  # noqa: F401, a fixture
from verl_cipo.core.anchors import Attempt, Group, no_signal
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.steering.budget import KINDS
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator


def group(uid: str, outcomes: str, *, correctable: bool = True) -> Group:
    """``r`` is a right attempt, ``w`` a wrong one; the filter goes by them."""
    attempts = [
        Attempt(uid=uid, index=uid, session=i, correct=o == "r", score=float(o == "r"), correctable=correctable)
        for i, o in enumerate(outcomes)
    ]
    return Group(uid=uid, attempts=tuple(attempts), evicted=no_signal([a.score for a in attempts]))


def coordinator(*, prompts: int, **options) -> AnchorCoordinator:
    return AnchorCoordinator(
        CIPOConfig.from_mapping({"preset": "stream"} | options).to_mapping(), train_batch_size=prompts, filters=True
    )


@pytest.mark.parametrize(
    "values, evicted", [([0, 0], True), ([1.5] * 4, True), ([0, 1], False), ([1], False), ([], False)]
)
def test_a_prompt_is_evicted_when_its_attempts_have_one_value(values, evicted):
    assert no_signal(values) == evicted


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_the_anchors_are_the_steps_and_come_from_what_stays(schedule):
    """Two of the first four prompts are evicted; of four in their place two stay, two are more than the step has."""

    async def run():
        actor = coordinator(prompts=4, schedule=schedule)
        await actor.open(0, uids=list("abcd"), rho=0.5, step=1)
        await actor.add(0, group("a", "wwww"), {})
        await actor.add(0, group("b", "rrrr"), {})
        assert await drain(actor, 0, "a") == await drain(actor, 0, "b") == []
        await actor.add(0, group("c", "rwrw"), {})
        await actor.add(0, group("d", "rwrw"), {})
        assert await actor.admitted() == {"c", "d"}
        waiting = [asyncio.create_task(drain(actor, 0, uid)) for uid in "cd"]
        await actor.open(1, uids=list("efgh"), rho=0.5, step=1, replaces=4)
        await actor.add(1, group("e", "rwrw"), {})
        assert not any(task.done() for task in waiting), "the step has three prompts of four"
        await actor.add(1, group("f", "wrww"), {})
        assert await actor.admitted() == set("cdef")
        drawn = {uid: await task for uid, task in zip("cd", waiting, strict=True)}
        drawn |= {uid: await drain(actor, 1, uid) for uid in "ef"}
        await actor.add(1, group("g", "rwrw"), {})
        await actor.add(1, group("h", "rrrr"), {})
        assert await drain(actor, 1, "g") == await drain(actor, 1, "h") == []
        for batch, uids in enumerate(("abcd", "efgh")):
            for uid in uids:
                await actor.close(batch, uid, {})
        assert not actor._batches
        return drawn, await actor.pop_statistics()

    drawn, counts = asyncio.run(run())
    assert sum(map(len, drawn.values())) == counts["anchors/total"] == 4
    assert counts["anchors/correct"] == counts["anchors/failed"] == 2
    assert counts["filter/dispatched"] == 8 and counts["filter/kept_all_wrong"] == 0


def test_the_next_step_has_anchors_of_its_own():
    async def run():
        actor = coordinator(prompts=1, schedule="barrier")
        for step in (1, 2):
            await actor.open(step, uids=[f"{step}"], rho=0.0, step=step)
            await actor.add(step, group(f"{step}", "rw"), {})
            assert await actor.admitted() == {f"{step}"}
            assert await drain(actor, step, f"{step}") == [1]
            await actor.close(step, f"{step}", {})
            assert (await actor.pop_statistics())["anchors/total"] == 1

    asyncio.run(run())


def test_all_wrong_prompts_are_kept_as_far_as_the_knob_goes():
    """round(.5 * 4) = 2 of three, each with a wrong anchor; one that cannot be corrected is evicted."""

    async def run():
        actor = coordinator(prompts=4, schedule="barrier", keep_all_wrong=0.5)
        await actor.open(0, uids=list("abcdefg"), rho=0.25, step=1)
        await actor.add(0, group("a", "wwww", correctable=False), {})
        for uid in "bcd":
            await actor.add(0, group(uid, "wwww"), {})
        await actor.add(0, group("e", "rrrr"), {})
        assert await actor.admitted() == {"b", "c"}
        await actor.add(0, group("f", "rrrw"), {})
        await actor.add(0, group("g", "rrrw"), {})
        return {uid: await drain(actor, 0, uid) for uid in "abcdefg"}, await actor.pop_statistics()

    drawn, counts = asyncio.run(run())
    assert {uid: len(sessions) for uid, sessions in drawn.items() if uid not in "fg"} == dict(a=0, b=1, c=1, d=0, e=0)
    assert len(drawn["f"]) + len(drawn["g"]) == 2
    assert counts["anchors/correct"] == 1 and counts["anchors/failed"] == 3
    assert counts["filter/kept_all_wrong"] == 2
    assert counts["filter/evicted_all_wrong"] == 2, "a and d; e is all right"


def test_no_more_are_kept_than_wrong_anchors_are_left():
    """rho = .75 of four: a single wrong anchor."""

    async def run():
        actor = coordinator(prompts=4, schedule="streaming", keep_all_wrong=1.0)
        await actor.open(0, uids=list("ab"), rho=0.75, step=1)
        await actor.add(0, group("a", "ww"), {})
        await actor.add(0, group("b", "ww"), {})
        return await actor.admitted()

    assert asyncio.run(run()) == {"a"}


def test_the_rest_is_drawn_when_the_buffer_has_enough():
    """A prompt without attempts, or one that verl keeps and we did not, counts for verl and not as one admitted."""

    async def run():
        actor = coordinator(prompts=3, schedule="barrier")
        await actor.draw_rest()
        await actor.open(0, uids=list("abc"), rho=0.0, step=1)
        await actor.add(0, group("a", "rrww"), {})
        await actor.add(0, group("b", "rwww"), {})
        await actor.add(0, Group(uid="c", attempts=()), {})
        assert await drain(actor, 0, "c") == []
        await actor.draw_rest()
        await actor.draw_rest()
        return await drain(actor, 0, "a"), await drain(actor, 0, "b"), await actor.pop_statistics()

    a, b, counts = asyncio.run(run())
    assert sorted(a + b) != [] and len(a + b) == counts["anchors/total"] == 3, "the step's anchors, of two prompts"


def test_nobody_waits_longer_than_report_timeout_for_prompts_in_place_of_evicted_ones(caplog):
    async def run():
        actor = coordinator(prompts=2, schedule="barrier", report_timeout=0.05)
        await actor.open(0, uids=list("ab"), rho=0.0, step=1)
        await actor.add(0, group("a", "rw"), {})
        await actor.add(0, group("b", "ww"), {})
        return await drain(actor, 0, "a")

    assert sorted(asyncio.run(run())) == [0, 1], "both anchors of the step are of the prompt that stays"
    assert "in place of evicted prompts" in caplog.text


def test_further_attempts_are_made_at_prompts_that_stay():
    async def run():
        actor = coordinator(prompts=2, schedule="barrier", budget="auto")
        shares = dict.fromkeys(KINDS, 0.0)
        await actor.open(0, uids=list("abc"), rho=0.0, step=1, shares=shares)
        orders = {}
        for uid, outcomes in (("a", "wwww"), ("b", "rwww"), ("c", "rrrw")):
            await actor.add(0, group(uid, outcomes), {})
        for uid in "abc":
            orders[uid] = 0
            while (order := await asyncio.wait_for(actor.next(0, uid), 1)) is not None:
                orders[uid] += order.further
        return orders

    assert asyncio.run(run()) == {"a": 0, "b": 1, "c": 1}


def test_prompts_that_are_kept_are_corrected_whatever_the_budget_says():
    """A share of 0 makes all other slots further attempts; half a step is kept, of which b cannot be corrected."""

    async def run(share):
        actor = coordinator(prompts=4, schedule="streaming", budget="auto", keep_all_wrong=0.5)
        await actor.open(0, uids=list("abcdefg"), rho=0.0, step=1, shares=dict.fromkeys(KINDS, share))
        await actor.add(0, group("a", "wwww"), {})
        await actor.add(0, group("b", "wwww", correctable=False), {})
        for uid in "cdefg":
            await actor.add(0, group(uid, "wwww" if uid in "cd" else "wrrw"), {})
        told = {}
        for uid in "abcdefg":
            anchors, further = 0, 0
            while (order := await asyncio.wait_for(actor.next(0, uid), 1)) is not None:
                anchors, further = anchors + len(order.anchors), further + order.further
            told[uid] = (anchors, further)
        return told, await actor.pop_statistics(), (await actor.pool_state())["budget"]

    told, counts, carries = asyncio.run(run(0.0))
    assert told["a"][0] == told["c"][0] == 1 and sum(anchors for anchors, _ in told.values()) == 2
    assert sum(further for _, further in told.values()) == 2
    assert told["b"] == told["d"] == told["g"] == (0, 0), "evicted, evicted, and left over"
    assert counts["budget/none/slots"] == 2 and counts["budget/corrected"] == 2 and counts["budget/slots"] == 4
    assert carries.get("none", 0.0) == 0, "what was owed is no part of the share"
    told, _, _ = asyncio.run(run(1.0))
    assert sum(anchors for anchors, _ in told.values()) == 4


def test_replay_draws_no_anchor_from_an_evicted_prompt_and_none_for_its_replacement():
    async def run():
        actor = coordinator(prompts=2, schedule="replay")
        await actor.open(0, uids=["a", "b"], rho=0.5, step=1)
        await actor.add(0, group("a", "wwww"), {})
        mixed = group("b", "rwrw")
        await actor.add(0, mixed, {i: ("text", {}) for i in range(4)})
        await actor.open(1, uids=["c"], rho=0.5, step=1, replaces=1)
        assert (await actor.hosted(1, "c")).anchors == []
        await actor.open(2, uids=["d", "e"], rho=0.5, step=2)
        hosted = [(await actor.hosted(2, uid)).anchors for uid in "de"]
        return [candidate.attempt.uid for anchors in hosted for candidate in anchors]

    assert asyncio.run(run()) == ["b", "b"]


SAYS = {f"p0_{i}": "wrong" for i in range(4)}


def sessions(log) -> set[str]:
    return {name for kind, name, *_ in log if kind == "session"}


def test_a_worker_corrects_no_attempt_of_a_prompt_that_is_evicted(world):  # noqa: F811
    counts = {}
    roll(world, prompts=2, texts=SAYS, filtered="reward", schedule="barrier", report_timeout=0.2, popped=counts)
    corrected = {name.partition("_c")[0] for name in sessions(world) if "_c" in name}
    assert corrected == {"p1"}, "p0 is all wrong"
    assert [key for kind, key, *rest in world if kind == "status" and rest == ["finished"]][0] == "p0"


@pytest.mark.parametrize("metric, corrected", [("score", {"p0", "p1"}), ("reward", {"p1"})])
def test_a_worker_goes_by_the_metric_that_verl_filters_by(world, monkeypatch, metric, corrected):  # noqa: F811
    """All attempts of p0 are wrong, and each has a score of its own."""
    from verl_cipo.integration.rollout import worker as rollouts

    base = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    judged = base._compute_score

    async def compute_score(self, outputs, kwargs):
        await judged(self, outputs, kwargs)
        outputs[-1].extra_fields["reward_extra_info"] = {
            "acc": outputs[-1].reward_score > 0.5,
            "score": kwargs["session_id"] / 10,
        }

    monkeypatch.setattr(base, "_compute_score", compute_score)
    options = {"schedule": "barrier", "report_timeout": 0.2, "rho_init": 0.2, "replay_fraction": 4.0}
    roll(world, prompts=2, texts=SAYS, filtered=metric, **options)
    assert {name.partition("_c")[0] for name in sessions(world) if "_c" in name} == corrected
