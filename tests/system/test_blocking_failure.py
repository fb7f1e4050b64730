"""Primaries that go while clients block or are about to watch: each goes on, or is told what is known. And crowds."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.codec.reply import decode, integer_value
from tests.harness import Up, until
from tests.system.beside import primaries
from tests.system.nodes import Node, Shard, configured, metric, promote, shards_of
from tests.system.test_blocking import blocked
from tests.system.wire import Wire, request

UNKNOWN = (
    b"-ERR the connection to the shard was lost while this command was under way: its outcome is unknown, "
    b"read before you write it again\r\n"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """3 primaries and 3 replicas, which the tests break and which mend themselves."""
    with configured(tmp_path_factory.mktemp("blocking"), "cluster: {node_timeout_ms: 1000}\n") as running:
        yield running


@pytest.fixture
def shard(cluster: Up) -> Shard:
    """The first shard, once all nodes are well."""

    def well() -> bool:
        return all(
            each.replica.call("INFO", "replication")["master_link_status"] == "up" for each in shards_of(cluster)
        )

    until(well, "every replica follows its primary")
    found = shards_of(cluster)[0]
    with Wire.to(cluster.redis_url) as wire:
        assert wire.call("FLUSHALL") == b"+OK\r\n"
    return found


def blocks_at(node: Node, count: int) -> None:
    until(lambda: blocked([f"{node.host}:{node.port}"]) == count, f"{count} clients block at {node.port}")


def led_by(node: Node) -> bool:
    return bool(node.call("ROLE")[0] == "master")


def test_who_blocks_does_not_notice_a_planned_change_of_the_primary(cluster: Up, shard: Shard) -> None:
    queue, stream = shard.key, "s" + shard.key
    with ExitStack() as stack:
        pushing, popping, reading, late = (stack.enter_context(Wire.to(cluster.redis_url)) for _ in range(4))
        pushing.call("XADD", stream, "1-1", "f", "v")
        popping.send("BLPOP", queue, 0)
        reading.send("XREAD", "BLOCK", 60_000, "STREAMS", stream, "$")
        late.send("BRPOP", queue, 600)
        blocks_at(shard.primary, 3)
        promote(shard.replica)
        blocks_at(shard.replica, 3)
        assert pushing.call("RPUSH", queue, "a", "b") == b":2\r\n"
        pushing.call("XADD", stream, "2-1", "f", "v")
        assert {decode(each.receive())[1] for each in (popping, late)} == {b"a", b"b"}
        assert b"2-1" in reading.receive()
        # What it popped it popped in the new primary's life, and that alone is what it waits for.
        assert integer_value(popping.call("WAIT", 0, 100)) >= 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_primary_that_dies_or_hangs_ends_what_may_have_popped_and_the_rest_goes_on(
    cluster: Up, shard: Shard, how: signal.Signals
) -> None:
    queue, stream = shard.key, "s" + shard.key
    with ExitStack() as stack:
        other, popping, reading, held, watching, queueing, timed, gone = (
            stack.enter_context(Wire.to(cluster.redis_url)) for _ in range(8)
        )
        other.call("XADD", stream, "1-1", "f", "v")
        other.call("SET", "n" + queue, 1)
        popping.send("BLPOP", queue, 0)
        gone.send("BLPOP", queue, 0)
        reading.send("XREAD", "BLOCK", 0, "STREAMS", stream, "1-1")  # $ would be the end it finds where it goes on
        blocks_at(shard.primary, 3)
        unknown = metric(cluster, "ackgate_outcome_unknown_total")
        os.kill(shard.primary.pid, how)
        try:
            gone.close()
            held.send("BLPOP", queue, 0)
            timed.send("BLPOP", queue, "0.3")
            watching.send("WATCH", "n" + queue)
            for words in (["MULTI"], ["INCR", "n" + queue], ["EXEC"]):
                queueing.send(*words)
            if how == signal.SIGKILL:
                assert popping.receive() == UNKNOWN
                assert metric(cluster, "ackgate_outcome_unknown_total") > unknown, "it is counted"
                began = time.monotonic()
                assert timed.receive() == b"*-1\r\n"
                assert time.monotonic() - began < 3
            until(lambda: led_by(shard.replica), "the replica has taken over")
            if how == signal.SIGSTOP:
                assert popping.receive() == UNKNOWN
            assert watching.receive() == b"+OK\r\n"
            replies = [queueing.receive() for _ in range(3)]
            assert replies == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n:2\r\n"] or replies[2] == UNKNOWN, replies
            # held may have been sent to the one that hangs: then nobody knows, else it goes on
            blocks_at(shard.replica, 2 if how == signal.SIGKILL else 1)
        finally:
            if how == signal.SIGSTOP:
                os.kill(shard.primary.pid, signal.SIGCONT)
        assert other.call("RPUSH", queue, "x") == b":1\r\n"
        if how == signal.SIGKILL:
            assert decode(held.receive()) == [queue.encode(), b"x"]
        assert other.call("XADD", stream, "2-1", "f", "v") == b"$3\r\n2-1\r\n"
        assert b"2-1" in reading.receive()
        replies = watching.pipeline([["MULTI"], ["GET", "n" + queue], ["EXEC"], ["PING"]])
        assert replies[2][:1] in (b"*", b"-")
        assert replies[3] == b"+PONG\r\n"


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_two_thousand_block_at_once_are_served_in_their_order_and_leave_nothing(tmp_path: Path) -> None:
    count = 2000
    text = "cluster: {node_timeout_ms: 5000, replicas: 0}\nproxy: {lanes: {leased_idle: 2s}}\n"
    with configured(tmp_path, text) as running, ExitStack() as stack:
        nodes = primaries(running)
        descriptors = lambda: len(os.listdir(f"/proc/{running.process.pid}/fd"))  # noqa: E731
        before = descriptors()
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(count)]
        for half in (0, count // 2):
            for at in range(half, half + count // 2):
                clients[at].send("BLPOP", f"queue:{at % 50}", 0)
            until(lambda half=half: blocked(nodes) == half + count // 2, "all of them block")  # type: ignore[misc]
        with Wire.to(running.redis_url) as pushing:
            assert pushing.call("PING") == b"+PONG\r\n"
            # half are served, half leave
            served = clients[: count // 2]
            pushing.send_raw(b"".join(request("RPUSH", f"queue:{at % 50}", at) for at in range(len(served))))
            assert all(pushing.receive()[:1] == b":" for _ in served)
            popped = [int(decode(client.receive())[1]) for client in served]
            assert sorted(popped) == list(range(len(served)))
            connects = metric(running, "ackgate_lane_connects_total")
            for client in served:
                client.send("BLPOP", "again", 0)
            until(lambda: blocked(nodes) == count, "they block again, on the same connections or new ones of a shard")
            assert metric(running, "ackgate_lane_connects_total") - connects <= len(served)
            for client in clients:
                client.close()
            until(lambda: blocked(nodes) == 0, "nobody blocks any more")
            assert pushing.call("RPUSH", "again", 1) == b":1\r\n"
            assert pushing.call("RPUSH", "queue:1", 1) == b":1\r\n"
            until(lambda: descriptors() <= before + 5, "all descriptors are given back")


@pytest.mark.slow
def test_sessions_that_block_watch_and_leave_in_any_state_leave_nothing(cluster: Up, shard: Shard) -> None:
    descriptors = lambda: len(os.listdir(f"/proc/{cluster.process.pid}/fd"))  # noqa: E731
    nodes = primaries(cluster)
    moods: list[list[list[Any]]] = [
        [["BLPOP", shard.key, 0]],
        [["WATCH", shard.key], ["MULTI"], ["SET", shard.key, 1]],
        [["MULTI"], ["SET", shard.key, 1], ["SELECT", 3], ["HELLO", 3]],
        [["WATCH", shard.key], ["BLPOP", shard.key, 0], ["MULTI"]],
        [["XREAD", "BLOCK", 0, "STREAMS", "s" + shard.key, "$"], ["BLPOP", shard.key, 0]],
        [["MULTI"], ["BLPOP", shard.key, 0], ["NOSUCH"], ["EXEC"], ["BLPOP", shard.key, 0]],
        [["HELLO", 3], ["SELECT", 2], ["BZPOPMIN", shard.key, 0]],
    ]
    opened = descriptors()
    for turn in range(1500):
        with ExitStack() as stack:
            for mood in moods:
                stack.enter_context(Wire.to(cluster.redis_url)).send_raw(b"".join(request(*words) for words in mood))
        if turn == 20:
            opened = descriptors()
    until(lambda: metric(cluster, "ackgate_clients_open") == 0, "the proxy has seen them all go")
    until(lambda: blocked(nodes) == 0, "nobody blocks any more")
    with Wire.to(cluster.redis_url) as wire:
        assert wire.call("RPUSH", shard.key, 1) == b":1\r\n"
        assert decode(wire.call("LPOP", shard.key)) == b"1"
    until(lambda: descriptors() <= opened + 40, "no more descriptors than after the first few")
