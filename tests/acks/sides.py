"""The two sides of every behaviour: a plain primary with one replica, and Ackgate in front of three such pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import Up, until
from tests.system.beside import plain_server
from tests.system.nodes import Node, configured, metric, shards_of
from tests.system.wire import Wire

AOF = {"appendonly": "yes", "appendfsync": "always", "repl_diskless_sync_delay": "0"}


class Side:
    """Where a test's sessions connect to, and the pair of nodes behind that takes its writes of ``key``."""

    def __init__(
        self,
        connect: Callable[[], Wire],
        primary: Node,
        replica: Node,
        keys: list[str],
        blocked: Callable[[], int],
        late: float,
    ) -> None:
        self.connect = connect
        self.primary = primary
        self.replica = replica
        self.key = keys[0]
        self.keys = keys
        """One for each pair of nodes."""
        self.blocked = blocked
        """How many sessions are blocked now."""
        self.late = late
        """Seconds by which a timeout may be missed."""

    def session(self, protocol: int = 2) -> Wire:
        session = self.connect()
        session.call("HELLO", protocol)
        return session

    def come_into_step(self) -> None:
        """Every replica has, on its disk, all that was written."""
        with self.connect() as session:

            def in_step() -> bool:
                for key in self.keys:
                    session.call("SET", key, "in step")
                return session.call("WAITAOF", 1, 1, 10) == b"*2\r\n:1\r\n:1\r\n"

            until(in_step, "every replica is in step")

    def until_blocked(self, sessions: int = 1) -> None:
        until(lambda: self.blocked() == sessions, f"{sessions} are blocked")

    def leave(self) -> None:
        """The replica leaves its primary."""
        self.replica.call("REPLICAOF", "NO", "ONE")
        self.replica.call("SET", "of its own", "x" * 1000)

    def come_back(self) -> None:
        """It follows its primary again."""
        self.replica.call("REPLICAOF", self.primary.host, self.primary.port)

    def others_write(self) -> None:
        """Somebody else writes: the stream of the pair that ``key`` belongs to goes on."""
        with self.connect() as other:
            assert other.call("SET", self.key, "other") == b"+OK\r\n"


class Ackgate(Side):
    """The proxy's side, with all its shards."""

    def __init__(self, running: Up) -> None:
        self.running = running
        self.shards = shards_of(running)
        self.metric = lambda name: metric(running, name)
        super().__init__(
            lambda: Wire.to(running.redis_url),
            self.shards[0].primary,
            self.shards[0].replica,
            [shard.key for shard in self.shards],
            lambda: int(metric(running, "ackgate_waits_open")),
            late=0.1,
        )

    def leave(self) -> None:
        """It follows another primary."""
        self.replica.call("CLUSTER", "REPLICATE", self.shards[1].primary.id)

    def come_back(self) -> None:
        self.replica.call("CLUSTER", "REPLICATE", self.primary.id)


@contextmanager
def engine(folder: Path) -> Iterator[Side]:
    """One primary and its replica."""
    with plain_server(folder / "primary", **AOF) as port:
        source = {"replicaof": f"127.0.0.1 {port}"}
        with plain_server(folder / "replica", **AOF, **source) as replica_port:
            primary, replica = _node(port), _node(replica_port)
            side = Side(
                lambda: Wire("127.0.0.1", port),
                primary,
                replica,
                ["key"],
                lambda: int(primary.direct.info("clients")["blocked_clients"]),
                late=0.25,  # an idle server looks at timeouts ten times a second
            )
            side.come_into_step()
            yield side


@contextmanager
def ackgate(folder: Path) -> Iterator[Ackgate]:
    """Three pairs behind the proxy.  Nodes may be stopped for a while without being taken for dead."""
    with configured(folder, "cluster: {node_timeout_ms: 10000}") as running:
        yield Ackgate(running)


def _node(port: int) -> Node:
    with Wire("127.0.0.1", port) as server:
        info = server.call("INFO", "server").decode()
    pid = next(line.partition(":")[2] for line in info.splitlines() if line.startswith("process_id:"))
    return Node({"address": f"127.0.0.1:{port}", "node_id": "", "pid": pid})


def timed(session: Wire, *words: str | int) -> tuple[bytes, float]:
    """(reply, seconds it took)."""
    started = time.monotonic()
    reply = session.call(*words)
    return reply, time.monotonic() - started
