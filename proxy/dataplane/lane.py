"""One lane: a pipelined backend connection, or the queue that stands for it while there is none.

A lane is made unattached: what is put on it is parked.  ``attach`` gives it its one socket, and
with that its one incarnation; once lost it is never used again.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from proxy.codec import FramingError, ReplyState, frame_replies
from proxy.dataplane.contract import WRITE, Handed, Lost
from proxy.dataplane.requests import Entry, Request, Run, Skip

if TYPE_CHECKING:
    from proxy.dataplane.client import Client
    from proxy.dataplane.plane import DataPlane

RECEIVE = 256 * 1024  # bytes; a lane serves many clients, so one call may bring many replies
SET_ASIDE = 64 * 1024  # bytes scanned of an unfinished reply above which they are not copied with every read
PUSH = 0x3E  # b">"


class Lane:
    """See the module.  ``owner`` and ``stamp`` are control's."""

    __slots__ = (
        "_ahead",
        "_buffered",
        "_chunks",
        "_mask",
        "_need",
        "_state",
        "_unsent",
        "closed",
        "dirty",
        "fd",
        "fifo",
        "held_bytes",
        "out",
        "owner",
        "plane",
        "pushes",
        "sent",
        "shard",
        "since",
        "sock",
        "stamp",
        "tail",
        "taken",
    )

    def __init__(self, plane: DataPlane, shard: int, owner: Any = None) -> None:
        self.plane = plane
        self.shard = shard
        """The shard's index: the key under which a session's writes are remembered."""
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
        self.taken = 0
        """Bytes put on the lane so far, as of the last flush."""
        self.sent = 0
        """Bytes the kernel has taken."""
        self._unsent: memoryview | None = None
        self._mask = 0
        self._ahead: list[bytes] = []
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._need = 1
        self._state: ReplyState | None = None

    @property
    def attached(self) -> bool:
        return self.sock is not None

    @property
    def outstanding(self) -> int:
        """Entries without a complete reply (a run of pipelined commands counts once)."""
        return len(self.fifo)

    # -- replies that control wants to see ---------------------------------------------------
    def watches(self, frame: bytes) -> bool:
        return frame.startswith(self.plane.watched)

    def hold_back(self, request: Request, frame: bytes) -> None:
        if request.client is not None:
            request.client.fence()
        self.plane.tell(request.client, self.plane.control.held_back, request, self, frame)

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

    # -- socket ------------------------------------------------------------------------------
    def attach(self, sock: socket.socket, stamp: Any, pushes: bool) -> None:
        """Give the lane its connected, non-blocking socket; what was parked is sent."""
        self.sock = sock
        self.since = self.plane.now
        self.fd = sock.fileno()
        self.stamp = stamp
        self.pushes = pushes
        self.held_bytes = 0
        self._mask = select.EPOLLIN
        self.plane.register(self.fd, self._mask, self)
        self.plane.soil(self)

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
        if count < len(data):
            self._unsent = memoryview(data)[count:]
            self._set_mask(select.EPOLLIN | select.EPOLLOUT)
            return
        self._unsent = None
        if self._mask != select.EPOLLIN:
            self._set_mask(select.EPOLLIN)

    def _set_mask(self, mask: int) -> None:
        self._mask = mask
        self.plane.epoll.modify(self.fd, mask)

    def on_event(self, mask: int) -> None:
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._receive()
        if mask & select.EPOLLOUT and not self.closed:
            if self._unsent is not None:
                self._send(self._unsent)
            if not self.closed and self._unsent is None:
                self.plane.soil(self)

    def _receive(self) -> None:
        assert self.sock is not None
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(f"connection lost: {error.strerror or error}")
            return
        if not data:
            self.lose("connection closed by the shard")
            return
        self.plane.counters.shard_bytes_in += len(data)
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered < self._need:
            return
        buffer = data if len(self._chunks) == 1 else b"".join(self._chunks)
        try:
            frames, consumed, state = frame_replies(buffer, self._state)
        except FramingError as error:
            self._complete(error.frames)
            self._deliver(self._without_pushes(error.frames) if self.pushes else error.frames)
            self.lose(f"not a Redis reply: {error}")
            return
        self._complete(frames)
        rest = buffer[consumed:]
        if state is not None and state.position >= SET_ASIDE:
            cut, state = state.set_aside(len(rest))
            self._ahead.append(rest[:cut])
            rest = rest[cut:]
        self._chunks = [rest] if rest else []
        self._buffered = len(rest)
        self._state = state
        self._need = len(rest) + (state.missing if state is not None else 1)
        if self.pushes:
            frames = self._without_pushes(frames)
        self._deliver(frames)

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
            if type(entry) is not Run:
                fifo.popleft()  # first, so that whoever gets the reply finds the lane as it is behind it
            at = entry.deliver(frames, at, self)
            if self.closed:
                return
            if type(entry) is Run and not entry.left:
                fifo.popleft()
        if not fifo:
            self.tail = None

    # -- the end -----------------------------------------------------------------------------
    def lose(self, reason: str) -> None:
        """The connection failed: tell control what was under way."""
        if self.closed:
            return
        lost = self.close()
        self.plane.counters.lane_losses += 1
        self.plane.tell(None, self.plane.control.lane_down, self, lost, reason)

    def close(self) -> list[Lost]:
        """Close the lane for good.  What had no reply is returned, in the order it was sent."""
        if self.closed:
            return []
        self.closed = True
        if self.sock is not None:
            self.plane.discard(self.sock)
        lost = self._unanswered()
        self.fifo.clear()
        self.tail = None
        self.out = []
        self._unsent = None
        self._chunks = []
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
