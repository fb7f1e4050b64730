"""The session: one client connection and its state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from proxy.acks.wait import Memory
from proxy.dataplane import Client, Mode
from proxy.topology.lanes import Identity

if TYPE_CHECKING:
    from proxy.sessions.transaction import Transaction


class Session:
    """See the module.  ``name``, ``lib_name``, ``lib_ver`` are as the client set them, empty where it did not."""

    __slots__ = (
        "authenticated",
        "client",
        "created",
        "identity",
        "last_command",
        "lib_name",
        "lib_ver",
        "memory",
        "name",
        "transaction",
        "waiting",
        "working",
    )

    def __init__(self, client: Client, identity: Identity, authenticated: bool) -> None:
        self.client = client
        self.identity = identity
        self.authenticated = authenticated
        self.name = b""
        self.lib_name = b""
        self.lib_ver = b""
        self.created = time.monotonic()
        self.last_command = b""
        self.memory = Memory()
        """What acks told this session before."""
        self.transaction: Transaction | None = None
        """From WATCH or MULTI to EXEC, DISCARD or UNWATCH."""
        self.working: trio.CancelScope | None = None
        """The task that deals with this session's barrier; cancelled when the client goes."""
        self.waiting = False
        """Blocked in WAIT or WAITAOF: EOF ends it, as in the engine."""

    @property
    def protocol(self) -> int:
        return self.identity.protocol

    @property
    def in_multi(self) -> bool:
        return self.transaction is not None and self.transaction.multi

    @property
    def mode(self) -> Mode:
        """How its commands travel now."""
        return Mode.PLAIN if self.authenticated and not self.in_multi else Mode.CONTROL
