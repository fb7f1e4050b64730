"""What waits for a reply: entries of a lane's queue and places in a client's order.

A read of a client becomes one :class:`Batch`.  The commands of a batch that follow one another on
one lane form one :class:`Run` in that lane's queue, so that a pipeline of 16 costs a handful of
objects instead of 16.  A :class:`Request` is one command that control knows by itself: it is made
only when control has to deal with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.dataplane.client import Client
    from proxy.dataplane.lane import Lane

Taken = tuple[list[tuple[int, int, bytes]], Callable[[Sequence[bytes]], bytes]]
"""A command taken apart: its parts as (slot, command id, raw), and what makes one reply of theirs."""
Splitter = Callable[[bytes], "Taken | None"]
"""Takes a raw request apart; None: it is not for the data plane to split (control deals with it)."""

MINUS = 0x2D  # b"-"
NULLS = (b"*-1\r\n", b"_\r\n")
SENT = b""  # stands in a batch for a reply that was passed on, so that its bytes are not kept


class Batch:
    """The commands of one read of one client, and the replies they have so far."""

    __slots__ = ("born", "client", "commands", "missing", "replies", "sent", "tally")

    def __init__(self, client: Client, commands: list[tuple[int, int, bytes]], born: float) -> None:
        self.client = client
        self.commands = commands
        self.replies: list[bytes | None] = [None] * len(commands)
        self.missing = len(commands)
        self.sent = 0
        self.born = born
        self.tally = client.plane.tally
        """Where its commands are counted; None: nowhere."""

    def fill(self, index: int, frame: bytes, command_id: int) -> None:
        """Put the reply of command ``index`` in its place.  ``command_id``: what that turned out to be."""
        if self.replies[index] is not None:
            return  # answered before: the first answer stands
        self.replies[index] = frame
        tally = self.tally
        if tally is not None:
            seconds = self.client.plane.now - self.born
            tally.add(command_id, tally.bucket(seconds), seconds, frame)
        self.answered(1)

    def answered(self, count: int) -> None:
        """So many replies more are in."""
        self.missing -= count
        client = self.client
        client.pending -= count
        if not client.dirty:
            client.dirty = True
            client.plane.dirty_clients.append(client)


class Joined(Batch):
    """The parts of one command that was split over slots: once all replies are in, they are joined into one."""

    __slots__ = ("join", "place")

    def __init__(self, place: Place, taken: Taken) -> None:
        parts, self.join = taken
        super().__init__(place.batch.client, parts, place.born)
        self.tally = None  # parts are no commands of a client: the whole is counted
        self.place = place

    def answered(self, count: int) -> None:
        self.missing -= count
        if not self.missing:
            self.client.plane.tell(self.client, self._answer)

    def _answer(self) -> None:
        self.place.answer(self.join(self.replies))  # type: ignore[arg-type]


class Sample:
    """One command whose way is timed: see ``Lane.choose``.  The times are those of ``time.monotonic``."""

    __slots__ = (
        "batch",
        "born",
        "command_id",
        "entry",
        "handed",
        "index",
        "lane",
        "mark",
        "place_batch",
        "place_index",
        "relayed",
        "replied",
        "shard",
        "stamp",
        "traced",
    )

    def __init__(self, entry: Run | Place, batch: Batch, index: int, lane: Lane, traced: bool) -> None:
        self.entry: Run | Place | None = entry
        self.batch = batch
        self.index = index
        self.command_id = entry.command_id if isinstance(entry, Place) else batch.commands[index][1]
        self.place_batch = batch
        """Where the reply goes to the client: of a part of a split command, the place of the whole."""
        self.place_index = index
        while isinstance(self.place_batch, Joined):
            place = self.place_batch.place
            self.place_batch, self.place_index = place.batch, place.index
        self.lane = lane
        self.shard = lane.shard
        self.stamp = lane.stamp
        """Of the lane when the reply was read."""
        self.traced = traced
        """Its client asked for it."""
        self.mark = 0
        """Bytes put on the lane up to its end; 0: not flushed yet."""
        self.born = batch.born
        """The turn began in which its bytes were read."""
        self.handed = 0.0
        """The kernel had taken it, for the shard; 0.0: not yet."""
        self.replied = 0.0
        """The turn began in which its reply was read."""
        self.relayed = 0.0
        """The kernel had taken the reply, for the client."""


class Hold:
    """Replies to writes kept back until the writes are acknowledged: those of one class of concern, on one lane."""

    __slots__ = ("_frames", "_indexes", "_places", "born", "concern", "first", "lane", "last", "shard")

    def __init__(self, lane: Lane, concern: int) -> None:
        self.lane: Lane | None = lane
        """The lane on which more may come; None once control has taken it."""
        self.shard = lane.shard
        self.first = lane.stamp
        """The stamp of the first reply."""
        self.last = lane.stamp
        self.born = lane.plane.now
        self.concern = concern
        self._places: list[Batch | Request] = []
        self._indexes: list[int] = []
        self._frames: list[bytes] = []

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, place: Batch | Request, index: int, frame: bytes) -> None:
        """Keep a reply: of the command at ``index`` of a batch, or of a request (``index`` is no matter then)."""
        self._places.append(place)
        self._indexes.append(index)
        self._frames.append(frame)
        client = place.client
        if client is not None:
            client.kept_bytes += len(frame)

    def release(self, failure: bytes | None = None) -> None:
        """Pass the replies on.  ``failure`` takes the place of each that claims success."""
        for place, index, frame in zip(self._places, self._indexes, self._frames, strict=True):
            if place.client is not None:
                place.client.kept_bytes -= len(frame)
            if failure is not None and frame[0] != MINUS:
                frame = failure
            if isinstance(place, Batch):
                place.fill(index, frame, place.commands[index][1])
            elif place.client is not None:
                place.client.plane.tell(place.client, place.answer, frame)


class Request:
    """One command as control knows it.  ``answer`` fulfils it; it may stand in a lane's queue."""

    __slots__ = ("attempts", "barrier", "born", "client", "command_id", "concern", "mended", "raw", "slot", "write")

    @property
    def sticks(self) -> bool:
        """Meant for one lane alone: never sent again elsewhere."""
        return False

    def __init__(self, client: Client | None, slot: int, command_id: int, raw: bytes, born: float, write: bool) -> None:
        self.client = client
        self.slot = slot
        self.command_id = command_id
        self.raw = raw
        self.born = born
        self.write = write
        self.attempts = 0
        """How often control sent it again.  Kept for control, which bounds it."""
        self.mended = ""
        """The life of the process on which something that it lacked was put right.  Kept for control, too."""
        self.concern = -1
        """Class of write concern; -1: that of the client, or of the keys."""
        self.barrier = False
        """Its client stands behind it: control resumes the client when it is done."""

    def answer(self, frame: bytes) -> None:
        """Fulfil the request with the raw reply ``frame``."""
        raise AssertionError("a request is a Place or a Submitted")

    def kept(self) -> None:
        """Its reply is in, and kept back until the write is acknowledged."""

    def did_nothing(self, frame: bytes) -> bool:
        """Whether it provably wrote nothing, by its reply: there is nothing to be acknowledged."""
        return False

    # -- as an entry of a lane's queue -------------------------------------------------------
    def deliver(self, frames: list[bytes], at: int, lane: Lane) -> int:
        """Take ``frames[at]``; the index behind what was taken is returned."""
        frame = frames[at]
        if frame[0] == MINUS and lane.watches(frame):
            lane.hold_back(self, frame)
            return at + 1
        client = self.client
        if self.write and client is not None:
            client.wrote(lane)
            concern = self.concern if self.concern >= 0 else client.concern_of(self.raw)
            if concern and not self.did_nothing(frame):
                lane.hold(concern).add(self, 0, frame)
                lane.plane.tell(client, self.kept)
                return at + 1
        lane.plane.tell(self.client, self.answer, frame)
        return at + 1

    def waiting(self, lane: Lane) -> list[tuple[Request | None, int]]:
        """What of this entry has no reply, in order: (request, bytes sent for it)."""
        return [(self, len(self.raw))]


class Place(Request):
    """A command's place in its client's order of replies."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: Batch, index: int, write: bool) -> None:
        slot, command_id, raw = batch.commands[index]
        super().__init__(batch.client, slot, command_id, raw, batch.born, write)
        self.batch = batch
        self.index = index

    def answer(self, frame: bytes) -> None:
        self.batch.fill(self.index, frame, self.command_id)


class Submitted(Request):
    """A command that control sends on its own behalf (a part of a split, a leased lane's command)."""

    __slots__ = ("on_kept", "on_reply", "pinned")

    def __init__(
        self,
        client: Client | None,
        slot: int,
        command_id: int,
        raw: bytes,
        born: float,
        write: bool,
        on_reply: Callable[[bytes], None],
        pinned: bool = False,
        concern: int = -1,
        on_kept: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(client, slot, command_id, raw, born, write)
        self.concern = concern
        self.on_reply = on_reply
        self.on_kept = on_kept
        self.pinned = pinned

    @property
    def sticks(self) -> bool:
        return self.pinned

    def answer(self, frame: bytes) -> None:
        self.on_reply(frame)

    def kept(self) -> None:
        if self.on_kept is not None:
            self.on_kept()

    def did_nothing(self, frame: bytes) -> bool:
        # EXEC finds that what was watched has changed, a blocking command that its time is up.  Who keeps a lane until
        # its reply is in is one of these; a null of others may be of a write (SET with GET, scripts).
        return self.on_kept is not None and frame in NULLS


class Run:
    """Consecutive commands of one batch on one lane."""

    __slots__ = ("batch", "concern", "indexes", "pos", "write")

    def __init__(self, batch: Batch, concern: int = 0) -> None:
        self.batch = batch
        self.concern = concern
        """Of all its commands: their replies are kept back (see :class:`Hold`); 0: they are not."""
        self.indexes: list[int] = []
        self.pos = 0
        self.write = False

    @property
    def born(self) -> float:
        return self.batch.born

    @property
    def left(self) -> int:
        """Replies still to come."""
        return len(self.indexes) - self.pos

    def deliver(self, frames: list[bytes], at: int, lane: Lane) -> int:
        batch = self.batch
        replies = batch.replies
        indexes = self.indexes
        pos = self.pos
        end = min(len(frames), at + len(indexes) - pos)
        taken = 0
        hold = lane.hold(self.concern) if self.concern else None
        tally = batch.tally if hold is None else None  # what is kept back is counted when it is passed on
        seconds = 0.0
        bucket = 0
        if tally is not None:
            commands = batch.commands
            seconds = lane.plane.now - batch.born
            bucket = tally.bucket(seconds)
        for frame in frames[at:end]:
            index = indexes[pos]
            pos += 1
            if frame[0] == MINUS and lane.watches(frame):
                self.pos = pos  # first, so that whoever is told finds the run as it is behind this reply
                lane.hold_back(self.request(index, lane), frame)
                if lane.closed:
                    break  # what comes behind was reported as lost
                continue
            if hold is None:
                replies[index] = frame
                if tally is not None:
                    tally.add(commands[index][1], bucket, seconds, frame)
            else:
                hold.add(batch, index, frame)
            taken += 1
        self.pos = pos
        if taken:
            if self.write:
                batch.client.wrote(lane)
            if hold is None:
                batch.answered(taken)
        return end

    def request(self, index: int, lane: Lane) -> Place:
        """The command at ``index`` of the batch as control knows it."""
        return Place(self.batch, index, lane.is_write(self.batch.commands[index][1]))

    def behind(self, request: Request) -> list[tuple[int, int]]:
        """(slot, command id) of what comes here behind ``request``, which may itself be of this run."""
        first = request.index + 1 if isinstance(request, Place) and request.batch is self.batch else 0
        commands = self.batch.commands
        return [commands[index][:2] for index in self.indexes[self.pos :] if index >= first]

    def waiting(self, lane: Lane) -> list[tuple[Request | None, int]]:
        commands = self.batch.commands
        return [(self.request(index, lane), len(commands[index][2])) for index in self.indexes[self.pos :]]


class Skip:
    """An entry whose reply is thrown away (the ``+OK`` of ASKING)."""

    __slots__ = ("born", "size")

    def __init__(self, size: int, born: float) -> None:
        self.size = size
        self.born = born

    def deliver(self, frames: list[bytes], at: int, lane: Lane) -> int:
        return at + 1

    def waiting(self, lane: Lane) -> list[tuple[Request | None, int]]:
        return [(None, self.size)]


Entry = Run | Request | Skip
