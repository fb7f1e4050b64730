"""One real node: start, stop, start again, and every way it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from shard.binary import Server, find_server
from shard.errors import ShardError
from shard.layout import PlannedNode
from shard.node import Node
from shard.settings import ClusterSettings
from tests.harness import free_port


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make_node(
        settings: ClusterSettings | None = None, *, server: Server | None = None, directory: Path = tmp_path, **kw: Any
    ) -> Node:
        plan = PlannedNode(f"node-{len(nodes)}", 1, 0, kw.pop("port", None) or free_port())
        node = Node(plan, directory / plan.name, server or find_server(), settings or ClusterSettings(), **kw)
        nodes.append(node)
        return node

    yield make_node
    for node in nodes:
        await node.stop()


async def test_it_starts_stops_and_finds_its_data_again(make: Callable[..., Node], tmp_path: Path) -> None:
    odd = tmp_path / 'a folder "ä'
    node = make(directory=odd)
    await node.start()
    first = node.pid
    assert node.alive
    assert stat.S_IMODE(node.configuration_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.dir.stat().st_mode) == 0o700
    async with await node.connect() as connection:
        assert await connection.call("CONFIG", "GET", "dir") == [b"dir", str(node.dir).encode()]
        await connection.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await connection.call(
            "FUNCTION", "LOAD", "#!lua name=kept\nserver.register_function('f', function() return 1 end)"
        )
    await node.stop()
    assert not node.alive
    assert node.returncode == 0
    await node.start()
    assert node.pid != first
    async with await node.connect() as connection:
        assert b"kept" in (await connection.call("FUNCTION", "LIST"))[0]
    assert node.read_id() is not None


async def test_every_option_of_the_running_engine_is_known_to_it(make: Callable[..., Node]) -> None:
    settings = ClusterSettings(snapshot="6h", maxmemory="64mb", databases=5)
    node = make(settings, zone="zone-a", hash_seed="ab" * 16, password="pass word")
    await node.start()
    async with await node.connect() as connection:
        replies = await connection.pipeline(
            *[("CONFIG", "GET", name) for name in ("hash-seed", "availability-zone", "cluster-databases", "save")]
        )
    assert [reply[1] for reply in replies] == [b"ab" * 16, b"zone-a", b"5", b"21600 1"]


async def test_the_password_is_asked_for_and_not_on_the_command_line(make: Callable[..., Node]) -> None:
    node = make(password="correct horse")
    await node.start()
    assert node.pid is not None
    assert "correct" not in command_line(node.pid)
    with socket.create_connection((node.host, node.port)) as plain:
        plain.sendall(b"PING\r\n")
        assert plain.recv(100).startswith(b"-NOAUTH")


@pytest.mark.parametrize("bus", [False, True])
async def test_a_port_in_use_is_one_clear_line(
    make: Callable[..., Node], bus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard.node._PORT_PATIENCE_SECONDS", 0.1)
    port = free_port()
    node = make(port=port)
    taken = socket.create_server(("127.0.0.1", port + 10000 if bus else port))
    with taken, pytest.raises(ShardError, match=f"^port {port} .* is in use: stop the program"):
        await node.start()
    assert not node.alive


async def test_another_server_on_the_port_is_not_taken_for_ours(
    make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    await first.start()
    # As if the port had been taken between the look and the start.
    monkeypatch.setattr("shard.node.ports_free", lambda host, port: True)
    second = make(port=first.port)
    with pytest.raises(ShardError, match=f"^port {first.port} .* is in use"):
        await second.start()
    assert not second.alive
    assert first.alive


async def test_a_node_that_ends_at_its_start_is_quoted(make: Callable[..., Node]) -> None:
    node = make(ClusterSettings(maxmemory_policy="nonsense"))
    with pytest.raises(ShardError, match=r"ended at its start .*argument\(s\) must be one of") as caught:
        await node.start()
    assert "\n" not in str(caught.value)
    assert str(node.log_path) in str(caught.value)


async def test_a_crash_is_quoted_by_its_cause_not_by_the_end_of_its_report(make: Callable[..., Node]) -> None:
    node = make()
    await node.start()
    assert node.pid is not None
    os.kill(node.pid, signal.SIGSEGV)
    await node.wait()
    assert "crashed by signal: 11" in node.last_words()


async def test_a_node_that_does_not_answer_is_given_up_and_killed(make: Callable[..., Node], tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 1000\n")
    mute.chmod(0o755)
    node = make(ClusterSettings(start_timeout=0.2), server=Server(mute, "valkey", (9, 0, 0)))
    with pytest.raises(ShardError, match=r"did not answer within 0\.2 s"):
        await node.start()
    with trio.fail_after(10):
        await node.wait()


async def test_a_folder_that_cannot_be_written_is_one_clear_line(make: Callable[..., Node], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot write to .* choose another folder"):
        await make(directory=tmp_path / "file").start()
