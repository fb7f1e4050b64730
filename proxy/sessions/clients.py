"""CLIENT ID, GETNAME, SETNAME, SETINFO, INFO, LIST and UNBLOCK: over this proxy's own clients."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from proxy.codec.reply import OK, bulk, error, integer, verbatim
from proxy.routing.key_specs import strict_integer
from proxy.sessions.connection import BAD_NAME, valid_name
from proxy.sessions.session import Session

TRACED = b"ackgate-trace"
"""A client that takes this name has the way of each of its writes timed; ``ackgate trace`` does."""
HANDLED = frozenset({b"id", b"getname", b"setname", b"setinfo", b"info", b"list", b"unblock"})


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
    if subcommand == b"unblock":
        return _unblock(everybody, args)
    return _list(session, everybody, args[2:])


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


def _list(session: Session, everybody: Iterable[Session], options: Sequence[bytes]) -> bytes:
    """CLIENT LIST [TYPE normal|...] [ID id ...]."""
    wanted = list(everybody)
    if options:
        kind = options[0].lower()
        if kind == b"type" and len(options) == 2:
            if options[1].lower() not in (b"normal", b"master", b"replica", b"slave", b"pubsub", b"primary"):
                return error(b"ERR Unknown client type '%s'" % options[1])
            wanted = wanted if options[1].lower() == b"normal" else []
        elif kind == b"id" and len(options) > 1:
            ids = {strict_integer(text) for text in options[1:]}
            if None in ids:
                return error("ERR syntax error")
            if any(number is not None and number < 1 for number in ids):
                return error("ERR client-id should be greater than 0")
            wanted = [each for each in wanted if each.client.id in ids]
        else:
            return error("ERR syntax error")
    return verbatim(b"".join(describe(each) + b"\n" for each in wanted), session.protocol)


def _unblock(everybody: Iterable[Session], args: Sequence[bytes]) -> bytes:
    """CLIENT UNBLOCK id [TIMEOUT|ERROR] (networking.c: clientUnblockCommand).  More words mean TIMEOUT, as there."""
    reason = args[3].lower() if len(args) == 4 else b"timeout"
    if reason not in (b"timeout", b"error"):
        return error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    wanted = strict_integer(args[2])
    if wanted is None:
        return error("ERR value is not an integer or out of range")
    for session in everybody:
        if session.client.id == wanted and session.blocked is not None:
            blocked, session.blocked = session.blocked, None
            blocked.unblock(with_error=reason == b"error")
            return integer(1)
    return integer(0)


def describe(session: Session) -> bytes:
    """One client in the engine's form (networking.c: catClientInfoString), with the fields a proxy can know."""
    now = time.monotonic()
    address, local_address = session.client.addresses()
    transaction = session.transaction
    fields: list[tuple[str, object]] = [
        ("id", session.client.id),
        ("addr", address),
        ("laddr", local_address),
        ("fd", session.client.fd),
        ("name", session.name.decode()),
        ("age", int(now - session.created)),
        ("idle", int(now - session.client.last_read)),
        ("flags", _flags(session)),
        ("db", session.identity.database),
        ("sub", 0),
        ("psub", 0),
        ("ssub", 0),
        ("multi", len(transaction.queued) if transaction is not None and transaction.multi else -1),
        ("watch", int(transaction is not None and transaction.watching)),
        ("oll", session.client.pending),
        ("omem", session.client.out_bytes),
        ("cmd", session.last_command.decode("ascii", "replace") or "NULL"),
        ("user", session.identity.user),
        ("redir", -1),
        ("resp", session.protocol),
        ("lib-name", session.lib_name.decode()),
        ("lib-ver", session.lib_ver.decode()),
    ]
    return " ".join(f"{name}={value}" for name, value in fields).encode()


def _flags(session: Session) -> str:
    flags = ("x" if session.in_multi else "") + ("b" if session.blocked is not None else "")
    return flags or "N"
