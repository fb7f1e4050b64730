"""The pulse: ten looks a second at what nobody tells: how late the event loop is, and which shards have no primary.

What lives here: the looks, and which changes of a primary were failovers.  What may not: deciding anything by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import trio

from proxy.acks.incarnation import Incarnation
from proxy.observe.metrics import Metrics
from proxy.routing.slot_map import Node

LOOK = 0.1  # seconds


class Seen(NamedTuple):
    """A shard at one look."""

    shard: str
    """Its id."""
    up: bool
    """Its primary answers."""
    life: Incarnation | None
    """The primary's; None while it is not known."""


class Pulse:
    """``shards()``: those that serve slots now."""

    def __init__(self, metrics: Metrics, shards: Callable[[], Iterable[Seen]]) -> None:
        self.metrics = metrics
        self.changes: dict[tuple[str, str], int] = {}
        """How often another node took over, by shard id and kind."""
        self.lives: dict[str, int] = {}
        """How often a primary began a new life, by shard id."""
        self._shards = shards
        self._life: dict[str, Incarnation] = {}
        self._down_since: dict[str, float] = {}
        self._seen_up: set[str] = set()
        self._leaders: dict[str, Node] = {}

    async def run(self) -> None:
        """Look, for ever."""
        due = trio.current_time()
        while True:
            due = max(due + LOOK, trio.current_time())
            await trio.sleep_until(due)
            self.metrics.observe_delay(trio.current_time() - due)
            self.look(trio.current_time())

    def look(self, now: float) -> None:
        """Note which shards have a primary that answers, at the time ``now`` (seconds)."""
        present = list(self._shards())
        self._forget_all_but({seen.shard for seen in present})
        for shard, up, life in present:
            if life is not None and life is not self._life.get(shard):
                if shard in self._life:
                    self.lives[shard] = self.lives.get(shard, 0) + 1
                self._life[shard] = life
            if up:
                self._seen_up.add(shard)
                since = self._down_since.pop(shard, None)
                if since is not None:
                    self.metrics.observe_outage(shard, now - since)
            elif shard in self._seen_up:  # before it is up for the first time, it is only being connected to
                self._down_since.setdefault(shard, now)

    def _forget_all_but(self, shards: set[str]) -> None:
        """The others serve nothing any more."""
        self._seen_up &= shards
        for shard in self._down_since.keys() - shards:
            del self._down_since[shard]
        for shard in self._life.keys() - shards:
            del self._life[shard]

    def leads(self, shard: str, node: Node, answered: bool) -> None:
        """A node leads a shard now; ``answered``: the one before still did."""
        before = self._leaders.get(shard)
        self._leaders[shard] = node
        if before is None or _is_same(before, node):
            return
        key = shard, "switchover" if answered else "failover"
        self.changes[key] = self.changes.get(key, 0) + 1


def _is_same(one: Node, other: Node) -> bool:
    """A node may have come to another address, or not have told its id yet."""
    if one.node_id and other.node_id:
        return one.node_id == other.node_id
    return one.address == other.address
