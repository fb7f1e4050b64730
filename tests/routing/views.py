"""Views of clusters that do not exist."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.routing.slot_map import SLOTS, Node, Shard, SlotMap, View


def view(name: str, ports: Sequence[int], told_by: int, epoch: int = 1) -> View:
    """What the node at ``told_by`` says of a cluster of so many primaries, whose node ids begin with ``name``."""
    edges = [at * SLOTS // len(ports) for at in range(len(ports) + 1)]
    shards = tuple(
        Shard(
            at,
            b"%s-shard-%d" % (name.encode(), port),
            Node("127.0.0.1", port, b"%s-%d" % (name.encode(), port), role="primary"),
            ranges=((edges[at], edges[at + 1] - 1),),
        )
        for at, port in enumerate(ports)
    )
    return View(b"%s-%d" % (name.encode(), told_by), epoch, SlotMap(shards, 1, len(ports)))
