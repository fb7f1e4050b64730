"""INFO merged over shards."""

from __future__ import annotations

import pytest

from proxy.routing import ShardFigures, merge_info, shard_sections

OWN = {
    "server": {"tcp_port": 6379, "run_id": "own"},
    "clients": {"connected_clients": 7},
    "replication": {"role": "master", "connected_slaves": 3},
}


def info(text: bytes) -> dict[str, str]:
    """Fields as a client library reads them."""
    return dict(line.split(":", 1) for line in text.decode().split("\r\n") if line and not line.startswith("#"))


def titles(text: bytes) -> list[str]:
    return [line[2:] for line in text.decode().split("\r\n") if line.startswith("# ")]


def merged(names, *texts, shards=()):
    return info(merge_info([name.encode() for name in names], [text.encode() for text in texts], OWN, shards))


@pytest.mark.parametrize(
    "names", ["", "default", "all", "everything", "keyspace server", "commandstats", "nosuch", "MEMORY"]
)
def test_sections_shown_are_those_the_engine_shows(engine, names):
    words = names.encode().split()
    text = engine.call("INFO", *words)
    ours = titles(merge_info(words, [engine.call("INFO", *shard_sections(words) or (b"nosuch",))], OWN))
    left_out = {"TLS", "Latencystats", "Cluster Info", "Scripting Engines"}
    assert ours == [title for title in titles(text) if title not in left_out]


def test_a_merge_of_one_real_text_keeps_every_field(engine):
    engine.call("SET", "k", "v")
    engine.call("SET", "k2", "v", "EX", 1000)
    names = [b"memory", b"persistence", b"stats", b"cpu", b"keyspace", b"commandstats", b"errorstats", b"modules"]
    text = engine.call("INFO", *names)
    ours, theirs = info(merge_info(names, [text], OWN)), info(text)
    assert set(ours) == set(theirs)
    assert ours["total_commands_processed"] == theirs["total_commands_processed"]
    assert ours["used_memory_human"] == theirs["used_memory_human"]
    assert ours["db0"] == theirs["db0"] and ours["cmdstat_set"] == theirs["cmdstat_set"]


def test_a_merge_of_two_real_texts_doubles_the_counters(engine):
    text = engine.call("INFO", "everything")
    ours, theirs = info(merge_info([b"everything"], [text, text], OWN)), info(text)
    for name in ("used_memory", "total_commands_processed", "keyspace_hits", "total_net_input_bytes"):
        assert int(ours[name]) == 2 * int(theirs[name])
    assert ours["maxmemory_policy"] == theirs["maxmemory_policy"]
    assert ours["redis_version"] == theirs["redis_version"] and ours["run_id"] == "own"
    assert float(ours["used_cpu_sys"]) == pytest.approx(2 * float(theirs["used_cpu_sys"]), abs=1e-5)


def test_what_describes_the_connected_server_is_the_proxys():
    ours = merged(
        [], "# Server\r\nredis_version:7.2.4\r\ntcp_port:7001\r\nrun_id:x\r\n\r\n# Clients\r\nconnected_clients:99\r\n"
    )
    assert (ours["redis_version"], ours["tcp_port"], ours["run_id"]) == ("7.2.4", "6379", "own")
    assert (ours["connected_clients"], ours["role"], ours["cluster_enabled"]) == ("7", "master", "0")


def test_states_tell_the_worst_and_times_the_longest():
    text = (
        "# Persistence\r\nloading:{}\r\naof_last_write_status:{}\r\naof_last_rewrite_time_sec:{}\r\n"
        "rdb_last_save_time:{}\r\naof_enabled:{}\r\n"
    )
    ours = merged(["persistence"], text.format(0, "ok", -1, 50, 1), text.format(1, "err", 4, 40, 0))
    assert list(ours.values()) == ["1", "err", "4", "40", "0"]


def test_keyspace_lines_are_summed_and_ages_weighted():
    ours = merged(
        ["keyspace"],
        "# Keyspace\r\ndb0:keys=10,expires=1,avg_ttl=100\r\ndb3:keys=1,expires=0,avg_ttl=0\r\n",
        "# Keyspace\r\ndb0:keys=5,expires=3,avg_ttl=200\r\n",
    )
    assert ours == {"db0": "keys=15,expires=4,avg_ttl=175", "db3": "keys=1,expires=0,avg_ttl=0"}
    assert merged(["keyspace"], "# Keyspace\r\n") == {}


def test_command_and_error_statistics_are_summed():
    line = "# Commandstats\r\ncmdstat_get:calls={},usec={},usec_per_call=9.00,rejected_calls=1,failed_calls=0\r\n"
    ours = merged(["commandstats"], line.format(2, 10), line.format(3, 5))
    assert ours == {"cmdstat_get": "calls=5,usec=15,usec_per_call=3.00,rejected_calls=2,failed_calls=0"}
    ours = merged(
        ["errorstats"],
        "# Errorstats\r\nerrorstat_ERR:count=2\r\n",
        "# Errorstats\r\nerrorstat_ERR:count=3\r\nerrorstat_OOM:count=1\r\n",
    )
    assert ours == {"errorstat_ERR": "count=5", "errorstat_OOM": "count=1"}


def test_each_shard_has_a_line_on_request():
    shards = [ShardFigures(0, "id0", "127.0.0.1:7001", ((0, 5), (9, 9)), 12), ShardFigures(2, "id2", "", (), 0)]
    assert merged(["shards"], shards=shards) == {
        "shard0": "id=id0,primary=127.0.0.1:7001,slots=0-5 9,keys=12",
        "shard2": "id=id2,primary=,slots=,keys=0",
    }
    assert shard_sections([b"shards"]) == () and shard_sections([b"clients"]) == ()


def test_every_module_keeps_its_line():
    text = b"# Modules\r\nmodule:name=a,ver=1\r\nmodule:name=b,ver=2\r\n"
    assert merge_info([b"modules"], [text, text], OWN) == text
