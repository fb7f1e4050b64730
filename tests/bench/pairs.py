"""Clients that write and wait for the acknowledgment: SET and WAIT (or WAITAOF) in one packet, both replies awaited.

``python -m tests.bench.pairs '{"port": ..., "clients": ..., "seconds": ..., "command": [...], "reply": ...}'`` is a
program of its own, one process on one epoll, and says what it is at, a line each: ``connected`` (it then waits for a
line), ``measuring``, and at the end what its clients saw, as JSON. Connecting, each client's first pair and the end of
the last ones are outside of what is measured.

A client's next packet is sent as soon as both replies of the last are in. They are compared whole with the only right
ones, as bytes: nothing is parsed.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from tests.bench.wire import packed, rates
from tests.bench.workloads import KEYS, VALUE_BYTES

_SILENCE_S = 20
_PACKETS = 4_096
_VALUE = b"x" * VALUE_BYTES
_OK = b"+OK\r\n"
_PING, _PONG = packed(b"PING"), b"+PONG\r\n"
# Fewer than any backlog: more at a time would measure the kernel's resending of lost SYNs.
_AT_ONCE = 200
_READ = 4_096


class Pairs:
    """The clients. ``key``: the only one they write; empty: any."""

    def __init__(self, port: int, clients: int, command: Sequence[str], reply: str, key: str = "") -> None:
        source = random.Random(port)
        keys = [key or f"key:{source.randrange(KEYS):012d}" for _ in range(_PACKETS)]
        self._packets = cycle([packed("SET", each, _VALUE) + packed(*command) for each in keys])
        self._right = _OK + reply.encode()
        self._clients: dict[int, socket.socket] = {}
        self._sent_at: dict[int, float] = {}
        self._partly: dict[int, bytes] = {}
        self._poll = select.epoll()
        while len(self._clients) < clients:
            self._connect(port, min(_AT_ONCE, clients - len(self._clients)))

    def _connect(self, port: int, count: int) -> None:
        fresh = [socket.create_connection(("127.0.0.1", port), _SILENCE_S) for _ in range(count)]
        for client in fresh:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(_PING)
        for client in fresh:
            if (got := client.recv(_READ)) != _PONG:
                raise SystemExit(f"a client got {got!r} for a PING")
            client.setblocking(False)
            self._clients[client.fileno()] = client
            self._poll.register(client.fileno(), select.EPOLLIN)

    def begin(self) -> None:
        """Let each client send its first packet, and wait until each has had an answer."""
        for descriptor in self._clients:
            self._ask(descriptor)
        first = set(self._clients)
        while first:
            first.difference_update(self._turn([]))

    def run(self, seconds: float) -> dict[str, float]:
        """Return what the clients see in the next so many seconds."""
        latencies: list[float] = []
        started, busy = time.perf_counter(), time.process_time()
        until = started + seconds
        while time.perf_counter() < until:
            self._turn(latencies)
        elapsed = time.perf_counter() - started
        load_s = time.process_time() - busy
        if not latencies:
            raise SystemExit(f"no pair was answered within {seconds:g} s")
        seen = rates(latencies, elapsed)
        more = {"least_ms": latencies[0] * 1000, "load_s": load_s, "elapsed_s": elapsed}
        return {"pairs": len(latencies)} | seen | more

    def _ask(self, descriptor: int) -> None:
        self._sent_at[descriptor] = time.perf_counter()
        self._clients[descriptor].send(next(self._packets))  # a small packet behind a read reply: it always fits

    def _turn(self, latencies: list[float]) -> list[int]:
        """Take in what has come, let those ask again who have both replies, and return these."""
        ready = self._poll.poll(_SILENCE_S)
        if not ready:
            raise SystemExit(f"{len(self._clients)} clients got no answer within {_SILENCE_S} s")
        done: list[int] = []
        for descriptor, _ in ready:
            got = self._clients[descriptor].recv(_READ)
            if got != self._right and not self._completes(descriptor, got):
                continue
            latencies.append(time.perf_counter() - self._sent_at[descriptor])
            done.append(descriptor)
            self._ask(descriptor)
        return done

    def _completes(self, descriptor: int, got: bytes) -> bool:
        """True when ``got`` is the rest of both replies."""
        if not got:
            raise SystemExit("a client was hung up on")
        whole = self._partly.pop(descriptor, b"") + got
        if whole == self._right:
            return True
        if not self._right.startswith(whole):
            raise SystemExit(f"a client got {whole[:200]!r} instead of {self._right!r}")
        self._partly[descriptor] = whole
        return False


def main(settings: dict[str, Any]) -> None:
    """See the module."""
    seconds: float = settings.pop("seconds")
    pairs = Pairs(**settings)
    print("connected", flush=True)
    sys.stdin.readline()
    pairs.begin()
    print("measuring", flush=True)
    print(json.dumps(pairs.run(seconds)), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
