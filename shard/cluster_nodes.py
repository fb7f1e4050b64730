"""What one node says about the cluster: its ``CLUSTER NODES`` reply, line by line.

Source: valkey.io/commands/cluster-nodes. A line is
``id ip:port@bus[,hostname[,name=value]*] flags primary ping pong epoch link slot slot ...``; a slot is ``n``, ``n-m``,
or ``[n->-id]`` / ``[n-<-id]`` while it moves (the last two only on the node's own line).
"""

from __future__ import annotations

from dataclasses import dataclass

SLOTS = 16384

Range = tuple[int, int]


@dataclass(frozen=True)
class NodeRow:
    """One line. ``primary_id`` is empty for a primary; ``slots`` are inclusive ranges."""

    node_id: str
    host: str
    port: int
    bus_port: int
    flags: frozenset[str]
    primary_id: str
    epoch: int
    linked: bool
    slots: tuple[Range, ...]
    name: str = ""
    """The host name it announces, if any."""

    @property
    def is_primary(self) -> bool:
        """True for a primary, with or without slots."""
        return "master" in self.flags

    @property
    def failed(self) -> bool:
        """True once a majority agreed that the node failed (a mere suspicion, ``fail?``, does not count)."""
        return "fail" in self.flags


def parse_cluster_nodes(reply: bytes) -> list[NodeRow]:
    """Return the rows of a reply. Raises ``ValueError`` if it is not one."""
    return [_parse_row(line) for line in reply.decode().splitlines() if line.strip()]


def _parse_row(line: str) -> NodeRow:
    node_id, place, flags, primary, _ping, _pong, epoch, link, *slots = line.split()
    place, name, *_ = [*place.split(","), ""]
    place, _, bus = place.partition("@")
    host, _, port = place.rpartition(":")
    return NodeRow(
        node_id=node_id,
        host=host.strip("[]"),
        port=int(port),
        bus_port=int(bus or 0),
        flags=frozenset(flags.split(",")),
        primary_id="" if primary == "-" else primary,
        epoch=int(epoch),
        linked=link == "connected",
        slots=tuple(_parse_range(slot) for slot in slots if not slot.startswith("[")),
        name=name,
    )


def _parse_range(text: str) -> Range:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def myself(rows: list[NodeRow]) -> NodeRow:
    """Return the line a node wrote about itself. Raises ``ValueError`` if there is none."""
    for row in rows:
        if "myself" in row.flags:
            return row
    raise ValueError("a CLUSTER NODES reply without a line about the node itself")


def ranges_of(slots: set[int]) -> list[Range]:
    """Return slots as inclusive ranges in order."""
    ranges: list[Range] = []
    for slot in sorted(slots):
        if ranges and ranges[-1][1] == slot - 1:
            ranges[-1] = (ranges[-1][0], slot)
        else:
            ranges.append((slot, slot))
    return ranges


def slots_in(ranges: tuple[Range, ...] | list[Range]) -> set[int]:
    """Return every slot of inclusive ranges."""
    return {slot for first, last in ranges for slot in range(first, last + 1)}
