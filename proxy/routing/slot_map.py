"""The slot map: which shard serves which slot, and which nodes a shard has.

A map is immutable; a change is a new map with the next version.  Shards keep their *index* over versions, so that
lanes, remembered writes and metrics can be kept under a small number; an index is never given to another shard.

Sources: ``CLUSTER SHARDS`` and ``CLUSTER SLOTS`` pages (https://valkey.io/commands/cluster-shards/,
https://valkey.io/commands/cluster-slots/).  Redis 7.2 gives shards no ``id``; there a shard is known by its nodes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

SLOTS = 16384
NO_SHARD = 0xFFFF
"""Stands in ``shard_of_slot`` for a slot nobody serves."""

Ranges = tuple[tuple[int, int], ...]
"""Slot ranges, both ends included, ascending."""
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Node:
    """One server process as its cluster describes it.  ``health``: ``online``, ``loading`` or ``fail``; ``offset`` in
    bytes.
    """

    host: str
    port: int
    node_id: bytes = b""
    role: str = "replica"
    health: str = "online"
    zone: str = ""
    offset: int = 0

    @property
    def address(self) -> Address:
        return self.host, self.port


@dataclass(frozen=True, slots=True)
class Shard:
    """A primary and its replicas.  ``index`` is stable; ``id`` is the engine's (or a node id where it gives none)."""

    index: int
    id: bytes
    primary: Node | None
    replicas: tuple[Node, ...] = ()
    ranges: Ranges = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.replicas if self.primary is None else (self.primary, *self.replicas)

    @property
    def lowest_slot(self) -> int:
        """The first slot served; SLOTS where none is."""
        return self.ranges[0][0] if self.ranges else SLOTS


@dataclass(frozen=True, slots=True, eq=False)
class SlotMap:
    """See the module.  ``shards`` ascend by index (indices may have gaps); ``version`` ascends from 1."""

    shards: tuple[Shard, ...] = ()
    version: int = 0
    next_index: int = 0
    shard_of_slot: array[int] = field(init=False, repr=False)
    """Index of the serving shard for each of the 16384 slots, NO_SHARD for none.  Read only."""
    node_ids: frozenset[bytes] = field(init=False, repr=False)
    """The ids of its nodes, as far as they are known."""
    _by_index: dict[int, Shard] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        owners = array("H", [NO_SHARD]) * SLOTS
        for shard in self.shards:
            for first, last in shard.ranges:
                owners[first : last + 1] = array("H", [shard.index]) * (last + 1 - first)
        object.__setattr__(self, "shard_of_slot", owners)
        ids = frozenset(node.node_id for shard in self.shards for node in shard.nodes if node.node_id)
        object.__setattr__(self, "node_ids", ids)
        object.__setattr__(self, "_by_index", {shard.index: shard for shard in self.shards})

    @classmethod
    def from_shards(
        cls,
        reply: Sequence[Any],
        asked: Address,
        previous: SlotMap | None = None,
        slots_reply: Sequence[Any] | None = None,
    ) -> SlotMap:
        """Build from a decoded ``CLUSTER SHARDS`` reply of the node at ``asked`` (host, port).

        ``slots_reply`` is the same node's ``CLUSTER SLOTS``, read in the same breath: for a moment after a failover a
        shard shows two primaries in ``CLUSTER SHARDS``, and only ``CLUSTER SLOTS`` tells which of them serves.
        Raises ValueError when the reply has another form.
        """
        owners = frozenset(row[2][2] for row in slots_reply or () if len(row) > 2 and len(row[2]) > 2)
        return _build((_shards_row(row, asked, owners) for row in reply), previous)

    @classmethod
    def from_slots(cls, reply: Sequence[Any], asked: Address, previous: SlotMap | None = None) -> SlotMap:
        """Build from a decoded ``CLUSTER SLOTS`` reply (no health, offsets or shard ids; no shards without slots).

        Raises ValueError when the reply has another form.
        """
        return _build(_slots_rows(reply, asked), previous)

    def shard(self, index: int) -> Shard | None:
        """The shard of that index, None where the map has none."""
        return self._by_index.get(index)

    def owner(self, slot: int) -> Shard | None:
        """The shard serving ``slot``."""
        return self._by_index.get(self.shard_of_slot[slot])

    def find(self, host: str, port: int) -> Shard | None:
        """The shard that has a node at that address."""
        address = host, port
        return next((shard for shard in self.shards if any(node.address == address for node in shard.nodes)), None)

    def node_at(self, host: str, port: int) -> Node | None:
        """The node that has that address."""
        address = host, port
        return next((node for shard in self.shards for node in shard.nodes if node.address == address), None)

    def covered(self) -> bool:
        """Whether every slot is served by some shard."""
        return NO_SHARD not in self.shard_of_slot

    def missing(self) -> Ranges:
        """The slots nobody serves."""
        return ranges_of(slot for slot in range(SLOTS) if self.shard_of_slot[slot] == NO_SHARD)

    def same_routes(self, other: SlotMap) -> bool:
        """Whether ``other`` sends every slot to the same primary: health and offsets do not count."""
        return self._routes() == other._routes()

    def _routes(self) -> frozenset[tuple[object, ...]]:
        return frozenset(
            (
                shard.primary.node_id if shard.primary else b"",
                shard.primary.address if shard.primary else None,
                shard.ranges,
            )
            for shard in self.shards
            if shard.ranges
        )

    def with_moved(self, slot: int, host: str, port: int) -> SlotMap:
        """The map after ``MOVED slot host:port``: that node serves ``slot`` as a primary.

        A replica named so has been promoted.  An unknown address gets a provisional shard (``id`` is the address) until
        discovery learns more.
        """
        target = self.find(host, port)
        next_index = self.next_index
        if target is None:
            target = Shard(next_index, b"%s:%d" % (host.encode(), port), Node(host, port, role="primary"))
            next_index += 1
        target = _promoted(target, (host, port))
        others = [
            replace(each, ranges=_without(each.ranges, slot)) for each in self.shards if each.index != target.index
        ]
        target = replace(target, ranges=merge_ranges((*target.ranges, (slot, slot))))
        return SlotMap(tuple(sorted((*others, target), key=_index)), self.version + 1, next_index)


class View(NamedTuple):
    """What one node says: its id, its ``cluster_current_epoch`` (``CLUSTER INFO``), and its map."""

    node_id: bytes
    current_epoch: int
    map: SlotMap


def choose_view(views: Sequence[View], previous: SlotMap | None = None, *, previous_epoch: int = 0) -> SlotMap | None:
    """The map of the view to believe, or None: none is better than ``previous``, the one believed so far; ask again.

    Most voices win, counting every node that answered once.  Epochs alone prove nothing, since a node cut off from the
    others raises its own with every election it loses, and a single node on the wrong side of a partition must not flip
    everybody's routes.  So with a ``previous`` map to go on with, these are not taken when they would change a route:
    a view no second node shares while others disagree, and one with an epoch below ``previous_epoch``, the
    ``current_epoch`` of the view that ``previous`` came from (0: not known, not looked at).
    """
    if not views:
        return None
    groups: dict[frozenset[tuple[object, ...]], list[View]] = {}
    for view in {view.node_id: view for view in views}.values():
        groups.setdefault(view.map._routes(), []).append(view)
    best = max(groups.values(), key=lambda group: (len(group), max(view.current_epoch for view in group)))
    chosen = max(best, key=lambda view: (_informed(view.map), view.current_epoch)).map
    if previous is None or chosen.same_routes(previous):
        return chosen
    if len(best) == 1 and len(groups) > 1:
        return None
    # A cluster made anew at the same addresses starts its epochs again; its nodes have other ids.
    older = max(view.current_epoch for view in best) < previous_epoch
    return None if older and not chosen.node_ids.isdisjoint(previous.node_ids) else chosen


def _informed(view: SlotMap) -> int:
    # Of equal routes the map with more nodes and fewer blanks serves better.
    return sum(1 for shard in view.shards for node in shard.nodes if node.health == "online")


# ---- ranges ----------------------------------------------------------------------------------------------------------


def ranges_of(slots: Iterable[int]) -> Ranges:
    """Slots in any order as ascending ranges."""
    ranges: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if ranges and ranges[-1][1] + 1 == slot:
            ranges[-1] = ranges[-1][0], slot
        else:
            ranges.append((slot, slot))
    return tuple(ranges)


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in any order as ascending ones, neighbours joined."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def intersect_ranges(left: Ranges, right: Ranges) -> Ranges:
    """The slots in both."""
    common = [(max(a, c), min(b, d)) for a, b in left for c, d in right if max(a, c) <= min(b, d)]
    return merge_ranges(common)


def _without(ranges: Ranges, slot: int) -> Ranges:
    pieces = [piece for first, last in ranges for piece in _cut(first, last, slot)]
    return tuple(pieces)


def _cut(first: int, last: int, slot: int) -> list[tuple[int, int]]:
    if not first <= slot <= last:
        return [(first, last)]
    return [(low, high) for low, high in ((first, slot - 1), (slot + 1, last)) if low <= high]


def _index(shard: Shard) -> int:
    return shard.index


# ---- reading replies -------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    shard_id: bytes
    primary: Node | None
    replicas: tuple[Node, ...]
    ranges: Ranges

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.replicas if self.primary is None else (self.primary, *self.replicas)


def _shards_row(row: Any, asked: Address, owners: frozenset[bytes]) -> _Row:
    try:
        fields = _pairs(row)
        flat = fields[b"slots"]
        nodes = [_node(each, asked) for each in map(_pairs, fields[b"nodes"]) if _port(each)]
        ranges = merge_ranges(zip(map(int, flat[::2]), map(int, flat[1::2]), strict=True))
    except (KeyError, TypeError, ValueError, IndexError) as exc:
        raise ValueError("the CLUSTER SHARDS reply cannot be read") from exc
    primary = _serving(nodes, owners)
    replicas = tuple(
        node if node.role != "primary" else replace(node, role="replica") for node in nodes if node is not primary
    )
    return _Row(fields.get(b"id") or b"", primary, replicas, ranges)


def _serving(nodes: Sequence[Node], owners: frozenset[bytes]) -> Node | None:
    primaries = [node for node in nodes if node.role == "primary"]
    # An old primary that failed keeps its role in the list until it is back as a replica of the new one.
    return max(primaries, key=lambda n: (n.node_id in owners, n.health == "online", n.offset), default=None)


def _node(fields: Mapping[bytes, Any], asked: Address) -> Node:
    endpoint = fields.get(b"endpoint") or fields.get(b"ip")
    if endpoint == b"?":  # it is to have a name, which has not come to the node we asked
        endpoint = fields.get(b"ip") or endpoint
    return Node(
        host=_host(endpoint, asked),
        port=_port(fields),
        node_id=fields[b"id"],
        role="primary" if fields[b"role"] == b"master" else "replica",
        health=_text(fields.get(b"health", b"online")),
        zone=_text(fields.get(b"availability-zone") or b""),
        offset=int(fields.get(b"replication-offset", 0)),
    )


def _port(fields: Mapping[bytes, Any]) -> int:
    """0 of a node that lost its memory (a new disk): the others remember its former id, and have no address of it."""
    return int(fields.get(b"port") or fields.get(b"tls-port") or 0)


def _slots_rows(reply: Sequence[Any], asked: Address) -> list[_Row]:
    try:
        by_primary: dict[bytes, list[Any]] = {}
        for row in reply:
            by_primary.setdefault(row[2][2], []).append(row)
        return [_slots_row(rows, asked) for rows in by_primary.values()]
    except (TypeError, ValueError, IndexError, KeyError) as exc:
        raise ValueError("the CLUSTER SLOTS reply cannot be read") from exc


def _slots_row(rows: Sequence[Any], asked: Address) -> _Row:
    first = rows[0]
    primary = _slots_node(first[2], "primary", asked) if int(first[2][1]) else None
    replicas = tuple(_slots_node(each, "replica", asked) for each in first[3:] if int(each[1]))
    return _Row(b"", primary, replicas, merge_ranges((int(row[0]), int(row[1])) for row in rows))


def _slots_node(entry: Sequence[Any], role: str, asked: Address) -> Node:
    meta = _pairs(entry[3]) if len(entry) > 3 else {}
    zone = _text(meta.get(b"availability-zone") or b"")
    return Node(_host(entry[0], asked), int(entry[1]), entry[2], role, "online", zone)


def _host(endpoint: Any, asked: Address) -> str:
    # NULL, "" and "?" mean: the address you reached me by.
    host = _text(endpoint or b"")
    return asked[0] if host in ("", "?") else host


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _pairs(value: Any) -> Mapping[bytes, Any]:
    if isinstance(value, Mapping):
        return value
    return dict(zip(value[::2], value[1::2], strict=True))


# ---- identity over time ----------------------------------------------------------------------------------------------


def _build(rows: Iterable[_Row], previous: SlotMap | None) -> SlotMap:
    # Rows without any node say nothing.  Ordered by lowest slot, so that a first map numbers shards as people read
    # them.
    found = sorted(
        (row for row in rows if row.nodes), key=lambda row: (row.ranges[:1] or ((SLOTS, SLOTS),), _least_id(row))
    )
    matches = _matches(found, previous.shards if previous is not None else ())
    next_index = previous.next_index if previous is not None else 0
    shards: list[Shard] = []
    for at, row in enumerate(found):
        match = matches.get(at)
        index = match.index if match is not None else next_index
        next_index = max(next_index, index + 1)
        shards.append(Shard(index, row.shard_id or _inherited_id(row, match), row.primary, row.replicas, row.ranges))
    shards.sort(key=_index)
    return SlotMap(tuple(shards), (previous.version if previous is not None else 0) + 1, next_index)


def _matches(rows: Sequence[_Row], known: Sequence[Shard]) -> dict[int, Shard]:
    """Which known shard each row is, best matches first, each shard once."""
    scored = [(_likeness(row, shard), at, shard) for at, row in enumerate(rows) for shard in known]
    matches: dict[int, Shard] = {}
    taken: set[int] = set()
    for score, at, shard in sorted(scored, key=lambda each: (-each[0], each[1], each[2].index)):
        if score > 0 and at not in matches and shard.index not in taken:
            matches[at] = shard
            taken.add(shard.index)
    return matches


def _likeness(row: _Row, shard: Shard) -> int:
    """0: another shard.  The engine's shard id decides; else the primary in common weighs more than any replicas."""
    if row.shard_id and row.shard_id == shard.id:
        return 1 << 20
    if row.shard_id and not _named_by_us(shard):
        return 0
    ids = {node.node_id for node in shard.nodes if node.node_id}
    addresses = {node.address for node in shard.nodes if not node.node_id}
    score = sum(1 for node in row.nodes if node.node_id in ids or node.address in addresses)
    if row.primary is not None and shard.primary is not None and row.primary.address == shard.primary.address:
        score += 1 << 10 if score else 0
    return score


def _named_by_us(shard: Shard) -> bool:
    # By an address (provisional) or by a node's id, because the engine had not said its id yet.
    return b":" in shard.id or shard.id in {node.node_id for node in shard.nodes}


def _inherited_id(row: _Row, match: Shard | None) -> bytes:
    if match is not None and b":" not in match.id:
        return match.id
    return _least_id(row)


def _least_id(row: _Row) -> bytes:
    # The same for every proxy, and the same after a failover: any one node's id would do, the primary's would change.
    return min((node.node_id for node in row.nodes), default=b"")


def _promoted(shard: Shard, address: Address) -> Shard:
    if shard.primary is not None and shard.primary.address == address:
        return shard
    primary = next(node for node in shard.nodes if node.address == address)
    others = tuple(replace(node, role="replica") for node in shard.nodes if node is not primary)
    return replace(shard, primary=replace(primary, role="primary"), replicas=others)
