"""WAIT and WAITAOF with two replicas, straight and through the proxy alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.acks.behaviours.words import FOR_EVER, OK, SOON, integer, pair
from tests.harness import Up, until
from tests.system.nodes import Node
from tests.system.wire import Wire

SOME_TIME = 1500  # milliseconds, in which the engine's replicas speak of themselves


@pytest.fixture
def nodes(shard: Up) -> list[Node]:
    """The primary and its two replicas."""
    [row] = shard.topology()["shards"]
    return [Node(each) for each in (row["primary"], *row["replicas"])]


@pytest.fixture(params=["engine", "ackgate"])
def connect(request: pytest.FixtureRequest, shard: Up, nodes: list[Node]) -> Callable[[], Wire]:
    """Opens sessions, both replicas being in step."""
    opened = nodes[0].wire if request.param == "engine" else lambda: Wire.to(shard.redis_url)
    with opened() as wire:

        def in_step() -> bool:
            assert wire.call("SET", "key", "in step") == OK
            return wire.call("WAITAOF", 1, 2, 100) == pair(1, 2)

        until(in_step, "both replicas are in step")
    return opened


@pytest.fixture
def session(connect: Callable[[], Wire]) -> Iterator[Wire]:
    with connect() as wire:
        yield wire


def test_all_that_have_it_are_told_however_few_were_asked_for(session: Wire) -> None:
    assert session.call("SET", "key", "value") == OK
    assert session.call("WAITAOF", 1, 2, FOR_EVER) == pair(1, 2)
    assert session.call("WAIT", 1, FOR_EVER) == integer(2)
    assert session.call("WAIT", 0, FOR_EVER) == integer(2)
    assert session.call("WAITAOF", 0, 1, FOR_EVER) == pair(1, 2)


def test_who_was_told_by_waitaof_is_told_by_wait_though_the_replicas_have_stopped(
    session: Wire, nodes: list[Node]
) -> None:
    assert session.call("SET", "key", "value") == OK
    assert session.call("WAITAOF", 1, 2, FOR_EVER) == pair(1, 2)
    with nodes[1].stopped(), nodes[2].stopped():
        assert session.call("WAIT", 1, FOR_EVER) == integer(2)
        assert session.call("WAIT", 2, FOR_EVER) == integer(2)
        assert session.call("WAIT", 3, SOON) == integer(2)
        assert session.call("SET", "key", "another") == OK
        assert session.call("WAIT", 1, SOON) == integer(0)


def test_a_replica_that_has_left_counts_no_more_whoever_was_told_of_it(session: Wire, nodes: list[Node]) -> None:
    primary, *replicas = nodes
    assert session.call("SET", "key", "value") == OK
    assert session.call("WAITAOF", 1, 2, FOR_EVER) == pair(1, 2)
    with replicas[0].stopped(), replicas[1].stopped():
        for left in (1, 0):
            with primary.wire() as wire:
                link = re.search(rb" addr=(\S+)", wire.call("CLIENT", "LIST", "TYPE", "replica"))
            assert link is not None
            assert primary.call("CLIENT", "KILL", "ADDR", link[1].decode()) == 1
            until(lambda left=left: len(primary.call("ROLE")[2]) == left, "it has left")
            assert session.call("WAIT", left, FOR_EVER) == integer(left)
            assert session.call("WAIT", left + 1, SOON) == integer(left)
            assert session.call("WAITAOF", 0, left + 1, SOON) == pair(1, left)
            counts = session.pipeline([["MULTI"], ["WAIT", 1, 0], ["WAITAOF", 0, 1, 0], ["EXEC"]])[-1]
            assert counts == b"*2\r\n" + integer(left) + pair(1, left)
    until(lambda: session.call("WAIT", 2, SOON) == integer(2), "they are back, and have it")


def test_one_of_two_is_as_many_as_it_is(session: Wire, nodes: list[Node]) -> None:
    for stopped in nodes[1:]:
        with stopped.stopped():
            assert session.call("SET", "key", "value") == OK
            assert session.call("WAIT", 1, FOR_EVER) == integer(1)
            assert session.call("WAIT", 2, SOON) == integer(1)
            assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
            assert session.call("WAITAOF", 1, 2, SOON) == pair(1, 1)
        assert session.call("WAIT", 2, FOR_EVER) == integer(2)


def test_what_came_while_more_was_waited_for_is_told_at_the_timeout(
    session: Wire, connect: Callable[[], Wire], nodes: list[Node]
) -> None:
    _, one, other = nodes
    with connect() as fsync, one.stopped():
        with other.stopped():
            for each in (session, fsync):
                assert each.call("SET", "key", "value") == OK
            assert session.call("WAIT", 1, SOON) == integer(0)
            session.send("WAIT", 2, SOME_TIME)
            fsync.send("WAITAOF", 1, 2, SOME_TIME)
        assert session.receive() == integer(1)
        assert fsync.receive() == pair(1, 1)
