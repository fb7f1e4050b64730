"""Incarnations: one life of a primary as primary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

NO_SECOND_ID = "0" * 40
"""``master_replid2`` of a node that has continued nobody's history."""


class Life(NamedTuple):
    """What a node said of itself: ``CLUSTER MYID``, ``INFO server`` and ``INFO replication``."""

    node_id: str
    run_id: str
    role: str
    """``master`` or ``slave``."""
    replid: str
    replid2: str

    @classmethod
    def read(cls, node_id: str, info: dict[str, str]) -> Life:
        """From the fields of ``INFO server replication``."""
        return cls(
            node_id,
            info.get("run_id", ""),
            info.get("role", ""),
            info.get("master_replid", ""),
            info.get("master_replid2", NO_SECOND_ID),
        )


class Incarnation:
    """One life of a primary.  Compared by identity; ``ended`` never goes back to False."""

    __slots__ = ("ended", "node_id", "replid", "run_id")

    def __init__(self, life: Life) -> None:
        self.node_id = life.node_id
        self.run_id = life.run_id
        self.replid = life.replid
        self.ended = False

    def goes_on(self, life: Life) -> bool:
        """Whether ``life`` is this same life, seen later.

        A primary that gets its first replica, or frees its backlog, takes a new replication id with
        no second one (replication.c: changeReplicationId): the same life.  One that was demoted and
        promoted again has its former primary's id as the second (shiftReplicationId): another life.
        """
        if self.ended or life.role != "master" or (life.node_id, life.run_id) != (self.node_id, self.run_id):
            return False
        return life.replid == self.replid or life.replid2 == NO_SECOND_ID


class Stamp(NamedTuple):
    """What a session remembers of a write: where it was answered, and when."""

    incarnation: Incarnation
    tick: int
    """The shard's tick when the reply was read: offsets sampled at a later tick cover the write."""
    generation: int
    """How often the shard had lost slots by then."""


class Incarnations:
    """The present life of every node that was ever seen as a primary."""

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        self._by_node: dict[str, Incarnation] = {}
        self._on_end = on_end
        self.begun = 0

    def observe(self, life: Life) -> Incarnation | None:
        """Take in what a node said; its present incarnation, None when it is no primary."""
        known = self._by_node.get(life.node_id)
        if known is not None:
            if known.goes_on(life):
                known.replid = life.replid
                return known
            del self._by_node[life.node_id]
            self.end(known)
        if life.role != "master":
            return None
        fresh = self._by_node[life.node_id] = Incarnation(life)
        self.begun += 1
        return fresh

    def end(self, incarnation: Incarnation) -> None:
        """The life is over, by what somebody who knows said."""
        if not incarnation.ended:
            incarnation.ended = True
            if self._by_node.get(incarnation.node_id) is incarnation:
                del self._by_node[incarnation.node_id]
            self._on_end()


def parse_info(text: bytes | str) -> dict[str, str]:
    """The ``name:value`` lines of an INFO reply."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def own_slots(nodes: Any) -> tuple[frozenset[str], bool]:
    """From a ``CLUSTER NODES`` reply: the slot ranges of the node itself, and whether any is on its way out or in.

    The node's line has the flag ``myself``; its fields from the ninth on are ranges, or ``[slot->-node]`` and
    ``[slot-<-node]`` for a slot that migrates or is imported (cluster_legacy.c: clusterGenNodeDescription).
    """
    text = nodes.decode() if isinstance(nodes, bytes) else str(nodes)
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 7 and "myself" in fields[2].split(","):
            ranges = frozenset(field for field in fields[8:] if not field.startswith("["))
            return ranges, any(field.startswith("[") for field in fields[8:])
    return frozenset(), False
