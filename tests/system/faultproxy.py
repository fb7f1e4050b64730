"""A TCP proxy that misbehaves: it stands in front of a node and does to the way there what cables and middleboxes do.

It runs on trio in a thread of its own; the methods are for the test's thread, and have taken effect when they return.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import trio

CHUNK = 65536
GONE = (OSError, trio.ClosedResourceError, trio.BrokenResourceError)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST

T = TypeVar("T")


class Connection:
    """One that was let through: the client's end, and the one to the node."""

    def __init__(self, client: trio.SocketStream, node: trio.SocketStream) -> None:
        self.client = client
        self.node = node
        self.swallowed = False
        """What either side sends from now on vanishes; neither is told."""


class FaultProxy:
    """One way to one node.  ``port`` is where it listens on 127.0.0.1."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self.delay = 0.0
        """Seconds by which each piece of data is late."""
        self.trickles = False
        """Data goes on byte by byte."""
        self.intercepted: tuple[bytes, bytes] | None = None
        """A request that does not reach the node the next time, and what is answered in its stead.  It has to be the
        first of those under way on its connection."""
        self.stalls: bytes | None = None
        """The next piece of data on the way to the node that holds these bytes waits for ``deliver``, and what its
        connection brings behind it; all others pass."""
        self.stalled = 0
        """How many pieces of data did, or do."""
        self.delivered = 0
        """How many of them have reached the node, or a connection that it had closed by then."""
        self.accepted = 0
        self._delivered = trio.Event()
        self._connections: set[Connection] = set()
        self._open = trio.Event()
        self._listening: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.CancelScope
        self._nursery: trio.Nursery

    # -- what a test does -------------------------------------------------------------------------------------
    def cut(self) -> None:
        """The cable is out: nothing passes and nobody is told, new connections included; ``heal`` has it delivered."""
        self._do(self._shut)

    def heal(self) -> None:
        """Everything passes again, what waited in the cable first; connections that led nowhere are reset."""
        self._do(self._heal)

    def deliver(self) -> None:
        """What ``stalls`` has kept in the cable comes out of it, whoever has given its connection up by now."""
        self._do(self._deliver)

    def half_open(self) -> None:
        """The connections that there are lead nowhere any more, and neither end is told; new ones pass."""
        self._do(self._swallow)

    def reset(self) -> None:
        """Every connection is reset; new ones pass."""
        self._do(self._reset)

    def refuse(self) -> None:
        """Every connection is reset, new ones are refused; until ``listen``."""
        self._do(self._refuse)

    def listen(self) -> None:
        self._do(self._listen)

    def retarget(self, target: tuple[str, int]) -> None:
        """Another node answers here: connections are reset."""
        self.target = target
        self.reset()

    def _do(self, work: Callable[[], T]) -> T:
        return trio.from_thread.run_sync(work, trio_token=self._token)

    # -- in the loop ---------------------------------------------------------------------------------------------
    def _shut(self) -> None:
        self._open = trio.Event()

    def _heal(self) -> None:
        self.delay, self.trickles, self.intercepted = 0.0, False, None
        self._open.set()
        self._close({each for each in self._connections if each.swallowed})

    def _deliver(self) -> None:
        self.stalls = None
        self._delivered.set()
        self._delivered = trio.Event()

    def _swallow(self) -> None:
        for each in self._connections:
            each.swallowed = True

    def _reset(self) -> None:
        self._close(self._connections)

    def _close(self, connections: set[Connection]) -> None:
        for each in connections:
            for stream in (each.client, each.node):
                with suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                stream.socket.close()
        self._connections -= connections

    def _refuse(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        self._reset()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        listener.listen(1000)
        listener.setblocking(False)
        self._nursery.start_soon(self._accept, trio.socket.from_stdlib_socket(listener))

    async def run(self, started: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._open.set()
        async with trio.open_nursery() as self._nursery:
            self._stop = self._nursery.cancel_scope
            self._listen()
            started.set()
            await trio.sleep_forever()

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        with listener, trio.CancelScope() as self._listening:
            while True:
                sock, _ = await listener.accept()
                self.accepted += 1
                self._nursery.start_soon(self._carry, trio.SocketStream(sock))

    async def _carry(self, client: trio.SocketStream) -> None:
        await self._open.wait()
        try:
            node = await trio.open_tcp_stream(*self.target)
        except OSError:
            client.socket.close()
            return
        connection = Connection(client, node)
        self._connections.add(connection)
        with suppress(*GONE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, connection, client, node)
                nursery.start_soon(self._pump, connection, node, client)
        if not connection.swallowed:
            client.socket.close()
            node.socket.close()
        self._connections.discard(connection)

    async def _pump(self, connection: Connection, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(*GONE):
            while data := await source.receive_some(CHUNK):
                await self._open.wait()
                if self.delay:
                    await trio.sleep(self.delay)
                if connection.swallowed:
                    continue
                if self.stalls is not None and source is connection.client and self.stalls in data:
                    await self._stall(data, sink)
                    continue
                if self.intercepted is not None and source is connection.client and self.intercepted[0] in data:
                    (request, reply), self.intercepted = self.intercepted, None
                    data = data.replace(request, b"", 1)
                    await source.send_all(reply)
                for piece in [bytes([byte]) for byte in data] if self.trickles else [data]:
                    await sink.send_all(piece)
        if connection.swallowed:
            await trio.sleep_forever()
        with suppress(*GONE):
            await sink.send_eof()


    async def _stall(self, data: bytes, sink: trio.SocketStream) -> None:
        self.stalls = None
        self.stalled += 1
        await self._delivered.wait()
        with suppress(*GONE):
            await sink.send_all(data)
        self.delivered += 1


@contextmanager
def fault_proxy(target: tuple[str, int]) -> Iterator[FaultProxy]:
    """A way to the node at ``target`` that works, to begin with."""
    started = threading.Event()
    faults = FaultProxy(target)

    def run() -> None:
        trio.run(faults.run, started)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield faults
    finally:
        faults._do(faults._stop.cancel)
        thread.join(10)
