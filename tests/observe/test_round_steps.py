"""What is timed of the rounds, and what is not: no round is chosen by how it ends."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from proxy.acks.steps import STUCK, Step, Steps
from proxy.acks.waiters import Gate, Waiter


class Record:
    def __init__(self) -> None:
        self.steps: list[tuple[Step, float]] = []
        self.rounds: list[int] = []

    def round(self, waiters: int) -> None:
        self.rounds.append(waiters)

    def step(self, step: Step, seconds: float) -> None:
        self.steps.append((step, round(seconds, 3)))


def waiters(want: int, count: int = 1, at_once: bool = False) -> list[Waiter]:
    return [Waiter(Gate(1), want, 0, None, at_once=at_once) for _ in range(count)]


PRIMARY: Any = None  # only lookers look at it


async def test_an_offset_is_timed_until_as_many_have_it_as_were_asked_for(autojump_clock: MockClock) -> None:
    steps = Steps(record := Record())
    steps.sampled(waiters(2, 3), 100, [0, 0, 0])
    await trio.sleep(0.25)
    steps.looked(PRIMARY, [100, 0, 99])
    assert record.steps == []
    await trio.sleep(0.25)
    steps.looked(PRIMARY, [100, 0, 140])
    steps.looked(PRIMARY, [200, 200, 200])
    assert (record.steps, record.rounds) == ([("replicate", 0.5)], [3])


async def test_what_tells_nothing_is_not_timed(autojump_clock: MockClock) -> None:
    for asked, acknowledged in (
        (waiters(1), [100, 0]),  # acknowledged already: nobody knows since when
        (waiters(3), [0, 0]),  # more than there are
        (waiters(0), [0, 0]),
        (waiters(1, at_once=True), [0, 0]),
        (waiters(1), []),
    ):
        steps = Steps(record := Record())
        steps.sampled(asked, 100, acknowledged)
        await trio.sleep(1)
        steps.looked(PRIMARY, [200, 200])
        assert (record.steps, record.rounds) == ([], [1])


async def test_one_is_timed_at_a_time_and_none_when_nobody_looks(autojump_clock: MockClock) -> None:
    steps = Steps(record := Record())
    steps.sampled(waiters(1), 100, [0])
    await trio.sleep(1)
    steps.sampled(waiters(1), 200, [0])
    steps.looked(PRIMARY, [150])
    assert record.steps == [("replicate", 1.0)]
    steps.sampled(waiters(1), 300, [0])
    steps.idle()
    await trio.sleep(1)
    steps.looked(PRIMARY, [300])
    assert record.steps == [("replicate", 1.0)]


async def test_a_replica_that_is_stuck_is_counted_not_left_out(autojump_clock: MockClock) -> None:
    steps = Steps(record := Record())
    steps.sampled(waiters(1), 100, [0])
    timing = steps.marked(waiters(1))
    await trio.sleep(STUCK)
    steps.looked(PRIMARY, [0])
    assert steps.counted(timing, 0) is None
    assert record.steps == [("replicate", STUCK), ("persist", STUCK)]


async def test_a_marker_is_timed_until_as_many_disks_have_it(autojump_clock: MockClock) -> None:
    steps = Steps(record := Record())
    timing = steps.marked(waiters(2))
    await trio.sleep(0.25)
    timing = steps.counted(timing, 1)
    await trio.sleep(0.25)
    assert steps.counted(timing, 2) is None
    assert steps.counted(steps.marked(waiters(0)), 2) is None, "who asks for the primary's disk alone"
    assert (record.steps, record.rounds) == ([("persist", 0.5)], [1, 1])
