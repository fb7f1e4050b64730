"""The bus: a reserved channel of the engine's pub/sub, who is heard on it, and what this proxy says there.

Some facts the code leans on:

* PUBLISH at any node, a replica too, reaches subscribers at every node, over the cluster's own bus.
* CLIENT PAUSE WRITE postpones PUBLISH at the node that is paused.  Replicas are never paused, so a message goes by one
  of those wherever there is one.
* Pub/sub promises nothing: so two nodes are listened to, and a message that comes twice is taken once.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import hiredis
import structlog
import trio

from proxy.peers.messages import Message, NotAuthentic, OutOfTime, Reader, numbers_of, seal
from proxy.topology.cluster import Cluster
from proxy.topology.feeds import RESERVED
from proxy.topology.watch import NodeWatch
from shard.client import ConnectionLost, ControlConnection, ReplyError

CHANNEL = RESERVED + b":peers"
EARS = 2  # nodes that are listened to
QUIET, BUSY = 1.0, 0.25  # seconds between two messages; while there is something that must not be forgotten
FORGET = 2.5  # seconds without a message after which a peer is gone
CONFIRM = 0.25  # seconds that peers have to confirm
PUBLISH = 0.2  # seconds that a node has to take a message before another is tried
TRIES = 3
PING = 1.0  # seconds between two looks whether a node that is listened to is still there
AGAIN = 0.1  # seconds before another node is listened to
JOIN = 2.0  # seconds at most that it takes to learn who else is there, at the start
ANSWERS = 0.1  # seconds that peers have for that, once we hear ourselves
RECEIVE = 65536  # bytes per read
SAY_AGAIN = 60.0  # seconds before it is said again that messages are not for us

Heard = Callable[[str, Any], None]
"""``heard(peer, what it tells)``, at once; the peer is gone when it tells None."""
Done = Callable[[], Awaitable[None]]
"""Comes back when everything that follows from what was heard is done."""


class _Topic:
    def __init__(self, tell: Callable[[], Any], heard: Heard, done: Done) -> None:
        self.tell = tell
        self.heard = heard
        self.done = done


class _Peer:
    def __init__(self) -> None:
        self.heard_at = 0.0
        self.confirmed = -1
        """The last of our messages that it has done what follows from."""


class Peers:
    """See the module.  ``key`` None: there are no peers, and nothing is said or heard."""

    def __init__(self, cluster: Cluster, key: bytes | None) -> None:
        self.cluster = cluster
        self.name = secrets.token_hex(16)
        self.busy = False
        """Peers must hear of us more often: they do not believe us for long."""
        self.peers: dict[str, _Peer] = {}
        self.sent = self.taken = self.refused = 0
        self.log = structlog.get_logger("peers")
        self._key = key
        self._reader = Reader(key or b"", self.name)
        self._topics: dict[str, _Topic] = {}
        self._number = 0
        self._to_confirm: dict[str, int] = {}
        self._confirmed = trio.Event()
        self._heard_own = trio.Event()
        self._joined = trio.Event()
        self._speak = trio.Event()
        self._mouth: ControlConnection | None = None
        self._mouth_lock = trio.Lock()
        self._ears: list[NodeWatch | None] = [None] * EARS
        self._nursery: trio.Nursery | None = None
        self._say_again = -math.inf

    @property
    def on(self) -> bool:
        """Whether there is a secret to share."""
        return self._key is not None

    def topic(self, name: str, tell: Callable[[], Any], heard: Heard, done: Done) -> None:
        """Have something told with every message, and be told what peers tell of it."""
        self._topics[name] = _Topic(tell, heard, done)

    async def joined(self) -> None:
        """Come back once it is known who else is there and what they tell, or nobody can be heard."""
        if self.on:
            await self._joined.wait()

    async def run(self) -> None:
        """Listen and speak, for ever."""
        if not self.on:
            return
        while not self.cluster.map.version:
            await self.cluster.updated.wait()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for ear in range(EARS):
                nursery.start_soon(self._listen_for_ever, ear)
            nursery.start_soon(self._join)
            nursery.start_soon(self._forget_for_ever)
            while True:
                speak = self._speak
                with trio.move_on_after(BUSY if self.busy else QUIET):
                    await speak.wait()
                self._speak = trio.Event()
                await self._say()

    async def tell(self) -> None:
        """Tell everybody now; comes back when all peers have done what follows from it, or have had their time."""
        if not self.on:
            return
        with trio.move_on_after(CONFIRM):
            number = await self._say(confirm=bool(self.peers))
            while any(peer.confirmed < number for peer in self.peers.values()):
                await self._confirmed.wait()

    def tell_soon(self) -> None:
        self._speak.set()

    # -- speaking ------------------------------------------------------------------------------------
    async def _join(self) -> None:
        with trio.move_on_after(JOIN):
            while not self._heard_own.is_set():
                await self._say(ask=True)
                with trio.move_on_after(AGAIN):
                    await self._heard_own.wait()
            await trio.sleep(ANSWERS)
        if not self._heard_own.is_set():
            cure = "the proxies' own user (cluster.username) needs every right; see whether the nodes reach one another"
            self.log.warning("nothing comes back on the proxies' channel: a pause may reach no other proxy", cure=cure)
        self._joined.set()

    async def _say(self, ask: bool = False, confirm: bool = False) -> int:
        """Publish all that there is to tell; the message's number."""
        assert self._key is not None
        async with self._mouth_lock:
            self._number += 1
            number = self._number
            topics = {name: topic.tell() for name, topic in self._topics.items()}
            confirmed = dict(self._to_confirm)
            message = Message(self.name, time.time(), number, topics, ask, confirm, confirmed)
            data = seal(message, self._key)
            failed: set[tuple[str, int]] = set()
            for _ in range(TRIES):
                try:
                    with trio.fail_after(PUBLISH):
                        await (await self._connection(failed)).call("PUBLISH", CHANNEL, data)
                    self.sent += 1
                    break
                except (ConnectionLost, ReplyError, trio.TooSlowError):
                    self._hush()
        return number

    async def _connection(self, failed: set[tuple[str, int]]) -> ControlConnection:
        """To a replica, unless there is none that answers.  ``failed`` were tried: one of them is taken at last."""
        kept = self._mouth
        nodes = self.mouths()
        if kept is not None and not kept.closed and (kept.host, kept.port) in nodes:
            failed.add((kept.host, kept.port))
            return kept
        self._hush()
        if not nodes:
            raise ConnectionLost("no node answers")
        address = random.choice([node for node in nodes if node not in failed] or nodes)
        failed.add(address)
        self._mouth = await self.cluster.connect(*address, name="ackgate-peers")
        return self._mouth

    def mouths(self) -> list[tuple[str, int]]:
        """The nodes to publish at: replicas that answer, or, where there are none, primaries."""
        replicas = {node.address for shard in self.cluster.map.shards for node in shard.replicas}
        alive = [watch for watch in self.cluster.nodes.values() if watch.alive and not watch.loading]
        return [each.address for each in alive if each.address in replicas] or [each.address for each in alive]

    @property
    def heard_in_pause(self) -> bool:
        """Whether we can be heard while primaries are paused: there is a replica."""
        replicas = {node.address for shard in self.cluster.map.shards for node in shard.replicas}
        return any(address in replicas for address in self.mouths())

    def _hush(self) -> None:
        if self._mouth is not None:
            self._mouth.abort()
            self._mouth = None

    # -- listening -----------------------------------------------------------------------------------
    async def _listen_for_ever(self, ear: int) -> None:
        while True:
            others = [each for each in self._ears if each is not None]
            alive = [each for each in self.cluster.nodes.values() if each.alive and not each.loading]
            free = [each for each in alive if each not in others]
            if free:
                watch = self._ears[ear] = random.choice(free)
                # Another one then; topology tells of nodes that do not answer.
                with suppress(ConnectionLost, ReplyError, OSError, trio.BrokenResourceError, hiredis.ProtocolError):
                    await self._listen(watch)
                self._ears[ear] = None
            await trio.sleep(AGAIN * random.uniform(0.5, 1.5))

    async def _listen(self, watch: NodeWatch) -> None:
        """Take what comes by way of one node, for as long as it answers."""
        connection = await self.cluster.connect(*watch.address, name="ackgate-peers")
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.detach()))
        reader = hiredis.Reader()
        waiting = 0
        try:
            await stream.send_all(_SUBSCRIBE)
            while True:
                data = b""
                with trio.move_on_after(PING) as quiet:
                    data = await stream.receive_some(RECEIVE)
                if quiet.cancelled_caught:
                    if waiting > 1:
                        return
                    waiting += 1
                    await stream.send_all(_PING)
                    continue
                if not data:
                    return
                waiting = 0
                reader.feed(data)
                while (reply := reader.gets()) is not False:
                    self._take(reply)
        finally:
            stream.socket.close()

    def _take(self, reply: Any) -> None:
        if not isinstance(reply, list) or len(reply) != 3 or reply[:2] != [b"message", CHANNEL]:
            return
        data = bytes(reply[2])
        try:
            message = self._reader.open(data, time.time())
        except NotAuthentic:
            self._refuse("it is not sealed with our secret", "give all proxies of a cluster the same peers.secret_file")
        except OutOfTime as by:
            self._refuse(f"it is {by} off our time", "set the clocks of the proxies' hosts")
        else:
            if message is not None:
                self._hear(message)
            elif self.name.encode() in data:
                self._heard_own.set()

    def _refuse(self, reason: str, cure: str) -> None:
        self.refused += 1
        if trio.current_time() >= self._say_again:
            self._say_again = trio.current_time() + SAY_AGAIN
            self.log.warning("a message on the proxies' channel is not taken", reason=reason, cure=cure)

    def _hear(self, message: Message) -> None:
        self.taken += 1
        peer = self.peers.get(message.sender)
        if peer is None:
            peer = self.peers[message.sender] = _Peer()
            self.log.info("peer", peer=message.sender[:8], peers=len(self.peers))
        peer.heard_at = trio.current_time()
        for name, topic in self._topics.items():
            if name in message.topics:
                topic.heard(message.sender, message.topics[name])
        confirmed = numbers_of(message.confirmed, self.name)
        if confirmed > peer.confirmed:
            peer.confirmed = confirmed
            self._confirmed.set()
            self._confirmed = trio.Event()
        if message.confirm:
            assert self._nursery is not None
            self._nursery.start_soon(self._confirm, message)
        elif message.ask:
            self.tell_soon()

    async def _confirm(self, message: Message) -> None:
        for topic in list(self._topics.values()):
            await topic.done()
        self._to_confirm[message.sender] = max(message.number, self._to_confirm.get(message.sender, -1))
        await self._say()

    async def _forget_for_ever(self) -> None:
        while True:
            await trio.sleep(QUIET / 4)
            now = trio.current_time()
            for name in [name for name, peer in self.peers.items() if now - peer.heard_at > FORGET]:
                del self.peers[name]
                self._to_confirm.pop(name, None)
                self.log.info("peer gone", peer=name[:8], peers=len(self.peers))
                for topic in self._topics.values():
                    topic.heard(name, None)
                self._confirmed.set()
                self._confirmed = trio.Event()


_SUBSCRIBE = b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(CHANNEL), CHANNEL)
_PING = b"*1\r\n$4\r\nPING\r\n"
