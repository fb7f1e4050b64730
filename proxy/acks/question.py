"""The question of one session's WAIT or WAITAOF: what each shard is asked, and what its counts are worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from proxy.acks.arguments import Asked
from proxy.acks.incarnation import Stamp
from proxy.acks.waiters import Gate, Latch, MarkerRefused, Verdict, Waiter
from proxy.codec.reply import array, integer
from shard.client import ConnectionLost, ReplyError

if TYPE_CHECKING:
    from proxy.acks.wait import Acks

RETRY = 0.05  # seconds before what could not be proved is tried again, while there is time
LAST_LOOK = 0.05  # seconds behind the deadline for a last look, so that partial counts are the present ones
GRACE = 0.06  # seconds behind the deadline to prove what was counted
PROOF = 2.0  # seconds; a primary that does not answer that long proves nothing

Counts = tuple[int, int]
"""(local, replicas) of one shard."""
NOTHING: Counts = (0, 0)


class Unconfirmed(Exception):
    """A write of this session was taken by a life that has ended: no number can be given."""


class Untrusted(Exception):
    """The engine's WAITAOF cannot be believed; says why and what to do."""


class Writer(Protocol):
    """What acks knows of a session: the stamps of its writes, by shard index, as [first, last]."""

    writes: dict[int, list[Stamp]]


class Memory:
    """What a session was told before: a second WAIT keeps its threshold, a second WAITAOF its answer.

    The engine forgets what a replica acknowledged when that leaves, and which of them it was that had fsynced something
    it does not tell.  So each one that has left since counts as if it had been one of those.  Nor does it count its own
    disk while it keeps no AOF.
    """

    __slots__ = ("fsynced", "thresholds")

    def __init__(self) -> None:
        self.thresholds: dict[int, tuple[Stamp, int]] = {}
        self.fsynced: dict[int, tuple[Stamp, Counts, int]] = {}
        """The last one is how many replicas had left by then."""


def least(counts: Iterable[Counts]) -> Counts:
    """Element-wise minimum (the engine's own hint for both commands: agg_min)."""
    rows = list(counts)
    return (min(row[0] for row in rows), min(row[1] for row in rows)) if rows else NOTHING


def most(counts: Iterable[Counts]) -> Counts:
    """Element-wise maximum: what was true once of the same writes."""
    rows = list(counts)
    return max(row[0] for row in rows), max(row[1] for row in rows)


class Question:
    """One WAIT under way.

    Usually each shard is asked for what the session wrote there.  Once a slot has left a shard that it
    wrote to, or is on its way, its writes may be anywhere: every shard is asked for all it has so far.
    While slots are on their way that is done twice over, one after the other: a key that moves from A to B
    was still on A when A's first count was proved, or already on B when B's second offset was sampled.
    """

    def __init__(
        self,
        acks: Acks,
        writer: Writer,
        memory: Memory,
        asked: Asked,
        at_once: bool = False,
        shards: Sequence[int] | None = None,
    ) -> None:
        self.acks = acks
        self._shards = shards
        self.writer = writer
        self.memory = memory
        self.asked = asked
        self.everywhere = False
        self.weight = 1
        """How many writes it is about, for a question that stands for many."""
        self.at_once = at_once or (asked.replicas <= 0 and not asked.local)
        """Who asks for no copy never blocks, whatever the timeout."""
        patience = min(asked.timeout or math.inf, PROOF if self.at_once else math.inf)
        self.deadline = trio.current_time() + patience
        self._reading: trio.CancelScope | None = None
        self._sampled: dict[int, int | None] = {}
        """The offsets that every shard was last asked for."""
        writes = writer.writes.items() if asked.fsync else ()
        self._left = {shard: last.incarnation.left for shard, (_, last) in writes}
        """How many replicas had left each shard before anything was counted."""

    def shards(self) -> Sequence[int]:
        """Who is asked."""
        return self._shards if self._shards is not None else self.acks.shards()

    @property
    def late(self) -> bool:
        return trio.current_time() >= self.deadline

    def expire(self) -> None:
        """The time is up: the answer is what there is now."""
        self.deadline = trio.current_time()
        if self._reading is not None:
            self._reading.deadline = self.deadline

    async def ask(self) -> list[Counts]:
        """(local, replicas) of every shard, each proved or 0.  Raises what there is instead of numbers."""
        while True:
            self.acks.check_lives(self.writer)
            self.everywhere = self.everywhere or self._slots_left()
            counts = await (self._ask_everywhere() if self.everywhere else self._ask_own())
            if counts is not None:
                return counts
            if self.late:
                return [NOTHING]  # nothing could be proved in the time given, so nothing is claimed
            await trio.sleep(RETRY)

    def _slots_left(self) -> bool:
        """Whether a shard has lost slots since this session first wrote to it."""
        writes = self.writer.writes.items()
        return any(first.generation != self.acks.of(shard).generation for shard, (first, _) in writes)

    async def _ask_own(self) -> list[Counts] | None:
        """Each shard for this session's own writes; None when it has to be asked again."""
        counts = await self._read(self.shards(), everywhere=False)
        return self._weigh(counts, await self._verdicts(self.claimed(counts)))

    def claimed(self, counts: dict[int, Counts]) -> list[int]:
        """The shards whose counts say something, which has to be proved."""
        shards = counts if self.asked.fsync else self.writer.writes.keys() & counts.keys()
        return [shard for shard in shards if counts[shard] != NOTHING]

    def _weigh(self, counts: dict[int, Counts], verdicts: dict[int, Verdict]) -> list[Counts] | None:
        """The counts as far as the verdicts read behind them prove them; None when it has to be asked again."""
        for shard in self.claimed(counts):
            verdict = verdicts.get(shard)
            if verdict is None:
                if not self.late:
                    return None
                counts[shard] = NOTHING
            elif shard in self.writer.writes:
                if not self._same_life(shard, verdict):
                    return None
                if verdict.moving or verdict.generation != self.writer.writes[shard][0].generation:
                    self.everywhere = True
                    return None
                if self._holds_no_more(shard):
                    return None
        self._remember(counts)
        return list(counts.values())

    # -- step by step, for many at once: as ask() does when all is as usual ----------------------------
    def leave(self, waiters: dict[int, Waiter]) -> None:
        """Wait no more."""
        for shard, waiter in waiters.items():
            self.acks.of(shard).leave(waiter)

    def conclude(self, counts: dict[int, Counts], verdicts: dict[int, Verdict]) -> Counts | None:
        """What is confirmed; None when it has to be asked again.  Raises what there is instead of numbers."""
        self.acks.check_lives(self.writer)
        self._trusted(verdicts)
        proved = self._weigh(counts, verdicts)
        return None if proved is None else least(proved)

    def reply(self, confirmed: Counts) -> bytes:
        """The raw reply to what is confirmed."""
        local, replicas = confirmed
        return array([integer(local), integer(replicas)]) if self.asked.fsync else integer(replicas)

    async def _ask_everywhere(self) -> list[Counts] | None:
        """Every shard for all it has; None when slots moved or lives ended in between."""
        shards = self.acks.shards()
        before = await self._verdicts(shards, LAST_LOOK)
        if self.late and len(before) < len(shards):
            return [NOTHING]
        if not all(self._same_life(shard, before[shard]) for shard in before.keys() & self.writer.writes.keys()):
            return None
        ticks = {shard: self.acks.of(shard).tick for shard in shards}
        lives = ((shard, verdict.incarnation) for shard, verdict in before.items())
        self._left = {shard: life.left for shard, life in lives if life is not None}
        counts = await self._read(shards, everywhere=True)
        moving = any(verdict.moving for verdict in before.values())
        if moving:
            again = await self._read(shards, everywhere=True)
            counts = {shard: least((counts[shard], again[shard])) for shard in shards}
        after = await self._verdicts([shard for shard in shards if counts[shard] != NOTHING])
        if list(shards) != list(self.acks.shards()):
            return None
        if not moving and any(verdict.moving for verdict in after.values()):
            return None  # a key may have left a shard before its count and reached another behind its count
        for shard in shards:
            if counts[shard] == NOTHING:
                continue
            if shard not in before or shard not in after:
                return None
            if before[shard].incarnation is not after[shard].incarnation or after[shard].incarnation is None:
                return None
            if before[shard].generation != after[shard].generation:
                return None
            if shard in self.writer.writes and not self._same_life(shard, after[shard]):
                return None
        if not any(verdict.moving for verdict in (*before.values(), *after.values())) and len(before) == len(shards):
            self._spread(before, ticks)
            self._remember_asked({shard: each for shard, each in counts.items() if each != NOTHING})
        return list(counts.values())

    def _spread(self, verdicts: dict[int, Verdict], ticks: dict[int, int]) -> None:
        """From now on the session counts as having written everywhere, up to what was just asked for."""
        for shard, verdict in verdicts.items():
            if verdict.incarnation is not None:
                stamp = Stamp(verdict.incarnation, ticks[shard], verdict.generation)
                last = self.writer.writes.get(shard, [stamp, stamp])[1]
                self.writer.writes[shard] = [stamp, last if last.tick > stamp.tick else stamp]

    def _same_life(self, shard: int, verdict: Verdict) -> bool:
        """Whether the life now in charge is that of the session's writes; False while that is not settled.

        Raises ``Unconfirmed`` when it is another.
        """
        self.acks.check_lives(self.writer)
        return all(stamp.incarnation.present is verdict.incarnation for stamp in self.writer.writes[shard])

    async def _read(self, shards: Sequence[int], everywhere: bool) -> dict[int, Counts]:
        """Each shard's counts: as soon as all have enough, or what they are at the deadline."""
        gate = Gate(len(shards))
        waiters = {shard: self._enlist(shard, gate, everywhere) for shard in shards}
        try:
            self._reading = trio.CancelScope(deadline=self.deadline)
            with self._reading:
                await gate.wait()
            if gate.failure is not None:
                raise gate.failure
            if not all(waiter.done for waiter in waiters.values()):
                await self._last_look([shard for shard in shards if not waiters[shard].done])
                self._fail_unanswered(waiters)
            if gate.failure is not None:
                raise gate.failure
        finally:
            self.leave(waiters)
        return self._counted(waiters, everywhere)

    def _counted(self, waiters: dict[int, Waiter], everywhere: bool) -> dict[int, Counts]:
        if not self.asked.fsync and not everywhere:
            for shard, waiter in waiters.items():
                if shard in self.writer.writes and waiter.threshold is not None:
                    self.memory.thresholds[shard] = (self.writer.writes[shard][1], waiter.threshold)
        counts = {shard: (waiter.local, waiter.count) for shard, waiter in waiters.items()}
        if everywhere:
            self._sampled = {shard: waiter.threshold for shard, waiter in waiters.items()}
            return counts
        told = {shard: self.told(shard) for shard in counts}
        if not self.asked.fsync:  # who has fsynced it has it
            told = {shard: (0, replicas) for shard, (_, replicas) in told.items()}
        return {shard: most((now, told[shard])) for shard, now in counts.items()}

    def _enlist(self, shard: int, gate: Latch, everywhere: bool) -> Waiter:
        rounds = self.acks.of(shard)
        stamps = self.writer.writes.get(shard)
        waiter = Waiter(gate, self.asked.replicas, self.asked.local, None, at_once=self.at_once)
        waiter.weight = self.weight
        if self.asked.fsync:
            local, replicas = NOTHING if everywhere else self.told(shard)
            if not self.at_once and waiter.see(replicas, local):
                return waiter
            waiter.count = waiter.local = 0
            rounds.join_fsync(waiter, wrote=everywhere or stamps is not None)
            return waiter
        if not everywhere:
            waiter.threshold = self.threshold(shard, stamps)
            if waiter.threshold is None and not self.at_once and waiter.see(self.told(shard)[1]):
                return waiter  # who has fsynced it has it
            waiter.count = 0
        rounds.join(waiter)
        return waiter

    def _fail_unanswered(self, waiters: dict[int, Waiter]) -> None:
        """At the deadline: no number where a primary answers, but not the marker."""
        for shard, waiter in waiters.items():
            failure = self.unanswered(shard, waiter)
            if failure is not None:
                waiter.fail(failure)

    def unanswered(self, shard: int, waiter: Waiter) -> MarkerRefused | None:
        """Why there is no number for a shard, behind the last look at it."""
        if not (self.asked.fsync and self.late):
            return None
        return self.acks.of(shard).markers.unanswered(waiter, self.deadline)

    def told(self, shard: int) -> Counts:
        """What a WAITAOF said of this session's writes on the shard: it holds, though the next marker is further on."""
        known = self.memory.fsynced.get(shard)
        if known is None:
            return NOTHING
        stamps = self.writer.writes.get(shard)
        stamp, (local, replicas), left = known
        if stamps is None or stamp != stamps[1] or stamp.incarnation.heir is not None:  # an heir's disk is another one
            return NOTHING
        return local * stamp.incarnation.keeps_aof, max(0, replicas - (stamp.incarnation.left - left))

    def _holds_no_more(self, shard: int) -> bool:
        """Whether what was told before is less by now, as what was read behind the counts shows."""
        known, told = self.memory.fsynced.get(shard), self.told(shard)
        if known is None or known[0] != self.writer.writes[shard][1] or known[1] == told:
            return False
        self.memory.fsynced[shard] = known[0], told, known[0].incarnation.left
        return True

    def threshold(self, shard: int, stamps: list[Stamp] | None) -> int | None:
        """The offset this session waits for; 0 where it wrote nothing, None where one has to be sampled."""
        if stamps is None:
            return 0
        known = self.memory.thresholds.get(shard)
        if known is not None and known[0] == stamps[1]:
            return known[1]
        return self.acks.of(shard).threshold_after(stamps[1].tick)

    async def _last_look(self, shards: Sequence[int]) -> None:
        with trio.move_on_at(max(self.deadline, trio.current_time()) + LAST_LOOK):
            async with trio.open_nursery() as nursery:
                for shard in shards:
                    nursery.start_soon(self.acks.of(shard).look_again)

    async def _verdicts(self, shards: Sequence[int], grace: float = GRACE) -> dict[int, Verdict]:
        """What holds on each shard now; one that does not answer is left out.  Raises ``Untrusted``."""
        verdicts: dict[int, Verdict] = {}

        async def read(shard: int) -> None:
            with suppress(ConnectionLost, ReplyError):
                verdicts[shard] = await self.acks.of(shard).verdict(self.asked.fsync)

        now = trio.current_time()
        with trio.move_on_at(min(now + PROOF, max(now, self.deadline) + grace)):
            async with trio.open_nursery() as nursery:
                for shard in shards:
                    nursery.start_soon(read, shard)
        self._trusted(verdicts)
        return verdicts

    @staticmethod
    def _trusted(verdicts: dict[int, Verdict]) -> None:
        for verdict in verdicts.values():
            if verdict.untrusted is not None:
                raise Untrusted(verdict.untrusted)

    def _remember(self, counts: dict[int, Counts]) -> None:
        if self.asked.fsync:
            for shard, (local, replicas) in counts.items():
                if shard in self.writer.writes and shard in self._left:
                    self.memory.fsynced[shard] = (self.writer.writes[shard][1], (local, replicas), self._left[shard])

    def _remember_asked(self, counts: dict[int, Counts]) -> None:
        """The same, where every shard was asked for all it had."""
        self._remember(counts)
        for shard in counts:
            threshold = self._sampled.get(shard)
            if threshold is not None:
                self.memory.thresholds[shard] = (self.writer.writes[shard][1], threshold)
