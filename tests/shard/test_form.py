"""Forming by commands: from nothing, from half way, from whole; and whom it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from shard.binary import find_server
from shard.client import ControlConnection, Credentials
from shard.errors import ShardError
from shard.form import form, form_groups
from shard.layout import PortReservation, create_layout
from shard.node import Node, parse_info
from shard.process import spawn
from shard.settings import ClusterSettings


@pytest.fixture
async def start(tmp_path: Path, quick: Callable[..., ClusterSettings]) -> AsyncIterator[Callable[..., Any]]:
    """Start so many nodes that know nothing of each other."""
    nodes: list[Node] = []

    async def start_nodes(count: int, zones: tuple[str, ...] = (), password: str | None = None) -> list[Node]:
        settings = quick(shards=count, replicas=0)
        reservation = PortReservation()
        made = []
        for number, plan in enumerate(create_layout(settings, reservation).nodes):
            folder = tmp_path / str(len(nodes))
            zone = zones[number] if zones else ""
            made.append(Node(plan, folder, find_server(), settings, zone=zone, password=password))
            nodes.append(made[-1])
        async with trio.open_nursery() as nursery:
            for node in made:
                nursery.start_soon(node.start)
        reservation.release()
        return made

    yield start_nodes
    for node in nodes:
        node.kill()
        await node.wait()


def addresses(nodes: list[Node]) -> list[tuple[str, int]]:
    return [(node.host, node.port) for node in nodes]


async def call(node: Node, *args: str | int) -> Any:
    async with await node.connect() as connection:
        return await connection.call(*args)


async def roles(nodes: list[Node]) -> list[str]:
    return [(await call(node, "ROLE"))[0].decode() for node in nodes]


async def test_a_half_formed_cluster_is_completed_and_a_whole_one_left_alone(start: Callable[..., Any]) -> None:
    nodes = await start(4)
    # As if a first attempt had been killed: one primary has its slots and knows one other node.
    await call(nodes[0], "CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    await call(nodes[0], "CLUSTER", "MEET", "127.0.0.1", nodes[3].port)
    steps: list[tuple[str, int, int]] = []
    warnings = await form(addresses(nodes), shards=2, replicas=1, progress=lambda *step: steps.append(step))
    assert await roles(nodes) == ["master", "master", "slave", "slave"]
    assert (await call(nodes[3], "CLUSTER", "SLOTS"))[1][0:2] == [8192, 16383]
    assert "cannot elect" in warnings[0]
    assert steps[-1] == ("ready", 4, 4)
    assert len(steps) == len(set(steps))

    before = parse_info(await call(nodes[0], "CLUSTER", "INFO"))
    await form(addresses(nodes), shards=2, replicas=1)
    after = parse_info(await call(nodes[0], "CLUSTER", "INFO"))
    assert after["cluster_current_epoch"] == before["cluster_current_epoch"]
    assert await roles(nodes) == ["master", "master", "slave", "slave"]


async def test_zones_the_nodes_carry_and_a_password_are_respected(start: Callable[..., Any]) -> None:
    # Replicas are listed so that going round would put each beside its primary.
    nodes = await start(4, zones=("a", "b", "a", "b"), password="pass word")
    await form(addresses(nodes), shards=2, replicas=1, credentials=Credentials(password="pass word"))
    ports = {node.port: node.zone for node in nodes}
    for row in await call(nodes[0], "CLUSTER", "SLOTS"):
        assert {ports[row[2][1]], ports[row[3][1]]} == {"a", "b"}
    with pytest.raises(ShardError, match=r"asks for a password|NOAUTH"):
        await form(addresses(nodes), shards=2, replicas=1, zones=["a", "b", "a", "b"])


async def test_a_host_name_is_resolved(start: Callable[..., Any]) -> None:
    nodes = await start(2)
    await form([("localhost", node.port) for node in nodes], shards=1, replicas=1)
    assert await roles(nodes) == ["master", "slave"]


async def test_nodes_that_hold_keys_or_belong_to_two_clusters_are_refused(start: Callable[..., Any]) -> None:
    nodes = await start(4)
    pairs = [nodes[:2], nodes[2:]]
    for pair in pairs:
        await form(addresses(pair), shards=1, replicas=1)
    with pytest.raises(ShardError, match="2 different clusters"):
        await form_groups([addresses(pairs[0]), addresses(pairs[1])])
    [used] = await start(1)
    await call(used, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    async with await used.connect() as connection:
        with trio.fail_after(10):
            while b"cluster_state:ok" not in await connection.call("CLUSTER", "INFO"):  # noqa: ASYNC110
                await trio.sleep(0.02)
        await connection.call("SET", "key", "value")
        await connection.call("CLUSTER", "DELSLOTSRANGE", 0, 16383)
    with pytest.raises(ShardError, match="holds 1 keys"):
        await form(addresses([used]), shards=1, replicas=0)


async def test_who_does_not_answer_or_is_no_cluster_node_is_named(tmp_path: Path, start: Callable[..., Any]) -> None:
    [node] = await start(1)
    with pytest.raises(ShardError, match=r"^node 127\.0\.0\.1:1: connection refused, waited for 0\.5 s: start it"):
        await form([*addresses([node]), ("127.0.0.1", 1)], shards=1, replicas=1, timeout=0.5)
    port = node.port + 1
    single = spawn(
        [find_server().path, "--port", str(port), "--save", "", "--dir", str(tmp_path)], log=tmp_path / "log"
    )
    try:
        with trio.fail_after(10):
            while b"Ready to accept" not in (tmp_path / "log").read_bytes():  # noqa: ASYNC110 -- no trio.Event
                await trio.sleep(0.02)
        with pytest.raises(ShardError, match="cluster-enabled yes"):
            await form([("127.0.0.1", port)], shards=1, replicas=0)
    finally:
        await single.stop(5)


async def test_what_never_becomes_ready_is_given_up_with_the_reason(start: Callable[..., Any]) -> None:
    nodes = await start(2)
    async with await ControlConnection.open("127.0.0.1", nodes[1].port) as connection:
        # A replica that cannot log in at its primary never links.
        await connection.call("CONFIG", "SET", "primaryauth", "wrong", "primaryuser", "nobody")
    with pytest.raises(ShardError, match=r"did not form within 3 s: 0 of 1 replicas linked"):
        await form(addresses(nodes), shards=1, replicas=1, timeout=3)
