"""Whether a shard's WAITAOF can be believed: what its nodes' settings say, asked behind the counts."""

from __future__ import annotations

import trio

from proxy.acks.primary import Primary
from proxy.routing.slot_map import Node, Shard
from proxy.topology.cluster import Cluster
from proxy.topology.watch import NodeWatch, read_pairs
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

FIRST_FIXED_REDIS = (8, 2)
"""The first Redis that acknowledges WAITAOF only behind the fsync with ``appendfsync everysec`` (redis#13793)."""
REPLICA_PATIENCE = 0.03  # seconds a replica has to tell its settings behind a WAITAOF, which has waited already


class Trust:
    """Asks the nodes of a shard; keeps a connection to each replica for it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._replicas: dict[tuple[str, int], ControlConnection] = {}

    def close(self) -> None:
        for connection in self._replicas.values():
            connection.abort()

    async def distrust(self, index: int, primary: Primary) -> str | None:
        """Why a shard's WAITAOF cannot be believed: acknowledged before the fsync, or settings that cannot be read."""
        shard = self.cluster.shard(index)
        if shard is None:
            return None
        address = primary.main.address
        try:
            settings = await primary.main.call("CONFIG", "GET", "append*")
        except ReplyError:
            return _unread(shard, address)
        fields = dict(zip(settings[::2], settings[1::2], strict=True))
        if _acknowledges_early(primary.engine, primary.version, fields[b"appendonly"], fields[b"appendfsync"]):
            return _untrusted(shard, address, primary.engine, primary.version)
        found: dict[Node, str] = {}

        async def ask(replica: Node, watch: NodeWatch) -> None:
            problem = await self._distrust_replica(shard, replica, watch)
            if problem is not None:
                found[replica] = problem

        async with trio.open_nursery() as nursery:
            for replica in shard.replicas:
                watch = self.cluster.watch_of(replica)
                if replica.health != "fail" and watch is not None:  # else its primary does not count it
                    nursery.start_soon(ask, replica, watch)
        return next((found[replica] for replica in shard.replicas if replica in found), None)

    async def _distrust_replica(self, shard: Shard, replica: Node, watch: NodeWatch) -> str | None:
        name = format_address(*replica.address)
        asked = await self._settings(watch)
        if not asked:
            return _unread(shard, name)
        appendonly, appendfsync = asked.get("appendonly", "").encode(), asked.get("appendfsync", "").encode()
        if _acknowledges_early(watch.engine, watch.version, appendonly, appendfsync):
            return _untrusted(shard, name, watch.engine, watch.version)
        return None

    def early(self, index: int) -> bool:
        """Whether a shard acknowledges WAITAOF before the fsync, by what its nodes said last."""
        shard = self.cluster.shard(index)
        watches = [self.cluster.watch_of(node) for node in shard.nodes] if shard is not None else []
        return any(
            _acknowledges_early(
                watch.engine,
                watch.version,
                watch.settings.get("appendonly", "").encode(),
                watch.settings.get("appendfsync", "").encode(),
            )
            for watch in watches
            if watch is not None
        )

    async def _settings(self, watch: NodeWatch) -> dict[str, str]:
        """A replica's AOF settings now; those last known when it does not answer: it acknowledges nothing then."""
        with trio.move_on_after(REPLICA_PATIENCE if watch.alive else 0):
            try:
                connection = self._replicas.get(watch.address)
                if connection is None or connection.closed:
                    connection = self._replicas[watch.address] = await self.cluster.connect(*watch.address)
                watch.settings = read_pairs(await connection.call("CONFIG", "GET", "append*"))
            except ReplyError:
                return {}
            except ConnectionLost:
                pass
        return watch.settings


def _acknowledges_early(engine: str, version: str, appendonly: bytes, appendfsync: bytes) -> bool:
    if appendonly != b"yes" or appendfsync != b"everysec":
        return False
    numbers = tuple(int(word) for word in version.split(".") if word.isdigit())
    return engine != "redis" or numbers < FIRST_FIXED_REDIS


def _unread(shard: Shard, node: str) -> str:
    return f"ERR WAITAOF: the settings of {node} (shard {shard.id.decode()}) are unknown; allow CONFIG GET"


def _untrusted(shard: Shard, node: str, engine: str, version: str) -> str:
    return (
        f"ERR WAITAOF cannot be believed on shard {shard.id.decode()}: {node} has appendfsync everysec, with which "
        f"{engine} {version} acknowledges before the fsync; set appendfsync always there, "
        "or acks.untrusted_waitaof: pass to take the engine's word"
    )
