"""MULTI, EXEC, DISCARD, WATCH: the engine's own words, on connections that are given back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from proxy.codec import key_slot, split_inline
from proxy.codec.reply import bulk_value, decode
from tests.harness import Up, until
from tests.system.beside import moved, node, on, primaries, proxy_beside
from tests.system.wire import Wire

MENU = [
    split_inline(line.encode())
    for line in r"""
MULTI
MULTI
MULTI
EXEC
EXEC
EXEC
EXEC extra
MULTI extra
DISCARD
WATCH {t}a
WATCH {t}a {t}b
WATCH
UNWATCH
SET {t}a 1
SET {t}a x
INCR {t}a
INCR {t}b
GET {t}a
LPUSH {t}a x
LRANGE {t}a 0 -1
DEL {t}a {t}b
MSET {t}a 1 {t}b 2
MGET {t}a {t}b
NOSUCH a b
GET
GET a b c
PING
PING hello
PING a b
ECHO hi
EVAL "return redis.call('incr', KEYS[1])" 1 {t}b
EVAL "return {KEYS[1]}" 1 {t}b
EVAL "return 7" 0
MSETEX 1 {t}a word
TYPE {t}a
OBJECT WRONG
OBJECT ENCODING {t}a
SORT {t}a BY nosort
EXPIRE {t}a 1000
PUBLISH channel message
ZADD {t}z 1 a
ZRANGE {t}z 0 -1 WITHSCORES
WAIT x 1 2
SAVE x
COMMAND COUNT
""".strip().splitlines()
]


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_commands_is_answered_as_a_plain_server_answers_it(wire: Wire, direct: int, seed: int) -> None:
    chance = random.Random(seed)
    with Wire("127.0.0.1", direct) as plain:
        plain.call("FLUSHALL")
        if seed % 2:
            assert wire.call("HELLO", 3)[:1] == plain.call("HELLO", 3)[:1] == b"%"
        sent: list[bytes] = []
        for _ in range(400):
            words = chance.choice(MENU)
            sent.append(b" ".join(words))
            assert wire.call(*words) == plain.call(*words), sent[-15:]


@pytest.mark.parametrize("seed", range(8, 12))
def test_the_same_holds_when_all_commands_arrive_at_once(wire: Wire, direct: int, seed: int) -> None:
    chance = random.Random(seed)
    words = [list(chance.choice(MENU)) for _ in range(400)]
    with Wire("127.0.0.1", direct) as plain:
        plain.call("FLUSHALL")
        for at, (ours, theirs) in enumerate(zip(wire.pipeline(words), plain.pipeline(words), strict=True)):
            assert ours == theirs, words[max(at - 15, 0) : at + 1]


def test_nothing_of_a_transaction_is_seen_before_exec(endpoint: Up, wire: Wire) -> None:
    with Wire.to(endpoint.redis_url) as other:
        assert wire.pipeline([["MULTI"], ["SET", "{t}a", 1], ["SET", "{t}b", 2]]) == [b"+OK\r\n", *[b"+QUEUED\r\n"] * 2]
        assert decode(other.call("MGET", "{t}a", "{t}b")) == [None, None]
        assert wire.call("EXEC") == b"*2\r\n+OK\r\n+OK\r\n"
        assert decode(other.call("MGET", "{t}a", "{t}b")) == [b"1", b"2"]


def test_keys_of_two_slots_get_crossslot_at_exec_and_nothing_runs(wire: Wire) -> None:
    assert key_slot(b"a") != key_slot(b"b")
    replies = wire.pipeline([["MULTI"], ["SET", "a", 1], ["SET", "b", 2], ["EXEC"], ["MGET", "a", "b"], ["EXEC"]])
    assert replies[:3] == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"]
    assert replies[3].startswith(b"-CROSSSLOT ")
    assert decode(replies[4]) == [None, None]
    assert replies[5] == b"-ERR EXEC without MULTI\r\n"


def test_one_command_over_two_slots_is_refused_when_it_is_queued(wire: Wire) -> None:
    for words in (["MSET", "a", 1, "b", 2], ["DEL", "a", "b"], ["RENAME", "a", "b"]):
        assert wire.call("MULTI") == b"+OK\r\n"
        assert wire.call("SET", "a", 1) == b"+QUEUED\r\n"
        assert wire.call(*words).startswith(b"-CROSSSLOT ")
        assert wire.call("EXEC") == b"-EXECABORT Transaction discarded because of previous errors.\r\n"
    assert wire.call("DBSIZE") == b":0\r\n"


def test_watch_over_two_slots_gets_crossslot(wire: Wire) -> None:
    assert wire.call("WATCH", "a", "b").startswith(b"-CROSSSLOT ")
    assert wire.call("WATCH", "a") == b"+OK\r\n"
    assert wire.call("UNWATCH") == b"+OK\r\n"


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_watched_key_that_another_client_changes_makes_exec_answer_null(
    endpoint: Up, wire: Wire, protocol: int
) -> None:
    wire.call("HELLO", protocol)
    with Wire.to(endpoint.redis_url) as other:
        for change in (["SET", "k", 5], ["APPEND", "k", ""], ["DEL", "k"], ["FLUSHALL"], ["MSET", "k", 1, "far", 2]):
            wire.call("SET", "k", 0)
            assert wire.call("WATCH", "k") == b"+OK\r\n"
            other.call(*change)
            assert wire.pipeline([["MULTI"], ["SET", "k", "mine"]]) == [b"+OK\r\n", b"+QUEUED\r\n"]
            assert wire.call("EXEC") == (b"*-1\r\n" if protocol == 2 else b"_\r\n")
            assert bulk_value(wire.call("GET", "k")) != b"mine"


def test_a_watched_key_that_nobody_changes_lets_exec_run(endpoint: Up, wire: Wire) -> None:
    with Wire.to(endpoint.redis_url) as other:
        wire.call("SET", "k", 1)
        assert wire.call("WATCH", "k") == b"+OK\r\n"
        assert bulk_value(wire.call("GET", "k")) == b"1"
        other.call("SET", "another", 2)
        assert wire.pipeline([["MULTI"], ["INCR", "k"], ["EXEC"]])[-1] == b"*1\r\n:2\r\n"
        # EXEC forgot the watch.
        other.call("SET", "k", 10)
        assert wire.pipeline([["MULTI"], ["INCR", "k"], ["EXEC"]])[-1] == b"*1\r\n:11\r\n"


@pytest.mark.parametrize("ending", ["UNWATCH", "DISCARD", "RESET"])
def test_what_was_unwatched_does_not_matter(endpoint: Up, wire: Wire, ending: str) -> None:
    with Wire.to(endpoint.redis_url) as other:
        wire.call("WATCH", "k")
        if ending == "DISCARD":
            wire.pipeline([["MULTI"], ["SET", "k", "never"]])
        assert wire.call(ending) in (b"+OK\r\n", b"+RESET\r\n")
        other.call("SET", "k", 1)
        assert wire.pipeline([["MULTI"], ["INCR", "k"], ["EXEC"]])[-1] == b"*1\r\n:2\r\n"


def test_own_writes_between_watch_and_multi_count_as_changes(wire: Wire) -> None:
    wire.call("WATCH", "k")
    wire.call("SET", "k", 1)
    assert wire.pipeline([["MULTI"], ["INCR", "k"], ["EXEC"]])[-1] == b"*-1\r\n"


def test_two_clients_count_up_under_watch_and_no_count_is_lost(endpoint: Up, wire: Wire) -> None:
    wire.call("SET", "n", 0)
    clients = [Wire.to(endpoint.redis_url) for _ in range(4)]
    done = [0] * len(clients)
    conflicts = 0
    while min(done) < 20:
        for client in clients:
            client.call("WATCH", "n")
        found = [int(bulk_value(client.call("GET", "n")) or 0) for client in clients]
        for client, number in zip(clients, found, strict=True):
            for words in (["MULTI"], ["SET", "n", number + 1], ["EXEC"]):
                client.send(*words)
        for at, client in enumerate(clients):
            ran = [client.receive() for _ in range(3)][-1] == b"*1\r\n+OK\r\n"
            done[at] += ran
            conflicts += not ran
        clients.append(clients.pop(0))
        done.append(done.pop(0))
    assert bulk_value(wire.call("GET", "n")) == b"%d" % sum(done)
    assert conflicts > 0
    for client in clients:
        client.close()


def connections(endpoint: Up) -> int:
    """Connections that the proxy's clients' commands travel on, all primaries together."""
    counts = []
    for address in primaries(endpoint):
        with node(address) as client:
            counts.append(sum(each["name"] == "ackgate" for each in client.client_list()))
    return sum(counts)


def test_five_hundred_transactions_reuse_a_few_connections(endpoint: Up, wire: Wire) -> None:
    before = connections(endpoint)
    for at in range(500):
        key = f"key:{at}"
        replies = wire.pipeline([["WATCH", key], ["MULTI"], ["INCR", key], ["GET", key], ["EXEC"]])
        assert replies[-1] == b"*2\r\n:1\r\n$1\r\n1\r\n"
    opened = connections_ever(endpoint)
    for at in range(300):
        wire.pipeline([["MULTI"], ["INCR", f"key:{at}"], ["DISCARD"]])
        wire.pipeline([["MULTI"], ["INCR", f"key:{at}"], ["EXEC"]])
    assert connections_ever(endpoint) - opened < 60  # the tests' own connections count, too
    assert connections(endpoint) <= before + 3


def connections_ever(endpoint: Up) -> int:
    total = 0
    for address in primaries(endpoint):
        with node(address) as server:
            total += server.info("stats")["total_connections_received"]
    return total


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(endpoint: Up, wire: Wire) -> None:
    before = connections(endpoint)
    for _ in range(30):
        with Wire.to(endpoint.redis_url) as leaver:
            leaver.pipeline([["WATCH", "k"], ["MULTI"], ["SET", "k", "never"]])
        with Wire.to(endpoint.redis_url) as leaver:
            leaver.send_raw(b"MULTI\r\nSET k never\r\nINCR k\r\n")
    until(lambda: connections(endpoint) <= before + 2, "their connections are gone")
    assert wire.call("GET", "k") == b"$-1\r\n"
    until(lambda: not under_way(endpoint), "nothing is queued or watched on the nodes")
    assert wire.pipeline([["MULTI"], ["SET", "k", 1], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n"


def under_way(endpoint: Up) -> list[dict[str, str]]:
    """Connections at the primaries that queue or watch."""
    found = [client for address in primaries(endpoint) for client in node(address).client_list()]
    return [client for client in found if "x" in client["flags"] or client["watch"] != "0"]


def test_a_transaction_of_another_database_stays_there(wire: Wire) -> None:
    wire.call("SELECT", 5)
    assert wire.pipeline([["MULTI"], ["SET", "k", 5], ["DBSIZE"], ["EXEC"]])[1] == b"+QUEUED\r\n"
    assert wire.pipeline([["MULTI"], ["SET", "k", 5], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n"
    wire.call("SELECT", 0)
    assert wire.call("EXISTS", "k") == b":0\r\n"
    assert wire.pipeline([["MULTI"], ["GET", "k"], ["EXEC"]])[-1] == b"*1\r\n$-1\r\n"
    wire.call("SELECT", 5)
    assert wire.pipeline([["MULTI"], ["GET", "k"], ["EXEC"]])[-1] == b"*1\r\n$1\r\n5\r\n"


def test_replies_in_exec_have_the_protocol_of_the_session(wire: Wire) -> None:
    wire.call("HELLO", 3)
    replies = wire.pipeline([["MULTI"], ["HSET", "h", "f", "v"], ["HGETALL", "h"], ["GET", "{h}no"], ["EXEC"]])
    assert replies[-1] == b"*3\r\n:1\r\n%1\r\n$1\r\nf\r\n$1\r\nv\r\n_\r\n"
    wire.call("HELLO", 2)
    assert wire.pipeline([["MULTI"], ["HGETALL", "h"], ["EXEC"]])[-1] == b"*1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n"


def test_a_transaction_on_a_slot_that_moves_between_multi_and_exec_runs_on_the_new_owner(
    endpoint: Up, wire: Wire
) -> None:
    assert wire.pipeline([["MULTI"], ["RPUSH", "moving", 1]])[-1] == b"+QUEUED\r\n"
    with moved(endpoint, "moving") as (_, target):
        assert wire.call("RPUSH", "moving", 2) == b"+QUEUED\r\n"
        assert wire.call("EXEC") == b"*2\r\n:1\r\n:2\r\n"
        assert on([target], "LLEN", "moving") == [b":2\r\n"]


def test_a_pool_that_is_used_up_gives_a_clear_error_and_recovers(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    with proxy_beside(endpoint, tmp_path, lanes={"leased_per_shard": 2}) as url:
        clients = [Wire.to(url) for _ in range(3)]
        for client in clients[:2]:
            assert client.pipeline([["MULTI"], ["INCR", "n"]])[-1] == b"+QUEUED\r\n"
        third = clients[2]
        refused = third.call("WATCH", "n")
        assert refused.startswith(b"-ERR all 2 leased lanes of the shard are in use (lanes.leased_per_shard)")
        assert third.pipeline([["MULTI"], ["INCR", "n"], ["EXEC"]]) == [
            b"+OK\r\n",
            refused,
            b"-EXECABORT Transaction discarded because of previous errors.\r\n",
        ]
        assert third.call("INCR", "n") == b":1\r\n"
        assert clients[0].call("EXEC") == b"*1\r\n:2\r\n"
        assert third.pipeline([["MULTI"], ["INCR", "n"], ["EXEC"]])[-1] == b"*1\r\n:3\r\n"
        clients[1].close()
        for _ in range(2):
            until(lambda: third.call("WATCH", "n") == b"+OK\r\n", "the lane of the client that left is free")
        for client in clients:
            client.close()
