"""The list of those who wait for an offset, while nothing is sampled or looked at."""

from __future__ import annotations

from proxy.acks.waiters import Gate, Waiter
from proxy.acks.waitlist import PURGE, Waitlist


def _came_and_left(waitlist: Waitlist, *, at_once: bool, threshold: int | None) -> None:
    waiter = Waiter(Gate(1), 1, 0, threshold, at_once=at_once)
    waitlist.add(waiter)
    waitlist.leave(waiter)


def _listed(waitlist: Waitlist) -> int:
    placed = sum(map(len, waitlist._by_want.values()))
    return len(waitlist._unsampled) + len(waitlist._at_once) + placed


def test_who_left_a_shard_that_cannot_be_reached_is_not_kept() -> None:
    waitlist = Waitlist()
    stays = Waiter(Gate(1), 1, 0, None)
    waitlist.add(stays)
    for at_once, threshold in ((False, None), (False, 7), (True, 7)):
        for _ in range(10 * PURGE):
            _came_and_left(waitlist, at_once=at_once, threshold=threshold)
    assert _listed(waitlist) <= 2 * PURGE
    waitlist.put_back(waitlist.take_unsampled())
    assert waitlist
    waitlist.sampled(waitlist.take_unsampled(), 5)
    waitlist.release([5])
    assert stays.done and stays.count == 1
    assert not waitlist


def test_who_left_while_a_sample_was_on_its_way_is_not_put_back() -> None:
    waitlist = Waitlist()
    waiter = Waiter(Gate(1), 1, 0, None)
    waitlist.add(waiter)
    taken = waitlist.take_unsampled()
    waitlist.leave(waiter)
    waitlist.put_back(taken)
    assert _listed(waitlist) == 0
    assert not waitlist
