"""budget=auto on the rollout side: who is told to correct and who to make further attempts."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.integration.rollout.test_coordinator import coordinator, group, texts
from verl_cipo.core.anchors import anchor_budget, select_anchors
from verl_cipo.core.steering.budget import KINDS, PROBE, drawn_first, planned
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator

HALF = dict.fromkeys(KINDS, 0.5)
some_groups = st.lists(st.lists(st.booleans(), min_size=2, max_size=6), min_size=1, max_size=6)
some_shares = st.fixed_dictionaries({kind: st.floats(0, 1) for kind in KINDS})


async def rolled(actor: AnchorCoordinator, verdicts, shares, *, batch=0, step=1) -> dict[str, tuple[list[int], int]]:
    """uid -> sessions to correct and slots of further attempts, of groups that are reported in their order.

    Those that are known before any verdict come from `hosted`.
    """
    groups = [group(f"u{i}", i, own) for i, own in enumerate(verdicts)]
    await actor.open(batch, uids=[one.uid for one in groups], rho=0.5, step=step, shares=shares)
    hosted = [await actor.hosted(batch, one.uid) for one in groups]
    assert not any(order.anchors for order in hosted)
    for one in groups:
        await actor.add(batch, one, {})
    told = {}
    for one, order in zip(groups, hosted, strict=True):
        sessions, further = [], order.further
        while (order := await asyncio.wait_for(actor.next(batch, one.uid), 1)) is not None:
            sessions += order.anchors
            further += order.further
        told[one.uid] = (sessions, further)
    return told


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
@given(verdicts=some_groups, shares=some_shares, fraction=st.sampled_from([0.5, 1.0, 2.0]))
def test_slots_add_up_to_the_anchors_and_further_attempts_are_spread(schedule, verdicts, shares, fraction):
    async def run(shares):
        actor = coordinator(schedule=schedule, budget="auto", replay_fraction=fraction)
        return await rolled(actor, verdicts, shares), await actor.pop_statistics(), actor.config

    told, counts, config = asyncio.run(run(shares))
    assert all(further == 0 for _, further in asyncio.run(run(None))[0].values())
    slots = anchor_budget(len(verdicts), fraction)
    corrected = sum(len(sessions) for sessions, _ in told.values())
    begun = slots - planned(slots, shares, {})
    made = sum(further for _, further in told.values())
    # Groups may have fewer attempts than there are slots; what has begun is made all the same.
    assert made == max(counts["anchors/total"] - corrected, begun)
    assert counts["anchors/total"] < slots or made + corrected == slots
    if schedule == "barrier":
        drawn = select_anchors(
            [group(f"u{i}", i, own) for i, own in enumerate(verdicts)],
            budget=slots,
            rho=0.5,
            delta_low=config.delta_low,
            delta_high=config.delta_high,
            seed=config.seed,
            step=1,
            first=drawn_first(shares, delta_low=config.delta_low, delta_high=config.delta_high),
        )
        chosen = {(uid, session) for uid, (sessions, _) in told.items() for session in sessions}
        assert chosen <= {(anchor.uid, anchor.session) for anchor in drawn}
        wrong = [told[f"u{i}"][1] for i, own in enumerate(verdicts) if not all(own)]
        right = [told[f"u{i}"][1] for i, own in enumerate(verdicts) if own and all(own)]
        assert not wrong or (max(wrong) - min(wrong) <= 1 and (not right or max(right) <= -(-begun // len(verdicts))))
        assert not right or max(right) - min(right) <= 1
    assert counts["budget/slots"] == counts["anchors/total"] and counts["budget/corrected"] == corrected
    assert sum(counts[f"budget/{kind}/slots"] for kind in KINDS) == counts["budget/slots"]
    assert asyncio.run(run(shares))[0] == told, "the same again"


@pytest.mark.parametrize("schedule", ["streaming", "barrier"])
def test_the_share_is_that_of_the_anchors_kind(schedule):
    """All anchors are wrong: four of a prompt without a right attempt, then two of a prompt of medium difficulty."""
    shares = HALF | {"none": 1.0, "some": PROBE, "right": 1.0}
    verdicts = [[False] * 4, [True, False, False, True]]

    async def run():
        actor = coordinator(schedule=schedule, budget="auto", replay_fraction=3.0)
        await actor.open(0, uids=["a", "b"], rho=0.0, step=1, shares=shares)
        await actor.add(0, group("a", 0, verdicts[0]), {})
        await actor.add(0, group("b", 1, verdicts[1]), {})
        orders = {}
        for uid in ("a", "b"):
            orders[uid] = [0, (await actor.hosted(0, uid)).further]
            while (order := await actor.next(0, uid)) is not None:
                orders[uid] = [orders[uid][0] + len(order.anchors), orders[uid][1] + order.further]
        return orders, await actor.pop_statistics()

    orders, counts = asyncio.run(run())
    assert (orders["a"][0], orders["b"][0]) == (counts["budget/none/slots"], 0)
    assert orders["a"][1] + orders["b"][1] == counts["budget/some/slots"] == 2, "at either prompt"
    assert counts["budget/none/slots"] == 4 and counts["budget/right/slots"] == 0


async def replayed(actor, shares, *, batch, uids, step):
    await actor.open(batch, uids=uids, rho=0.5, step=step, shares=shares)
    return {uid: await actor.hosted(batch, uid) for uid in uids}


@given(verdicts=some_groups, shares=some_shares, fraction=st.sampled_from([0.5, 1.0, 2.0]))
def test_slots_of_replay_add_up_to_the_anchors_too(verdicts, shares, fraction):
    async def run(shares):
        actor = coordinator(schedule="replay", budget="auto", replay_fraction=fraction)
        uids = [f"u{i}" for i in range(len(verdicts))]
        await actor.open(0, uids=uids, rho=0.5, step=1, shares=shares)
        for i, (uid, own) in enumerate(zip(uids, verdicts, strict=True)):
            await actor.add(0, group(uid, i, own), texts(uid, len(own)))
        before = await actor.pop_statistics()
        orders = await replayed(actor, shares, batch=1, uids=uids, step=2)
        return orders, before, await actor.pop_statistics()

    orders, before, counts = asyncio.run(run(shares))
    fixed, *_ = asyncio.run(run(None))
    for uid, order in orders.items():
        assert len(order.anchors) + order.further == len(fixed[uid].anchors) and fixed[uid].further == 0
    assert before["budget/slots"] == 0, "step 1 has no slots"
    corrected = sum(len(order.anchors) for order in orders.values())
    assert counts["budget/slots"] == counts["anchors/total"] and counts["budget/corrected"] == corrected
    assert all(candidate.outcome is not None for order in orders.values() for candidate in order.anchors)


@pytest.mark.parametrize("schedule", ["streaming", "barrier", "replay"])
def test_a_resumed_coordinator_divides_as_the_first_would_have(schedule):
    """Three slots of one kind a step, .45 of them corrections: 1.35 are rounded down, then 1.35 + .35 up."""
    verdicts, shares = [[False] * 4] * 3, HALF | {"none": 0.45}

    async def step(actor, number):
        uids = [f"u{number}{i}" for i in range(3)]
        if schedule != "replay":
            told = await rolled(actor, verdicts, shares, batch=number, step=number)
            return {uid: (len(sessions), further) for uid, (sessions, further) in told.items()}
        orders = await replayed(actor, shares, batch=number, uids=uids, step=number)
        for i, uid in enumerate(uids):
            await actor.add(number, group(uid, 10 * number + i, verdicts[i]), texts(uid, 4))
            await actor.close(number, uid, {})
        return {uid: (len(order.anchors), order.further) for uid, order in orders.items()}

    async def run():
        actor = AnchorCoordinator(coordinator(schedule=schedule, budget="auto").config.to_mapping(), train_batch_size=3)
        if schedule == "replay":  # step 1 has no slots
            await step(actor, 1)
        await step(actor, 2)
        state = await actor.pool_state()
        assert state["budget"] == {"none": pytest.approx(0.35)}
        resumed = AnchorCoordinator(actor.config.to_mapping(), train_batch_size=3)
        await resumed.restore_pool(state)
        assert (await resumed.pool_state())["budget"] == state["budget"]
        other = AnchorCoordinator(actor.config.to_mapping(), train_batch_size=3)
        await other.restore_pool({key: value for key, value in state.items() if key != "budget"})
        return [await step(one, 3) for one in (actor, resumed, other)]

    expected, again, without = asyncio.run(run())
    assert again == expected and sum(further for _, further in expected.values()) == 1
    assert sum(further for _, further in without.values()) == 2, "of an older checkpoint: nothing was left over"
