"""Who hears of which anchors and when, without Ray: the coordinator is a plain asyncio object."""

import asyncio
import pickle
import time

import pytest

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.rollout import awake
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator


def group(uid: str, index: int, outcomes: list[bool]) -> Group:
    return Group(
        uid=uid,
        attempts=tuple(
            Attempt(uid=uid, index=index, session=i, correct=right, score=float(right))
            for i, right in enumerate(outcomes)
        ),
    )


def coordinator(**options) -> AnchorCoordinator:
    return AnchorCoordinator(CIPOConfig.from_mapping({"preset": "stream"} | options).to_mapping(), train_batch_size=2)


async def drain(actor: AnchorCoordinator, batch: int, uid: str) -> list[int]:
    sessions: list[int] = []
    while (order := await asyncio.wait_for(actor.next(batch, uid), 1)) is not None:
        sessions += order.anchors
    return sessions


MIXED = [True, False, True, False]


def test_streaming_gives_a_medium_group_its_anchor_at_once():
    async def run():
        actor = coordinator(schedule="streaming")
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        return await asyncio.wait_for(actor.next(0, "a"), 1)

    assert len(asyncio.run(run()).anchors) == 1


def test_barrier_waits_for_the_last_group():
    async def run():
        actor = coordinator(schedule="barrier")
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(actor.next(0, "a"), 0.05)
        await actor.add(0, group("b", 1, MIXED), {})
        return await drain(actor, 0, "a"), await drain(actor, 0, "b")

    a, b = asyncio.run(run())
    assert len(a) == len(b) == 1
    assert {*a, *b} <= {1, 3}, "rho=0 draws wrong attempts only"


def test_a_group_without_attempts_does_not_hold_the_others_up():
    async def run():
        actor = coordinator(schedule="barrier")
        await actor.open(0, uids=["a", "b"], rho=0.5, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        await actor.add(0, group("b", 1, []), {})
        return await drain(actor, 0, "a"), await drain(actor, 0, "b")

    a, b = asyncio.run(run())
    assert len(a) == 2 and b == []


def test_statistics_count_kinds_and_are_popped_once():
    async def run():
        actor = coordinator(schedule="barrier", replay_fraction=2.0)
        await actor.open(0, uids=["a"], rho=0.5, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        await drain(actor, 0, "a")
        await actor.close(0, "a", {"corrections/failed_sessions": 3})
        return await actor.pop_statistics(), await actor.pop_statistics()

    first, second = asyncio.run(run())
    assert first["anchors/total"] == 2
    assert first["anchors/correct"] == first["anchors/failed"] == 1
    assert first["anchors/medium"] == 2 and first["anchors/other"] == 0
    assert first["corrections/failed_sessions"] == 3
    assert first["seconds/correction"] >= 0
    assert set(second.values()) == {0.0}, "counts start anew, and are logged where nothing happened"


def test_seed_reaches_the_draw():
    async def run(seed):
        actor = coordinator(schedule="barrier", replay_fraction=4.0, seed=seed)
        await actor.open(0, uids=["a"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, [False] * 8 + [True] * 8), {})
        return tuple(await drain(actor, 0, "a"))

    assert asyncio.run(run(1)) == asyncio.run(run(1))
    assert len({asyncio.run(run(seed)) for seed in range(5)}) > 1


def test_seed_reaches_the_draw_of_the_next_step():
    async def run(seed):
        actor = coordinator(schedule="replay", replay_fraction=4.0, seed=seed)
        await actor.open(0, uids=["a"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, [False] * 16), texts("a", 16))
        await actor.open(1, uids=["x"], rho=0.0, step=2)
        return tuple(candidate.attempt.session for candidate in (await actor.hosted(1, "x")).anchors)

    assert asyncio.run(run(1)) == asyncio.run(run(1))
    assert len({asyncio.run(run(seed)) for seed in range(5)}) > 1


def test_the_next_step_has_as_many_anchors_as_replay_fraction_says():
    async def run(replay_fraction):
        actor = coordinator(schedule="replay", replay_fraction=replay_fraction)
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, [False] * 8), texts("a", 8))
        await actor.add(0, group("b", 1, [False] * 8), texts("b", 8))
        await actor.open(1, uids=["x", "y"], rho=0.0, step=2)
        return len((await actor.hosted(1, "x")).anchors) + len((await actor.hosted(1, "y")).anchors)

    assert [asyncio.run(run(fraction)) for fraction in (0.5, 1.0, 3.0)] == [1, 2, 6]


def test_the_band_of_medium_difficulty_reaches_draw_and_statistics():
    """One anchor for two prompts, with half and an eighth of the attempts right: it comes from the one in the band."""

    async def run(**options):
        actor = coordinator(schedule="barrier", replay_fraction=0.5, **options)
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("half", 0, [True] * 4 + [False] * 4), {})
        await actor.add(0, group("eighth", 1, [True] + [False] * 7), {})
        anchors = {uid: await drain(actor, 0, uid) for uid in ("half", "eighth")}
        return [uid for uid, sessions in anchors.items() if sessions], (await actor.pop_statistics())["anchors/medium"]

    for seed in range(6):  # a draw that ignored the band would be right half the time
        assert asyncio.run(run(seed=seed)) == (["half"], 1)
        assert asyncio.run(run(seed=seed, delta_low=0.1, delta_high=0.2)) == (["eighth"], 1)
    assert asyncio.run(run(delta_low=0.9, delta_high=0.95))[1] == 0


def test_batches_in_flight_do_not_mix():
    async def run():
        actor = coordinator(schedule="barrier")
        await actor.open(0, uids=["a"], rho=0.0, step=1)
        await actor.open(1, uids=["b"], rho=1.0, step=2)
        await actor.add(1, group("b", 0, MIXED), {})
        await actor.add(0, group("a", 0, MIXED), {})
        return await drain(actor, 0, "a"), await drain(actor, 1, "b")

    a, b = asyncio.run(run())
    assert set(a) <= {1, 3} and set(b) <= {0, 2}


def candidates_of(*answers):
    return [candidate.attempt.uid for answer in answers for candidate in answer]


def texts(uid: str, n: int) -> dict[int, str]:
    return {session: f"{uid}{session}" for session in range(n)}


def test_replay_gives_the_groups_of_the_step_before_evenly_over_the_prompts():
    async def run():
        actor = coordinator(schedule="replay")
        await actor.open(0, uids=["a", "b"], rho=0.5, step=1)
        assert (await actor.hosted(0, "a")).anchors == (await actor.hosted(0, "b")).anchors == []
        await actor.add(0, group("a", 0, MIXED), texts("a", 4))
        await actor.add(0, group("b", 1, MIXED), texts("b", 4))
        await actor.open(1, uids=["x", "y"], rho=0.5, step=2)
        x, y = (await actor.hosted(1, "x")).anchors, (await actor.hosted(1, "y")).anchors
        return x, y, await actor.pop_statistics()

    x, y, stats = asyncio.run(run())
    assert len(x) == len(y) == 1
    assert set(candidates_of(x, y)) <= {"a", "b"}
    assert [c.attempt.correct for c in x + y] == [True, False], "rho = .5 of two anchors"
    assert x[0].payload == f"{x[0].attempt.uid}{x[0].attempt.session}"
    assert stats["anchors/total"] == stats["anchors/medium"] == 2
    assert stats["anchors/correct"] == stats["anchors/failed"] == 1


@pytest.mark.parametrize("reported", [True, False])
def test_replay_gives_the_attempts_that_were_reported_last(reported):
    """An asynchronous trainer may train prompts that are left over: of such a step nothing is reported."""

    async def run():
        actor = coordinator(schedule="replay")
        await actor.open(0, uids=["a"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), texts("a", 4))
        await actor.open(1, uids=["b"], rho=0.0, step=2)
        first = (await actor.hosted(1, "b")).anchors
        if reported:
            await actor.add(1, group("b", 1, MIXED), texts("b", 4))
        await actor.open(2, uids=["c"], rho=0.0, step=3)
        return first, (await actor.hosted(2, "c")).anchors

    first, then = asyncio.run(run())
    assert [candidate.attempt.uid for candidate in then] == ["b" if reported else "a"]
    assert first != then, "none is given twice"


def test_batches_of_one_step_share_the_pool():
    async def run():
        actor = coordinator(schedule="replay", replay_fraction=1.0)
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), texts("a", 4))
        await actor.add(0, group("b", 1, MIXED), texts("b", 4))
        await actor.open(1, uids=["x"], rho=0.0, step=2)
        await actor.open(2, uids=["y"], rho=0.0, step=2)
        return (await actor.hosted(1, "x")).anchors, (await actor.hosted(2, "y")).anchors

    x, y = asyncio.run(run())
    assert len(x) == len(y) == 1 and x != y


def test_a_restored_pool_goes_on_as_the_first_one():
    async def run(restore):
        actor = coordinator(schedule="replay")
        await actor.open(0, uids=["a", "b"], rho=0.5, step=1)
        await actor.add(0, group("a", 0, MIXED), texts("a", 4))
        await actor.add(0, group("b", 1, MIXED), texts("b", 4))
        if restore:
            state = await actor.pool_state()
            actor = coordinator(schedule="replay")
            await actor.restore_pool(state)
        await actor.open(1, uids=["x", "y"], rho=0.5, step=2)
        return (await actor.hosted(1, "x")).anchors, (await actor.hosted(1, "y")).anchors

    assert asyncio.run(run(True)) == asyncio.run(run(False)) != ([], [])


def test_anchors_of_prompts_in_flight_survive_a_checkpoint():
    """An asynchronous trainer saves while prompts are rolled out; verl dispatches them again."""

    async def run():
        actor = coordinator(schedule="replay")
        await actor.open(0, uids=["a", "b"], rho=0.5, step=1)
        await actor.add(0, group("a", 0, MIXED), texts("a", 4))
        await actor.add(0, group("b", 1, MIXED), texts("b", 4))
        await actor.open(1, uids=["x", "y"], rho=0.5, step=2)
        await actor.hosted(1, "x")
        before = (await actor.hosted(1, "y")).anchors
        await actor.close(1, "x", {})
        state = await actor.pool_state()
        actor = coordinator(schedule="replay")
        await actor.restore_pool(state)
        await actor.open(2, uids=["y", "z"], rho=0.5, step=3)
        return before, [*(await actor.hosted(2, "y")).anchors, *(await actor.hosted(2, "z")).anchors]

    before, after = asyncio.run(run())
    assert len(before) == 1 and after == before, "what x hosted has been corrected"


# ---- several dispatches


async def anchors_of(actor: AnchorCoordinator, batch: int, *, size: int, step: int, rho: float) -> tuple[int, int]:
    """Right and wrong anchors of a dispatch of ``size`` prompts, each with two right and two wrong attempts."""
    uids = [f"{batch}-{i}" for i in range(size)]
    await actor.open(batch, uids=uids, rho=rho, step=step)
    drawn = []
    for i, uid in enumerate(uids):
        if actor.config.schedule == "replay":
            drawn += [candidate.attempt.correct for candidate in (await actor.hosted(batch, uid)).anchors]
        await actor.add(batch, group(uid, i, MIXED), texts(uid, 4))
    for uid in uids:
        if actor.config.schedule != "replay":
            drawn += [MIXED[session] for session in await drain(actor, batch, uid)]
        await actor.close(batch, uid, {})
    return sum(drawn), len(drawn) - sum(drawn)


@pytest.mark.parametrize("schedule", ["streaming", "barrier", "replay"])
@pytest.mark.parametrize("size", [1, 2, 4, 15])
@pytest.mark.parametrize(("fraction", "rho"), [(0.25, 0.3), (1.0, 0.3), (0.1, 0.5), (1.5, 0.8)])
def test_dispatches_of_any_size_give_as_many_anchors_as_all_prompts_at_once(schedule, size, fraction, rho):
    async def run():
        actor = AnchorCoordinator({"schedule": schedule, "replay_fraction": fraction}, train_batch_size=60)
        right = wrong = 0
        for batch in range(120 // size):
            step = batch * size // 60
            if step == 0 and schedule == "replay":
                await anchors_of(actor, batch, size=size, step=step, rho=rho)
                continue
            given = await anchors_of(actor, batch, size=size, step=step, rho=rho)
            right, wrong = right + given[0], wrong + given[1]
        return right, wrong

    right, wrong = asyncio.run(run())
    prompts = 60 if schedule == "replay" else 120
    assert abs(right + wrong - fraction * prompts) <= 1
    assert abs(right - rho * (right + wrong)) <= 1


def test_a_dispatch_of_a_whole_training_batch_is_rounded_by_itself():
    """round(.25 * 6) = 2 anchors, round(.3 * 2) = 1 of them right, step by step."""

    async def run():
        actor = AnchorCoordinator({"schedule": "barrier", "replay_fraction": 0.25}, train_batch_size=6)
        return [await anchors_of(actor, step, size=6, step=step, rho=0.3) for step in range(5)]

    assert asyncio.run(run()) == [(1, 1)] * 5


def test_what_rounding_left_over_is_part_of_a_checkpoint():
    """.25 of a prompt each: the anchors come with the second dispatch, the sixth, the tenth."""

    async def run(restore_at):
        actor = AnchorCoordinator({"schedule": "barrier", "replay_fraction": 0.25}, train_batch_size=60)
        given = []
        for batch in range(10):
            if batch in restore_at:
                state = await actor.pool_state()
                actor = AnchorCoordinator({"schedule": "barrier", "replay_fraction": 0.25}, train_batch_size=60)
                await actor.restore_pool(pickle.loads(pickle.dumps(state)))
            given.append(sum(await anchors_of(actor, batch, size=1, step=0, rho=0.3)))
        return given

    assert asyncio.run(run(())) == asyncio.run(run((1, 4, 5))) == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_pool_of_a_checkpoint_from_before_it_had_a_carry():
    """As it was pickled: ranks with a uid, attempts without origin, payloads of text and data."""

    async def run():
        actor = coordinator(schedule="replay")
        await actor.open(0, uids=["a", "b"], rho=0.5, step=1)
        await actor.add(0, group("a", 0, MIXED), {i: (f"a{i}", {"index": 0}) for i in range(4)})
        await actor.add(0, group("b", 1, MIXED), {i: (f"b{i}", {"index": 1}) for i in range(4)})
        state = await actor.pool_state()
        await actor.open(1, uids=["x", "y"], rho=0.5, step=2)
        expected = (await actor.hosted(1, "x")).anchors, (await actor.hosted(1, "y")).anchors
        del state["carry"]
        for candidate in state["filling"]:
            for name in ("origin", "correctable"):
                del candidate.attempt.__dict__[name]
        actor = coordinator(schedule="replay")
        await actor.restore_pool(pickle.loads(pickle.dumps(state)))
        await actor.open(1, uids=["x", "y"], rho=0.5, step=2)
        return expected, ((await actor.hosted(1, "x")).anchors, (await actor.hosted(1, "y")).anchors)

    expected, found = asyncio.run(run())
    assert [[c.payload for c in part] for part in found] == [[c.payload for c in part] for part in expected]
    assert len(found[0]) == len(found[1]) == 1


def test_a_checkpoint_of_the_v0_trainer_has_what_the_budget_left_over_and_nothing_else():
    async def run():
        actor = coordinator(schedule="streaming")
        await actor.restore_pool({"budget": {"none": 0.4}})
        state = await actor.pool_state()
        fresh = await coordinator(schedule="streaming").pool_state()
        return state, fresh | {"budget": {"none": 0.4}}

    assert len(set(map(repr, asyncio.run(run())))) == 1


# ---- groups that do not report


def test_groups_that_do_not_report_count_as_empty_after_a_while(caplog):
    async def run():
        actor = coordinator(schedule="barrier", report_timeout=0.1)
        await actor.open(0, uids=["a", "b", "c"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        await asyncio.sleep(0.07)
        started = time.monotonic()
        await actor.add(0, group("b", 1, MIXED), {})
        a, b = await asyncio.gather(drain(actor, 0, "a"), drain(actor, 0, "b"))
        waited = time.monotonic() - started
        # It comes late, is told so, and can be closed.
        await actor.add(0, group("c", 2, MIXED), {})
        assert await drain(actor, 0, "c") == []
        for uid in "abc":
            await actor.close(0, uid, {})
        assert not actor._batches
        return a + b, waited, await actor.pop_statistics()

    drawn, waited, stats = asyncio.run(run())
    assert len(drawn) == 3 and stats["anchors/unreported"] == 1
    assert waited >= 0.1, "the clock starts anew with every report"
    assert "1 of 3 prompts have not reported" in caplog.text and caplog.text.rstrip().endswith("without c")


def test_groups_are_waited_for_while_the_engines_sleep(monkeypatch):
    monkeypatch.setattr(awake, "LOOK_AGAIN_S", 0.01)

    async def run():
        actor = coordinator(schedule="barrier", report_timeout=0.1)
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        await actor.engines_sleep()
        drained = asyncio.create_task(drain(actor, 0, "a"))
        ended, _ = await asyncio.wait({drained}, timeout=0.4)
        assert not ended and await actor.slept(0.2) == pytest.approx(0.2)
        await actor.engines_wake()
        return await drained

    assert len(asyncio.run(run())) == 2


def test_a_batch_that_reports_is_not_hurried():
    async def run():
        actor = coordinator(schedule="barrier", report_timeout=5.0)
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1)
        await actor.add(0, group("a", 0, MIXED), {})
        waiting = asyncio.create_task(drain(actor, 0, "a"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await actor.add(0, group("b", 1, MIXED), {})
        await waiting
        return await actor.pop_statistics()

    assert asyncio.run(run())["anchors/unreported"] == 0


def test_a_coordinator_that_was_started_anew_takes_the_counts_of_batches_it_does_not_know():
    async def run():
        actor = coordinator(schedule="barrier")
        with pytest.raises(KeyError):
            await actor.add(7, group("a", 0, MIXED), {})
        await actor.close(7, "a", {"corrections/failed_sessions": 2})
        return await actor.pop_statistics()

    assert asyncio.run(run())["corrections/failed_sessions"] == 2
