"""The other workers behind the same port, as far as commands are about their clients, too (CLIENT LIST, KILL, UNBLOCK).

What lives here: what a worker knows of its place among them. What may not: processes and sockets (``proxy.workers``).
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

ID_BITS, ID_COUNT_BITS = 53, 32
"""Of CLIENT ID: so many bits JavaScript keeps, and so many of them count up; where that starts each proxy draws by lot,
so that those of several differ."""
ID_WORKER_BITS = 8
"""The lowest of them are the worker's number, where there are several."""
ID_ROOM = 64  # starts that are never drawn, so that who counts far stays below the bits


class Siblings(Protocol):
    """All other workers of the same parent."""

    async def ask(self, what: str, value: Any) -> list[Any]:
        """The answers of those that answer soon."""


class Nobody:
    """One who has no siblings."""

    async def ask(self, what: str, value: Any) -> list[Any]:
        return []


class Place(NamedTuple):
    """A worker's. ``number`` from 1 on, 0 of a proxy that is no worker; ``late``: it comes to a port that others serve
    already, and takes no connection before it can do something with it; ``secret``: shared by workers of one parent."""

    number: int = 0
    late: bool = False
    secret: str | None = None
    siblings: Siblings = Nobody()

    @property
    def alone(self) -> bool:
        return not self.number

    def client_ids(self) -> Iterator[int]:
        """CLIENT IDs that no other proxy gives, as near as can be had without asking."""
        starts = (1 << ID_BITS - ID_COUNT_BITS) - ID_ROOM
        start = secrets.randbelow(starts) << ID_COUNT_BITS
        if self.alone:
            return itertools.count(start | 1)
        return itertools.count(start | self.number, 1 << ID_WORKER_BITS)


ALONE = Place()


def worker_of(client: int) -> int:
    """The number of the worker whose client has this CLIENT ID."""
    return client & (1 << ID_WORKER_BITS) - 1
