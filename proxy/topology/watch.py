"""Watching one node: an active probe over a connection of its own."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from typing import Any

import trio

from proxy.acks.incarnation import Life, own_slots, parse_info
from proxy.routing.slot_map import SlotMap, View
from proxy.topology.offsets import Offsets
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

SECTIONS = ("server", "replication", "persistence", "keyspace")
USAGE = ("clients", "memory", "stats", "cpu")
"""Sections of INFO for the metrics alone, asked for now and then: the proxy does not go by them."""
USAGE_EVERY = 4.0  # seconds; below what anybody scrapes


class NodeWatch:
    """What one node says of itself and of the cluster, asked again and again."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.ip = ""
        """Where the host was found."""
        self.tried = False
        """It has answered, or failed to, at least once."""
        self.alive = False
        self.foreign = False
        """A node of another cluster has got its address."""
        self.loading = False
        self.failure = ""
        self.info: dict[str, str] = {}
        self.usage: dict[str, str] = {}
        """What of INFO is for the metrics alone, a few seconds old."""
        self._usage_at = -math.inf
        self.life: Life | None = None
        self.known_run = ""
        self.settings: dict[str, str] = {}
        """``appendonly`` and ``appendfsync``, empty where they cannot be read."""
        self.view: View | None = None
        self.offsets = Offsets()
        """Which offset it had when."""
        self.moving = False
        """Slots of it are on their way, key by key."""
        self.asked_at = -math.inf
        """When the view was asked for, on trio's clock."""
        self.asking_since: float | None = None
        """When the question was put that it has not answered yet; None: there is none."""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def node_id(self) -> str:
        return self.life.node_id if self.life is not None else ""

    @property
    def engine(self) -> str:
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> str:
        return self.info.get("valkey_version") or self.info.get("redis_version", "")

    @property
    def offset(self) -> int:
        name = "master_repl_offset" if self.info.get("role") == "master" else "slave_repl_offset"
        return int(self.info.get(name, 0))

    @property
    def keys(self) -> int:
        """Keys of all databases, by INFO keyspace."""
        return sum(
            int(field.partition("=")[2])
            for name, fields in self.info.items()
            if name[:2] == "db" and name[2:].isdigit()
            for field in fields.split(",")
            if field.startswith("keys=")
        )

    @property
    def health(self) -> str:
        """``online``, ``loading`` or ``fail``."""
        return "loading" if self.loading else "online" if self.alive else "fail"

    @property
    def pid(self) -> int | None:
        """The process id, where the node runs on this machine."""
        try:
            local = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            local = self.host == "localhost"
        return int(self.info["process_id"]) if local and "process_id" in self.info else None

    async def probe(self, connection: ControlConnection, previous: SlotMap) -> None:
        """Ask once.  Raises ``ConnectionLost``."""
        asked_at = self.asking_since = trio.current_time()
        usage = USAGE if asked_at - self._usage_at >= USAGE_EVERY else ()
        node_id, info, shards, slots, cluster, nodes, settings = await connection.pipeline(
            ["CLUSTER", "MYID"],
            ["INFO", *SECTIONS, *usage],
            ["CLUSTER", "SHARDS"],
            ["CLUSTER", "SLOTS"],
            ["CLUSTER", "INFO"],
            ["CLUSTER", "NODES"],
            ["CONFIG", "GET", "append*"],
        )
        if isinstance(info, ReplyError):
            raise ConnectionLost(str(info))
        self.info = parse_info(info)
        if usage:
            self.usage, self._usage_at = self.info, asked_at
        self.offsets.add(trio.current_time(), self.offset)
        self.loading = self.info.get("loading", "0") != "0"
        if isinstance(node_id, ReplyError):
            raise ConnectionLost(f"{format_address(self.host, self.port)} is no cluster node: {node_id}")
        self.life = Life.read(node_id.decode(), self.info)
        self.settings = {} if isinstance(settings, ReplyError) else read_pairs(settings)
        self.moving = not isinstance(nodes, ReplyError) and own_slots(nodes)[1]
        self.view = None
        if not isinstance(shards, ReplyError) and not isinstance(cluster, ReplyError):
            epoch = int(parse_info(cluster).get("cluster_current_epoch", 0))
            slots_reply = None if isinstance(slots, ReplyError) else slots
            try:
                view = SlotMap.from_shards(shards, self.address, previous, slots_reply)
            except ValueError as error:
                raise ConnectionLost(str(error)) from None
            self.view = View(node_id, epoch, view)
        self.asked_at = asked_at
        self.asking_since = None
        self.alive = True
        self.tried = True
        self.failure = ""

    def failed(self, reason: str) -> None:
        """The node did not answer."""
        self.tried = True
        self.failure = reason
        self.asking_since = None
        self.view = None
        self.alive = False


class Interval:
    """How long a probe waits for its next turn; shorter while something is amiss, ended by ``hurry``."""

    def __init__(self, quiet: float, busy: Callable[[], float], amiss: Callable[[], bool]) -> None:
        self._quiet = quiet
        self._busy = busy
        self._amiss = amiss
        self._hurry = trio.Event()

    def hurry(self) -> None:
        self._hurry.set()
        self._hurry = trio.Event()

    async def pause(self) -> None:
        hurry = self._hurry
        with trio.move_on_after(self._busy() if self._amiss() else self._quiet):
            await hurry.wait()


def read_pairs(value: Any) -> dict[str, str]:
    """The reply to CONFIG GET, RESP2 or RESP3, as text."""
    pairs = value.items() if isinstance(value, dict) else zip(value[::2], value[1::2], strict=True)
    return {key.decode(): text.decode() for key, text in pairs}
