"""Timeouts stand still while the engines sleep."""

import asyncio

import pytest

from verl_cipo.integration.rollout import awake
from verl_cipo.integration.rollout.awake import AwakeClock, within


def test_the_clock_stands_still_while_the_engines_sleep():
    now = iter([0.0, 10.0, 20.0, 20.0, 30.0, 34.0])
    clock = AwakeClock(lambda: next(now))
    assert clock.time() == 0
    clock.sleep()  # at 10
    assert clock.time() == 10  # whenever
    clock.wake()  # at 20
    assert clock.slept(6) == 6 and clock.slept(25) == 10  # at 20 and at 30
    clock.sleep()  # at 34
    assert clock.time() == 24


def test_waking_twice_and_sleeping_twice_change_nothing():
    now = iter([1.0, 2.0, 3.0])
    clock = AwakeClock(lambda: next(now))
    clock.wake()
    clock.sleep()  # at 1
    clock.sleep()
    clock.wake()  # at 2
    clock.wake()
    assert clock.slept(3) == 1


def test_a_nap_before_the_last_seconds_does_not_count():
    now = iter([0.0, 10.0, 20.0, 30.0, 30.0, 40.0])
    clock = AwakeClock(lambda: next(now))
    for _ in range(2):
        clock.sleep()  # at 0 and at 20
        clock.wake()  # at 10 and at 30
    assert clock.slept(5) == 5 and clock.slept(15) == 5  # at 30 and at 40


def test_engines_that_sleep_are_not_looked_at_all_the_time():
    now = iter([0.0, 5.0])
    clock = AwakeClock(lambda: next(now))
    assert clock.wait(0.25) == 0.25 and clock.wait(-1.0) == 0
    clock.sleep()
    assert clock.wait(0.25) == clock.wait(-1.0) == awake.LOOK_AGAIN_S and clock.wait(7.0) == 7
    clock.wake()
    assert clock.wait(0.25) == 0.25


def test_seconds_asleep_do_not_count(monkeypatch):
    monkeypatch.setattr(awake, "LOOK_AGAIN_S", 0.001)
    event = []

    async def run():
        while len(event) < 2:
            await asyncio.sleep(0.001)

    async def main():
        asked = []

        async def slept(last):
            asked.append(last)
            event.append(None)
            return last

        await within(run(), 0.01, slept=slept)
        return asked

    # Twice the time was over and all of it slept; then the session ended.
    assert len(asyncio.run(main())) == 2


def test_a_session_that_takes_too_long_is_cancelled():
    cancelled = []

    async def run():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def never(last):
        return 0.0

    async def main():
        await within(run(), 0.01, slept=never)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())
    assert cancelled == [True]


def test_what_a_session_raises_comes_through():
    async def run():
        raise OSError("away")

    async def main():
        await within(run(), 60.0, slept=None)

    with pytest.raises(OSError, match="away"):
        asyncio.run(main())
