"""The line between the data plane and control: what each may ask of the other.

The tests in ``tests/dataplane`` are written against this file and :class:`DataPlane`'s public
methods alone.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from proxy.dataplane.client import Client
    from proxy.dataplane.lane import Lane
    from proxy.dataplane.requests import Request

# Bits of ``command_flags[command_id]``.
WRITE = 1
"""The command counts as a write of its session, whatever it replies."""
READONLY = 2
"""The command changes nothing: it may be sent again when a lane is lost."""
BARRIER = 4
"""The parser stops behind the command until control resumes the client."""


class Mode(enum.IntEnum):
    """How a client's commands travel."""

    PLAIN = 0
    """Plain one-slot commands go straight to their lanes."""
    CONTROL = 1
    """Every command goes to control (a transaction, a client that has yet to authenticate)."""


class Handed(enum.IntEnum):
    """How much of a request the kernel had taken when its lane was lost."""

    NEVER = 0
    PARTLY = 1
    """Provably not executed: a server runs complete requests only, and the lane is closed."""
    WHOLLY = 2
    """May have been executed."""


class Lost(NamedTuple):
    """A request that was on a lane when the lane went down."""

    request: Request
    handed: Handed


class Limits(NamedTuple):
    """Bounds on what one peer can make grow.  Sizes in bytes."""

    maxclients: int = 10_000
    query: int = 1 << 30
    """The largest single request (Redis: client-query-buffer-limit)."""
    outstanding_commands: int = 10_000
    """Commands of one client without a reply; above it the client is not read."""
    outstanding_bytes: int = 64 << 20
    outstanding_total: int = 512 << 20
    """Bytes of all clients' requests without a reply; above it nobody is read who waits for one."""
    output: int = 256 << 20
    """Replies buffered for a client that does not read; above it the client is closed."""
    pushed: int = 32 << 20
    """Output buffered for a subscriber; above it the client is closed (Redis: client-output-buffer-limit pubsub)."""
    pushed_soft: int = 8 << 20
    """The same, if it stays above this for ``pushed_seconds``."""
    pushed_seconds: float = 60.0
    held_commands: int = 100_000
    """Commands parked on one lane that is not connected."""
    held_bytes: int = 256 << 20


class Control(Protocol):
    """What the data plane calls.  Every call comes from the loop's thread; none may block or raise."""

    def opened(self, client: Client) -> None:
        """A client was accepted.  Control gives it its lanes and mode."""

    def closed(self, client: Client) -> None:
        """A client is gone; its unanswered requests may still be answered, harmlessly."""

    def half_closed(self, client: Client) -> None:
        """A client stopped behind a barrier has sent EOF."""

    def command(self, request: Request) -> None:
        """A command that is not plain, in its client's order; a barrier comes at its turn.

        Control answers it now or later, and resumes the client if it was a barrier.
        """

    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        """A reply with a watched prefix (MOVED, ASK, ...): control resubmits or answers."""

    def lane_down(self, lane: Lane, lost: list[Lost], reason: str) -> None:
        """A lane is gone.  ``lost`` holds its unanswered requests in the order they were sent."""

    def pushed(self, lane: Lane, frame: bytes) -> None:
        """An out-of-band RESP3 push arrived on a lane."""

    def accept_failed(self, error: OSError) -> None:
        """No descriptor for another client (EMFILE, ENFILE): accepting stops until ``resume_accepting``."""

    def held_too_much(self, lane: Lane) -> None:
        """More is parked on a lane that is not connected than the limits allow."""

    def refused(self, client: Client, why: str) -> None:
        """A client was closed for exceeding a limit."""

    def failed(self, where: str, error: Exception) -> None:
        """A defect: handling one client or lane raised; that one was closed, all others go on."""
