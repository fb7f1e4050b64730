"""A plain blocking connection, for loading data and asking the servers what they counted; what clients saw."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hiredis

from tests.bench.errors import BenchError

_TIMEOUT_S = 20
_CHUNK = 500
# Its own stub knows tuples of one element only.
_pack: Callable[[tuple[str | bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def packed(*args: str | bytes) -> bytes:
    """Return a request as it is sent."""
    return _pack(args)


def rates(latencies: list[float], elapsed: float) -> dict[str, float]:
    """What clients saw whose commands took these times, all within ``elapsed`` seconds; sorts them."""
    latencies.sort()
    return {
        "per_second": len(latencies) / elapsed,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
    }


class Connection:
    """One connection; requests may be pipelined."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sock = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self._reader = hiredis.Reader()

    def ask(self, *args: str | bytes) -> Any:
        """Return the reply to one request. Raises ``BenchError`` for an error, ``OSError``."""
        return self.ask_all([args])[0]

    def ask_all(self, requests: Sequence[tuple[str | bytes, ...]]) -> list[Any]:
        """Return the replies to requests sent in packets of some hundreds. Raises as ``ask``."""
        replies: list[Any] = []
        for start in range(0, len(requests), _CHUNK):
            chunk = requests[start : start + _CHUNK]
            self._sock.sendall(b"".join(_pack(request) for request in chunk))
            replies += [self._reply() for _ in chunk]
        return replies

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionError("closed")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise BenchError(f"port {self._port} answered: {reply}")
        return reply

    def close(self) -> None:
        """Close it."""
        self._sock.close()


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    """A connection for as long as the block runs. Raises ``OSError``."""
    connection = Connection(port)
    try:
        yield connection
    finally:
        connection.close()
