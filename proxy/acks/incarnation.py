"""Incarnations: one life of a primary as primary."""

from __future__ import annotations

from collections import Counter
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
    """The history that it continued last: all zero for none."""
    end2: int = -1
    """``second_repl_offset``: the first byte of that history that it does not have."""
    copying: bool = False
    """``master_sync_in_progress``: it takes its primary's data in full, in place of its own."""

    @classmethod
    def read(cls, node_id: str, info: dict[str, str]) -> Life:
        """From the fields of ``INFO server replication``."""
        return cls(
            node_id,
            info.get("run_id", ""),
            info.get("role", ""),
            info.get("master_replid", ""),
            info.get("master_replid2", NO_SECOND_ID),
            int(info.get("second_repl_offset", -1)),
            info.get("master_sync_in_progress", "0") != "0",
        )


class Incarnation:
    """One life of a primary.  Compared by identity; ``ended`` never goes back to False."""

    __slots__ = ("_attached", "ended", "heir", "keeps_aof", "left", "node_id", "replid", "run_id", "unsettled")

    def __init__(self, life: Life) -> None:
        self.node_id = life.node_id
        self.run_id = life.run_id
        self.replid = life.replid
        self.ended = False
        """This node leads no more in this life."""
        self.unsettled = False
        """It has ended, and whether another carried everything on is not known yet."""
        self.heir: Incarnation | None = None
        """The life that provably has every write which this one took."""
        self.left = 0
        """How many replicas have left it, as far as that was seen."""
        self.keeps_aof = True
        """So it said last, if it was asked."""
        self._attached: list[tuple[bytes, bytes]] = []

    def attached(self, replicas: list[tuple[bytes, bytes]]) -> None:
        """Take in (host, port) of the replicas that are online."""
        if replicas != self._attached:
            self.left += (Counter(self._attached) - Counter(replicas)).total()
            self._attached = replicas

    @property
    def present(self) -> Incarnation:
        """The last of its heirs; itself when it has none."""
        life = self
        while life.heir is not None:
            life = life.heir
        return life

    @property
    def lost(self) -> bool:
        """It has ended and nobody provably carries it on."""
        return self.ended and not self.unsettled and self.heir is None

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
    """The present life of every node that was ever seen as a primary, and what became of those that ended.

    A planned switchover carries a life on.  The former primary P, now a replica of Q, goes on with its own data only
    if it had no byte more than Q (replication.c: masterTryPartialResync); then its second replication id is the one
    it led under, and its second offset the end of what it took.  Where Q's second id is the same and its second
    offset is not below P's, Q had every write of P when it was promoted.  Any other end (P died, hangs, was started
    again, took Q's data in full) proves nothing.
    """

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        self._by_node: dict[str, Incarnation] = {}
        self._heard: dict[str, Life] = {}
        self._on_end = on_end
        self.unsettled: list[Incarnation] = []
        self.begun = 0

    def of(self, node_id: str) -> Incarnation | None:
        """The present life of a node as a primary; None when it has none."""
        return self._by_node.get(node_id)

    def observe(self, life: Life) -> Incarnation | None:
        """Take in what a node said; its present incarnation, None when it is no primary."""
        if life.replid:
            self._heard[life.node_id] = life
        known = self._by_node.get(life.node_id)
        if known is not None and known.goes_on(life):
            known.replid = life.replid
        elif known is not None and life.role != "master" and life.run_id == known.run_id:
            self.depose(known)
        elif known is not None:
            self.end(known)
        if life.role == "master" and life.node_id not in self._by_node:
            self._by_node[life.node_id] = Incarnation(life)
            self.begun += 1
        for each in list(self.unsettled):
            self._settle(each)
        return self._by_node.get(life.node_id) if life.role == "master" else None

    def depose(self, incarnation: Incarnation) -> None:
        """It leads no more; whether another life carries it on has to be seen, or :meth:`end` be called."""
        if not incarnation.ended:
            incarnation.unsettled = True
            self.unsettled.append(incarnation)
            self._finish(incarnation)
            self._settle(incarnation)

    def end(self, incarnation: Incarnation) -> None:
        """The life is over and nobody carries it on, by what somebody who knows said."""
        if incarnation.unsettled or not incarnation.ended:
            self._finish_settling(incarnation)
            self._finish(incarnation)

    def _settle(self, life: Incarnation) -> None:
        """See whether a life that ended was carried on, by what its node and its successor said."""
        node = self._heard.get(life.node_id)
        if node is None or not life.unsettled:
            return
        if node.run_id != life.run_id or node.copying or (node.role == "master" and node.replid != life.replid):
            self.end(life)
        elif node.replid != life.replid:  # it follows another history by now
            heir = next((each for each in self._by_node.values() if each.replid == node.replid), None)
            if node.replid2 != life.replid:
                self.end(life)
            elif heir is not None and _carried_on(node, self._heard[heir.node_id]):
                life.heir = heir
                self._finish_settling(life)
                self._on_end()

    def _finish(self, incarnation: Incarnation) -> None:
        incarnation.ended = True
        if self._by_node.get(incarnation.node_id) is incarnation:
            del self._by_node[incarnation.node_id]
        self._on_end()

    def _finish_settling(self, incarnation: Incarnation) -> None:
        if incarnation.unsettled:
            incarnation.unsettled = False
            self.unsettled.remove(incarnation)


def _carried_on(former: Life, successor: Life) -> bool:
    """Whether ``successor`` had all that ``former`` took before it became a replica of it."""
    return (
        successor.role == "master"
        and successor.replid == former.replid
        and successor.replid2 == former.replid2 != NO_SECOND_ID
        and successor.end2 >= former.end2 > 0
    )


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
