"""Rounds: what a shard's replicas have acknowledged, asked once for every session that waits.

One :class:`ShardRounds` per shard.  A waiter brings its threshold, an offset of the replication stream, or has one
sampled; a look samples and kicks, and lets go whoever has enough.  One look at a time is under way, and each is for all
who came before it was sent.  Nothing is written for WAIT, no connection is kept by one waiter, and one that can never
be satisfied holds back nobody.

Looks are sent and read in the data plane's turns: a task for each would cost several times what the look itself does.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio

from proxy.acks.incarnation import Incarnations
from proxy.acks.looks import Reader, Seen
from proxy.acks.markers import Markers
from proxy.acks.pace import Pace
from proxy.acks.primary import KICK_AGAIN, Primary
from proxy.acks.reach import Reacher
from proxy.acks.steps import Recorder, Steps, Unrecorded
from proxy.acks.waiters import Run, Verdict, Waiter
from proxy.acks.waitlist import Waitlist
from proxy.dataplane import DataPlane
from shard.client import ConnectionLost, ControlConnection, ReplyError

SPIN = 0.002  # seconds behind a kick in which one look follows another: acknowledgments take 0.3 ms on a quiet link
POLL_FIRST = 0.001  # seconds between two looks behind that; twice as much each time
POLL_LONGEST = 0.02  # seconds between two looks at a replica that lags
EXPECTED_LONGEST = 0.004  # seconds for which acknowledgments are awaited at most before they are looked for
MANY = 3  # who are served by a look, from which on it is worth it to wait for more of them
EARLY = 0.5  # part of the usual time after which they are
INERTIA = 0.8  # weight of the past in what is usual
USUAL_FIRST = 0.0002  # seconds
ANSWER = 2.0  # seconds; a primary that does not answer that long is asked on other connections
SAMPLES = 256  # offsets remembered, so that sessions which wait twice keep their threshold


class Glancer(Protocol):
    """Who needs no more than one look: at what is acknowledged already, or at what there is at its deadline."""

    over: bool

    def glanced(self, rounds: ShardRounds, seen: Seen) -> None:
        """A look that began after it was asked for."""


class Look:
    """One under way, and who it is for."""

    __slots__ = ("glancers", "kick", "offset", "run", "sent", "tick", "unsampled")

    def __init__(
        self, sent: float, tick: int, unsampled: list[Waiter], glancers: list[Glancer], run: Run[Verdict] | None
    ) -> None:
        self.sent = sent
        self.tick = tick
        self.unsampled = unsampled
        self.glancers = glancers
        self.run = run
        self.kick = False
        self.offset: int | None = None
        """Of the stream, before the kick."""


class ShardRounds:
    """See the module.

    ``connect()`` opens a connection to the shard's present primary (``ConnectionLost`` when it has none);
    ``ticked(shard)`` is called when the tick or generation changed, so that lanes stamp writes anew; ``distrust()``
    has the nodes' settings read and says why WAITAOF cannot be believed; ``recorder`` is told what can be measured.
    """

    def __init__(
        self,
        shard: int,
        incarnations: Incarnations,
        plane: DataPlane,
        pace: Pace,
        *,
        connect: Callable[[], Awaitable[ControlConnection]],
        ticked: Callable[[int], None],
        distrust: Callable[[Primary], Run[str]],
        recorder: Recorder | None = None,
    ) -> None:
        self.shard = shard
        self.tick = 1
        self.generation = 0
        self.rounds = 0
        self.sampled_tick = 0
        """Of the last offset that was sampled."""
        self.seen: Seen | None = None
        """The last look, while those are let go whom it satisfies."""
        self.open: dict[int, Waiter] = {}
        """Who has no offset sampled yet and may still be joined, by how many replicas they want."""
        self.steps = Steps(recorder or Unrecorded())
        self._slots: frozenset[str] | None = None
        self._incarnations = incarnations
        self._plane = plane
        self._pace = pace
        self._connect = connect
        self._ticked = ticked
        self._distrust = distrust
        self._primary: Primary | None = None
        self._reader: Reader | None = None
        self._opening = trio.Lock()
        self._resets = 0
        self._reacher = Reacher(self._reach, gave_up=self._disappoint_all, go_on=self._go_on)
        self._waiting = Waitlist()
        self._glancers: list[Glancer] = []
        self._run: Run[Verdict] | None = None
        self._stirred = False
        self._urgent = False
        self._looking: Look | None = None
        self._looked = 0.0
        """When the last look was sent."""
        self._delay = POLL_FIRST
        self._crowded = False
        """The last look was for many."""
        self._asked: tuple[int, float] | None = None
        """The offset that was last asked for and is not acknowledged yet, and when."""
        self._asked_last = 0
        """The same, acknowledged or not."""
        self._quiet = False
        """Every online replica has that: until somebody comes there is hardly anything new to see."""
        self._usual = USUAL_FIRST
        """Seconds from the asking to the acknowledgment."""
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES)
        self.markers = Markers(
            incarnations,
            self.steps,
            plane,
            pace,
            reach=self._reach,
            current=lambda: self._primary,
            reset=self.reset,
            connect=connect,
            advance=self._advance,
            hear=lambda: self.verdict(fsync=False),
        )
        self._fsync_next: Run[Verdict] | None = None
        self._fsync_run: Run[Verdict] | None = None
        """The one under way: those who come meanwhile share the next."""

    # -- what acks and topology tell ------------------------------------------------------------
    def owns(self, slots: frozenset[str]) -> None:
        """The shard's slot ranges as someone who should know just said.  Losing any starts a new generation."""
        if self._slots is not None and slots != self._slots and expand(self._slots) - expand(slots):
            self.generation += 1
            self._ticked(self.shard)
        self._slots = slots

    def threshold_after(self, tick: int) -> int | None:
        """The first offset sampled after ``tick``; None when there is none yet."""
        if self.sampled_tick <= tick:
            return None
        at = bisect.bisect_right(self._samples, (tick, 1 << 63))
        return self._samples[at][1] if at < len(self._samples) else None

    def reset(self) -> None:
        """The shard's primary changed: connections and offsets of the former one mean nothing any more."""
        self._resets += 1
        self._waiting.acknowledged = []
        self._asked = None
        self._asked_last = 0
        self.seen = None
        self.steps.idle()
        look, self._looking = self._looking, None
        fsync, self._fsync_run = self._fsync_run, None
        if look is not None:
            self._put_back(look)
        if self._primary is not None:
            self._primary.close()
            self._primary = self._reader = None
        self._samples.clear()
        self.sampled_tick = 0
        self.markers.reset()
        if self._sought or self._fsync_next is not None:
            self._reacher.want()
        for run in (look.run if look is not None else None, fsync):  # last: who is told may ask again at once
            if run is not None:
                self._disappoint(run)

    # -- what waiters do ------------------------------------------------------------------------
    def join(self, waiter: Waiter) -> None:
        """Wait for replicas to have the waiter's threshold (a new sample if it has none)."""
        self._waiting.add(waiter)
        if waiter.threshold is not None:
            self._quiet = False
            self._delay = POLL_FIRST
            self.steps.awaited(waiter, waiter.threshold, self._waiting.acknowledged)
        self._stir()

    def join_fsync(self, waiter: Waiter, wrote: bool) -> None:
        """Wait for everything answered so far to be fsynced; ``wrote`` False: the session wrote nothing here."""
        self.markers.join(waiter, wrote)

    def glance(self, glancer: Glancer, *, urgent: bool = False) -> None:
        """Show him a look that begins after this call."""
        self._glancers.append(glancer)
        self._stir(urgent)

    def leave(self, waiter: Waiter) -> None:
        """The waiter is gone or done."""
        if not waiter.done:
            self._waiting.leave(waiter)
        self.markers.leave(waiter)

    async def look_again(self) -> None:
        """Come back after a look that began after this call: a deadline's counts are then the present ones."""
        if self._waiting:
            await self.next_verdict(fsync=False).done.wait()
        await self.markers.look_again()

    async def nudge(self) -> None:
        """Ask the replicas to acknowledge, whether anybody waits or not.  Raises ``ConnectionLost``, ``ReplyError``."""
        (await self._reach()).kick()

    async def verdict(self, fsync: bool) -> Verdict:
        """What holds now, read after this call.  Raises ``ConnectionLost``, ``ReplyError``."""
        run = self.next_verdict(fsync)
        await run.done.wait()
        if run.result is None:
            raise run.failure or ConnectionLost("the shard did not answer")
        return run.result

    def next_verdict(self, fsync: bool) -> Run[Verdict]:
        """The same, not yet awaited."""
        if fsync:
            run = self._fsync_next
            if run is None:
                run = self._fsync_next = Run()
                self._plane.at_end(self._verify_fsync)
            return run
        if self._run is None:
            self._run = Run()
        run = self._run
        self._stir(urgent=True)
        return run

    # -- looks ----------------------------------------------------------------------------------
    @property
    def _sought(self) -> bool:
        """Somebody wants a look."""
        return bool(self._waiting) or bool(self._glancers) or self._run is not None

    def _stir(self, urgent: bool = False) -> None:
        """See whether to look: at the end of the turn, so that all who come in it share the look."""
        self._urgent = self._urgent or urgent
        if not self._stirred and self._looking is None:
            self._stirred = True
            self._plane.at_end(self._pump)

    def _pump(self) -> None:
        self._stirred = False
        if self._looking is not None or not self._sought:
            return
        primary = self._primary
        if primary is None or primary.closed:
            self._reacher.want()
            return
        now = trio.current_time()
        kick = self._may_kick(primary, now)
        due = now if self._urgent else self._due(primary, kick)
        if due > now:
            self._pace.rest(self, due, self._pump)
        else:
            self._send(primary, now, kick)

    def _may_kick(self, primary: Primary, now: float) -> bool:
        """Whether the next look asks the replicas, too: for somebody new, once the last asking may have worked."""
        if primary.doubtful or now - primary.kicked >= KICK_AGAIN:
            return bool(self._waiting)
        if not self._waiting.unsampled:
            return False
        return self._urgent or self._asked is None or now >= self._asked[1] + self._usual * EARLY

    def _due(self, primary: Primary, kick: bool) -> float:
        """When the next look is worth it."""
        due = self._looked + (self._usual * EARLY if self._crowded else 0.0)
        if (kick and self._waiting.unsampled) or self._glancers:
            return due
        if self._quiet or self._looked - primary.kicked > SPIN:
            later = self._looked + (POLL_LONGEST if self._quiet else self._delay)
            if self._waiting.unsampled and self._asked is not None:
                later = min(later, self._asked[1] + self._usual * EARLY)
            return max(due, later)
        return due

    def _send(self, primary: Primary, now: float, kick: bool) -> None:
        self._pace.forget(self)
        unsampled: list[Waiter] = []
        if kick:
            unsampled = self._waiting.take_unsampled()
            self.open = {}
        look = Look(now, self.tick, unsampled, self._glancers, self._run)
        self._crowded = sum(waiter.weight for waiter in unsampled) + len(self._glancers) >= MANY
        self._delay = POLL_FIRST if unsampled or look.glancers else min(self._delay * 2, POLL_LONGEST)
        self._glancers = []
        self._run = None
        self._urgent = False
        self._looked = now
        self._looking = look
        if unsampled:
            self._advance()
            look.tick = self.tick
        look.kick = kick
        self._ask(primary, look, kick)

    def _ask(self, primary: Primary, look: Look, kick: bool = False) -> None:
        assert self._reader is not None
        primary.look(self._reader.requests, partial(self._replied, look), kick)

    def _replied(self, look: Look, frames: list[bytes]) -> None:
        primary, reader = self._primary, self._reader
        if self._looking is not look or primary is None or reader is None:
            return
        try:
            offset, acknowledged = reader.info(frames[0])
            known = reader.read_slots(frames)
        except (ConnectionLost, ReplyError):
            self._fail()
            return
        if self._looking is not look:
            return  # what it showed ended a life, and with it this primary's lanes
        if look.offset is None:
            look.offset = offset
        if not known:
            self._ask(primary, look)
            return
        self._looking = None
        self.owns(reader.slots)
        came = trio.current_time()
        seen = Seen(look.sent, came, offset, acknowledged, reader.incarnation, self.generation, reader.moving)
        self._take_sample(look, seen)
        self.steps.looked(primary, acknowledged)
        self._learn(acknowledged)
        self._quiet = all(each >= self._asked_last for each in acknowledged)
        self.seen = seen
        self._waiting.release(acknowledged)
        for glancer in look.glancers:
            if not glancer.over:
                glancer.glanced(self, seen)
        self.seen = None
        if look.run is not None:
            look.run.finish(Verdict(seen.incarnation, seen.generation, seen.moving, None))
        if self._sought:
            self._stir()
        else:
            self.steps.idle()

    def _take_sample(self, look: Look, seen: Seen) -> None:
        if not look.kick or look.offset is None:
            return
        self._asked = look.offset, look.sent
        self._asked_last = look.offset
        if look.unsampled:
            self._samples.append((look.tick, look.offset))
            self.sampled_tick = look.tick
            self._waiting.sampled(look.unsampled, look.offset, look.sent)
            self.steps.sampled(look.unsampled, look.offset, seen.acknowledged)

    def _learn(self, acknowledged: list[int]) -> None:
        """How long acknowledgments take here."""
        if self._asked is not None and acknowledged and max(acknowledged) >= self._asked[0]:
            # Found by the first look, they may have been there for a while.
            took = min(trio.current_time() - self._asked[1], EXPECTED_LONGEST, self._usual / EARLY)
            self._usual = INERTIA * self._usual + (1 - INERTIA) * took
            self._asked = None

    def _put_back(self, look: Look) -> None:
        self._waiting.put_back(look.unsampled)
        self._glancers = [each for each in look.glancers if not each.over] + self._glancers

    @staticmethod
    def _disappoint(run: Run[Verdict]) -> None:
        run.finish(None, ConnectionLost("the shard's primary did not answer"))

    def _fail(self) -> None:
        """What was under way has no answer: try on other connections, a little later."""
        self._reacher.failed = True
        self.reset()

    def _advance(self) -> None:
        """Begin a new tick: replies read from now on are not covered by the offset about to be sampled."""
        self.tick += 1
        self.rounds += 1
        self._ticked(self.shard)

    # -- behind WAITAOF's counts ------------------------------------------------------------------
    def _verify_fsync(self) -> None:
        """Have settings and verdict read for those who asked so far; one after another."""
        if self._fsync_next is None or self._fsync_run is not None:
            return
        primary = self._primary
        if primary is None or primary.closed:
            self._reacher.want()
            return
        run, self._fsync_next = self._fsync_next, None
        self._fsync_run = run
        # Both are read behind the counts; the settings first, so that a primary which shows itself told its own.
        settings = self._distrust(primary)
        verdict = self.next_verdict(fsync=False)
        verdict.then(partial(self._shown, run, verdict, settings))

    def _shown(self, run: Run[Verdict], verdict: Run[Verdict], settings: Run[str]) -> None:
        """The primary has said its part; a replica that hangs keeps nobody waiting but those who ask by now."""
        if self._fsync_run is not run:
            return
        self._fsync_run = None
        if verdict.result is None:
            settings.finish(None, verdict.failure)
        settings.then(partial(self._verified, run, verdict, settings))
        if self._fsync_next is not None:
            self._plane.at_end(self._verify_fsync)

    @staticmethod
    def _verified(run: Run[Verdict], verdict: Run[Verdict], settings: Run[str]) -> None:
        if verdict.result is None or settings.failure is not None:
            run.finish(None, verdict.failure or settings.failure)
        else:
            run.finish(verdict.result._replace(untrusted=settings.result))

    # -- the loops ------------------------------------------------------------------------------
    async def run(self) -> None:
        """Serve waiters for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reacher.run)
            nursery.start_soon(self._keep_answering)
            nursery.start_soon(self.markers.run)

    def _go_on(self) -> None:
        self._stir()
        self._plane.at_end(self._verify_fsync)

    def _disappoint_all(self) -> None:
        """The primary cannot be reached now."""
        self._glancers = [each for each in self._glancers if not each.over]
        run, self._run = self._run, None
        fsync, self._fsync_next = self._fsync_next, None
        for each in (run, fsync):
            if each is not None:
                self._disappoint(each)

    async def _keep_answering(self) -> None:
        """Nobody waits on a connection that has fallen silent."""
        while True:
            await trio.sleep(ANSWER / 4)
            if self._looking is not None and trio.current_time() - self._looking.sent > ANSWER:
                self._fail()

    def _lost(self, reason: str) -> None:
        self._fail()

    async def _reach(self) -> Primary:
        """The ack lanes to the present primary, opened when needed."""
        async with self._opening:
            if self._primary is not None and not self._primary.closed:
                return self._primary
            while True:
                self.reset()
                resets = self._resets
                primary = await Primary.reach(self._plane, self._connect, self._lost)
                if resets == self._resets:
                    break
                primary.close()  # it may have been the former one
            self._primary = primary
            self._reader = Reader(primary, self._incarnations)
            return primary


def expand(ranges: frozenset[str]) -> set[int]:
    """Slot ranges such as ``"0-5460"`` or ``"7"`` as slots."""
    slots: set[int] = set()
    for text in ranges:
        first, _, last = text.partition("-")
        slots.update(range(int(first), int(last or first) + 1))
    return slots
