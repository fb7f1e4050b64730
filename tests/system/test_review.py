"""What a session could once do to itself or to others, seen from outside."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.codec import key_slot
from tests.harness import Up, until
from tests.system.nodes import stopped
from tests.system.wire import Wire


def shard_of(endpoint: Up, key: bytes) -> dict[str, Any]:
    slot = key_slot(key)
    shards = endpoint.topology()["shards"]
    found: dict[str, Any] = next(
        shard for shard in shards if any(first <= slot <= last for first, last in shard["slots"])
    )
    return found


def cut_lanes(endpoint: Up, key: bytes) -> None:
    """Close every lane to the key's shard, idle ones too, and wait until the proxy has noticed."""
    host, _, port = shard_of(endpoint, key)["primary"]["address"].rpartition(":")
    with redis.Redis(host, int(port)) as node:
        lanes = {int(each["id"]) for each in node.client_list() if each["name"] == "ackgate"}
        for lane in lanes:
            node.execute_command("CLIENT", "KILL", "ID", lane)
        until(lambda: not lanes & {int(each["id"]) for each in node.client_list()}, "the lanes are gone")
    with Wire.to(endpoint.redis_url) as other:
        assert other.call(b"EXISTS", key)[:1] == b":"  # carried by a new lane: the loss of the old ones was seen


@pytest.mark.parametrize(
    "words",
    [
        ["XREADGROUP", "BLOCK", 0, "GROUP", "g", "c", "STREAMS", "stream", ">"],
        ["XREADGROUP", "GROUP", "streams", "c", "BLOCK", 0, "STREAMS", "stream", ">"],
        ["XREADGROUP", "GROUP", "g", "streams", "COUNT", 1, "BLOCK", 0, "STREAMS", "stream", ">"],
        ["XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", "stream", "$"],
    ],
    ids=["in front of GROUP", "group called streams", "consumer called streams", "behind COUNT"],
)
def test_no_way_of_writing_block_stops_the_shards_other_clients(endpoint: Up, wire: Wire, words: list[Any]) -> None:
    assert wire.call("XGROUP", "CREATE", "stream", "g", "$", "MKSTREAM") == b"+OK\r\n"
    assert wire.call("XGROUP", "CREATE", "stream", "streams", "$") == b"+OK\r\n"
    wire.send(*words)
    with Wire.to(endpoint.redis_url) as other:
        until(lambda: b"\nblocked_clients:1\r" in other.call("INFO", "clients"), "it blocks")
        assert other.call("SET", "{stream}", "1") == b"+OK\r\n"
        assert other.call("XADD", "stream", "7-1", "f", "v") == b"$3\r\n7-1\r\n"
        assert b"7-1" in wire.receive()


def test_options_of_streams_that_only_look_like_block_pass(wire: Wire) -> None:
    assert wire.call("XGROUP", "CREATE", "stream", "block", "$", "MKSTREAM") == b"+OK\r\n"
    assert wire.call("XREADGROUP", "GROUP", "block", "block", "COUNT", 1, "STREAMS", "stream", ">") == b"*-1\r\n"
    assert wire.call("XREAD", "STREAMS", "block", "0") == b"*-1\r\n"


def test_a_write_by_a_subcommand_is_waited_for(endpoint: Up, wire: Wire) -> None:
    replicas = [replica["pid"] for shard in endpoint.topology()["shards"] for replica in shard["replicas"]]
    library = "#!lua name=review\nredis.register_function('review', function() return 1 end)"
    with stopped(replicas):
        for write in (["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"], ["FUNCTION", "LOAD", "REPLACE", library]):
            with Wire.to(endpoint.redis_url) as session:
                assert not session.call(*write).startswith(b"-")
                assert session.call("WAIT", 1, 100) == b":0\r\n"
    assert wire.call("FUNCTION", "DELETE", "review") == b"+OK\r\n"
    assert wire.call("WAIT", 1, 0) == b":1\r\n"


def test_a_transaction_whose_idle_lane_is_lost_goes_on_elsewhere(endpoint: Up, wire: Wire) -> None:
    assert wire.pipeline([["MULTI"], ["SET", "{tx}1", "a"]]) == [b"+OK\r\n", b"+QUEUED\r\n"]
    cut_lanes(endpoint, b"{tx}1")
    assert wire.call("SET", "{tx}2", "b") == b"+QUEUED\r\n"
    assert wire.call("EXEC") == b"*2\r\n+OK\r\n+OK\r\n"
    assert wire.call("MGET", "{tx}1", "{tx}2") == b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"


def test_a_watch_whose_lane_is_lost_aborts_its_transaction(endpoint: Up, wire: Wire) -> None:
    assert wire.call("WATCH", "{tx}1") == b"+OK\r\n"
    cut_lanes(endpoint, b"{tx}1")
    assert wire.call("WATCH", "{tx}2") == b"+OK\r\n"
    assert wire.pipeline([["MULTI"], ["SET", "{tx}2", "b"]]) == [b"+OK\r\n", b"+QUEUED\r\n"]
    assert wire.call("EXEC").startswith(b"-EXECABORT")
    assert wire.call("GET", "{tx}2") == b"$-1\r\n"
    assert wire.pipeline([["MULTI"], ["SET", "{tx}2", "b"], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n"


def test_replies_of_every_kind_reach_a_client_that_sent_eof_at_once(endpoint: Up, wire: Wire) -> None:
    """Barriers that take a task of their own, answers control gives at once, and a shard's."""
    with Wire.to(endpoint.redis_url) as client:
        requests = [["SELECT", "0"], ["PING"], ["SET", "k", "v"], ["RANDOMKEY"], ["MULTI"], ["GET", "k"], ["EXEC"]]
        client.send_raw(b"".join(_raw(each) for each in requests))
        client.sock.shutdown(socket.SHUT_WR)
        replies = [client.receive() for _ in requests]
        assert replies[:3] == [b"+OK\r\n", b"+PONG\r\n", b"+OK\r\n"]
        assert replies[-1] == b"*1\r\n$1\r\nv\r\n"
        assert client.at_eof()


def _raw(words: list[str]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


def test_what_a_transaction_queues_is_bounded(fresh: Callable[..., Up], tmp_path: Path) -> None:
    """Each command is answered QUEUED, so nothing else bounds what one client can make the proxy keep."""
    config = tmp_path / "config.yaml"
    config.write_text("proxy:\n  clients:\n    query_limit: 1mb\n")
    running = fresh("--shards", "1", "--replicas", "0", "--config", str(config))
    with Wire.to(running.redis_url) as greedy:
        assert greedy.call("MULTI") == b"+OK\r\n"
        assert [greedy.call("SET", "k", "v" * 100_000) for _ in range(9)] == [b"+QUEUED\r\n"] * 9
        greedy.send("SET", "k", "v" * 400_000)
        assert greedy.at_eof()
    with Wire.to(running.redis_url) as other:
        assert other.call("GET", "k") == b"$-1\r\n"


def test_a_read_that_takes_too_long_is_not_sent_again_and_again(fresh: Callable[..., Up], tmp_path: Path) -> None:
    """It would hang each new lane, and every other session's writes with it."""
    config = tmp_path / "config.yaml"
    config.write_text("proxy:\n  timeouts:\n    command: 500ms\n    hold: 20s\n")
    running = fresh("--shards", "1", "--replicas", "0", "--config", str(config))
    slow = """local start = redis.call('TIME')
    repeat
        local now = redis.call('TIME')
    until (now[1] - start[1]) * 1000000 + now[2] - start[2] > 1000000
    return 1"""
    with Wire.to(running.redis_url) as patient, Wire.to(running.redis_url) as other:
        assert patient.call("EVAL_RO", slow, 1, "k").startswith(b"-ERR")
        assert other.call("SET", "k", "v") == b"+OK\r\n"
        assert other.call("INFO", "commandstats").count(b"cmdstat_eval_ro:calls=1,") == 1
