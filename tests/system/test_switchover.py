"""A planned switchover: no client sees an error, nothing is lost, and what cannot be done is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from proxy.commands.checked import Group, Load, tags_of
from proxy.routing.slot_map import Node as MapNode
from proxy.routing.slot_map import Shard as MapShard
from proxy.server import Server
from proxy.settings import ListenSettings, ProxySettings, SeedSettings
from proxy.switchover.choice import Refused, find_shard
from proxy.switchover.procedure import handover
from shard.client import ControlConnection
from tests.harness import ENVIRONMENT, READY, Up, until
from tests.system.nodes import Node, Shard, metric, shards_of
from tests.system.wire import Wire

CLIENTS = 50
PACE_S = 0.01
STEPS = ("approach", "hold", "pause", "level", "promote", "route", "replica")


def order(running: Up, **body: Any) -> list[dict[str, Any]]:
    """What the proxy tells of a switchover, line by line."""
    request = urllib.request.Request(
        f"{running.admin_url}/switchover", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer]


def refused(running: Up, **body: Any) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        order(running, **body)
    with caught.value as answer:
        return str(json.load(answer)["error"])


def settled(running: Up) -> list[Shard]:
    """The shards, once the proxy's picture is true and every replica is in step."""

    def found() -> list[Shard] | None:
        shards = shards_of(running)
        return shards if all(map(in_step, shards)) else None

    shards: list[Shard] = until(found, "all is well")
    return shards


def in_step(shard: Shard) -> bool:
    link = shard.replica.call("INFO", "replication")
    return bool(shard.primary.call("ROLE")[0] == "master" and link.get("master_link_status") == "up")


def row_of(running: Up, index: int) -> dict[str, Any]:
    """A shard as the topology shows it then."""
    settled(running)
    row: dict[str, Any] = running.topology()["shards"][index]
    return row


async def test_under_load_no_client_sees_an_error_and_nothing_confirmed_is_lost(endpoint: Up) -> None:
    row = await trio.to_thread.run_sync(row_of, endpoint, 0)
    port = int(endpoint.redis_url.rpartition(":")[2])
    load = Load(partial(ControlConnection.open, "127.0.0.1", port), "switch:", pace=PACE_S)
    group = load.group("all", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run, group, tags_of(row["slots"], 20), CLIENTS)
        await _confirmed(group, 2 * CLIENTS)
        lines = await trio.to_thread.run_sync(lambda: order(endpoint, shard=row["id"][:12]))
        await _confirmed(group, len(group.confirmed) + 2 * CLIENTS)
        nursery.cancel_scope.cancel()
    await load.check()
    assert lines[-1]["result"] == "done", lines
    assert [line["step"] for line in lines[:-1]] == list(STEPS)
    assert not group.errors and not group.lost and not group.unconfirmed
    now = await trio.to_thread.run_sync(row_of, endpoint, 0)
    assert now["primary"]["address"] == row["replicas"][0]["address"] == lines[-1]["to"]
    assert now["replicas"][0]["address"] == row["primary"]["address"] == lines[-1]["from"]
    assert 0 < lines[-1]["stall_ms"] <= lines[-1]["silence_ms"]


async def _confirmed(group: Group, count: int) -> None:
    with trio.fail_after(30):
        while len(group.confirmed) < count:  # noqa: ASYNC110 -- a count, no event
            await trio.sleep(0.01)


class Client(threading.Thread):
    """One client that repeats what it does until told to stop; the first reply that is not as it should be ends it."""

    def __init__(self, url: str, key: str, step: Callable[[Wire, str, int], tuple[list[bytes], list[bytes]]]) -> None:
        super().__init__(daemon=True)
        self.wire = Wire.to(url)
        self.key = key
        self.step = step
        self.steps = 0
        self.wrong: Any = None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self.stopping.wait(0.002):
                replies, expected = self.step(self.wire, self.key, self.steps)
                if replies != expected:
                    self.wrong = replies
                    return
                self.steps += 1
        except Exception as error:
            self.wrong = error


def transacts(wire: Wire, key: str, number: int) -> tuple[list[bytes], list[bytes]]:
    replies = [wire.call(*words) for words in (["MULTI"], ["SET", key, number], ["INCR", key], ["EXEC"])]
    return replies, [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", b"*2\r\n+OK\r\n:%d\r\n" % (number + 1)]


def fsyncs(wire: Wire, key: str, number: int) -> tuple[list[bytes], list[bytes]]:
    replies = wire.pipeline([["SET", key, number], ["WAITAOF", 1, 1, 5000], ["GET", key]])
    text = str(number).encode()
    return replies, [b"+OK\r\n", b"*2\r\n:1\r\n:1\r\n", b"$%d\r\n%s\r\n" % (len(text), text)]


def counts(wire: Wire, key: str, number: int) -> tuple[list[bytes], list[bytes]]:
    """Executed exactly once each, or the count would be another."""
    return wire.pipeline([["INCR", key]] * 4), [b":%d\r\n" % (4 * number + more) for more in range(1, 5)]


def evaluates(wire: Wire, key: str, number: int) -> tuple[list[bytes], list[bytes]]:
    replies = [wire.call("EVAL", "return redis.call('INCR', KEYS[1])", 1, key)]
    return replies, [b":%d\r\n" % (number + 1)]


def pops(wire: Wire, key: str, number: int) -> tuple[list[bytes], list[bytes]]:
    replies = wire.pipeline([["LPUSH", key, number], ["BLPOP", key, 10]])
    text = str(number).encode()
    popped = b"*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key.encode(), len(text), text)
    return replies, [b":1\r\n", popped]


@contextmanager
def another_proxy(running: Up, tmp_path: Path) -> Iterator[str]:
    """The URL of a second proxy in front of the same nodes."""
    nodes = [node["address"] for row in running.topology()["shards"] for node in [row["primary"], *row["replicas"]]]
    text = f"cluster: {{seeds: {nodes}}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n"
    (tmp_path / "second.yaml").write_text(text)
    command = [sys.executable, "-m", "proxy", "proxy", "--config", str(tmp_path / "second.yaml")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = READY.match(process.stdout.readline())
            assert match is not None
            yield match[1]
        finally:
            process.kill()


def test_every_kind_of_client_goes_on_and_those_of_another_proxy_too(wire: Wire, endpoint: Up, tmp_path: Path) -> None:
    shard = settled(endpoint)[0]
    with another_proxy(endpoint, tmp_path) as other, Wire.to(endpoint.redis_url) as blocked:
        kinds = (transacts, fsyncs, counts, evaluates, pops)
        clients = [
            Client(url, f"{kind.__name__}:{at}:{shard.key}", kind)
            for at, url in enumerate((endpoint.redis_url, other))
            for kind in kinds
        ]
        blocked.send("BLPOP", f"queue{shard.key}", 0)
        for client in clients:
            client.start()
        until(lambda: all(client.steps > 5 or client.wrong for client in clients), "every client is at work")
        lines = order(endpoint, shard=f"{shard.primary.host}:{shard.primary.port}")
        steps = [client.steps for client in clients]
        until(lambda: all(each.steps > steps[at] + 5 or each.wrong for at, each in enumerate(clients)), "all go on")
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(30)
            client.wire.close()
        assert lines[-1]["result"] == "done"
        assert {client.key: client.wrong for client in clients if client.wrong is not None} == {}
        assert wire.call("LPUSH", f"queue{shard.key}", "late") == b":1\r\n"
        assert blocked.receive().endswith(b"late\r\n"), "who blocked before goes on where the list is now"


def test_keys_that_are_watched_count_as_changed(endpoint: Up) -> None:
    shard = settled(endpoint)[0]
    with Wire.to(endpoint.redis_url) as old, Wire.to(endpoint.redis_url) as new:
        assert new.call("HELLO", 3).startswith(b"%")
        for wire in old, new:
            replies = wire.pipeline([["WATCH", shard.key], ["GET", shard.key], ["MULTI"], ["SET", shard.key, 1]])
            assert replies[-1] == b"+QUEUED\r\n"
        assert order(endpoint, shard=address(shard.primary))[-1]["result"] == "done"
        assert (old.call("EXEC"), new.call("EXEC")) == (b"*-1\r\n", b"_\r\n"), "as if so: who meant it tries again"
        again: list[list[bytes | str | int]] = [["WATCH", shard.key], ["MULTI"], ["DEL", shard.key], ["EXEC"]]
        assert old.pipeline(again)[-1] == b"*1\r\n:0\r\n", "nothing of it had run"
    settled(endpoint)


def test_what_is_asked_for_has_to_be_one_healthy_replica(endpoint: Up) -> None:
    shards = settled(endpoint)
    one, other = shards[0], shards[1]
    where = "`ackgate status` shows addresses, and ids with --json"
    assert refused(endpoint, shard="nope") == f"'nope' is no shard; {where}"
    assert "'127.0.0.1:1' is no shard" in refused(endpoint, shard="127.0.0.1:1")
    assert "is the primary of shard" in refused(endpoint, shard=address(one.primary), to=address(one.primary))
    assert "is no node of shard" in refused(endpoint, shard=address(one.primary), to=address(other.replica))
    assert "from 0.2 to 5 s" in refused(endpoint, shard=address(one.primary), max_stall=6)
    with one.replica.stopped():
        until(lambda: fails(endpoint, one.replica), "its silence is noticed")
        text = refused(endpoint, shard=address(one.replica))
        assert text.endswith(f"{address(one.replica)} does not answer; try again when one is"), text
        assert "does not answer; name another" in refused(endpoint, shard=address(one.primary), to=one.replica.id[:16])
    settled(endpoint)


def fails(running: Up, node: Node) -> bool:
    rows = [each for row in running.topology()["shards"] for each in row["replicas"]]
    return any(row["address"] == address(node) and row["health"] == "fail" for row in rows)


def test_the_beginning_of_an_id_has_to_tell_shards_apart() -> None:
    node = MapNode("127.0.0.1", 1)
    shards = [MapShard(at, name, node, (), ((at, at),)) for at, name in enumerate((b"abc1", b"abd2", b"abd"))]
    assert find_shard(shards, "abc").index == 0
    assert find_shard(shards, "abd").index == 2, "a whole id is meant as it is"
    with pytest.raises(Refused, match="'ab' is ambiguous: abc1, abd2, abd; write more of it"):
        find_shard(shards, "ab")
    with pytest.raises(Refused, match="'' is no shard"):
        find_shard(shards, "")


# -- from inside: nodes are broken between two steps ---------------------------------------------------------------
@asynccontextmanager
async def inside(running: Up) -> AsyncIterator[Server]:
    """A proxy in this process, in front of the nodes of a running one."""
    nodes = [node["address"] for row in running.topology()["shards"] for node in [row["primary"], *row["replicas"]]]
    settings = ProxySettings(cluster=SeedSettings(seeds=tuple(nodes)), listen=ListenSettings(port=0))
    server = Server(settings, log=structlog.get_logger())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await server.wait_ready()
        yield server
        nursery.cancel_scope.cancel()


async def _lines(server: Server, node: Node, **more: Any) -> list[dict[str, Any]]:
    report = server.switchovers.begin(address(node), **more)
    with trio.fail_after(30):
        return [line async for line in report.follow()]


def address(node: Node) -> str:
    return f"{node.host}:{node.port}"


class Sets:
    """A client that sets a key again and again; each of its replies."""

    def __init__(self, server: Server, key: str) -> None:
        self.server = server
        self.key = key
        self.replies: list[Any] = []

    async def run(self) -> None:
        async with await ControlConnection.open(*self.server.address, timeout=30) as connection:
            while True:
                self.replies += await connection.pipeline(["SET", self.key, len(self.replies)])

    async def more(self) -> None:
        before = len(self.replies)
        with trio.fail_after(30):
            while len(self.replies) < before + 3:  # noqa: ASYNC110 -- a count, no event
                await trio.sleep(0.01)


@asynccontextmanager
async def setting(running: Up, shard: Shard) -> AsyncIterator[tuple[Server, Sets]]:
    """A proxy in this process and a client that sets a key of the shard all the while."""
    async with inside(running) as server, trio.open_nursery() as nursery:
        sets = Sets(server, shard.key)
        nursery.start_soon(sets.run)
        await sets.more()
        yield server, sets
        nursery.cancel_scope.cancel()


async def test_a_replica_that_cannot_catch_up_is_not_waited_for_and_all_is_as_before(
    endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = (await trio.to_thread.run_sync(settled, endpoint))[0]
    pause = handover.pause_writes

    async def stop_behind(primary: ControlConnection, seconds: float) -> None:
        await pause(primary, seconds)
        os.kill(shard.replica.pid, signal.SIGSTOP)

    monkeypatch.setattr(handover, "pause_writes", stop_behind)
    try:
        async with setting(endpoint, shard) as (server, sets):
            lines = await _lines(server, shard.primary, most_stall=0.6)
            await sets.more()
        assert lines[-1]["result"] == "rolled_back"
        assert lines[-1]["error"].startswith(f"{address(shard.replica)}: no answer within")
        assert f"{address(shard.primary)} goes on leading shard" in lines[-1]["error"]
        assert lines[-1]["stall_ms"] < 5000 and lines[-2]["step"] == "level"
        assert set(sets.replies) == {b"OK"}, "who was held knows nothing of it"
        assert shard.primary.call("INFO", "clients")["paused_actions"] == "none"
    finally:
        os.kill(shard.replica.pid, signal.SIGCONT)
        await trio.to_thread.run_sync(settled, endpoint)


async def test_a_replica_that_is_not_elected_leaves_the_primary_leading(
    endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = await trio.to_thread.run_sync(settled, endpoint)
    shard, *others = shards
    timeout = shard.primary.call("CONFIG", "GET", "cluster-manual-failover-timeout")
    promote = handover.promote

    async def without_voters(replica: ControlConnection, deadline: float, renew: handover.Renew) -> bool:
        for each in others:
            os.kill(each.primary.pid, signal.SIGSTOP)
        return await promote(replica, deadline, renew)

    monkeypatch.setattr(handover, "promote", without_voters)
    async with setting(endpoint, shard) as (server, sets):
        try:
            lines = await _lines(server, shard.primary, most_stall=0.6)
            await sets.more()
        finally:
            for each in others:
                os.kill(each.primary.pid, signal.SIGCONT)
    assert lines[-1]["result"] == "rolled_back"
    assert "was not elected within" in lines[-1]["error"] and "goes on leading shard" in lines[-1]["error"]
    assert set(sets.replies) == {b"OK"}
    assert shard.primary.call("ROLE")[0] == "master"
    assert shard.primary.call("CONFIG", "GET", "cluster-manual-failover-timeout") == timeout

    def can_be_had() -> bool:
        """Who voted too late votes for nobody else of the shard for twice the node timeout."""
        return bool(order(endpoint, shard=address(shard.primary))[-1]["result"] == "done")

    await trio.to_thread.run_sync(until, can_be_had, "it can be had when they vote again")
    await trio.to_thread.run_sync(settled, endpoint)


async def test_a_primary_that_dies_on_the_way_is_replaced_as_after_any_failure(
    endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = (await trio.to_thread.run_sync(settled, endpoint))[0]
    pause = handover.pause_writes

    async def kill_behind(primary: ControlConnection, seconds: float) -> None:
        await pause(primary, seconds)
        os.kill(shard.primary.pid, signal.SIGKILL)

    monkeypatch.setattr(handover, "pause_writes", kill_behind)
    async with setting(endpoint, shard) as (server, sets):
        line = (await _lines(server, shard.primary))[-1]
        await sets.more()
    assert line["result"] == "rolled_back" and line["error"].startswith(f"{address(shard.primary)}: "), line
    assert line["error"].endswith("; the shard's nodes decide now who leads, as after any failure")
    assert set(sets.replies) == {b"OK"}, "what was held went to the one that was elected"
    await trio.to_thread.run_sync(settled, endpoint)


async def test_one_at_a_time_and_not_while_clients_are_paused(endpoint: Up) -> None:
    shard, other, _ = await trio.to_thread.run_sync(settled, endpoint)
    async with inside(endpoint) as server:
        report = server.switchovers.begin(address(shard.primary))
        with pytest.raises(Refused, match=r"a switchover of shard [0-9a-f]{8} is under way"):
            server.switchovers.begin(address(other.primary))
        with trio.fail_after(30):
            assert [line async for line in report.follow()][-1]["result"] == "done"
        other.primary.call("CLIENT", "PAUSE", 60_000, "WRITE")
        try:
            line = (await _lines(server, other.primary))[-1]
        finally:
            other.primary.call("CLIENT", "UNPAUSE")
        assert line["result"] == "rolled_back" and line["error"].startswith("clients are paused there")
        assert line["stall_ms"] == 0, "nobody was held for it"
    await trio.to_thread.run_sync(settled, endpoint)


def test_it_is_counted_by_how_it_ended(endpoint: Up) -> None:
    name = 'ackgate_switchover_{}_count{{result="{}"}}'
    before = metric(endpoint, name.format("seconds", "done"))
    assert order(endpoint, shard=row_of(endpoint, 0)["id"])[-1]["result"] == "done"
    assert metric(endpoint, name.format("seconds", "done")) == before + 1
    assert metric(endpoint, name.format("stall_seconds", "done")) == before + 1
    assert metric(endpoint, name.format("seconds", "rolled_back")) == 0
    row_of(endpoint, 0)
