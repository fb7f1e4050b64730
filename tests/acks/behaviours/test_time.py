"""What WAIT and WAITAOF do, on both sides alike: how long, in which order, and many at a time."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.acks.behaviours.words import (
    FOR_EVER,
    OK,
    SOON,
    integer,
    pair,
    put,
    words,
)
from tests.acks.sides import Side, timed
from tests.system.wire import Wire

# ---- time and order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [1, 20, 130])
def test_a_timeout_is_never_early_and_little_late_on_an_idle_server(timeout: int, side: Side, session: Wire) -> None:
    lateness = []
    with side.replica.stopped():
        put(side, session)
        for call in (["WAIT", 1, timeout], ["WAITAOF", 1, 1, timeout], ["WAIT", 5, timeout]):
            _, took = timed(session, *call)
            lateness.append(took - timeout / 1000)
    assert min(lateness) >= 0
    assert sorted(lateness)[1] <= side.late, lateness  # the median: this machine may have been busy with something else


def test_even_the_shortest_timeout_tells_what_there_is(side: Side, session: Wire) -> None:
    """However little time there was for a look."""
    with side.replica.stopped():
        for _ in range(10):
            put(side, session)
            assert session.call("WAITAOF", 1, 1, 1) == pair(1, 0)
            assert session.call("WAIT", 1, 1) == integer(0)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
    assert session.call("WAIT", 2, 1) == integer(1)
    assert session.call("WAITAOF", 1, 2, 1) == pair(1, 1)


@pytest.mark.parametrize("line", ["WAIT 1 0", "WAITAOF 0 1 0", "WAITAOF 1 1 0", "WAIT 1 4611686018427387904"])
def test_for_ever_ends_with_the_acknowledgment(line: str, side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        session.send(*words(line))
        side.until_blocked()
    assert session.receive() == (pair(1, 1) if "AOF" in line else integer(1))


def test_a_replica_whose_link_is_cut_ends_no_wait(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        session.send("WAIT", 1, FOR_EVER)
        side.until_blocked()
        side.primary.call("CLIENT", "KILL", "TYPE", "replica")
        with side.session() as other:
            assert other.call("WAIT", 1, SOON) == integer(0), "there is no replica at the moment"
        assert side.blocked() == 1
    assert session.receive() == integer(1), "it is back, and has it"


def test_who_leaves_is_waited_for_no_longer(side: Side) -> None:
    with side.replica.stopped():
        sessions = [side.session() for _ in range(6)]
        for number, each in enumerate(sessions):
            put(side, each)
            each.send(*words("WAIT 1 0" if number % 2 else "WAITAOF 1 1 0"))
        side.until_blocked(6)
        for each in sessions:
            each.close()
        side.until_blocked(0)


def test_commands_behind_a_wait_are_run_behind_it(side: Side, session: Wire) -> None:
    behind = "behind:" + side.key
    with side.session() as other:
        other.call("DEL", behind)
        with side.replica.stopped():
            put(side, session)
            for line in ("WAIT 1 0", f"SET {behind} 1", f"GET {behind}", "PING"):
                session.send(*words(line))
            side.until_blocked()
            assert other.call("EXISTS", behind) == integer(0)
        assert [session.receive() for _ in range(4)] == [integer(1), OK, b"$1\r\n1\r\n", b"+PONG\r\n"]


def test_waits_follow_one_another(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        lines = ["WAIT 1 60", "WAITAOF 1 1 60", "WAIT 0 0", "WAIT 1 60", "WAITAOF 0 0 0"]
        replies, took = _timed_pipeline(session, [words(line) for line in lines])
    assert replies == [integer(0), pair(1, 0), integer(0), integer(0), pair(1, 0)]
    assert took >= 0.18


def _timed_pipeline(session: Wire, requests: list[list[bytes | str | int]]) -> tuple[list[bytes], float]:
    started = time.monotonic()
    return session.pipeline(requests), time.monotonic() - started


# ---- many ----------------------------------------------------------------------------------------------------------


def test_many_are_released_by_one_acknowledgment(side: Side) -> None:
    """WAIT and WAITAOF together; each is told its own numbers."""
    lines = ["WAIT 1 0", "WAITAOF 0 1 0", "WAITAOF 1 1 0", "WAIT 1 20000", "WAITAOF 1 1 20000"]
    with ExitStack() as stack:
        sessions = [stack.enter_context(side.session()) for _ in range(50)]
        with side.replica.stopped():
            for number, each in enumerate(sessions):
                put(side, each)
                each.send(*words(lines[number % len(lines)]))
            side.until_blocked(50)
        for number, each in enumerate(sessions):
            assert each.receive() == (pair(1, 1) if "AOF" in lines[number % len(lines)] else integer(1))


def test_one_that_asks_for_too_much_holds_back_nobody(side: Side, session: Wire) -> None:
    with side.session() as hopeless, side.session() as other:
        put(side, hopeless)
        put(side, other)
        hopeless.send("WAIT", 5, FOR_EVER)
        other.send("WAITAOF", 1, 5, FOR_EVER)
        side.until_blocked(2)
        for _ in range(5):
            put(side, session)
            assert session.call("WAIT", 1, FOR_EVER) == integer(1)
            put(side, session)
            assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
