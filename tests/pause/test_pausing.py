"""The end of a pause, on a clock of the test's own: no real one shows what happens within a microsecond of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from proxy.control.pausing import Pausing
from proxy.pause.board import Board, Mode, Pause


async def nothing() -> None:
    """There are no peers."""


def pausing_alone() -> Pausing:
    """Without shards, peers and clients."""
    lanes = SimpleNamespace(sets={}, all_connected=list)
    cluster = SimpleNamespace(serving=list, map=SimpleNamespace(version=1), updated=trio.Event())
    sender: Any = SimpleNamespace(
        plane=SimpleNamespace(), cluster=cluster, lanes=lanes, answer=lambda request, frame: None
    )
    peers: Any = SimpleNamespace(on=False, peers=(), busy=False, topic=lambda *rest: None, tell=nothing)
    ways: Any = {each: lambda *rest: None for each in ("pass_on", "again", "refuse", "changed", "table")}
    stub: Any = SimpleNamespace()
    return Pausing(sender, stub, stub, peers, engine=lambda: b"valkey", held=lambda shard: 0, **ways)


class SlowBoard(Board):
    """Whoever looks at it is slow: time passes behind it."""

    def __init__(self, clock: MockClock) -> None:
        super().__init__()
        self._clock = clock

    def effective(self, now: float) -> Pause:
        pause = super().effective(now)
        self._clock.jump(0.0003)
        return pause


async def test_a_pause_that_ends_while_it_is_looked_at_ends(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pausing = pausing_alone()
    pausing.board = SlowBoard(autojump_clock)
    nursery.start_soon(pausing.run)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(20):
        autojump_clock.jump(0.0001)
        call: Any = SimpleNamespace(args=[b"CLIENT", b"PAUSE", b"1"], request=None)
        step = pausing.handlers[b"client|pause"](call)
        assert step is not None and pausing.mode is Mode.ALL
        await step
        with trio.fail_after(5):
            while pausing.mode:  # noqa: ASYNC110 -- nobody in particular is told
                await trio.sleep(0.1)
