"""What WAIT and WAITAOF do, on both sides alike, when AOFs are switched, servers paused, and replicas come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.acks.behaviours.words import (
    FOR_EVER,
    NO_AOF,
    SOON,
    integer,
    multi,
    pair,
    put,
    replies,
)
from tests.acks.sides import Side
from tests.harness import until
from tests.system.wire import Wire

# ---- what is on disk -----------------------------------------------------------------------------------------------


def test_without_an_aof_the_primary_refuses_and_its_replica_can_be_waited_for(side: Side, session: Wire) -> None:
    put(side, session)
    with side.primary.set("appendonly", "no"):
        assert session.call("WAITAOF", 1, 0, FOR_EVER) == NO_AOF
        assert session.call("WAITAOF", 1, 1, SOON) == NO_AOF
        put(side, session)
        assert session.call("WAITAOF", 0, 1, FOR_EVER) == pair(0, 1)
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)
        with side.session() as other:
            assert other.call("WAITAOF", 0, 1, FOR_EVER) == pair(0, 1), "who wrote nothing is told so, too"


def test_without_an_aof_the_primary_refuses_who_was_told_before(side: Side, session: Wire) -> None:
    put(side, session)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
    with side.primary.set("appendonly", "no"):
        assert session.call("WAITAOF", 1, 1, FOR_EVER) == NO_AOF
        assert session.call("WAITAOF", 1, 0, FOR_EVER) == NO_AOF
        assert session.call("WAITAOF", 0, 1, FOR_EVER) == pair(0, 1)
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)


def test_an_aof_that_is_switched_off_ends_the_wait_for_it(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        session.send("WAITAOF", 1, 1, FOR_EVER)
        side.until_blocked()
        with side.primary.set("appendonly", "no"):
            assert session.receive() == NO_AOF


def test_a_replica_without_an_aof_never_counts(side: Side, session: Wire) -> None:
    with side.replica.set("appendonly", "no"):
        put(side, session)
        assert session.call("WAITAOF", 1, 1, SOON) == pair(1, 0)
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)
        with side.session() as other:
            assert other.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1), "who wrote nothing is told the replicas"


@pytest.mark.parametrize("which", ["primary", "replica"])
def test_a_node_that_never_syncs_never_counts(which: str, side: Side, session: Wire) -> None:
    node = getattr(side, which)
    with node.set("appendfsync", "no"):
        put(side, session)
        if which == "primary":  # in the end: the engine does not always ask replicas behind their fsync
            until(lambda: session.call("WAITAOF", 1, 1, SOON) == pair(0, 1), "the replica's disk has it")
        assert session.call("WAITAOF", 1, 1, SOON) == (pair(0, 1) if which == "primary" else pair(1, 0))


def test_an_aof_that_is_switched_on_is_waited_for(side: Side, session: Wire) -> None:
    with side.primary.set("appendonly", "no"), side.replica.set("appendonly", "no"):
        put(side, session)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)


def test_a_rewrite_of_the_aof_holds_up_nobody(side: Side, session: Wire) -> None:
    for node in (side.primary, side.replica):
        node.call("BGREWRITEAOF")
    put(side, session)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)


# ---- while the server is paused ------------------------------------------------------------------------------------


def test_a_pause_for_writers_delays_acknowledgments_and_nothing_else(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        side.primary.call("CLIENT", "PAUSE", 30_000, "WRITE")
        try:
            assert session.call("WAIT", 1, SOON) == integer(0), "the timeout still runs"
            session.send("WAIT", 1, FOR_EVER)
            side.until_blocked()
        finally:
            side.primary.call("CLIENT", "UNPAUSE")
    assert session.receive() == integer(1)


def test_what_was_acknowledged_before_a_pause_is_told_in_it(side: Side, session: Wire) -> None:
    put(side, session)
    assert session.call("WAIT", 1, FOR_EVER) == integer(1)
    side.primary.call("CLIENT", "PAUSE", 30_000, "WRITE")
    try:
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)
    finally:
        side.primary.call("CLIENT", "UNPAUSE")


# ---- replicas that come and go -------------------------------------------------------------------------------------


@contextmanager
def alone(side: Side) -> Iterator[None]:
    """The primary is left by its replica, and by and by frees its backlog."""
    with side.primary.set("repl-backlog-ttl", "1"):
        side.leave()
        until(lambda: side.primary.direct.info("replication")["repl_backlog_active"] == 0, "the backlog is freed")
        try:
            yield
        finally:
            side.come_back()


def test_a_primary_without_replicas_or_backlog_counts_its_own_disk(side: Side, session: Wire) -> None:
    put(side, session)
    with alone(side):
        put(side, session)
        assert session.call("WAITAOF", 1, 0, FOR_EVER) == pair(1, 0)
        assert session.call("WAIT", 1, SOON) == integer(0)
        assert session.call("WAITAOF", 1, 1, SOON) == pair(1, 0)
        assert multi(session, "WAIT 1 0", "WAITAOF 1 1 0") == replies(integer(0), pair(1, 0))
        with side.primary.set("appendonly", "no"):
            put(side, session)
            assert session.call("WAIT", 1, SOON) == integer(0), "nor does it count where the offset stands still"


@pytest.mark.slow
def test_who_waits_is_released_by_a_replica_that_comes(side: Side) -> None:
    with side.session() as session, side.session() as other:
        with alone(side):
            put(side, session)
            put(side, other)
            session.send("WAIT", 1, FOR_EVER)
            other.send("WAITAOF", 1, 1, FOR_EVER)
            side.until_blocked(2)
        assert session.receive() == integer(1)
        assert other.receive() == pair(1, 1)


def test_what_a_replica_acknowledged_to_another_primary_counts_for_nothing(side: Side, session: Wire) -> None:
    with alone(side):
        put(side, session)
    side.come_into_step()
    with side.replica.stopped():
        put(side, session)
        assert session.call("WAITAOF", 1, 1, SOON) == pair(1, 0)
        assert session.call("WAIT", 1, SOON) == integer(0)
