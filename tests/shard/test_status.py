"""The picture of a cluster, whole and with nodes missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from shard.client import ControlConnection
from shard.errors import ShardError
from shard.settings import ClusterSettings
from shard.status import read_status
from shard.supervise import running

Until = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]


async def test_a_whole_cluster_is_shown_from_any_one_node(standing: list[tuple[str, int]]) -> None:
    for seed in standing:
        status = await read_status([seed])
        assert status.ok, status.problems
        assert [shard.slots for shard in status.shards] == [[(0, 5460)], [(5461, 10922)], [(10923, 16383)]]
        addresses = {f"{host}:{port}" for host, port in standing}
        shown = [node for shard in status.shards if shard.primary for node in (shard.primary, *shard.replicas)]
        assert {node.address for node in shown} == addresses
        assert all(node.pid and node.aof == "always" and node.last_bgsave == "ok" for node in shown)
        assert all(node.version is not None and node.version.startswith("valkey 9.") for node in shown)
        for shard in status.shards:
            [replica] = shard.replicas
            assert (replica.role, replica.link, replica.health) == ("replica", "up", "online")
            assert replica.lag is not None
            assert shard.primary is not None
            assert shard.primary.lag is None


async def test_it_can_be_written_as_json(standing: list[tuple[str, int]]) -> None:
    status = await read_status(standing)
    plain = msgspec.json.decode(msgspec.json.encode(status))
    assert plain["shards"][0]["primary"]["health"] == "online"


async def test_offsets_of_both_sides_move_with_what_is_written(standing: list[tuple[str, int]]) -> None:
    before = (await read_status(standing)).shards[0]
    async with await ControlConnection.open(*standing[0]) as connection:
        await connection.call("SET", "{06S}offset", b"x" * 1000)  # slot 0, the first shard's
        assert await connection.call("WAIT", 1, 5000, timeout=10) == 1
    after = (await read_status(standing)).shards[0]
    assert before.primary is not None
    assert after.primary is not None
    for old, new in ((before.primary, after.primary), (before.primary, after.replicas[0])):
        assert old.offset is not None
        assert new.offset is not None
        assert new.offset >= old.offset + 1000
    assert after.primary.keys


async def test_missing_nodes_are_shown_as_failed_and_named(
    tmp_path: Path, quick: Callable[..., ClusterSettings], until: Until
) -> None:
    async with running(tmp_path, quick(shards=2, replicas=1, restart=False)) as cluster:
        primary, other, replica, _ = cluster.nodes
        replica.kill()
        await replica.wait()
        status = await read_status(cluster.seeds())
        assert [node.health for node in status.shards[0].replicas] == ["fail"]
        assert f"replica {replica.address} is fail" in status.problems
        primary.kill()
        await primary.wait()
        status = await read_status([(other.host, other.port)])
        assert not status.ok
        assert status.shards[0].primary is None
        assert status.shards[0].slots == [(0, 8191)]
        assert status.problems[0] == "8192 of 16384 slots are not served"
        assert {node.address for node in status.shards[0].replicas} == {primary.address, replica.address}


async def test_nobody_answering_is_one_clear_line() -> None:
    with pytest.raises(ShardError, match=r"no node of the cluster answers \(127\.0\.0\.1:1: connection refused\)"):
        await read_status([("127.0.0.1", 1)])
