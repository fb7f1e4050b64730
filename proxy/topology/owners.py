"""Whose a lane is: the identity by which sessions share it, and what topology keeps on it."""

from __future__ import annotations

import enum
import time
from typing import NamedTuple

import trio

from proxy.acks.incarnation import Incarnation
from proxy.dataplane import Lane


class Identity(NamedTuple):
    """What a lane's connection is: sessions that agree in it may share one."""

    user: str
    database: int
    protocol: int
    modes: tuple[str, ...] = ()
    """Subcommands of CLIENT said ON on it, in order: what they change is the connection's (NO-TOUCH ...)."""
    own: int = 0
    """Of lanes that one session has to itself, because the shard sends it what it reads of others' writes: its
    client's id (see ``Lanes.greetings``).  0: they are shared."""


BASE = Identity("default", 0, 2)


class Use(enum.Enum):
    """What a leased lane is wanted for, by the name of the setting that bounds it."""

    TURN = "leased_per_shard"
    """A transaction, a large request: for as long as the shard takes."""
    BLOCK = "blocked_per_shard"
    """A blocking command: for as long as its client likes."""


class Owner:
    """What topology keeps on a lane."""

    __slots__ = (
        "client_id",
        "doubted",
        "identity",
        "idle_since",
        "incarnation",
        "leased",
        "node_id",
        "patience",
        "retiring_since",
        "run_id",
        "shard",
        "use",
    )

    def __init__(self, identity: Identity, shard: int, leased: bool) -> None:
        self.identity = identity
        self.shard = shard
        self.leased = leased
        self.node_id = ""
        self.run_id = ""
        self.client_id = 0
        """The connection's CLIENT ID at the node."""
        self.incarnation: Incarnation | None = None
        self.retiring_since: float | None = None
        self.doubted: Doubt | None = None
        self.use: Use | None = None
        """Of a leased lane; None: it is idle."""
        self.idle_since = 0.0
        self.patience = 0.0
        """Seconds that its command may take on purpose, beyond what any may: it blocks."""


class Doubt(NamedTuple):
    """The node did not answer for a while, and the lane may not have survived what it was."""

    since: float
    """On trio's clock."""
    seen: tuple[int, int, int]
    """What would change if the lane did anything."""


class Busy(Exception):
    """No leased lane is to be had: the message is the error's text."""


class LaneSet(list[Lane]):
    """The lanes of one identity: by shard index; the last one parks what no shard serves."""

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self.identity = identity
        self.wake: dict[int, trio.Event] = {}
        self.dropped = False
        """Nobody uses them any more."""
        self.sessions = 0
        """How many travel on them."""
        self.unused_since = time.monotonic()
        self.lost: dict[int, str] = {}
        """Of the shards whose lanes were lost: the life of the process they were lost to."""
        self.denied: set[int] = set()
        """The shards whose primaries do not let the user in."""

    @property
    def unused(self) -> bool:
        """Nobody travels on them, and nothing is under way."""
        return not self.sessions and not any(lane.fifo for lane in self)
