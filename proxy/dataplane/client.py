"""One client connection: its bytes in, its commands' places, its replies out, in order."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.codec import BROKEN, CONTROL, LARGE, UNKNOWN, ParseTable, RequestState, parse_requests
from proxy.codec.reply import error
from proxy.dataplane.base import Party
from proxy.dataplane.contract import BARRIER, WRITE, Mode
from proxy.dataplane.requests import SENT, Batch, Joined, Place, Run, Sample

if TYPE_CHECKING:
    from proxy.dataplane.lane import Lane
    from proxy.dataplane.plane import DataPlane

RECEIVE = 64 * 1024  # bytes per read; an unfinished large value is read in larger pieces
RECEIVE_LARGE = 1 << 20
SET_ASIDE = 64 * 1024  # bytes scanned of an unfinished request above which they are not copied with every read
READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HUNG_UP = select.EPOLLRDHUP
ENDED = select.EPOLLHUP | select.EPOLLERR
PLAIN = Mode.PLAIN
UNREAD = 64 * 1024  # bytes kept of a client that stands behind a barrier before it is not read any more
SLOW = 1 << 20  # bytes of replies waiting for a client above which it is not read


def _address(of: Callable[[], Any]) -> str:
    try:
        name = of()
    except OSError:
        return ""  # it is gone already
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)


class Client(Party):
    """See the module.  ``session`` is control's; everything else is the data plane's own."""

    __slots__ = (
        "_ahead",
        "_ahead_bytes",
        "_barrier",
        "_buffered",
        "_chunks",
        "_draining",
        "_eof",
        "_fenced",
        "_gone",
        "_keeping",
        "_late",
        "_late_bytes",
        "_mask",
        "_need",
        "_over_since",
        "_state",
        "_stopped",
        "_unsent",
        "batches",
        "closed",
        "concern",
        "fd",
        "id",
        "lanes",
        "last_read",
        "mode",
        "out",
        "out_bytes",
        "pending_bytes",
        "sample",
        "session",
        "sock",
        "subscriber",
        "table",
        "traced",
        "writes",
    )

    def __init__(self, plane: DataPlane, sock: socket.socket, client_id: int) -> None:
        super().__init__(plane)
        self.sock = sock
        self.fd = sock.fileno()
        self.id = client_id
        self.session: Any = None
        self.mode = PLAIN
        self.lanes: list[Lane] = plane.no_lanes
        """By shard index; the last one takes what no shard serves."""
        self.table: ParseTable | None = None
        """None: the data plane's own."""
        self.concern = 0
        """Class of write concern of what it writes; 0: none, -1: it depends on the keys."""
        self.writes: dict[int, list[Any]] = {}
        """Shard index -> [stamp of the first write answered, stamp of the last]."""
        self.traced = False
        """Each of its commands is timed, as far as it goes on one lane."""
        self.sample: Sample | None = None
        """A timed command whose reply is on its way to the client."""
        self.closed = False
        self.subscriber = False
        """Held to the limits of those who are sent what they did not ask for, one by one."""
        self.batches: deque[Batch] = deque()
        self.pending_bytes = 0
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.last_read = plane.now
        self._unsent: memoryview | None = None
        self._over_since = 0.0
        self._keeping = 0
        self._late: list[bytes] | None = None
        self._late_bytes = 0
        self._barrier: Place | None = None
        self._stopped = False
        self._fenced = False
        self._eof = False
        self._gone = False
        self._draining = False
        self._ahead: list[bytes] = []
        self._ahead_bytes = 0
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._need = 1
        self._state: RequestState | None = None
        self._mask = READABLE
        plane.register(self.fd, self._mask, self)

    def addresses(self) -> tuple[str, str]:
        """(of the client, of the proxy's end), as ``host:port``."""
        return _address(self.sock.getpeername), _address(self.sock.getsockname)

    @property
    def stopped(self) -> bool:
        """It stands behind a barrier that control has not resumed."""
        return self._stopped

    @property
    def buffered(self) -> int:
        """Bytes of requests that are read and not yet parsed."""
        return self._buffered + self._ahead_bytes

    def kept_replies(self) -> int:
        """Bytes of replies that are in and cannot be sent yet: before an earlier one, or unacknowledged."""
        waiting = (frame for batch in self.batches for frame in batch.replies if frame is not None)
        return self.kept_bytes + sum(map(len, waiting))

    # -- what is asked of it by the data plane ------------------------------------------------
    def on_event(self, mask: int) -> None:
        if mask & READABLE:
            self._receive()
        elif mask & ENDED:
            self.close()
        elif mask & HUNG_UP:
            self._hung_up()
        if mask & WRITABLE and not self.closed:
            self._send_rest()

    def wrote(self, lane: Lane) -> None:
        """A write of this client was answered on ``lane``."""
        stamps = self.writes.get(lane.shard)
        if stamps is None:
            self.writes[lane.shard] = [lane.stamp, lane.stamp]
        else:
            stamps[1] = lane.stamp

    def concern_of(self, raw: bytes) -> int:
        """The class of write concern of a write."""
        return self.concern if self.concern >= 0 else self.plane.concern_of(self, raw)

    def fence(self) -> None:
        """Nothing more of this client is dispatched until all it sent so far is answered."""
        if self.pending:
            self._fenced = True

    # -- in ------------------------------------------------------------------------------------
    def _receive(self) -> None:
        try:
            data = self.sock.recv(RECEIVE if self._need <= RECEIVE and self._buffered <= RECEIVE else RECEIVE_LARGE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._end_of_input()
            return
        plane = self.plane
        plane.counters.bytes_in += len(data)
        self.last_read = plane.now
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered >= self._need:
            self.process()
        if self._ahead_bytes + self._need > plane.max_query and not self.closed:
            self._refuse("closing a client whose request exceeds the query limit")
        if not self.closed:
            self.update_interest()

    def process(self) -> None:
        """Parse and dispatch what has arrived, as far as barriers, fences and bounds allow."""
        while self._chunks and not (self._stopped or self._fenced or self._draining or self.closed):
            if self._buffered < self._need or self._full():
                return
            buffer = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            commands, consumed, state = parse_requests(buffer, self.table or self.plane.table, self._state)
            rest = buffer[consumed:] if consumed else buffer
            if self._ahead and commands:
                consumed += self._complete(commands)
            if state is not None and state.position >= SET_ASIDE:
                cut, state = state.set_aside()
                self._ahead.append(rest[:cut])
                self._ahead_bytes += cut
                rest = rest[cut:]
            self._chunks = [rest] if rest else []
            self._buffered = len(rest)
            self._state = state
            self._need = len(rest) + state.missing if state is not None else 1
            if not commands:
                return
            self.pending_bytes += consumed
            self.plane.pending_bytes += consumed
            self._dispatch(commands)

    def _complete(self, commands: list[tuple[int, int, bytes]]) -> int:
        """Put what was set aside in front of the first command; its size."""
        slot, command_id, raw = commands[0]
        if slot != BROKEN:
            commands[0] = slot, command_id, b"".join([*self._ahead, raw])
        size = self._ahead_bytes
        self._ahead = []
        self._ahead_bytes = 0
        return size

    def read_anew(self) -> None:
        """Commands are others than they were: what has arrived of an unfinished request is looked at from its start."""
        if self._state is None:
            return
        self._chunks[:0] = self._ahead
        self._buffered += self._ahead_bytes
        self._need += self._ahead_bytes
        self._ahead = []
        self._ahead_bytes = 0
        self._state = None

    def advance(self) -> None:
        """Go on with what arrived while the client was stopped, fenced or full."""
        if self.closed:
            return
        self.process()
        if self.closed:
            return
        waits = self.pending or self.dirty or self._stopped or self._unsent is not None  # dirty: replies to be sent yet
        if self._eof and not waits and self._buffered < self._need:
            self.close()
        else:
            self.update_interest()

    def _full(self) -> bool:
        plane = self.plane
        if self.pending_bytes and plane.pending_bytes >= plane.max_total:
            return True
        kept = self.pending_bytes + self.kept_bytes
        return self.pending >= plane.max_commands or kept >= plane.max_bytes or self.out_bytes >= SLOW

    def _dispatch(self, commands: list[tuple[int, int, bytes]]) -> None:
        plane = self.plane
        batch = Batch(self, commands, plane.now)
        self.batches.append(batch)
        count = len(commands)
        self.pending += count
        plane.counters.commands += count
        if self.mode is not PLAIN:
            for index, (slot, _, _) in enumerate(commands):
                self._hand_over(batch, index, slot)
                if self.closed:
                    return
            return
        self._route(batch)

    def _route(self, batch: Batch) -> None:
        """Put the plain commands of a batch on their lanes; split what is to be split, hand over the rest."""
        plane = self.plane
        shard_of_slot = plane.shard_of_slot
        flags = plane.command_flags
        lanes = self.lanes
        for index, (slot, command_id, raw) in enumerate(batch.commands):
            if slot < 0:
                if slot == CONTROL and command_id in plane.splitters and self._split(batch, index):
                    continue
                self._hand_over(batch, index, slot)
                if self.mode is not PLAIN or self.closed:
                    return  # only a barrier changes the mode, and a barrier is a batch's last command
                continue
            lane = lanes[shard_of_slot[slot]]
            write = bool(flags[command_id] & WRITE)
            concern = self.concern_of(raw) if write and self.concern else 0
            run = lane.tail
            if run is None or run.batch is not batch or run.concern != concern:
                run = lane.tail = Run(batch, concern)
                lane.fifo.append(run)
                if not lane.dirty:
                    lane.soil()
                if plane.now >= lane.sample_at or self.traced:
                    lane.choose(run, batch, index, self.traced)
            if write:
                run.write = True
            run.indexes.append(index)
            lane.out.append(raw)

    def _split(self, batch: Batch, index: int) -> bool:
        """Send a multi-key command as parts by slot; False: that is for control to do."""
        _, command_id, raw = batch.commands[index]
        taken = self.plane.splitters[command_id](raw)
        if taken is None:
            return False
        self.plane.counters.splits += 1
        self.plane.split_parts.add(len(taken[0]))
        self._route(Joined(Place(batch, index, False), taken))
        return True

    def _hand_over(self, batch: Batch, index: int, slot: int) -> None:
        """Give one command to control: at once, or at its turn if it is a barrier."""
        command_id = batch.commands[index][1]
        if slot == BROKEN:
            batch.fill(index, error(batch.commands[index][2]), UNKNOWN)
            self.plane.counters.protocol_errors += 1
            self._draining = True
            return
        flags = self.plane.command_flags[command_id]
        place = Place(batch, index, bool(flags & WRITE))
        if slot != LARGE and not (flags & BARRIER):
            self.plane.control.command(place)
            return
        place.barrier = True
        self._stopped = True
        self._barrier = place
        self._try_barrier()

    def _try_barrier(self) -> None:
        """A barrier's turn comes when every earlier command of the client is answered."""
        place = self._barrier
        if place is None or self.pending != 1:
            return
        self._barrier = None
        self.plane.control.command(place)
        if (self._eof or self._gone) and self._stopped and not self.closed:
            self.plane.control.half_closed(self)

    def resume(self, mode: Mode) -> None:
        """Control is done with the barrier: go on reading, in ``mode``."""
        self.mode = mode
        self._stopped = False
        self.plane.ready.append(self)

    # -- out -----------------------------------------------------------------------------------
    def settle(self) -> None:
        """Pass on, in order, the replies that are in; let a barrier or a fence go when its turn came."""
        self.dirty = False
        if self.closed:
            return
        self._collect()
        if self.out and self._unsent is None:
            out = self.out
            self.out = []
            self._send(out[0] if len(out) == 1 else b"".join(out))
            if self.closed:
                return
        if self.sample is not None and self._unsent is None:
            self._sample_relayed(self.sample)
        if self.pending == 0:
            self.plane.pending_bytes -= self.pending_bytes
            self.pending_bytes = 0
            self._fenced = False
            if self._draining:
                self._finish()
                return
        if self._barrier is not None:
            self._try_barrier()
        if (self._chunks or self._eof) and not self._stopped:
            self.plane.ready.append(self)
        elif not self.closed:
            self.update_interest()

    def _collect(self) -> None:
        batches = self.batches
        out = self.out
        before = len(out)
        while batches:
            batch = batches[0]
            replies = batch.replies
            if batch.missing == 0:
                out.extend(islice(replies, batch.sent, None) if batch.sent else replies)  # type: ignore[arg-type]
                batches.popleft()
                continue
            at = batch.sent
            while (frame := replies[at]) is not None:
                out.append(frame)
                replies[at] = SENT
                at += 1
            batch.sent = at
            break
        if self._unsent is not None:
            self.out_bytes += sum(map(len, islice(out, before, None)))
            self.bound_output()

    def _sample_relayed(self, sample: Sample) -> None:
        batch = sample.place_batch
        if batch.sent <= sample.place_index and batch in self.batches:
            return  # it waits for an earlier reply
        self.sample = None
        sample.relayed = monotonic()
        self.plane.samples.append(sample)

    def _send(self, data: bytes | memoryview) -> None:
        try:
            count = self.sock.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self.close()
            return
        self.plane.counters.bytes_out += count
        if count < len(data):
            self._unsent = memoryview(data)[count:]
            self.out_bytes = len(data) - count + sum(map(len, self.out))
            if not self.bound_output():
                return
        else:
            self._unsent = None
            self.out_bytes = 0
            self._over_since = 0.0
        self.update_interest()

    def _send_rest(self) -> None:
        if self._unsent is not None:
            self._send(self._unsent)
        if not self.closed and self._unsent is None and not self.dirty:
            self.dirty = True
            self.plane.dirty_clients.append(self)

    # -- what it did not ask for ----------------------------------------------------------------
    def push(self, frame: bytes) -> None:
        """Send a frame out of band: behind the replies that are in, whatever is still to come."""
        if self.closed or self._draining:
            return
        if self._keeping:
            self._late = self._late or []
            self._late.append(frame)
            self._late_bytes += len(frame)
            if self._late_bytes > self.plane.max_pushed:
                self._cut()
            return
        if self.batches:
            self._collect()
            if self.closed:
                return
        self.plane.counters.pushes += 1
        self.out.append(frame)
        if self._unsent is not None:
            self.out_bytes += len(frame)
            self.bound_output()
        elif not self.dirty:
            self.dirty = True
            self.plane.dirty_clients.append(self)

    def push_behind(self, frame: bytes) -> None:
        """Send a frame out of band behind the replies to all that is under way, whichever way each of them comes.

        Of a command whose turn comes only when all those are in (a barrier) it goes before the reply.
        """
        if not self.batches or self.closed or self._draining:
            self.push(frame)
            return
        note = Batch(self, [], self.plane.now)
        note.replies.append(frame)
        place = self._barrier
        if place is None:
            self.batches.append(note)
        else:
            batch = place.batch
            if len(batch.commands) > 1:  # the barrier is its last one: it gets a batch of its own
                alone = Batch(self, [batch.commands.pop()], batch.born)
                batch.replies.pop()
                batch.missing -= 1
                place.batch = alone
                place.index = 0
                self.batches.append(alone)
            self.batches.insert(len(self.batches) - 1, note)
        self.plane.counters.pushes += 1
        if not self.dirty:
            self.dirty = True
            self.plane.dirty_clients.append(self)

    def keep_pushes(self) -> None:
        """What is pushed from now on comes behind the reply to a command under way: until ``let_pushes``."""
        self._keeping += 1

    def let_pushes(self) -> None:
        """The reply is in its place: once for each ``keep_pushes``."""
        self._keeping -= 1
        if self._keeping == 0 and self._late:
            late, self._late = self._late, None
            self._late_bytes = 0
            for frame in late:
                self.push(frame)

    def bound_output(self) -> bool:
        """Close it if more waits for it than may, or has for too long (networking.c: checkClientOutputBufferLimits)."""
        plane = self.plane
        size = self.out_bytes
        if size > plane.max_output:
            self._refuse("closing a client that does not read its replies")
            return False
        if not self.subscriber or size <= plane.soft_pushed:
            self._over_since = 0.0
            return True
        if self._over_since == 0.0:
            self._over_since = plane.now
        if size > plane.max_pushed or plane.now - self._over_since > plane.soft_seconds:
            self._cut()
            return False
        return True

    def _cut(self) -> None:
        self.plane.counters.subscribers_cut += 1
        self._refuse("closing a subscriber that does not read its messages")

    # -- interest and the end -------------------------------------------------------------------
    def update_interest(self) -> None:
        if self._mask == READABLE and not (self._chunks or self._eof or self._draining) and self._unsent is None:
            return  # the usual case: nothing is left over, nothing to change
        reading = not (
            self._eof
            or self._draining
            or ((self._stopped or self._fenced) and self._buffered >= UNREAD)
            or (self._buffered >= self._need and self._full())
        )
        mask = READABLE if reading else 0 if self._eof or self._gone else HUNG_UP
        if self._unsent is not None:
            mask |= WRITABLE
        if mask != self._mask:
            self._mask = mask
            self.plane.epoll.modify(self.fd, mask)

    def _hung_up(self) -> None:
        """It sends nothing more, but what it sent is not all read yet: that still runs."""
        self._gone = True
        if self._stopped and self._barrier is None:
            self.plane.control.half_closed(self)
        if not self.closed:
            self.update_interest()

    def _end_of_input(self) -> None:
        """EOF: a half-closed client still gets the replies to what it sent."""
        self._eof = True
        # dirty: replies that came in this very turn are yet to be sent; the rest may run in this turn yet.
        rest = self.pending or self.dirty or self._unsent is not None or self._buffered >= self._need
        if not (rest or self._stopped):
            self.close()
            return
        if self._stopped and self._barrier is None:
            self.plane.control.half_closed(self)
        if not self.closed:
            self.update_interest()

    def end_input(self) -> None:
        """Read nothing more than what has come: that is answered, then the client is closed."""
        if self._eof or self._draining or self.closed:
            return
        self._receive()
        if not (self._eof or self.closed):
            self._end_of_input()

    def finish(self) -> None:
        """Close once what is under way was answered and sent; nothing more is read."""
        self._draining = True
        self._chunks = []
        self._ahead = []
        self._buffered = 0
        if not self.dirty:
            self.dirty = True
            self.plane.dirty_clients.append(self)

    def _finish(self) -> None:
        if self._unsent is None:
            self.close()
        else:
            self._draining = True
            self.update_interest()

    def _refuse(self, why: str) -> None:
        self.plane.refused(self, why)
        self.close()

    def close(self) -> None:
        """Close now.  Replies that are still to come are dropped."""
        if self.closed:
            return
        self.closed = True
        plane = self.plane
        if plane.winding_up:
            plane.linger(self.sock)
        else:
            plane.discard(self.sock)
        self.batches.clear()
        plane.pending_bytes -= self.pending_bytes
        self.pending_bytes = 0
        self.out = []
        self._late = None
        self._chunks = []
        self._ahead = []
        self._unsent = None
        self._barrier = None
        del plane.clients[self.id]
        plane.tell(None, plane.control.closed, self)


def push_all(clients: list[Client], frame: bytes) -> None:
    """Push one frame to many.  Closing one of them may change what the list was made of, but not the list."""
    for client in clients:
        client.push(frame)
