"""A client that sees bytes: requests out, raw reply frames in."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from proxy.codec import ReplyState, encode_request, frame_replies, split_inline

TIMEOUT = 30.0  # seconds after which a reply that should come is held for one that never will


def words(line: str) -> list[bytes]:
    """A request as one would type it, quotes and all."""
    parts = split_inline(line.encode())
    assert parts is not None, f"unbalanced quotes: {line}"
    return parts


class Closed(Exception):
    """The peer closed the connection before the reply was complete."""


class Wire:
    """One connection.  ``call`` sends one request and returns its raw reply."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port), timeout=TIMEOUT)
        self._buffer = b""
        self._state: ReplyState | None = None
        self._frames: list[bytes] = []

    @classmethod
    def to(cls, url: str) -> Self:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        return cls(parts.hostname, parts.port)

    def send(self, *args: bytes | str | int) -> None:
        self.sock.sendall(request(*args))

    def send_raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> bytes:
        """The next raw reply frame.  Raises ``Closed`` at EOF."""
        while not self._frames:
            data = self.sock.recv(1 << 20)
            if not data:
                raise Closed
            self._buffer += data
            self._frames, consumed, self._state = frame_replies(self._buffer, self._state)
            self._buffer = self._buffer[consumed:]
        return self._frames.pop(0)

    def call(self, *args: bytes | str | int) -> bytes:
        self.send(*args)
        return self.receive()

    def pipeline(self, requests: list[list[bytes | str | int]]) -> list[bytes]:
        """All requests in one write, their replies in order (for pipelines that fit the socket's buffers)."""
        self.sock.sendall(b"".join(request(*each) for each in requests))
        return [self.receive() for _ in requests]

    def at_eof(self) -> bool:
        """Whether the peer closes the connection without another reply."""
        try:
            self.receive()
        except (Closed, ConnectionError):
            return True
        return False

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def request(*args: bytes | str | int) -> bytes:
    return encode_request([arg if isinstance(arg, bytes) else str(arg).encode() for arg in args])
