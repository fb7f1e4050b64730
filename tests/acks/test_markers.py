"""Never a false number: the marker by which a WAITAOF is asked, when it is refused, postponed or slow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.acks.sides import timed
from tests.acks.staging import BOTH, NONE, ONE, put
from tests.harness import Up, until
from tests.system.load import tag
from tests.system.nodes import Node, Shard, metric, migrate
from tests.system.wire import Wire

UNANSWERED = re.compile(
    rb"-ERR WAITAOF cannot be answered: 127\.0\.0\.1:(\d+) has not answered the marker that asks what is fsynced "
    rb"within (\d+) ms, though it answers otherwise \(is it paused, or overloaded\?\); cure that, or use WAIT\r\n"
)
REFUSED = "ackgate_ack_markers_refused_total"
FALLBACKS = [f'ackgate_ack_fallbacks_total{{kind="{kind}"}}' for kind in ("raised", "alone")]


@contextmanager
def paused(node: Node) -> Iterator[None]:
    """It takes no writes, and so no markers."""
    node.call("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        yield
    finally:
        node.call("CLIENT", "UNPAUSE")


@pytest.mark.parametrize(
    "setting, value, word",
    [("maxmemory", "1", b"(OOM "), ("min-replicas-to-write", "2", b"(NOREPLICAS "), ("acl", "", b"(NOPERM ")],
)
def test_a_shard_that_takes_no_marker_says_why(
    setting: str, value: str, word: bytes, session: Wire, shards: list[Shard]
) -> None:
    """Nor has it any number while its replica is stopped; WAIT needs no marker."""
    shard = shards[0]
    put(session, shard)
    with shard.replica.stopped(), refusing(shard.primary, setting, value):
        words = session.call("WAITAOF", 1, 1, 0)
        assert words.startswith(b"-ERR WAITAOF cannot be answered: ") and word in words, words
        assert b":%d refused" % shard.primary.port in words
        assert session.call("WAIT", 1, 100) == NONE
    assert session.call("WAIT", 1, 0) == ONE
    assert session.call("WAITAOF", 1, 1, 0) == BOTH


@contextmanager
def refusing(node: Node, setting: str, value: str) -> Iterator[None]:
    if setting != "acl":
        with node.set(setting, value):
            yield
        return
    node.call("ACL", "SETUSER", "default", "-function|restore")
    try:
        yield
    finally:
        node.call("ACL", "SETUSER", "default", "+@all")


def unanswered(words: bytes, shard: Shard) -> float:
    """That the reply names the shard's primary and what it owes; the time it is said to owe it for, in milliseconds."""
    match = UNANSWERED.fullmatch(words)
    assert match is not None and int(match[1]) == shard.primary.port, words
    return int(match[2])


def test_a_marker_that_a_pause_postpones_is_no_number(steady: Up, session: Wire, shards: list[Shard]) -> None:
    """More may be true than was told; who has the time is told when the pause is over."""
    shard = shards[0]
    put(session, shard)
    before = [metric(steady, name) for name in (REFUSED, *FALLBACKS)]
    with paused(shard.primary):
        words, took = timed(session, "WAITAOF", 1, 1, 200)
        assert took >= 0.2 and 0 < unanswered(words, shard) <= took * 1000 + 1, words
        assert unanswered(session.call("WAITAOF", 0, 1, 1), shard) > 200, "nor does the shortest timeout make it one"
        assert metric(steady, REFUSED) == before[0] + 1, "it is one marker"
        assert [metric(steady, name) for name in FALLBACKS] == before[1:], "which nothing took the place of"
        assert session.call("WAIT", 1, 0) == ONE, "which needs no marker"
        session.send("WAITAOF", 1, 1, 0)
        until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
    assert session.receive() == BOTH


def test_a_postponed_marker_is_no_number_where_slots_moved(session: Wire, shards: list[Shard]) -> None:
    source, target, _ = shards
    slot = source.slot + 31
    assert session.call("SET", "moved" + tag(slot), 1) == b"+OK\r\n"
    migrate(source, target, slot)
    try:
        with paused(target.primary):
            unanswered(session.call("WAITAOF", 1, 1, 200), target)
    finally:
        migrate(target, source, slot)
    assert session.call("WAITAOF", 1, 1, 0) == BOTH


@pytest.mark.slow
def test_in_multi_a_postponed_marker_is_an_error_in_its_place(session: Wire, shards: list[Shard]) -> None:
    """It is given two seconds, as every present count is."""
    mine, other, _ = shards
    put(session, mine)
    with paused(mine.primary):
        lines: list[list[bytes | str | int]] = [["MULTI"], ["WAITAOF", 1, 1, 0], ["SET", other.key, 1], ["EXEC"]]
        reply = session.pipeline(lines)[-1]
        assert reply.startswith(b"*2\r\n") and reply.endswith(b"+OK\r\n")
        unanswered(reply.removeprefix(b"*2\r\n").removesuffix(b"+OK\r\n"), mine)
    assert session.call("WAITAOF", 1, 1, 0) == BOTH


def test_who_is_unblocked_while_the_marker_is_postponed_is_told_no_number(
    steady: Up, session: Wire, shards: list[Shard]
) -> None:
    put(session, shards[0])
    number = int(session.call("CLIENT", "ID")[1:])
    with paused(shards[0].primary), Wire.to(steady.redis_url) as other:
        session.send("WAITAOF", 1, 1, 0)
        until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
        assert other.call("CLIENT", "UNBLOCK", number) == b":1\r\n"
        unanswered(session.receive(), shards[0])


def test_a_postponed_marker_holds_up_nobody_who_wrote_elsewhere(
    steady: Up, session: Wire, shards: list[Shard]
) -> None:
    mine, other, _ = shards
    put(session, mine)
    with paused(mine.primary), Wire.to(steady.redis_url) as elsewhere:
        session.send("WAITAOF", 1, 1, 0)
        until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
        for _ in range(5):
            put(elsewhere, other)
            reply, took = timed(elsewhere, "WAITAOF", 1, 1, 1500)
            assert reply == BOTH and took < 0.5
    assert session.receive() == BOTH


def test_a_node_that_answers_nothing_counts_nothing(session: Wire, shards: list[Shard]) -> None:
    """A pause for all holds up the control connections as well."""
    put(session, shards[0])
    assert session.call("WAITAOF", 1, 1, 0) == BOTH
    put(session, shards[0])
    shards[0].primary.call("CLIENT", "PAUSE", 700, "ALL")
    assert session.call("WAITAOF", 1, 1, 100) == b"*2\r\n:0\r\n:0\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == BOTH


def test_a_marker_that_is_slow_claims_nothing(steady: Up, session: Wire, shards: list[Shard]) -> None:
    """The primary hangs for a while, and goes on."""
    shard = shards[0]
    with shard.replica.stopped():
        put(session, shard)
        with shard.primary.stopped():
            reply, took = timed(session, "WAITAOF", 0, 1, 200)
            assert reply == b"*2\r\n:0\r\n:0\r\n" and took >= 0.2
            session.send("WAITAOF", 1, 1, 0)
            until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
    assert session.receive() == BOTH
