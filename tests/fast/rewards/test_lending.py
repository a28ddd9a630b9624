"""Lending: the one that has waited longest is next, and what is lent comes back."""

import threading
import time

import pytest

from verl_cipo.rewards import lending
from verl_cipo.rewards.lending import Lender


def wait_for(lender: Lender, n_waiting: int) -> None:
    while len(lender._waiting) < n_waiting:
        time.sleep(0.001)


def test_the_one_that_has_waited_longest_is_next():
    lender, order, threads = Lender("a"), [], []

    def wait(number):
        with lender.lend():
            order.append(number)

    with lender.lend():
        for number in range(20):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            wait_for(lender, number + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(20))


def test_one_that_comes_back_waits_behind_the_others():
    """With a semaphore the thread that leaves is the next to come in."""
    lender, order = Lender("a"), []

    def wait():
        with lender.lend():
            order.append("other")

    thread = threading.Thread(target=wait)
    with lender.lend():
        thread.start()
        wait_for(lender, 1)
    with lender.lend():
        order.append("back again")
    thread.join()
    assert order == ["other", "back again"]


def test_the_item_used_last_is_lent_first():
    lender = Lender("ab")
    with lender.lend() as one, lender.lend() as other:
        assert {one, other} == {"a", "b"}
    with lender.lend() as item:
        assert item == one


@pytest.mark.parametrize("handed_over", [False, True])
def test_one_that_gives_up_waiting_takes_no_item_with_it(monkeypatch, handed_over):
    lender = Lender("a")
    lent = lender.lend()
    lent.__enter__()

    def interrupted(turn):
        monkeypatch.undo()
        if handed_over:
            lent.__exit__(None, None, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(lending.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt), lender.lend():
        pytest.fail("it has no item")
    if not handed_over:
        lent.__exit__(None, None, None)
    with lender.lend() as item:
        assert item == "a"
