"""What one session has subscribed to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.topology.channels import Hub
from proxy.topology.feeds import CHANNEL, PATTERN, SHARD, Feed, Kind

if TYPE_CHECKING:
    from proxy.sessions.session import Session


class Subscriptions:
    """Of a session that has any; one that has left the last has none (``session.subscriptions`` None)."""

    __slots__ = ("_hub", "_session", "feeds")

    def __init__(self, session: Session, hub: Hub) -> None:
        self._session = session
        self._hub = hub
        self.feeds: dict[Kind, dict[bytes, Feed]] = {CHANNEL: {}, PATTERN: {}, SHARD: {}}

    @property
    def channels(self) -> int:
        return len(self.feeds[CHANNEL])

    @property
    def patterns(self) -> int:
        return len(self.feeds[PATTERN])

    @property
    def shard_channels(self) -> int:
        return len(self.feeds[SHARD])

    @property
    def total(self) -> int:
        return sum(map(len, self.feeds.values()))

    def count(self, kind: Kind) -> int:
        """What the reply to a command of this kind tells: shard channels are counted apart."""
        return self.shard_channels if kind is SHARD else self.channels + self.patterns

    def add(self, feed: Feed) -> None:
        """Receive from now on what the feed brings."""
        client = self._session.client
        client.subscriber = True
        self.feeds[feed.kind][feed.name] = feed
        self._hub.add(feed, client, self._session.protocol)

    def remove(self, kind: Kind, name: bytes) -> None:
        feed = self.feeds[kind].pop(name, None)
        if feed is not None:
            self._hub.remove(feed, self._session.client)
            self._end_if_empty()

    def speak(self, protocol: int) -> None:
        """The session changes its protocol: what comes is in that form from now on."""
        for feeds in self.feeds.values():
            for feed in feeds.values():
                self._hub.add(feed, self._session.client, protocol)

    def leave(self) -> None:
        """Leave everything, without a word (pubsub.c: what RESET and the end of a connection do)."""
        for feeds in self.feeds.values():
            for feed in feeds.values():
                self._hub.remove(feed, self._session.client)
            feeds.clear()
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not any(self.feeds.values()) and self._session.subscriptions is self:
            self._session.subscriptions = None
            self._session.client.subscriber = False
