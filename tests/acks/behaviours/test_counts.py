"""What WAIT and WAITAOF do, behaviour by behaviour: each is the engine's, straight and through the proxy alike.

Here: what is answered, and what counts as a write.
"The replica" is that of the pair of nodes which takes the writes of ``side.key``; through the proxy there are two more.
"""

from __future__ import annotations

import pytest

from tests.acks.behaviours.words import (
    A_SECOND_AND_MORE,
    FOR_EVER,
    LARGEST,
    OK,
    REFUSED,
    SOON,
    integer,
    pair,
    put,
    words,
)
from tests.acks.sides import Side
from tests.harness import until
from tests.system.wire import Wire, request

# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", REFUSED)
def test_it_is_refused(line: str, either: Wire) -> None:
    assert either.call(*words(line)) == b"-%s\r\n" % REFUSED[line].encode()


@pytest.mark.parametrize("line", ["WAIT 1 4611686018427387904", "wait 1 0", "WAIT 0 0", "WAIT 0 1", "WAIT -1 0"])
def test_it_is_accepted(line: str, either: Wire) -> None:
    assert either.call(*words(line)) == integer(1)


def test_a_negative_number_of_replicas_asks_for_what_there_is(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        assert session.call("WAIT", -1, FOR_EVER) == integer(0)
        assert session.call("WAIT", -LARGEST - 1, FOR_EVER) == integer(0)


# ---- counts --------------------------------------------------------------------------------------------------------


def test_replies_are_an_integer_and_two_integers_in_either_protocol(side: Side, either: Wire) -> None:
    put(side, either)
    assert either.call("WAIT", 1, FOR_EVER) == integer(1)
    assert either.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)


def test_a_write_is_acknowledged_by_the_replica(side: Side, session: Wire) -> None:
    for _ in range(20):
        assert session.pipeline([["SET", side.key, 1], ["WAIT", 1, FOR_EVER]]) == [OK, integer(1)]
    for _ in range(2):
        assert session.pipeline([["SET", side.key, 2], ["WAITAOF", 1, 1, FOR_EVER]]) == [OK, pair(1, 1)]


def test_more_replicas_than_there_are_is_told_at_the_timeout(side: Side, session: Wire) -> None:
    put(side, session)
    assert session.call("WAIT", 2, SOON) == integer(1)
    put(side, session)
    assert session.call("WAITAOF", 1, 2, A_SECOND_AND_MORE) == pair(1, 1)


def test_a_replica_that_is_stopped_acknowledges_nothing(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        assert session.call("WAIT", 1, SOON) == integer(0)
        assert session.call("WAITAOF", 0, 1, SOON) == pair(1, 0)
        assert session.call("WAITAOF", 1, 1, SOON) == pair(1, 0)
        assert session.call("WAIT", 2, SOON) == integer(0)
    assert session.call("WAIT", 1, FOR_EVER) == integer(1)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)


def test_more_than_was_asked_for_is_told(side: Side, session: Wire) -> None:
    put(side, session)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
    assert session.call("WAIT", 0, FOR_EVER) == integer(1)
    assert session.call("WAIT", -5, FOR_EVER) == integer(1)
    assert session.call("WAITAOF", 0, 0, FOR_EVER) == pair(1, 1)
    assert session.call("WAITAOF", 1, 0, FOR_EVER) == pair(1, 1)


@pytest.mark.parametrize("reads", [[], [["GET", "key"], ["PING"], ["MULTI"], ["GET", "key"], ["EXEC"]]])
def test_who_wrote_nothing_is_told_the_replicas(reads: list[list[bytes | str | int]], side: Side) -> None:
    with side.replica.stopped():
        side.others_write()
        with side.session() as session:
            session.pipeline(reads)
            assert session.call("WAIT", 1, FOR_EVER) == integer(1)
            assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
            assert session.call("WAITAOF", 0, 0, FOR_EVER) == pair(1, 1)


def test_who_asks_for_no_copy_never_blocks(side: Side, session: Wire) -> None:
    with side.replica.stopped():
        put(side, session)
        assert session.call("WAIT", 0, FOR_EVER) == integer(0)
        assert session.call("WAITAOF", 0, 0, FOR_EVER) == pair(1, 0)
        assert session.call("WAITAOF", 1, 0, FOR_EVER) == pair(1, 0)


def test_what_there_is_grows_while_nobody_waits_for_it(side: Side, session: Wire) -> None:
    put(side, session)
    until(lambda: session.call("WAIT", 0, FOR_EVER) == integer(1), "the replica has it")
    until(lambda: session.call("WAITAOF", 0, 0, FOR_EVER) == pair(1, 1), "the replica's disk has it")


def test_a_second_wait_behind_a_satisfied_one_is_answered_at_once(side: Side, session: Wire) -> None:
    """Also when the replica has stopped since, and others went on writing."""
    put(side, session)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
    assert session.call("WAIT", 1, FOR_EVER) == integer(1)
    with side.replica.stopped():
        side.others_write()
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)
        assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
        assert session.call("WAIT", 2, SOON) == integer(1), "and not forgotten when more is asked for"
        assert session.call("WAITAOF", 1, 2, SOON) == pair(1, 1)
        put(side, session)
        assert session.call("WAIT", 1, SOON) == integer(0)
        assert session.call("WAITAOF", 1, 1, SOON) == pair(1, 0)


def test_what_the_primary_sends_by_itself_holds_up_no_wait(side: Side, session: Wire) -> None:
    """A PING to the replicas, propagated behind the write."""
    with side.primary.set("repl-ping-replica-period", "1"):
        put(side, session)
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)
        offset = side.primary.call("ROLE")[1]
        until(lambda: side.primary.call("ROLE")[1] > offset, "a PING was propagated")
        assert session.call("WAIT", 1, FOR_EVER) == integer(1)


# ---- what counts as a write ----------------------------------------------------------------------------------------

LIBRARY = "#!lua name=acks\nserver.register_function('put', function(keys) return server.call('SET', keys[1], 1) end)"
WAYS: dict[str, list[list[bytes | str | int]]] = {
    "plain": [["INCR", "n:KEY"]],
    "pipelined": [["SET", "p:KEY", number] for number in range(40)],
    "the last of many": [["SET", f"other:{number}", 1] for number in range(30)] + [["SET", "KEY", 1]],
    "the first of many": [["SET", "KEY", 1]] + [["GET", f"other:{number}"] for number in range(30)],
    "split": [["MSET", "a", 1, "KEY", 1, "b", 2, "c", 3]],
    "a deletion": [["DEL", "a", "b", "c", "KEY"]],
    "everywhere": [["FLUSHALL"]],
    "a library": [["FUNCTION", "LOAD", "REPLACE", LIBRARY]],
    "a function": [["FUNCTION", "LOAD", "REPLACE", LIBRARY], ["FCALL", "put", 1, "KEY"]],
    "a script": [["EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "KEY"]],
    "a script that fails": [["EVAL", "redis.call('SET', KEYS[1], 1) error({err = 'MINE failed'})", 1, "KEY"]],
    "a transaction": [["MULTI"], ["INCR", "n:KEY"], ["GET", "KEY"], ["EXEC"]],
    "a watched transaction": [["WATCH", "KEY"], ["MULTI"], ["SET", "KEY", 1], ["EXEC"]],
    "a script in a transaction": [["MULTI"], ["EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "KEY"], ["EXEC"]],
    "another database": [["SELECT", 3], ["SET", "KEY", 1], ["SELECT", 0]],
    "another protocol": [["HELLO", 3], ["SET", "KEY", 1], ["HELLO", 2]],
    "unheard": [["CLIENT", "REPLY", "OFF"], ["SET", "KEY", 1], ["CLIENT", "REPLY", "ON"]],
    "skipped": [["CLIENT", "REPLY", "SKIP"], ["SET", "KEY", 1]],
    "large": [["SET", "l:KEY", b"x" * (2 << 20)]],
    "a stream": [["XADD", "x:KEY", "*", "field", "value"]],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_counts(way: str, side: Side, session: Wire) -> None:
    with side.replica.stopped():
        lines = [[_named(word, side.key) for word in line] for line in WAYS[way]]
        session.send_raw(b"".join(request(*line) for line in (*lines, ["ECHO", "done"])))
        replies = []
        while (reply := session.receive()) != b"$4\r\ndone\r\n":
            replies.append(reply)
        refused = [reply for reply in replies if reply.startswith(b"-")]
        assert way == "a script that fails" or not refused, refused
        assert session.call("WAIT", 1, SOON) == integer(0)
        assert session.call("WAITAOF", 0, 1, SOON) == pair(1, 0)
    assert session.call("WAIT", 1, FOR_EVER) == integer(1)
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)


def _named(word: bytes | str | int, key: str) -> bytes | str | int:
    """``KEY`` stands for the side's key; a prefix keeps types apart and leaves the hash tag alone."""
    return word.replace("KEY", key) if isinstance(word, str) and word.endswith("KEY") else word


def test_writes_in_the_same_packet_are_waited_for_on_whichever_lane_they_went(side: Side, session: Wire) -> None:
    writes: list[list[bytes | str | int]] = [["SET", f"key:{number}", number] for number in range(50)]
    for _ in range(5):
        assert session.pipeline([*writes, ["WAIT", 1, FOR_EVER]]) == [OK] * 50 + [integer(1)]
    with side.replica.stopped():
        for turn in ([*writes, ["SET", side.key, 1]], [["SET", side.key, 1], *writes]):
            assert session.pipeline([*turn, ["WAIT", 1, SOON]]) == [OK] * 51 + [integer(0)]
