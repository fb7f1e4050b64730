"""What WAIT and WAITAOF do, on both sides alike: CLIENT REPLY and UNBLOCK, MULTI, scripts and functions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.acks.behaviours.words import (
    FOR_EVER,
    NO_AOF,
    OK,
    QUEUED,
    REFUSED,
    SOON,
    integer,
    multi,
    pair,
    put,
    replies,
    words,
)
from tests.acks.sides import Side
from tests.harness import until
from tests.system.wire import Wire, request

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


def test_a_scripts_own_writes_are_not_counted_in_it(side: Side) -> None:
    """They are replicated at its end, as those of a transaction are."""
    script = "redis.call('SET', KEYS[1], 1) return {redis.call('WAIT', 1, 0), redis.call('WAITAOF', 0, 1, 0)}"
    with side.replica.stopped(), side.session() as fresh:
        assert fresh.call("EVAL", script, 1, side.key) == replies(integer(1), pair(1, 1))
        assert fresh.call("WAIT", 1, SOON) == integer(0)


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
