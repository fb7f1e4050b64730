"""Request and response policies: where a command goes, and what becomes of the replies, looked at on the nodes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.codec import key_slot
from proxy.codec.reply import bulk_value, decode, elements, is_error
from tests.harness import Up, until
from tests.system.beside import everybody, moved, node, on, primaries, proxy_beside, whole
from tests.system.wire import Wire

BODY = "return 'of ' .. KEYS[1]"
LIBRARY = "#!lua name=lib\nserver.register_function('hello', function(keys) return 'hello ' .. keys[1] end)"


def values(replies: Iterable[bytes]) -> list[Any]:
    return [decode(reply) for reply in replies]


def test_the_engine_names_no_policy_that_is_not_tested_here(endpoint: Up) -> None:
    commands = decode(on(primaries(endpoint)[:1], "COMMAND")[0])
    tips = {tip.decode() for command in commands for each in [command, *command[9]] for tip in each[7]}
    named = {kind: {tip.partition(":")[2] for tip in tips if tip.startswith(kind)} for kind in ("request", "response")}
    assert named == {
        "request": {"all_nodes", "all_shards", "multi_shard", "special"},
        "response": {"all_succeeded", "one_succeeded", "agg_sum", "agg_min", "agg_logical_and", "special"},
    }


# -- all_nodes ---------------------------------------------------------------------------------------------------------


def test_a_script_is_loaded_on_every_node_and_runs_on_every_shard(endpoint: Up, wire: Wire) -> None:
    sha = bulk_value(wire.call("SCRIPT", "LOAD", BODY))
    assert sha is not None
    assert values(on(everybody(endpoint), "SCRIPT", "EXISTS", sha)) == [[1]] * 6
    for key in ("a", "b", "c", "d", "e", "f"):
        assert bulk_value(wire.call("EVALSHA", sha, 1, key)) == b"of " + key.encode()
    assert wire.call("SCRIPT", "FLUSH", "SYNC") == b"+OK\r\n"
    assert values(on(everybody(endpoint), "SCRIPT", "EXISTS", sha)) == [[0]] * 6


def test_a_setting_is_set_on_every_node_and_a_wrong_one_on_none(endpoint: Up, wire: Wire) -> None:
    before = values(on(everybody(endpoint), "CONFIG", "GET", "hash-max-listpack-entries"))
    assert wire.call("CONFIG", "SET", "hash-max-listpack-entries", 77) == b"+OK\r\n"
    assert values(on(everybody(endpoint), "CONFIG", "GET", "hash-max-listpack-entries")) == [
        [b"hash-max-listpack-entries", b"77"]
    ] * 6
    assert decode(wire.call("CONFIG", "GET", "hash-max-listpack-entries"))[1] == b"77"
    assert is_error(wire.call("CONFIG", "SET", "hash-max-listpack-entries", "many"))
    assert values(on(everybody(endpoint), "CONFIG", "GET", "hash-max-listpack-entries"))[0][1] == b"77"
    assert wire.call("CONFIG", "SET", "hash-max-listpack-entries", before[0][1]) == b"+OK\r\n"
    assert values(on(everybody(endpoint), "CONFIG", "GET", "hash-max-listpack-entries")) == before


@pytest.mark.parametrize("name", ["requirepass", "replicaof", "dir", "maxclients", "cluster-announce-port", "bind"])
def test_a_setting_that_would_cut_nodes_off_is_refused_on_all(endpoint: Up, wire: Wire, name: str) -> None:
    before = on(everybody(endpoint), "CONFIG", "GET", name)
    reply = wire.call("CONFIG", "SET", "lazyfree-lazy-expire", "yes", name.upper(), "7")
    assert reply.startswith(b"-ERR CONFIG SET failed") and b"refused by the proxy" in reply
    assert on(everybody(endpoint), "CONFIG", "GET", name) == before


def test_the_slow_log_counts_shows_and_forgets_what_all_nodes_logged(endpoint: Up, wire: Wire) -> None:
    nodes = everybody(endpoint)
    assert wire.call("SLOWLOG", "RESET") == b"+OK\r\n"
    try:
        wire.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
        on(nodes, "ECHO", "marked")
    finally:
        wire.call("CONFIG", "SET", "slowlog-log-slower-than", 10_000_000)
    lengths = values(on(nodes, "SLOWLOG", "LEN"))
    assert min(lengths) >= 2
    assert decode(wire.call("SLOWLOG", "LEN")) == sum(lengths)
    assert decode(wire.call("COMMANDLOG", "LEN", "slow")) == sum(lengths)
    for words in (["SLOWLOG", "GET", "-1"], ["COMMANDLOG", "GET", "-1", "slow"]):
        entries = decode(wire.call(*words))
        assert 6 <= len(entries) <= sum(lengths)  # what the proxy does of its own accord is counted, and not shown
        assert [entry[3] for entry in entries].count([b"ECHO", b"marked"]) == 6
        times = [entry[1] for entry in entries]
        assert times == sorted(times, reverse=True)
    assert len(decode(wire.call("SLOWLOG", "GET", 3))) == 3
    assert wire.call("SLOWLOG", "GET", "x") == on(nodes[:1], "SLOWLOG", "GET", "x")[0]
    assert wire.call("COMMANDLOG", "RESET", "slow") == b"+OK\r\n"
    assert values(on(nodes, "SLOWLOG", "LEN")) == [0] * 6
    wire.call("CONFIG", "SET", "slowlog-log-slower-than", 10_000)


def test_latency_events_of_all_nodes_are_merged_and_reset_together(endpoint: Up, wire: Wire) -> None:
    nodes = everybody(endpoint)
    slow = "local sum = 0; for at = 1, 5000000 do sum = sum + at end"  # a script's clock stands still
    wire.call("LATENCY", "RESET")
    wire.call("CONFIG", "SET", "latency-monitor-threshold", 5)
    try:
        on(nodes, "EVAL", slow, 0)
        latest = {row[0]: row[1:] for row in decode(wire.call("LATENCY", "LATEST"))}
        each = [{row[0]: row[1:] for row in reply} for reply in values(on(nodes, "LATENCY", "LATEST"))]
        assert latest[b"command"][2] == max(rows[b"command"][2] for rows in each) >= 5
        assert len(decode(wire.call("LATENCY", "HISTORY", "command"))) >= 6
        graph, doctor = (bulk_value(wire.call("LATENCY", *words)) for words in (["GRAPH", "command"], ["DOCTOR"]))
        assert graph is not None and graph.count(b"command - high") == 6
        assert doctor is not None and doctor.count(b"command: 1 latency spike") == 6
        assert doctor.count(b"# Node ") == 6
        events = {name for rows in each for name in rows}
        assert decode(wire.call("LATENCY", "RESET", *events)) >= 6
        assert decode(wire.call("LATENCY", "HISTORY", "command")) == []
    finally:
        wire.call("CONFIG", "SET", "latency-monitor-threshold", 0)
        wire.call("LATENCY", "RESET")


def test_the_latency_histogram_adds_the_calls_of_all_nodes(endpoint: Up, wire: Wire) -> None:
    assert wire.call("CONFIG", "RESETSTAT") == b"+OK\r\n"
    for at in range(40):
        wire.call("HSET", f"key:{at}", "f", "v")
    assert wire.call("HELLO", 3).startswith(b"%")
    until(lambda: _calls(on(everybody(endpoint), "LATENCY", "HISTOGRAM", "hset")) == 80, "the replicas have them")
    curve = elements(elements(wire.call("LATENCY", "HISTOGRAM", "hset"))[1])
    assert decode(curve[1]) == 80  # 40 on primaries, and again on their replicas


def _calls(replies: Iterable[bytes]) -> int:
    return sum(reply[0][1][1] if (reply := [decode(raw)])[0] else 0 for raw in replies)


# -- all_shards --------------------------------------------------------------------------------------------------------


def test_dbsize_keys_and_flushes_reach_every_shard(endpoint: Up, wire: Wire) -> None:
    names = [f"key:{at}" for at in range(100)]
    for name in names:
        wire.call("SET", name, "v")
    assert decode(wire.call("DBSIZE")) == sum(values(on(primaries(endpoint), "DBSIZE"))) == 100
    assert sorted(decode(wire.call("KEYS", "*"))) == sorted(name.encode() for name in names)
    assert sorted(decode(wire.call("KEYS", "key:1?"))) == [b"key:%d" % at for at in range(10, 20)]
    assert decode(wire.call("KEYS", "key:55")) == [b"key:55"]
    assert wire.call("FLUSHDB", "ASYNC") == b"+OK\r\n"
    assert values(on(primaries(endpoint), "DBSIZE")) == [0, 0, 0]
    wire.call("MSET", *(word for name in names for word in (name, "v")))
    assert wire.call("FLUSHALL", "SYNC") == b"+OK\r\n"
    assert values(on(primaries(endpoint), "DBSIZE")) == [0, 0, 0]


def test_functions_are_loaded_listed_dumped_restored_and_deleted_on_every_shard(endpoint: Up, wire: Wire) -> None:
    def libraries() -> list[int]:
        return [len(decode(reply)) for reply in on(primaries(endpoint), "FUNCTION", "LIST")]

    assert bulk_value(wire.call("FUNCTION", "LOAD", LIBRARY)) == b"lib"
    assert libraries() == [1, 1, 1]
    for key in ("a", "b", "c", "d", "e"):
        assert bulk_value(wire.call("FCALL", "hello", 1, key)) == b"hello " + key.encode()
    assert len(decode(wire.call("FUNCTION", "LIST"))) == 1
    dump = bulk_value(wire.call("FUNCTION", "DUMP"))
    assert dump is not None
    stats = decode(wire.call("FUNCTION", "STATS"))
    assert stats[0:2] == [b"running_script", None]
    assert wire.call("FUNCTION", "DELETE", "lib") == b"+OK\r\n"
    assert libraries() == [0, 0, 0]
    assert is_error(wire.call("FCALL", "hello", 1, "a"))
    assert wire.call("FUNCTION", "RESTORE", dump) == b"+OK\r\n"
    assert libraries() == [1, 1, 1]
    assert wire.call("FUNCTION", "FLUSH") == b"+OK\r\n"
    assert libraries() == [0, 0, 0]


def test_memory_commands_speak_for_all_shards(endpoint: Up, wire: Wire) -> None:
    wire.call("MSET", *(word for at in range(300) for word in (f"key:{at}", "x" * 100)))
    wire.call("HELLO", 3)
    stats = decode(wire.call("MEMORY", "STATS"))
    each = [decode(reply) for reply in on(primaries(endpoint), "MEMORY", "STATS")]
    assert stats[b"keys.count"] == sum(row[row.index(b"keys.count") + 1] for row in each) == 300
    assert wire.call("MEMORY", "PURGE") == b"+OK\r\n"
    for word in ("DOCTOR", "MALLOC-STATS"):
        text = wire.call("MEMORY", word)
        assert [text.count(b"# Shard %d\n" % at) for at in range(4)] == [1, 1, 1, 0]
    assert decode(wire.call("MEMORY", "USAGE", "key:7")) > 100


def test_script_exists_is_true_only_where_all_shards_say_so(endpoint: Up, wire: Wire) -> None:
    wire.call("SCRIPT", "FLUSH")
    sha = bulk_value(on(primaries(endpoint)[1:2], "SCRIPT", "LOAD", BODY)[0])
    other = bulk_value(wire.call("SCRIPT", "LOAD", "return 1"))
    assert sha is not None and other is not None
    assert decode(wire.call("SCRIPT", "EXISTS", sha, other, "f" * 40)) == [0, 1, 0]
    on(primaries(endpoint), "SCRIPT", "LOAD", BODY)
    assert decode(wire.call("SCRIPT", "EXISTS", sha, other, "f" * 40)) == [1, 1, 0]


@pytest.mark.parametrize("kind", ["SCRIPT", "FUNCTION"])
def test_a_kill_finds_the_shard_that_runs_the_script(endpoint: Up, wire: Wire, kind: str) -> None:
    endless = "#!lua name=endless\nserver.register_function('endless', function(keys) while true do end end)"
    wire.call("FUNCTION", "LOAD", "REPLACE", endless)
    wire.call("CONFIG", "SET", "busy-reply-threshold", 20)
    try:
        with Wire.to(endpoint.redis_url) as victim:
            words = ["FCALL", "endless"] if kind == "FUNCTION" else ["EVAL", "while true do end"]
            victim.send(*words, 1, "key")
            until(lambda: wire.call(kind, "KILL") == b"+OK\r\n", "it is killed")
            reply = victim.receive()
            assert is_error(reply) and b"killed by user with " + kind.encode() + b" KILL" in reply
            assert victim.call("SET", "key", "v") == b"+OK\r\n"
    finally:
        wire.call("CONFIG", "SET", "busy-reply-threshold", 5000)
        wire.call("FUNCTION", "FLUSH")
    assert wire.call(kind, "KILL") == on(primaries(endpoint)[:1], kind, "KILL")[0]


def test_wait_answers_the_least_of_all_shards(wire: Wire) -> None:
    wire.call("MSET", *(word for at in range(30) for word in (f"key:{at}", at)))
    assert wire.call("WAIT", 1, 10_000) == b":1\r\n"
    assert wire.call("WAITAOF", 1, 1, 10_000) == b"*2\r\n:1\r\n:1\r\n"


def test_slot_statistics_come_from_every_shard(wire: Wire) -> None:
    wire.call("MSET", "a", 1, "b", 2, "c", 3)
    rows = decode(wire.call("CLUSTER", "SLOT-STATS", "SLOTSRANGE", 0, 16383))
    assert len(rows) == 16384
    held = {row[0] for row in rows if row[1][1]}
    assert held == {key_slot(b"a"), key_slot(b"b"), key_slot(b"c")}


# -- multi_shard -------------------------------------------------------------------------------------------------------


def test_msetex_over_shards_sets_values_and_expiry_on_the_shards_of_the_keys(endpoint: Up, wire: Wire) -> None:
    words = [word for at in range(40) for word in (f"key:{at}", at)]
    assert wire.call("MSETEX", 40, *words, "EX", 1000) == b":1\r\n"
    assert sum(values(on(primaries(endpoint), "DBSIZE"))) == 40
    for at in range(40):
        assert 990 <= decode(wire.call("TTL", f"key:{at}")) <= 1000
        assert bulk_value(wire.call("GET", f"key:{at}")) == b"%d" % at


def test_msetex_never_writes_on_a_shard_that_does_not_own_the_keys(endpoint: Up, wire: Wire) -> None:
    """The engine (Valkey 9.1) runs MSETEX wherever it arrives: the proxy must not rely on its MOVED or CROSSSLOT."""
    assert wire.call("MSETEX", 2, "a", 1, "b", 2, "NX").startswith(b"-CROSSSLOT ")
    for key in ("a", "b", "c", "d"):
        assert wire.call("MSETEX", 1, key, key, "NX") == b":1\r\n"
        assert wire.call("MSETEX", 1, key, key, "NX") == b":0\r\n"
        assert bulk_value(wire.call("GET", key)) == key.encode()
    assert wire.call("MULTI") == b"+OK\r\n"
    assert wire.call("MSETEX", 2, "{t}a", 1, "{t}b", 2) == b"+QUEUED\r\n"
    assert wire.call("EXEC") == b"*1\r\n:1\r\n"
    wire.call("MULTI")
    assert wire.call("MSETEX", 2, "a", 1, "b", 2).startswith(b"-CROSSSLOT ")
    assert wire.call("EXEC").startswith(b"-EXECABORT ")
    large = [word for at in range(5000) for word in (f"{{large}}{at}", at)]
    assert b"send it in parts" in wire.call("MSETEX", 5000, *large)
    assert wire.call("MSETEX", 3900, *large[:7800]) == b":1\r\n"


def test_msetex_goes_along_with_a_slot_that_moves(endpoint: Up, wire: Wire) -> None:
    for at in range(3):
        with moved(endpoint, "moving") as (source, target):
            assert wire.call("MSETEX", 1, "moving", at) == b":1\r\n"
            assert on([target], "GET", "moving") == [b"$1\r\n%d\r\n" % at]
            assert on([source], "DBSIZE") == [b":0\r\n"]
        assert wire.call("MSETEX", 2, "moving", "back", "{moving}2", 2, "XX") == b":0\r\n"
        assert wire.call("MSETEX", 1, "moving", "back", "XX") == b":1\r\n"
        assert on([source], "GET", "moving") == [b"$4\r\nback\r\n"]


def test_a_write_over_shards_that_one_of_them_refuses_says_which_keys_were_not_written(
    endpoint: Up, wire: Wire
) -> None:
    full = primaries(endpoint)[1]
    keys = [f"key:{at}" for at in range(12)]
    slots = {shard["primary"]["address"]: shard["slots"] for shard in whole(endpoint)}
    refused = [key for key in keys if any(low <= key_slot(key.encode()) <= high for low, high in slots[full])]
    assert 0 < len(refused) < 12
    with node(full) as server:
        server.config_set("maxmemory", 1)
        try:
            partial = wire.call("MSET", *(word for key in keys for word in (key, "v"))).decode()
            assert partial.startswith(f"-OOM partial write: {len(refused)} of 12 keys not written (")
            assert all((f'"{key}"' in partial) == (key in refused) for key in keys)
            assert [decode(wire.call("EXISTS", key)) for key in keys] == [int(key not in refused) for key in keys]
            reply = wire.call("MSET", *(word for key in refused for word in (key, "v")))
            assert reply.startswith(b"-OOM command not allowed")
        finally:
            server.config_set("maxmemory", 0)
    assert wire.call("MSET", *(word for key in keys for word in (key, "v"))) == b"+OK\r\n"


# -- special: RANDOMKEY, INFO ------------------------------------------------------------------------------------------


def test_randomkey_draws_every_key_as_likely_as_any_other(wire: Wire) -> None:
    assert wire.call("RANDOMKEY") == b"$-1\r\n"
    wire.call("MSET", *(word for at in range(9) for word in (f"key:{at}", at)), "a", 1, "{a}2", 1, "{a}3", 1)
    drawn = Counter(wire.pipeline([["RANDOMKEY"]] * 3600))
    assert len(drawn) == 12
    # 300 expected of each, standard deviation 17: these bounds are six of them away.
    assert min(drawn.values()) > 195 and max(drawn.values()) < 405


def test_info_is_of_the_whole(endpoint: Up, wire: Wire) -> None:
    wire.call("MSET", *(word for at in range(50) for word in (f"key:{at}", at)))
    client = endpoint.client()
    assert client.info("keyspace")["db0"]["keys"] == 50
    everything: dict[str, Any] = client.info()
    assert everything["role"] == "master"
    assert everything["cluster_enabled"] == 0
    assert everything["redis_mode"] == "standalone"
    assert everything["connected_clients"] >= 2
    assert everything["used_memory"] > sum(1_000_000 for _ in range(3))
    for section in ("all", "everything", "default", "server", "clients", "memory", "persistence", "stats", "cpu"):
        assert client.info(section)
    client.config_resetstat()
    for at in range(30):
        client.hset(f"hash:{at}", "f", "v")
    assert client.info("commandstats")["cmdstat_hset"]["calls"] == 30
    with pytest.raises(redis.ResponseError):
        client.hget("key:1", "f")
    assert client.info("errorstats")["errorstat_WRONGTYPE"]["count"] == 1
    client.close()


def test_info_shards_has_one_line_for_each_shard(endpoint: Up, wire: Wire) -> None:
    text = bulk_value(wire.call("INFO", "shards"))
    assert text is not None
    lines = text.decode().split()
    assert lines[:2] == ["#", "Shards"]
    for at, (line, address) in enumerate(zip(lines[2:], primaries(endpoint), strict=True)):
        assert line.startswith(f"shard{at}:id=")
        assert f",primary={address},slots=" in line and ",keys=" in line


# -- special: SCAN -----------------------------------------------------------------------------------------------------


def scan(url: str, *options: str | int) -> tuple[list[bytes], list[int]]:
    """A whole iteration: its keys and cursors."""
    keys: list[bytes] = []
    cursors: list[int] = []
    with Wire.to(url) as connection:
        cursor = b"0"
        while cursor != b"0" or not cursors:
            cursor, found = decode(connection.call("SCAN", cursor, *options))
            keys += found
            cursors.append(int(cursor))
    return keys, cursors


def test_a_full_scan_returns_every_key(endpoint: Up, wire: Wire) -> None:
    names = {b"key:%d" % at for at in range(3000)}
    wire.call("MSET", *(word for name in names for word in (name, "v")))
    keys, cursors = scan(endpoint.redis_url, "COUNT", 100)
    assert set(keys) == names and len(keys) == len(names)
    assert 30 <= len(cursors) < 200
    assert max(cursors) < 1 << 53
    assert len(scan(endpoint.redis_url, "COUNT", 10_000)[1]) < 10
    assert set(scan(endpoint.redis_url)[0]) == names


def test_a_small_database_is_scanned_in_one_step(endpoint: Up, direct: int, wire: Wire) -> None:
    with Wire("127.0.0.1", direct) as plain:
        for connection in (wire, plain):
            connection.call("FLUSHALL")
            assert connection.call("MSET", "a", 1, "b", 2, "c", 3, "d", 4) == b"+OK\r\n"
        for options in ([], ["MATCH", "[ab]"], ["TYPE", "list"], ["COUNT", 100], ["MATCH", "a", "COUNT", 5]):
            (ours, found), (theirs, expected) = (decode(each.call("SCAN", 0, *options)) for each in (wire, plain))
            assert (ours, sorted(found)) == (theirs, sorted(expected)), options
        for options in (["COUNT", 0], ["COUNT", "x"], ["WRONG"], ["COUNT"]):
            assert wire.call("SCAN", 0, *options) == plain.call("SCAN", 0, *options)
        plain.call("FLUSHALL")


def test_a_step_of_scan_ends_where_enough_keys_were_found(endpoint: Up, wire: Wire) -> None:
    wire.call("MSET", *(word for at in range(3000) for word in (f"key:{at}", at)))
    keys, cursors = scan(endpoint.redis_url, "COUNT", 50)
    assert len(set(keys)) == 3000
    assert len(cursors) > 30


def test_scan_keeps_match_and_type(endpoint: Up, wire: Wire) -> None:
    wire.call("MSET", *(word for at in range(300) for word in (f"key:{at}", "v")))
    for at in range(20):
        wire.call("RPUSH", f"list:{at}", "v")
    assert set(scan(endpoint.redis_url, "MATCH", "key:1?")[0]) == {b"key:%d" % at for at in range(10, 20)}
    assert set(scan(endpoint.redis_url, "TYPE", "list")[0]) == {b"list:%d" % at for at in range(20)}
    assert scan(endpoint.redis_url, "TYPE", "list", "MATCH", "key:*", "COUNT", 1000)[0] == []


def test_a_scan_begun_at_one_proxy_goes_on_at_another(endpoint: Up, wire: Wire, tmp_path: Path) -> None:
    names = {b"key:%d" % at for at in range(1000)}
    wire.call("MSET", *(word for name in names for word in (name, "v")))
    with proxy_beside(endpoint, tmp_path) as url, Wire.to(url) as second:
        keys: list[bytes] = []
        cursor, steps = b"0", 0
        while cursor != b"0" or not steps:
            cursor, found = decode((wire, second)[steps % 2].call("SCAN", cursor, "COUNT", 20))
            keys += found
            steps += 1
    assert steps > 30
    assert set(keys) == names


def test_a_scan_misses_nothing_that_stays_while_others_write_and_delete(endpoint: Up, wire: Wire) -> None:
    stay = {b"stay:%d" % at for at in range(2000)}
    wire.call("MSET", *(word for name in stay for word in (name, "v")))
    done = threading.Event()
    turns: list[int] = []

    def disturb() -> None:
        with Wire.to(endpoint.redis_url) as other:
            while not done.is_set():
                turn = len(turns)
                names = [f"passing:{turn}:{at}" for at in range(300)]
                other.call("MSET", *(word for name in names for word in (name, "v")))
                other.call("DEL", *(f"passing:{turn - 5}:{at}" for at in range(300)))
                turns.append(turn)

    other = threading.Thread(target=disturb)
    other.start()
    try:
        scans = 0
        while scans < 3 or (len(turns) < 20 and other.is_alive()):
            keys, _ = scan(endpoint.redis_url, "COUNT", 50)
            assert stay <= set(keys)
            scans += 1
    finally:
        done.set()
        other.join()
    assert len(turns) >= 20
