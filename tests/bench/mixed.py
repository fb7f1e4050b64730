"""Clients that ask for different things in turn, which redis-benchmark cannot: 80 % GET, 15 % SET, 5 % MGET of 10.

``python -m tests.bench.mixed PORT CLIENTS SECONDS`` prints what they saw as JSON. A program of its own, so that it
neither shares an interpreter with the measuring nor is counted for it. Every key exists and every value has the same
length, so that the length of a reply tells that it is complete and right: nothing is parsed.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time
from itertools import cycle

from tests.bench.wire import packed, rates
from tests.bench.workloads import KEYS, VALUE_BYTES

_SILENCE_S = 10
_PLAN = 4_000
_VALUE = b"x" * VALUE_BYTES
_BULK = len(b"$%d\r\n" % VALUE_BYTES) + VALUE_BYTES + 2
_MGET_KEYS = 10

Step = tuple[bytes, int]
"""A request, and the bytes of its reply."""


def _key(source: random.Random) -> bytes:
    return b"key:%012d" % source.randrange(KEYS)


def _step(source: random.Random) -> Step:
    dice = source.random()
    if dice < 0.80:
        return packed(b"GET", _key(source)), _BULK
    if dice < 0.95:
        return packed(b"SET", _key(source), _VALUE), len(b"+OK\r\n")
    keys = [_key(source) for _ in range(_MGET_KEYS)]
    return packed(b"MGET", *keys), len(b"*%d\r\n" % _MGET_KEYS) + _MGET_KEYS * _BULK


class _Client:
    def __init__(self, port: int, number: int) -> None:
        source = random.Random(number)
        self._steps = cycle([_step(source) for _ in range(_PLAN)])
        self._missing = 0
        self._sent_at = 0.0
        self.sock = socket.create_connection(("127.0.0.1", port), _SILENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        request, self._missing = next(self._steps)
        self._sent_at = time.perf_counter()
        self.sock.sendall(request)

    def read(self) -> float | None:
        """Return how long the whole reply took, in seconds; None while some of it is missing."""
        data = self.sock.recv(1 << 16)
        if not data or data.startswith(b"-"):
            raise SystemExit(f"a client got {data[:100]!r}")
        self._missing -= len(data)
        if self._missing < 0:
            raise SystemExit(f"a client got more than it asked for: {data[:100]!r}")
        return None if self._missing else time.perf_counter() - self._sent_at


def run(port: int, count: int, seconds: float) -> dict[str, float]:
    """Return the fields of a ``Load``."""
    clients = [_Client(port, number) for number in range(count)]
    by_descriptor = {client.sock.fileno(): client for client in clients}
    poll = select.epoll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    latencies: list[float] = []
    started = time.perf_counter()
    for client in clients:
        client.ask()
    busy = count
    while busy:
        ready = poll.poll(_SILENCE_S)
        if not ready:
            raise SystemExit(f"{busy} clients got no answer within {_SILENCE_S} s")
        for descriptor, _ in ready:
            client = by_descriptor[descriptor]
            took = client.read()
            if took is None:
                continue
            latencies.append(took)
            if time.perf_counter() - started < seconds:
                client.ask()
            else:
                busy -= 1
    return {"commands": len(latencies)} | rates(latencies, time.perf_counter() - started)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
