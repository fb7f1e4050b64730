"""One shard's rounds in a data plane of the test's own, against live nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from proxy.acks.incarnation import Incarnations
from proxy.acks.pace import Pace
from proxy.acks.primary import AckLane, Primary
from proxy.acks.rounds import ShardRounds
from proxy.acks.waiters import Run
from proxy.dataplane import DataPlane, Lane, Lost
from shard.client import ControlConnection
from tests.harness import PATIENCE_S
from tests.system import nodes as nodes_beside

Condition = Callable[[], Awaitable[Any]]


class Node(nodes_beside.Node):
    """A node of the shard, for a task to connect to."""

    async def connect(self) -> ControlConnection:
        return await ControlConnection.open(self.host, self.port, client_name="under-test")


async def come_true(condition: Condition, what: str) -> None:
    with trio.move_on_after(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 -- processes set no trio.Event
            await trio.sleep(0.01)
        return
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def trusted(primary: Primary) -> Run[str]:
    run: Run[str] = Run()
    run.finish(None)
    return run


class Control:
    """What the data plane needs to know of acks."""

    def lane_down(self, lane: Lane, lost: list[Lost], reason: str) -> None:
        assert isinstance(lane.owner, AckLane)
        lane.owner.lost(reason)

    def failed(self, where: str, error: Exception) -> None:
        raise error


@pytest.fixture
async def plane() -> AsyncIterator[DataPlane]:
    made: Any = DataPlane(Control())  # type: ignore[arg-type]  # no clients: the rest is never called
    async with trio.open_nursery() as nursery:

        async def turn() -> None:
            while True:
                await trio.lowlevel.wait_readable(made.fileno())
                made.run_once()

        nursery.start_soon(turn)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


Make = Callable[..., ShardRounds]
Answered = Callable[[list[bytes]], None]


@pytest.fixture
async def make(plane: DataPlane) -> AsyncIterator[Make]:
    pace = Pace()
    made: list[ShardRounds] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.run)

        def start(
            connect: Callable[[], Awaitable[ControlConnection]], ticked: Callable[[int], None] = lambda shard: None
        ) -> ShardRounds:
            made.append(
                ShardRounds(7, Incarnations(), plane, pace, connect=connect, ticked=ticked, distrust=trusted)
            )
            nursery.start_soon(made[-1].run)
            return made[-1]

        yield start
        nursery.cancel_scope.cancel()
    for each in made:
        each.reset()
