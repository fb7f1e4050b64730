"""CLIENT: what needs more than the session that asks: LIST and KILL over all clients, NO-TOUCH, IMPORT-SOURCE, CAPA.

All clients are those of this process and of its siblings, which are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from proxy.codec.reply import OK, error, integer, verbatim
from proxy.control.call import Call, Handler, Step
from proxy.control.sending import Sender
from proxy.control.siblings import Place
from proxy.sessions.clients import describe, facts
from proxy.sessions.filters import BadFilter, Filters, parse
from proxy.sessions.session import Session
from proxy.topology.owners import Busy
from shard.client import Arg, ConnectionLost, ControlConnection, ReplyError

SYNTAX = b"-ERR syntax error\r\n"
NO_SUCH_CLIENT = b"-ERR No such client\r\n"
NOBODY = -1  # no client's number
NO_TOUCH, IMPORT_SOURCE = "NO-TOUCH", "IMPORT-SOURCE"
CAPABILITIES = {b"redirect": "r"}
USER, DATABASE = b"user", b"db"

LIST, KILL, KILL_ADDRESS = "client list", "client kill", "client kill address"
"""What siblings are asked."""


class _Asked(NamedTuple):
    """Filters, and the words that they were read from with what was learnt for that."""

    filters: Filters
    words: Sequence[bytes]
    databases: int
    users: frozenset[bytes]

    def for_siblings(self) -> tuple[list[bytes], int, list[bytes]]:
        return list(self.words), self.databases, list(self.users)


_GoOn = Callable[[Call, _Asked], "Step | None"]


class ClientCommands:
    """See the module.  ``sessions`` are all of this proxy's, by client id, oldest first."""

    def __init__(self, sender: Sender, sessions: Mapping[int, Session], place: Place) -> None:
        self.sender = sender
        self.place = place
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.sessions = sessions
        self._databases = 0
        self.handlers: dict[bytes, Handler] = {
            b"client|list": self._list,
            b"client|kill": self._kill,
            b"client|no-evict": self._no_evict,
            b"client|no-touch": self._no_touch,
            b"client|import-source": self._import_source,
            b"client|capa": self._capa,
        }

    # -- LIST and KILL -------------------------------------------------------------------------------
    def _list(self, call: Call) -> Step | None:
        return self._with_filters(call, call.args[2:], self._show)

    def _show(self, call: Call, asked: _Asked) -> Step | None:
        mine = _lines(self._chosen(call, asked.filters, skip_me=False))
        if not self.place.alone:
            return self._show_all(call, asked, mine)
        self.sender.answer(call.request, verbatim(mine, call.session.protocol))
        return None

    async def _show_all(self, call: Call, asked: _Asked, mine: bytes) -> None:
        others = await self.place.siblings.ask(LIST, asked.for_siblings())
        self.sender.answer(call.request, verbatim(b"".join([mine, *others]), call.session.protocol))

    def _kill(self, call: Call) -> Step | None:
        if len(call.args) == 3:
            return self._kill_address(call, call.args[2])
        return self._with_filters(call, call.args[2:], self._kill_chosen)

    def _kill_address(self, call: Call, address: bytes) -> Step | None:
        """CLIENT KILL addr:port, the form of old: it may hit who asks."""
        found = self._at(address)
        if found:
            self._end(call, found, OK)
            return None
        if not self.place.alone:
            return self._kill_address_elsewhere(call, address)
        self.sender.answer(call.request, NO_SUCH_CLIENT)
        return None

    async def _kill_address_elsewhere(self, call: Call, address: bytes) -> None:
        killed = sum(await self.place.siblings.ask(KILL_ADDRESS, address))
        self.sender.answer(call.request, OK if killed else NO_SUCH_CLIENT)

    def _kill_chosen(self, call: Call, asked: _Asked) -> Step | None:
        if not self.place.alone:
            return self._kill_everywhere(call, asked)
        chosen = self._chosen(call, asked.filters, skip_me=True)
        self._end(call, chosen, integer(len(chosen)))
        return None

    async def _kill_everywhere(self, call: Call, asked: _Asked) -> None:
        """Those of siblings first: who asks may be among its own, and is told how many they were."""
        elsewhere = sum(await self.place.siblings.ask(KILL, asked.for_siblings()))
        chosen = self._chosen(call, asked.filters, skip_me=True)
        self._end(call, chosen, integer(len(chosen) + elsewhere))

    # -- what siblings ask -----------------------------------------------------------------------------
    def answer_sibling(self, what: str, value: Any) -> Any:
        """LIST, KILL or KILL_ADDRESS on behalf of another worker's client: lines, or how many were closed."""
        if what == KILL_ADDRESS:
            return self._close(self._at(value))
        words, databases, users = value
        filters = parse(words, databases, frozenset(users).__contains__)
        chosen = [each for each in self.sessions.values() if filters.match(facts(each), NOBODY, False)]
        return _lines(chosen) if what == LIST else self._close(chosen)

    def _close(self, sessions: Sequence[Session]) -> int:
        with self.plane.turn():
            for session in sessions:
                self.plane.kill(session.client)
        return len(sessions)

    def _at(self, address: bytes) -> list[Session]:
        return [each for each in self.sessions.values() if facts(each).address == address]

    def _chosen(self, call: Call, filters: Filters, skip_me: bool) -> list[Session]:
        me = call.session.client.id
        return [each for each in self.sessions.values() if filters.match(facts(each), me, skip_me)]

    def _end(self, call: Call, sessions: Sequence[Session], frame: bytes) -> None:
        """Close these sessions' connections; that of who asks once it was answered."""
        with self.plane.turn():
            for session in sessions:
                if session is not call.session:
                    self.plane.kill(session.client)
            if call.session in sessions:
                self.sender.answer_last(call.request, frame)
            else:
                self.sender.answer(call.request, frame)

    def _with_filters(self, call: Call, words: Sequence[bytes], go_on: _GoOn) -> Step | None:
        """Read filters and go on; what the cluster has to be asked for them, it is asked first."""
        mentions = {word.lower().removeprefix(b"not-") for word in words}
        if (DATABASE in mentions and not self._databases) or USER in mentions:
            return self._ask_and_go_on(call, words, go_on)
        return self._go_on(call, words, go_on, frozenset())

    def _go_on(self, call: Call, words: Sequence[bytes], go_on: _GoOn, users: frozenset[bytes]) -> Step | None:
        try:
            filters = parse(words, self._databases, users.__contains__)
        except BadFilter as bad:
            self.sender.answer(call.request, error(str(bad)))
            return None
        return go_on(call, _Asked(filters, words, self._databases, users))

    async def _ask_and_go_on(self, call: Call, words: Sequence[bytes], go_on: _GoOn) -> None:
        try:
            async with await self._connect() as node:
                if not self._databases:
                    self._databases = await _count_databases(node)
                users = await _users(node, words)
        except (ConnectionLost, ReplyError) as problem:
            text = f"CLUSTERDOWN the filters could not be checked ({problem}): try again"
            self.sender.answer(call.request, error(text))
            return
        step = self._go_on(call, words, go_on, users)
        if step is not None:
            await step

    async def _connect(self) -> ControlConnection:
        node = self.cluster.primary(self.sender.any_shard())
        if node is None:
            raise ConnectionLost("no shard has a primary")
        return await self.cluster.connect(node.host, node.port)

    # -- what is said of the connection ----------------------------------------------------------------
    def _no_evict(self, call: Call) -> None:
        """Nothing is ever evicted here; it is shown, no more."""
        on = _switch(call.args[2])
        if on is not None:
            call.session.no_evict = on
        self.sender.answer(call.request, SYNTAX if on is None else OK)

    def _no_touch(self, call: Call) -> None:
        on = _switch(call.args[2])
        if on is None:
            self.sender.answer(call.request, SYNTAX)
        else:
            self._set_mode(call, NO_TOUCH, on)

    async def _import_source(self, call: Call) -> None:
        """Whether the shards are in import mode, and take this, they say."""
        try:
            async with await self._connect() as node:
                await node.call("CLIENT", "IMPORT-SOURCE", call.args[2])
        except ReplyError as refused:
            self.sender.answer(call.request, error(str(refused)))
            return
        except ConnectionLost as problem:
            text = f"CLUSTERDOWN import mode could not be checked ({problem}): try again"
            self.sender.answer(call.request, error(text))
            return
        self._set_mode(call, IMPORT_SOURCE, call.args[2].lower() == b"on")

    def _set_mode(self, call: Call, mode: str, on: bool) -> None:
        session = call.session
        before = session.modes
        session.modes = tuple(sorted({*before, mode} if on else {*before} - {mode}))
        try:
            self.sender.adopt(session, session.identity)
        except Busy as busy:
            session.modes = before
            self.sender.answer(call.request, error(str(busy)))
            return
        self.sender.answer(call.request, OK)

    def _capa(self, call: Call) -> None:
        """What a client claims is shown; the proxy redirects nobody.  Unknown ones are ignored, as by the engine."""
        claimed = {CAPABILITIES[name] for word in call.args[2:] if (name := word.lower()) in CAPABILITIES}
        call.session.capabilities |= claimed
        self.sender.answer(call.request, OK)


def _lines(sessions: Sequence[Session]) -> bytes:
    return b"".join(describe(each) + b"\n" for each in sessions)


def _switch(word: bytes) -> bool | None:
    return {b"on": True, b"off": False}.get(word.lower())


async def _count_databases(node: ControlConnection) -> int:
    """How many a client may select: of a cluster's node, ``cluster-databases`` (Redis has no such setting: one)."""
    found = await node.call("CONFIG", "GET", "cluster-databases")
    return int(found[1]) if found else 1


async def _users(node: ControlConnection, words: Sequence[bytes]) -> frozenset[bytes]:
    """Those that exist of the users that filters may mean."""
    asked = sorted({value for option, value in pairwise(words) if option.lower() in (b"user", b"not-user")})
    questions: list[Sequence[Arg]] = [["ACL", "GETUSER", name] for name in asked]
    replies = await node.pipeline(*questions) if questions else []
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return frozenset(name for name, reply in zip(asked, replies, strict=True) if reply)
