"""MONITOR: what the clients of this proxy send, as they send it.

While somebody watches, the data plane sends nothing on by itself: every command comes to control, and is written here
before it goes its way.  That costs what it costs on a server, and more; with the last watcher gone it is over.

Lines have the engine's form (replication.c: replicationFeedMonitors).  Not among them: what administrators do (the
engine shows none of it either), passwords, what scripts call, and what is refused before it is sent on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from proxy.codec.reply import OK, simple
from proxy.control.call import Call, Handler
from proxy.control.sending import Sender
from proxy.routing import Command
from proxy.sessions.session import Session

KEPT = 1 << 20
"""Bytes of lines kept for one transaction until its EXEC; what is queued beyond goes unseen."""
NO_KEYS = b"-ERR Replica can't interact with the keyspace\r\n"
NOT_QUEUED = frozenset({b"multi", b"exec", b"discard", b"watch", b"reset", b"quit"})
MAY_REPLICATE = frozenset({b"publish", b"spublish"})
HIDDEN = b"(redacted)"
SECRETS: dict[bytes, dict[bytes, int]] = {
    b"hello": {b"auth": 2},
    b"migrate": {b"auth": 1, b"auth2": 2},
}
"""Options behind which there are users and passwords, and how many words of these."""
_ESCAPES = dict(zip(b'\\"\n\r\t\a\b', rb'\\ \" \n \r \t \a \b'.split(), strict=True))
_SHOWN = [_ESCAPES.get(byte) or (b"%c" % byte if 0x20 <= byte <= 0x7E else b"\\x%02x" % byte) for byte in range(256)]


class MonitorCommands:
    """See the module.  ``changed`` is told whether anybody watches."""

    def __init__(self, sender: Sender, changed: Callable[[bool], None]) -> None:
        self.sender = sender
        self.watching: dict[int, Session] = {}
        self._changed = changed
        self._queued: dict[int, list[bytes]] = {}
        """Client -> the lines of what it has queued in MULTI."""
        self.handlers: dict[bytes, Handler] = {b"monitor": self._monitor}

    def _monitor(self, call: Call) -> None:
        client = call.session.client
        if client.id in self.watching:
            self.sender.answer(call.request, b"")  # as the engine: nothing
            return
        self.watching[client.id] = call.session
        call.session.monitoring = True
        client.subscriber = True  # who does not read is cut like one
        self.sender.answer(call.request, OK)
        if len(self.watching) == 1:
            self._changed(True)

    def gone(self, session: Session) -> None:
        """The session has ended, or watches no more."""
        self._queued.pop(session.client.id, None)
        if self.watching.pop(session.client.id, None) is None:
            return
        session.monitoring = False
        session.client.subscriber = session.subscriptions is not None
        if not self.watching:
            self._queued.clear()
            self._changed(False)

    def refusal(self, session: Session, command: Command) -> bytes | None:
        """The error for what one who watches may not send: whatever has to do with keys."""
        if session.client.id not in self.watching:
            return None
        keyed = command.is_readonly or command.is_write or command.is_script or command.name in MAY_REPLICATE
        return NO_KEYS if keyed else None

    def seen(self, call: Call) -> None:
        """Somebody watches, and this call is about to go its way."""
        session, name = call.session, call.command.name
        if name == b"reset":
            self.gone(session)
        if b"admin" in call.command.flags:
            return
        line = _line(call)
        if session.in_multi and name not in NOT_QUEUED:
            queue = self._queued.setdefault(session.client.id, [])
            if sum(map(len, queue)) + len(line) <= KEPT:
                queue.append(line)
            return
        queue = self._queued.pop(session.client.id, [])
        self._tell(session, [*queue, line] if name == b"exec" else [line])

    def _tell(self, sender: Session, lines: Sequence[bytes]) -> None:
        frame = b"".join(lines)
        plane = self.sender.plane
        plane.push_all([session.client for session in self.watching.values() if session is not sender], frame)
        if sender.client.id in self.watching:
            plane.push_behind(sender.client, frame)  # its own command's reply comes first


def _line(call: Call) -> bytes:
    database = call.session.identity.database
    if call.command.name == b"select" and call.args[1].isdigit():
        database = int(call.args[1])
    elif call.command.name == b"reset":
        database = 0
    now = time.time_ns() // 1000
    address = call.session.client.addresses()[0].encode()
    words = b" ".join(b'"%b"' % b"".join([_SHOWN[byte] for byte in word]) for word in _without_passwords(call))
    return simple(b"%d.%06d [%d %b] %b" % (now // 1_000_000, now % 1_000_000, database, address, words))


def _without_passwords(call: Call) -> Sequence[bytes]:
    name, args = call.command.name, call.args
    if name == b"auth":
        return [args[0], *[HIDDEN] * (len(args) - 1)]
    secret = SECRETS.get(name)
    if secret is None:
        return args
    shown = list(args)
    for at, word in enumerate(args):
        # Where a name or a key looks like the option, more is hidden than has to be.
        for hidden in range(at + 1, min(at + 1 + secret.get(word.lower(), 0), len(args))):
            shown[hidden] = HIDDEN
    return shown
