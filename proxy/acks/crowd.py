"""The crowd: waits that go the usual way, answered without a task for each of them.

A task with its scopes and nurseries costs several times what is asked of a shard, and thousands may wait.  So whoever
has enough, or is at its deadline, joins those of its kind, and one task at a time reads for all of them what has to be
read behind their counts.  Kinds are apart, so that a shard which does not answer holds up those alone who ask for it.

What is not usual (slots that move, a verdict that is missing or another than expected) is begun anew by a task of its
own: see ``Question.ask``.  The rules are the question's in both cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import structlog
import trio

from proxy.acks.wait import Acks, Counts, Question, Unconfirmed, Untrusted
from proxy.acks.waiters import Latch, MarkerRefused, Verdict, Waiter
from proxy.codec.reply import error
from shard.client import ReplyError

PURGE = 1024  # deadlines kept in vain before those that were answered long ago are taken out

Kind = TypeVar("Kind", bound=Hashable)


def _nobody(frame: bytes | None) -> None:
    """Who is told once it is over."""


class Member(Latch):
    """One WAIT.  ``done`` is called with the reply, None for a session that is to be told and closed."""

    __slots__ = ("_crowd", "counts", "done", "over", "question", "ready", "scope", "shards", "waiters")

    def __init__(self, crowd: Crowd, question: Question, done: Callable[[bytes | None], None]) -> None:
        self.shards = question.shards()
        super().__init__(len(self.shards))
        self._crowd = crowd
        self.question = question
        self.done = done
        self.waiters: dict[int, Waiter] = {}
        self.counts: dict[int, Counts] = {}
        self.ready = False
        """It waits for replicas no more: what is left is to prove what they have."""
        self.over = False
        self.scope: trio.CancelScope | None = None
        """Of its own task, once it has one."""

    def open(self) -> None:
        self._crowd.satisfied(self)

    def cancel(self) -> None:
        """Nobody wants an answer any more."""
        if self.scope is not None:
            self.scope.cancel()
        self._crowd.drop(self)

    def expire(self) -> None:
        """The time is up: the answer is what there is now."""
        self.question.expire()
        self._crowd.expired(self)


class Batches(Generic[Kind]):
    """Work on members, kind by kind: those who come while some of their kind are worked on are the next batch."""

    def __init__(self, work: Callable[[Kind, list[Member]], Awaitable[None]]) -> None:
        self._work = work
        self._next: dict[Kind, list[Member]] = {}

    def add(self, kind: Kind, member: Member, nursery: trio.Nursery) -> None:
        members = self._next.get(kind)
        if members is not None:
            members.append(member)
            return
        self._next[kind] = [member]
        nursery.start_soon(self._run, kind)

    async def _run(self, kind: Kind) -> None:
        while members := self._next[kind]:
            self._next[kind] = []
            await self._work(kind, members)
        del self._next[kind]


class Crowd:
    """See the module.  Within ``together`` many answers are sent in one go."""

    def __init__(self, acks: Acks, together: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.acks = acks
        self._together = together
        self._members: set[Member] = set()
        self._looks: Batches[frozenset[int]] = Batches(self._look)
        self._proofs: Batches[tuple[bool, frozenset[int]]] = Batches(self._prove)
        self._deadlines: list[tuple[float, int, Member]] = []
        self._number = itertools.count()
        self._sooner = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve the waits, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_lives)
            await self._keep_deadlines()

    def ask(self, question: Question, done: Callable[[bytes | None], None]) -> Member:
        """Have a question answered; not before this returns."""
        member = Member(self, question, done)
        self._members.add(member)
        if not question.usual:
            self._alone(member)
            return member
        self.acks.open += 1
        member.waiters = question.enlist(member.shards, member)
        if member.ready or not member.shards:
            member.ready = True
            self._to_proof(member)
        elif question.deadline < math.inf:
            heappush(self._deadlines, (question.deadline, next(self._number), member))
            if self._deadlines[0][2] is member:
                self._sooner.set()
        return member

    async def _watch_lives(self) -> None:
        """Whenever a life ends, those who wrote in it are told at once; for ever."""
        while True:
            changed = self.acks.changed
            for member in [member for member in self._members if member.scope is None]:
                try:
                    self.acks.check_lives(member.question.writer)
                except Unconfirmed:
                    self._finish(member, None)
            await changed.wait()

    # -- the way of a member --------------------------------------------------------------------------
    def satisfied(self, member: Member) -> None:
        """All its shards have enough, or one of them refused."""
        if not member.ready:
            member.ready = True
            if member.waiters:  # else it is just being enlisted
                self._to_proof(member)

    def expired(self, member: Member) -> None:
        """Its time is up: what there is counts, seen by a look that begins now."""
        if not member.ready and member.scope is None:
            member.ready = True
            undone = frozenset(shard for shard, waiter in member.waiters.items() if not waiter.done)
            self._looks.add(undone, member, self._the_nursery)

    async def _look(self, shards: frozenset[int], members: list[Member]) -> None:
        await self.acks.look_again(shards)
        for member in members:
            if not member.over:
                self._to_proof(member)

    def _to_proof(self, member: Member) -> None:
        question = member.question
        member.counts = question.counted(member.waiters)
        claimed = frozenset(question.claimed(member.counts)) if member.failure is None else frozenset()
        self._proofs.add((question.asked.fsync, claimed), member, self._the_nursery)

    async def _prove(self, kind: tuple[bool, frozenset[int]], members: list[Member]) -> None:
        fsync, shards = kind
        verdicts: dict[int, Verdict] = {}
        if shards:
            verdicts = await self.acks.verdicts(shards, fsync, min(member.question.deadline for member in members))
        with self._together():
            for member in members:
                if not member.over:
                    self._conclude(member, verdicts)

    def _conclude(self, member: Member, verdicts: dict[int, Verdict]) -> None:
        try:
            if member.failure is not None:
                raise member.failure
            frame = member.question.conclude(member.counts, verdicts)
        except (MarkerRefused, Untrusted, ReplyError) as refusal:
            self._finish(member, error(str(refusal)))
        except Unconfirmed:
            self._finish(member, None)
        else:
            if frame is None:
                self.acks.open -= 1
                self._alone(member)
            else:
                self._finish(member, frame)

    def _finish(self, member: Member, frame: bytes | None) -> None:
        if frame is None:
            self.acks.unconfirmed += 1
        self.drop(member)
        self._tell(member, frame)

    @staticmethod
    def _tell(member: Member, frame: bytes | None) -> None:
        done, member.done = member.done, _nobody
        done(frame)

    def drop(self, member: Member) -> None:
        """Forget it; harmless when that was done."""
        if member.over:
            return
        member.over = True
        self._members.discard(member)
        if member.scope is None:
            self.acks.open -= 1
            member.question.leave(member.waiters)
        member.waiters = {}  # they know the member: what is over leaves no cycle to be found by the collector

    # -- what is not usual ----------------------------------------------------------------------------
    def _alone(self, member: Member) -> None:
        member.scope = trio.CancelScope()
        self.acks.alone += 1
        self._the_nursery.start_soon(self._ask_alone, member, member.scope)

    async def _ask_alone(self, member: Member, scope: trio.CancelScope) -> None:
        with scope:
            frame: bytes | None
            try:
                frame = await self.acks.wait(member.question)
            except Unconfirmed:
                frame = None
            except Exception:
                structlog.get_logger("acks").exception("a WAIT failed")
                frame = b"-ERR internal error of the proxy, see its log\r\n"
            if not member.over:
                self.drop(member)
                self._tell(member, frame)

    # -- time -----------------------------------------------------------------------------------------
    async def _keep_deadlines(self) -> None:
        while True:
            self._sooner = trio.Event()
            self._purge()
            with trio.move_on_at(self._deadlines[0][0] if self._deadlines else math.inf):
                await self._sooner.wait()
            now = trio.current_time()
            while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].ready):
                self.expired(heappop(self._deadlines)[2])

    def _purge(self) -> None:
        if len(self._deadlines) > PURGE + 2 * len(self._members):
            self._deadlines = [entry for entry in self._deadlines if not (entry[2].ready or entry[2].over)]
            heapify(self._deadlines)

    @property
    def _the_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("nobody runs Acks.run")
        return self._nursery
