"""What one look at a primary shows, read from its raw replies; what did not change since the last is not read again.

A look is ``INFO replication`` and what tells of slots in one packet, so all is of one moment: the stream's offset, what
each online replica acknowledged (as WAIT counts them, replication.c: replicationCountAcksByOffset), the life that leads
and the slots it has.  What it counts is proved by the same look.

``CLUSTER NODES`` alone shows slots that are on their way, and costs a node 60 us, thirty times as much as INFO.  From
Valkey 8 on it is asked only when something may have changed since: ``CLUSTER SLOTS``, which is kept ready there, shows
who owns what, and a slot is on its way only since a ``CLUSTER SETSLOT``, each of which is in its ``LATENCY HISTOGRAM``.
What could hide one has to be in there, too: ``CONFIG SET``, by which tracking is switched off and on again, and
``CONFIG RESETSTAT``, which empties it, itself excepted.  Behind a second one it looks as behind the first: so a node on
which there was any is asked for CLUSTER NODES at each look, as is one that does not keep count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import trio

from proxy.acks.incarnation import NO_SECOND_ID, Incarnation, Incarnations, Life, own_slots, parse_info
from proxy.acks.primary import INFO, Demoted, Primary
from proxy.codec import encode_request
from proxy.codec.reply import is_error
from shard.client import ReplyError

NODES = encode_request([b"CLUSTER", b"NODES"])
MARKS = (
    encode_request([b"CLUSTER", b"SLOTS"]),
    encode_request([b"LATENCY", b"HISTOGRAM", b"cluster|setslot", b"config|set", b"config|resetstat"]),
    encode_request([b"CONFIG", b"GET", b"latency-tracking"]),
)
"""Their replies stay the same, to the byte, as long as CLUSTER NODES has nothing new to say of the node's slots."""
TRACKING = b"*2\r\n$16\r\nlatency-tracking\r\n$3\r\nyes\r\n"
RESET = b"config|resetstat"
LASTING = 1.0  # seconds for which marks hold: switched off, emptied and switched on, histograms may be as before
MOST_MARKS = 8  # times as long as CLUSTER NODES: who has slots in so many pieces is better asked for that
FIRST_MARKING = 8
"""The first Valkey that keeps the reply to CLUSTER SLOTS ready (valkey#53)."""
_OFFSET = re.compile(rb"\nmaster_repl_offset:(\d+)")
_LIFE = re.compile(rb"\n(?:role|master_replid|master_replid2|second_repl_offset|master_sync_in_progress):[^\r\n]*")
_REPLICA = re.compile(rb"\nslave\d+:ip=([^,\r\n]*),port=(\d+),state=online,offset=(\d+)")


class Seen:
    """One look."""

    __slots__ = ("acknowledged", "came", "generation", "incarnation", "moving", "offset", "sent")

    def __init__(
        self,
        sent: float,
        came: float,
        offset: int,
        acknowledged: list[int],
        incarnation: Incarnation | None,
        generation: int,
        moving: bool,
    ) -> None:
        self.sent = sent
        """On trio's clock; ``came``: when its reply was read."""
        self.came = came
        self.offset = offset
        self.acknowledged = acknowledged
        """What each online replica has."""
        self.incarnation = incarnation
        """The life in charge."""
        self.generation = generation
        self.moving = moving
        """A slot of the shard is on its way out or in."""


class Reader:
    """Reads looks at one primary."""

    def __init__(self, primary: Primary, incarnations: Incarnations) -> None:
        self._primary = primary
        self._incarnations = incarnations
        self._said: list[bytes] = []
        self._life: Life | None = None
        self._incarnation: Incarnation | None = None
        self._line: list[bytes] = []
        self.slots: frozenset[str] = frozenset()
        self.moving = False
        self._marks: list[bytes] | None = None
        """What ``MARKS`` said when CLUSTER NODES was read last; None: it has to be read anew."""
        self._marked = 0.0
        """When that was, on trio's clock."""
        major = primary.version.partition(".")[0]
        self._marking = primary.engine == "valkey" and major.isdigit() and int(major) >= FIRST_MARKING

    @property
    def requests(self) -> Sequence[bytes]:
        """What the next look asks for."""
        if not self._marking:
            return INFO, NODES
        if trio.current_time() - self._marked > LASTING:
            self._marks = None
        return (INFO, *MARKS, NODES) if self._marks is None else (INFO, *MARKS)

    def read_slots(self, frames: Sequence[bytes]) -> bool:
        """Take in what a look shows of slots; False: they may be others than were known, so it has to be asked anew.

        Raises ``ReplyError``.
        """
        if self._marks is not None:
            if frames[1:] == self._marks:
                return True
            self._marks = None
            return False
        self._nodes(frames[-1])
        marks = list(frames[1:-1])
        self._marking = self._marking and _keeps_count(marks) and len(marks[0]) <= MOST_MARKS * len(frames[-1])
        if self._marking:
            self._marks, self._marked = marks, trio.current_time()
        return True

    def info(self, frame: bytes) -> tuple[int, list[int]]:
        """(offset, what each online replica acknowledged).  Raises ``Demoted``, ``ReplyError``."""
        _refuse(frame)
        said = _LIFE.findall(frame)
        if said != self._said or self._incarnation is None or self._incarnation.ended:
            self._said = said
            fields = parse_info(b"".join(said))
            fields["run_id"] = self._primary.run_id
            fields.setdefault("master_replid2", NO_SECOND_ID)
            self._incarnation = self._incarnations.observe(Life.read(self._primary.node_id, fields))
        if self._incarnation is None:
            raise Demoted("the node is not a primary any more")
        replicas: list[tuple[bytes, bytes, bytes]] = _REPLICA.findall(frame)
        self._primary.replicas = replicas
        self._incarnation.attached([replica[:2] for replica in replicas])
        self._incarnation.keeps_aof = self._primary.keeps_aof
        offset = _OFFSET.search(frame)
        return int(offset[1]) if offset is not None else 0, [int(replica[2]) for replica in replicas]

    @property
    def incarnation(self) -> Incarnation | None:
        return self._incarnation

    def _nodes(self, frame: bytes) -> None:
        _refuse(frame)
        for line in frame.split(b"\n"):
            if b"myself" not in line:
                continue
            fields = line.split()
            if len(fields) > 7 and b"myself" in fields[2].split(b","):
                if fields[8:] != self._line:
                    self._line = fields[8:]
                    self.slots, self.moving = own_slots(line)
                return
        self.slots, self.moving, self._line = frozenset(), False, []


def online(frame: bytes) -> int:
    """How many replicas are online, by the reply to INFO replication."""
    return len(_REPLICA.findall(frame))


def attached(frame: bytes) -> set[tuple[bytes, bytes]]:
    """(host, port) of those; one whose connection was lost unnoticed may be online twice."""
    return {(host, port) for host, port, _ in _REPLICA.findall(frame)}


def _keeps_count(marks: list[bytes]) -> bool:
    """Whether whatever changes slots changes these."""
    return marks[-1] == TRACKING and RESET not in marks[1] and not any(map(is_error, marks))


def _refuse(frame: bytes) -> None:
    if is_error(frame):
        raise ReplyError(frame[1:].decode("utf-8", "replace").strip())
