"""One lane: a pipelined backend connection, or the queue that stands for it while there is none.

A lane is made unattached: what is put on it is parked.  ``attach`` gives it its one socket, and
with that its one incarnation; once lost it is never used again.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.codec import FramingError, ReplyState, frame_replies
from proxy.dataplane.base import Handler
from proxy.dataplane.contract import WRITE, Handed, Lost
from proxy.dataplane.requests import Batch, Entry, Hold, Place, Request, Run, Sample, Skip

if TYPE_CHECKING:
    from proxy.dataplane.client import Client
    from proxy.dataplane.plane import DataPlane

RECEIVE = 256 * 1024
SET_ASIDE = 64 * 1024  # bytes scanned of an unfinished reply above which they are not copied with every read
PUSH = 0x3E  # b">"
READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
ENDED = select.EPOLLHUP | select.EPOLLERR
NEVER = float("inf")


class Lane(Handler):
    """See the module.  ``owner`` and ``stamp`` are control's."""

    __slots__ = (
        "_ahead",
        "_begin",
        "_buffer",
        "_candidates",
        "_end",
        "_mask",
        "_missing",
        "_state",
        "_unsent",
        "closed",
        "dirty",
        "fd",
        "fifo",
        "held_bytes",
        "open_holds",
        "out",
        "owner",
        "plane",
        "pushes",
        "sample",
        "sample_at",
        "sent",
        "shard",
        "since",
        "sock",
        "stamp",
        "tail",
        "taken",
        "traffic",
    )

    def __init__(self, plane: DataPlane, shard: int, owner: Any = None) -> None:
        self.plane = plane
        self.shard = shard
        """The shard's index: the key under which a session's writes are remembered."""
        self.traffic = plane.traffic_of(shard)
        self.owner = owner
        self.stamp: Any = None
        """What is remembered of a write answered on this lane (acks: incarnation, tick, ...)."""
        self.since = 0.0
        """When it was connected: what is parked before that keeps no shard waiting."""
        self.sock: socket.socket | None = None
        self.fd = -1
        self.closed = False
        self.pushes = False
        """The lane speaks RESP3: out-of-band pushes may arrive between replies."""
        self.fifo: deque[Entry] = deque()
        self.tail: Run | None = None
        self.out: list[bytes] = []
        self.dirty = False
        self.held_bytes = 0
        self.open_holds: dict[int, Hold] = {}
        """Class of concern -> what control has not taken yet."""
        self.taken = 0
        """Bytes put on the lane so far, as of the last flush."""
        self.sent = 0
        """Bytes the kernel has taken."""
        self.sample: Sample | None = None
        """The command here that is timed."""
        self.sample_at = plane.now + plane.sample_every
        """When the next one is chosen."""
        self._candidates = 0
        self._unsent: memoryview | None = None
        self._mask = 0
        self._ahead: list[bytes] = []
        self._buffer = bytearray()
        self._begin = 0
        self._end = 0
        self._missing = 1
        self._state: ReplyState | None = None

    @property
    def attached(self) -> bool:
        return self.sock is not None

    @property
    def outstanding(self) -> int:
        """Entries without a complete reply (a run of pipelined commands counts once)."""
        return len(self.fifo)

    @property
    def queued(self) -> int:
        """Bytes put on it that the kernel has not taken."""
        return self.taken - self.sent + sum(map(len, self.out))

    # -- replies that control wants to see ---------------------------------------------------
    def watches(self, frame: bytes) -> bool:
        return frame.startswith(self.plane.watched)

    def hold_back(self, request: Request, frame: bytes) -> None:
        if request.client is not None:
            request.client.fence()
        self.plane.tell(request.client, self.plane.control.held_back, request, self, frame)

    def hold(self, concern: int) -> Hold:
        """Where replies of this class are kept; a new one if the last was taken."""
        hold = self.open_holds.get(concern)
        if hold is None:
            hold = self.open_holds[concern] = Hold(self, concern)
            self.plane.holds.append(hold)
        hold.last = self.stamp
        return hold

    def is_write(self, command_id: int) -> bool:
        return bool(self.plane.command_flags[command_id] & WRITE)

    def behind(self, request: Request) -> list[tuple[int, int]]:
        """(slot, command id) of what its client has here behind ``request``, whose reply is being looked at."""
        found: list[tuple[int, int]] = []
        for entry in self.fifo:
            if isinstance(entry, Run):
                if entry.batch.client is request.client:
                    found += entry.behind(request)
            elif isinstance(entry, Request) and entry.client is request.client:
                found.append((entry.slot, entry.command_id))
        return found

    def clients(self) -> set[Client | None]:
        """Who waits for replies here."""
        return {
            entry.batch.client if isinstance(entry, Run) else entry.client
            for entry in self.fifo
            if not isinstance(entry, Skip)
        }

    # -- timing ------------------------------------------------------------------------------
    def choose(self, entry: Run | Place, batch: Batch, index: int, traced: bool) -> None:
        """Time the command at ``index`` of a batch, the first of ``entry``, which was just put on the lane.

        Of those put on it until it is flushed each has the same chance, or there would be nothing but the firsts of
        their turns; one of a client that is traced goes before all others, even one that is timed already.  What is
        kept back for its acknowledgment is not chosen: its way back is another.
        """
        sample = self.sample
        if not traced:
            if (sample is not None and sample.traced) or (isinstance(entry, Run) and entry.concern):
                return
            self._candidates += 1
            if sample is not None and random() * self._candidates >= 1:
                return
        self.sample = Sample(entry, batch, index, self, traced)

    def _sample_sent(self) -> None:
        sample = self.sample
        if sample is not None and not sample.handed and 0 < sample.mark <= self.sent:
            sample.handed = monotonic()

    def _sample_replied(self) -> None:
        """The entry that is timed has its first reply."""
        sample = self.sample
        if sample is None:
            return
        self.forget_sample()
        entry, sample.entry = sample.entry, None
        kept = isinstance(entry, Run) and entry.concern
        if sample.batch.replies[sample.index] is None and not kept:
            return  # it goes another way now (MOVED ...)
        sample.replied = self.plane.now
        sample.stamp = self.stamp
        client = sample.batch.client
        if not client.closed and (client.sample is None or sample.traced):
            client.sample = sample

    def forget_sample(self) -> None:
        """Nothing here is timed any more; something else will be, after a while.

        Of no fixed length: where clients ask for two things in turn, it would always be the same one.
        """
        self.sample = None
        self.sample_at = self.plane.now + self.plane.sample_every * 2 * random()

    # -- socket ------------------------------------------------------------------------------
    def attach(self, sock: socket.socket, stamp: Any, pushes: bool) -> None:
        """Give the lane its connected, non-blocking socket; what was parked is sent."""
        self.sock = sock
        self.traffic.connects += 1
        self.since = self.plane.now
        self.fd = sock.fileno()
        self.stamp = stamp
        self.pushes = pushes
        self.held_bytes = 0
        self._buffer = bytearray(RECEIVE)
        self._mask = READABLE
        self.plane.register(self.fd, self._mask, self)
        self.soil()

    def soil(self) -> None:
        """Note that there is something to send."""
        if not self.dirty:
            self.dirty = True
            self.plane.dirty_lanes.append(self)

    def flush(self) -> None:
        """Hand to the kernel what was put on the lane in this turn, in one send."""
        self.dirty = False
        if self.closed:
            return  # its descriptor may be somebody else's by now
        if self.sock is None:
            self.held_bytes = sum(map(len, self.out))
            return
        if self._unsent is not None or not self.out:
            return  # the socket is full: the writable event continues
        out = self.out
        self.out = []
        data = out[0] if len(out) == 1 else b"".join(out)
        self.taken += len(data)
        if self.sample is not None and not self.sample.mark:
            self.sample.mark = self.taken
            self.sample_at = NEVER
            self._candidates = 0
        self._send(data)

    def _send(self, data: bytes | memoryview) -> None:
        assert self.sock is not None
        try:
            count = self.sock.send(data)
        except OSError:
            # Full, or broken. Of a broken connection the replies that came before are still to be read, and reading
            # is what finds its end: a request that was answered is none of unknown outcome.
            count = 0
        self.sent += count
        self.plane.counters.shard_bytes_out += count
        self.traffic.bytes_out += count
        if count < len(data):
            self._unsent = memoryview(data)[count:]
            self._set_mask(READABLE | WRITABLE)
            return
        self._unsent = None
        if self.sample is not None:
            self._sample_sent()
        if self._mask != READABLE:
            self._set_mask(READABLE)

    def _set_mask(self, mask: int) -> None:
        self._mask = mask
        self.plane.epoll.modify(self.fd, mask)

    def on_event(self, mask: int) -> None:
        if mask & (READABLE | ENDED):
            self._receive()
        if mask & WRITABLE and not self.closed:
            if self._unsent is not None:
                self._send(self._unsent)
            if not self.closed and self._unsent is None:
                self.soil()

    def _receive(self) -> None:
        assert self.sock is not None
        try:
            # One buffer for ever: to allocate one this large for each read costs more than the reading.
            count = self.sock.recv_into(self._buffer if not self._end else memoryview(self._buffer)[self._end :])
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(f"connection lost: {error.strerror or error}")
            return
        if not count:
            self.lose("connection closed by the shard")
            return
        self.plane.counters.shard_bytes_in += count
        self.traffic.bytes_in += count
        self._end += count
        self._missing -= count
        if self._missing > 0 and self._end < len(self._buffer):
            return
        try:
            frames, consumed, state = frame_replies(self._buffer, self._state, self._begin, self._end)
        except FramingError as error:
            self._complete(error.frames)
            self._deliver(self._without_pushes(error.frames) if self.pushes else error.frames)
            self.lose(f"not a Redis reply: {error}")
            return
        if self._ahead:
            self._complete(frames)
        self._keep(consumed, state)
        if self.pushes:
            frames = self._without_pushes(frames)
        self._deliver(frames)

    def _keep(self, consumed: int, state: ReplyState | None) -> None:
        """Keep what was received of an unfinished reply, with room behind it for more."""
        self._begin += consumed
        self._state = state
        self._missing = 1
        left = self._end - self._begin
        if state is not None:
            self._missing = state.missing
            if state.position >= SET_ASIDE:
                cut, self._state = state.set_aside(left)
                self._ahead.append(bytes(memoryview(self._buffer)[self._begin : self._begin + cut]))
                self._begin += cut
                left -= cut
        if not left and len(self._buffer) == RECEIVE:
            self._begin = self._end = 0
        elif len(self._buffer) - self._end < RECEIVE // 2 or not left:
            self._make_room(left)

    def _make_room(self, left: int) -> None:
        kept = memoryview(self._buffer)[self._begin : self._end]
        if left > RECEIVE // 2:  # one line, and a line may be of any length
            self._buffer = bytearray(4 * left)
        elif len(self._buffer) > RECEIVE:
            self._buffer = bytearray(RECEIVE)
        memoryview(self._buffer)[:left] = kept  # within one buffer, too: it is moved as if by way of another
        self._begin = 0
        self._end = left

    def _complete(self, frames: list[bytes]) -> None:
        """Put what was set aside in front of the first reply."""
        if frames and self._ahead:
            frames[0] = b"".join([*self._ahead, frames[0]])
            self._ahead = []

    def _without_pushes(self, frames: list[bytes]) -> list[bytes]:
        replies = []
        for frame in frames:
            if frame[0] == PUSH:
                self.plane.tell(None, self.plane.control.pushed, self, frame)
            else:
                replies.append(frame)
        return replies

    def _deliver(self, frames: list[bytes]) -> None:
        fifo = self.fifo
        at = 0
        count = len(frames)
        while at < count:
            if not fifo:
                self.lose("a reply that nobody asked for")
                return
            entry = fifo[0]
            if isinstance(entry, Run):
                run = entry
                at = run.deliver(frames, at, self)
                if self.sample is not None and self.sample.entry is run:
                    self._sample_replied()
                if not self.closed and run.pos == len(run.indexes):
                    fifo.popleft()
            else:
                fifo.popleft()  # first, so that whoever gets the reply finds the lane as it is behind it
                at = entry.deliver(frames, at, self)
                if self.sample is not None and self.sample.entry is entry:
                    self._sample_replied()
            if self.closed:
                return
        if not fifo:
            self.tail = None

    # -- the end -----------------------------------------------------------------------------
    def lose(self, reason: str) -> None:
        """The connection failed: tell control what was under way."""
        if self.closed:
            return
        lost = self.close()
        self.plane.counters.lane_losses += 1
        self.traffic.losses += 1
        self.plane.tell(None, self.plane.control.lane_down, self, lost, reason)

    def close(self) -> list[Lost]:
        """Close the lane for good.  What had no reply is returned, in the order it was sent."""
        if self.closed:
            return []
        self.closed = True
        self.sample = None
        if self.sock is not None:
            self.plane.discard(self.sock)
        lost = self._unanswered()
        self.fifo.clear()
        self.tail = None
        self.out = []
        self._unsent = None
        self._buffer = bytearray()
        self._ahead = []
        self.held_bytes = 0
        return lost

    def _unanswered(self) -> list[Lost]:
        waiting = [pair for entry in self.fifo for pair in entry.waiting(self)]
        queued = self.taken + sum(map(len, self.out))
        start = queued - sum(size for _, size in waiting)
        lost = []
        for request, size in waiting:
            end = start + size
            handed = Handed.WHOLLY if end <= self.sent else Handed.PARTLY if start < self.sent else Handed.NEVER
            if request is not None:
                lost.append(Lost(request, handed))
            start = end
        return lost
