"""The hub: backend subscriptions shared by all sessions, and what comes in on them given to those who want it.

What lives here: feeds (a channel, a pattern or a shard channel, and the clients that want it), links (at most one
connection to each shard's primary that carries subscriptions), and where each feed has to be subscribed.  What may
not: commands and their replies to clients (control's).

Some facts the code leans on:

* PUBLISH goes over the cluster bus to every node, so ordinary channels and patterns are subscribed at one primary
  alone, the *home*; SPUBLISH stays within its shard, so a shard channel is subscribed at the primary of its slot.
* A keyspace notification stays on the node it happened on.  What may match one is subscribed at every primary; of an
  ordinary message that comes by there, too, only the home's copy counts.
* On a RESP3 connection (P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE answer one push for each channel, in order, or one error.
  So commands of one channel each are answered one by one, with a queue to tell what an error belongs to.
* A node whose slot goes away says ``sunsubscribe`` unasked (cluster.c: removeChannelsInSlot), and MOVED to one that
  was asked for then.  So behind each SUNSUBSCRIBE goes a PING, whose reply tells that whatever it answered was read.
* A message's frame on such a connection is the very frame a RESP3 client gets; a RESP2 client's begins with ``*``.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import structlog
import trio

from proxy.codec import FramingError, ReplyState, encode_request, frame_replies, key_slot
from proxy.codec.reply import bulk_value, elements, is_error
from proxy.dataplane import Client, DataPlane
from proxy.routing.glob import glob, literal_prefix
from proxy.routing.slot_map import Node
from proxy.settings import TimeoutSettings
from proxy.topology.cluster import Cluster
from shard.client import ConnectionLost, ControlConnection, Credentials, ReplyError, format_address

RESERVED: Final = b"__ackgate__"
"""What the names of channels begin with that proxies alone may use: clients neither publish nor hear there."""
NOTIFICATIONS: Final = b"__keyspace@", b"__keyevent@"
"""What the channels of keyspace notifications begin with (notify.c)."""

RECEIVE = 65536  # bytes per read
DELIVERIES = 5000  # messages times clients after which everything else has its turn
CROWD = 1000  # clients of one feed above which a message is handed to so many of them at a time
PLACED = 1000  # feeds placed at a time, likewise
REMEMBERED = 10_000  # channels of which it is remembered which patterns they match
SAY_AGAIN = 60.0  # seconds before it is said again that a node refuses subscriptions
BEAT = 1.0  # seconds between two looks whether a link's node still answers
IDLE = 10.0  # seconds for which a link that carries nothing is kept
RETRY = 0.05  # seconds before a subscription that a node did not take is tried again
RECONNECT_MIN, RECONNECT_MAX = 0.02, 0.25  # seconds between two attempts to connect a link
PUSH = 0x3E  # b">"
PING: Final = encode_request([b"PING"])
NOT_NOW = b"-MOVED ", b"-CLUSTERDOWN ", b"-LOADING ", b"-MASTERDOWN ", b"-TRYAGAIN ", b"-ASK "


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


class Sent(NamedTuple):
    """What was sent on a link and is not answered: a subscription, an unsubscription, or a question.

    Of an unsubscription from a shard channel, it is the PING behind it.
    """

    kind: Kind | None
    name: bytes
    feed: Feed | None = None
    replied: Callable[[bytes | None], None] | None = None


class Link:
    """A connection to one shard's primary, there as long as any feed wants it."""

    def __init__(self, hub: Hub, shard: int) -> None:
        self.hub = hub
        self.shard = shard
        self.node: Node | None = None
        """To which it is connected, or would be."""
        self.connected = False
        self.failed = False
        """The last attempt to connect it failed: nobody waits for it."""
        self.wanted: dict[tuple[Kind, bytes], Feed] = {}
        self.live: set[Feed] = set()
        """What the node has confirmed, and nothing was sent since that ends it."""
        self._latest: dict[tuple[Kind, bytes], Sent] = {}
        """The last subscription sent of each."""
        self._leaving: Counter[bytes] = Counter()
        """Shard channels by how often they are being unsubscribed."""
        self._fifo: deque[Sent] = deque()
        self._out: list[bytes] = []
        self._dirty = trio.Event()
        self._wake = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._heard = 0.0
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._need = 1
        self._state: ReplyState | None = None

    # -- what it carries -----------------------------------------------------------------------------
    def want(self, feed: Feed) -> None:
        key = feed.kind, feed.name
        if self.wanted.get(key) is feed:
            return
        self.wanted[key] = feed
        if self.connected:
            self._subscribe(feed)
        else:
            self.wake()

    def drop(self, feed: Feed) -> None:
        key = feed.kind, feed.name
        if self.wanted.get(key) is not feed:
            return
        self.forget(feed)
        if not self.connected:
            return
        raw = encode_request([feed.kind.unsubscribe, feed.name])
        if feed.kind is SHARD:
            self._leaving[feed.name] += 1
            raw += PING
        self._send(Sent(feed.kind, feed.name), raw)

    def forget(self, feed: Feed) -> None:
        """The feed is not subscribed here any more."""
        self.wanted.pop((feed.kind, feed.name), None)
        self._latest.pop((feed.kind, feed.name), None)
        self.live.discard(feed)

    def ask(self, raw: bytes, replied: Callable[[bytes | None], None]) -> None:
        """Put a question behind everything sent before; None is the answer of a connection that was lost."""
        self._send(Sent(None, b"", None, replied), raw)

    def receipts(self, channel: bytes) -> int:
        """How many receivers of a message to an ordinary channel the node sees in this link."""
        patterns = sum(1 for feed in self.hub.matching(channel) if feed in self.live)
        return patterns + (self.hub.feeds[CHANNEL].get(channel) in self.live)

    def _subscribe(self, feed: Feed) -> None:
        sent = Sent(feed.kind, feed.name, feed)
        self._latest[feed.kind, feed.name] = sent
        self._send(sent, encode_request([feed.kind.subscribe, feed.name]))

    def _send(self, sent: Sent, raw: bytes) -> None:
        self._fifo.append(sent)
        self._out.append(raw)
        self._dirty.set()

    # -- its connection --------------------------------------------------------------------------------
    def wake(self) -> None:
        """Something changed: look again whether to connect."""
        self._wake.set()
        self._wake = trio.Event()

    def reconnect(self) -> None:
        """Leave the node it is connected to."""
        if self._scope is not None:
            self._scope.cancel()
        self.wake()

    async def run(self) -> None:
        """Keep it connected while it is wanted."""
        pause = RECONNECT_MIN
        while True:
            wake = self._wake
            self.node = self.hub.cluster.primary(self.shard) if self.wanted else None
            if self.node is None:
                if self.wanted:
                    self._fail()
                await wake.wait()
                continue
            try:
                connection = await self.hub.connect(self.node)
            except (ConnectionLost, ReplyError, OSError):
                self._fail()
                await trio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, RECONNECT_MAX)
                continue
            pause = RECONNECT_MIN
            if self.hub.cluster.primary(self.shard) is not self.node:
                connection.abort()
                continue
            try:
                await self._serve(connection)
            except Exception:
                self.hub.log.exception("link failed", node=_name(self))

    def _fail(self) -> None:
        self.failed = True
        self.hub.cluster.hint()
        self.hub.link_failed(self)

    async def _serve(self, connection: ControlConnection) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.detach()))
        with trio.CancelScope() as self._scope:
            try:
                self._up()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, stream)
                    nursery.start_soon(self._beat)
                    await self._read(stream)
                    nursery.cancel_scope.cancel()
            finally:
                self._scope = None
                stream.socket.close()
                self._lost()

    def _up(self) -> None:
        self.connected = True
        self.failed = False
        self._heard = trio.current_time()
        for feed in self.wanted.values():
            self._subscribe(feed)

    def _lost(self) -> None:
        unanswered, self._fifo = self._fifo, deque()
        self.connected = False
        self.live.clear()
        self._latest.clear()
        self._leaving.clear()
        self._out.clear()
        self._chunks, self._buffered, self._need, self._state = [], 0, 1, None
        for sent in unanswered:
            if sent.replied is not None:
                sent.replied(None)
        if self.wanted:
            self._fail()

    async def _write(self, stream: trio.SocketStream) -> None:
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            data = b"".join(self._out)
            self._out.clear()
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                self.reconnect()

    async def _beat(self) -> None:
        """Notice a node that hangs, and that nothing is wanted of it any more."""
        idle_since: float | None = None
        while True:
            await trio.sleep(BEAT)
            now = trio.current_time()
            if self._fifo and now - self._heard > self.hub.patience:
                self.hub.say_lost(self, "it does not answer")
                self.reconnect()
            elif not self._fifo:
                self.ask(PING, lambda frame: None)
            idle_since = None if self.wanted else idle_since or now
            if idle_since is not None and now - idle_since > IDLE:
                self.reconnect()

    async def _read(self, stream: trio.SocketStream) -> None:
        while True:
            try:
                data = await stream.receive_some(RECEIVE)
                frames = self._frames(data)
            except (trio.BrokenResourceError, FramingError) as problem:
                self.hub.say_lost(self, str(problem.__cause__ or problem))
                return
            if not data:
                self.hub.say_lost(self, "closed by the node")
                return
            self._heard = trio.current_time()
            await self._take_all(frames)

    def _frames(self, data: bytes) -> list[bytes]:
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered < self._need:
            return []
        buffer = b"".join(self._chunks)
        frames, consumed, self._state = frame_replies(buffer, self._state)
        rest = buffer[consumed:]
        self._chunks = [rest]
        self._buffered = len(rest)
        self._need = len(rest) + self._state.missing if self._state is not None else 1
        return frames

    # -- what comes in on it ----------------------------------------------------------------------------
    async def _take_all(self, frames: list[bytes]) -> None:
        """Many messages in one turn, but for those that go to a crowd."""
        at = 0
        while at < len(frames):
            work = 0
            crowded: Feed | None = None
            with self.hub.plane.turn():
                while at < len(frames) and work < DELIVERIES and crowded is None:
                    feed = self._take(frames[at])
                    if feed is not None and feed.clients > CROWD:
                        crowded = feed
                    elif feed is not None:
                        self.hub.deliver(feed, frames[at])
                        work += feed.clients
                    work += 1
                    at += 1
            if crowded is not None:
                await self.hub.deliver_to_crowd(crowded, frames[at - 1])
            elif at < len(frames):
                await trio.lowlevel.checkpoint()

    def _take(self, frame: bytes) -> Feed | None:
        """Deal with one frame; the feed that it is a message of."""
        if frame[0] != PUSH:
            self._replied(frame)
            return None
        for kind in KINDS:
            if frame.startswith(kind.message):
                return self._feed_of(kind, frame)
        words = elements(frame)
        self._confirmed((bulk_value(words[0]) or b"").lower(), bulk_value(words[1]) or b"")
        return None

    def _feed_of(self, kind: Kind, message: bytes) -> Feed | None:
        name, end = _bulk(message, len(kind.message))
        feed = self.wanted.get((kind, name))
        if feed is None or kind is SHARD:
            return feed
        channel = name if kind is CHANNEL else _bulk(message, end + 1)[0]
        if channel.startswith(RESERVED):
            return None
        if self is not self.hub.home and not channel.startswith(NOTIFICATIONS):
            return None  # the home has it, too
        return feed

    def _confirmed(self, word: bytes, name: bytes) -> None:
        if word == SHARD.unsubscribe:
            feed = self.wanted.get((SHARD, name))
            if feed is not None and not self._leaving[name]:
                self.forget(feed)
                self.hub.went_away(feed)
            return
        sent = self._fifo[0] if self._fifo else None
        if sent is None or sent.kind is None or sent.name != name or word not in sent.kind[:2]:
            self._confused()
            return
        self._fifo.popleft()
        if sent.feed is not None and self._latest.get((sent.kind, name)) is sent:
            self.live.add(sent.feed)
            self.hub.now_live(sent.feed)

    def _confused(self) -> None:
        self.hub.say_lost(self, "an answer that nobody asked for")
        self.reconnect()

    def _replied(self, frame: bytes) -> None:
        """A reply that is no push: to a question, or the error of a subscription."""
        if not self._fifo:
            self._confused()
            return
        if self._fifo[0].kind is SHARD and self._fifo[0].feed is None:
            if not is_error(frame):
                self._left(self._fifo.popleft().name)
            return
        sent = self._fifo.popleft()
        if sent.replied is not None:
            sent.replied(frame)
        elif sent.feed is not None and self._latest.get((sent.feed.kind, sent.name)) is sent:
            self.forget(sent.feed)
            if frame.startswith(NOT_NOW):
                self.hub.not_here(self, sent.feed, frame)
            else:
                self.hub.refuse(sent.feed, frame)


    def _left(self, name: bytes) -> None:
        self._leaving[name] -= 1
        if not self._leaving[name]:
            del self._leaving[name]


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
        return await ControlConnection.open(
            node.host,
            node.port,
            username=self._credentials.username,
            password=self._credentials.password,
            timeout=self._connect_timeout,
            protocol=3,
            client_name="ackgate-pubsub",
        )

    # -- what control asks --------------------------------------------------------------------------------
    def is_live(self, kind: Kind, name: bytes) -> bool:
        """Whether a message published from now on would be seen."""
        feed = self.feeds[kind].get(name)
        return feed is not None and self._live(feed)

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
        """Have ``done`` called as soon as all feeds are live; before any message that comes behind."""
        waiter = Waiter(feeds, done)
        for feed in waiter.feeds:
            feed.waiting.append(waiter)
            if self._live(feed):
                waiter.missing.discard(feed)
        if not waiter.missing:
            waiter.end(None)
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

    def home_shard(self) -> int | None:
        """Where PUBLISH reaches this proxy's clients without a way round; None when it does not matter."""
        return self.home.shard if self.home is not None and self.home.connected else None

    @property
    def open_links(self) -> int:
        return sum(link.connected for link in self.links.values())

    @property
    def size(self) -> int:
        """How many feeds there are."""
        return sum(map(len, self.feeds.values()))

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
        connected = (link for link in links if link.connected)
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
            self.log.warning("subscriptions lost, being renewed", node=_name(link), reason=reason)

    def now_live(self, feed: Feed) -> None:
        """If it is: those who wait for nothing else are told."""
        if not feed.waiting or not self._live(feed):
            return
        for waiter in list(feed.waiting):
            waiter.missing.discard(feed)
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


def _bulk(frame: bytes, at: int) -> tuple[bytes, int]:
    """The bulk whose length stands at ``at``, and where the next one's ``$`` stands."""
    line = frame.index(b"\r\n", at)
    end = line + 2 + int(frame[at:line])
    return frame[line + 2 : end], end + 2


def _name(link: Link) -> str:
    return format_address(*link.node.address) if link.node is not None else f"shard {link.shard}"
