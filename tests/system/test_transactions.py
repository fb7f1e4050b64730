"""MULTI, EXEC, DISCARD, WATCH: the engine's own words, on connections that are given back."""

from __future__ import annotations

import random
import socket
import struct
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.codec import key_slot, split_inline
from proxy.codec.reply import bulk_value, decode, is_error
from tests.harness import Up, until
from tests.system.beside import moved, node, on, primaries, proxy_beside
from tests.system.nodes import metric, owns, shards_of
from tests.system.users import users_on_both
from tests.system.wire import Wire, request

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
RESET
SELECT 1
SELECT 0
SELECT 99
SELECT x
SELECT
DBSIZE
DBSIZE x
FLUSHDB
FLUSHALL
KEYS no*
KEYS {t}a
CLIENT GETNAME
CLIENT SETNAME me
CLIENT SETNAME "two words"
CLIENT NOSUCH
CLIENT REPLY ON
BLPOP {t}a 0.001
BRPOP {t}b 0.001
SCRIPT EXISTS 0123456789012345678901234567890123456789
SCRIPT LOAD "return 7"
EVALSHA 7d6ba23ef2d5bcc1d9f2ba1d6d2c3b4f5a6e7c8d 0
LASTSAVE x
ACL WHOAMI
CONFIG GET nosuch*
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


def test_a_pool_that_is_used_up_makes_others_wait_and_gives_a_clear_error_then(
    endpoint: Up, wire: Wire, tmp_path: Path
) -> None:
    with proxy_beside(endpoint, tmp_path, lanes={"leased_per_shard": 2}, timeouts={"hold": "500ms"}) as url:
        clients = [Wire.to(url) for _ in range(3)]
        for client in clients[:2]:
            assert client.pipeline([["MULTI"], ["INCR", "n"]])[-1] == b"+QUEUED\r\n"
        third = clients[2]
        refused = third.call("WATCH", "n")
        assert refused.startswith(b"-ERR all 2 leased lanes of the shard are in use (lanes.leased_per_shard)")
        assert third.pipeline([["MULTI"], ["INCR", "n"], ["EXEC"]]) == [
            b"+OK\r\n",
            b"+QUEUED\r\n",
            refused,
        ]
        assert third.call("INCR", "n") == b":1\r\n"
        third.send_raw(request("MULTI") + request("INCR", "n") + request("EXEC"))
        assert [third.receive(), third.receive()] == [b"+OK\r\n", b"+QUEUED\r\n"]
        assert clients[0].call("EXEC") == b"*1\r\n:2\r\n"
        assert third.receive() == b"*1\r\n:3\r\n", "it had the lane then"
        clients[1].close()
        for _ in range(2):
            until(lambda: third.call("WATCH", "n") == b"+OK\r\n", "the lane of the client that left is free")
        for client in clients:
            client.close()


# -- what the transaction's shard does not answer alone ---------------------------------------------------------------
def in_multi(wire: Wire, *lines: str) -> list[Any]:
    """EXEC's reply, decoded, of these commands."""
    calls = [["MULTI"], *(list(split_inline(line.encode()) or ()) for line in lines), ["EXEC"]]
    replies = wire.pipeline(calls)  # type: ignore[arg-type]
    assert replies[:-1] == [b"+OK\r\n", *[b"+QUEUED\r\n"] * len(lines)]
    found = decode(replies[-1])
    assert isinstance(found, list), replies[-1]
    return found


def test_all_shards_are_asked_in_a_commands_own_place(wire: Wire) -> None:
    for at in range(30):
        wire.call("SET", f"key:{at}", at)
    lines = ("DBSIZE", "SET new 1", "DBSIZE", "KEYS key:*", "FLUSHALL", "DBSIZE", "SET {new}er 1", "DBSIZE")
    found = in_multi(wire, *lines)
    assert [*found[:3], len(found[3]), *found[4:]] == [30, b"OK", 31, 30, b"OK", 0, b"OK", 1]
    assert wire.call("DBSIZE") == b":1\r\n"
    assert in_multi(wire, "DBSIZE", "INFO keyspace", "RANDOMKEY", "SCAN 0")[2] == b"{new}er"


def test_what_has_no_shard_of_its_own_runs_only_if_exec_does(endpoint: Up, wire: Wire) -> None:
    with Wire.to(endpoint.redis_url) as other:
        wire.pipeline([["SET", "far", 1], ["SET", "k", 1], ["WATCH", "k"]])
        other.call("SET", "k", 2)
        calls: list[list[bytes | str | int]] = [["MULTI"], ["GET", "k"], ["FLUSHALL"], ["CLIENT", "SETNAME", "x"]]
        assert wire.pipeline([*calls, ["SELECT", 3], ["EXEC"]])[-1] == b"*-1\r\n"
        assert wire.pipeline([*calls, ["SELECT", 3], ["DISCARD"]])[-1] == b"+OK\r\n"
        assert wire.pipeline([*calls, ["NOSUCH"], ["EXEC"]])[-1].startswith(b"-EXECABORT ")
        assert wire.call("DBSIZE") == b":2\r\n"
        assert wire.call("CLIENT", "GETNAME") == b"$-1\r\n"


def test_select_inside_holds_for_what_follows_and_for_this_session_alone(endpoint: Up, wire: Wire) -> None:
    found = in_multi(wire, "SET k zero", "SELECT 4", "SET k four", "DBSIZE", "SELECT 99", "SET {k}2 x")
    assert [*found[:4], found[5]] == [b"OK", b"OK", b"OK", 1, b"OK"]
    assert found[4].message == "ERR DB index is out of range"
    assert [bulk_value(wire.call("GET", "k")), bulk_value(wire.call("GET", "{k}2"))] == [b"four", b"x"]
    for _ in range(10):
        with Wire.to(endpoint.redis_url) as other:
            assert other.pipeline([["MULTI"], ["GET", "k"], ["EXEC"]])[-1] == b"*1\r\n$4\r\nzero\r\n"
    found = in_multi(wire, "SELECT 0", "GET k", "SELECT 4", "GET k", "SELECT 0")
    assert found == [b"OK", b"zero", b"OK", b"four", b"OK"]
    assert bulk_value(wire.call("GET", "k")) == b"zero"
    wire.call("SELECT", 4)
    wire.call("FLUSHDB")


def test_hello_inside_changes_the_protocol_of_what_follows(wire: Wire) -> None:
    wire.call("HSET", "h", "f", "v")
    replies = wire.pipeline([["MULTI"], ["HGETALL", "h"], ["HELLO", 3], ["HGETALL", "h"], ["EXEC"]])
    assert replies[-1].startswith(b"*3\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n%")
    assert replies[-1].endswith(b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n")
    assert b"standalone" in replies[-1]
    assert wire.call("GET", "none") == b"_\r\n"
    assert wire.pipeline([["MULTI"], ["GET", "none"], ["HELLO", 2], ["GET", "none"], ["EXEC"]])[-1].endswith(b"$-1\r\n")
    assert wire.call("GET", "none") == b"$-1\r\n"


def test_a_script_loaded_inside_is_there_for_what_follows_and_everywhere(endpoint: Up, wire: Wire) -> None:
    body = "return 'loaded inside'"
    name = sha1(body.encode()).hexdigest()
    found = in_multi(wire, "SET k 1", f'SCRIPT LOAD "{body}"', f"EVALSHA {name} 1 k", f"SCRIPT EXISTS {name}")
    assert found[1:] == [name.encode(), b"loaded inside", [1]]
    assert on(primaries(endpoint), "SCRIPT", "EXISTS", name) == [b"*1\r\n:1\r\n"] * 3


def test_the_session_is_asked_and_named_inside(wire: Wire) -> None:
    number = decode(wire.call("CLIENT", "ID"))
    lines = ("CLIENT SETNAME here", "GET k", "CLIENT GETNAME", "CLIENT ID", "ROLE", "ACL WHOAMI", "ECHO hi")
    found = in_multi(wire, *lines)
    assert found == [b"OK", None, b"here", number, [b"master", 0, []], b"default", b"hi"]


# -- connections and ends ---------------------------------------------------------------------------------------------
def test_ten_thousand_transactions_open_no_more_connections_than_ran_at_once(endpoint: Up, wire: Wire) -> None:
    before = metric(endpoint, "ackgate_lane_connects_total")
    one: list[list[bytes | str | int]] = [["MULTI"], ["INCR", "n"], ["EXEC"]]
    endings: list[list[bytes | str | int]] = [["DISCARD"], ["NOSUCH"], ["RESET"]]
    clients = [Wire.to(endpoint.redis_url) for _ in range(8)]
    for turn in range(25):
        for client in clients:
            calls = [*(one * 50), ["WATCH", "n"], ["MULTI"], ["SET", "{n}x", 1], endings[turn % 3], ["RESET"]]
            client.send_raw(b"".join(request(*call) for call in calls))
        for client in clients:
            replies = [client.receive() for _ in range(155)]
            assert all(reply.startswith(b"*1\r\n:") for reply in replies[2:150:3])
    assert bulk_value(wire.call("GET", "n")) == b"10000"
    for client in clients:
        client.close()
    assert metric(endpoint, "ackgate_lane_connects_total") - before <= len(clients)


def test_clients_that_leave_in_the_middle_cost_no_connections(endpoint: Up, wire: Wire) -> None:
    assert wire.pipeline([["WATCH", "n"], ["UNWATCH"]]) == [b"+OK\r\n"] * 2
    before = metric(endpoint, "ackgate_lane_connects_total")
    for calls in (
        [["WATCH", "n"]],
        [["MULTI"], ["SET", "n", "never"]],
        [["WATCH", "n"], ["MULTI"], ["SET", "n", "never"]],
        [["WATCH", "n"], ["MULTI"], ["NOSUCH"], ["EXEC"]],
    ) * 10:
        with Wire.to(endpoint.redis_url) as leaver:
            leaver.pipeline(calls)  # type: ignore[arg-type]
    until(lambda: not under_way(endpoint), "nothing is queued or watched on the nodes")
    assert wire.pipeline([["MULTI"], ["GET", "n"], ["EXEC"]])[-1] == b"*1\r\n$-1\r\n"
    assert metric(endpoint, "ackgate_lane_connects_total") == before


def test_a_lane_that_is_still_being_given_back_clean_has_its_next_user(endpoint: Up, wire: Wire) -> None:
    [owner] = [shard for shard in shards_of(endpoint) if owns(shard.primary, key_slot(b"k"))]
    former = Wire.to(endpoint.redis_url)
    assert former.pipeline([["WATCH", "k"], ["MULTI"], ["SET", "k", 1]])[-1] == b"+QUEUED\r\n"
    before = metric(endpoint, "ackgate_lane_connects_total")
    with owner.primary.stopped():
        assert former.call("RESET") == b"+RESET\r\n"
        wire.send_raw(b"".join(request(*call) for call in (["WATCH", "k"], ["MULTI"], ["SET", "k", 2], ["EXEC"])))
        assert former.call("PING") == b"+PONG\r\n"
    assert [wire.receive() for _ in range(4)][-1] == b"*1\r\n+OK\r\n"
    assert former.pipeline([["GET", "k"], ["QUIT"]])[0] == b"$1\r\n2\r\n"
    assert metric(endpoint, "ackgate_lane_connects_total") == before


def test_it_survives_users_that_leave_one_after_another(endpoint: Up, wire: Wire) -> None:
    [owner] = [shard for shard in shards_of(endpoint) if owns(shard.primary, key_slot(b"k"))]
    former, leaver = Wire.to(endpoint.redis_url), Wire.to(endpoint.redis_url)
    number = decode(leaver.call("CLIENT", "ID"))
    until(lambda: not under_way(endpoint), "nobody else is at it")
    assert former.pipeline([["WATCH", "k"], ["MULTI"], ["SET", "k", 1]])[-1] == b"+QUEUED\r\n"
    [lane] = under_way(endpoint)
    with owner.primary.stopped():
        assert former.call("RESET") == b"+RESET\r\n"
        leaver.send_raw(b"".join(request(*call) for call in (["PING"], ["WATCH", "k"], ["MULTI"])))
        assert leaver.receive() == b"+PONG\r\n"
        leaver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it crashes
        leaver.close()
        until(lambda: former.call("CLIENT", "LIST", "ID", number) == b"$0\r\n\r\n", "it has left")
    assert wire.pipeline([["MULTI"], ["SET", "k", 2], ["EXEC"]])[-1] == b"*1\r\n+OK\r\n"
    until(lambda: not under_way(endpoint), "nothing is queued or watched on the nodes")
    assert lane["id"] in [client["id"] for client in owner.primary.direct.client_list()]
    former.close()


@pytest.mark.parametrize("rules", ["-unwatch", "-discard"])
def test_a_lane_whose_user_may_not_undo_is_nobody_elses(
    endpoint: Up, wire: Wire, direct: int, rules: str
) -> None:
    with users_on_both(endpoint, direct, {"stuck": f"on >secret ~* &* +@all {rules}"}):
        [owner] = [shard for shard in shards_of(endpoint) if owns(shard.primary, key_slot(b"k"))]
        former, following = Wire.to(endpoint.redis_url), Wire.to(endpoint.redis_url)
        for session in former, following:
            assert session.call("AUTH", "stuck", "secret") == b"+OK\r\n"
        assert following.call("RPUSH", "k", "element") == b":1\r\n"
        left = [["MULTI"], ["LLEN", "k"]] if rules == "-discard" else [["WATCH", "k"]]
        assert not is_error(former.pipeline(left)[-1])  # type: ignore[arg-type]
        with owner.primary.stopped():
            assert former.call("RESET") == b"+RESET\r\n"
            following.send("BLPOP", "k", 0)
            assert former.call("PING") == b"+PONG\r\n"
        assert decode(following.receive()) == [b"k", b"element"]
        for session in former, following:
            session.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    ("name", "value"), [("min-replicas-to-write", "5"), ("maxmemory", "1"), ("min-replicas-max-lag", "0")]
)
def test_what_the_engine_refuses_at_exec_or_before_is_refused_in_its_words(
    endpoint: Up, wire: Wire, direct: int, protocol: int, name: str, value: str
) -> None:
    """Too few replicas, no memory: when it is queued, and when it was queued before."""
    owner = next(shard for shard in shards_of(endpoint) if owns(shard.primary, key_slot(b"k")))
    replies = []
    with Wire("127.0.0.1", direct) as plain, redis.Redis(port=direct) as plain_node:
        nodes: list[tuple[Wire, Any]] = [(wire, owner.primary.direct), (plain, plain_node)]
        for side, server in nodes:
            side.pipeline([["FLUSHALL"], ["HELLO", protocol]])
            found = side.pipeline([["MULTI"], ["SET", "k", 1], ["GET", "k"]])
            former = next(iter(server.config_get(name).values()))
            server.config_set(name, value)
            try:
                found += side.pipeline([["EXEC"], ["GET", "k"], ["MULTI"], ["GET", "k"], ["SET", "k", 2], ["EXEC"]])
                found += side.pipeline([["SET", "k", 3], ["MULTI"], ["GET", "k"], ["EXEC"], ["WATCH", "k"]])
                found += side.pipeline([["UNWATCH"]])
            finally:
                server.config_set(name, former)
            replies.append([*found, *side.pipeline([["MULTI"], ["SET", "k", 4], ["EXEC"]])])
    assert replies[0] == replies[1]


def test_a_connection_that_is_lost_before_exec_costs_a_watch_and_nothing_else(endpoint: Up, wire: Wire) -> None:
    assert wire.pipeline([["MULTI"], ["RPUSH", "k", 1]])[-1] == b"+QUEUED\r\n"
    kill_lanes(endpoint)
    assert wire.pipeline([["RPUSH", "k", 2], ["EXEC"]])[-1] == b"*2\r\n:1\r\n:2\r\n"
    assert wire.pipeline([["WATCH", "k"], ["MULTI"], ["RPUSH", "k", 3]])[-1] == b"+QUEUED\r\n"
    kill_lanes(endpoint)
    assert wire.call("EXEC").startswith(b"-EXECABORT Transaction discarded because of: the connection to the shard")
    assert wire.call("LLEN", "k") == b":2\r\n"


def kill_lanes(endpoint: Up) -> None:
    """Kill, at the nodes, the connections on which something is queued or watched."""
    for address in primaries(endpoint):
        with node(address) as server:
            for client in server.client_list():
                if "x" in client["flags"] or client["watch"] != "0":
                    server.client_kill_filter(_id=client["id"])
    until(lambda: not under_way(endpoint), "they are gone")


@pytest.mark.parametrize("last", ["QUIT", "QUIT now"])
def test_quit_inside_is_answered_and_nothing_runs(endpoint: Up, wire: Wire, last: str) -> None:
    with Wire.to(endpoint.redis_url) as other:
        assert other.pipeline([["MULTI"], ["SET", "k", 1], last.split()])[-1] == b"+OK\r\n"  # type: ignore[list-item]
        assert other.at_eof()
    assert wire.call("GET", "k") == b"$-1\r\n"


def test_a_watched_slot_that_moves_aborts_and_a_second_watch_shows_no_redirection(endpoint: Up, wire: Wire) -> None:
    wire.call("SET", "moving", 1)
    assert wire.call("WATCH", "moving") == b"+OK\r\n"
    with moved(endpoint, "moving"):
        assert wire.call("WATCH", "{moving}2") == b"+OK\r\n"
        replies = wire.pipeline([["MULTI"], ["GET", "moving"], ["EXEC"], ["WATCH", "moving"], ["UNWATCH"]])
        assert replies[:2] == [b"+OK\r\n", b"+QUEUED\r\n"]
        assert replies[2] == b"*-1\r\n"
        assert replies[3:] == [b"+OK\r\n", b"+OK\r\n"]
