"""What a running cluster looks like, put together from the nodes' own words. Works with nodes missing.

Who belongs where is believed from the node with the highest epoch among those that answer (the most common picture
where epochs are equal): a node cut off from the majority keeps an old epoch. How each node is, is its own word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import trio

from shard.arrange import Address
from shard.client import ConnectionLost, ControlConnection, Credentials, ReplyError, format_address
from shard.cluster_nodes import SLOTS, NodeRow, Range, parse_cluster_nodes, ranges_of, slots_in
from shard.errors import ShardError
from shard.node import parse_info

Health = Literal["online", "loading", "fail"]

_NO_CREDENTIALS = Credentials()
_LOCAL = ("127.", "::1")


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node. What only the node itself can tell is None when it does not answer."""

    address: str
    """Host and port; the host's name, where the node announces one."""
    node_id: str
    role: Literal["primary", "replica"]
    health: Health
    zone: str = ""
    pid: int | None = None
    """Process id, for nodes on a loopback address."""
    version: str | None = None
    """Engine and version, e.g. ``valkey 9.1.2``."""
    offset: int | None = None
    """Replication offset in bytes."""
    lag: int | None = None
    """Bytes a replica is behind its primary's offset (sampled a moment apart, never below 0)."""
    link: Literal["up", "down"] | None = None
    """A replica's link to its primary."""
    aof: Literal["always", "everysec", "no", "off", "unknown"] | None = None
    """The append-only file's fsync policy; ``off``: no file; ``unknown``: the node does not let us read it."""
    last_bgsave: str | None = None
    """``ok`` or ``err``."""
    keys: int | None = None
    """Keys in all databases."""
    used_memory: int | None = None
    """Bytes."""


class ShardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A primary and its replicas. ``primary`` is None while the shard has none that serves."""

    id: str
    slots: list[Range]
    """Inclusive ranges."""
    primary: NodeStatus | None
    replicas: list[NodeStatus]
    """Everyone of the shard but the serving primary, a failed former primary included."""


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole. ``ok`` is True if all slots are served and nothing stands in ``problems``."""

    ok: bool
    shards: list[ShardStatus]
    problems: list[str]
    """One line each, what a person should know first on top."""


class _Report(msgspec.Struct, kw_only=True):
    """The replies of one node."""

    address: Address
    rows: list[NodeRow]
    shards: Any
    epoch: int
    info: dict[str, str]
    settings: dict[str, str] | None
    keys: int

    @property
    def picture(self) -> frozenset[tuple[str, tuple[Range, ...]]]:
        return frozenset((row.node_id, row.slots) for row in self.rows if row.slots)


async def read_status(seeds: Sequence[Address], credentials: Credentials = _NO_CREDENTIALS) -> ClusterStatus:
    """Ask the seeds, then every node they know of, and return the picture.

    Raises ``ShardError`` if no seed answers as a cluster node.
    """
    reports: dict[Address, _Report] = {}
    failures: dict[Address, str] = {}
    await _ask_new(list(seeds), credentials, reports, failures)
    if not reports:
        raise ShardError(f"no node of the cluster answers ({'; '.join(failures.values())}): is it running?")
    known = {(row.host, row.port) for report in list(reports.values()) for row in report.rows if row.host and row.port}
    await _ask_new(sorted(known), credentials, reports, failures)
    return _put_together(_one_each(reports))


async def _ask_new(
    addresses: Sequence[Address],
    credentials: Credentials,
    reports: dict[Address, _Report],
    failures: dict[Address, str],
) -> None:
    async def ask(address: Address) -> None:
        try:
            reports[address] = await _ask_node(address, credentials)
        except (ConnectionLost, ReplyError) as error:
            failures[address] = f"{format_address(*address)}: {error}" if isinstance(error, ReplyError) else str(error)

    async with trio.open_nursery() as nursery:
        for address in set(addresses) - reports.keys() - failures.keys():
            nursery.start_soon(ask, address)


def _one_each(reports: dict[Address, _Report]) -> dict[str, _Report]:
    """Key reports by node id: a node may have answered under a name and an IP."""
    return {row.node_id: report for report in reports.values() for row in report.rows if "myself" in row.flags}


async def _ask_node(address: Address, credentials: Credentials) -> _Report:
    async with await ControlConnection.open(
        *address, username=credentials.username, password=credentials.password, client_name="ackgate-status"
    ) as connection:
        nodes, cluster, shards, info, settings = await connection.pipeline(
            ("CLUSTER", "NODES"),
            ("CLUSTER", "INFO"),
            ("CLUSTER", "SHARDS"),
            ("INFO", "server", "memory", "persistence", "replication", "keyspace"),
            ("CONFIG", "GET", "append*"),
        )
    for reply in (nodes, cluster, shards, info):
        if isinstance(reply, ReplyError):
            raise reply
    fields = parse_info(info)
    return _Report(
        address=address,
        rows=parse_cluster_nodes(nodes),
        shards=shards,
        epoch=int(parse_info(cluster).get("cluster_current_epoch", "0")),
        info=fields,
        settings=None if isinstance(settings, ReplyError) else _pairs(settings),
        keys=_count_keys(fields),
    )


def _pairs(flat: list[bytes]) -> dict[str, str]:
    texts = [item.decode(errors="replace") for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _count_keys(info: dict[str, str]) -> int:
    """Sum ``dbN:keys=12,expires=0,...`` lines."""
    lines = (value for name, value in info.items() if name.startswith("db") and name[2:].isdigit())
    return sum(int(line.partition("keys=")[2].partition(",")[0] or 0) for line in lines)


def _put_together(reports: dict[str, _Report]) -> ClusterStatus:
    best = _most_believed(list(reports.values()))
    rows = {row.node_id: row for row in best.rows}
    shards = [_shard(shard_id, members, rows, reports) for shard_id, members in _membership(best)]
    shards.sort(key=lambda shard: (shard.slots or [(SLOTS, SLOTS)], shard.id))
    problems = _problems(shards)
    return ClusterStatus(ok=not problems, shards=shards, problems=problems)


def _most_believed(reports: list[_Report]) -> _Report:
    pictures = Counter(report.picture for report in reports)
    return max(reports, key=lambda report: (report.epoch, pictures[report.picture]))


def _membership(report: _Report) -> list[tuple[str, list[str]]]:
    """Return (shard id, node ids) as ``CLUSTER SHARDS`` has it; the id is the engine's, else the smallest node id."""
    found = []
    for flat in report.shards:
        entry = dict(zip(flat[::2], flat[1::2], strict=True))
        members = [dict(zip(node[::2], node[1::2], strict=True))[b"id"].decode() for node in entry[b"nodes"]]
        if members:
            found.append((entry[b"id"].decode() if b"id" in entry else min(members), members))
    return found


def _shard(shard_id: str, members: list[str], rows: dict[str, NodeRow], reports: dict[str, _Report]) -> ShardStatus:
    known = [rows[node_id] for node_id in members if node_id in rows]
    slots = ranges_of({slot for row in known for slot in slots_in(row.slots)})
    owner = max((row for row in known if row.is_primary), key=_claim, default=None)
    nodes = {row.node_id: _node(row, row is owner, reports.get(row.node_id)) for row in known}
    primary = nodes.get(owner.node_id) if owner is not None else None
    if primary is not None and primary.health == "fail":
        primary = None
    replicas = [
        _with_lag(node, primary) for node in nodes.values() if primary is None or node.node_id != primary.node_id
    ]
    replicas.sort(key=lambda node: node.address)
    return ShardStatus(id=shard_id, slots=slots, primary=primary, replicas=replicas)


def _claim(row: NodeRow) -> tuple[bool, bool, int]:
    return bool(row.slots), not row.failed, row.epoch


def _node(row: NodeRow, owner: bool, report: _Report | None) -> NodeStatus:
    address = format_address(row.name or row.host, row.port)
    role: Literal["primary", "replica"] = "primary" if row.is_primary else "replica"
    if report is None:
        return NodeStatus(address=address, node_id=row.node_id, role=role, health="fail")
    info = report.info
    replica = info.get("role") == "slave"
    offset = int(info.get("slave_repl_offset" if replica else "master_repl_offset", "0"))
    version = (
        f"valkey {info['valkey_version']}" if "valkey_version" in info else f"redis {info.get('redis_version', '?')}"
    )
    return NodeStatus(
        # A node that never met another does not know its own address: the one that was asked is right then.
        address=address if row.name or row.host else format_address(*report.address),
        node_id=row.node_id,
        role=role,
        health="loading" if info.get("loading") == "1" else "online",
        zone=info.get("availability_zone", ""),
        pid=int(info["process_id"]) if report.address[0].startswith(_LOCAL) and "process_id" in info else None,
        version=version,
        offset=offset,
        link=("up" if info.get("master_link_status") == "up" else "down") if replica else None,
        aof=_aof(info, report.settings),
        last_bgsave=info.get("rdb_last_bgsave_status"),
        keys=report.keys,
        used_memory=int(info.get("used_memory", "0")),
    )


def _aof(
    info: dict[str, str], settings: dict[str, str] | None
) -> Literal["always", "everysec", "no", "off", "unknown"]:
    if info.get("aof_enabled") == "0":
        return "off"
    match (settings or {}).get("appendfsync"):
        case "always":
            return "always"
        case "everysec":
            return "everysec"
        case "no":
            return "no"
    return "unknown"


def _with_lag(node: NodeStatus, primary: NodeStatus | None) -> NodeStatus:
    if primary is None or primary.offset is None or node.offset is None or node.role == "primary":
        return node
    return msgspec.structs.replace(node, lag=max(0, primary.offset - node.offset))


def _problems(shards: list[ShardStatus]) -> list[str]:
    served = {slot for shard in shards if shard.primary is not None for slot in slots_in(shard.slots)}
    problems = []
    if len(served) < SLOTS:
        problems.append(f"{SLOTS - len(served)} of {SLOTS} slots are not served")
    for shard in shards:
        if shard.primary is None:
            problems.append(f"shard {shard.id[:8]} has no primary")
        elif shard.primary.health != "online":
            problems.append(f"primary {shard.primary.address} is {shard.primary.health}")
        problems += [line for node in shard.replicas if (line := _replica_problem(node))]
    return problems


def _replica_problem(node: NodeStatus) -> str:
    if node.address.endswith(":0"):  # it lost its disk, and came back under another id
        cure = f"CLUSTER FORGET {node.node_id} on each node that knows it ends this"
        return f"{node.role} {node.node_id} is gone for good: {cure}"
    if node.health != "online":
        return f"{node.role} {node.address} is {node.health}"
    if node.link == "down":
        return f"replica {node.address} has no link to its primary"
    return ""
