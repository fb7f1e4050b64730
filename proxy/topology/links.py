"""Links: the connections to primaries that carry subscriptions, at most one to each shard.

What lives here: what a link has sent and what its node has confirmed, keeping it connected, and reading it.  What may
not: which link a feed belongs on, and who gets its messages (the hub's, ``proxy.topology.channels``).

Some facts the code leans on:

* On a RESP3 connection (P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE answer one push for each channel, in order, or one error.
  So commands of one channel each are answered one by one, with a queue to tell what an error belongs to.
* A node whose slot goes away says ``sunsubscribe`` unasked (cluster.c: removeChannelsInSlot), and MOVED to one that
  was asked for then.  So behind each SUNSUBSCRIBE goes a PING, whose reply tells that whatever it answered was read.
* A message's frame on such a connection is the very frame a RESP3 client gets; a RESP2 client's begins with ``*``.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from proxy.codec import FramingError, ReplyState, encode_request, frame_replies
from proxy.codec.reply import bulk_value, elements, is_error
from proxy.routing.slot_map import Node
from proxy.topology.feeds import CHANNEL, KINDS, NOTIFICATIONS, RESERVED, SHARD, Feed, Kind
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

if TYPE_CHECKING:
    from proxy.topology.channels import Hub

RECEIVE = 65536  # bytes per read
DELIVERIES = 5000  # messages times clients after which everything else has its turn
CROWD = 1000  # clients of one feed above which a message is handed to so many of them at a time
BEAT = 1.0  # seconds between two looks whether a link's node still answers
IDLE = 10.0  # seconds for which a link that carries nothing is kept
RECONNECT_MIN, RECONNECT_MAX = 0.02, 0.25  # seconds between two attempts to connect a link
STEADY = 1.0  # seconds for which a link must have lasted for the next to be made without more ado
PUSH = 0x3E  # b">"
PING: Final = encode_request([b"PING"])
NOT_NOW = b"-MOVED ", b"-CLUSTERDOWN ", b"-LOADING ", b"-MASTERDOWN ", b"-TRYAGAIN ", b"-ASK "


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

    @property
    def name(self) -> str:
        """Its node, for the log."""
        return format_address(*self.node.address) if self.node is not None else f"shard {self.shard}"

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
            connection: ControlConnection | None = None
            try:
                with trio.CancelScope() as self._scope:  # the shard may get another primary meanwhile
                    connection = await self.hub.connect(self.node)
            except (ConnectionLost, ReplyError, OSError):
                self._fail()
                await trio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, RECONNECT_MAX)
                continue
            if connection is None:
                continue
            present = self.hub.cluster.primary(self.shard)
            if present is None or present.address != self.node.address:
                connection.abort()
                continue
            began = trio.current_time()
            try:
                await self._serve(connection)
            except Exception:
                self.hub.log.exception("link failed", node=self.name)
            # The same node first: what was published there while another was at home would come out of order.
            pause = RECONNECT_MIN if trio.current_time() - began > STEADY else min(pause * 2, RECONNECT_MAX)
            await trio.sleep(pause * random.uniform(0.5, 1.5))

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
            self.hub.cluster.hint()

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
                self._fail()
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


def _bulk(frame: bytes, at: int) -> tuple[bytes, int]:
    """The bulk whose length stands at ``at``, and where the next one's ``$`` stands."""
    line = frame.index(b"\r\n", at)
    end = line + 2 + int(frame[at:line])
    return frame[line + 2 : end], end + 2
