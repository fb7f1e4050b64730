"""Switchovers that meet: two of one shard, one and a pause, one and the end of a pause; and orders that are none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from proxy.switchover.procedure import LEASE, handover
from shard.client import ControlConnection
from tests.harness import ENVIRONMENT, READY, Up, until
from tests.system.nodes import Shard
from tests.system.test_switchover import Sets, _lines, address, inside, settled
from tests.system.wire import Wire

SETTING = "cluster-manual-failover-timeout"
LONG = 60_000  # milliseconds


def paused(shard: Shard) -> list[str]:
    return [node.call("INFO", "clients")["paused_actions"] for node in (shard.primary, shard.replica)]


def nothing_is_left(running: Up) -> None:
    """No node is paused, and all have the setting that they had."""
    shards = settled(running)
    until(lambda: all(paused(each) == ["none", "none"] for each in shards), "nobody is paused")
    values = {node.call("CONFIG", "GET", SETTING)[SETTING] for each in shards for node in (each.primary, each.replica)}
    assert values == {"5000"}


async def test_two_proxies_that_are_told_the_same_at_once_do_it_once(
    endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sees the other's pause before it begins, and the second to ask for the failover comes too late."""
    shard = (await trio.to_thread.run_sync(settled, endpoint))[0]
    both, promote = trio.Event(), handover.promote
    looked: list[bool] = []
    is_paused = handover.is_paused

    async def together(primary: ControlConnection) -> bool:
        found = await is_paused(primary)
        looked.append(found)
        if len(looked) == 2:
            both.set()
        await both.wait()
        return found

    monkeypatch.setattr(handover, "is_paused", together)
    turns: list[ControlConnection] = []

    async def one_after_the_other(replica: ControlConnection, deadline: float, renew: handover.Renew) -> bool:
        turns.append(replica)
        if len(turns) == 2:
            while not (await handover.standing(replica)).leads:  # noqa: ASYNC110 -- a role, no event
                await trio.sleep(0.002)
        return await promote(replica, deadline, renew)

    monkeypatch.setattr(handover, "promote", one_after_the_other)
    ends: list[dict[str, Any]] = []
    async with inside(endpoint) as one, inside(endpoint) as other, trio.open_nursery() as nursery:
        sets = [Sets(server, shard.key) for server in (one, other)]
        for each in sets:
            nursery.start_soon(each.run)
            await each.more()
        async with trio.open_nursery() as orders:

            async def give(server: Any) -> None:
                ends.append((await _lines(server, shard.primary))[-1])

            orders.start_soon(give, one)
            orders.start_soon(give, other)
        for each in sets:
            await each.more()
        nursery.cancel_scope.cancel()
    assert sorted(each["result"] for each in ends) == ["done", "rolled_back"]
    late = next(each for each in ends if each["result"] == "rolled_back")
    assert late["error"] == f"replica {address(shard.replica)} leads already: somebody else had it take over meanwhile"
    assert set(sets[0].replies + sets[1].replies) == {b"OK"}
    await trio.to_thread.run_sync(nothing_is_left, endpoint)


@pytest.mark.parametrize("step", ["pause_writes", "level", "promote"])
async def test_a_pause_that_begins_in_a_switchover_holds_and_ends_on_the_new_primary(
    step: str, endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = (await trio.to_thread.run_sync(settled, endpoint))[0]
    usual = getattr(handover, step)
    async with inside(endpoint) as server, trio.open_nursery() as nursery:
        sets = Sets(server, shard.key)
        admin = await ControlConnection.open(*server.address)

        async def and_a_pause(*args: Any) -> Any:
            nursery.start_soon(admin.call, "CLIENT", "PAUSE", LONG, "WRITE")
            await trio.sleep(0.01)
            return await usual(*args)

        monkeypatch.setattr(handover, step, and_a_pause)
        nursery.start_soon(sets.run)
        await sets.more()
        line = (await _lines(server, shard.primary))[-1]
        assert line["result"] == "done", line

        async def is_paused() -> bool:
            info = await trio.to_thread.run_sync(lambda: shard.replica.call("INFO", "clients"))
            return bool(info["paused_actions"] == "write")

        with trio.fail_after(10):
            while not await is_paused():  # noqa: ASYNC110 -- a state of the node, no event
                await trio.sleep(0.02)
            while not server.pausing.parked:  # noqa: ASYNC110 -- a count, no event
                await trio.sleep(0.02)
        assert await admin.call("GET", shard.key) is not None, "nothing stands in the way of who reads"
        assert await admin.call("CLIENT", "UNPAUSE") == b"OK"
        await sets.more()
        nursery.cancel_scope.cancel()
    assert set(sets.replies) == {b"OK"}
    await trio.to_thread.run_sync(nothing_is_left, endpoint)


async def test_the_end_of_a_pause_in_a_switchover_loses_nothing(
    endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody unpauses the primary at the worst moment, when its replica is level with it."""
    shard = (await trio.to_thread.run_sync(settled, endpoint))[0]
    promote = handover.promote
    shard.primary.call("SET", f"other{shard.key}", 0)

    async def unpaused(replica: ControlConnection, deadline: float, renew: handover.Renew) -> bool:
        shard.primary.call("CLIENT", "UNPAUSE")
        for _ in range(100):
            shard.primary.call("INCR", f"other{shard.key}")
        return await promote(replica, deadline, renew)

    monkeypatch.setattr(handover, "promote", unpaused)
    async with inside(endpoint) as server, trio.open_nursery() as nursery:
        sets = Sets(server, shard.key)
        nursery.start_soon(sets.run)
        await sets.more()
        assert (await _lines(server, shard.primary))[-1]["result"] == "done"
        await sets.more()
        nursery.cancel_scope.cancel()
    assert set(sets.replies) == {b"OK"}
    assert shard.replica.call("GET", f"other{shard.key}") == "100"
    shard.replica.call("DEL", f"other{shard.key}")
    await trio.to_thread.run_sync(nothing_is_left, endpoint)


async def test_a_replica_that_dies_when_it_is_told_to_lead_leaves_nothing_paused(
    endpoint: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = (await trio.to_thread.run_sync(settled, endpoint))[0]
    promote = handover.promote

    async def killed(replica: ControlConnection, deadline: float, renew: handover.Renew) -> bool:
        os.kill(shard.replica.pid, signal.SIGKILL)
        return await promote(replica, deadline, renew)

    monkeypatch.setattr(handover, "promote", killed)
    async with inside(endpoint) as server, trio.open_nursery() as nursery:
        sets = Sets(server, shard.key)
        nursery.start_soon(sets.run)
        await sets.more()
        line = (await _lines(server, shard.primary))[-1]
        await sets.more()
        nursery.cancel_scope.cancel()
    assert line["result"] == "rolled_back" and set(sets.replies) == {b"OK"}, line
    assert shard.primary.call("INFO", "clients")["paused_actions"] == "none"
    await trio.to_thread.run_sync(nothing_is_left, endpoint)


STANDS_STILL = """
import trio
from proxy.cli import main
from proxy.switchover.procedure import handover

async def never(*args):
    await trio.sleep_forever()

handover.level = never
main()
"""
MOST_S = 5.0  # the longest stall that may be asked for: a pause that is not renewed has to last for it


@contextmanager
def standing_still(shard: Shard, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A proxy in the middle of a switchover: it waits for the replica to be level, for ever."""
    seeds = [address(shard.primary), address(shard.replica)]
    (tmp_path / "still.yaml").write_text(f"cluster: {{seeds: {seeds}}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n")
    command = [sys.executable, "-c", STANDS_STILL, "proxy", "--config", str(tmp_path / "still.yaml")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = READY.match(process.stdout.readline())
            assert match is not None
            body = json.dumps({"shard": address(shard.primary), "max_stall": MOST_S}).encode()
            order = urllib.request.Request(f"{match[2]}/switchover", body, {"content-type": "application/json"})
            with urllib.request.urlopen(order, timeout=30) as answer:
                until(lambda: json.loads(answer.readline())["step"] == "level", "the primary is paused")
                yield process
        finally:
            process.kill()


def test_a_proxy_killed_in_the_middle_of_it_leaves_no_shard_paused_for_long(endpoint: Up, tmp_path: Path) -> None:
    shard = settled(endpoint)[0]
    with standing_still(shard, tmp_path) as proxy:
        later = time.monotonic() + 3 * LEASE
        until(lambda: time.monotonic() > later and paused(shard) == ["write", "none"], "it goes on being paused")
        proxy.kill()
        killed = time.monotonic()
        with Wire.to(endpoint.redis_url) as wire:
            assert wire.call("SET", shard.key, "1") == b"+OK\r\n"
            wire.call("DEL", shard.key)
        assert time.monotonic() - killed < MOST_S - 3 * LEASE - 1, "it ends with the proxy, not with the longest stall"
    nothing_is_left(endpoint)


# -- orders that are none ------------------------------------------------------------------------------------------
def posted(url: str, *headers: str, body: bytes = b'{"shard": "nope"}', length: int | None = None) -> tuple[int, str]:
    """(status, error) of an order as a stranger may send it."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
        size = len(body) if length is None else length
        lines = ("POST /switchover HTTP/1.1", *headers, f"content-length: {size}", "connection: close", "", "")
        sock.sendall("\r\n".join(lines).encode() + body)
        if size > len(body):
            return 0, ""
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(rest)["error"])


JSON = "content-type: application/json"


@pytest.mark.parametrize(
    "headers, status",
    [
        (("host: 127.0.0.1", JSON), 404),
        (("host: localhost:1", "Content-Type: Application/JSON; charset=utf-8"), 404),
        (("host: [::1]:1", JSON), 404),
        (("host: rebound.example", JSON), 403),
        (("host: 127.0.0.1.nip.io", JSON), 403),
        (("host: 127.0.0.1@rebound.example", JSON), 403),
        (("host: [", JSON), 403),
        (("host: ]", JSON), 403),
        (("host:", JSON), 403),
        (("host: 127.0.0.1", "origin: null", JSON), 403),
        (("host: 127.0.0.1", "origin: http://127.0.0.1", JSON), 403),
        (("host: 127.0.0.1", "content-type: text/plain"), 415),
        (("host: 127.0.0.1", "content-type: text/plain; application/json"), 415),
    ],
)
def test_orders_are_taken_from_no_web_page(headers: tuple[str, ...], status: int, endpoint: Up) -> None:
    assert posted(endpoint.admin_url, *headers)[0] == status


def test_a_stranger_who_leaves_in_an_order_leaves_nothing_in_the_log(
    endpoint: Up, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = next(tmp_path_factory.getbasetemp().glob("endpoint*/data.err"))
    before = len(log.read_text())
    posted(endpoint.admin_url, "host: 127.0.0.1", JSON, length=500)
    posted(endpoint.admin_url, "host: [", JSON)
    assert posted(endpoint.admin_url, "host: 127.0.0.1", JSON)[0] == 404
    assert "Traceback" not in log.read_text()[before:]
