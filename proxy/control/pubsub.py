"""The SUBSCRIBE family, PUBLISH, SPUBLISH and PUBSUB.

A session's subscriptions are its own; those at the nodes are the hub's (``proxy.topology.channels``), one for all.
What nodes tell of subscribers is therefore mended: the hub's own connections are taken out, this proxy's clients put
in.  Clients of another proxy count as its hub does, as one; PUBLISH itself counts what is connected to one node, as
any cluster node does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import trio

from proxy.codec import encode_request, key_slot
from proxy.codec.reply import array, bulk, decode, error, integer, integer_value, is_error, null, push
from proxy.control.call import Call, Handler, Step
from proxy.control.permissions import Permissions
from proxy.control.sending import NOT_SERVED, Sender
from proxy.dataplane import Request
from proxy.routing import Command
from proxy.sessions.session import Session
from proxy.sessions.subscriptions import Subscriptions
from proxy.topology.channels import Hub
from proxy.topology.feeds import CHANNEL, KINDS, PATTERN, RESERVED, SHARD, Kind
from proxy.topology.links import PING, Link
from proxy.topology.watch import NodeWatch
from shard.client import ConnectionLost, ReplyError

Own = frozenset[tuple[Kind, bytes]]
"""What the hub itself had subscribed at a node when the node was asked."""
T = TypeVar("T")
SUBSCRIBE = {kind.subscribe: kind for kind in KINDS}
UNSUBSCRIBE = {kind.unsubscribe: kind for kind in KINDS}
BARRIERS = frozenset({*SUBSCRIBE, *UNSUBSCRIBE, b"pubsub"})
"""What takes steps of its own, or changes how the session's next command is taken."""
MAY_SUBSCRIBER = frozenset({*SUBSCRIBE, *UNSUBSCRIBE, b"ping", b"quit", b"reset"})
"""What a RESP2 session may send while it has subscriptions."""
ONLY = b"Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
NAMING = frozenset({*SUBSCRIBE, b"publish", b"spublish"})
"""What names channels to use."""
IS_RESERVED = error(b"ERR channels whose names begin with '%b' are reserved for the proxies" % RESERVED)
NO_CHANNEL = b"-NOPERM No permissions to access a channel\r\n"
LOOK_AGAIN = 1.0  # seconds before it is asked again who may not hear any more, where no node told
TOO_LATE = error(b"CLUSTERDOWN the subscription could not be made at a primary in time: try again")


def refusal(session: Session, command: Command, args: Sequence[bytes]) -> bytes | None:
    """The error for what a subscriber may not send, and for channels that are not for clients (server.c)."""
    name = command.name
    if session.subscriptions is not None and session.protocol == 2 and name not in MAY_SUBSCRIBER:
        text = ONLY % name
        return error(b"EXECABORT Transaction discarded because of: " + text if name == b"exec" else b"ERR " + text)
    if name in NAMING:
        channels = args[1:2] if name in (b"publish", b"spublish") else args[1:]
        if any(channel.startswith(RESERVED) for channel in channels):
            return IS_RESERVED
    return None


class PubSubCommands:
    """See the module.

    ``patience`` in seconds for a subscription to be made; ``most`` of them for one session; ``sessions`` are all.
    """

    def __init__(
        self,
        sender: Sender,
        hub: Hub,
        permissions: Permissions,
        sessions: Mapping[int, Session],
        patience: float,
        most: int,
    ) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.hub = hub
        self.permissions = permissions
        self.sessions = sessions
        self._users_changed = trio.Event()
        self._patience = patience
        self._most = most
        self.handlers: dict[bytes, Handler] = {
            **dict.fromkeys(SUBSCRIBE, self._subscribe),
            **dict.fromkeys(UNSUBSCRIBE, self._unsubscribe),
            b"publish": self._publish,
            b"spublish": self._spublish,
            b"pubsub|channels": self._channels,
            b"pubsub|shardchannels": self._channels,
            b"pubsub|numsub": self._numsub,
            b"pubsub|shardnumsub": self._numsub,
            b"pubsub|numpat": self._numpat,
        }

    # -- who may not any more --------------------------------------------------------------------------
    async def run(self) -> None:
        """Close subscribers whose users lose their right to a channel, for ever (acl.c: ACLKillPubsubClients...)."""
        while True:
            await self._users_changed.wait()
            self._users_changed = trio.Event()
            unsure = False
            for session in list(self.sessions.values()):
                if session.subscriptions is None:
                    continue
                lost = await self._has_lost(session)
                if lost:
                    self.plane.kill(session.client)
                unsure = unsure or lost is None
            if unsure:
                await trio.sleep(LOOK_AGAIN)
                self._users_changed.set()

    def users_changed(self) -> None:
        """The rules of some user are others than before."""
        self._users_changed.set()

    async def _has_lost(self, session: Session) -> bool | None:
        """None: nobody could be asked."""
        for kind in KINDS:
            names = list(session.subscriptions.feeds[kind]) if session.subscriptions is not None else []
            refused = await self.permissions.refusal(session, [kind.subscribe, *names]) if names else None
            if refused is None:
                continue
            if not refused.startswith(b"-NOPERM"):
                return None
            # The command itself may be denied by now, which the engine says first, and which ends nothing.
            if refused == NO_CHANNEL or not self.permissions.may_hear(session, names, kind is PATTERN):
                return not session.client.closed
        return False

    # -- subscriptions -----------------------------------------------------------------------------
    def _subscribe(self, call: Call) -> Step | None:
        kind = SUBSCRIBE[call.command.name]
        held = call.session.subscriptions.total if call.session.subscriptions is not None else 0
        if held + len(call.args) - 1 > self._most:
            text = f"ERR a client may have {self._most} subscriptions at most (clients.subscriptions)"
            self.sender.answer(call.request, error(text))
            return None
        return self._make(call, kind)

    async def _make(self, call: Call, kind: Kind) -> None:
        """Wait for the nodes, and answer before any message that comes behind their word."""
        done = trio.Event()

        def ended(refused: bytes | None) -> None:
            if call.session.client.closed:
                pass
            elif refused is None:
                self._subscribed(call, kind)
            else:
                self.sender.answer(call.request, refused)
            done.set()

        waiter = self.hub.wait((self.hub.feed(kind, name) for name in dict.fromkeys(call.args[1:])), ended)
        try:
            with trio.move_on_after(self._patience):
                await done.wait()
            waiter.end(TOO_LATE)
        finally:
            self.hub.stop_waiting(waiter)

    def _subscribed(self, call: Call, kind: Kind) -> None:
        session = call.session
        if session.subscriptions is None:
            session.subscriptions = Subscriptions(session, self.hub)
        mine = session.subscriptions
        frames = []
        for name in call.args[1:]:
            mine.add(self.hub.feed(kind, name))
            frames.append(_confirmation(session, kind.subscribe, name, mine.count(kind)))
        self._confirm(session, call.request, frames)

    def _unsubscribe(self, call: Call) -> Step | None:
        kind = UNSUBSCRIBE[call.command.name]
        mine = call.session.subscriptions
        held = mine.feeds[kind] if mine is not None else {}
        links = self.hub.bringing([held[name] for name in call.args[1:] or held if name in held])
        if links:
            return self._unsubscribe_behind(call, kind, links)
        self._unsubscribed(call, kind)
        return None

    async def _unsubscribe_behind(self, call: Call, kind: Kind, links: Sequence[Link]) -> None:
        """What was published before may be on its way here yet though its publisher was answered: it comes first."""
        with trio.move_on_after(self.hub.patience):
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(_asked, link, PING)
        self._unsubscribed(call, kind)

    def _unsubscribed(self, call: Call, kind: Kind) -> None:
        session = call.session
        mine = session.subscriptions
        names: list[bytes | None] = list(call.args[1:])
        if not names:
            names = list(mine.feeds[kind]) if mine is not None else []
        frames = []
        for name in names or [None]:
            if mine is not None and name is not None:
                mine.remove(kind, name)
            frames.append(_confirmation(session, kind.unsubscribe, name, mine.count(kind) if mine is not None else 0))
        self._confirm(session, call.request, frames)

    def _confirm(self, session: Session, request: Request, frames: list[bytes]) -> None:
        """In one place of the client's order; CLIENT REPLY does not keep pushes back, nor this (networking.c)."""
        session.unheard.discard(request)
        self.sender.answer(request, b"".join(frames))

    # -- messages -----------------------------------------------------------------------------------
    def _publish(self, call: Call) -> None:
        """To the node where this proxy listens, if it does: what is published goes on to all the others."""
        home = self.hub.home_shard()
        self._send_message(call, CHANNEL, self.sender.any_shard() if home is None else home)

    def _spublish(self, call: Call) -> None:
        slot = key_slot(call.args[1])
        call.request.slot = slot
        self._send_message(call, SHARD, self.sender.shard_of(slot))

    def _send_message(self, call: Call, kind: Kind, shard: int) -> None:
        session, request, channel = call.session, call.request, call.args[1]
        if not self.hub.size:
            self.sender.send_to(session, request, shard)
            return
        subscriber = session.subscriptions is not None
        if subscriber:
            self.plane.keep_pushes(session.client)  # its own copy comes behind the reply, as the engine has it

        def replied(frame: bytes) -> None:
            with self.plane.turn():
                self.sender.answer(request, self._mended(frame, kind, shard, channel))
                if subscriber:
                    self.plane.let_pushes(session.client)

        self.plane.submit(
            self.sender.lane(session, shard),
            request.raw,
            replied,
            client=session.client,
            slot=request.slot,
            command_id=request.command_id,
            write=request.write,
        )

    def _mended(self, frame: bytes, kind: Kind, shard: int, channel: bytes) -> bytes:
        """The number of receivers, with this proxy's clients in place of its hub."""
        if frame[:1] != b":":
            return frame
        others = max(0, integer_value(frame) - self.hub.seen_at(shard, kind, channel))
        return integer(others + self.hub.receivers(kind, channel))

    # -- PUBSUB ---------------------------------------------------------------------------------------
    async def _channels(self, call: Call) -> None:
        """PUBSUB CHANNELS and SHARDCHANNELS [pattern]: of all nodes together."""
        if len(call.args) > 3:
            self.sender.send_to(call.session, call.request, self.sender.any_shard())  # which knows the error
            return
        answers = await self._ask_all(call, lambda own, value: value)
        if answers is None:
            return
        found = dict.fromkeys(name for names in answers for name in names if not name.startswith(RESERVED))
        self.sender.answer(call.request, array([bulk(name) for name in found]))

    async def _numsub(self, call: Call) -> None:
        """PUBSUB NUMSUB and SHARDNUMSUB: the sums over all nodes, without the hub."""
        kind = CHANNEL if call.command.name == b"pubsub|numsub" else SHARD
        names = call.args[2:]

        def of_others(own: Own, value: Any) -> list[int]:
            return [count - ((kind, name) in own) for name, count in zip(value[::2], value[1::2], strict=True)]

        answers = await self._ask_all(call, of_others)
        if answers is None:
            return
        frames = []
        for at, name in enumerate(names):
            feed = self.hub.feeds[kind].get(name)
            own = feed.clients if feed is not None else 0
            frames += [bulk(name), integer(max(0, sum(counts[at] for counts in answers)) + own)]
        self.sender.answer(call.request, array(frames))

    async def _numpat(self, call: Call) -> None:
        """PUBSUB NUMPAT: the patterns of each node, without the hub's, and this proxy's own."""

        def of_others(own: Own, value: Any) -> int:
            return int(value) - sum(1 for kind, _ in own if kind is PATTERN)

        answers = await self._ask_all(call, of_others)
        if answers is not None:
            own = sum(1 for feed in self.hub.feeds[PATTERN].values() if feed.clients)
            self.sender.answer(call.request, integer(max(0, sum(answers)) + own))

    async def _ask_all(self, call: Call, read: Callable[[Own, Any], T]) -> list[T] | None:
        """What every node says to a PUBSUB, replicas too; None when none does, and the client is told.

        A node that the hub is connected to is asked there: behind what the hub has subscribed and left.
        """
        answers: list[T] = []
        raw = encode_request(call.args)

        async def one(watch: NodeWatch) -> None:
            link = self.hub.link_to(watch.address)
            own = frozenset(link.wanted) if link is not None else frozenset()
            with trio.move_on_after(self._patience):
                value = await _asked(link, raw) if link is not None else await self._elsewhere(watch, call.args)
                if value is not None:
                    answers.append(read(own, value))

        nodes = {watch.node_id: watch for watch in self.cluster.nodes.values() if watch.alive}
        async with trio.open_nursery() as nursery:
            for watch in nodes.values():
                nursery.start_soon(one, watch)
        if not answers:
            self.sender.answer(call.request, NOT_SERVED)
            return None
        return answers

    async def _elsewhere(self, watch: NodeWatch, words: Sequence[bytes]) -> Any:
        try:
            async with await self.cluster.connect(watch.host, watch.port) as connection:
                return await connection.call(*words)
        except (ConnectionLost, ReplyError):
            return None  # as if it were not there: it could not tell a message from one that is


async def _asked(link: Link, raw: bytes) -> Any:
    """The value of a node's reply; None where there is none."""
    done = trio.Event()
    values: list[Any] = []

    def replied(frame: bytes | None) -> None:
        values.append(decode(frame) if frame is not None and not is_error(frame) else None)
        done.set()

    link.ask(raw, replied)
    await done.wait()
    return values[0]


def _confirmation(session: Session, word: bytes, name: bytes | None, count: int) -> bytes:
    """What a (P|S)(UN)SUBSCRIBE answers for one channel (pubsub.c: addReplyPubsubSubscribed)."""
    named = null(session.protocol) if name is None else bulk(name)
    return push([bulk(word), named, integer(count)], session.protocol)
