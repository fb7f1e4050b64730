"""The session: one client connection and its state."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Protocol

from proxy.acks.question import Memory
from proxy.dataplane import Client, Mode, Request
from proxy.topology.owners import Identity, LaneSet

if TYPE_CHECKING:
    from proxy.sessions.subscriptions import Subscriptions
    from proxy.sessions.tracking import Tracking
    from proxy.sessions.transaction import Transaction


class Replies(enum.Enum):
    """What CLIENT REPLY asked for."""

    ON = enum.auto()
    SKIP_NEXT = enum.auto()
    OFF = enum.auto()


class Blocked(Protocol):
    """What a session is blocked in."""

    def unblock(self, with_error: bool) -> None:
        """End it as its timeout would, or with the error of CLIENT UNBLOCK."""


class Working(Protocol):
    """What deals with a command that takes its time."""

    def cancel(self) -> None:
        """Nobody wants the answer any more."""


class Session:
    """See the module.  ``name``, ``lib_name``, ``lib_ver`` are as the client set them, empty where it did not."""

    __slots__ = (
        "authenticated",
        "blocked",
        "capabilities",
        "client",
        "created",
        "identity",
        "lanes",
        "last_command",
        "lib_name",
        "lib_ver",
        "memory",
        "modes",
        "monitoring",
        "name",
        "no_evict",
        "parked",
        "password",
        "replies",
        "subscriptions",
        "tracking",
        "transaction",
        "unheard",
        "working",
    )

    def __init__(self, client: Client, identity: Identity, authenticated: bool) -> None:
        self.client = client
        self.identity = identity
        self.lanes: LaneSet | None = None
        """On which it travels."""
        self.authenticated = authenticated
        self.password = b""
        """With which it logged in as a user other than the default one."""
        self.name = b""
        self.lib_name = b""
        self.lib_ver = b""
        self.modes: tuple[str, ...] = ()
        """Subcommands of CLIENT said ON that change what the engine does for a connection: see ``Identity.modes``."""
        self.capabilities: frozenset[str] = frozenset()
        """What CLIENT CAPA claimed, in the letters of CLIENT LIST."""
        self.no_evict = False
        self.monitoring = False
        """It is shown what all others send (MONITOR)."""
        self.tracking: Tracking | None = None
        """Client-side caching, from CLIENT TRACKING on to off."""
        self.subscriptions: Subscriptions | None = None
        """From the first SUBSCRIBE to the end of the last one."""
        self.created = time.monotonic()
        self.last_command = b""
        self.memory = Memory()
        """What acks told this session before."""
        self.transaction: Transaction | None = None
        """From WATCH or MULTI to EXEC, DISCARD or UNWATCH."""
        self.working: Working | None = None
        """What deals with this session's barrier; cancelled when the client goes."""
        self.blocked: Blocked | None = None
        """Blocked in a command: EOF ends that, as in the engine, and so does CLIENT UNBLOCK."""
        self.parked = False
        """Its command waits for the end of a pause."""
        self.replies = Replies.ON
        self.unheard: set[Request] = set()
        """Commands under way whose replies CLIENT REPLY keeps back.

        An empty one takes their place: the client's order, and what it has under way, stay right.
        """

    @property
    def protocol(self) -> int:
        return self.identity.protocol

    def carry(self, identity: Identity) -> Identity:
        """This identity with what the session has said about its connection."""
        tracks = self.tracking is not None and identity.protocol == 3  # RESP2 has no form for invalidations
        return identity._replace(modes=self.modes, own=self.client.id if tracks else 0)

    def forget_connection(self) -> None:
        """RESET: what was said about the connection is not true any more, but what the client is capable of."""
        self.modes = ()
        self.no_evict = False
        self.tracking = None

    @property
    def in_multi(self) -> bool:
        return self.transaction is not None and self.transaction.multi

    @property
    def mode(self) -> Mode:
        """How its commands travel now."""
        plain = self.authenticated and not self.in_multi and self.replies is Replies.ON
        if self.subscriptions is not None and self.protocol == 2:
            plain = False  # most commands are refused
        if self.tracking is not None and self.tracking.caching:
            plain = False  # what CLIENT CACHING is about has to be told from what comes behind it
        return Mode.PLAIN if plain else Mode.CONTROL

    def began(self, request: Request) -> None:
        """A command's turn has come: CLIENT REPLY decides whether its reply will be heard."""
        if self.replies is Replies.ON:
            return
        self.unheard.add(request)
        if self.replies is Replies.SKIP_NEXT:
            self.replies = Replies.ON
            self.client.mode = self.mode

    def heard(self, request: Request, frame: bytes) -> bytes:
        """What of a reply goes to the client: all of it, or nothing."""
        if request not in self.unheard:
            return frame
        self.unheard.discard(request)
        return b""
