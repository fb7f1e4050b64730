"""RESP3: every type as a plain server sends it, also in what the proxy splits, merges, answers or puts in EXEC."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from proxy.codec.reply import bulk_value, elements, is_error, strip_attributes
from tests.harness import Up
from tests.system.wire import Wire

Words = list[bytes | str | int]


@pytest.fixture
def pair(wire: Wire, direct: int) -> Iterator[tuple[Wire, Wire]]:
    """The proxy and a plain server with the same keys of every type; both speak RESP2 yet."""
    with Wire("127.0.0.1", direct) as plain:
        for each in (wire, plain):
            each.pipeline([["FLUSHALL"], ["FUNCTION", "FLUSH"], ["CONFIG", "RESETSTAT"], *FILL])
        yield wire, plain
        plain.call("FLUSHALL")


def both(pair: tuple[Wire, Wire], words: Words) -> tuple[bytes, bytes]:
    ours, plain = (each.call(*words) for each in pair)
    return ours, plain


FILL: list[Words] = [
    ["SET", "{t}s", "value"],
    ["SET", "{t}n", 7],
    ["HSET", "{t}h", "f", "v", "g", "1"],
    ["RPUSH", "{t}l", "a", "b", "c"],
    ["SADD", "{t}set", "m"],
    ["ZADD", "{t}z", 1, "one", 2.5, "two", "inf", "most"],
    ["XADD", "{t}x", "1-1", "f", "v"],
    ["XGROUP", "CREATE", "{t}x", "group", "0"],
    ["GEOADD", "{t}geo", 13.361389, 38.115556, "Palermo"],
    ["PFADD", "{t}hll", "a"],
    ["MSET", *(word for at in range(20) for word in (f"k{at}", at))],
]

EVERY_TYPE: list[Words] = [
    ["GET", "{t}s"],
    ["GET", "no"],
    ["HGETALL", "{t}h"],
    ["HGETALL", "no"],
    ["HRANDFIELD", "{t}set2", 2, "WITHVALUES"],
    ["SMEMBERS", "{t}set"],
    ["SMISMEMBER", "{t}set", "m", "no"],
    ["SPOP", "no"],
    ["ZSCORE", "{t}z", "two"],
    ["ZSCORE", "{t}z", "most"],
    ["ZSCORE", "{t}z", "no"],
    ["ZMSCORE", "{t}z", "one", "no"],
    ["ZRANGE", "{t}z", 0, -1, "WITHSCORES"],
    ["ZPOPMIN", "no"],
    ["ZRANK", "{t}z", "two", "WITHSCORE"],
    ["ZRANK", "{t}z", "no", "WITHSCORE"],
    ["ZADD", "{t}z", "INCR", 1.5, "one"],
    ["ZADD", "{t}z", "NX", "INCR", 1.5, "one"],
    ["ZMPOP", 1, "no", "MIN"],
    ["LMPOP", 1, "no", "LEFT"],
    ["INCRBYFLOAT", "{t}n", 0.25],
    ["LPOP", "no", 3],
    ["LPOS", "{t}l", "no"],
    ["XREAD", "STREAMS", "{t}x", "0"],
    ["XREAD", "STREAMS", "no", "0"],
    ["XRANGE", "{t}x", "-", "+"],
    ["XINFO", "STREAM", "{t}x"],
    ["XINFO", "GROUPS", "{t}x"],
    ["XPENDING", "{t}x", "group"],
    ["GEOPOS", "{t}geo", "Palermo", "no"],
    ["GEODIST", "{t}geo", "Palermo", "no"],
    ["GEOSEARCH", "{t}geo", "FROMLONLAT", 13, 38, "BYRADIUS", 200, "km", "WITHCOORD", "WITHDIST"],
    ["LCS", "{t}s", "{t}s", "IDX"],
    ["OBJECT", "ENCODING", "{t}h"],
    ["OBJECT", "FREQ", "no"],
    ["SET", "{t}s", "new", "GET"],
    ["INCR", "{t}h"],
    ["NOSUCH"],
    ["EVAL", "redis.setresp(3); return redis.call('hgetall', KEYS[1])", 1, "{t}h"],
    ["EVAL", "return {big_number='123456789012345678901234567890'}", 0],
    ["EVAL", "return {verbatim_string={format='txt', string='text'}}", 0],
    ["EVAL", "redis.setresp(3); return true", 0],
    ["EVAL", "return {double=-0.5}", 0],
    ["EVAL", "return {map={a={set={b=true}}}}", 0],
]
SPLIT_AND_MERGED: list[Words] = [
    ["MGET", "k0", "no", "k1", "k2", "k3"],
    ["MGET", "no1", "no2", "no3"],
    ["MSET", "k0", 1, "k1", 2, "k2", 3],
    ["EXISTS", "k0", "k1", "no", "k2"],
    ["TOUCH", "k0", "k1", "no"],
    ["DEL", "k0", "k1", "k2"],
    ["UNLINK", "k3", "no", "k4"],
    ["DBSIZE"],
    ["SCRIPT", "EXISTS", "f" * 40],
    ["FUNCTION", "LIST"],
    ["FUNCTION", "LOAD", "#!lua name=l\nserver.register_function('f', function() return {double=1.5} end)"],
    ["FUNCTION", "LIST"],
    ["FUNCTION", "STATS"],
    ["FCALL", "f", 0],
    ["FUNCTION", "DELETE", "l"],
    ["CONFIG", "GET", "maxmemory*"],
    ["CONFIG", "GET", "nosuch"],
    ["COMMAND", "INFO", "get"],
    ["COMMAND", "DOCS", "get"],
    ["CLIENT", "GETNAME"],
    ["CLIENT", "SETNAME", "me"],
    ["CLIENT", "GETNAME"],
    ["SLOWLOG", "RESET"],
    ["LATENCY", "LATEST"],
    ["LATENCY", "HISTOGRAM", "nosuch"],
    ["PUBLISH", "nobody", "hears"],
    ["ACL", "WHOAMI"],
    ["FLUSHALL"],
    ["RANDOMKEY"],
    ["KEYS", "*"],
]


def test_every_type_passes_as_it_is_in_both_protocols(pair: tuple[Wire, Wire]) -> None:
    for _ in range(2):
        for words in [*EVERY_TYPE, *SPLIT_AND_MERGED]:
            ours, plain = both(pair, words)
            assert ours == plain, words
        for each in pair:
            assert each.call("HELLO", 3).startswith(b"%")
            each.pipeline(FILL)


def test_switching_back_and_forth_in_one_pipeline_counts_from_the_very_next_command(pair: tuple[Wire, Wire]) -> None:
    chance = random.Random(3)
    calls: list[Words] = []
    for _ in range(300):
        calls.append(chance.choice(EVERY_TYPE + SPLIT_AND_MERGED[:5]))
        if chance.random() < 0.3:
            calls.append(["HELLO", chance.choice([2, 3])])
        if chance.random() < 0.02:
            calls.append(["RESET"])
    ours, plain = (each.pipeline(calls) for each in pair)
    for words, left, right in zip(calls, ours, plain, strict=True):
        if words[0] == "HELLO":
            assert left[:1] == right[:1], words
        else:
            assert left == right, words


@pytest.mark.parametrize("protocol", [2, 3])
def test_exec_answers_every_type(pair: tuple[Wire, Wire], protocol: int) -> None:
    for each in pair:
        each.call("HELLO", protocol)
    of_one_slot = [words for words in EVERY_TYPE if words != ["NOSUCH"] and "no" not in words[1:]]
    assert len(of_one_slot) > 25
    for chunk in (of_one_slot, of_one_slot[::-1], of_one_slot[:1]):
        calls: list[Words] = [["MULTI"], *chunk, ["EXEC"]]
        ours, plain = (each.pipeline(calls) for each in pair)
        assert ours == plain
        assert len(elements(ours[-1])) == len(chunk)
    for calls in ([["MULTI"], ["EXEC"]], [["MULTI"], ["NOSUCH"], ["EXEC"]], [["MULTI"], ["GET", "{t}s"], ["DISCARD"]]):
        ours, plain = (each.pipeline(calls) for each in pair)  # type: ignore[arg-type]
        assert ours == plain
    # What was watched has changed: null.
    for each in pair:
        each.pipeline([["WATCH", "{t}s"], ["SET", "{t}s", "x"], ["MULTI"], ["GET", "{t}s"]])
    ours, null = both(pair, ["EXEC"])
    assert ours == null == (b"_\r\n" if protocol == 3 else b"*-1\r\n")


SHAPES: list[Words] = [
    ["HELLO"],
    ["INFO"],
    ["INFO", "server", "keyspace"],
    ["INFO", "nosuch"],
    ["MEMORY", "STATS"],
    ["MEMORY", "DOCTOR"],
    ["MEMORY", "MALLOC-STATS"],
    ["LATENCY", "DOCTOR"],
    ["LATENCY", "HISTOGRAM", "set"],
    ["CLIENT", "ID"],
    ["CLIENT", "LIST"],
    ["CLIENT", "INFO"],
    ["SCAN", 0],
    ["RANDOMKEY"],
    ["TIME"],
    ["LASTSAVE"],
    ["COMMAND", "COUNT"],
    ["ACL", "CAT"],
    ["LOLWUT"],
    ["WAIT", 0, 0],
    ["WAITAOF", 0, 0, 0],
    ["ROLE"],
]
"""What no two servers answer alike: the types are compared, and the names in maps."""


def shape(frame: bytes, depth: int = 0) -> object:
    """Types all the way down, and what stands for names; numbers of elements only where names make them."""
    kind = frame[:1]
    if kind == b"%":
        items = elements(frame)
        return "map", {_name(key): shape(value) for key, value in zip(items[::2], items[1::2], strict=True)}
    if kind in b"*~>":
        return kind, sorted({repr(shape(each, depth + 1)) for each in elements(frame)})
    return "text" if kind in b"$+" else kind


def _name(key: bytes) -> bytes | None:
    """The buckets of a histogram have numbers for names."""
    return b"number" if key[:1] == b":" else bulk_value(key)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("words", SHAPES, ids=lambda words: " ".join(map(str, words)))
def test_what_the_proxy_puts_together_has_the_types_of_a_plain_server(
    pair: tuple[Wire, Wire], words: Words, protocol: int
) -> None:
    for each in pair:
        each.call("HELLO", protocol)
    ours, plain = both(pair, words)
    assert not is_error(ours)
    left, right = shape(ours), shape(plain)
    if words == ["MEMORY", "STATS"] or words == ["HELLO"]:  # of databases, modules: what there is of them
        assert ours[:1] == plain[:1]
        if protocol == 3:
            assert isinstance(left, tuple) and isinstance(right, tuple)
            shared = left[1].keys() & right[1].keys()
            assert len(shared) > 5
            assert {key: left[1][key] for key in shared} == {key: right[1][key] for key in shared} or words == ["HELLO"]
    else:
        assert left == right


def test_attributes_in_front_of_replies_are_left_in_front_of_them() -> None:
    assert strip_attributes(b"|1\r\n+ttl\r\n:3600\r\n$1\r\nx\r\n") == b"$1\r\nx\r\n"


def test_two_protocols_of_many_sessions_do_not_mix(endpoint: Up, wire: Wire) -> None:
    wire.call("HSET", "{t}h", "f", "v")
    sessions = [(Wire.to(endpoint.redis_url), 2 + at % 2) for at in range(20)]
    for session, protocol in sessions:
        session.send("HELLO", protocol)
    for session, protocol in sessions:
        assert session.receive().startswith(b"%" if protocol == 3 else b"*")
    for _ in range(30):
        for session, _ in sessions:
            session.send_raw(b"HGETALL {t}h\r\nGET no\r\nMGET no k\r\n")
        for session, protocol in sessions:
            replies = [session.receive() for _ in range(3)]
            if protocol == 3:
                assert replies == [b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n", b"_\r\n", b"*2\r\n_\r\n_\r\n"]
            else:
                assert replies == [b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n", b"$-1\r\n", b"*2\r\n$-1\r\n$-1\r\n"]
    for session, _ in sessions:
        session.close()
