"""The hub: backend subscriptions shared by all sessions, and what comes in on them given to those who want it.

What lives here: where each feed has to be subscribed, when it is, and handing out its messages.  What may not:
connections (``proxy.topology.links``), commands and their replies to clients (control's).

Some facts the code leans on:

* PUBLISH goes over the cluster bus to every node, so ordinary channels and patterns are subscribed at one primary
  alone, the *home*; SPUBLISH stays within its shard, so a shard channel is subscribed at the primary of its slot.
* A keyspace notification stays on the node it happened on.  What may match one is subscribed at every primary; of an
  ordinary message that comes by there, too, only the home's copy counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

import structlog
import trio

from proxy.codec import key_slot
from proxy.dataplane import Client, DataPlane
from proxy.routing.slot_map import Node
from proxy.settings import TimeoutSettings
from proxy.topology.cluster import Cluster, expect
from proxy.topology.feeds import CHANNEL, KINDS, PATTERN, SHARD, Feed, Kind, Waiter
from proxy.topology.links import CROWD, PING, Link
from shard.client import ControlConnection, Credentials

RETRY = 0.05  # seconds before a subscription that a node did not take is tried again
PLACED = 1000  # feeds placed at a time: there may be very many
REMEMBERED = 10_000  # channels of which it is remembered which patterns they match
SAY_AGAIN = 60.0  # seconds before it is said again that a node refuses subscriptions


class Hub:
    """See the module.  ``timeouts.probe`` seconds without an answer end a link."""

    def __init__(
        self, plane: DataPlane, cluster: Cluster, timeouts: TimeoutSettings, credentials: Credentials
    ) -> None:
        self.plane = plane
        self.cluster = cluster
        self.patience = timeouts.probe
        self.feeds: dict[Kind, dict[bytes, Feed]] = {kind: {} for kind in KINDS}
        self.links: dict[int, Link] = {}
        self.home: Link | None = None
        """The link for ordinary channels and patterns; None while there are none."""
        self.delivered = 0
        """Messages handed to clients."""
        self.log = structlog.get_logger("channels")
        self._connect_timeout = timeouts.connect
        self._credentials = credentials
        self._nursery: trio.Nursery | None = None
        self._matching: dict[bytes, Sequence[Feed]] = {}
        self._unplaced: dict[Feed, None] = {}
        self._unplaced_event = trio.Event()
        self._refused: dict[Feed, None] = {}
        self._refused_event = trio.Event()
        self._say_again = -math.inf
        self._version = 0

    async def run(self) -> None:
        """Keep links where the slot map wants them, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for link in self.links.values():
                nursery.start_soon(link.run)
            nursery.start_soon(self._place_all)
            nursery.start_soon(self._try_again)
            while True:
                await self.cluster.updated.wait()
                if self.cluster.map.version != self._version:
                    self._map_changed()

    async def connect(self, node: Node) -> ControlConnection:
        """A RESP3 connection to a node.  Raises ``ConnectionLost``, ``ReplyError``."""
        connection = await ControlConnection.open(
            node.host,
            node.port,
            username=self._credentials.username,
            password=self._credentials.password,
            timeout=self._connect_timeout,
            protocol=3,
            client_name="ackgate-pubsub",
        )
        if node.node_id:
            await expect(connection, node.node_id)
        return connection

    # -- what control asks --------------------------------------------------------------------------------
    def feed(self, kind: Kind, name: bytes) -> Feed:
        """The feed of that name, subscribed (soon).  Whoever asks waits for it or adds a client, at once."""
        feed = self.feeds[kind].get(name)
        if feed is None:
            feed = self.feeds[kind][name] = Feed(kind, name)
            if kind is PATTERN:
                self._matching.clear()
            self._place(feed)
        return feed

    def wait(self, feeds: Iterable[Feed], done: Callable[[bytes | None], None]) -> Waiter:
        """Have ``done`` called as soon as all feeds are live; before any message that comes behind.

        Of what is live, messages that were published before may be on their way here yet: these come first.
        """
        waiter = Waiter(feeds, done)
        for feed in waiter.feeds:
            feed.waiting.append(waiter)
        live = [feed for feed in waiter.feeds if self._live(feed)]
        links = self.bringing(live)
        answers = count(1)

        def told(_: bytes | None) -> None:
            if next(answers) == len(links):
                self._tell(waiter, live)

        for link in links:
            link.ask(PING, told)
        return waiter

    def stop_waiting(self, waiter: Waiter) -> None:
        for feed in waiter.feeds:
            if waiter in feed.waiting:
                feed.waiting.remove(waiter)
            self._end_if_unwanted(feed)

    def add(self, feed: Feed, client: Client, protocol: int) -> None:
        """Give a client, in the form of this protocol, what the feed brings."""
        feed.resp2.pop(client, None)
        feed.resp3.pop(client, None)
        (feed.resp3 if protocol == 3 else feed.resp2)[client] = None

    def remove(self, feed: Feed, client: Client) -> None:
        feed.resp2.pop(client, None)
        feed.resp3.pop(client, None)
        self._end_if_unwanted(feed)

    def receivers(self, kind: Kind, channel: bytes) -> int:
        """How many of this proxy's clients a message to a channel goes to; one by two ways counts twice, as there."""
        feed = self.feeds[kind].get(channel)
        count = feed.clients if feed is not None else 0
        if kind is CHANNEL:
            count += sum(each.clients for each in self.matching(channel))
        return count

    def matching(self, channel: bytes) -> Sequence[Feed]:
        """The patterns that a channel matches."""
        found = self._matching.get(channel)
        if found is None:
            if len(self._matching) >= REMEMBERED:
                self._matching.clear()
            found = tuple(feed for feed in self.feeds[PATTERN].values() if feed.matches(channel))
            self._matching[channel] = found
        return found

    def seen_at(self, shard: int, kind: Kind, channel: bytes) -> int:
        """How many of the receivers that a shard's primary counts are this hub."""
        link = self.links.get(shard)
        if link is None or not link.connected:
            return 0
        if kind is SHARD:
            return int(self.feeds[SHARD].get(channel) in link.live)
        return link.receipts(channel)

    def link_to(self, address: tuple[str, int]) -> Link | None:
        """The link that is connected to a node."""
        links = (link for link in self.links.values() if link.connected and link.node is not None)
        return next((link for link in links if link.node is not None and link.node.address == address), None)

    def bringing(self, feeds: Sequence[Feed]) -> list[Link]:
        """The links on which messages of these feeds may be under way."""
        keys = [(feed.kind, feed.name) for feed in feeds]
        return [link for link in self.links.values() if link.connected and any(key in link.wanted for key in keys)]

    def home_shard(self) -> int | None:
        """Where PUBLISH reaches this proxy's clients without a way round, and in order; None: it does not matter."""
        return self.home.shard if self.home is not None and not self.home.failed else None

    @property
    def open_links(self) -> int:
        return sum(link.connected for link in self.links.values())

    @property
    def size(self) -> int:
        """How many feeds there are."""
        return sum(map(len, self.feeds.values()))

    def figures(self) -> dict[str, object]:
        """What INFO stats tells of them: the channels and patterns of this proxy's clients."""
        return {
            "pubsub_channels": len(self.feeds[CHANNEL]),
            "pubsub_patterns": len(self.feeds[PATTERN]),
            "pubsubshard_channels": len(self.feeds[SHARD]),
        }

    # -- where feeds are subscribed -------------------------------------------------------------------------
    def _end_if_unwanted(self, feed: Feed) -> None:
        if feed.clients or feed.waiting or self.feeds[feed.kind].get(feed.name) is not feed:
            return
        del self.feeds[feed.kind][feed.name]
        if feed.kind is PATTERN:
            self._matching.clear()
        for link in self.links.values():
            link.drop(feed)
        if not (self.feeds[CHANNEL] or self.feeds[PATTERN]):
            self.home = None

    def _place(self, feed: Feed) -> None:
        """Have the feed subscribed where it must be, and nowhere else."""
        places = list(self._places(feed))
        for link in self.links.values():
            if link not in places:
                link.drop(feed)
        for link in places:
            link.want(feed)
        if not places:
            self._again(feed)

    def _places(self, feed: Feed) -> Iterator[Link]:
        if feed.kind is SHARD:
            shard = self.plane.shard_of_slot[key_slot(feed.name)]
            if shard >= 0:
                yield self._link(shard)
            return
        if self.home is None:
            self._choose_home()
        if self.home is not None:
            yield self.home
        if feed.everywhere:
            yield from (self._link(shard) for shard in self.cluster.serving() if self._link(shard) is not self.home)

    def _choose_home(self) -> None:
        """A connected link, else one that has not failed, else the next in turn."""
        serving = sorted(self.cluster.serving())
        links = [self._link(shard) for shard in serving]
        in_turn = [link for link in links if self.home is None or link.shard > self.home.shard]
        connected = (link for link in links if link.connected and not link.failed)
        untried = (link for link in links if not link.failed)
        self.home = next(connected, None) or next(untried, None) or next(iter([*in_turn, *links]), None)

    def _link(self, shard: int) -> Link:
        link = self.links.get(shard)
        if link is None:
            link = self.links[shard] = Link(self, shard)
            if self._nursery is not None:
                self._nursery.start_soon(link.run)
        return link

    def _live(self, feed: Feed) -> bool:
        if feed.kind is SHARD:
            return any(feed in link.live for link in self.links.values())
        if self.home is None or feed not in self.home.live:
            return False
        if not feed.everywhere:
            return True
        links = (self.links.get(shard) for shard in self.cluster.serving())
        return all(link is not None and (feed in link.live or link.failed) for link in links)

    def _map_changed(self) -> None:
        self._version = self.cluster.map.version
        feeds = [*self.feeds[SHARD].values(), *(each for each in self._ordinary() if each.everywhere)]
        if self.home is not None and self.home.shard not in self.cluster.serving():
            self._choose_home()
            feeds += self._ordinary()
        for link in self.links.values():
            primary = self.cluster.primary(link.shard)
            if link.node is None or primary is None or primary.address != link.node.address:
                link.reconnect()
        self._place_soon(feeds)

    def _ordinary(self) -> list[Feed]:
        return [*self.feeds[CHANNEL].values(), *self.feeds[PATTERN].values()]

    def _place_soon(self, feeds: Iterable[Feed]) -> None:
        self._unplaced.update(dict.fromkeys(feeds))
        self._unplaced_event.set()

    async def _place_all(self) -> None:
        """Some at a time: there may be very many."""
        while True:
            await self._unplaced_event.wait()
            self._unplaced_event = trio.Event()
            while self._unplaced:
                some = list(islice(self._unplaced, PLACED))
                for feed in some:
                    del self._unplaced[feed]
                    if self.feeds[feed.kind].get(feed.name) is feed:
                        self._place(feed)
                        self.now_live(feed)  # what was missing may not be asked for any more
                await trio.lowlevel.checkpoint()

    def _again(self, feed: Feed) -> None:
        """Place it once more, a little later."""
        self._refused[feed] = None
        self._refused_event.set()

    async def _try_again(self) -> None:
        while True:
            await self._refused_event.wait()
            await trio.sleep(RETRY)
            self._refused_event = trio.Event()
            refused, self._refused = self._refused, {}
            self._place_soon(refused)

    # -- what links tell --------------------------------------------------------------------------------------
    def link_failed(self, link: Link) -> None:
        """Its node cannot be reached: what was at home there moves, and nobody waits for its notifications."""
        if self.home is link:
            self._choose_home()
            self._place_soon(self._ordinary())
        else:
            for feed in list(link.wanted.values()):
                self.now_live(feed)

    def say_lost(self, link: Link, reason: str) -> None:
        if link.wanted:
            self.log.warning("subscriptions lost, being renewed", node=link.name, reason=reason)

    def now_live(self, feed: Feed) -> None:
        """If it is: those who wait for nothing else are told."""
        if not feed.waiting or not self._live(feed):
            return
        for waiter in list(feed.waiting):
            self._tell(waiter, [feed])

    def _tell(self, waiter: Waiter, live: Sequence[Feed]) -> None:
        waiter.missing.difference_update(live)
        if not waiter.missing:
            waiter.missing = {each for each in waiter.feeds if not self._live(each)}
            if not waiter.missing:
                waiter.end(None)

    def refuse(self, feed: Feed, frame: bytes) -> None:
        """A node does not let the proxy subscribe: those who wait are told."""
        if trio.current_time() >= self._say_again:
            self._say_again = trio.current_time() + SAY_AGAIN
            self.log.error("a node refuses subscriptions", reason=frame[1:-2].decode("latin-1"))
        for waiter in list(feed.waiting):
            waiter.end(frame)
        self._again(feed)

    def not_here(self, link: Link, feed: Feed, frame: bytes) -> None:
        words = frame[1:-2].split(b" ")
        if words[0] == b"MOVED" and len(words) == 3 and link.node is not None:
            host, port = self.cluster.address_in(words[2], link.node.node_id.decode())
            self.cluster.moved(int(words[1]), host, port)
        self._again(feed)

    def went_away(self, feed: Feed) -> None:
        """The slot of a shard channel is served elsewhere, which the map may not know yet: where it was will tell."""
        self.cluster.hint()
        self._place(feed)

    def deliver(self, feed: Feed, frame: bytes) -> None:
        """Hand a message, as a RESP3 connection brings it, to everyone who wants it."""
        if feed.resp3:
            self.plane.push_all(feed.resp3, frame)
        if feed.resp2:
            self.plane.push_all(feed.resp2, b"*" + frame[1:])
        self.delivered += feed.clients

    async def deliver_to_crowd(self, feed: Feed, frame: bytes) -> None:
        """The same, some clients at a time: everything else has its turn in between, and some may leave."""
        clients = [*feed.resp3, *feed.resp2]
        in_resp2 = b"*" + frame[1:]
        for at in range(0, len(clients), CROWD):
            some = clients[at : at + CROWD]
            with self.plane.turn():
                self.plane.push_all([client for client in some if client in feed.resp3], frame)
                self.plane.push_all([client for client in some if client in feed.resp2], in_resp2)
            self.delivered += len(some)
            await trio.lowlevel.checkpoint()
