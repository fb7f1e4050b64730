"""The control connection: one request, one decoded reply, to one node.

It serves control only (topology, forming, probes, acknowledgment rounds), where values are wanted; client traffic never
passes here. Some facts the code leans on:

* A reply belongs to a request by its place alone. A call that is given up half way leaves the stream out of step, so
  the connection is closed then and there: the next caller gets ``ConnectionLost``, never somebody else's reply.
* A cancelled ``recv`` in trio has taken nothing from the socket: ``receive`` may be cancelled and called again.
* RESP3 pushes come between replies and answer nobody; they are handed to ``on_push`` (or dropped) and never returned.
"""

# ruff: noqa: ASYNC109 -- a timeout here also decides the fate of the connection, a scope around the call could not.

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import hiredis
import trio

Arg = str | bytes | int

_RECEIVE_BYTES = 65536
_UNFINISHED: Any = object()  # False is a value in RESP3, so it cannot stand for "no whole reply yet"


class ReplyError(Exception):
    """The node answered an error. ``str(error)`` is its line without the leading ``-``."""

    @property
    def code(self) -> str:
        """The error's first word, e.g. ``ERR``, ``MOVED``, ``NOAUTH``."""
        return str(self).partition(" ")[0]


class ConnectionLost(Exception):
    """No reply and none to come on this connection: refused, reset, closed, timed out, or not RESP at all."""


class _ProtocolError(Exception):
    pass


@dataclass(frozen=True)
class Credentials:
    """What a node asks of those who connect. ``password`` None: nothing is asked; never shown in ``repr``."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)


def encode_command(args: Sequence[Arg]) -> bytes:
    """Return ``args`` as one RESP request (an array of bulk strings). Raises ``TypeError`` for other types."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = _as_bytes(arg)
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _as_bytes(arg: Arg) -> bytes:
    if isinstance(arg, bytes):
        return arg
    if isinstance(arg, str):
        return arg.encode()
    if isinstance(arg, int) and not isinstance(arg, bool):
        return b"%d" % arg
    raise TypeError(f"a command argument must be str, bytes or int, not {type(arg).__name__}")


def format_address(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ControlConnection:
    """A connection to one node for use by control code, safe to share between trio tasks.

    Two ways to use it, not at the same time: ``call``/``pipeline`` (serialised by a lock, each returns its own
    replies), or ``send`` and ``receive`` for a command whose reply is awaited elsewhere or later (a blocked ``WAIT``).
    """

    def __init__(self, stream: trio.SocketStream, host: str, port: int, timeout: float) -> None:
        self._stream = stream
        self._socket = stream.socket
        self._reader = hiredis.Reader(protocolError=_ProtocolError, replyError=ReplyError, notEnoughData=_UNFINISHED)
        self._call_lock = trio.Lock()
        self._read_lock = trio.Lock()
        self._pending = 0
        self.host = host
        self.port = port
        self.timeout = timeout
        self.closed = False
        self.on_push: Callable[[list[Any]], None] | None = None

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        *,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 2.0,
        protocol: int = 2,
        client_name: str | None = None,
    ) -> ControlConnection:
        """Connect, authenticate and name the connection, all within ``timeout`` seconds.

        ``timeout`` is the default of later calls too. ``protocol`` is 2 or 3 (RESP). Without ``password`` no AUTH is
        sent.
        Raises ``ConnectionLost`` when the node cannot be reached or does not answer in time, ``ReplyError`` when it
        refuses the credentials or the protocol.
        """
        try:
            with trio.fail_after(timeout):
                stream = await trio.open_tcp_stream(host, port)
        except trio.TooSlowError:
            raise ConnectionLost(f"{format_address(host, port)}: no connection within {timeout:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"{format_address(host, port)}: {_reason(error)}") from None
        connection = cls(stream, host, port, timeout)
        try:
            await connection._shake_hands(username, password, protocol, client_name)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _shake_hands(
        self, username: str | None, password: str | None, protocol: int, client_name: str | None
    ) -> None:
        commands: list[list[Arg]] = []
        login: list[Arg] = [] if password is None else [username or "default", password]
        if protocol != 2:
            commands.append(["HELLO", protocol, *(["AUTH", *login] if login else [])])
        elif login:
            commands.append(["AUTH", *(login if username else login[1:])])
        if client_name is not None:
            commands.append(["CLIENT", "SETNAME", client_name])
        if not commands:
            return
        for reply in await self.pipeline(*commands):
            if isinstance(reply, ReplyError):
                raise reply

    @property
    def address(self) -> str:
        """``host:port`` as given to ``open``."""
        return format_address(self.host, self.port)

    @property
    def peer(self) -> str:
        """The IP address the host was found at."""
        return str(self._socket.getpeername()[0])

    async def call(self, *args: Arg, timeout: float | None = None) -> Any:
        """Send one command and return its reply (bytes, int, list, None...; never decoded to str).

        ``timeout`` seconds run from the moment earlier calls are done; None: as given to ``open``; ``math.inf``: none.
        Raises ``ReplyError`` for an error reply, ``ConnectionLost`` otherwise (the connection is closed then).
        """
        [reply] = await self._exchange([args], timeout)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def pipeline(self, *commands: Sequence[Arg], timeout: float | None = None) -> list[Any]:
        """Send all commands in one write and return their replies in order, ``ReplyError`` instances in their places.

        ``timeout`` seconds hold for the whole of it. Raises ``ConnectionLost``.
        """
        return await self._exchange(commands, timeout)

    async def _exchange(self, commands: Sequence[Sequence[Arg]], timeout: float | None) -> list[Any]:
        data = b"".join(map(encode_command, commands))
        async with self._call_lock:
            if self._pending:
                raise RuntimeError("call() while a reply to send() is outstanding: receive() it first")
            with self._bounded(timeout):
                await self._write(data)
                return [await self._read_reply() for _ in commands]

    async def send(self, *args: Arg, timeout: float | None = None) -> None:
        """Write one command without awaiting its reply; each needs one ``receive`` before ``call`` may be used again.

        Raises ``ConnectionLost``.
        """
        await self.send_times(1, *args, timeout=timeout)

    async def send_times(self, times: int, *args: Arg, timeout: float | None = None) -> None:
        """As ``send``, the same command so many times in one write."""
        data = encode_command(args) * times
        async with self._call_lock:
            with self._bounded(timeout):
                self._pending += times
                await self._write(data)

    async def receive(self, timeout: float | None = None) -> Any:
        """Return the reply to the oldest ``send`` not yet received. ``math.inf`` waits without end.

        Cancelling it is harmless: the reply stays to be received. Its own ``timeout`` (seconds) closes the connection.
        Raises ``ReplyError`` for an error reply, ``ConnectionLost`` otherwise.
        """
        async with self._read_lock:
            if not self._pending:
                raise RuntimeError("receive() without an outstanding send()")
            with self._bounded(timeout, cancel_is_harmless=True):
                reply = await self._read_reply()
            self._pending -= 1
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def drop(self, count: int, timeout: float | None = None) -> None:
        """Receive so many replies that nobody wants to see. Raises ``ConnectionLost``."""
        async with self._read_lock:
            with self._bounded(timeout, cancel_is_harmless=True):
                for _ in range(count):
                    await self._read_reply()
                    self._pending -= 1

    @property
    def pending(self) -> int:
        """How many replies to ``send`` are still to be received."""
        return self._pending

    def detach(self) -> socket.socket:
        """Give the socket away, non-blocking and between replies; the connection object is closed by it.

        For whoever goes on with raw bytes (the proxy's lanes) once the handshake is done.
        """
        if self.closed or self._pending:
            raise RuntimeError("detach() needs an open connection without outstanding replies")
        self.closed = True
        raw = socket.socket(fileno=self._socket.detach())
        raw.setblocking(False)
        return raw

    def abort(self) -> None:
        """Close at once, without a checkpoint. Tasks blocked on the connection get ``ConnectionLost``."""
        self.closed = True
        self._socket.close()

    async def aclose(self) -> None:
        """Close the connection; harmless when already closed."""
        self.abort()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @contextmanager
    def _bounded(self, timeout: float | None, *, cancel_is_harmless: bool = False) -> Iterator[None]:
        """Bound a use of the stream in time; close the connection when the use did not end in order."""
        if self.closed:
            raise ConnectionLost(f"{self.address}: the connection is closed")
        seconds = self.timeout if timeout is None else timeout
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError:
            self.abort()
            raise ConnectionLost(f"{self.address}: no answer within {seconds:g} s") from None
        except trio.Cancelled:
            if not cancel_is_harmless:
                self.abort()
            raise
        except (OSError, trio.ClosedResourceError, _ProtocolError) as error:
            self.abort()
            raise ConnectionLost(f"{self.address}: {_reason(error)}") from None
        except BaseException:
            self.abort()
            raise

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._socket.send(view) :]

    async def _read_reply(self) -> Any:
        while True:
            reply = self._reader.gets()
            if reply is _UNFINISHED:
                self._feed(await self._socket.recv(_RECEIVE_BYTES))
            elif not isinstance(reply, hiredis.PushNotification):
                return reply
            elif self.on_push is not None:
                self.on_push(list(reply))

    def _feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionLost(f"{self.address}: closed by the node")
        self._reader.feed(data)


def _reason(error: BaseException) -> str:
    # trio wraps the attempts of a connect (one per resolved address) in a group: the first tells enough.
    if isinstance(error.__cause__, OSError | ExceptionGroup):
        error = error.__cause__
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
