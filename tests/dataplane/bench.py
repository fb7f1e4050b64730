"""What the contract tests drive: a data plane with a control that only writes down what it is told, and the peers'
ends of its sockets.

Nothing here looks behind the contract, and nothing but the driver turns the plane, so that the same tests run under
any driver, and for any data plane that keeps the contract.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import trio

from proxy.codec import BARRIER as BARRIER_KIND
from proxy.codec import OTHER, PLAIN, ParseTable, encode_request, frame_replies, key_slot
from proxy.codec import Limits as CodecLimits
from proxy.dataplane import BARRIER, READONLY, WRITE, Client, DataPlane, Lane, Limits, Lost, Request

PATIENCE_S = 20
SHARDS = 3
WATCHED = (b"-MOVED ", b"-ASK ")
DEFAULTS = Limits()

COMMANDS = {
    b"get": (1, PLAIN, READONLY),
    b"set": (2, PLAIN, WRITE),
    b"info": (3, OTHER, 0),
    b"multi": (4, BARRIER_KIND, BARRIER),
    b"quit": (5, BARRIER_KIND, BARRIER),
    b"append": (6, PLAIN, WRITE),
}


class Driver(Protocol):
    """Turns a plane until something holds."""

    def __call__(self, plane: DataPlane, condition: Callable[[], Any]) -> None: ...


def by_polling(plane: DataPlane, condition: Callable[[], Any]) -> None:
    """The bare loop: poll the descriptor, turn."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the data plane did not get there"
        select.select([plane.fileno()], [], [], 0.05)
        plane.run_once()


def by_trio(plane: DataPlane, condition: Callable[[], Any]) -> None:
    """As the server does: one trio task that awaits the descriptor."""

    async def turn() -> None:
        while not condition():
            with trio.move_on_after(0.05):
                await trio.lowlevel.wait_readable(plane.fileno())
            for _ in range(8):
                if not plane.run_once():
                    break

    async def bounded() -> None:
        with trio.fail_after(PATIENCE_S):
            await turn()

    trio.run(bounded)


class Held(NamedTuple):
    request: Request
    lane: Lane
    frame: bytes


class Down(NamedTuple):
    lane: Lane
    lost: list[Lost]
    reason: str


class Notes:
    """Control that writes down what it is told.  ``on_command`` may be set to act at once."""

    def __init__(self) -> None:
        self.commands: list[Request] = []
        self.opened_clients: list[Client] = []
        self.closed_clients: list[Client] = []
        self.half_closed_clients: list[Client] = []
        self.held: list[Held] = []
        self.down: list[Down] = []
        self.pushes: list[bytes] = []
        self.accept_errors: list[OSError] = []
        self.refusals: list[tuple[Client, str]] = []
        self.failures: list[tuple[str, Exception]] = []
        self.overfull: list[Lane] = []
        self.lanes: list[Lane] = []
        self.plane: DataPlane
        self.on_command: Callable[[Request], None] | None = None
        self.on_opened: Callable[[Client], None] | None = None
        self.on_held_back: Callable[[Held], None] | None = None
        self.on_closed: Callable[[Client], None] | None = None

    def opened(self, client: Client) -> None:
        self.opened_clients.append(client)
        self.plane.set_lanes(client, self.lanes)
        if self.on_opened is not None:
            self.on_opened(client)

    def closed(self, client: Client) -> None:
        self.closed_clients.append(client)
        if self.on_closed is not None:
            self.on_closed(client)

    def half_closed(self, client: Client) -> None:
        self.half_closed_clients.append(client)

    def command(self, request: Request) -> None:
        self.commands.append(request)
        if self.on_command is not None:
            self.on_command(request)

    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        self.held.append(Held(request, lane, frame))
        if self.on_held_back is not None:
            self.on_held_back(self.held[-1])

    def lane_down(self, lane: Lane, lost: list[Lost], reason: str) -> None:
        self.down.append(Down(lane, lost, reason))

    def pushed(self, lane: Lane, frame: bytes) -> None:
        self.pushes.append(frame)

    def accept_failed(self, error: OSError) -> None:
        self.accept_errors.append(error)

    def held_too_much(self, lane: Lane) -> None:
        self.overfull.append(lane)
        for request in self.plane.reclaim(lane):
            self.plane.answer(request, b"-CLUSTERDOWN held too much\r\n")

    def refused(self, client: Client, why: str) -> None:
        self.refusals.append((client, why))

    def failed(self, where: str, error: Exception) -> None:
        self.failures.append((where, error))


class Peer:
    """The other end of a client's or a lane's socket."""

    def __init__(self, bench: Bench, sock: socket.socket) -> None:
        self.bench = bench
        self.sock = sock
        self.sock.setblocking(False)
        self.received = b""
        self.eof = False

    def pull(self) -> None:
        """Take in what has arrived."""
        with suppress(BlockingIOError):
            while not self.eof:
                try:
                    data = self.sock.recv(1 << 20)
                except ConnectionError:
                    data = b""
                self.received += data
                self.eof = not data

    def send(self, data: bytes) -> None:
        """Send all of it, turning the plane while the socket is full."""
        view = memoryview(data)

        def sent() -> bool:
            nonlocal view
            with suppress(BlockingIOError):
                while view:
                    view = view[self.sock.send(view) :]
            return not view

        if not sent():
            self.bench.spin(sent)

    def request(self, *args: bytes) -> None:
        self.send(encode_request(args))

    def expect(self, data: bytes) -> None:
        """Exactly these bytes come next."""

        def come() -> bool:
            self.pull()
            return len(self.received) >= len(data) or self.eof

        self.bench.spin(come)
        got, self.received = self.received[: len(data)], self.received[len(data) :]
        assert got == data

    def expect_nothing(self) -> None:
        """Nothing is there, and nothing comes of whatever the plane has to do."""
        self.bench.settle()
        self.pull()
        assert self.received == b""

    def expect_eof(self) -> None:
        def ended() -> bool:
            self.pull()
            return self.eof

        self.bench.spin(ended)
        assert self.received == b""

    def take(self) -> bytes:
        """What has arrived once the plane has nothing more to do."""
        self.bench.settle()
        self.pull()
        data, self.received = self.received, b""
        return data

    def requests(self) -> int:
        """How many whole requests have arrived; they are taken."""
        frames, consumed, _ = frame_replies(self.received)  # a request has the form of a reply
        self.received = self.received[consumed:]
        return len(frames)

    def close(self) -> None:
        self.sock.close()


class Bench:
    """A plane with three shards whose lanes the test serves itself."""

    def __init__(self, drive: Driver, limits: Limits = DEFAULTS, **more: Any) -> None:
        self.drive = drive
        self.notes = Notes()
        self.plane = self.notes.plane = DataPlane(self.notes, limits=limits, watched=WATCHED, **more)
        self.peers: list[Peer] = []
        entries = [(name, number, 1, kind) for name, (number, kind, _) in COMMANDS.items()]
        flags = bytes([0, *(flag for _, _, flag in COMMANDS.values())])
        self.plane.set_commands(ParseTable(entries, CodecLimits(large_request=4096)), flags)
        self.plane.set_routes([slot * SHARDS // 16384 for slot in range(16384)])
        self.lanes = self.notes.lanes
        self.lanes += [self.plane.new_lane(shard) for shard in [*range(SHARDS), -1]]

    def spin(self, condition: Callable[[], Any]) -> None:
        self.drive(self.plane, condition)

    def settle(self) -> None:
        """Until nothing is ready any more: loopback sockets deliver at once, so nothing is on its way then."""
        self.spin(lambda: not select.select([self.plane.fileno()], [], [], 0)[0])

    def pair(self) -> tuple[socket.socket, Peer]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        peer = Peer(self, theirs)
        self.peers.append(peer)
        return ours, peer

    def client(self) -> Peer:
        """A client comes; its end."""
        ours, peer = self.pair()
        self.plane.admit(ours)
        return peer

    @property
    def newest(self) -> Client:
        return self.notes.opened_clients[-1]

    def attach(self, lane: Lane, stamp: Any = "life", pushes: bool = False) -> Peer:
        """Give a lane its connection; the shard's end."""
        ours, peer = self.pair()
        self.plane.attach(lane, ours, stamp, pushes)
        return peer

    def shards(self) -> list[Peer]:
        """Connect every lane; the shards' ends."""
        return [self.attach(lane, stamp=f"life {lane.shard}") for lane in self.lanes[:SHARDS]]

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for lane in self.lanes:
            self.plane.close_lane(lane)
        self.plane.close()


def key(shard: int, number: int = 0) -> bytes:
    """The number-th of the keys that the shard serves."""
    found = 0
    for candidate in range(1_000_000):
        name = b"k%d" % candidate
        if key_slot(name) * SHARDS // 16384 == shard:
            if found == number:
                return name
            found += 1
    raise AssertionError


def get(shard: int, number: int = 0) -> bytes:
    return encode_request([b"GET", key(shard, number)])


def put(shard: int, value: bytes, number: int = 0) -> bytes:
    return encode_request([b"SET", key(shard, number), value])


def raws(requests: Iterable[Request]) -> list[bytes]:
    return [request.raw for request in requests]


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def numbers(values: Sequence[int]) -> bytes:
    return b"".join(map(number, values))


INFO = encode_request([b"INFO"])
MULTI = encode_request([b"MULTI"])
QUIT = encode_request([b"QUIT"])
OK = b"+OK\r\n"

