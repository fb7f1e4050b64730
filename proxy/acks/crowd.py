"""The crowd: waits that go the usual way, answered without a task or a waiter for each of them.

Thousands may wait, and most wait for the same: those who want as many replicas of a shard, since the same look at it,
are a cohort, for which one waiter stands in the shard's rounds.  A look proves what it counts (see ``looks``), so a
WAIT is answered by the look that lets the last of its shards go; shards seen long before that are seen once more, since
what the session wrote there may be elsewhere by then.  A WAITAOF joins those of its kind, for
whom what has to be read behind their counts is read at once (see ``proofs``).

What is not usual (slots that move, another life than expected, a verdict that is missing) is begun anew by a task of
its own: see ``Question.ask``.  The rules are the question's in both cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from heapq import heapify, heappop, heappush

import structlog
import trio

from proxy.acks.cohorts import Cohort, Done, Looks, Member, nobody
from proxy.acks.incarnation import Incarnation, Stamp
from proxy.acks.looks import Seen
from proxy.acks.proofs import Proofs
from proxy.acks.question import GRACE, NOTHING, Counts, Question, Unconfirmed, Untrusted, most
from proxy.acks.rounds import ShardRounds
from proxy.acks.wait import Acks
from proxy.acks.waiters import MarkerRefused, Verdict, Waiter
from proxy.codec.reply import error
from shard.client import ReplyError

SETTLES = 0.005  # seconds for an acknowledgment that was asked for just before the time was up
FRESH = 0.05  # seconds for which what was seen of one shard holds while another is waited for
UNSAMPLED = -1  # in place of an offset: what is left is to prove that what a WAITAOF said still holds
PURGE = 1024  # deadlines kept in vain before those that were answered long ago are taken out


def _usual(stamps: list[Stamp], rounds: ShardRounds) -> bool:
    """Whether a session's writes are all where they were made, and whoever took them still leads."""
    life = stamps[1].incarnation.present
    return not life.ended and stamps[0].generation == rounds.generation and _took(life, stamps)


def _took(life: Incarnation | None, stamps: list[Stamp]) -> bool:
    """Whether a life has all the writes: it took them itself, or carries on those that did."""
    first, last = stamps
    if first.incarnation is life and last.incarnation is life:
        return True
    return first.incarnation.present is life and last.incarnation.present is life


def _just_asked(member: Member, waiter: Waiter) -> bool:
    """Whether the time was up before the replicas could answer: they are given a moment."""
    now = trio.current_time()
    return now < member.expired - GRACE + SETTLES and (waiter.threshold is None or now < waiter.since + SETTLES)


class Crowd:
    """See the module.  Within ``together`` many answers are sent in one go."""

    def __init__(self, acks: Acks, together: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.acks = acks
        self._together = together
        self._members: set[Member] = set()
        self._looks = Looks(self._look)
        self._proofs = Proofs(acks, self._conclude, together)
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

    def ask(self, question: Question, done: Done) -> Member:
        """Have a question answered; not before this returns."""
        member = Member(self, question, done)
        self._members.add(member)
        self.acks.open += 1
        enlist = self._enlist_fsync if question.asked.fsync else self._enlist
        if question.at_once or question.everywhere or not enlist(member):
            self._begin_anew(member)
        elif question.deadline < math.inf:
            self._at(question.deadline, member)
        return member

    async def _watch_lives(self) -> None:
        """Whenever a life ends, those who wrote in it are told at once; for ever."""
        while True:
            changed = self.acks.changed
            with self._together():
                for member in [member for member in self._members if member.scope is None]:
                    try:
                        self.acks.check_lives(member.question.writer)
                    except Unconfirmed:
                        self._finish(member, None)
            await changed.wait()

    # -- WAIT -----------------------------------------------------------------------------------------
    def _enlist(self, member: Member) -> bool:
        """Wait for every shard; False: something is not as usual."""
        question, pending = member.question, member.pending
        writes, want = question.writer.writes, question.asked.replicas
        written = 0
        for shard in question.shards():
            rounds = self.acks.of(shard)
            stamps = writes.get(shard)
            threshold: int | None = 0
            if stamps is not None:
                if not _usual(stamps, rounds):
                    return False
                written += 1
                threshold = question.threshold(shard, stamps)
                if threshold is None and question.told(shard)[1] >= want:
                    threshold = UNSAMPLED
            if threshold is None:
                waiter = rounds.open.get(want)
                if waiter is not None and isinstance(waiter.gate, Cohort):
                    cohort = waiter.gate
                else:
                    cohort = Cohort(self, rounds, want, 0, None)
                    rounds.open[want] = cohort.waiter
                    rounds.join(cohort.waiter)
                cohort.add(member)
                pending[shard] = cohort
            else:
                pending[shard] = threshold
                rounds.glance(member)
        return written == len(writes) and bool(pending)

    def arrived(self, cohort: Cohort) -> None:
        """The shard has enough for it, or refuses."""
        waiter, seen, shard = cohort.waiter, cohort.rounds.seen, cohort.rounds.shard
        members = cohort.go()
        with self._together():
            if cohort.failure is not None:
                for member in members:
                    self._refused(member, cohort.failure)
            elif seen is None:
                for member in members:
                    self._counted_fsync(member, shard, (waiter.local, waiter.count))
            else:
                for member in members:
                    count = max(waiter.count, member.question.told(shard)[1])  # who has fsynced it has it
                    self._arrive(member, shard, count, waiter.threshold, seen)

    def glanced(self, member: Member, rounds: ShardRounds, seen: Seen) -> None:
        """A look that was for this member."""
        awaited = member.pending.get(rounds.shard)
        if awaited is None or member.scope is not None:
            return
        known = awaited if isinstance(awaited, int) else awaited.waiter.threshold
        known = None if known == UNSAMPLED else known
        # Never asked for: what there is now of all the shard has, by a look that began after the session's writes.
        threshold = seen.offset if known is None else known
        count = sum(1 for offset in seen.acknowledged if offset >= threshold)
        count = max(count, member.question.told(rounds.shard)[1])
        missing = count < min(member.question.asked.replicas, len(seen.acknowledged))
        if missing and isinstance(awaited, Cohort) and _just_asked(member, awaited.waiter):
            rounds.glance(member, urgent=True)
        elif count >= member.question.asked.replicas or member.expired < math.inf:
            self._arrive(member, rounds.shard, count, known, seen)
        elif isinstance(awaited, int):
            cohort = Cohort(self, rounds, member.question.asked.replicas, 0, known)
            cohort.add(member)
            member.pending[rounds.shard] = cohort
            rounds.join(cohort.waiter)

    def _arrive(self, member: Member, shard: int, count: int, threshold: int | None, seen: Seen) -> None:
        """The shard's count, and the look that shows it."""
        awaited = member.pending.pop(shard, None)
        if awaited is None or member.over:
            return
        question = member.question
        stamps = question.writer.writes.get(shard)
        if stamps is not None:
            proved = _took(seen.incarnation, stamps) and stamps[0].generation == seen.generation
            if not proved or seen.moving:
                member.pending[shard] = awaited
                self._begin_anew(member)
                return
            if threshold is not None:
                question.memory.thresholds[shard] = stamps[1], threshold
            if member.pending or member.proved:
                member.proved[shard] = seen.came, seen.offset if threshold is None else threshold
        if member.expired < math.inf and isinstance(awaited, Cohort):
            awaited.leave(member)
        if count < member.count:
            member.count = count
        if not member.pending and self._holds(member, seen.sent):
            self._finish(member, b":%d\r\n" % member.count, (0, member.count))

    def _holds(self, member: Member, now: float) -> bool:
        """Whether what was seen of each shard is still so; False: it is looked at again, or begun anew."""
        if not member.count:
            return True
        for shard, (came, threshold) in member.proved.items():
            rounds = self.acks.of(shard)
            if not _usual(member.question.writer.writes[shard], rounds):
                self._begin_anew(member)
                return False
            if now - came > FRESH:
                member.pending[shard] = threshold
                rounds.glance(member, urgent=member.expired < math.inf)
        return not member.pending

    # -- WAITAOF --------------------------------------------------------------------------------------
    def _enlist_fsync(self, member: Member) -> bool:
        question = member.question
        asked, writes = question.asked, question.writer.writes
        written = 0
        for shard in question.shards():
            if (stamps := writes.get(shard)) is not None:
                if not _usual(stamps, self.acks.of(shard)):
                    return False
                written += 1
            told = member.counts[shard] = question.told(shard)
            if told[0] >= asked.local and told[1] >= asked.replicas:
                continue
            rounds = self.acks.of(shard)
            kind = asked.local, asked.replicas, stamps is not None
            waiter = rounds.markers.open.get(kind)
            if waiter is not None and isinstance(waiter.gate, Cohort):
                cohort = waiter.gate
            else:
                cohort = Cohort(self, rounds, asked.replicas, asked.local, None)
                rounds.markers.open[kind] = cohort.waiter
                rounds.join_fsync(cohort.waiter, wrote=kind[2])
            cohort.add(member)
            member.pending[shard] = cohort
        if written != len(writes):
            return False
        if not member.pending:
            self.acks.pace.rest(member, trio.current_time(), partial(self._told_before, member))
        return True

    def _told_before(self, member: Member) -> None:
        """It was told enough before: what is left is to prove that it still holds."""
        if not (member.over or member.ready):
            self._to_proof(member)

    def _counted_fsync(self, member: Member, shard: int, counts: Counts) -> None:
        if member.over or member.ready or member.pending.pop(shard, None) is None:
            return
        member.counts[shard] = most((counts, member.counts[shard]))
        if not member.pending:
            self._to_proof(member)

    def _refused(self, member: Member, failure: Exception) -> None:
        if not member.over and member.scope is None:
            self._finish(member, error(str(failure)))

    async def _look(self, shards: frozenset[int], members: list[Member]) -> None:
        await self.acks.look_again(shards)
        for member in members:
            if not member.over:
                self._count_what_there_is(member)

    def _count_what_there_is(self, member: Member) -> None:
        for shard, cohort in member.pending.items():
            assert isinstance(cohort, Cohort)
            failure = member.question.unanswered(shard, cohort.waiter)
            if failure is not None:
                self._refused(member, failure)
                return
            counts = cohort.waiter.local, cohort.waiter.count
            member.counts[shard] = most((counts, member.counts[shard]))
        self._to_proof(member)

    def _to_proof(self, member: Member) -> None:
        member.ready = True
        self._leave(member)
        question = member.question
        claimed = frozenset(question.claimed(member.counts))
        if question.late:
            self._give_grace(member)
        self._proofs.add(claimed, member)

    def _conclude(self, member: Member, verdicts: dict[int, Verdict]) -> None:
        try:
            confirmed = member.question.conclude(member.counts, verdicts)
        except (MarkerRefused, Untrusted, ReplyError) as refusal:
            self._finish(member, error(str(refusal)))
        except Unconfirmed:
            self._finish(member, None)
        else:
            if confirmed is None:
                self._begin_anew(member)
            else:
                self._finish(member, member.question.reply(confirmed), confirmed)

    # -- the end of a member --------------------------------------------------------------------------
    def _finish(self, member: Member, frame: bytes | None, counts: Counts | None = None) -> None:
        if frame is None:
            self.acks.unconfirmed += 1
        self.drop(member)
        done, member.done = member.done, nobody
        done(frame, counts)

    def drop(self, member: Member) -> None:
        """Forget it; harmless when that was done."""
        if member.over:
            return
        member.over = True
        self._members.discard(member)
        if member.scope is None:
            self.acks.open -= 1
            if member.pending:
                self._leave(member)

    @staticmethod
    def _leave(member: Member) -> None:
        """It waits for no shard any more."""
        for awaited in member.pending.values():
            if isinstance(awaited, Cohort):
                awaited.leave(member)
        member.pending = {}

    # -- what is not usual ----------------------------------------------------------------------------
    def _begin_anew(self, member: Member) -> None:
        self.acks.open -= 1
        self._leave(member)
        self._alone(member)

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
                done, member.done = member.done, nobody
                done(frame, None)

    # -- time -----------------------------------------------------------------------------------------
    def _at(self, moment: float, member: Member) -> None:
        self._purge()
        heappush(self._deadlines, (moment, next(self._number), member))
        if self._deadlines[0][2] is member:
            self._sooner.set()

    async def _keep_deadlines(self) -> None:
        while True:
            self._sooner = trio.Event()
            self._purge()
            with trio.move_on_at(self._deadlines[0][0] if self._deadlines else math.inf):
                await self._sooner.wait()
            now = trio.current_time()
            with self._together():
                while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].over):
                    member = heappop(self._deadlines)[2]
                    if not member.over:
                        self.expire(member)

    def expire(self, member: Member) -> None:
        """Its time is up: what there is counts, seen by a look that begins now; where none comes, nothing is there."""
        if member.over or member.scope is not None:
            return
        fsync = member.question.asked.fsync
        if fsync and not member.ready:
            member.ready = True
            self._looks.add(frozenset(member.pending), member, self._the_nursery)
        elif member.expired == math.inf:
            self._give_grace(member)
            for shard in () if fsync else member.pending:
                self.acks.of(shard).glance(member, urgent=True)
        elif trio.current_time() >= member.expired:
            self._finish(member, member.question.reply(NOTHING), NOTHING)

    def _give_grace(self, member: Member) -> None:
        member.expired = trio.current_time() + GRACE
        self._at(member.expired, member)

    def _purge(self) -> None:
        if len(self._deadlines) > PURGE + 2 * len(self._members):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].over]
            heapify(self._deadlines)

    @property
    def _the_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("nobody runs Acks.run")
        return self._nursery
