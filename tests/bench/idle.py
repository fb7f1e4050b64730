"""Clients that asked once and are then silent: most of the clients a proxy has."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.errors import BenchError
from tests.bench.wire import packed
from tests.bench.workloads import VALUE_BYTES

_TIMEOUT_S = 20
# Fewer than any backlog: more at a time would measure the kernel's resending of lost SYNs.
_AT_ONCE = 200
_REQUEST = packed(b"GET", b"key:000000000000")
_REPLY_BYTES = len(b"$%d\r\n" % VALUE_BYTES) + VALUE_BYTES + 2


@contextmanager
def silent_clients(port: int, count: int) -> Iterator[None]:
    """So many clients, each of which has had the answer to a GET, connected while the block runs.

    Raises ``BenchError`` when one is refused or gets no answer.
    """
    clients: list[socket.socket] = []
    try:
        while len(clients) < count:
            _connect(port, clients, min(_AT_ONCE, count - len(clients)))
        yield
    finally:
        for client in clients:
            client.close()


def _connect(port: int, clients: list[socket.socket], count: int) -> None:
    try:
        for _ in range(count):
            clients.append(socket.create_connection(("127.0.0.1", port), _TIMEOUT_S))
            clients[-1].sendall(_REQUEST)
        for client in clients[-count:]:
            _read_reply(client)
    except OSError as error:
        raise BenchError(f"client {len(clients)} was not served: {error}") from None


def _read_reply(client: socket.socket) -> None:
    missing = _REPLY_BYTES
    while missing > 0:
        data = client.recv(missing)
        if not data or (missing == _REPLY_BYTES and not data.startswith(b"$")):
            raise BenchError(f"a silent client got {data!r}")
        missing -= len(data)
