"""WAIT and WAITAOF where one server gives no example: several shards, slots on their way, primaries that hang."""

from __future__ import annotations

import re
import resource
import socket
from pathlib import Path

import pytest

from tests.acks.behaviours.words import FOR_EVER, NO_AOF, OK, QUEUED, SOON
from tests.acks.sides import Ackgate, timed
from tests.system.load import tag
from tests.system.nodes import Shard, migrate
from tests.system.wire import Wire, request


@pytest.fixture
def side(ackgate: Ackgate) -> Ackgate:
    ackgate.come_into_step()
    return ackgate


def put(session: Wire, *shards: Shard) -> None:
    for shard in shards:
        assert session.call("SET", shard.key, "value") == OK


# ---- in MULTI ------------------------------------------------------------------------------------------------------


def test_in_multi_every_shard_is_asked_and_the_least_told(side: Ackgate, session: Wire) -> None:
    mine, other, _ = side.shards
    key = mine.key + "multi"
    put(session, other)
    with other.replica.stopped():
        put(session, other)
        lines: list[list[bytes | str | int]] = [["MULTI"], ["SET", key, 1], ["WAIT", 1, 0], ["WAITAOF", 1, 1, 0]]
        replies = session.pipeline([*lines, ["GET", key], ["EXEC"]])
        assert replies[-1] == b"*4\r\n+OK\r\n:0\r\n*2\r\n:1\r\n:0\r\n$1\r\n1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
    assert session.pipeline([*lines, ["EXEC"]])[-1] == b"*3\r\n+OK\r\n:1\r\n*2\r\n:1\r\n:1\r\n"


def test_in_multi_any_shard_without_an_aof_refuses_waitaof(side: Ackgate, session: Wire) -> None:
    mine, other, _ = side.shards
    with other.primary.set("appendonly", "no"):
        lines: list[list[bytes | str | int]] = [["MULTI"], ["WAITAOF", 1, 0, 0], ["SET", mine.key, 1], ["EXEC"]]
        assert session.pipeline(lines)[-1] == b"*2\r\n" + NO_AOF + OK


def test_in_multi_a_primary_that_hangs_counts_nothing_and_the_transaction_runs(side: Ackgate, session: Wire) -> None:
    mine, other, _ = side.shards
    put(session, mine, other)
    with other.primary.stopped():
        lines: list[list[bytes | str | int]] = [["MULTI"], ["WAIT", 1, 0], ["SET", mine.key, "hung"], ["EXEC"]]
        assert session.pipeline(lines)[-1] == b"*2\r\n:0\r\n+OK\r\n"
    assert session.call("GET", mine.key) == b"$4\r\nhung\r\n"


def test_in_multi_counts_keep_their_place_when_the_slot_moves_before_exec(side: Ackgate, session: Wire) -> None:
    source, target, _ = side.shards
    slot = source.slot + 21
    key = "multi" + tag(slot)
    lines: list[list[bytes | str | int]] = [["MULTI"], ["SET", key, 1], ["WAIT", 1, 0]]
    assert session.pipeline(lines) == [OK, QUEUED, QUEUED]
    migrate(source, target, slot)
    try:
        assert session.pipeline([["WAIT", "x", 0], ["GET", key], ["EXEC"]])[-1] == (
            b"*4\r\n+OK\r\n:1\r\n-ERR value is not an integer or out of range\r\n$1\r\n1\r\n"
        )
    finally:
        migrate(target, source, slot)


# ---- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrote", ["there", "elsewhere"])
@pytest.mark.parametrize("line", ["WAIT 1 100", "WAITAOF 1 1 100", "WAIT 0 100"])
def test_a_primary_that_hangs_makes_no_timeout_late(wrote: str, line: str, side: Ackgate, session: Wire) -> None:
    mine, other, _ = side.shards
    put(session, mine)
    if wrote == "there":
        put(session, other)
    lateness = []
    with other.primary.stopped():
        for _ in range(3):
            reply, took = timed(session, *line.split())
            assert reply in (b":0\r\n", b"*2\r\n:0\r\n:0\r\n")
            lateness.append(took - 0.1)
    assert min(lateness) >= 0
    assert sorted(lateness)[1] <= side.late, lateness
    assert session.call("WAIT", 1, 0) == b":1\r\n"


def test_nor_does_it_when_every_shard_has_to_prove_what_it_is(side: Ackgate, session: Wire) -> None:
    """A slot that the session wrote has moved."""
    source, target, _ = side.shards
    slot = source.slot + 22
    assert session.call("SET", "late" + tag(slot), 1) == OK
    migrate(source, target, slot)
    try:
        lateness = []
        with target.primary.stopped():
            for _ in range(3):
                reply, took = timed(session, "WAIT", 1, 100)
                assert reply == b":0\r\n"
                lateness.append(took - 0.1)
        assert min(lateness) >= 0
        assert sorted(lateness)[1] <= side.late, lateness
        assert session.call("WAIT", 1, 0) == b":1\r\n"
    finally:
        migrate(target, source, slot)


@pytest.mark.parametrize("reason", ["TIMEOUT", "ERROR"])
def test_a_session_that_waits_for_a_primary_that_hangs_can_be_unblocked(reason: str, side: Ackgate) -> None:
    with side.session() as waiting, side.session() as other:
        number = int(waiting.call("CLIENT", "ID")[1:-2])
        put(waiting, side.shards[1])
        with side.shards[1].primary.stopped():
            waiting.send("WAIT", 1, 0)
            side.until_blocked()
            assert other.call("CLIENT", "UNBLOCK", number, reason) == b":1\r\n"
            answer = waiting.receive()
        assert answer == (b":0\r\n" if reason == "TIMEOUT" else b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n")
        assert waiting.call("WAIT", 1, 0) == b":1\r\n"


def test_a_session_that_waits_is_shown_as_blocked(side: Ackgate) -> None:
    with side.session() as waiting, side.session() as other:
        number = int(waiting.call("CLIENT", "ID")[1:-2])

        def flags() -> bytes:
            return re.search(rb"\bflags=(\w+)", other.call("CLIENT", "LIST", "ID", number))[1]  # type: ignore[index]

        assert flags() == b"N"
        waiting.send("WAIT", 7, 0)
        side.until_blocked()
        assert flags() == b"b"
        other.call("CLIENT", "UNBLOCK", number)
        assert waiting.receive() == b":1\r\n"
        assert flags() == b"N"


def test_a_client_that_hangs_up_in_its_second_wait_is_gone(side: Ackgate, session: Wire) -> None:
    """Both in one packet: the second blocks the session before the first has been dealt with to the end."""
    session.send_raw(request("WAIT", 7, 30) + request("WAIT", 7, 0))
    assert session.receive() == b":1\r\n"
    side.until_blocked()
    session.sock.shutdown(socket.SHUT_WR)
    assert session.at_eof()
    side.until_blocked(0)


# ---- writes that took a way round ----------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
def test_writes_that_were_redirected_count_where_they_arrived(heard: bool, side: Ackgate) -> None:
    """MOVED, and ASK."""
    source, target, _ = side.shards
    slot = source.slot + 23
    key = "way" + tag(slot)

    def write(session: Wire, value: int) -> None:
        if heard:
            assert session.call("SET", key + str(value), value) == OK
        else:
            for words in (["CLIENT", "REPLY", "OFF"], ["SET", key + str(value), value], ["CLIENT", "REPLY", "ON"]):
                session.send(*words)
            assert session.receive() == OK

    target.primary.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.primary.id)
    source.primary.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.primary.id)
    with target.replica.stopped(), side.session() as asked:
        write(asked, 1)
        assert asked.call("WAIT", 1, SOON) == b":0\r\n"
    for node in (target.primary, source.primary):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", target.primary.id)
    with target.replica.stopped(), side.session() as moved:
        write(moved, 2)
        assert moved.call("WAIT", 1, SOON) == b":0\r\n"
    with side.session() as session:
        assert session.call("GET", key + "1") == b"$1\r\n1\r\n"
        assert session.call("GET", key + "2") == b"$1\r\n2\r\n"
        session.call("DEL", key + "1", key + "2")
        assert session.call("WAIT", 1, 0) == b":1\r\n"
    migrate(target, source, slot)


def test_nor_does_one_that_waits_for_ever_for_the_same_proof(side: Ackgate, session: Wire) -> None:
    """Both were told before that the write is on all disks; whether its primary still leads cannot be seen now."""
    first = side.shards[0]
    with side.session() as patient:
        for each in (patient, session):
            put(each, first)
            assert each.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
        with first.primary.stopped():
            patient.send("WAITAOF", 1, 1, 0)
            side.until_blocked()
            reply, seconds = timed(session, "WAITAOF", 1, 1, 100)
            assert reply == b"*2\r\n:0\r\n:0\r\n"
            assert 0.1 <= seconds < 0.1 + side.late
        assert patient.receive() == b"*2\r\n:1\r\n:1\r\n"


@pytest.mark.parametrize("line", ["WAIT 1", "WAITAOF 1 1"])
def test_what_was_told_of_writes_whose_slot_moved_is_not_forgotten(line: str, side: Ackgate, session: Wire) -> None:
    """Though the replica that has them has stopped since, and others went on writing."""
    source, target, _ = side.shards
    slot = source.slot + 22
    assert session.call("SET", "moved" + tag(slot), 1) == OK
    migrate(source, target, slot)
    try:
        told = session.call(*line.split(), FOR_EVER)
        with side.session() as other, target.replica.stopped():
            put(other, target)
            assert session.call(*line.split(), FOR_EVER) == told
            put(session, target)
            assert session.call("WAIT", 1, SOON) == b":0\r\n"
    finally:
        migrate(target, source, slot)


# ---- what is kept of it ----


def test_the_words_of_a_wait_are_kept_while_they_are_few(side: Ackgate, session: Wire) -> None:
    """They are looked up once, which strangers must not fill the memory with."""
    process = int(re.search(rb"process_id:(\d+)", session.call("INFO", "server"))[1])  # type: ignore[index]
    before = resident(process)
    for number in range(200):
        assert session.call("WAIT", str(number) * 200_000, 0).startswith(b"-ERR value is not an integer")
        session.send_raw(b"WAIT" + b" " * 60_000 + b"0 %d\r\n" % number)
        assert session.receive().startswith(b":")
    assert resident(process) - before < 20_000_000


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


# ---- unheard -------------------------------------------------------------------------------------------------------


def test_many_unheard_writes_are_all_carried_out_in_order(side: Ackgate, session: Wire) -> None:
    """Over every lane."""
    session.call("FLUSHALL")
    session.send("CLIENT", "REPLY", "OFF")
    for turn in range(20):
        session.send_raw(b"".join(request("RPUSH", f"list:{number}", turn) for number in range(200)))
    session.send("CLIENT", "REPLY", "ON")
    assert session.receive() == OK
    whole = b"*20\r\n" + b"".join(b"$%d\r\n%d\r\n" % (len(str(turn)), turn) for turn in range(20))
    lists = session.pipeline([["LRANGE", f"list:{number}", 0, -1] for number in range(200)])
    assert lists == [whole] * 200
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


def test_one_unheard_reply_leaves_a_session_as_it_was(side: Ackgate, session: Wire) -> None:
    """Plain commands go the short way again, past control."""
    for words in (["CLIENT", "REPLY", "SKIP"], ["SET", side.key, 1], ["GET", side.key]):
        session.send(*words)
    assert session.receive() == b"$1\r\n1\r\n"
    before = side.metric("ackgate_commands_control_total")
    for _ in range(10):
        assert session.call("GET", side.key) == b"$1\r\n1\r\n"
    assert side.metric("ackgate_commands_control_total") == before
