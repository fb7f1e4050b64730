"""The nodes behind a running endpoint, reached past the proxy: stopped, set, promoted and robbed of their slots."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import redis

from proxy.acks.incarnation import own_slots
from proxy.acks.rounds import expand
from tests.harness import Up, until, up
from tests.system.load import tag
from tests.system.wire import Wire


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """These processes hang."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class Node:
    """One node as the topology shows it, reached past the proxy."""

    def __init__(self, row: dict[str, Any]) -> None:
        host, _, port = row["address"].rpartition(":")
        self.host, self.port, self.id, self.pid = host, int(port), str(row["node_id"]), int(row["pid"])
        self.direct = redis.Redis(host, self.port, decode_responses=True)

    def call(self, *args: str | int) -> Any:
        return self.direct.execute_command(*args)  # type: ignore[no-untyped-call]

    def stopped(self) -> AbstractContextManager[None]:
        return stopped([self.pid])

    @contextmanager
    def set(self, name: str, value: str) -> Iterator[None]:
        before = self.call("CONFIG", "GET", name)
        self.call("CONFIG", "SET", name, value)
        try:
            yield
        finally:
            self.call("CONFIG", "SET", name, before[1] if isinstance(before, list) else before[name])

    def wire(self) -> Wire:
        return Wire(self.host, self.port)


class Shard:
    def __init__(self, row: dict[str, Any]) -> None:
        self.primary = Node(row["primary"])
        self.replica = Node(row["replicas"][0])
        self.slot = int(row["slots"][0][0])
        self.key = "key" + tag(self.slot)


def shards_of(running: Up) -> list[Shard]:
    """The shards, once all their nodes are up."""

    def rows() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = running.topology()["shards"]
        nodes = [each for row in found for each in (row["primary"], *(row["replicas"] or [None]))]
        return found if all(each is not None and each["pid"] for each in nodes) else None

    return [Shard(row) for row in until(rows, "every shard has its primary")]


def metric(running: Up, name: str) -> float:
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        return float(re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)[1])  # type: ignore[index]


def configured(tmp_path: Path, text: str, *args: str) -> Any:
    file = tmp_path / "test.yaml"
    file.write_text(text)
    return up(tmp_path, "--port", "0", "--admin-port", "0", "--config", str(file), *args)


def migrate(source: Shard, target: Shard, first: int, last: int | None = None) -> None:
    """Move a slot, or a range of them, and come back when it has moved."""
    last = first if last is None else last
    source.primary.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.primary.id)
    until(lambda: owns(target.primary, last) and not owns(source.primary, last), "the slot has moved")


def owns(node: Node, slot: int) -> bool:
    """Whether the node itself says that it serves the slot."""
    with node.wire() as wire:
        ranges, _ = own_slots(wire.call("CLUSTER", "NODES"))
    return slot in expand(ranges)


def unconfirmed(session: Wire) -> bool:
    """Whether the session is told that there is no number, and closed."""
    reply = session.receive()
    assert reply.startswith(b"-UNBLOCKED "), reply
    return session.at_eof()


def promote(replica: Node) -> None:
    def promoted() -> bool:
        if replica.call("ROLE")[0] == "master":
            return True
        try:
            replica.call("CLUSTER", "FAILOVER")
        except redis.ResponseError:
            return False  # its link is not up yet
        until(lambda: replica.call("ROLE")[0] == "master", "the replica is promoted")
        return True

    until(promoted, "the failover is accepted")
