"""What sessions could lose, do twice or do elsewhere: half-closed, lost, moved and renamed at the wrong moment."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.codec import key_slot
from tests.harness import Up, until
from tests.system.beside import moved, proxy_beside
from tests.system.load import tag
from tests.system.nodes import Node, Shard, shards_of
from tests.system.wire import Closed, Wire, request

ABORTED = b"-EXECABORT Transaction discarded because of: "
UNKNOWN = b"-ERR the connection to the shard was lost while this command was under way: its outcome is unknown"


def serving(endpoint: Up, key: str) -> Shard:
    slot = key_slot(key.encode())
    rows = endpoint.topology()["shards"]
    at = next(at for at, row in enumerate(rows) if any(low <= slot <= high for low, high in row["slots"]))
    return shards_of(endpoint)[at]


def rest(client: Wire) -> list[bytes]:
    """All that comes until the connection is closed."""
    replies = []
    try:
        while True:
            replies.append(client.receive())
    except Closed:
        return replies


def reply(client: Wire) -> bytes:
    """The next frame that is no push."""
    while (frame := client.receive()).startswith(b">"):
        pass
    return frame


@contextmanager
def replies_are_cut(node: Node) -> Iterator[None]:
    """The node runs what it is told and closes a connection whose reply is large instead of sending it."""
    node.call("CONFIG", "SET", "client-output-buffer-limit", "normal 1mb 1mb 1")
    try:
        yield
    finally:
        node.call("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0")


def many_words(client: Wire, key: str) -> None:
    for _ in range(4):
        client.call("RPUSH", key, *["x" * 40] * 10_000)


# -- blocked clients ------------------------------------------------------------------------------------
def test_a_half_closed_client_gets_what_is_there(endpoint: Up, wire: Wire, direct: int) -> None:
    def told(client: Wire) -> list[bytes]:
        client.send_raw(request("RPUSH", "q", "v") + request("BLPOP", "q", 0))
        client.sock.shutdown(socket.SHUT_WR)
        return rest(client)

    for _ in range(20):
        assert wire.call("BLPOP", "other{q}", "0.001") == b"*-1\r\n"  # there is a lane
        with Wire.to(endpoint.redis_url) as client, Wire("127.0.0.1", direct) as plain:
            assert told(client) == told(plain)
        assert wire.call("LLEN", "q") == b":0\r\n"


def test_a_half_closed_client_for_which_there_is_no_connection_yet_takes_nothing_along(
    endpoint: Up, wire: Wire
) -> None:
    with Wire.to(endpoint.redis_url) as client:
        client.call("SELECT", 9)
        client.call("RPUSH", "q", "v")
        with Wire.to(endpoint.redis_url) as leaver:
            leaver.send_raw(request("SELECT", 9) + request("BLPOP", "q", 0))
            leaver.sock.shutdown(socket.SHUT_WR)
            told = rest(leaver)
        assert client.call("LLEN", "q") == (b":0\r\n" if len(told) == 2 else b":1\r\n")
        client.call("DEL", "q")


def test_a_half_closed_client_blocks_for_nothing_else(endpoint: Up, wire: Wire, direct: int) -> None:
    def told(client: Wire) -> list[bytes]:
        client.send("BLPOP", "q", 0)
        client.sock.shutdown(socket.SHUT_WR)
        return rest(client)

    with Wire.to(endpoint.redis_url) as client, Wire("127.0.0.1", direct) as plain:
        assert told(client) == told(plain) == []
    assert wire.call("RPUSH", "q", "v") == b":1\r\n"
    assert wire.call("BLPOP", "q", 1) == b"*2\r\n$1\r\nq\r\n$1\r\nv\r\n"


def test_unblock_of_a_command_whose_lane_is_being_connected_is_its_answer_and_no_others(
    endpoint: Up, wire: Wire
) -> None:
    shard = serving(endpoint, "q")
    with Wire.to(endpoint.redis_url) as client:
        client.call("SELECT", 8)  # for which no lane is ready
        number = int(client.call("CLIENT", "ID")[1:])
        with shard.primary.stopped():  # the kernel connects, and nobody shakes hands
            client.send_raw(request("BLPOP", "q", 0) + request("BLPOP", "r{q}", 0))
            until(lambda: wire.call("CLIENT", "UNBLOCK", number, "ERROR") == b":1\r\n", "it is unblocked")
            assert client.receive() == b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"
            flags = re.search(rb" flags=(\w+) ", wire.call("CLIENT", "LIST", "ID", number))
            assert flags and flags[1] == b"b"  # it blocks in the second one
        assert wire.call("SELECT", 8) == b"+OK\r\n"
        assert wire.call("RPUSH", "r{q}", "v") == b":1\r\n"
        assert client.receive() == b"*2\r\n$4\r\nr{q}\r\n$1\r\nv\r\n"


def test_who_reads_a_stream_for_long_survives_one_loss_after_another(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    shard = serving(endpoint, "s")

    def blocked() -> list[str]:
        rows = shard.primary.direct.client_list()
        return [row["id"] for row in rows if row["cmd"] == "xread" and "b" in row["flags"]]

    with proxy_beside(endpoint, tmp_path, timeouts={"hold": "500ms"}) as url, Wire.to(url) as reader:
        reader.send("XREAD", "BLOCK", 0, "STREAMS", "s", "0-0")
        seen: list[str] = []
        for _ in range(3):
            [lane] = until(lambda: [each for each in blocked() if each not in seen], "it blocks at the shard")
            time.sleep(1.1)  # longer than it would be held for
            seen.append(lane)
            shard.primary.call("CLIENT", "KILL", "ID", lane)
        until(lambda: [each for each in blocked() if each not in seen], "it blocks again")
        wire.call("XADD", "s", "1-1", "f", "v")
        assert reader.receive().startswith(b"*1\r\n*2\r\n$1\r\ns\r\n")


# -- transactions ------------------------------------------------------------------------------------------
def test_a_watching_session_that_selects_writes_into_the_database_it_selected(
    endpoint: Up, wire: Wire, direct: int
) -> None:
    steps: list[list[bytes | str | int]] = [
        ["FLUSHALL"], ["WATCH", "k"], ["SELECT", 1], ["MULTI"], ["SET", "k", "v"], ["EXEC"], ["GET", "k"],
        ["WATCH", "k"], ["SELECT", 0], ["UNWATCH"],
        ["MULTI"], ["SET", "m", "zero"], ["EXEC"], ["GET", "m"], ["GET", "k"],
        ["WATCH", "k"], ["SELECT", 1], ["SET", "k", "other database"], ["SELECT", 0], ["MULTI"], ["GET", "k"], ["EXEC"],
        ["SELECT", 1], ["FLUSHALL"],
    ]  # fmt: skip
    with Wire.to(endpoint.redis_url) as client, Wire("127.0.0.1", direct) as plain:
        for step in steps:
            assert client.call(*step) == plain.call(*step), step
    with Wire.to(endpoint.redis_url) as client:  # on lanes that were given back
        assert client.pipeline([["MULTI"], ["SET", "k", "here"], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n"
    assert wire.call("GET", "k") == b"$4\r\nhere\r\n"


def test_a_watching_session_that_changes_its_protocol_gets_exec_in_the_new_one(wire: Wire, direct: int) -> None:
    with Wire("127.0.0.1", direct) as plain:
        for client in (wire, plain):
            client.call("HSET", "h", "f", "v")
            client.call("WATCH", "h")
            client.call("HELLO", 3)
            told = client.pipeline([["MULTI"], ["HGETALL", "h"], ["EXEC"]])
            assert told[-1] == b"*1\r\n%1\r\n$1\r\nf\r\n$1\r\nv\r\n"


def test_what_is_read_behind_watch_on_a_connection_that_tracks_by_then_is_not_cached_unseen(wire: Wire) -> None:
    wire.call("HELLO", 3)
    wire.call("SET", "k", 1)
    wire.call("WATCH", "k")
    wire.call("CLIENT", "TRACKING", "ON")
    wire.send_raw(request("MULTI") + request("GET", "k") + request("EXEC"))
    assert [reply(wire) for _ in range(3)][-1].startswith(ABORTED)


def test_exec_of_a_session_that_tracks_runs_once_though_its_reply_is_lost(endpoint: Up, wire: Wire) -> None:
    many_words(wire, "words{n}")
    with Wire.to(endpoint.redis_url) as client:
        client.call("HELLO", 3)
        client.call("CLIENT", "TRACKING", "ON")
        with replies_are_cut(serving(endpoint, "n").primary):
            client.send_raw(request("MULTI") + request("INCR", "n") + request("LRANGE", "words{n}", 0, -1))
            client.send("EXEC")
            assert [reply(client) for _ in range(4)][-1].startswith(UNKNOWN)
        assert wire.call("GET", "n") == b"$1\r\n1\r\n"
        client.send("WAIT", 0, 100)
        assert reply(client).startswith(b"-UNBLOCKED ")  # whether it ran is not known: there is no number


def test_what_a_transaction_published_is_not_published_again_when_its_reply_is_lost(endpoint: Up, wire: Wire) -> None:
    many_words(wire, "words")
    with Wire.to(endpoint.redis_url) as client, Wire.to(endpoint.redis_url) as listener:
        listener.call("SUBSCRIBE", "news")
        with replies_are_cut(serving(endpoint, "words").primary):
            told = client.pipeline([["MULTI"], ["PUBLISH", "news", "once"], ["LRANGE", "words", 0, -1], ["EXEC"]])
            assert told[-1].startswith(UNKNOWN)
        wire.call("PUBLISH", "news", "last")
        heard = [listener.receive(), listener.receive()]
        assert [frame.split(b"\r\n")[-2] for frame in heard] == [b"once", b"last"]


def test_a_watched_key_that_moved_away_is_missed_though_the_transaction_stays(endpoint: Up, wire: Wire) -> None:
    shard = shards_of(endpoint)[0]
    gone, stays = "gone" + tag(shard.slot), "stays" + tag(shard.slot + 1)
    with Wire.to(endpoint.redis_url) as other:
        assert wire.call("WATCH", stays) == wire.call("WATCH", gone) == b"+OK\r\n"
        with moved_empty(endpoint, other, gone):
            other.call("SET", gone, "by somebody else")
            assert wire.pipeline([["MULTI"], ["SET", stays, 1], ["EXEC"]])[-1] == b"*-1\r\n"
            assert other.call("EXISTS", stays) == b":0\r\n"
            other.call("DEL", gone)


@contextmanager
def moved_empty(endpoint: Up, other: Wire, key: str) -> Iterator[None]:
    """``moved``, of a slot in which a key of another name shows where it is."""
    shown = "shown" + key[key.index("{") :]
    other.call("SET", shown, 1)
    with moved(endpoint, shown):
        assert other.call("GET", shown) == b"$1\r\n1\r\n"
        yield
    other.call("DEL", shown)


def test_a_large_script_that_returns_an_error_like_the_engines_runs_once(endpoint: Up, wire: Wire) -> None:
    script = "redis.call('incr', KEYS[1]); return redis.error_reply('TRYAGAIN says the script')"
    assert wire.call("EVAL", script, 1, "n", "x" * (2 << 20)) == b"-TRYAGAIN says the script\r\n"
    assert wire.call("GET", "n") == b"$1\r\n1\r\n"




# -- subscribers ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["", "S"], ids=["channel", "shard channel"])
def test_what_was_published_before_unsubscribe_comes_before_its_confirmation(
    endpoint: Up, wire: Wire, kind: str
) -> None:
    with Wire.to(endpoint.redis_url) as listener, Wire.to(endpoint.redis_url) as itself:
        itself.call("HELLO", 3)
        for number in range(20):
            listener.call(f"{kind}SUBSCRIBE", "news")
            assert wire.call(f"{kind}PUBLISH", "news", number) == b":1\r\n"
            listener.send(f"{kind}UNSUBSCRIBE", "news")
            assert b"message" in listener.receive()
            assert b"unsubscribe" in listener.receive()
            itself.call(f"{kind}SUBSCRIBE", "own")
            itself.send_raw(request(f"{kind}PUBLISH", "own", number) + request(f"{kind}UNSUBSCRIBE"))
            told = [itself.receive() for _ in range(3)]
            assert told[0] == b":1\r\n" and b"message" in told[1] and b"unsubscribe" in told[2]
