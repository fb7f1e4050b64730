"""Those who wait for a shard's acknowledgments, and what they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import trio

from proxy.acks.incarnation import Incarnation

T = TypeVar("T")
AT_ONCE = 0.01  # seconds that who asks for the present counts gives an acknowledgment that is on its way


class MarkerRefused(Exception):
    """The shard did not take the marker (OOM, NOREPLICAS, NOPERM ...), or not in time: what is fsynced is not known."""


class Latch:
    """Opens when so many waiters have enough, or one of them failed."""

    __slots__ = ("_left", "failure")

    def __init__(self, waiters: int) -> None:
        self._left = waiters
        self.failure: Exception | None = None

    def enough(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self.open()

    def fail(self, failure: Exception) -> None:
        self.failure = self.failure or failure
        self.open()

    def open(self) -> None:
        """May be called again when it is open."""
        raise NotImplementedError


class Gate(Latch):
    """One that is waited for."""

    __slots__ = ("_event",)

    def __init__(self, waiters: int) -> None:
        super().__init__(waiters)
        self._event = trio.Event()
        if not waiters:
            self._event.set()

    def open(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


class Waiter:
    """One session's question to one shard, and the counts it has so far.

    ``at_once``: it asks for what there is, however many.  Its threshold may lie behind others' writes, so replicas that
    have all it wrote have to say so anew: it has enough when all online have, or a moment after it was first looked at.
    """

    __slots__ = (
        "at_once",
        "count",
        "done",
        "gate",
        "joined",
        "listed",
        "local",
        "seen",
        "sessions",
        "settled",
        "since",
        "threshold",
        "told",
        "want",
        "want_local",
        "weight",
    )

    def __init__(
        self, gate: Latch, want: int, want_local: int, threshold: int | None, *, at_once: bool = False
    ) -> None:
        self.gate = gate
        self.at_once = at_once
        self.settled = 0.0
        """When what there is will do; 0.0 before the first look."""
        self.want = want
        self.want_local = want_local
        self.threshold = threshold
        """The offset to be acknowledged; None until one is sampled for it."""
        self.since = math.inf
        """When that was sampled."""
        self.count = 0
        self.local = 0
        self.done = False
        self.seen = False
        """Looked at since somebody asked for that."""
        self.told = False
        """Looked at since it joined."""
        self.weight = 1
        """For how many writes' acknowledgment it stands."""
        self.sessions = 1
        """For how many it waits."""
        self.joined = 0
        self.listed = False
        """It stands in the list of those who wait for an offset."""

    def see(self, count: int, local: int = 0, online: int = 0) -> bool:
        """Take in the present counts, of ``online`` replicas; True when they are enough."""
        self.count = count
        self.local = local
        self.seen = self.told = True
        if not self.done and self._enough(online):
            self.done = True
            self.gate.enough()
        return self.done

    def _enough(self, online: int) -> bool:
        if self.local >= self.want_local and self.count >= (online if self.at_once else self.want):
            return True
        if not self.at_once:
            return False
        self.settled = self.settled or trio.current_time() + AT_ONCE
        return trio.current_time() >= self.settled

    def fail(self, failure: Exception) -> None:
        self.done = True
        self.gate.fail(failure)


class Verdict(NamedTuple):
    """What was read behind the counts."""

    incarnation: Incarnation | None
    """The life now in charge; None when the node is no primary any more."""
    generation: int
    moving: bool
    """A slot of the shard is on its way out or in."""
    untrusted: str | None
    """Why the shard's WAITAOF cannot be believed; None when it can."""


class Run(Generic[T]):
    """One call that many share."""

    __slots__ = ("_then", "done", "failure", "result")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: T | None = None
        self.failure: Exception | None = None
        self._then: list[Callable[[], None]] = []

    def then(self, tell: Callable[[], None]) -> None:
        """Have it called when the run is over; at once if it is."""
        if self.done.is_set():
            tell()
        else:
            self._then.append(tell)

    def finish(self, result: T | None, failure: Exception | None = None) -> None:
        """It is over; harmless when it was."""
        if self.done.is_set():
            return
        self.result, self.failure = result, failure
        self.done.set()
        told, self._then = self._then, []
        for tell in told:
            tell()
