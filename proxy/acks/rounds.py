"""Rounds: what a shard's replicas have acknowledged, asked once for every session that waits.

One :class:`ShardRounds` per shard.  A waiter brings its threshold, an offset of the replication
stream; the loop samples, kicks, looks, and lets go whoever has enough.  Nothing is written for WAIT,
no connection is kept by one waiter, and one that can never be satisfied holds back nobody.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio

from proxy.acks.incarnation import NO_SECOND_ID, Incarnations, Life, own_slots, parse_info
from proxy.acks.primary import KICK_AGAIN, Demoted, Primary
from proxy.acks.steps import Recorder, Steps, Timing, Unrecorded
from proxy.acks.waiters import MarkerRefused, Run, Shared, Verdict, Waiter
from proxy.acks.waitlist import Waitlist
from shard.client import ConnectionLost, ControlConnection, ReplyError

MARKER = bytes.fromhex("0a005d9b5c400f7fa2da")
"""An empty FUNCTION payload (RDB version 10, CRC): restoring it changes nothing and raises the offset."""
MARKER_LANES = 4
"""Connections that may each hold one WAITAOF round; with the two of WAIT, six ack lanes a shard."""
POLL_FIRST = 0.0002  # seconds; acknowledgments take 0.3 ms on a quiet link
POLL_LONGEST = 0.02  # seconds between two looks at a replica that lags
EXPECTED_LONGEST = 0.004  # seconds for which acknowledgments are awaited at most before they are looked for
MANY = 8  # waiters of one round from which on it is worth it to wait for more of them
EARLY = 0.7  # part of the usual time after which they are
INERTIA = 0.8  # weight of the past in what is usual
RETRY = 0.05  # seconds between attempts to reach a shard's primary
RAISE_AFTER = 0.02  # seconds for which a marker stands before the same lane carries another
WITHOUT_AOF = "appendonly is disabled"
OF_A_REPLICA = "replica instances"
"""By these words of its errors WAITAOF tells what is wrong (replication.c: waitaofCommand); both have the code ERR."""
NOT_NOW = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
"""Errors that say that the node is no primary, or not yet: whoever is will be asked."""
SAMPLES = 256  # offsets remembered, so that sessions which wait twice keep their threshold


class MarkerRound:
    """A marker on its way to the replicas' disks, and those who wait for it."""

    __slots__ = ("connection", "primary", "timing", "waiters")

    def __init__(self, connection: ControlConnection, primary: Primary) -> None:
        self.connection = connection
        self.primary = primary
        self.timing: Timing | None = None
        self.waiters: list[Waiter] = []


class ShardRounds:
    """See the module.

    ``connect(purpose)`` opens a connection to the shard's present primary (``ConnectionLost`` when it
    has none); ``ticked(shard)`` is called when the tick or generation changed, so that lanes stamp
    writes anew; ``distrust()`` names a node of the shard whose WAITAOF cannot be believed; ``recorder``
    is told what can be measured.
    """

    def __init__(
        self,
        shard: int,
        incarnations: Incarnations,
        *,
        connect: Callable[[], Awaitable[ControlConnection]],
        ticked: Callable[[int], None],
        distrust: Callable[[Primary], Awaitable[str | None]],
        recorder: Recorder | None = None,
    ) -> None:
        self.shard = shard
        self.tick = 1
        self.generation = 0
        self.rounds = 0
        self.refused = 0
        """Markers that the primary did not take, or not before somebody's deadline."""
        self.raised = 0
        """Markers put on a lane that carried one already, since no other was left."""
        self.steps = Steps(recorder or Unrecorded())
        self._slots: frozenset[str] | None = None
        self._incarnations = incarnations
        self._connect = connect
        self._ticked = ticked
        self._distrust = distrust
        self._primary: Primary | None = None
        self._opening = trio.Lock()
        self._waiting = Waitlist()
        self._unmarked: list[Waiter] = []
        self._unwritten: list[Waiter] = []
        self._marked: list[MarkerRound] = []
        self._wanted = trio.Event()
        self._marking_wanted = trio.Event()
        self._unwritten_wanted = trio.Event()
        self._lane_freed = trio.Event()
        self._poke = trio.Event()
        self._looked = trio.Event()
        self._fsync: set[Waiter] = set()
        self._fsync_poke = trio.Event()
        self._fsync_looked = trio.Event()
        self._unanswered: float | None = None
        """Since when a marker has been sent and none been answered."""
        self._overdue = False
        """Somebody's deadline has passed meanwhile."""
        self._heard = -math.inf
        """When a question was put, behind an unanswered marker, that the primary did answer."""
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES)
        self._asked: tuple[int, float] | None = None
        """The offset that was last asked for, and when."""
        self._usual = POLL_FIRST
        """Seconds from the asking to the acknowledgment."""
        self._kicking = trio.Lock()
        self._verify = Shared(self._read_verdict)
        self._verify_fsync = Shared(self._read_fsync_verdict)

    # -- what acks and topology tell ------------------------------------------------------------
    def owns(self, slots: frozenset[str]) -> None:
        """The shard's slot ranges as someone who should know just said.  Losing any starts a new generation."""
        if self._slots is not None and slots != self._slots and expand(self._slots) - expand(slots):
            self.generation += 1
            self._ticked(self.shard)
        self._slots = slots

    def threshold_after(self, tick: int) -> int | None:
        """The first offset sampled after ``tick``; None when there is none yet."""
        at = bisect.bisect_right(self._samples, (tick, 1 << 63))
        return self._samples[at][1] if at < len(self._samples) else None

    def reset(self) -> None:
        """The shard's primary changed: connections and offsets of the former one mean nothing any more."""
        self._waiting.acknowledged = []
        self.steps.idle()
        if self._primary is not None:
            self._primary.close()
            self._primary = None
        self._samples.clear()
        self._unanswered = None

    # -- what waiters do ------------------------------------------------------------------------
    def join(self, waiter: Waiter) -> None:
        """Wait for replicas to have the waiter's threshold (a new sample if it has none)."""
        self._waiting.add(waiter)
        self._wanted.set()
        self._poke.set()

    def join_fsync(self, waiter: Waiter, wrote: bool) -> None:
        """Wait for everything answered so far to be fsynced; ``wrote`` False: the session wrote nothing here."""
        waiter.told = False
        self._fsync.add(waiter)
        (self._unmarked if wrote else self._unwritten).append(waiter)
        (self._marking_wanted if wrote else self._unwritten_wanted).set()

    def leave(self, waiter: Waiter) -> None:
        """The waiter is gone or done: ``done`` tells whoever comes across it in a list."""
        self._fsync.discard(waiter)
        if not waiter.done:
            self._waiting.leave(waiter)
            waiter.done = True

    async def look_again(self) -> None:
        """Come back after a look that began after this call: a deadline's counts are then the present ones."""
        for _ in range(2):  # the one under way may have begun before
            if not self._waiting:
                break
            self._poke.set()
            await self._looked.wait()
        await self._look_again_at_fsyncs()

    async def _look_again_at_fsyncs(self) -> None:
        """Also at those whose marker is only on its way: until they are seen once they have no count at all."""
        unseen = _staying(list(self._fsync))
        for waiter in unseen:
            waiter.seen = False
        if self._unanswered is not None:
            await self._hear()
        self._fsync_poke.set()
        self._fsync_poke = trio.Event()
        while not all(waiter.seen or waiter.done for waiter in unseen):
            await self._fsync_looked.wait()

    async def _hear(self) -> None:
        """See whether the primary answers anything, while it owes the reply to a marker."""
        now = trio.current_time()
        with suppress(ConnectionLost, ReplyError):
            await self.verdict(fsync=False)
            self._heard = max(now, self._heard)

    def fail_unanswered(self, waiter: Waiter, deadline: float) -> None:
        """At a deadline, behind ``look_again``: fail who was told nothing by a primary that answers all but the marker.

        A pause (CLIENT PAUSE) postpones a marker, so more may be true than could be asked.  Who answers nothing at all
        has nothing.
        """
        if waiter.done or waiter.told or self._unanswered is None or self._heard < deadline or self._primary is None:
            return
        self.refused += not self._overdue
        self._overdue = True
        owed = math.ceil((trio.current_time() - self._unanswered) * 1000)
        waiter.fail(
            MarkerRefused(
                f"ERR WAITAOF cannot be answered: {self._primary.main.address} has not answered the marker that asks "
                f"what is fsynced within {owed} ms, though it answers otherwise (is it paused, or overloaded?); cure "
                "that, or use WAIT"
            )
        )

    def _saw_fsyncs(self) -> None:
        self._fsync_looked.set()
        self._fsync_looked = trio.Event()

    async def nudge(self) -> None:
        """Ask the replicas to acknowledge, whether anybody waits or not.  Raises ``ConnectionLost``, ``ReplyError``."""
        await self._kick(await self._reach())

    async def verdict(self, fsync: bool) -> Verdict:
        """What holds now, read after this call.  Raises ``ConnectionLost``, ``ReplyError``."""
        return await (self._verify_fsync if fsync else self._verify).fresh()

    def next_verdict(self, fsync: bool) -> Run[Verdict]:
        """The same, not yet awaited."""
        return (self._verify_fsync if fsync else self._verify).next_run()

    # -- the loops ------------------------------------------------------------------------------
    async def run(self) -> None:
        """Serve waiters for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_offsets)
            nursery.start_soon(self._run_markers, nursery)
            nursery.start_soon(self._run_unwritten, nursery)
            nursery.start_soon(self._verify.serve)
            nursery.start_soon(self._verify_fsync.serve)

    async def _run_offsets(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self._serve_offsets()
            except (ConnectionLost, ReplyError):
                self.reset()
                await trio.sleep(RETRY)
                if self._waiting:
                    self._wanted.set()

    async def _serve_offsets(self) -> None:
        delay = POLL_FIRST
        while self._waiting:
            primary = await self._reach()
            self._poke = trio.Event()
            unsampled = self._waiting.take_unsampled()
            if unsampled:
                self._advance()
            tick = self.tick
            try:
                with self._ending(primary):
                    offset, acknowledged = await self._look(primary, kick=bool(unsampled))
            except BaseException:
                self._waiting.put_back(unsampled)
                raise
            if unsampled:
                self._samples.append((tick, offset))
                self._waiting.sampled(unsampled, offset)
                self.steps.sampled(unsampled, offset, acknowledged)
            self.steps.looked(primary, acknowledged)
            self._learn(acknowledged)
            self._waiting.release(acknowledged)
            self._looked.set()
            self._looked = trio.Event()
            if not self._waiting:
                self.steps.idle()
                return
            if unsampled:
                delay = POLL_FIRST
                self._asked = offset, primary.kicked
                if sum(waiter.weight for waiter in unsampled) >= MANY:
                    # Who comes meanwhile shares a round, and acknowledgments looked for at once would not be there.
                    await trio.sleep(self._usual * EARLY)
                continue
            with trio.move_on_after(delay):
                await self._poke.wait()
            delay = min(delay * 2, POLL_LONGEST)

    def _learn(self, acknowledged: list[int]) -> None:
        """How long acknowledgments take here."""
        if self._asked is not None and acknowledged and max(acknowledged) >= self._asked[0]:
            # Found by the first look, they may have been there for a while.
            took = min(trio.current_time() - self._asked[1], EXPECTED_LONGEST, self._usual / EARLY)
            self._usual = INERTIA * self._usual + (1 - INERTIA) * took
            self._asked = None

    @contextmanager
    def _ending(self, primary: Primary) -> Iterator[None]:
        """A primary that says it is none any more has ended its life: those who wait hear it at once."""
        try:
            yield
        except Demoted:
            self._incarnations.observe(Life(primary.node_id, primary.run_id, "slave", "", NO_SECOND_ID))
            raise

    def _advance(self) -> None:
        """Begin a new tick: replies read from now on are not covered by the offset about to be sampled."""
        self.tick += 1
        self.rounds += 1
        self._ticked(self.shard)

    async def _run_markers(self, nursery: trio.Nursery) -> None:
        while True:
            await self._marking_wanted.wait()
            self._marking_wanted = trio.Event()
            if not await self._done(self._mark, nursery):
                self._unmarked = _staying(self._unmarked)
                if self._unmarked:
                    self._marking_wanted.set()
                else:
                    self._unanswered = None  # nobody wants to know any more

    async def _run_unwritten(self, nursery: trio.Nursery) -> None:
        """Apart from the markers, which may be postponed: who wrote nothing needs none."""
        while True:
            await self._unwritten_wanted.wait()
            self._unwritten_wanted = trio.Event()
            if not await self._done(self._look_unmarked, nursery):
                self._unwritten = _staying(self._unwritten)
                if self._unwritten:
                    self._unwritten_wanted.set()

    async def _done(self, work: Callable[[trio.Nursery], Awaitable[None]], nursery: trio.Nursery) -> bool:
        """False, after a while, when the primary did not do it."""
        try:
            await work(nursery)
        except (ConnectionLost, ReplyError) as error:
            if isinstance(error, Demoted):
                self.reset()
            await trio.sleep(RETRY)
            return False
        return True

    async def _mark(self, nursery: trio.Nursery) -> None:
        """Put everyone who waits for a marker behind one."""
        primary = await self._reach()
        with self._ending(primary):
            await self._refuse_without_aof(primary, lambda: self._unmarked)
        if not self._unmarked:
            return
        round_, fresh = await self._round(primary)
        waiters, self._unmarked = self._unmarked, []
        self._advance()
        try:
            with self._ending(primary):
                await self._put_marker(round_, waiters)
        except BaseException:
            self._unmarked = _staying(waiters) + self._unmarked
            if fresh:
                round_.connection.abort()
                primary.lanes -= 1
            raise
        if not fresh and round_ not in self._marked:
            # It ended while the marker was on its way, and its lane may be somebody else's by now.
            self._unmarked = _staying(waiters) + self._unmarked
            self._marking_wanted.set()
            return
        round_.waiters += _staying(waiters)
        timing = self.steps.marked(waiters)
        round_.timing = timing if fresh else None
        if fresh:
            self._marked.append(round_)
            nursery.start_soon(self._watch, primary, round_)

    async def _look_unmarked(self, nursery: trio.Nursery) -> None:
        """Who wrote nothing needs no marker; all of them share one round, on the connection that never writes."""
        primary = await self._reach()
        with self._ending(primary):
            await self._refuse_without_aof(primary, lambda: self._unwritten)
        waiters, self._unwritten = _staying(self._unwritten), []
        if not waiters:
            return
        try:
            local, count = await primary.main.call("WAITAOF", 0, 0, 0)
        except BaseException:
            self._unwritten = _staying(waiters) + self._unwritten
            raise
        waiters = [waiter for waiter in waiters if not waiter.see(count, local)]
        self._saw_fsyncs()
        if not waiters:
            return
        present = next((round_ for round_ in self._marked if round_.connection is primary.main), None)
        if present is not None:
            present.waiters += waiters
            return
        unmarked = MarkerRound(primary.main, primary)
        unmarked.waiters = waiters
        self._marked.append(unmarked)
        nursery.start_soon(self._watch, primary, unmarked)

    async def _put_marker(self, round_: MarkerRound, waiters: list[Waiter]) -> None:
        """Raise the lane's own write offset past every write answered so far."""
        if self._unanswered is None:
            self._unanswered, self._overdue = trio.current_time(), False
        try:
            await round_.connection.call("FUNCTION", "RESTORE", MARKER)
            self._unanswered = None
        except ReplyError as error:
            self._unanswered = None
            if error.code in NOT_NOW:
                raise (Demoted if error.code == "READONLY" else ConnectionLost)(str(error)) from None
            self.refused += 1
            refused = MarkerRefused(
                f"ERR WAITAOF cannot be answered: {round_.connection.address} refused the marker that asks what is "
                f"fsynced ({str(error).rstrip('.')}); cure that, or use WAIT"
            )
            for waiter in waiters:
                waiter.fail(refused)

    async def _refuse_without_aof(self, primary: Primary, waiting: Callable[[], list[Waiter]]) -> None:
        """A shard without AOF refuses numlocal 1 in the engine's own words; the error wins over numbers."""
        if not any(waiter.want_local for waiter in waiting()):
            return
        try:
            await primary.main.call("WAITAOF", 1, 0, 1)
        except ReplyError as error:
            if WITHOUT_AOF not in str(error):  # a node that is a replica by now, or loads its data
                raise (Demoted if OF_A_REPLICA in str(error) else ConnectionLost)(str(error)) from None
            for waiter in [each for each in waiting() if each.want_local]:
                self.leave(waiter)
                waiter.fail(error)

    async def _round(self, primary: Primary) -> tuple[MarkerRound, bool]:
        """A lane for a new marker; with none left the newest round's marker is raised, never the oldest's."""
        if not primary.free and primary.lanes >= MARKER_LANES:
            # Raised without pause, the newest round would outrun the acknowledgments its waiters need.
            with trio.move_on_after(RAISE_AFTER):
                await self._lane_freed.wait()
        if primary.free:
            return MarkerRound(primary.free.pop(), primary), True
        mine = [each for each in self._marked if each.primary is primary and each.connection is not primary.main]
        if primary.lanes >= MARKER_LANES and mine:
            self.raised += 1
            return mine[-1], False
        primary.lanes += 1
        try:
            return MarkerRound(await self._connect(), primary), True
        except BaseException:
            primary.lanes -= 1
            raise

    async def _watch(self, primary: Primary, round_: MarkerRound) -> None:
        """Let go those who have enough, and ask for acknowledgments again while somebody has not."""
        delay = POLL_FIRST
        try:
            while round_.waiters:
                online = 0
                if round_.connection is not primary.main and any(waiter.at_once for waiter in round_.waiters):
                    online = len((await primary.look())[1])
                local, count = await round_.connection.call("WAITAOF", 0, 0, 0)
                round_.timing = self.steps.counted(round_.timing, count)
                round_.waiters = [waiter for waiter in round_.waiters if not waiter.see(count, local, online)]
                self._saw_fsyncs()
                if not local:
                    await self._refuse_without_aof(primary, lambda: round_.waiters)  # it may be switched off meanwhile
                if not round_.waiters:
                    break
                # An acknowledgment given before the fsync is stale, so it has to be asked for anew.
                await self._kick(primary)
                with trio.move_on_after(delay):
                    await self._fsync_poke.wait()
                delay = min(delay * 2, POLL_LONGEST)
        except (ConnectionLost, ReplyError):
            round_.connection.abort()
            # The connection's write offset is lost with it: those who wait need another marker.
            unwritten = round_.connection is primary.main
            (self._unwritten if unwritten else self._unmarked).extend(_staying(round_.waiters))
            round_.waiters = []
            (self._unwritten_wanted if unwritten else self._marking_wanted).set()
        finally:
            self._marked.remove(round_)
        if round_.connection is primary.main:
            return
        if round_.connection.closed or primary is not self._primary:
            primary.lanes -= 1
            round_.connection.abort()
        else:
            primary.free.append(round_.connection)
        self._lane_freed.set()
        self._lane_freed = trio.Event()

    async def _look(self, primary: Primary, kick: bool) -> tuple[int, list[int]]:
        if not (kick or primary.doubtful) and trio.current_time() - primary.kicked < KICK_AGAIN:
            return await primary.look()
        async with self._kicking:
            return await primary.look(kick=True)

    async def _kick(self, primary: Primary) -> None:
        async with self._kicking:
            await primary.kick()

    # -- connections and what is read behind the counts ----------------------------------------------
    async def _reach(self) -> Primary:
        """The ack lanes to the present primary, opened when needed."""
        async with self._opening:
            if self._primary is not None and not (self._primary.main.closed or self._primary.kicker.closed):
                return self._primary
            self.reset()
            main = await self._connect()
            try:
                kicker = await self._connect()
            except BaseException:
                main.abort()
                raise
            try:
                node_id, info = await main.pipeline(["CLUSTER", "MYID"], ["INFO", "server"])
                primary = Primary(main, kicker, _text(node_id), parse_info(info))
                kicker_node, kicker_info, kicker_id = await kicker.pipeline(
                    ["CLUSTER", "MYID"], ["INFO", "server"], ["CLIENT", "ID"]
                )
                if _text(kicker_node) != primary.node_id or parse_info(kicker_info).get("run_id") != primary.run_id:
                    raise ConnectionLost("the two ack lanes met different nodes")
                primary.kicker_id = int(kicker_id)
            except BaseException:
                main.abort()
                kicker.abort()
                raise
            self._primary = primary
            return primary

    async def _read_verdict(self) -> Verdict:
        primary = await self._reach()
        info, nodes = await primary.main.pipeline(["INFO", "replication"], ["CLUSTER", "NODES"])
        for reply in (info, nodes):
            if isinstance(reply, ReplyError):
                raise reply
        fields = parse_info(info)
        fields["run_id"] = primary.run_id
        incarnation = self._incarnations.observe(Life.read(primary.node_id, fields))
        slots, moving = own_slots(nodes)
        self.owns(slots)
        return Verdict(incarnation, self.generation, moving, None)

    async def _read_fsync_verdict(self) -> Verdict:
        verdict = await self._read_verdict()
        primary = await self._reach()
        return verdict._replace(untrusted=await self._distrust(primary))


def _staying(waiters: list[Waiter]) -> list[Waiter]:
    return [waiter for waiter in waiters if not waiter.done]


def _text(value: Any) -> str:
    if isinstance(value, ReplyError):
        raise value
    return value.decode() if isinstance(value, bytes) else str(value)


def expand(ranges: frozenset[str]) -> set[int]:
    """Slot ranges such as ``"0-5460"`` or ``"7"`` as slots."""
    slots: set[int] = set()
    for text in ranges:
        first, _, last = text.partition("-")
        slots.update(range(int(first), int(last or first) + 1))
    return slots
