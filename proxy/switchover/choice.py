"""Which shard is meant, and which of its replicas is to lead it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from proxy.routing.slot_map import Node, Shard
from proxy.topology.cluster import Cluster
from shard.client import format_address

T = TypeVar("T")

SHORT = 8  # characters of an id that are shown


class Refused(Exception):
    """A switchover that is not begun: one line that says why and what to do.  ``status``: HTTP's."""

    def __init__(self, why: str, status: int = 409) -> None:
        super().__init__(why)
        self.status = status


class Choice(NamedTuple):
    """What is to be done."""

    shard: Shard
    primary: Node
    replica: Node


def choose(cluster: Cluster, shard: str, to: str | None) -> Choice:
    """What a person asked for, by the present picture.  Raises ``Refused``."""
    chosen = find_shard(cluster.map.shards, shard)
    primary = chosen.primary
    if primary is None or not _alive(cluster, primary):
        raise Refused(f"{name_of(chosen)} has no primary that answers; look again when it has failed over")
    if not chosen.replicas:
        raise Refused(f"{name_of(chosen)} has no replica that could lead it; add one first")
    _check_voters(cluster)
    watch = cluster.watch_of(primary)
    if watch is not None and watch.moving:
        raise Refused(f"slots of {name_of(chosen)} are on their way to or from it; try again when they have moved")
    if to is not None:
        replica = find_replica(chosen, to)
        why = ailment(cluster, replica)
        if why is not None:
            raise Refused(f"replica {text_of(replica)} {why}; name another with --to or try again when it is well")
        return Choice(chosen, primary, replica)
    well = [node for node in chosen.replicas if ailment(cluster, node) is None]
    if not well:
        reasons = ", ".join(f"{text_of(node)} {ailment(cluster, node)}" for node in chosen.replicas)
        raise Refused(f"no replica of {name_of(chosen)} is healthy: {reasons}; try again when one is")
    return Choice(chosen, primary, max(well, key=lambda node: _offset(cluster, node)))


def find_shard(shards: Sequence[Shard], text: str) -> Shard:
    """The shard with that id, the beginning of one, or a node at that address.  Raises ``Refused``."""
    serving = [shard for shard in shards if shard.ranges]
    if ":" in text:
        found = [shard for shard in serving if any(text_of(node) == text for node in shard.nodes)]
    else:
        found = [shard for shard in serving if text and shard.id.decode().startswith(text)]
        found = [shard for shard in found if shard.id.decode() == text] or found
    return _the_one(found, text, "shard", lambda shard: shard.id.decode())


def find_replica(shard: Shard, text: str) -> Node:
    """The replica with that address, node id, or the beginning of one.  Raises ``Refused``."""
    if ":" in text:
        found = [node for node in shard.nodes if text_of(node) == text]
    else:
        found = [node for node in shard.nodes if text and node.node_id.decode().startswith(text)]
    node = _the_one(found, text, f"node of {name_of(shard)}", text_of)
    if node is shard.primary:
        raise Refused(f"{text_of(node)} is the primary of {name_of(shard)} already")
    return node


def _the_one(found: Sequence[T], text: str, what: str, name: Callable[[T], str]) -> T:
    if not found:
        raise Refused(f"{text!r} is no {what}; `ackgate status` shows addresses, and ids with --json", 404)
    if len(found) > 1:
        raise Refused(f"{text!r} is ambiguous: {', '.join(map(name, found))}; write more of it", 400)
    return found[0]


def ailment(cluster: Cluster, replica: Node) -> str | None:
    """What keeps a replica from leading; None: nothing that is known."""
    watch = cluster.watch_of(replica)
    if watch is None or not watch.alive:
        return "does not answer"
    if watch.loading:
        return "is loading"
    if watch.info.get("role") != "slave":
        return "is no replica"
    if watch.info.get("master_link_status") != "up":
        return "has no link to its primary"
    return None


def _check_voters(cluster: Cluster) -> None:
    """A replica is elected by the majority of the primaries (cluster_legacy.c: clusterHandleReplicaFailover)."""
    primaries = [shard.primary for shard in cluster.map.shards if shard.ranges]
    alive = sum(1 for node in primaries if node is not None and _alive(cluster, node))
    if alive <= len(primaries) // 2:
        few = f"only {alive} of {len(primaries)} primaries answer, too few to elect another"
        raise Refused(f"{few}; bring them back first")


def _alive(cluster: Cluster, node: Node) -> bool:
    watch = cluster.watch_of(node)
    return watch is not None and watch.alive


def _offset(cluster: Cluster, node: Node) -> int:
    watch = cluster.watch_of(node)
    return watch.offset if watch is not None else 0


def text_of(node: Node) -> str:
    return format_address(node.host, node.port)


def name_of(shard: Shard) -> str:
    return f"shard {shard.id.decode()[:SHORT]}"
