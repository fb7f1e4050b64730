"""Markers: what a shard's nodes have on disk, asked once for every session that waits.

Fsync offsets are visible to WAITAOF alone.  A marker raises a lane's own write offset past every write answered so far;
behind its reply (never in one packet) ``WAITAOF 0 0 0`` on that lane tells who has fsynced them.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from proxy.acks.incarnation import NO_SECOND_ID, Incarnations, Life
from proxy.acks.primary import Demoted, Primary
from proxy.acks.steps import Steps, Timing
from proxy.acks.waiters import MarkerRefused, Waiter
from shard.client import ConnectionLost, ControlConnection, ReplyError

MARKER = bytes.fromhex("0a005d9b5c400f7fa2da")
"""An empty FUNCTION payload (RDB version 10, CRC): restoring it changes nothing and raises the offset."""
MARKER_LANES = 4
"""Connections that may each hold one WAITAOF round; with the two of WAIT, six ack lanes a shard."""
POLL_FIRST = 0.0002  # seconds; acknowledgments take 0.3 ms on a quiet link
POLL_LONGEST = 0.02  # seconds between two looks at a replica that lags
RETRY = 0.05  # seconds between attempts to reach a shard's primary
RAISE_AFTER = 0.02  # seconds for which a marker stands before the same lane carries another
WITHOUT_AOF = "appendonly is disabled"
OF_A_REPLICA = "replica instances"
"""By these words of its errors WAITAOF tells what is wrong (replication.c: waitaofCommand); both have the code ERR."""
NOT_NOW = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
"""Errors that say that the node is no primary, or not yet: whoever is will be asked."""


class MarkerRound:
    """A marker on its way to the replicas' disks, and those who wait for it."""

    __slots__ = ("connection", "primary", "timing", "waiters")

    def __init__(self, connection: ControlConnection, primary: Primary) -> None:
        self.connection = connection
        self.primary = primary
        self.timing: Timing | None = None
        self.waiters: list[Waiter] = []


class Markers:
    """One shard's marker rounds.

    ``reach()`` gives the ack lanes of the present primary, ``current()`` the same if they are open, ``reset()`` closes
    them; ``connect()`` opens a connection to it; ``advance()`` begins a new tick; ``hear()`` returns when it has
    answered something.
    """

    def __init__(
        self,
        incarnations: Incarnations,
        steps: Steps,
        *,
        reach: Callable[[], Awaitable[Primary]],
        current: Callable[[], Primary | None],
        reset: Callable[[], None],
        connect: Callable[[], Awaitable[ControlConnection]],
        advance: Callable[[], None],
        hear: Callable[[], Awaitable[object]],
    ) -> None:
        self.refused = 0
        """Markers that the primary did not take, or not before somebody's deadline."""
        self.raised = 0
        """Markers put on a lane that carried one already, since no other was left."""
        self.open: dict[tuple[int, int, bool], Waiter] = {}
        """Who may still be joined: nothing was sent for them yet.  By what they want, and whether they wrote."""
        self._incarnations = incarnations
        self._steps = steps
        self._reach = reach
        self._current = current
        self._reset = reset
        self._connect = connect
        self._advance = advance
        self._hear = hear
        self._waiters: set[Waiter] = set()
        self._unmarked: list[Waiter] = []
        self._unwritten: list[Waiter] = []
        self._marked: list[MarkerRound] = []
        self._wanted = trio.Event()
        self._unwritten_wanted = trio.Event()
        self._lane_freed = trio.Event()
        self._poke = trio.Event()
        self._looked = trio.Event()
        self._unanswered: float | None = None
        """Since when a marker has been sent and none been answered."""
        self._overdue = False
        """Somebody's deadline has passed meanwhile."""
        self._heard = -math.inf
        """When a question was put, behind an unanswered marker, that the primary did answer."""

    @property
    def at_rest(self) -> bool:
        """Nobody waits and nothing is under way."""
        wanted = self._wanted.is_set() or self._unwritten_wanted.is_set()
        return not (self._marked or self._unmarked or self._unwritten or wanted)

    def reset(self) -> None:
        """The shard's primary changed: what the former one owes does not matter any more."""
        self._unanswered = None

    def join(self, waiter: Waiter, wrote: bool) -> None:
        """Wait for everything answered so far to be fsynced; ``wrote`` False: the session wrote nothing here."""
        waiter.told = False
        self._waiters.add(waiter)
        (self._unmarked if wrote else self._unwritten).append(waiter)
        (self._wanted if wrote else self._unwritten_wanted).set()

    def leave(self, waiter: Waiter) -> None:
        """The waiter is gone or done: ``done`` tells whoever comes across it in a list."""
        self._waiters.discard(waiter)
        waiter.done = True

    async def look_again(self) -> None:
        """Come back after a look that began after this call, also at those whose marker is only on its way.

        Until they are seen once they have no count at all.
        """
        unseen = _staying(list(self._waiters))
        for waiter in unseen:
            waiter.seen = False
        self._poke.set()
        self._poke = trio.Event()
        if self._unanswered is not None:
            now = trio.current_time()
            with suppress(ConnectionLost, ReplyError):
                await self._hear()
                self._heard = max(now, self._heard)
        while not all(waiter.seen or waiter.done for waiter in unseen):
            await self._looked.wait()

    def unanswered(self, waiter: Waiter, deadline: float) -> MarkerRefused | None:
        """At a deadline, behind ``look_again``: why nothing can be said to who was told nothing so far.

        A pause (CLIENT PAUSE) postpones a marker, so more may be true than could be asked.  A primary that answers
        nothing at all has nothing: None.
        """
        primary = self._current()
        if waiter.done or waiter.told or self._unanswered is None or self._heard < deadline or primary is None:
            return None
        self.refused += not self._overdue
        self._overdue = True
        owed = math.ceil((trio.current_time() - self._unanswered) * 1000)
        return MarkerRefused(
            f"ERR WAITAOF cannot be answered: {primary.main.address} has not answered the marker that asks what is "
            f"fsynced within {owed} ms, though it answers otherwise (is it paused, or overloaded?); cure that, or use "
            "WAIT"
        )

    def _saw(self) -> None:
        self._looked.set()
        self._looked = trio.Event()

    async def run(self) -> None:
        """Serve waiters for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_markers, nursery)
            nursery.start_soon(self._run_unwritten, nursery)

    def _close(self, wrote: bool) -> None:
        """What is about to be sent is not for those who come later."""
        self.open = {kind: waiter for kind, waiter in self.open.items() if kind[2] is not wrote}

    @contextmanager
    def _ending(self, primary: Primary) -> Iterator[None]:
        """A primary that says it is none any more has ended its life: those who wait hear it at once."""
        try:
            yield
        except Demoted:
            self._incarnations.observe(Life(primary.node_id, primary.run_id, "slave", "", NO_SECOND_ID))
            raise

    async def _run_markers(self, nursery: trio.Nursery) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if not await self._done(self._mark, nursery):
                self._unmarked = _staying(self._unmarked)
                if self._unmarked:
                    self._wanted.set()
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
                self._reset()
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
        self._close(wrote=True)
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
            self._wanted.set()
            return
        round_.waiters += _staying(waiters)
        timing = self._steps.marked(waiters)
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
        self._close(wrote=False)
        if not waiters:
            return
        try:
            local, count = await primary.main.call("WAITAOF", 0, 0, 0)
        except BaseException:
            self._unwritten = _staying(waiters) + self._unwritten
            raise
        waiters = [waiter for waiter in waiters if not waiter.see(count, local)]
        self._saw()
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
                    online = await primary.online()
                local, count = await round_.connection.call("WAITAOF", 0, 0, 0)
                round_.timing = self._steps.counted(round_.timing, count)
                round_.waiters = [waiter for waiter in round_.waiters if not waiter.see(count, local, online)]
                self._saw()
                if not local:
                    await self._refuse_without_aof(primary, lambda: round_.waiters)  # it may be switched off meanwhile
                if not round_.waiters:
                    break
                # An acknowledgment given before the fsync is stale, so it has to be asked for anew.
                primary.kick()
                with trio.move_on_after(delay):
                    await self._poke.wait()
                delay = min(delay * 2, POLL_LONGEST)
        except (ConnectionLost, ReplyError):
            round_.connection.abort()
            # The connection's write offset is lost with it: those who wait need another marker.
            unwritten = round_.connection is primary.main
            (self._unwritten if unwritten else self._unmarked).extend(_staying(round_.waiters))
            round_.waiters = []
            (self._unwritten_wanted if unwritten else self._wanted).set()
        finally:
            self._marked.remove(round_)
        if round_.connection is primary.main:
            return
        if round_.connection.closed or primary is not self._current():
            primary.lanes -= 1
            round_.connection.abort()
        else:
            primary.free.append(round_.connection)
        self._lane_freed.set()
        self._lane_freed = trio.Event()


def _staying(waiters: list[Waiter]) -> list[Waiter]:
    return [waiter for waiter in waiters if not waiter.done]
