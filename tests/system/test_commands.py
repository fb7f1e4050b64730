"""Every reply is the one a plain server gives, byte for byte, in both protocols."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from proxy.codec import key_slot
from proxy.codec.reply import bulk, elements, is_error
from tests.harness import Up
from tests.system.beside import everybody, node, primaries
from tests.system.corpus import CORPUS
from tests.system.wire import Wire

BY_CHANCE = {b"SRANDMEMBER": "draws members by chance", b"TIME": "is another time for each call"}
"""Only the form of these replies is compared."""
IN_ANY_ORDER = {
    b"KEYS": "goes by each server's own hash seed",
    b"COMMAND": "goes by each server's own hash seed",
    b"ACL": "CAT goes by each server's own hash seed",
    b"SUNION": "builds a hash table, which goes by the hash seed",
}
"""Of these the elements are compared, not their order."""

CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"


class Pair:
    """The proxy and a plain server, told the same."""

    def __init__(self, proxy: Wire, plain: Wire) -> None:
        self.both = (proxy, plain)

    def call(self, *args: bytes | str | int) -> tuple[bytes, bytes]:
        ours, plain = (connection.call(*args) for connection in self.both)
        return ours, plain

    def same(self, *args: bytes | str | int) -> bytes:
        ours, plain = self.call(*args)
        assert ours == plain, args
        return ours


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def pair(request: pytest.FixtureRequest, wire: Wire, direct: int) -> Iterator[Pair]:
    """Both empty, both speaking the same protocol."""
    with Wire("127.0.0.1", direct) as plain:
        pair = Pair(wire, plain)
        pair.same("FLUSHALL")
        pair.same("SCRIPT", "FLUSH")
        if request.param == 3:
            assert all(reply.startswith(b"%") for reply in pair.call("HELLO", 3))
        yield pair
        pair.same("FUNCTION", "FLUSH")


def agree(words: Sequence[bytes], ours: bytes, plain: bytes) -> bool:
    """Whether two replies say the same, in as much as chance allows."""
    name = words[0].upper()
    if ours == plain:
        return True
    if ours[:1] != plain[:1] or ours[:1] not in b"*~%":
        return False
    if name in BY_CHANCE:
        return len(elements(ours)) == len(elements(plain))
    return name in IN_ANY_ORDER and in_order(ours) == in_order(plain)


def in_order(frame: bytes) -> bytes:
    """The frame with the elements of each array sorted."""
    if frame[:1] not in b"*~":
        return frame
    return frame.partition(b"\r\n")[0] + b"\r\n" + b"".join(sorted(in_order(each) for each in elements(frame)))


def check(words: Sequence[bytes], ours: bytes, plain: bytes) -> None:
    agreed = agree(words, ours, plain)
    assert agreed, f"{words}\n  ours {ours[:400]!r}\n plain {plain[:400]!r}"


def test_the_comparison_sees_a_difference() -> None:
    assert not agree([b"GET", b"a"], b"$1\r\n1\r\n", b"$1\r\n2\r\n")
    assert not agree([b"SMEMBERS", b"a"], b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:1\r\n")
    assert not agree([b"KEYS", b"*"], b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:3\r\n")
    assert not agree([b"TIME"], b"*1\r\n:1\r\n", b"*2\r\n:1\r\n:1\r\n")


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert sum(len(commands) for commands in CORPUS.values()) >= 700
    assert len({words[0].upper() for commands in CORPUS.values() for words in commands}) >= 180


@pytest.mark.parametrize("group", CORPUS)
def test_each_reply_is_that_of_a_plain_server(pair: Pair, group: str) -> None:
    for words in CORPUS[group]:
        ours, plain = pair.call(*words)
        check(words, ours, plain)


@pytest.mark.parametrize("group", CORPUS)
def test_the_replies_are_the_same_when_all_commands_arrive_at_once(pair: Pair, group: str) -> None:
    ours, plain = (connection.pipeline([list(words) for words in CORPUS[group]]) for connection in pair.both)
    for words, left, right in zip(CORPUS[group], ours, plain, strict=True):
        check(words, left, right)


def test_all_groups_at_once_by_several_clients_leave_each_its_own_order(endpoint: Up) -> None:
    clients = [Wire.to(endpoint.redis_url) for _ in range(8)]
    for number, client in enumerate(clients):
        keys = [f"client{number}:{at}" for at in range(30)]
        for turn in range(20):
            for key in keys:
                client.send("INCR", key)
            client.send("MGET", *keys)
            client.send("ECHO", turn)
    for client in clients:
        for turn in range(1, 21):
            assert [client.receive() for _ in range(30)] == [b":%d\r\n" % turn] * 30
            assert elements(client.receive()) == [bulk(b"%d" % turn)] * 30
            assert client.receive() == bulk(b"%d" % (turn - 1))
        client.close()


def test_hundreds_of_keys_in_any_order_come_back_in_the_order_asked_for(pair: Pair) -> None:
    chance = random.Random(20)
    keys = [chance.randbytes(chance.randrange(1, 40)) for _ in range(700)]
    pairs = [word for key in keys for word in (key, key[::-1])]
    pair.same("MSET", *pairs)
    asked = [chance.choice(keys) for _ in range(900)] + [b"missing"]
    chance.shuffle(asked)
    assert len(elements(pair.same("MGET", *asked))) == 901
    for command in ("EXISTS", "TOUCH"):
        pair.same(command, *asked)
    for command, part in (("DEL", asked[:200]), ("UNLINK", asked[200:500])):
        pair.same(command, *part)
    pair.same("MGET", *keys)
    pair.same("DBSIZE")
    pair.same("MSET", *pairs, *pairs[::-1])
    pair.same("MGET", *keys)


def test_keys_of_a_split_command_are_written_on_the_shards_that_own_them(endpoint: Up, wire: Wire) -> None:
    assert wire.call("MSET", *(word for at in range(60) for word in (f"spread:{at}", at))) == b"+OK\r\n"
    counts = [node(address).dbsize() for address in primaries(endpoint)]
    assert sum(counts) == 60
    assert all(counts)


@pytest.mark.parametrize(
    "words",
    [
        "RENAME a b",
        "RENAMENX a b",
        "COPY a b",
        "SINTER a b",
        "SUNIONSTORE a b c",
        "SMOVE a b m",
        "SINTERCARD 2 a b",
        "LMOVE a b LEFT LEFT",
        "RPOPLPUSH a b",
        "LMPOP 2 a b LEFT",
        "ZUNIONSTORE a 2 b c",
        "ZMPOP 2 a b MIN",
        "ZRANGESTORE a b 0 1",
        "PFCOUNT a b",
        "PFMERGE a b",
        "BITOP AND a b c",
        "LCS a b",
        "XREAD STREAMS a b 0 0",
        "GEOSEARCHSTORE a b FROMLONLAT 1 1 BYRADIUS 1 m",
        "GEORADIUS a 1 1 1 m STORE b",
        "SORT a STORE b",
        "MSETNX a 1 b 2",
        "MSETEX 2 a 1 b 2 NX",
        "EVAL return(1) 2 a b",
        "EVALSHA ffffffffffffffffffffffffffffffffffffffff 2 a b",
    ],
)
def test_keys_of_several_slots_get_the_engines_crossslot_where_nothing_may_be_split(wire: Wire, words: str) -> None:
    assert key_slot(b"a") != key_slot(b"b") != key_slot(b"c")
    assert wire.call(*words.split()) == CROSSSLOT
    assert wire.call("DBSIZE") == b":0\r\n"


def test_a_script_may_not_leave_its_slot(wire: Wire) -> None:
    reply = wire.call("EVAL", "return redis.call('set', 'elsewhere', 1)", 1, "here")
    assert is_error(reply) and b"non local key" in reply


def test_a_dumped_value_is_restored_on_any_shard(pair: Pair) -> None:
    pair.same("RPUSH", "from", *range(300))
    dumped = pair.same("DUMP", "from")
    payload = dumped.partition(b"\r\n")[2][:-2]
    for at in range(12):
        assert pair.same("RESTORE", f"to:{at}", 0, payload) == b"+OK\r\n"
        pair.same("LRANGE", f"to:{at}", 0, -1)
    pair.same("RESTORE", "to:1", 0, payload)
    pair.same("RESTORE", "to:1", 100000, payload, "REPLACE")


def test_stream_ids_given_by_the_shard_rise(wire: Wire) -> None:
    ids = [wire.call("XADD", "stream", "*", "f", "v").partition(b"\r\n")[2] for _ in range(50)]
    numbers = [tuple(int(part) for part in each.strip().split(b"-")) for each in ids]
    assert all(earlier < later for earlier, later in pairwise(numbers))


def test_databases_are_apart_on_every_shard(endpoint: Up, wire: Wire) -> None:
    for number in range(16):
        assert wire.call("SELECT", number) == b"+OK\r\n"
        assert wire.call("MSET", *(word for at in range(12) for word in (f"k{at}", number))) == b"+OK\r\n"
    for number in range(16):
        wire.call("SELECT", number)
        assert elements(wire.call("MGET", *(f"k{at}" for at in range(12)))) == [bulk(b"%d" % number)] * 12
        assert wire.call("DBSIZE") == b":12\r\n"
    wire.call("SELECT", 3)
    assert wire.call("FLUSHDB") == b"+OK\r\n"
    assert wire.call("DBSIZE") == b":0\r\n"
    wire.call("SELECT", 4)
    assert wire.call("DBSIZE") == b":12\r\n"
    assert wire.call("FLUSHALL") == b"+OK\r\n"
    assert wire.call("DBSIZE") == b":0\r\n"
    assert not any(node(address).info("keyspace") for address in everybody(endpoint)[::2])
