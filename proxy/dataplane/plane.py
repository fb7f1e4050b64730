"""The loop: one epoll over every client and lane, turned by one trio task.

Some facts this file relies on:

* An epoll descriptor is itself readable when one of its members has an event, so trio can await it.
* Events are level-triggered: what a turn leaves unread comes again in the next one.
* A descriptor that was closed is gone from the epoll, but an event read in the same poll for it may
  still follow.  So handlers are looked up by number each time, and sockets are closed at the end
  of the turn: within one poll no number is used twice.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from proxy.codec import ParseTable
from proxy.dataplane.base import NO_SHARD, Handler, Plane, Traffic
from proxy.dataplane.client import Client, push_all
from proxy.dataplane.contract import Control, Limits, Lost, Mode
from proxy.dataplane.lane import Lane
from proxy.dataplane.requests import Hold, Place, Request, Run, Sample, Skip, Splitter, Submitted

ASKING = b"*1\r\n$6\r\nASKING\r\n"
EVENTS = 4096  # taken from the kernel in one turn; it hands them out fairly, the longest ready first
ACCEPTS = 64  # connections taken in one go, so that a storm of them leaves the others their turn
TOO_MANY = b"-ERR max number of clients reached\r\n"
MAX_DROPPED = 1 << 16  # bytes in one go
MAX_KEEPALIVE = 32767  # seconds; the kernel refuses more (tcp.h: MAX_TCP_KEEPIDLE)

DEFAULT_LIMITS = Limits()


class Listener(Handler):
    """Accepts clients on one listening socket."""

    def __init__(self, plane: DataPlane, sock: socket.socket) -> None:
        self.plane = plane
        self.sock = sock
        self.fd = sock.fileno()
        if sock.family != socket.AF_UNIX:
            self._set_options()

    def _set_options(self) -> None:
        """Accepted sockets inherit these (tcp(7)): set once here, they cost nothing for each client."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.plane.keepalive:
            idle = min(self.plane.keepalive, MAX_KEEPALIVE)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 3))

    def on_event(self, mask: int) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.plane.stop_accepting()
                    self.plane.control.accept_failed(error)
                    return
                continue  # the client was gone before it was accepted (accept(2): ECONNABORTED and kin)
            self.plane.admit(sock)


class DataPlane(Plane):
    """See the package.  Made with its control, then turned by :meth:`run_once`.

    Every method is to be called from the loop's thread.  Calls from outside a turn take effect at
    once; several can be gathered with :meth:`turn`.
    """

    def __init__(
        self,
        control: Control,
        *,
        limits: Limits = DEFAULT_LIMITS,
        watched: tuple[bytes, ...] = (),
        keepalive: int = 0,
        client_ids: Iterator[int] | None = None,
    ) -> None:
        super().__init__(control, limits, watched, time.monotonic())
        self.keepalive = keepalive
        self.clients: dict[int, Client] = {}
        self.listeners: list[Listener] = []
        self.no_lanes = [Lane(self, NO_SHARD)]
        self._handlers: dict[int, Handler] = {}
        self.winding_up = False
        """Nobody is accepted any more, and clients that are closed linger."""
        self._lingering: list[socket.socket] = []
        self._closing: list[socket.socket] = []
        self._ids = client_ids if client_ids is not None else iter(range(1, 1 << 53))
        self._turning = False

    # -- the loop --------------------------------------------------------------------------------
    def fileno(self) -> int:
        """The epoll's descriptor: readable when there is something to do."""
        return self.epoll.fileno()

    def run_once(self) -> bool:
        """Handle everything that is ready, without blocking.  False if nothing was."""
        events = self.epoll.poll(0, EVENTS)
        self.now = time.monotonic()
        self._turning = True
        handlers = self._handlers
        try:
            for fd, mask in events:
                handler = handlers.get(fd)
                if handler is None:
                    continue
                try:
                    handler.on_event(mask)
                except Exception as error:
                    self._contain(handler, error)
            self._settle()
        finally:
            self._turning = False
        return bool(events)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Gather several calls from outside a turn: one send per client and lane at the end."""
        if self._turning:
            yield
            return
        self.now = time.monotonic()
        self._turning = True
        try:
            try:
                yield
            finally:
                self._settle()  # also when a call raised: what was put on lanes before it has to go out
        finally:
            self._turning = False

    def _settle(self) -> None:
        while self.ready or self.dirty_lanes or self.dirty_clients or self.errands:
            ready, self.ready = self.ready, []
            for client in ready:
                try:
                    client.advance()
                except Exception as error:
                    self._contain(client, error)
            errands, self.errands = self.errands, []
            for errand in errands:
                self.tell(None, errand)
            lanes, self.dirty_lanes = self.dirty_lanes, []
            for lane in lanes:
                try:
                    lane.flush()
                except Exception as error:
                    self._contain(lane, error)
                if lane.sock is None and self._holds_too_much(lane):
                    self.tell(None, self.control.held_too_much, lane)
            clients, self.dirty_clients = self.dirty_clients, []
            for client in clients:
                try:
                    client.settle()
                except Exception as error:
                    self._contain(client, error)
        while self._closing:
            self._closing.pop().close()

    def _holds_too_much(self, lane: Lane) -> bool:
        return lane.held_bytes > self.limits.held_bytes or len(lane.out) > self.limits.held_commands

    def _contain(self, owner: Handler, error: Exception) -> None:
        """A defect in the handling of one connection must not touch the others."""
        self.control.failed(type(owner).__name__, error)
        if isinstance(owner, Client):
            owner.close()
        elif isinstance(owner, Lane):
            owner.lose("internal error")

    def tell(self, client: Client | None, work: Callable[..., None], *args: Any) -> None:
        """Call control on behalf of a client: its defect costs that client alone, not the lane it came by."""
        try:
            work(*args)
        except Exception as error:
            self.control.failed("Control", error)
            if client is not None:
                client.close()

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self.epoll.register(fd, mask)

    def discard(self, sock: socket.socket) -> None:
        """Forget a registered socket; it is closed at the end of the turn."""
        fd = sock.fileno()
        del self._handlers[fd]
        self.epoll.unregister(fd)
        if self._turning:
            self._closing.append(sock)
        else:
            sock.close()

    # -- listening ---------------------------------------------------------------------------------
    def listen(self, sock: socket.socket) -> None:
        """Accept clients on a bound, listening, non-blocking socket."""
        listener = Listener(self, sock)
        self.listeners.append(listener)
        self.register(listener.fd, select.EPOLLIN, listener)

    def stop_accepting(self) -> None:
        for listener in self.listeners:
            if self._handlers.pop(listener.fd, None) is not None:
                self.epoll.unregister(listener.fd)

    def resume_accepting(self) -> None:
        for listener in self.listeners:
            if listener.fd not in self._handlers:
                self.register(listener.fd, select.EPOLLIN, listener)

    def wind_up(self) -> None:
        """Stop listening.  Who has connected by now is let in; clients that are closed from now on linger."""
        with self.turn():
            for listener in self.listeners:
                if self._handlers.pop(listener.fd, None) is not None:
                    self.epoll.unregister(listener.fd)
                    listener.on_event(0)
                listener.sock.close()
        self.listeners.clear()
        self.winding_up = True

    def linger(self, sock: socket.socket) -> None:
        """Forget a client's socket, but keep it open until the client has closed its end (``let_linger``).

        Closed with something unread, it would be reset, and what was sent last might never be read (RFC 1122 4.2.2.13).
        """
        fd = sock.fileno()
        del self._handlers[fd]
        self.epoll.unregister(fd)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        self._lingering.append(sock)

    def let_linger(self) -> int:
        """Close the lingering sockets whose clients have closed theirs; how many are left."""
        self._lingering = [sock for sock in self._lingering if not _at_end(sock)]
        return len(self._lingering)

    def admit(self, sock: socket.socket) -> None:
        """Take in an accepted client socket, or turn it away as Redis does at ``maxclients``."""
        sock.setblocking(False)
        if len(self.clients) >= self.limits.maxclients:
            self.counters.refused += 1
            with suppress(OSError):
                sock.send(TOO_MANY)
            sock.close()
            return
        client = Client(self, sock, next(self._ids))
        self.clients[client.id] = client
        self.counters.accepted += 1
        self.tell(client, self.control.opened, client)

    # -- control -> data plane -----------------------------------------------------------------------
    def set_commands(self, table: ParseTable, flags: bytes, splitters: Mapping[int, Splitter] | None = None) -> None:
        """Swap the parse table, the flags of its command ids (bits of ``contract``) and, by command id, the
        functions that take multi-key commands apart."""
        self.table = table
        self.command_flags = flags
        self.splitters = splitters or {}
        for client in self.clients.values():
            client.read_anew()

    def set_routes(self, shard_of_slot: list[int]) -> None:
        """Swap slot -> shard index.  Clients with commands under way are fenced: their order stays whole."""
        self.shard_of_slot = shard_of_slot
        self.fence_all()

    def fence_all(self) -> None:
        """Each client's next command waits until all it sent before is answered."""
        for client in self.clients.values():
            client.fence()

    def set_lanes(self, client: Client, lanes: list[Lane], concern: int = 0) -> None:
        """Give a client the lanes of its identity: by shard index, the last for slots without a shard.

        ``concern``: the class of what it writes; 0: none, -1: ``concern_of`` tells for each write.
        """
        client.lanes = lanes
        client.concern = concern

    def take_hold(self, hold: Hold) -> None:
        """Nothing more is added to one of ``holds``: control will release it (``release``)."""
        if hold.lane is not None:
            del hold.lane.open_holds[hold.concern]
            hold.lane = None
        self.holds.remove(hold)

    def release(self, hold: Hold, failure: bytes | None = None) -> None:
        """Pass on what was kept back; ``failure``, an error frame, instead of every reply that claims success."""
        with self.turn():
            hold.release(failure)

    def take_samples(self) -> list[Sample]:
        """The timed commands whose replies were sent since the last call."""
        samples, self.samples = self.samples, []
        return samples

    def traffic_of(self, shard: int) -> Traffic:
        """What went over the lanes of a shard."""
        return self.traffic.setdefault(shard, Traffic())

    def new_lane(self, shard: int, owner: Any = None) -> Lane:
        """A lane without a connection: what is put on it is parked."""
        return Lane(self, shard, owner)

    def attach(
        self, lane: Lane, sock: socket.socket, stamp: Any, pushes: bool = False, greeting: Sequence[bytes] = ()
    ) -> None:
        """Give a lane its connection (non-blocking, handshake done).

        ``greeting``: requests that come before what is parked on it, whose replies nobody wants to see.
        """
        with self.turn():
            if greeting:
                lane.fifo.extendleft(Skip(len(raw), self.now) for raw in reversed(greeting))
                lane.out[:0] = greeting
            lane.attach(sock, stamp, pushes)

    def close_lane(self, lane: Lane) -> list[Lost]:
        """Close a lane for good; its unanswered requests, in the order they were sent."""
        return lane.close()

    def reclaim(self, lane: Lane) -> list[Request]:
        """Take everything off a lane that was never connected, in order; the lane stays usable."""
        assert lane.sock is None
        requests = [request for entry in lane.fifo for request, _ in entry.waiting(lane) if request is not None]
        lane.fifo.clear()
        lane.tail = None
        lane.out = []
        lane.held_bytes = 0
        lane.forget_sample()
        return requests

    def shed(self, lane: Lane) -> list[Request]:
        """Take the newest off a lane that was never connected until the rest is within the limits; in order.

        Only what is taken is touched: this happens again and again while more comes in than is held.
        """
        assert lane.sock is None
        lane.forget_sample()
        requests: list[Request] = []
        while lane.fifo and self._holds_too_much(lane):
            entry = lane.fifo[-1]
            if isinstance(entry, Run):
                requests.append(entry.request(entry.indexes.pop(), lane))
            elif isinstance(entry, Request):
                requests.append(entry)
            if not isinstance(entry, Run) or not entry.left:
                lane.fifo.pop()
                lane.tail = None
            lane.held_bytes -= len(lane.out.pop())
        requests.reverse()
        return requests

    def submit(
        self,
        lane: Lane,
        raw: bytes,
        on_reply: Callable[[bytes], None],
        *,
        client: Client | None = None,
        slot: int = -1,
        command_id: int = 0,
        write: bool = False,
        pinned: bool = False,
        concern: int = -1,
        on_kept: Callable[[], None] | None = None,
    ) -> Submitted:
        """Send a command of control's own; ``on_reply`` gets its raw reply (in a turn).

        With ``client`` and ``write`` the reply counts as a write of that client.  ``pinned``: meant for this
        lane alone, never sent again elsewhere.  ``concern``: the class of the write; -1 is that of
        the client or the keys; ``on_kept`` is called when its reply is in and kept back, which leaves the lane free.
        Raises ``RuntimeError`` for a closed lane, which would never answer.
        """
        if lane.closed:
            raise RuntimeError("the lane is closed: submit on the one that took its place")
        with self.turn():
            request = Submitted(client, slot, command_id, raw, self.now, write, on_reply, pinned, concern, on_kept)
            self.resubmit(request, lane)
        return request

    def resubmit(self, request: Request, lane: Lane, asking: bool = False) -> None:
        """Put a request on a lane; its place in its client's order is kept."""
        with self.turn():
            if asking:
                lane.fifo.append(Skip(len(ASKING), self.now))
                lane.out.append(ASKING)
            lane.fifo.append(request)
            lane.tail = None
            lane.out.append(request.raw)
            lane.soil()
            if isinstance(request, Place) and request.client is not None:
                traced = request.client.traced
                if traced or (self.now >= lane.sample_at and not request.attempts):
                    lane.choose(request, request.batch, request.index, traced)

    def at_end(self, errand: Callable[[], None]) -> None:
        """Have it called when all that is ready in this turn was dispatched, before lanes send; outside of one, now."""
        if self._turning:
            self.errands.append(errand)
        else:
            with self.turn():
                errand()

    def answer(self, request: Request, frame: bytes) -> None:
        """Fulfil a request with a raw reply."""
        with self.turn():
            request.answer(frame)

    def push(self, client: Client, frame: bytes) -> None:
        """Send a client what it did not ask for: behind the replies that are in, before those that are still to come.

        One that does not read is closed as its limits say: ``Limits.pushed`` where ``client.subscriber`` is set.
        """
        with self.turn():
            client.push(frame)

    def push_behind(self, client: Client, frame: bytes) -> None:
        """``push``, but behind the replies to everything the client has under way: what is said of values it reads."""
        with self.turn():
            client.push_behind(frame)

    def push_all(self, clients: Iterable[Client], frame: bytes) -> None:
        """``push`` the same frame to each."""
        with self.turn():
            push_all(list(clients), frame)

    def keep_pushes(self, client: Client) -> None:
        """Have pushes to a client come behind the reply to a command that is under way, until ``let_pushes``."""
        client.keep_pushes()

    def let_pushes(self, client: Client) -> None:
        """That command was answered.  To be called once for each ``keep_pushes``."""
        with self.turn():
            client.let_pushes()

    def answer_barrier(self, request: Request, frame: bytes, client: Client) -> None:
        """``answer`` and ``resume`` in one, in the mode that the client's session is in then."""
        if self._turning:
            request.answer(frame)
            client.resume(client.session.mode)
            return
        with self.turn():
            request.answer(frame)
            client.resume(client.session.mode)

    def resume(self, client: Client, mode: Mode = Mode.PLAIN) -> None:
        """Let a client that stands behind a barrier go on."""
        with self.turn():
            client.resume(mode)

    def end_input(self, client: Client) -> None:
        """Close a client once all that it has sent so far was read, carried out and answered."""
        with self.turn():
            client.end_input()

    def finish(self, client: Client) -> None:
        """Close a client once what it asked so far was answered and sent."""
        with self.turn():
            client.finish()

    def kill(self, client: Client) -> None:
        """Close a client now."""
        with self.turn():
            client.close()

    def clients_on(self, lane: Lane) -> set[Client | None]:
        """The clients that wait for replies on a lane; None stands for control itself."""
        return lane.clients()

    def behind(self, request: Request, lane: Lane) -> list[tuple[int, int]]:
        """(slot, command id) of what the client has on the lane behind a request that was just held back."""
        return lane.behind(request)

    def refuse(self, client: Client, why: str) -> None:
        """Close a client now because it exceeded a limit."""
        with self.turn():
            self.refused(client, why)
            client.close()

    def bound_replies(self, client: Client) -> None:
        """Close a client whose replies, kept until an earlier one comes, exceed the output limit."""
        if client.kept_replies() > self.limits.output:
            self.refuse(client, "closing a client whose replies wait for an earlier one")

    def bound_pushes(self, client: Client) -> None:
        """Close a subscriber for which more than the soft limit has been waiting for too long."""
        with self.turn():
            client.bound_output()

    def lane_age(self, lane: Lane) -> float:
        """Seconds for which the oldest command has been waiting for the lane's shard, or in its hold; 0.0: none is."""
        return time.monotonic() - max(lane.fifo[0].born, lane.since) if lane.fifo else 0.0

    def refused(self, client: Client, why: str) -> None:
        self.counters.refused += 1
        self.control.refused(client, why)

    def close(self) -> None:
        """Close everything."""
        for listener in self.listeners:
            if self._handlers.pop(listener.fd, None) is not None:
                self.epoll.unregister(listener.fd)
            listener.sock.close()
        for client in list(self.clients.values()):
            client.close()
        for sock in self._lingering:
            sock.close()
        self.epoll.close()


def _at_end(sock: socket.socket) -> bool:
    """Drop what a lingering client sent; True, and closed, when it sends nothing more."""
    try:
        for _ in range(ACCEPTS):
            if not sock.recv(MAX_DROPPED):
                break
        else:
            return False
    except BlockingIOError:
        return False
    except OSError:
        pass
    sock.close()
    return True
