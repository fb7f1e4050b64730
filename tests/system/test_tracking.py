"""Client-side caching: a session is told of exactly what it read, on every shard, and of what nobody can tell it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from proxy.codec import split_inline
from proxy.codec.reply import bulk_value, decode, elements
from tests.harness import Up, until
from tests.system.beside import moved, proxy_beside
from tests.system.nodes import Node, migrate, promote, shards_of
from tests.system.wire import Wire

PUSH = b">"
FORGET_ALL = b">2\r\n$10\r\ninvalidate\r\n_\r\n"


class Reader(Wire):
    """A client that tracks: what it is told is kept apart from the replies."""

    def start(self, *options: str) -> Reader:
        self.call("HELLO", 3)
        assert self.call("CLIENT", "TRACKING", "ON", *options) == b"+OK\r\n"
        return self

    def told(self) -> set[str] | None:
        """The keys of the next invalidation; None: all of them."""
        frame = self.receive()
        assert frame.startswith(b">2\r\n$10\r\ninvalidate\r\n"), frame
        keys = decode(elements(frame)[1])
        return None if keys is None else {key.decode() for key in keys}

    def told_of(self, count: int) -> set[str]:
        """So many keys, one by one or several at a time."""
        found: set[str] = set()
        while len(found) < count:
            found |= self.told() or set()
        return found

    def told_in_the_end(self) -> set[str]:
        """As ``told``, but all of them."""
        while (told := self.told()) is None:
            pass
        return told

    def ask(self, *args: bytes | str | int) -> bytes:
        """As ``call``, and what is told meanwhile is not looked at."""
        self.send(*args)
        while (frame := self.receive()).startswith(PUSH):
            pass
        return frame

    def nothing(self) -> bool:
        """Whether nothing was told that every shard has had the time to tell."""
        frames = [self.call("DBSIZE"), self.call("DBSIZE")]
        return not any(frame.startswith(PUSH) for frame in frames)


@pytest.fixture
def reader(endpoint: Up, wire: Wire) -> Iterator[Reader]:
    """A connection to the proxy beside ``wire``, which writes."""
    with Reader.to(endpoint.redis_url) as connection:
        yield connection


KEYS = [f"k{at}" for at in range(12)]  # on all shards


# -- what is told ------------------------------------------------------------------------------------------------------


def test_it_is_told_of_each_key_it_read_once_and_of_no_other(wire: Wire, reader: Reader) -> None:
    reader.start()
    for key in KEYS[:6]:
        assert reader.call("GET", key) == b"_\r\n"
    for key in KEYS:
        wire.call("SET", key, "1")
    assert reader.told_of(6) == set(KEYS[:6])
    for key in KEYS:
        wire.call("SET", key, "2")
    assert reader.nothing()


@pytest.mark.parametrize(
    "line",
    [
        "MGET k0 k1 k2 k3 k4 k5",
        "EXISTS k0 k1 k2 k3 k4 k5",
        """EVAL_RO "return redis.call('HGETALL', KEYS[1])" 1 k0""",
        "HGETALL k0",
        "SUNION {k}1 {k}2",
        "STRLEN k0",
    ],
)
def test_whatever_reads_is_tracked(wire: Wire, reader: Reader, line: str) -> None:
    words = split_inline(line.encode())
    keys = [word.decode() for word in words if word[:1] in b"k{"]
    reader.start()
    reader.call(*words)
    for key in keys:
        wire.call("HSET", key, "f", "v")
    assert reader.told_of(len(keys)) == set(keys)


def test_a_transaction_is_tracked_too(wire: Wire, reader: Reader) -> None:
    reader.start()
    reader.pipeline([["MULTI"], ["GET", "{t}1"], ["GET", "{t}2"], ["EXEC"]])
    wire.call("MSET", "{t}1", "1", "{t}2", "2")
    assert reader.told_of(2) == {"{t}1", "{t}2"}
    reader.pipeline([["WATCH", "{t}1"], ["GET", "{t}1"], ["MULTI"], ["SET", "{t}2", "3"], ["DISCARD"]])
    wire.call("SET", "{t}1", "4")
    assert reader.told() == {"{t}1"}
    assert reader.pipeline([["MULTI"], ["GET", "{t}1"], ["EXEC"]])[-1] == b"*1\r\n$1\r\n4\r\n"


def test_its_own_writes_count_unless_it_says_noloop(wire: Wire, reader: Reader) -> None:
    reader.start()
    reader.call("GET", "k1")
    reader.send("SET", "k1", "x")
    frames = [reader.receive(), reader.receive()]
    assert sorted(frames) == [b"+OK\r\n", b">2\r\n$10\r\ninvalidate\r\n*1\r\n$2\r\nk1\r\n"]
    reader.call("CLIENT", "TRACKING", "OFF")
    reader.call("CLIENT", "TRACKING", "ON", "NOLOOP")
    reader.call("GET", "k1")
    assert reader.call("SET", "k1", "y") == b"+OK\r\n"
    assert reader.pipeline([["MULTI"], ["GET", "k1"], ["SET", "k1", "z"], ["EXEC"]])[-1] == b"*2\r\n$1\r\ny\r\n+OK\r\n"
    assert reader.nothing()
    reader.call("GET", "k1")
    wire.call("SET", "k1", "w")
    assert reader.told() == {"k1"}


def test_broadcasting_tells_of_every_key_with_the_prefix(wire: Wire, reader: Reader) -> None:
    reader.start("BCAST", "PREFIX", "user:")
    keys = [f"user:{at}" for at in range(12)]
    for key in (*keys, *KEYS):
        wire.call("SET", key, "1")
    assert reader.told_of(12) == set(keys)
    assert reader.call("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "k") == b"+OK\r\n"
    for key in (*keys, *KEYS, "other"):
        wire.call("SET", key, "2")
    assert reader.told_of(24) == {*keys, *KEYS}
    assert reader.nothing()


def test_opting_in_is_about_the_next_command_alone(wire: Wire, reader: Reader) -> None:
    reader.start("OPTIN")
    reader.pipeline([["GET", "k0"], ["CLIENT", "CACHING", "YES"], ["GET", "k1"], ["GET", "k2"], ["GET", "k3"]])
    reader.pipeline([["CLIENT", "CACHING", "YES"], ["MGET", "k4", "k5", "k6"], ["MGET", "k7", "k8"]])
    reader.pipeline([["CLIENT", "CACHING", "YES"], ["PING"], *(["GET", key] for key in KEYS[9:])])
    for key in KEYS:
        wire.call("SET", key, "1")
    assert reader.told_of(4) == {"k1", "k4", "k5", "k6"}
    assert reader.nothing()


def test_opting_in_holds_for_a_transaction(wire: Wire, reader: Reader) -> None:
    reader.start("OPTIN")
    reader.pipeline([["CLIENT", "CACHING", "YES"], ["MULTI"], ["GET", "{t}1"], ["GET", "{t}2"], ["EXEC"]])
    reader.call("GET", "{t}3")
    wire.call("MSET", "{t}1", "1", "{t}2", "2", "{t}3", "3")
    assert reader.told_of(2) == {"{t}1", "{t}2"}
    assert reader.nothing()


def test_opting_in_within_a_transaction(wire: Wire, reader: Reader) -> None:
    reader.start("OPTIN")
    calls = [["MULTI"], ["GET", "{t}1"], ["CLIENT", "CACHING", "YES"], ["GET", "{t}2"], ["EXEC"]]
    assert reader.pipeline([[*call] for call in calls])[-1] == b"*3\r\n_\r\n+OK\r\n_\r\n"
    assert b"caching" not in reader.call("CLIENT", "TRACKINGINFO")
    reader.call("GET", "{t}3")
    wire.call("MSET", "{t}1", "1", "{t}2", "2", "{t}3", "3")
    assert reader.told_of(1) == {"{t}2"}
    assert reader.nothing()


def test_opting_out_is_about_the_next_command_alone(wire: Wire, reader: Reader) -> None:
    reader.start("OPTOUT")
    reader.pipeline([["GET", "k0"], ["CLIENT", "CACHING", "NO"], ["GET", "k1"], ["GET", "k2"]])
    for key in KEYS:
        wire.call("SET", key, "1")
    assert reader.told_of(2) == {"k0", "k2"}
    assert reader.nothing()


def test_flushall_and_expiry_are_told(wire: Wire, reader: Reader) -> None:
    reader.start()
    reader.call("GET", "k1")
    wire.call("FLUSHALL")
    assert reader.told() is None  # and so say the other shards, if it asks meanwhile
    wire.call("SET", "k1", "x")
    assert reader.ask("GET", "k1") == b"$1\r\nx\r\n"
    wire.call("PEXPIRE", "k1", "20")
    assert reader.told_in_the_end() == {"k1"}
    reader.ask("TYPE", "k1")
    assert wire.call("SET", "k1", "y", "PX", "1000") == b"+OK\r\n"
    assert reader.told_in_the_end() == {"k1"}
    assert reader.ask("GET", "k1") == b"$1\r\ny\r\n"
    assert reader.told_in_the_end() == {"k1"}


@pytest.mark.parametrize(
    "dialog",
    [
        "r: GET a/w: SET a 1/r<",
        "r: MGET {x}1 {x}2/w: SET {x}1 1/r</w: SET {x}2 1/r<",
        "r: GET a/r: GET a/w: DEL a/r: PING/w: SET a 1/r</r: GET a/w: APPEND a 2/r<",
        "r: CLIENT TRACKING off/r: CLIENT TRACKING on BCAST PREFIX b/w: SET a1 1/w: SET b1 1/r<",
        "r: CLIENT TRACKING off/r: CLIENT TRACKING on OPTIN/r: CLIENT CACHING yes/r: GET a/w: SET a 1/r<",
        "r: GET a/w: FLUSHALL/r<",
        "r: CLIENT REPLY OFF/w: SET a 1/w: SET b 2",
        "w: HSET h f v/r: HGETALL h/w: HINCRBY h n 1/r<",
        "w: XADD s 1-1 f v/r: XREAD COUNT 1 BLOCK 5 STREAMS s 0/w: XADD s 1-2 f v/r<",
        "w: RPUSH l a/r: BLPOP l 1/r: BLPOP l 0.01/r: PING/w: RPUSH l b",
    ],
)
def test_what_is_told_is_what_a_plain_server_tells(endpoint: Up, wire: Wire, direct: int, dialog: str) -> None:
    """Word for word, on both sides; ``r<`` is the next thing the reader is told."""
    with Wire("127.0.0.1", direct) as plain:
        plain.call("FLUSHALL")
    heard = []
    for url in (endpoint.redis_url, f"redis://127.0.0.1:{direct}"):
        with Reader.to(url) as reads, Wire.to(url) as writes:
            reads.start()
            frames = []
            for step in dialog.split("/"):
                who, line = (reads if step[0] == "r" else writes), step[2:].strip()
                if step == "r<":
                    frames.append(reads.receive())
                elif line == "CLIENT REPLY OFF":
                    who.send(*split_inline(line.encode()))
                else:
                    frames.append(who.call(*split_inline(line.encode())))
            heard.append([frame for frame in frames if frame != FORGET_ALL or "FLUSHALL" in dialog])
    assert heard[0] == heard[1]


# -- in what order -----------------------------------------------------------------------------------------------------


def test_what_was_read_before_is_not_passed_on_behind_its_invalidation(
    endpoint: Up, wire: Wire, reader: Reader
) -> None:
    """The reply to a later command of a pipeline is in first; it waits for its turn, and so does what is told of it."""
    slow, fast, _ = shards_of(endpoint)
    wire.call("SET", fast.key, "old")
    reader.start()
    with slow.primary.stopped():
        reader.send_raw(b"".join(b"GET %s\r\n" % key.encode() for key in (slow.key, fast.key)))
        until(lambda: tracked(fast.primary.call("INFO", "stats")) > 0, "the fast shard has answered")
        wire.call("SET", fast.key, "new")
        wire.call("GET", fast.key)
    assert [reader.receive() for _ in range(2)] == [b"_\r\n", b"$3\r\nold\r\n"]
    assert reader.told() == {fast.key}


def connections(node: Node) -> int:
    """How many connections a node tracks keys for."""
    return len(node.call("CLIENT", "LIST", "FLAGS", "t").splitlines())


def tracked(stats: object) -> int:
    """Keys a node tracks, of its INFO."""
    return int(stats["tracking_total_keys"]) if isinstance(stats, dict) else 0


def test_who_blocks_is_told_at_once(wire: Wire, reader: Reader) -> None:
    reader.start()
    reader.call("GET", "k1")
    reader.send_raw(b"SET k0 1\r\nWAIT 9 0\r\n")
    assert reader.receive() == b"+OK\r\n"
    until(lambda: b" flags=bt " in wire.call("CLIENT", "LIST"), "it blocks")
    wire.call("SET", "k1", "1")
    assert reader.told() == {"k1"}
    reader.send("PING")
    line = bulk_value(wire.call("CLIENT", "LIST", "FLAGS", "bt")) or b""
    assert wire.call("CLIENT", "UNBLOCK", line.split()[0][3:]) == b":1\r\n"
    assert reader.receive() in (b":0\r\n", b":1\r\n")  # the replicas that have it by now
    assert reader.receive() == b"+PONG\r\n"


# -- protocols, databases, the end -------------------------------------------------------------------------------------


def test_nothing_is_told_in_resp2_and_all_is_to_be_forgotten_behind_hello_3(wire: Wire, reader: Reader) -> None:
    assert reader.call("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
    reader.call("GET", "k1")
    wire.call("SET", "k1", "1")
    assert reader.call("GET", "k1") == b"$1\r\n1\r\n"
    assert reader.call("HELLO", "3").startswith(b"%7")
    assert reader.told() is None
    reader.ask("GET", "k1")
    wire.call("SET", "k1", "2")
    assert reader.told_in_the_end() == {"k1"}
    assert reader.ask("HELLO", "2").startswith(b"*14")
    reader.call("GET", "k1")
    wire.call("SET", "k1", "3")
    assert reader.nothing()


def test_another_database_means_other_connections_and_all_is_to_be_forgotten(wire: Wire, reader: Reader) -> None:
    reader.start()
    reader.call("GET", "k1")
    assert reader.call("SELECT", "1") == b"+OK\r\n"
    assert reader.told() is None
    reader.ask("GET", "k1")
    wire.call("SELECT", "1")
    wire.call("SET", "k1", "1")
    assert reader.told_in_the_end() == {"k1"}


def test_redirection_is_refused_in_so_many_words(wire: Wire, reader: Reader) -> None:
    other = decode(wire.call("CLIENT", "ID"))
    assert b"REDIRECT is not supported by the proxy" in reader.call("CLIENT", "TRACKING", "on", "REDIRECT", other)
    assert reader.call("CLIENT", "TRACKING", "off", "REDIRECT", other) == b"+OK\r\n"
    assert b"off" in reader.call("CLIENT", "TRACKINGINFO")


def test_its_connections_end_with_it(endpoint: Up, wire: Wire, reader: Reader) -> None:
    primaries = [shard.primary for shard in shards_of(endpoint)]

    def tracking() -> list[int]:
        return [connections(primary) for primary in primaries]

    for way in ("CLIENT TRACKING off", "RESET", "QUIT"):
        reader.start()
        assert tracking() == [1, 1, 1]
        reader.ask(*way.split())
        until(lambda: tracking() == [0, 0, 0], f"they are closed by {way}")
    assert b"tracking_clients:0" in wire.call("INFO", "clients")


def test_so_many_may_and_no_more(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    with (
        proxy_beside(endpoint, tmp_path, lanes={"private_sessions": 2}) as url,
        Reader.to(url) as one,
        Reader.to(url) as two,
        Reader.to(url) as three,
    ):
        one.start()
        two.start()
        three.call("HELLO", "3")
        error = b"-ERR 2 clients track keys, and no more may (lanes.private_sessions): try again\r\n"
        assert three.call("CLIENT", "TRACKING", "on") == error
        assert b"off" in three.call("CLIENT", "TRACKINGINFO")
        one.close()
        until(lambda: three.call("CLIENT", "TRACKING", "on") == b"+OK\r\n", "there is room")


# -- what nobody can tell it -------------------------------------------------------------------------------------------


def test_a_lost_connection_makes_it_forget_all(endpoint: Up, wire: Wire, reader: Reader) -> None:
    shard = shards_of(endpoint)[0]
    reader.start()
    reader.call("GET", shard.key)
    assert shard.primary.call("CLIENT", "KILL", "FLAGS", "t") == 1
    assert reader.told() is None
    until(lambda: connections(shard.primary), "it is connected again")
    reader.ask("GET", shard.key)
    wire.call("SET", shard.key, "1")
    assert reader.told_in_the_end() == {shard.key}


def test_a_slot_that_moves_makes_it_forget_all(endpoint: Up, wire: Wire, reader: Reader) -> None:
    reader.start("OPTIN")
    reader.pipeline([["CLIENT", "CACHING", "YES"], ["GET", "k1"]])
    with moved(endpoint, "k1"):
        wire.call("SET", "k1", "1")  # meets MOVED, if nobody has before
        while reader.told() is not None:
            pass
        reader.ask("CLIENT", "CACHING", "YES")
        assert reader.ask("GET", "k1") == b"$1\r\n1\r\n"
        wire.call("SET", "k1", "2")
        assert reader.told_in_the_end() == {"k1"}


@pytest.mark.slow
def test_a_failover_makes_it_forget_all(fresh: Callable[..., Up]) -> None:
    running = fresh()
    shard = shards_of(running)[0]
    with Reader.to(running.redis_url) as reader, Wire.to(running.redis_url) as writer:
        reader.start("BCAST")
        os.kill(shard.primary.pid, 9)
        assert reader.told() is None
        until(lambda: writer.call("SET", shard.key, "1") == b"+OK\r\n", "its replica took over")
        until(lambda: connections(shard.replica), "it tracks there")
        writer.call("SET", shard.key, "2")
        assert reader.told_of(1) == {shard.key}


class Cache:
    """A client with a cache, as a library would keep it: by what comes, in the order in which it comes."""

    def __init__(self, url: str, seed: int) -> None:
        self.wire = Reader.to(url).start()
        self.values: dict[str, bytes | None] = {}
        self.random = random.Random(seed)
        self.asked: list[list[str]] = []
        self.forgotten = 0

    def take(self, frame: bytes) -> None:
        if not frame.startswith(PUSH):
            keys = self.asked.pop(0)
            values = decode(frame) if len(keys) > 1 else [decode(frame)]
            self.values.update(zip(keys, values, strict=True))
            return
        told = decode(elements(frame)[1])
        if told is None:
            self.forgotten += 1
            self.values.clear()
        for key in told or ():
            self.values.pop(key.decode(), None)

    def read(self, keys: list[str]) -> None:
        """A pipeline of reads, single ones and several at once."""
        calls: list[list[bytes | str | int]] = []
        while keys:
            taken, keys = keys[: (count := self.random.choice((1, 1, 1, 4)))], keys[count:]
            self.asked.append(taken)
            calls.append(["GET", *taken] if len(taken) == 1 else ["MGET", *taken])
        for call in calls:
            self.wire.send(*call)
        while self.asked:
            self.take(self.wire.receive())


def test_a_cache_is_right_in_the_end_whatever_happened_meanwhile(fresh: Callable[..., Up]) -> None:
    """Writers, a failover, slots that move, lost connections: what the cache holds then is what the shards hold."""
    running = fresh("--shards", "2")
    keys = [f"key:{at}" for at in range(200)]
    stop = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        client = running.client()
        while not stop.is_set():
            try:
                client.set(chance.choice(keys), chance.random())
            except redis.RedisError:
                continue

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    cache = Cache(running.redis_url, seed=1)
    for writer in writers:
        writer.start()
    try:
        for round_ in range(300):
            cache.read(cache.random.sample(keys, 20))
            if round_ == 100:
                promote(shards_of(running)[0].replica)
            if round_ == 150:
                source, target = shards_of(running)
                migrate(source, target, source.slot, source.slot + 2000)  # some twenty-five of the keys
            if round_ == 200:
                for shard in shards_of(running):
                    shard.primary.call("CLIENT", "KILL", "FLAGS", "t")
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    with running.client() as plain:
        found = [value.encode() if value is not None else None for value in plain.mget(keys)]
        truth = dict(zip(keys, found, strict=True))

    def right() -> bool:
        cache.asked.append([keys[0]])
        cache.wire.send("GET", keys[0])
        while cache.asked:
            cache.take(cache.wire.receive())
        return all(truth[key] == value for key, value in cache.values.items())

    until(right, "no value is left in the cache that is not the shards'")
    assert cache.forgotten


# -- a library's -------------------------------------------------------------------------------------------------------


def test_the_cache_of_redis_py(endpoint: Up, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheProxyConnection, "DEFAULT_SERVER_NAME", "valkey")  # it asks who is there, no more
    with redis.Redis.from_url(
        endpoint.redis_url, protocol=3, cache_config=CacheConfig(), decode_responses=True
    ) as client:
        cache = client.get_cache()
        assert cache is not None
        for key in KEYS:
            wire.call("SET", key, "old")
            assert client.get(key) == "old"
        assert cache.size == len(KEYS)
        for key in KEYS[:6]:
            wire.call("SET", key, "new")
        until(lambda: [client.get(key) for key in KEYS] == ["new"] * 6 + ["old"] * 6, "it has heard of the new values")
