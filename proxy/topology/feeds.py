"""Feeds: a channel, a pattern or a shard channel, and the clients that want it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from proxy.dataplane import Client
from proxy.routing.glob import glob, literal_prefix

RESERVED: Final = b"__ackgate__"
"""What the names of channels begin with that proxies alone may use: clients neither publish nor hear there."""
NOTIFICATIONS: Final = b"__keyspace@", b"__keyevent@"
"""What the channels of keyspace notifications begin with (notify.c)."""


class Kind(NamedTuple):
    """A kind of subscription, by the words of its commands."""

    subscribe: bytes
    unsubscribe: bytes
    message: bytes


CHANNEL: Final = Kind(b"subscribe", b"unsubscribe", b">3\r\n$7\r\nmessage\r\n$")
PATTERN: Final = Kind(b"psubscribe", b"punsubscribe", b">4\r\n$8\r\npmessage\r\n$")
SHARD: Final = Kind(b"ssubscribe", b"sunsubscribe", b">3\r\n$8\r\nsmessage\r\n$")
KINDS: Final = (CHANNEL, PATTERN, SHARD)


class Feed:
    """One channel or pattern, and who wants it."""

    __slots__ = ("everywhere", "kind", "matches", "name", "resp2", "resp3", "waiting")

    def __init__(self, kind: Kind, name: bytes) -> None:
        self.kind = kind
        self.name = name
        self.resp2: dict[Client, None] = {}
        """Its clients that speak RESP2; in the order in which they came."""
        self.resp3: dict[Client, None] = {}
        self.waiting: list[Waiter] = []
        self.everywhere = kind is not SHARD and may_notify(kind, name)
        """It may bring keyspace notifications."""
        self.matches: Callable[[bytes], bool] = glob(name) if kind is PATTERN else name.__eq__

    @property
    def clients(self) -> int:
        return len(self.resp2) + len(self.resp3)


def may_notify(kind: Kind, name: bytes) -> bool:
    """Whether keyspace notifications may come of it; of a pattern rather too often than not."""
    if kind is CHANNEL:
        return name.startswith(NOTIFICATIONS)
    literal = literal_prefix(name)
    return any(literal.startswith(prefix) or prefix.startswith(literal) for prefix in NOTIFICATIONS)


class Waiter:
    """Somebody who is told once feeds are live: ``done(None)``, or ``done(error frame)`` when a node refuses one."""

    def __init__(self, feeds: Iterable[Feed], done: Callable[[bytes | None], None]) -> None:
        self.feeds = list(feeds)
        self.missing = set(self.feeds)
        """Which may not be live yet."""
        self.over = False
        self._done = done

    def end(self, refusal: bytes | None) -> None:
        if not self.over:
            self.over = True
            self._done(refusal)
