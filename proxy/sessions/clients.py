"""Clients as CLIENT shows and names them: ID, GETNAME, SETNAME, SETINFO, INFO, UNBLOCK, and the lines of LIST."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proxy.codec.reply import OK, bulk, error, integer, verbatim
from proxy.routing.key_specs import strict_integer
from proxy.sessions.connection import BAD_NAME, valid_name
from proxy.sessions.filters import Facts
from proxy.sessions.session import Session

TRACED = b"ackgate-trace"
"""A client that takes this name has the way of each of its writes timed; ``ackgate trace`` does."""
HANDLED = frozenset({b"id", b"getname", b"setname", b"setinfo", b"info", b"unblock"})
"""What needs to know no more than the sessions."""


def client(session: Session, everybody: Iterable[Session], args: Sequence[bytes]) -> bytes:
    """One of the subcommands in ``HANDLED``; their number of arguments was checked."""
    subcommand = args[1].lower()
    if subcommand == b"id":
        return integer(session.client.id)
    if subcommand == b"getname":
        return bulk(session.name or None, session.protocol)
    if subcommand == b"setname":
        return _set_name(session, args[2])
    if subcommand == b"setinfo":
        return _set_info(session, args[2], args[3])
    if subcommand == b"info":
        return verbatim(describe(session) + b"\n", session.protocol)
    return _unblock(everybody, args)


def _set_name(session: Session, name: bytes) -> bytes:
    if not valid_name(name):
        return error(BAD_NAME.format("Client names"))
    session.name = name
    session.client.traced = name == TRACED
    return OK


def _set_info(session: Session, option: bytes, value: bytes) -> bytes:
    name = option.lower()
    if name not in (b"lib-name", b"lib-ver"):
        return error(b"ERR Unrecognized option '%s'" % option)
    if not valid_name(value):
        return error(BAD_NAME.format(name.decode()))
    if name == b"lib-name":
        session.lib_name = value
    else:
        session.lib_ver = value
    return OK


class Unblock(NamedTuple):
    """CLIENT UNBLOCK id [TIMEOUT|ERROR], read."""

    client: int
    with_error: bool


def parse_unblock(args: Sequence[bytes]) -> Unblock | bytes:
    """What is asked for, or the error frame (networking.c: clientUnblockCommand).  More words mean TIMEOUT, too."""
    reason = args[3].lower() if len(args) == 4 else b"timeout"
    if reason not in (b"timeout", b"error"):
        return error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    wanted = strict_integer(args[2])
    if wanted is None:
        return error("ERR value is not an integer or out of range")
    return Unblock(wanted, reason == b"error")


def _unblock(everybody: Iterable[Session], args: Sequence[bytes]) -> bytes:
    asked = parse_unblock(args)
    if isinstance(asked, bytes):
        return asked
    for session in everybody:
        if session.client.id == asked.client and session.blocked is not None:
            blocked, session.blocked = session.blocked, None
            blocked.unblock(with_error=asked.with_error)
            return integer(1)
    return integer(0)


def figures(sessions: Iterable[Session]) -> dict[str, int]:
    """INFO's figures of what these sessions are doing (server.c: genValkeyInfoString)."""
    all_sessions = list(sessions)
    transactions = [each.transaction for each in all_sessions if each.transaction is not None]
    return {
        "blocked_clients": sum(each.blocked is not None or each.parked for each in all_sessions),
        "tracking_clients": sum(each.tracking is not None for each in all_sessions),
        "pubsub_clients": sum(each.subscriptions is not None for each in all_sessions),
        "watching_clients": sum(each.watching for each in transactions),
    }


def facts(session: Session) -> Facts:
    """What filters may ask of a client."""
    now = time.monotonic()
    address, local_address = session.client.addresses()
    return Facts(
        session.client.id,
        address.encode(),
        local_address.encode(),
        session.name,
        frozenset(_flags(session).encode()),
        frozenset("".join(session.capabilities).encode()),
        session.identity.database,
        session.identity.user.encode("utf-8", "surrogateescape"),
        b"pubsub" if session.subscriptions is not None else b"normal",
        int(now - session.created),
        int(now - session.client.last_read),
        session.lib_name,
        session.lib_ver,
    )


def describe(session: Session) -> bytes:
    """One client in the engine's form (networking.c: catClientInfoString), with the fields a proxy can know.

    Of a server's buffers the size is 0 where there is none: libraries read these fields as numbers.
    """
    now = time.monotonic()
    client, transaction, subscriptions = session.client, session.transaction, session.subscriptions
    address, local_address = client.addresses()
    queued = transaction.queued.size if transaction is not None else 0
    kept = client.buffered + client.out_bytes + client.kept_bytes
    fields: list[tuple[str, object]] = [
        ("id", client.id),
        ("addr", address),
        ("laddr", local_address),
        ("fd", client.fd),
        ("name", session.name.decode()),
        ("age", int(now - session.created)),
        ("idle", int(now - client.last_read)),
        ("flags", _flags(session)),
        ("capa", "".join(sorted(session.capabilities))),
        ("db", session.identity.database),
        ("sub", subscriptions.channels if subscriptions is not None else 0),
        ("psub", subscriptions.patterns if subscriptions is not None else 0),
        ("ssub", subscriptions.shard_channels if subscriptions is not None else 0),
        ("multi", len(transaction.queued) if transaction is not None else -1),
        ("watch", int(transaction is not None and transaction.watching)),
        ("qbuf", client.buffered),
        ("qbuf-free", 0),
        ("argv-mem", 0),
        ("multi-mem", queued),
        ("rbs", 0),
        ("rbp", 0),
        ("obl", client.out_bytes),
        ("oll", client.pending),
        ("omem", client.out_bytes + client.kept_bytes),
        ("tot-mem", kept + queued),
        ("events", "rw" if client.out_bytes else "r"),
        ("cmd", session.last_command.decode("ascii", "replace") or "NULL"),
        ("user", session.identity.user),
        ("redir", -1 if session.tracking is None else 0),
        ("resp", session.protocol),
        ("lib-name", session.lib_name.decode()),
        ("lib-ver", session.lib_ver.decode()),
    ]
    return " ".join(f"{name}={value}" for name, value in fields).encode("utf-8", "surrogateescape")


def _flags(session: Session) -> str:
    """In the engine's letters and order."""
    tracking = session.tracking
    flags = [
        ("O", session.monitoring),
        ("P", session.subscriptions is not None),
        ("x", session.in_multi),
        ("b", session.blocked is not None or session.parked),
        ("t", tracking is not None),
        ("B", tracking is not None and tracking.broadcast),
        ("e", session.no_evict),
        ("T", "NO-TOUCH" in session.modes),
        ("I", "IMPORT-SOURCE" in session.modes),
    ]
    return "".join(letter for letter, there in flags if there) or "N"
