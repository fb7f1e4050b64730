"""What is told of shards and nodes: what they say of themselves, and what became of their primaries."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Up, until, up
from tests.observe.test_commands import Samples, samples
from tests.system.nodes import Node, Shard, promote, shards_of
from tests.system.wire import Wire


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("nodes"), "--port", "0", "--admin-port", "0") as found:
        yield found


@pytest.fixture
def shard(running: Up) -> Shard:
    """The first one's nodes as they are now, the replica in step."""
    found = shards_of(running)[0]
    until(lambda: found.replica.call("INFO", "replication")["master_link_status"] == "up", "the replica follows")
    return found


def of(found: Samples, name: str, **labels: str) -> float | None:
    """The one sample with these labels and any others."""
    values = [value for key, value in found.items() if key[0] == name and labels.items() <= dict(key[1]).items()]
    assert len(values) < 2, (name, labels)
    return values[0] if values else None


def shard_id(running: Up) -> str:
    return str(running.topology()["shards"][0]["id"])


def address(node: Node) -> str:
    return f"{node.host}:{node.port}"


def test_nodes_are_told_as_they_tell_themselves(running: Up, shard: Shard) -> None:
    with Wire.to(running.redis_url) as client:
        for number in range(100):
            client.call("SET", f"{shard.key}{number}", "value")
    infos = [(node, node.call("INFO")) for node in (shard.primary, shard.replica)]
    for node, info in infos:
        name = address(node)

        def told(name: str = name, info: dict[str, Any] = info) -> Samples | None:
            found = samples(running)
            known = [of(found, f"ackgate_node_{each}", node=name) for each in ("keys", "memory_used_bytes")]
            calls = of(found, "ackgate_node_commands_total", node=name) or 0
            return found if known[0] == 100 and known[1] and calls >= info["total_commands_processed"] else None

        found = until(told, "the latest was asked for")

        def value(figure: str, found: Samples = found, name: str = name) -> float | None:
            return of(found, f"ackgate_node_{figure}", node=name)

        assert value("up") == 1
        assert value("primary") == (node is shard.primary)
        assert value("link_up") == (None if node is shard.primary else 1)
        assert value("loading") == value("aof_rewriting") == value("rdb_saving") == 0
        assert value("aof_enabled") == value("aof_fsync_always") == value("aof_write_ok") == value("rdb_save_ok") == 1
        assert value("replication_offset_bytes") > 100 * 30
        assert value("memory_limit_bytes") == 0
        assert 1e6 < value("memory_used_bytes") < 1e8 and value("memory_rss_bytes") > 1e6
        assert value("connected_clients") >= 1 and value("cpu_seconds_total") > 0
        assert value("rdb_last_save_timestamp_seconds") == info["rdb_last_save_time"]


def test_shards_are_told(running: Up, shard: Shard) -> None:
    found, ident = samples(running), shard_id(running)

    def value(figure: str) -> float | None:
        return of(found, f"ackgate_shard_{figure}", shard=ident)

    assert value("replicas") == value("waitaof_trusted") == 1
    assert value("lane_connects_total") >= 1 and value("lane_losses_total") == value("queued_bytes") == 0
    assert value("sent_bytes_total") > 0 and value("received_bytes_total") > 0
    assert 0 <= of(found, "ackgate_slot_map_age_seconds") < 60
    assert of(found, "ackgate_slot_map_changed_timestamp_seconds") > 1.7e9
    assert of(found, "ackgate_loop_delay_seconds_count") > 0


def test_a_pause_has_an_age(running: Up) -> None:
    with Wire.to(running.redis_url) as client:
        client.call("CLIENT", "PAUSE", 60000, "WRITE")
        until(lambda: of(samples(running), "ackgate_paused_seconds") > 0.1, "it lasts")
        client.call("CLIENT", "UNPAUSE")
        until(lambda: of(samples(running), "ackgate_paused_seconds") == 0, "it is over")


def test_a_promotion_of_a_replica_is_a_switchover_and_a_dead_primary_a_failover(running: Up, shard: Shard) -> None:
    ident = shard_id(running)

    def value(figure: str, **labels: str) -> float:
        return of(samples(running), f"ackgate_{figure}", shard=ident, **labels)

    promote(shard.replica)
    until(lambda: value("primary_changes_total", kind="switchover") == 1, "the promotion is told")
    after = shards_of(running)[0]
    until(lambda: value("node_primary", node=address(after.primary)) == 1, "it leads")
    until(lambda: after.replica.call("INFO", "replication")["master_link_status"] == "up", "the other follows")
    until(lambda: value("shard_up") == 1, "it is served")
    assert value("primary_changes_total", kind="failover") == 0
    outages = value("shard_outage_seconds_count")
    os.kill(after.primary.pid, signal.SIGKILL)

    def missed() -> Samples | None:
        found = samples(running)
        return found if of(found, "ackgate_node_up", node=address(after.primary)) == 0 else None

    found = until(missed, "it is missed")
    told = {name for name, labels in found if dict(labels).get("node") == address(after.primary)}
    assert told == {f"ackgate_node_{figure}" for figure in ("up", "primary", "replication_offset_bytes")}, (
        "what it did when it was last seen is not told as if it did it now"
    )
    until(lambda: value("primary_changes_total", kind="failover") == 1, "the failover is told")
    until(lambda: value("shard_outage_seconds_count") == outages + 1, "and for how long it was")
    assert value("primary_changes_total", kind="switchover") == 1
    assert value("shard_incarnations_total") >= 2


def test_a_shard_that_hangs_is_not_up_though_its_connections_are_whole(running: Up) -> None:
    hung = shards_of(running)[1]
    ident = next(
        row["id"] for row in running.topology()["shards"] if row["primary"]["address"] == address(hung.primary)
    )
    with hung.replica.stopped(), hung.primary.stopped():
        until(lambda: of(samples(running), "ackgate_shard_up", shard=ident) == 0, "it is missed")
    until(lambda: of(samples(running), "ackgate_shard_up", shard=ident) == 1, "it answers again")
