"""Databases: kept by the session, and what stands between them as the engine answers in cluster mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.codec import split_inline
from tests.harness import Up
from tests.system.beside import node_wire
from tests.system.nodes import shards_of
from tests.system.wire import Wire


@pytest.fixture
def wire(endpoint: Up) -> Iterator[Wire]:
    with Wire.to(endpoint.redis_url) as connection:
        connection.call("FLUSHALL")
        yield connection
        connection.call("RESET")
        connection.call("FLUSHALL")


def test_every_database_of_the_cluster_is_there(wire: Wire) -> None:
    for number in range(16):
        assert wire.pipeline([["SELECT", number], ["SET", "k", number]]) == [b"+OK\r\n", b"+OK\r\n"]
    for number in range(16):
        value = str(number).encode()
        assert wire.pipeline([["SELECT", number], ["GET", "k"], ["DBSIZE"]])[1:] == [
            b"$%d\r\n%b\r\n" % (len(value), value),
            b":1\r\n",
        ]
    assert wire.call("SELECT", 16) == b"-ERR DB index is out of range\r\n"
    assert wire.call("GET", "k") == b"$2\r\n15\r\n"  # a refused SELECT changes nothing


def test_a_sessions_database_is_its_own_through_everything(endpoint: Up, wire: Wire) -> None:
    wire.pipeline([["SELECT", 5], ["SET", "{t}a", "five"]])
    with Wire.to(endpoint.redis_url) as other:
        assert other.call("GET", "{t}a") == b"$-1\r\n"
        assert wire.pipeline([["HELLO", 3], ["GET", "{t}a"], ["HELLO", 2], ["GET", "{t}a"]])[1::2] == [
            b"$4\r\nfive\r\n"
        ] * 2
        transaction: list[list[bytes | str | int]] = [["WATCH", "{t}a"], ["MULTI"], ["GET", "{t}a"], ["EXEC"]]
        assert wire.pipeline(transaction)[-1] == b"*1\r\n$4\r\nfive\r\n"
        assert wire.call("EVAL", "return redis.call('GET', KEYS[1])", 1, "{t}a") == b"$4\r\nfive\r\n"
        assert wire.call("MGET", "{t}a", "b", "c") == b"*3\r\n$4\r\nfive\r\n$-1\r\n$-1\r\n"
        assert wire.call("SET", "large", "x" * 2_000_000) == b"+OK\r\n"
        assert other.call("EXISTS", "large") == b":0\r\n"
        assert wire.call("FLUSHDB") == b"+OK\r\n"
        assert other.pipeline([["SET", "k", 1], ["SELECT", 5], ["DBSIZE"]])[-1] == b":0\r\n"


@pytest.mark.parametrize(
    "dialog",
    [
        "SELECT 1/COPY {k}a {k}b DB 2/SELECT 2/GET {k}b",
        "COPY {k}a {k}a DB 1/SELECT 1/GET {k}a",
        "COPY {k}a {k}a/COPY {k}a {k}b DB 99/COPY {k}a {k}b DB x/COPY {k}a {k}b DB 0 REPLACE/GET {k}b",
        "MOVE {k}a 1/GET {k}a/SELECT 1/GET {k}a",
        "MOVE {k}a 0/MOVE {k}a 99/MOVE {k}a x/MOVE {k}nothing 1",
        "SWAPDB 0 1/SWAPDB 0 99/SWAPDB x 1/SWAPDB 0",
        "SELECT 16/SELECT -1/SELECT x/SELECT 1/SELECT 16/GET {k}a",
    ],
)
def test_what_stands_between_databases_is_answered_as_by_a_node_of_a_cluster(
    endpoint: Up, wire: Wire, dialog: str
) -> None:
    shard = shards_of(endpoint)[0]
    tag = shard.key[shard.key.index("{") :]
    answers = []
    for door in (wire, node_wire(f"{shard.primary.host}:{shard.primary.port}")):
        wire.pipeline([["SELECT", 0], ["FLUSHALL"], ["SET", f"{tag}a", "v"]])
        replies = []
        for line in dialog.replace("{k}", tag).split("/"):
            words = split_inline(line.encode())
            assert words is not None
            replies.append(door.call(*words))
        answers.append(replies)
    assert answers[0] == answers[1]
