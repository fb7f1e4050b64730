"""Blocking commands: each on a lane of its own, served in the engine's order, gone with its client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.codec import key_slot, split_inline
from proxy.codec.reply import bulk_value, decode, integer_value
from tests.harness import Up, until
from tests.system.beside import moved, node_wire, primaries, proxy_beside
from tests.system.nodes import metric, owns, shards_of
from tests.system.wire import Wire

Words = Sequence[bytes | str | int]
NOTHING = {2: b"*-1\r\n", 3: b"_\r\n"}

# What blocks, what serves it, and what is looked at behind that.
SERVED = [
    ("BLPOP {k}a 0", "RPUSH {k}a 1 2", "LRANGE {k}a 0 -1"),
    ("BRPOP {k}a 0", "RPUSH {k}a 1 2", "LRANGE {k}a 0 -1"),
    ("BLPOP {k}a {k}b {k}c 0", "RPUSH {k}b x", "EXISTS {k}b"),
    ("BLMOVE {k}a {k}b LEFT RIGHT 0", "RPUSH {k}a 1 2", "LRANGE {k}b 0 -1"),
    ("BRPOPLPUSH {k}a {k}b 0", "RPUSH {k}a 1 2", "LRANGE {k}b 0 -1"),
    ("BRPOPLPUSH {k}a {k}a 0", "RPUSH {k}a 1", "LRANGE {k}a 0 -1"),
    ("BLMPOP 0 2 {k}a {k}b LEFT COUNT 2", "RPUSH {k}b 1 2 3", "LRANGE {k}b 0 -1"),
    ("BZPOPMIN {k}z {k}y 0", "ZADD {k}y 1.5 m 3 n", "ZRANGE {k}y 0 -1 WITHSCORES"),
    ("BZPOPMAX {k}z 0", "ZADD {k}z 1.5 m 3 n", "ZRANGE {k}z 0 -1 WITHSCORES"),
    ("BZMPOP 0 2 {k}z {k}y MAX COUNT 5", "ZADD {k}y 1 m 2 n", "EXISTS {k}y"),
    ("XREAD BLOCK 0 STREAMS {k}s $", "XADD {k}s 5-1 f v", "XLEN {k}s"),
    ("XREAD COUNT 1 BLOCK 0 STREAMS {k}s {k}t 0 0", "XADD {k}t 7-1 f v", "XLEN {k}t"),
    ("XREADGROUP GROUP g c BLOCK 0 STREAMS {k}g >", "XADD {k}g 9-1 f v", "XPENDING {k}g g"),
    # what does not serve it: another type (they go on blocking), a list that is emptied again in the same script
    ("BLPOP {k}a 0", "EVAL redis.call('rpush',KEYS[1],'x');redis.call('del',KEYS[1]);"
     "redis.call('rpush',KEYS[1],'y') 1 {k}a", "EXISTS {k}a"),
    ("BZPOPMIN {k}a 0", "ZADD {k}a NX 4 m", "TYPE {k}a"),
    ("XREADGROUP GROUP g c BLOCK 0 STREAMS {k}g >", "XGROUP DESTROY {k}g g", "EXISTS {k}g"),
    ("XREADGROUP GROUP g c BLOCK 0 STREAMS {k}g >", "DEL {k}g", "EXISTS {k}g"),
    ("XREADGROUP GROUP g c BLOCK 0 STREAMS {k}g >", "SET {k}g word", "TYPE {k}g"),
]  # fmt: skip

AT_ONCE = """
BLPOP {k}a -1|BLPOP {k}a x|BLPOP {k}a nan|BLPOP {k}a inf|BLPOP {k}a 1e400|BLPOP {k}a 99999999999999999999|BLPOP {k}a
BLPOP {k}a 0.01|BRPOP {k}a 0.00001|BLMOVE {k}a {k}b LEFT LEFT 0.01|BRPOPLPUSH {k}a {k}b +.01|BLMPOP 0.01 1 {k}a LEFT
BLMOVE {k}a {k}b UP LEFT 0|BLMPOP 0 0 {k}a LEFT|BLMPOP 0 x {k}a LEFT|BLMPOP 0 1 {k}a NEAR|BLMPOP x 1 {k}a LEFT
BLMPOP 0 1 {k}a LEFT COUNT 0|BZPOPMIN {k}a 0.01|BZPOPMAX {k}a 0.01|BZMPOP 0.01 1 {k}a MIN|BZMPOP -1 1 {k}a MIN
XREAD BLOCK 10 STREAMS {k}s $|XREAD BLOCK -1 STREAMS {k}s $|XREAD BLOCK x STREAMS {k}s $|XREAD BLOCK 5 STREAMS {k}s
XREAD STREAMS {k}s 0|XREAD COUNT 1 STREAMS {k}s $|XREAD BLOCK|XREADGROUP GROUP g c BLOCK 10 STREAMS {k}g >
XREADGROUP GROUP no c BLOCK 0 STREAMS {k}g >|XREADGROUP GROUP g c STREAMS {k}g >
XREADGROUP GROUP g c BLOCK 0 STREAMS {k}g 0|BLPOP {k}word 0|BZPOPMIN {k}word 0|XREAD BLOCK 0 STREAMS {k}word $
BLPOP {k}l 0|BRPOP {k}no {k}l 0|BLMOVE {k}l {k}m LEFT LEFT 0|BLMOVE {k}l {k}word LEFT LEFT 0.01|BRPOPLPUSH {k}l {k}l 0
BLMPOP 0 2 {k}no {k}l RIGHT COUNT 9|BZPOPMAX {k}z 0|BZPOPMIN {k}no {k}z 0
BZMPOP 0 2 {k}no {k}z MIN COUNT 9|XREAD BLOCK 0 STREAMS {k}s 0|EVAL "return redis.call('blpop',KEYS[1],0)" 1 {k}no
""".replace("\n", "|").strip("|").split("|")

SETTING_UP = """
XGROUP CREATE {k}g g $ MKSTREAM|SET {k}word w|RPUSH {k}l 1 2 3 4|ZADD {k}z 1 a 2 b 3 c 4 d|XADD {k}s 1-1 f v
""".strip().split("|")


def split(line: str) -> list[bytes | str | int]:
    words = split_inline(line.encode())
    assert words is not None
    return list(words)


def script(line: str) -> list[bytes | str | int]:
    """A line whose EVAL has its script unquoted."""
    words: list[bytes | str | int] = list(line.split())
    if words[0] == "EVAL":
        return ["EVAL", " ".join(map(str, words[1:-2])), *words[-2:]]
    return words


class Side:
    """A server and how many of its clients block."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def wire(self, protocol: int = 2) -> Wire:
        wire = Wire(self.host, self.port)
        if protocol == 3:
            assert wire.call("HELLO", 3)[:1] == b"%"
        return wire


def side_of(endpoint: Up) -> Side:
    host, _, port = endpoint.redis_url.removeprefix("redis://").rpartition(":")
    return Side(host, int(port))


def blocked(addresses: Sequence[str]) -> int:
    """Clients that block at these nodes, the proxy's own questions about acknowledgments left out."""
    count = 0
    for address in addresses:
        with node_wire(address) as wire:
            lines = (bulk_value(wire.call("CLIENT", "LIST")) or b"").splitlines()
        count += sum(b"b" in field(line, b"flags") and b"cmd=wait" not in line for line in lines)
    return count


def field(line: bytes, name: bytes) -> bytes:
    return next(word for word in line.split() if word.startswith(name + b"="))[len(name) + 1 :]


@contextmanager
def blocking(endpoint: Up, *calls: Words, protocol: int = 2) -> Iterator[list[Wire]]:
    """A client for each call, all of which block at the shards."""
    nodes = primaries(endpoint)
    with ExitStack() as stack:
        wires = [stack.enter_context(side_of(endpoint).wire(protocol)) for _ in calls]
        for at, (wire, call) in enumerate(zip(wires, calls, strict=True), 1):
            wire.send(*call)
            until(lambda at=at: blocked(nodes) >= at, f"{call} blocks")  # type: ignore[misc]
        yield wires


@pytest.fixture
def nobody(endpoint: Up, wire: Wire) -> Iterator[None]:
    """Nobody blocks before, and nothing of the test blocks behind it."""
    nodes = primaries(endpoint)
    until(lambda: blocked(nodes) == 0, "nobody blocks")
    yield
    until(lambda: blocked(nodes) == 0, "nobody blocks any more")


pytestmark = pytest.mark.usefixtures("nobody")


# -- as a plain server does it ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_does_not_block_is_answered_as_a_plain_server_answers_it(
    endpoint: Up, wire: Wire, direct: int, protocol: int
) -> None:
    with Wire("127.0.0.1", direct) as plain:
        for side in (wire, plain):
            side.pipeline([["FLUSHALL"], ["HELLO", protocol], *map(split, SETTING_UP)])
        for line in AT_ONCE:
            assert wire.call(*split(line)) == plain.call(*split(line)), line
        lines = [["FLUSHALL"], *map(split, SETTING_UP), *map(split, AT_ONCE)]
        assert wire.pipeline(lines) == plain.pipeline(lines)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(("call", "serving", "look"), SERVED)
def test_what_blocks_is_served_as_by_a_plain_server(
    endpoint: Up, wire: Wire, direct: int, protocol: int, call: str, serving: str, look: str
) -> None:
    replies = []
    for side in (side_of(endpoint), Side("127.0.0.1", direct)):
        with side.wire() as other, side.wire(protocol) as sleeper:
            other.call("FLUSHALL")
            other.call("XGROUP", "CREATE", "{k}g", "g", "$", "MKSTREAM")
            sleeper.send(*call.split())
            nodes = primaries(endpoint) if side.port != direct else [f"127.0.0.1:{direct}"]
            until(lambda nodes=nodes: blocked(nodes) == 1, "it blocks")  # type: ignore[misc]
            other.send(*script(serving))
            replies.append([other.receive(), sleeper.receive(), other.call(*look.split()), sleeper.call("PING")])
    assert replies[0] == replies[1]


def test_keys_of_two_slots_get_crossslot(wire: Wire) -> None:
    assert wire.call("BLPOP", "a", "b", 0) == b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
    assert wire.call("BLMOVE", "a", "b", "LEFT", "LEFT", 0).startswith(b"-CROSSSLOT ")
    assert wire.call("XREAD", "BLOCK", 0, "STREAMS", "a", "b", "$", "$").startswith(b"-CROSSSLOT ")


def test_who_blocked_first_is_served_first(endpoint: Up, wire: Wire) -> None:
    with blocking(endpoint, *[("BLPOP", "queue", 0)] * 5) as sleepers:
        wire.call("RPUSH", "queue", *range(5))
        assert [decode(each.receive())[1] for each in sleepers] == [b"%d" % at for at in range(5)]


def test_what_is_pipelined_behind_runs_behind_it(endpoint: Up, wire: Wire) -> None:
    with side_of(endpoint).wire() as sleeper:
        calls: list[list[bytes | str | int]] = [
            ["SET", "before", 1],
            ["BLPOP", "queue", 0],
            ["GET", "set"],
            ["BLPOP", "second", 0],
            ["INCR", "n"],
        ]
        for call in calls:
            sleeper.send(*call)
        assert sleeper.receive() == b"+OK\r\n"
        nodes = primaries(endpoint)
        until(lambda: blocked(nodes) == 1, "it blocks")
        assert wire.call("GET", "n") == b"$-1\r\n"
        wire.pipeline([["SET", "set", "word"], ["RPUSH", "second", "b"], ["RPUSH", "queue", "a"]])
        received = [sleeper.receive() for _ in calls[1:]]
        assert received[1:2] + received[3:] == [b"$4\r\nword\r\n", b":1\r\n"]
        assert [decode(received[0]), decode(received[2])] == [[b"queue", b"a"], [b"second", b"b"]]


def test_a_timeout_is_the_engines_own(endpoint: Up, wire: Wire) -> None:
    began = time.monotonic()
    assert wire.call("BLPOP", "queue", "0.3") == b"*-1\r\n"
    assert wire.call("XREAD", "BLOCK", 200, "STREAMS", "s", "$") == b"*-1\r\n"
    assert time.monotonic() - began >= 0.5


def test_inside_multi_nothing_blocks(wire: Wire, direct: int) -> None:
    calls = [["MULTI"], *map(split, ["BLPOP {k}a 0", "RPUSH {k}a 1", "BRPOP {k}a 0", "BLMOVE {k}a {k}b LEFT LEFT 0"])]
    calls += [*map(split, ["XREAD BLOCK 0 STREAMS {k}s $", "BZPOPMIN {k}z 0", "BLMPOP 0 1 {k}a LEFT"]), ["EXEC"]]
    with Wire("127.0.0.1", direct) as plain:
        plain.call("FLUSHALL")
        for protocol in (2, 3):
            assert wire.call("HELLO", protocol)[:1] == plain.call("HELLO", protocol)[:1]
            assert wire.pipeline(calls) == plain.pipeline(calls)


def test_a_push_in_a_transaction_serves_when_it_is_over(endpoint: Up, wire: Wire) -> None:
    with blocking(endpoint, ("BLPOP", "q", 0)) as (sleeper,):
        calls: list[list[bytes | str | int]] = [["MULTI"], ["RPUSH", "q", 1], ["DEL", "q"], ["RPUSH", "q", 2], ["EXEC"]]
        assert wire.pipeline(calls)[-1] == b"*3\r\n:1\r\n:1\r\n:1\r\n"
        assert decode(sleeper.receive()) == [b"q", b"2"]


def test_each_database_has_queues_of_its_own(endpoint: Up, wire: Wire) -> None:
    with side_of(endpoint).wire() as sleeper:
        sleeper.call("SELECT", 3)
        sleeper.send("BLPOP", "q", 0)
        nodes = primaries(endpoint)
        until(lambda: blocked(nodes) == 1, "it blocks")
        wire.call("RPUSH", "q", "zero")
        wire.call("SELECT", 3)
        wire.call("RPUSH", "q", "three")
        assert decode(sleeper.receive()) == [b"q", b"three"]


def test_what_was_popped_counts_for_wait(endpoint: Up, wire: Wire) -> None:
    with blocking(endpoint, ("BLPOP", "q", 0)) as (sleeper,):
        wire.call("RPUSH", "q", 1)
        assert decode(sleeper.receive()) == [b"q", b"1"]
        assert integer_value(sleeper.call("WAIT", 1, 0)) == 1
        assert decode(sleeper.call("WAITAOF", 1, 1, 0)) == [1, 1]


def test_a_popped_element_is_kept_back_until_it_is_acknowledged(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    rules: Any = [{"replicas": 1}]
    beside = proxy_beside(endpoint, tmp_path, lanes={"blocked_per_shard": 1}, durability=rules)
    with beside as url, Wire.to(url) as sleeper:
        nodes = primaries(endpoint)
        for element in range(3):
            sleeper.send("BLPOP", "q", 0)
            until(lambda: blocked(nodes) == 1, "it blocks")
            wire.call("RPUSH", "q", element)
            assert decode(sleeper.receive()) == [b"q", b"%d" % element]


# -- CLIENT UNBLOCK and the list of clients ---------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("call", ["BLPOP q 0", "BLMOVE {q}a {q}b LEFT LEFT 0", "XREAD BLOCK 0 STREAMS q $"])
def test_client_unblock_ends_it_as_its_timeout_or_with_an_error(
    endpoint: Up, wire: Wire, call: str, protocol: int
) -> None:
    nodes = primaries(endpoint)
    with side_of(endpoint).wire(protocol) as sleeper:
        number = integer_value(sleeper.call("CLIENT", "ID"))
        for words, reply in (
            ([], NOTHING[protocol]),
            (["TIMEOUT"], NOTHING[protocol]),
            (["ERROR"], b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
        ):
            assert wire.call("CLIENT", "UNBLOCK", number) == b":0\r\n"
            sleeper.send(*call.split())
            until(lambda: blocked(nodes) == 1, "it blocks")
            assert wire.call("CLIENT", "UNBLOCK", number, *words) == b":1\r\n"
            assert sleeper.receive() == reply
            assert sleeper.call("PING") == b"+PONG\r\n"


def test_client_unblock_at_the_earliest_moment_frees_the_client(endpoint: Up, wire: Wire) -> None:
    """Seen blocking by CLIENT LIST of the proxy, it is to be unblocked, wherever its command is by then."""
    with side_of(endpoint).wire() as sleeper:
        number = integer_value(sleeper.call("CLIENT", "ID"))
        for _ in range(30):
            sleeper.send("BLPOP", "q", 0)
            until(lambda: flags(wire, number) == b"b", "it is shown as blocked")
            assert wire.call("CLIENT", "UNBLOCK", number) == b":1\r\n"
            assert sleeper.receive() == b"*-1\r\n"


def flags(wire: Wire, number: int) -> bytes:
    return field(bulk_value(wire.call("CLIENT", "LIST", "ID", number)) or b"", b"flags")


def test_info_counts_who_blocks(endpoint: Up, wire: Wire) -> None:
    with blocking(endpoint, ("BLPOP", "q", 0), ("BLPOP", "far", 0)):
        assert b"\nblocked_clients:2\r" in (bulk_value(wire.call("INFO", "clients")) or b"")
    until(lambda: b"\nblocked_clients:0\r" in (bulk_value(wire.call("INFO", "clients")) or b""), "none blocks")


# -- clients that go --------------------------------------------------------------------------------------------------
def test_an_element_pushed_when_the_client_has_gone_is_not_swallowed(endpoint: Up, wire: Wire) -> None:
    nodes = primaries(endpoint)
    for turn in range(60):
        with side_of(endpoint).wire() as sleeper:
            sleeper.send("BLPOP", "q", 0)
            until(lambda: blocked(nodes) == 1, "it blocks")
        assert wire.call("RPUSH", "q", turn) == b":1\r\n"
        assert decode(wire.call("LPOP", "q")) == b"%d" % turn


def test_nor_is_one_that_goes_behind_the_command_in_one_packet(endpoint: Up, wire: Wire) -> None:
    nodes = primaries(endpoint)
    for _ in range(60):
        with side_of(endpoint).wire() as leaver:
            leaver.send("BLPOP", "q", 0)
    until(lambda: wire.call("CLIENT", "LIST").count(b" cmd=") == 1, "all of them are seen to have gone")
    until(lambda: blocked(nodes) == 0, "no lane blocks without a client")
    assert wire.call("RPUSH", "q", 1) == b":1\r\n"
    assert decode(wire.call("LPOP", "q")) == b"1"


def test_lanes_of_clients_that_went_or_were_served_are_used_again(endpoint: Up, wire: Wire) -> None:
    nodes = primaries(endpoint)
    with blocking(endpoint, *[("BLPOP", "q", 0)] * 3):
        pass
    until(lambda: blocked(nodes) == 0, "nobody blocks")
    before = metric(endpoint, "ackgate_lane_connects_total")
    for turn in range(40):
        with side_of(endpoint).wire() as sleeper:
            sleeper.send("BLPOP", "q", 0)
            until(lambda: blocked(nodes) == 1, "it blocks")
            if turn % 2:
                wire.call("RPUSH", "q", turn)
                assert decode(sleeper.receive()) == [b"q", b"%d" % turn]
        until(lambda: blocked(nodes) == 0, "nobody blocks")
    assert metric(endpoint, "ackgate_lane_connects_total") - before <= 2


def test_a_pool_that_is_used_up_says_so_and_recovers(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    nodes = primaries(endpoint)
    before = leased(nodes)  # of the other proxy
    with proxy_beside(endpoint, tmp_path, lanes={"blocked_per_shard": 2, "leased_idle": "200ms"}) as url:
        with ExitStack() as stack:
            clients = [stack.enter_context(Wire.to(url)) for _ in range(3)]
            for at, client in enumerate(clients[:2], 1):
                client.send("BLPOP", "q", 0)
                until(lambda at=at: blocked(nodes) == at, "it blocks")  # type: ignore[misc]
            refused = clients[2].call("BLPOP", "q", 0)
            text = b"-ERR all 2 leased lanes of the shard are in use (lanes.blocked_per_shard): try again\r\n"
            assert refused == text
            # Transactions have a bound of their own.
            assert clients[2].pipeline([["MULTI"], ["SET", "q2", 1], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n"
            clients[0].close()
            until(lambda: blocked(nodes) == 1, "one is gone")
            clients[2].send("BLPOP", "q", 0)
            until(lambda: blocked(nodes) == 2, "its lane is taken")
        until(lambda: leased(nodes) <= before, "lanes that nobody uses are closed")


def leased(addresses: Sequence[str]) -> int:
    """Connections of proxies that last ran a blocking command or a transaction."""
    lines = []
    for address in addresses:
        with node_wire(address) as wire:
            lines += (bulk_value(wire.call("CLIENT", "LIST")) or b"").splitlines()
    return sum(field(line, b"cmd") in (b"blpop", b"exec") for line in lines)


# -- slots that move ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", [2, 3])
def test_who_blocks_on_a_slot_that_moves_goes_on_where_it_is_served(
    endpoint: Up, wire: Wire, protocol: int
) -> None:
    calls: list[Words] = [
        ("BLPOP", "moving", 0),
        ("XREAD", "BLOCK", 0, "STREAMS", "{moving}s", "$"),
        ("BZMPOP", 500, 1, "{moving}z", "MIN"),
    ]
    wire.call("XADD", "{moving}s", "1-1", "f", "v")
    with blocking(endpoint, *calls, protocol=protocol) as sleepers, moved(endpoint, "moving") as (_, target):
        until(lambda: blocked([target]) == 3, "they block at the new owner")
        wire.call("RPUSH", "moving", "x")
        wire.call("XADD", "{moving}s", "5-1", "f", "v")
        wire.call("ZADD", "{moving}z", 1, "m")
        assert decode(sleepers[0].receive()) == [b"moving", b"x"]
        assert b"5-1" in sleepers[1].receive()
        assert b"m\r\n" in sleepers[2].receive()
        assert [each.call("PING") for each in sleepers] == [b"+PONG\r\n"] * 3


def test_its_timeout_goes_on_when_the_slot_moves(endpoint: Up, wire: Wire) -> None:
    nodes = primaries(endpoint)
    with side_of(endpoint).wire() as sleeper:
        began = time.monotonic()
        sleeper.send("BLPOP", "moving", 3)
        until(lambda: blocked(nodes) == 1, "it blocks")
        until(lambda: time.monotonic() - began > 2, "two seconds have gone")
        with moved(endpoint, "moving"):
            assert sleeper.receive() == b"*-1\r\n"
            assert 2.9 < time.monotonic() - began < 4.9


def test_who_blocks_on_a_key_that_is_to_come_to_another_shard_waits_there(endpoint: Up, wire: Wire) -> None:
    """A slot that moves key by key: the shard that gives it away answers ASK for what it does not have."""
    number = key_slot(b"coming")
    shards = shards_of(endpoint)
    source = next(each.primary for each in shards if owns(each.primary, number))
    target = next(each.primary for each in shards if each.primary is not source)
    target.call("CLUSTER", "SETSLOT", number, "IMPORTING", source.id)
    source.call("CLUSTER", "SETSLOT", number, "MIGRATING", target.id)
    try:
        with side_of(endpoint).wire() as sleeper:
            sleeper.send("BLPOP", "coming", 0)
            until(lambda: blocked([f"{target.host}:{target.port}"]) == 1, "it blocks at the shard to be")
            assert wire.call("RPUSH", "coming", "x") == b":1\r\n"
            assert decode(sleeper.receive()) == [b"coming", b"x"]
    finally:
        for each in (source, target):
            each.call("CLUSTER", "SETSLOT", number, "STABLE")
