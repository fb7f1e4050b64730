"""Commands about the connection itself: HELLO, AUTH, SELECT, RESET, QUIT, PING, ECHO."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import NamedTuple

from proxy.codec.reply import PONG, array, bulk, error, integer, map_
from proxy.sessions.session import Session

NOAUTH = b"-NOAUTH Authentication required.\r\n"
WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NO_PASSWORD = (
    b"-ERR AUTH <password> called without any password configured for the default user. "
    b"Are you sure your configuration is correct?\r\n"
)
HELLO_NOAUTH = (
    b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> "
    b"<pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n"
)
NOPROTO = b"-NOPROTO unsupported protocol version\r\n"
BAD_NAME = "ERR {} cannot contain spaces, newlines or special characters."
BEFORE_AUTH = frozenset({b"auth", b"hello", b"quit", b"reset"})
"""What a client may send before it has authenticated (the engine's flag no_auth)."""


class Engine(NamedTuple):
    """What HELLO tells of the server behind."""

    name: bytes
    version: bytes


Login = tuple[bytes, bytes]
"""User, password."""


class Doorkeeper:
    """Who may come in as the default user.  ``password`` None: everybody.  All other users are the engine's."""

    def __init__(self, password: str | None) -> None:
        self._password = password.encode() if password is not None else None

    @property
    def open(self) -> bool:
        return self._password is None

    def check(self, password: bytes) -> bool:
        """Whether the default user's password is right, in constant time."""
        return self._password is None or hmac.compare_digest(self._password, password)


def parse_auth(args: Sequence[bytes], doorkeeper: Doorkeeper) -> Login | bytes:
    """Who AUTH [username] password says to be, or the error frame it gets (acl.c: authCommand)."""
    if len(args) > 3:
        return b"-ERR syntax error\r\n"
    if len(args) == 2 and doorkeeper.open:
        return NO_PASSWORD
    return (args[1] if len(args) == 3 else b"default"), args[-1]


def ping(session: Session, args: Sequence[bytes]) -> bytes:
    """PING [message]; a RESP2 subscriber is answered in the form of what else it receives."""
    if session.subscriptions is not None and session.protocol == 2:
        return array([bulk(b"pong"), bulk(args[1] if len(args) == 2 else b"")])
    return bulk(args[1]) if len(args) == 2 else PONG


def valid_name(name: bytes) -> bool:
    """Whether the engine would take it (networking.c: validateClientAttr): printable, without spaces."""
    return all(0x21 <= byte <= 0x7E for byte in name)


class Hello(NamedTuple):
    """HELLO [protover [AUTH user password] [SETNAME name]], read."""

    protocol: int | None
    login: Login | None
    name: bytes | None


def parse_hello(args: Sequence[bytes]) -> Hello | bytes:
    """What a HELLO asks for, or the error frame it gets (networking.c: helloCommand)."""
    if len(args) == 1:
        return Hello(None, None, None)
    if not args[1].lstrip(b"-").isdigit() or len(args[1]) > 19:
        return b"-ERR Protocol version is not an integer or out of range\r\n"
    if args[1] not in (b"2", b"3"):
        return NOPROTO
    login: Login | None = None
    name: bytes | None = None
    at = 2
    while at < len(args):
        option = args[at].upper()
        if option == b"AUTH" and at + 2 < len(args):
            login = args[at + 1], args[at + 2]
            at += 3
        elif option == b"SETNAME" and at + 1 < len(args):
            name = args[at + 1]
            if not valid_name(name):
                return error(BAD_NAME.format("Client names"))
            at += 2
        else:
            return error(b"ERR Syntax error in HELLO option '%s'" % args[at])
    return Hello(int(args[1]), login, name)


def hello_reply(session: Session, engine: Engine) -> bytes:
    """The server as clients are to see it: one that knows nothing of clusters."""
    fields = [
        (b"server", bulk(engine.name)),
        (b"version", bulk(engine.version)),
        (b"proto", integer(session.protocol)),
        (b"id", integer(session.client.id)),
        (b"mode", bulk(b"standalone")),
        (b"role", bulk(b"master")),
        (b"modules", array([])),
    ]
    return map_([(bulk(name), value) for name, value in fields], session.protocol)
