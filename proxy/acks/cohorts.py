"""Who is in the crowd (see ``crowd``): a member for each WAIT and WAITAOF, cohorts of those who wait for the same."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from proxy.acks.looks import Seen
from proxy.acks.question import Counts, Question
from proxy.acks.rounds import ShardRounds
from proxy.acks.waiters import Latch, Waiter

if TYPE_CHECKING:
    from proxy.acks.crowd import Crowd

ALL = 1 << 62

Done = Callable[[bytes | None, Counts | None], None]
"""Called with the reply, None for a session that is to be told and closed; and with what it says, where known."""


def nobody(frame: bytes | None, counts: Counts | None) -> None:
    """Who is told once it is over."""


NOBODY = Latch(1)
"""Who waits where nobody does any more."""


class Cohort(Latch):
    """Those for whom one waiter stands in a shard's rounds."""

    __slots__ = ("_crowd", "members", "rounds", "waiter")

    def __init__(self, crowd: Crowd, rounds: ShardRounds, want: int, want_local: int, threshold: int | None) -> None:
        super().__init__(1)
        self._crowd = crowd
        self.rounds = rounds
        self.members: dict[Member, None] = {}
        self.waiter = Waiter(self, want, want_local, threshold)
        self.waiter.weight = self.waiter.sessions = 0

    def open(self) -> None:
        self._crowd.arrived(self)

    def add(self, member: Member) -> None:
        self.members[member] = None
        self.waiter.weight += member.question.weight
        self.waiter.sessions += 1

    def leave(self, member: Member) -> None:
        """Without a member that wants it, it waits no more."""
        if self.members.pop(member, member) is None:
            self.waiter.weight -= member.question.weight
            self.waiter.sessions -= 1
            if not self.members:
                self.rounds.leave(self.waiter)
                self.waiter.gate = NOBODY

    def go(self) -> list[Member]:
        """All its members: it is done, and leaves no cycle to be found by the collector."""
        members, self.members = list(self.members), {}
        self.waiter.gate = NOBODY
        return members


class Member:
    """One WAIT or WAITAOF."""

    __slots__ = (
        "_crowd",
        "count",
        "counts",
        "done",
        "expired",
        "over",
        "pending",
        "proved",
        "question",
        "ready",
        "scope",
    )

    def __init__(self, crowd: Crowd, question: Question, done: Done) -> None:
        self._crowd = crowd
        self.question = question
        self.done = done
        self.pending: dict[int, Cohort | int] = {}
        """What it waits for, by shard: among others, or for one look at who has this offset."""
        self.count = ALL
        """WAIT: the least of the shards so far."""
        self.proved: dict[int, tuple[float, int]] = {}
        """WAIT: when shards with writes were seen to have enough while another was waited for, and the offset."""
        self.counts: dict[int, Counts] = {}
        """WAITAOF: what each shard has."""
        self.ready = False
        """WAITAOF: it waits for replicas no more: what is left is to prove what they have."""
        self.expired = math.inf
        """Until when it waits for a last look, or for the proof of what was counted, its time being up."""
        self.over = False
        self.scope: trio.CancelScope | None = None
        """Of its own task, once it has one."""

    def glanced(self, rounds: ShardRounds, seen: Seen) -> None:
        self._crowd.glanced(self, rounds, seen)

    def cancel(self) -> None:
        """Nobody wants an answer any more."""
        if self.scope is not None:
            self.scope.cancel()
        self._crowd.drop(self)

    def expire(self) -> None:
        """The time is up: the answer is what there is now."""
        self.question.expire()
        self._crowd.expire(self)


class Looks:
    """Looks for members whose time is up, by the shards they wait for: those who come while some of their kind are
    looked for are the next batch.
    """

    def __init__(self, work: Callable[[frozenset[int], list[Member]], Awaitable[None]]) -> None:
        self._work = work
        self._next: dict[frozenset[int], list[Member]] = {}

    def add(self, shards: frozenset[int], member: Member, nursery: trio.Nursery) -> None:
        members = self._next.get(shards)
        if members is not None:
            members.append(member)
            return
        self._next[shards] = [member]
        nursery.start_soon(self._run, shards)

    async def _run(self, shards: frozenset[int]) -> None:
        while members := self._next[shards]:
            self._next[shards] = []
            await self._work(shards, members)
        del self._next[shards]
