"""What WAIT and WAITAOF do, behaviour by behaviour: each is the engine's, straight and through the proxy alike.

"The replica" is that of the pair of nodes which takes the writes of ``side.key``; through the proxy there are two more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.acks.sides import Side, timed
from tests.harness import until
from tests.system.wire import Wire, request

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
NO_AOF = b"-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n"
LARGEST = (1 << 63) - 1
FOR_EVER = 0
SOON = 80  # milliseconds: the timeout of a WAIT that is not going to be satisfied


@pytest.fixture(params=["engine", "ackgate"])
def side(request: pytest.FixtureRequest) -> Side:
    running: Side = request.getfixturevalue(request.param)
    running.come_into_step()
    return running


@pytest.fixture
def session(side: Side) -> Iterator[Wire]:
    with side.session() as connection:
        yield connection


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def either(request: pytest.FixtureRequest, side: Side) -> Iterator[Wire]:
    """A session of either protocol."""
    with side.session(request.param) as connection:
        yield connection


def words(line: str) -> list[bytes | str | int]:
    return [*line.split()]


def integer(number: int) -> bytes:
    return b":%d\r\n" % number


def pair(local: int, replicas: int) -> bytes:
    return b"*2\r\n:%d\r\n:%d\r\n" % (local, replicas)


def put(side: Side, session: Wire) -> None:
    assert session.call("SET", side.key, "value") == OK


# ---- arguments -----------------------------------------------------------------------------------------------------

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
BAD_TIMEOUT = "ERR timeout is not an integer or out of range"
NOT_POSITIVE = "ERR value is out of range, must be positive"
NOT_A_BIT = "ERR value is out of range, value must between 0 and 1"
REFUSED = {
    "WAIT": "ERR wrong number of arguments for 'wait' command",
    "WAIT 1": "ERR wrong number of arguments for 'wait' command",
    "WAIT 1 0 0": "ERR wrong number of arguments for 'wait' command",
    "WAIT a 0": NOT_AN_INTEGER,
    "WAIT +1 0": NOT_AN_INTEGER,
    "WAIT 01 0": NOT_AN_INTEGER,
    "WAIT 1.5 0": NOT_AN_INTEGER,
    "WAIT 99999999999999999999 1": NOT_AN_INTEGER,
    f"WAIT {LARGEST + 1} 1": NOT_AN_INTEGER,
    "WAIT x y": NOT_AN_INTEGER,
    "WAIT 1 a": BAD_TIMEOUT,
    "WAIT 1 1.5": BAD_TIMEOUT,
    "WAIT 1 0x1": BAD_TIMEOUT,
    "WAIT 1 100000000000000000000": BAD_TIMEOUT,
    "WAIT 1 -1": "ERR timeout is negative",
    f"WAIT 1 {LARGEST}": "ERR timeout is out of range",
    "WAITAOF": "ERR wrong number of arguments for 'waitaof' command",
    "WAITAOF 1 0": "ERR wrong number of arguments for 'waitaof' command",
    "WAITAOF 1 0 0 0": "ERR wrong number of arguments for 'waitaof' command",
    "WAITAOF a 0 0": NOT_AN_INTEGER,
    "WAITAOF 2 0 0": NOT_A_BIT,
    "WAITAOF -1 0 0": NOT_A_BIT,
    "WAITAOF 0 -1 0": NOT_POSITIVE,
    "WAITAOF 0 x 0": NOT_POSITIVE,
    f"WAITAOF 0 {LARGEST + 1} 0": NOT_POSITIVE,
    "WAITAOF 2 x y": NOT_A_BIT,
    "WAITAOF 0 0 x": BAD_TIMEOUT,
    "WAITAOF 0 0 -1": "ERR timeout is negative",
    f"WAITAOF 0 0 {LARGEST}": "ERR timeout is out of range",
}


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
    assert session.call("WAITAOF", 1, 2, SOON) == pair(1, 1)


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


# ---- CLIENT REPLY --------------------------------------------------------------------------------------------------

UNHEARD: list[tuple[str, list[bytes]]] = [
    ("CLIENT REPLY ON", [OK]),
    ("CLIENT REPLY OFF|WAIT 1 0|PING|CLIENT REPLY ON|PING", [OK, b"+PONG\r\n"]),
    ("CLIENT REPLY OFF|WAIT x y|NOSUCH|CLIENT REPLY x|GET|CLIENT REPLY ON", [OK]),
    ("CLIENT REPLY OFF|CLIENT REPLY SKIP|PING|CLIENT REPLY ON|PING", [OK, b"+PONG\r\n"]),
    ("CLIENT REPLY OFF|SET KEY 1|INCR KEY|MSET a 1 b 2|MGET a b|CLIENT REPLY ON|GET KEY", [OK, b"$1\r\n2\r\n"]),
    ("CLIENT REPLY OFF|MULTI|SET KEY 7|WAIT 1 0|EXEC|CLIENT REPLY ON|GET KEY", [OK, b"$1\r\n7\r\n"]),
    ("CLIENT REPLY OFF|HELLO 3|SELECT 1|SELECT 0|CLIENT REPLY ON|GET nil", [OK, b"_\r\n"]),
    ("CLIENT REPLY OFF|RESET|PING", [b"+RESET\r\n", b"+PONG\r\n"]),
    ("CLIENT REPLY SKIP|WAIT 1 0|WAITAOF 0 0 0", [pair(1, 1)]),
    ("CLIENT REPLY SKIP|SET KEY 5|GET KEY|GET KEY", [b"$1\r\n5\r\n"] * 2),
    ("CLIENT REPLY SKIP|NOSUCH|ECHO a", [b"$1\r\na\r\n"]),
    ("CLIENT REPLY SKIP|CLIENT REPLY SKIP|ECHO a|ECHO b", [b"$1\r\nb\r\n"]),
    ("CLIENT REPLY SKIP|CLIENT REPLY ON|ECHO a", [OK, b"$1\r\na\r\n"]),
    ("CLIENT REPLY SKIP|CLIENT REPLY OFF|ECHO a|CLIENT REPLY ON", [OK]),
    ("CLIENT REPLY SKIP|CLIENT REPLY x|ECHO a", [b"$1\r\na\r\n"]),
    ("CLIENT REPLY SKIP|RESET|ECHO a", [b"$1\r\na\r\n"]),
    ("CLIENT REPLY SKIP|MULTI|SET KEY 3|EXEC", [QUEUED, b"*1\r\n+OK\r\n"]),
    ("SET KEY 1|CLIENT REPLY SKIP|GET KEY|APPEND KEY 2|GET KEY", [OK, integer(2), b"$2\r\n12\r\n"]),
    ("CLIENT REPLY", [b"-ERR wrong number of arguments for 'client|reply' command\r\n"]),
    ("CLIENT REPLY OFF x", [b"-ERR wrong number of arguments for 'client|reply' command\r\n"]),
    ("CLIENT REPLY x", [b"-ERR syntax error\r\n"]),
    (
        "MULTI|CLIENT REPLY OFF|EXEC",
        [
            OK,
            b"-ERR Command 'client|reply' not allowed inside a transaction\r\n",
            b"-EXECABORT Transaction discarded because of previous errors.\r\n",
        ],
    ),
]


@pytest.mark.parametrize("together", [True, False], ids=["one packet", "one by one"])
@pytest.mark.parametrize(("lines", "heard"), UNHEARD, ids=[lines for lines, _ in UNHEARD])
def test_only_what_client_reply_leaves_is_heard(
    lines: str, heard: list[bytes], together: bool, side: Side, session: Wire
) -> None:
    packets = [request(*words(line)) for line in (*lines.replace("KEY", side.key).split("|"), "ECHO done")]
    if together:
        packets = [b"".join(packets)]
    for packet in packets:
        session.send_raw(packet)
    assert [session.receive() for _ in range(len(heard) + 1)] == [*heard, b"$4\r\ndone\r\n"]


def test_an_unheard_wait_waits_all_the_same(side: Side, session: Wire) -> None:
    behind = "behind:" + side.key
    with side.session() as other:
        other.call("DEL", behind)
        with side.replica.stopped():
            for line in ("CLIENT REPLY OFF", f"SET {side.key} 1", "WAIT 1 0", f"SET {behind} 1", "CLIENT REPLY ON"):
                session.send(*words(line))
            side.until_blocked()
            assert other.call("EXISTS", behind) == integer(0)
        assert session.receive() == OK
        assert other.call("EXISTS", behind) == integer(1)


# ---- CLIENT UNBLOCK ------------------------------------------------------------------------------------------------

UNBLOCKS = {
    "CLIENT UNBLOCK": b"-ERR wrong number of arguments for 'client|unblock' command\r\n",
    "CLIENT UNBLOCK x": b"-ERR value is not an integer or out of range\r\n",
    "CLIENT UNBLOCK 99999999999999999999": b"-ERR value is not an integer or out of range\r\n",
    "CLIENT UNBLOCK 123456 why": b"-ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR\r\n",
    "CLIENT UNBLOCK x why": b"-ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR\r\n",
    "CLIENT UNBLOCK 123456": b":0\r\n",
    "CLIENT UNBLOCK 123456 error": b":0\r\n",
    "CLIENT UNBLOCK 123456 TIMEOUT": b":0\r\n",
    "CLIENT UNBLOCK 123456 TIMEOUT more": b":0\r\n",
    "CLIENT UNBLOCK -1": b":0\r\n",
}


@pytest.mark.parametrize("line", UNBLOCKS)
def test_client_unblock_answers(line: str, session: Wire) -> None:
    assert session.call(*words(line)) == UNBLOCKS[line]


@pytest.mark.parametrize(
    ("line", "reason", "reply"),
    [
        ("WAIT 1 0", [], integer(0)),
        ("WAIT 1 30000", ["TIMEOUT"], integer(0)),
        ("WAITAOF 1 1 0", ["timeout"], pair(1, 0)),
        ("WAITAOF 0 1 30000", [], pair(1, 0)),
        ("WAIT 1 0", ["ERROR"], b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
        ("WAITAOF 1 1 0", ["error"], b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
    ],
)
def test_a_session_that_waits_can_be_unblocked(
    line: str, reason: Sequence[str], reply: bytes, side: Side, either: Wire, session: Wire
) -> None:
    number = int(either.call("CLIENT", "ID")[1:-2])
    assert session.call("CLIENT", "UNBLOCK", number) == integer(0), "it is not blocked yet"
    with side.replica.stopped():
        put(side, either)
        either.send(*words(line))
        either.send("PING")
        side.until_blocked()
        assert session.call("CLIENT", "UNBLOCK", number, *reason) == integer(1)
        assert session.call("CLIENT", "UNBLOCK", number, *reason) == integer(0), "it is not blocked any more"
        assert either.receive() == reply
        assert either.receive() == b"+PONG\r\n", "and goes on"
        side.until_blocked(0)
    put(side, either)
    assert either.call("WAIT", 1, FOR_EVER) == integer(1)


# ---- in MULTI ------------------------------------------------------------------------------------------------------


def multi(session: Wire, *lines: str) -> bytes:
    """The reply to EXEC."""
    *queued, reply = session.pipeline([["MULTI"], *([*words(line)] for line in lines), ["EXEC"]])
    assert queued == [OK] + [QUEUED] * len(lines), queued
    return reply


def replies(*frames: bytes) -> bytes:
    return b"*%d\r\n" % len(frames) + b"".join(frames)


def test_in_multi_the_present_counts_are_told_at_once(side: Side, either: Wire) -> None:
    with side.replica.stopped():
        put(side, either)
        assert multi(either, "WAIT 1 0", "WAITAOF 0 1 0", "WAITAOF 1 1 0") == replies(
            integer(0), pair(1, 0), pair(1, 0)
        )
        assert multi(either, "WAIT 5 0") == replies(integer(0))
        assert side.blocked() == 0
    assert either.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
    assert multi(either, "WAIT 1 0", "WAITAOF 1 1 0", "WAIT 7 0") == replies(integer(1), pair(1, 1), integer(1))


def test_in_multi_what_there_is_grows_too(side: Side, session: Wire) -> None:
    put(side, session)
    until(lambda: multi(session, "WAIT 1 0") == replies(integer(1)), "the replica has it")
    until(lambda: multi(session, "WAITAOF 1 1 0") == replies(pair(1, 1)), "the replica's disk has it")


def test_in_multi_each_count_has_its_place(side: Side, either: Wire) -> None:
    key = side.key
    lines = ["WAIT 0 0", f"SET {key} 1", "WAITAOF 0 0 0", f"GET {key}", f"LPUSH {key} x", "WAIT 1 0", "PING"]
    reply = multi(either, *lines)
    wrong = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    assert reply == replies(integer(1), OK, pair(1, 1), b"$1\r\n1\r\n", wrong, integer(1), b"+PONG\r\n")


def test_in_multi_only_earlier_writes_are_counted(side: Side, session: Wire) -> None:
    """A transaction is replicated at its end, so its own writes are not: a trap of the engine."""
    with side.replica.stopped():
        assert multi(session, f"SET {side.key} 1", "WAIT 1 0", "WAITAOF 1 1 0") == replies(OK, integer(1), pair(1, 1))
        assert multi(session, "WAIT 1 0", "WAITAOF 1 1 0") == replies(integer(0), pair(1, 0))
        assert session.call("WAIT", 1, SOON) == integer(0)


def test_in_multi_bad_values_are_refused_by_exec(session: Wire) -> None:
    lines = [line for line, text in REFUSED.items() if "wrong number" not in text]
    errors = [b"-%s\r\n" % REFUSED[line].encode() for line in lines]
    assert multi(session, *lines, "WAIT 1 0") == replies(*errors, integer(1))


@pytest.mark.parametrize("line", ["WAIT", "WAIT 1", "WAITAOF 1 0", "WAITAOF 1 0 0 0"])
def test_in_multi_a_wrong_number_of_arguments_aborts(line: str, side: Side, session: Wire) -> None:
    answers = session.pipeline([["MULTI"], ["SET", side.key, "never"], words(line), ["EXEC"]])
    aborted = b"-EXECABORT Transaction discarded because of previous errors.\r\n"
    assert answers == [OK, QUEUED, b"-%s\r\n" % REFUSED[line].encode(), aborted]
    assert session.call("GET", side.key) == b"$7\r\nin step\r\n"


def test_in_multi_nothing_is_told_when_a_watched_key_was_touched(side: Side, either: Wire) -> None:
    either.call("WATCH", side.key)
    side.others_write()
    protocol_3 = either.call("GET", "nil") == b"_\r\n"
    answers = either.pipeline([["MULTI"], ["WAIT", 1, 0], ["SET", side.key, 1], ["EXEC"], ["WAIT", 1, 0]])
    assert answers == [OK, QUEUED, QUEUED, b"_\r\n" if protocol_3 else b"*-1\r\n", integer(1)]


def test_in_multi_a_discarded_wait_is_forgotten(side: Side, session: Wire) -> None:
    assert session.pipeline([["MULTI"], ["WAIT", 1, 0], ["DISCARD"]]) == [OK, QUEUED, OK]
    assert multi(session, f"SET {side.key} 1") == replies(OK)


def test_in_multi_waitaof_is_refused_by_exec_without_an_aof(side: Side, session: Wire) -> None:
    put(side, session)
    with side.primary.set("appendonly", "no"):
        reply = multi(session, "WAITAOF 1 0 0", f"SET {side.key} 1", "WAIT 0 0")
        assert reply.startswith(b"*3\r\n" + NO_AOF + OK + b":")


# ---- in scripts and functions --------------------------------------------------------------------------------------


def test_a_script_is_told_the_present_counts_of_earlier_writes(side: Side, session: Wire) -> None:
    wait = "return {redis.call('WAIT', 1, 0), redis.call('WAITAOF', 1, 1, 0)}"
    with side.replica.stopped():
        put(side, session)
        assert session.call("EVAL", wait, 1, side.key) == replies(integer(0), pair(1, 0))
    assert session.call("WAITAOF", 1, 1, FOR_EVER) == pair(1, 1)
    side.come_into_step()
    assert session.call("EVAL", wait, 1, side.key) == replies(integer(1), pair(1, 1))


def test_a_function_is_told_them_too(side: Side, session: Wire) -> None:
    library = "#!lua name=waits\nserver.register_function('wait', function(keys) return server.call('WAIT', 1, 0) end)"
    assert session.call("FUNCTION", "LOAD", "REPLACE", library) == b"$5\r\nwaits\r\n"
    assert session.call("WAIT", 1, FOR_EVER) == integer(1)
    side.come_into_step()
    assert session.call("FCALL", "wait", 1, side.key) == integer(1)
    with side.replica.stopped():
        put(side, session)
        assert session.call("FCALL", "wait", 1, side.key) == integer(0)


def test_a_script_is_refused_in_the_engines_words(side: Side, session: Wire) -> None:
    call = "local reply = redis.pcall(unpack(ARGV)) return reply.err"
    for line in ("WAIT a 0", "WAIT 1 -1", "WAITAOF 2 0 0"):
        text = REFUSED[line].encode()
        assert session.call("EVAL", call, 1, side.key, *line.split()) == b"$%d\r\n%s\r\n" % (len(text), text)


# ---- what is on disk -----------------------------------------------------------------------------------------------


def test_without_an_aof_the_primary_refuses_and_its_replica_can_be_waited_for(side: Side, session: Wire) -> None:
    put(side, session)
    with side.primary.set("appendonly", "no"):
        assert session.call("WAITAOF", 1, 0, FOR_EVER) == NO_AOF
        assert session.call("WAITAOF", 1, 1, SOON) == NO_AOF
        put(side, session)
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
