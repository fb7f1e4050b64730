"""A cluster as one thing: found again, started again by the rule, and gone when its supervisor is."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from shard.client import ConnectionLost, ControlConnection, ReplyError
from shard.errors import ShardError
from shard.node import Node, parse_info
from shard.settings import ClusterSettings
from shard.supervise import Cluster, running

Settings = Callable[..., ClusterSettings]
Until = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
Supervisor = Callable[..., tuple[subprocess.Popen[bytes], list[dict[str, Any]]]]

KEY = "{06S}key"  # slot 0: the first shard's in every cluster


async def call(node: Node, *args: str | int) -> Any:
    async with await node.connect() as connection:
        return await connection.call(*args)


async def role(node: Node) -> str:
    try:
        return str((await call(node, "ROLE"))[0].decode())
    except (ConnectionLost, ReplyError):
        return "none"


async def value(node: Node) -> Any:
    try:
        return await call(node, "GET", KEY)
    except (ConnectionLost, ReplyError):
        return None


async def linked(node: Node) -> bool:
    return parse_info(await call(node, "INFO", "replication")).get("master_link_status") == "up"


def events_of(told: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [event for event, _fields in told]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_multi_zone_cluster_is_found_again_with_its_data(tmp_path: Path, quick: Settings) -> None:
    settings = quick(replication="multi-zone", zones=["east", "west"])
    async with running(tmp_path, settings) as cluster:
        assert cluster.warnings == []
        seeds = cluster.seeds()
        assert [await role(node) for node in cluster.nodes] == ["master"] * 3 + ["slave"] * 3
        zones = {
            node.port: parse_info(await call(node, "INFO", "server"))["availability_zone"] for node in cluster.nodes
        }
        for row in await call(cluster.nodes[0], "CLUSTER", "SLOTS"):
            assert zones[row[2][1]] != zones[row[3][1]]
        assert {zones[node.port] for node in cluster.nodes[:3]} == {"east", "west"}
        await call(cluster.nodes[0], "SET", KEY, "kept")
        pids = [node.pid for node in cluster.nodes]
    assert all(pid is not None and gone(pid) for pid in pids)
    async with running(tmp_path, settings) as cluster:
        assert cluster.seeds() == seeds
        assert await value(cluster.nodes[0]) == b"kept"
        assert [await role(node) for node in cluster.nodes] == ["master"] * 3 + ["slave"] * 3


async def test_a_killed_primary_without_aof_is_not_back_before_its_replica_took_over(
    tmp_path: Path, quick: Settings, until: Until
) -> None:
    async with running(tmp_path, quick(aof="off")) as cluster:
        primary, replica = cluster.nodes[0], cluster.nodes[3]
        await call(primary, "SET", KEY, "kept")
        assert await call(primary, "WAIT", 1, 5000) == 1
        primary.kill()
        await primary.wait()
        with trio.fail_after(30):
            while not primary.alive:  # noqa: ASYNC110 -- looked at as often as possible
                await trio.sleep(0.005)
        assert await role(replica) == "master"

        async def back() -> bool:
            return bool(cluster.restarts) and await role(primary) == "slave" and await linked(primary)

        await until(back)
        assert await value(replica) == b"kept"
        assert cluster.restarts[0].status == -9


async def test_a_killed_replica_is_back_at_once(tmp_path: Path, quick: Settings, until: Until) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    settings = quick(shards=1, aof="off")
    async with running(tmp_path, settings, on_event=lambda event, fields: told.append((event, fields))) as cluster:
        primary, replica = cluster.nodes
        assert "cannot elect" in cluster.warnings[0]
        await call(primary, "SET", KEY, "kept")
        replica.kill()

        async def back() -> bool:
            return bool(cluster.restarts) and await linked(replica)

        await until(back)
        assert events_of(told) == ["node_died", "node_restarted"]
        assert told[0][1]["status"] == -9
        assert await role(primary) == "master"


async def test_without_a_majority_a_primary_with_an_aof_comes_back_with_everything(
    tmp_path: Path, quick: Settings, until: Until
) -> None:
    async with running(tmp_path, quick(shards=1)) as cluster:
        primary, replica = cluster.nodes
        await call(primary, "SET", KEY, "kept")
        primary.kill()

        async def back() -> bool:
            return bool(cluster.restarts) and await value(primary) == b"kept" and await linked(replica)

        await until(back)
        assert "no majority" in cluster.restarts[0].reason
        assert await role(primary) == "master"


async def test_without_a_majority_a_primary_without_aof_stays_down_until_a_person_decides(
    tmp_path: Path, quick: Settings, until: Until
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    settings = quick(shards=1, aof="off")
    async with running(tmp_path, settings, on_event=lambda event, fields: told.append((event, fields))) as cluster:
        primary, replica = cluster.nodes
        await call(primary, "SET", KEY, "kept")
        assert await call(primary, "WAIT", 1, 5000) == 1
        primary.kill()

        async def waits() -> bool:
            return "node_waits" in events_of(told)

        await until(waits)
        assert "CLUSTER FAILOVER TAKEOVER" in told[-1][1]["cure"]
        assert not primary.alive
        await call(replica, "CLUSTER", "FAILOVER", "TAKEOVER")

        async def back() -> bool:
            return await role(primary) == "slave" and await linked(primary)

        await until(back)
        assert await value(replica) == b"kept"
        assert events_of(told) == ["node_died", "node_waits", "node_restarted"]


async def test_a_primary_without_replicas_is_back_with_its_data(tmp_path: Path, quick: Settings, until: Until) -> None:
    async with running(tmp_path, quick(shards=1, replicas=0)) as cluster:
        [node] = cluster.nodes
        await call(node, "SET", KEY, "kept")
        for times in (1, 2):
            node.kill()

            async def back(times: int = times) -> bool:
                return len(cluster.restarts) == times and await value(node) == b"kept"

            await until(back)
        # Dying again soon after, it is let wait longer.
        assert cluster.restarts[1].down > cluster.restarts[0].down


async def test_a_start_that_fails_is_told_and_tried_again(
    tmp_path: Path, quick: Settings, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard.node._PORT_PATIENCE_SECONDS", 0.05)
    told: list[tuple[str, dict[str, Any]]] = []
    settings = quick(shards=1, replicas=0)
    async with running(tmp_path, settings, on_event=lambda event, fields: told.append((event, fields))) as cluster:
        [node] = cluster.nodes
        node.kill()
        await node.wait()
        with socket.create_server((node.host, node.port)):

            async def failed() -> bool:
                return "node_start_failed" in events_of(told)

            await until(failed)
            assert "in use" in told[-1][1]["error"]

        async def back() -> bool:
            return bool(cluster.restarts)

        await until(back)
        assert events_of(told)[0] == "node_died"
        assert events_of(told).count("node_died") == 1


async def test_with_restart_off_a_dead_node_is_told_of_and_left(tmp_path: Path, quick: Settings, until: Until) -> None:
    told: list[str] = []
    cluster = Cluster(
        tmp_path, quick(shards=1, replicas=0, restart=False), on_event=lambda event, _: told.append(event)
    )
    await cluster.start()
    cluster.nodes[0].kill()
    # Nothing is left to watch: it returns instead of starting anything.
    with trio.fail_after(10):
        await cluster.watch()
    assert told == ["node_died"]
    assert not cluster.nodes[0].alive
    await cluster.stop()


async def test_a_second_start_in_the_same_folder_is_refused_and_harms_nothing(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    process, nodes = supervisor(tmp_path, shards=1, replicas=0)
    with pytest.raises(ShardError, match=f"in use by process {process.pid}"):
        await Cluster(tmp_path, ClusterSettings(shards=1, replicas=0)).start()
    assert not any(gone(node["pid"]) for node in nodes)


async def test_nothing_survives_a_killed_supervisor_and_the_next_start_finds_the_data(
    tmp_path: Path, quick: Settings, supervisor: Supervisor, until: Until
) -> None:
    process, nodes = supervisor(tmp_path, shards=1, replicas=1)
    async with await ControlConnection.open(nodes[0]["host"], nodes[0]["port"]) as connection:
        assert await connection.call("SET", KEY, "kept") == b"OK"
    assert not any(gone(node["pid"]) for node in nodes)
    process.kill()
    # At once, while the old nodes may still be going.
    async with running(tmp_path, quick(shards=1)) as cluster:
        assert all(gone(node["pid"]) for node in nodes)
        assert await value(cluster.nodes[0]) == b"kept"


async def test_sigterm_stops_everything_in_order(tmp_path: Path, supervisor: Supervisor) -> None:
    process, nodes = supervisor(tmp_path, shards=1, replicas=1)
    process.terminate()
    assert process.wait(30) == 0
    assert all(gone(node["pid"]) for node in nodes)
    for name in ("shard-1-1", "shard-1-2"):
        assert "ready to exit" in await trio.Path(tmp_path / name / "node.log").read_text()


async def test_a_start_that_fails_leaves_no_process_and_no_lock(tmp_path: Path, quick: Settings) -> None:
    cluster = Cluster(tmp_path, quick(shards=2, replicas=0, maxmemory_policy="nonsense"))
    with pytest.raises(ShardError, match="ended at its start"):
        await cluster.start()
    assert not any(node.alive for node in cluster.nodes)
    async with running(tmp_path, quick(shards=2, replicas=0)) as second:
        assert second.seeds() == cluster.seeds()


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path, quick: Settings) -> None:
    cluster = Cluster(tmp_path, quick())
    with trio.CancelScope() as scope:
        await cluster.start(lambda step, done, total: scope.cancel() if step == "meet" else None)
    assert scope.cancelled_caught
    assert cluster.nodes
    assert not any(node.alive for node in cluster.nodes)


async def test_the_password_file_guards_nodes_and_their_links(tmp_path: Path, quick: Settings, until: Until) -> None:
    secret = tmp_path / "secret"
    secret.write_text('pass "word"\nsecond line\n')
    async with running(tmp_path / "data", quick(shards=1, password_file=str(secret))) as cluster:
        assert cluster.credentials.password == 'pass "word"'
        assert await linked(cluster.nodes[1])
    for content, words in (("", "empty first line"), (None, "cannot read the password file")):
        secret.write_text(content) if content is not None else secret.unlink()
        with pytest.raises(ShardError, match=words):
            await Cluster(tmp_path / "data", quick(shards=1, password_file=str(secret))).start()
