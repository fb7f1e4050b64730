"""Markers: what a shard's nodes have on disk, asked once for every session that waits.

Fsync offsets are visible to WAITAOF alone.  A marker raises a lane's own write offset past every write answered so far;
behind its reply (never in one packet) ``WAITAOF 0 0 0`` on that lane tells who has fsynced them.  One marker at a time
is on its way; the rounds of those that were answered go on side by side, each on a lane of its own, so that a replica
which lags keeps nobody from being told of what came later.

As in ``rounds``, all of it happens in the data plane's turns, but for what is rare.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from proxy.acks.incarnation import NO_SECOND_ID, Incarnations, Life
from proxy.acks.looks import online
from proxy.acks.pace import Pace
from proxy.acks.primary import INFO, AckLane, Primary
from proxy.acks.reach import RETRY, Reacher
from proxy.acks.steps import Steps, Timing
from proxy.acks.waiters import MarkerRefused, Waiter
from proxy.codec import encode_request
from proxy.codec.reply import elements, integer_value, is_error
from proxy.dataplane import DataPlane
from shard.client import ConnectionLost, ControlConnection, ReplyError

MARKER = encode_request([b"FUNCTION", b"RESTORE", bytes.fromhex("0a005d9b5c400f7fa2da")])
"""With an empty FUNCTION payload (RDB version 10, CRC): restoring it changes nothing and raises the offset."""
COUNT = encode_request([b"WAITAOF", b"0", b"0", b"0"])
MARKER_LANES = 4
"""Connections that may each hold one WAITAOF round; with the three of WAIT, seven ack lanes a shard."""
POLL_FIRST = 0.0005  # seconds; an fsync takes about as long
POLL_LONGEST = 0.02  # seconds between two looks at a replica that lags
RAISE_AFTER = 0.02  # seconds for which a marker stands before the same lane carries another
WITHOUT_AOF = "appendonly is disabled"
OF_A_REPLICA = "replica instances"
"""By these words of its errors WAITAOF tells what is wrong (replication.c: waitaofCommand); both have the code ERR."""
NOT_NOW = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
"""Errors that say that the node is no primary, or not yet: whoever is will be asked."""


class MarkerRound:
    """A marker on its way to the replicas' disks, and those who wait for it; or those who need none."""

    __slots__ = ("asking", "delay", "lane", "marked", "primary", "timing", "waiters")

    def __init__(self, lane: AckLane, primary: Primary, marked: bool) -> None:
        self.lane = lane
        self.primary = primary
        self.marked = marked
        self.timing: Timing | None = None
        self.waiters: list[Waiter] = []
        self.asking = False
        self.delay = POLL_FIRST


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
        plane: DataPlane,
        pace: Pace,
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
        self._plane = plane
        self._pace = pace
        self._reacher = Reacher(reach, gave_up=self._forget_gone, go_on=self._go_on)
        self._current = current
        self._reset = reset
        self._connect = connect
        self._advance = advance
        self._hear = hear
        self._waiters: set[Waiter] = set()
        self._unmarked: list[Waiter] = []
        self._unwritten: list[Waiter] = []
        self._marking: tuple[MarkerRound, list[Waiter]] | None = None
        """The marker that is on its way to the primary, and for whom."""
        self._counting: list[Waiter] | None = None
        """Those who wrote nothing, being counted for the first time."""
        self._marked: list[MarkerRound] = []
        self._stirred = False
        self._opening = False
        self._checking = False
        self._raise_at: float | None = None
        self._lanes: dict[AckLane, Primary] = {}
        self._nursery: trio.Nursery | None = None
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
        return not (self._marked or self._unmarked or self._unwritten or self._marking or self._counting)

    def join(self, waiter: Waiter, wrote: bool) -> None:
        """Wait for everything answered so far to be fsynced; ``wrote`` False: the session wrote nothing here."""
        waiter.told = False
        self._waiters.add(waiter)
        (self._unmarked if wrote else self._unwritten).append(waiter)
        self._stir()

    def leave(self, waiter: Waiter) -> None:
        """The waiter is gone or done: ``done`` tells whoever comes across it in a list."""
        self._waiters.discard(waiter)
        waiter.done = True

    def reset(self) -> None:
        """The shard's primary changed: what was asked of the former one has to be asked of the present one."""
        self._unanswered = None
        self._raise_at = None
        marking, self._marking = self._marking, None
        counting, self._counting = self._counting, None
        rounds, self._marked = self._marked, []
        self._unmarked = _staying(marking[1] if marking is not None else []) + self._unmarked
        self._unwritten = _staying(counting or []) + self._unwritten
        for round_ in rounds:
            self._pace.forget(round_)
            (self._unmarked if round_.marked else self._unwritten).extend(_staying(round_.waiters))
        lanes, self._lanes = self._lanes, {}
        for lane in lanes:
            lane.close()
        self._go_on()

    # -- at a deadline --------------------------------------------------------------------------
    async def look_again(self) -> None:
        """Come back after a look that began after this call, also at those whose marker is only on its way.

        Until they are seen once they have no count at all.
        """
        unseen = _staying(list(self._waiters))
        for waiter in unseen:
            waiter.seen = False
        with self._plane.turn():
            for round_ in list(self._marked):
                self._poll(round_)
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

    # -- what is to be asked --------------------------------------------------------------------
    def _stir(self) -> None:
        """See what is to be asked: at the end of the turn, so that all who come in it share the marker."""
        if not self._stirred:
            self._stirred = True
            self._plane.at_end(self._begin)

    def _begin(self) -> None:
        self._stirred = False
        primary = self._current()
        if primary is None or primary.closed:
            self._reacher.want()
            return
        if self._unwritten and self._counting is None:
            self._count_unwritten(primary)
        if self._unmarked and self._marking is None:
            self._unmarked = _staying(self._unmarked)
            if not self._unmarked:
                self._unanswered = None  # nobody wants to know any more
                return
            self._mark(primary)

    def _count_unwritten(self, primary: Primary) -> None:
        """Who wrote nothing needs no marker; all of them share one round, on the lane that looks."""
        waiters, self._unwritten = _staying(self._unwritten), []
        self._close(wrote=False)
        if waiters:
            self._counting = waiters
            primary.looker.ask([COUNT], partial(self._counted_unwritten, primary, waiters))

    def _counted_unwritten(self, primary: Primary, waiters: list[Waiter], frames: list[bytes]) -> None:
        if self._counting is not waiters:
            return
        counts = self._read(primary, frames[0])
        if counts is None:
            return
        local, count = counts
        self._counting = None
        left = [waiter for waiter in waiters if not waiter.see(count, local)]
        self._saw()
        if left:
            round_ = next((each for each in self._marked if not each.marked), None)
            if round_ is None:
                round_ = MarkerRound(primary.looker, primary, marked=False)
                self._marked.append(round_)
                self._rest(round_)
            round_.waiters += left
        self._check_aof(primary, local)
        if self._unwritten:
            self._stir()

    def _mark(self, primary: Primary) -> None:
        """Put everyone who waits for a marker behind one."""
        round_, fresh = self._round(primary)
        if round_ is None:
            return
        waiters, self._unmarked = self._unmarked, []
        self._close(wrote=True)
        self._advance()
        self._marking = round_, waiters
        if self._unanswered is None:
            self._unanswered, self._overdue = trio.current_time(), False
        round_.lane.ask([MARKER], partial(self._answered, primary, fresh))

    def _round(self, primary: Primary) -> tuple[MarkerRound | None, bool]:
        """A lane for a new marker, if there is one by now.

        With none left the newest round's marker is raised, never the oldest's; and not without pause, or the newest
        round would outrun the acknowledgments its waiters need.
        """
        if primary.free:
            self._raise_at = None
            return MarkerRound(primary.free.pop(), primary, marked=True), True
        if len(self._lanes) < MARKER_LANES:
            if not self._opening:
                self._opening = True
                self._the_nursery.start_soon(self._open, primary)
            return None, False
        now = trio.current_time()
        if self._raise_at is None:
            self._raise_at = now + RAISE_AFTER
        if now < self._raise_at:
            self._pace.rest((self, "raise"), self._raise_at, self._stir)
            return None, False
        self._raise_at = None
        self.raised += 1
        return next((each for each in reversed(self._marked) if each.marked), None), False

    def _answered(self, primary: Primary, fresh: bool, frames: list[bytes]) -> None:
        """The reply to a marker."""
        if self._marking is None:
            return
        round_, waiters = self._marking
        self._marking = None
        self._unanswered = None
        if is_error(frames[0]):
            self._refused(primary, round_, fresh, waiters, ReplyError(_text(frames[0])))
        elif not fresh and round_ not in self._marked:
            # It ended while the marker was on its way, and its lane may be somebody else's by now.
            self._unmarked = _staying(waiters) + self._unmarked
        else:
            round_.waiters += _staying(waiters)
            timing = self._steps.marked(waiters)
            if fresh:
                round_.timing = timing
                self._marked.append(round_)
            self._poll(round_)
        if self._unmarked:
            self._stir()

    def _refused(
        self, primary: Primary, round_: MarkerRound, fresh: bool, waiters: list[Waiter], refusal: ReplyError
    ) -> None:
        if refusal.code in NOT_NOW:
            self._unmarked = _staying(waiters) + self._unmarked
            self._give_up(primary, demoted=refusal.code == "READONLY")
            return
        if fresh:
            primary.free.append(round_.lane)
        self.refused += 1
        refused = MarkerRefused(
            f"ERR WAITAOF cannot be answered: {round_.lane.address} refused the marker that asks what is "
            f"fsynced ({str(refusal).rstrip('.')}); cure that, or use WAIT"
        )
        for waiter in waiters:
            waiter.fail(refused)

    # -- rounds ---------------------------------------------------------------------------------
    def _rest(self, round_: MarkerRound) -> None:
        if round_.primary.closed:
            return
        # An acknowledgment given before the fsync is stale, so it has to be asked for anew.
        round_.primary.kick()
        self._pace.rest(round_, trio.current_time() + round_.delay, partial(self._poll, round_))
        round_.delay = min(round_.delay * 2, POLL_LONGEST)

    def _poll(self, round_: MarkerRound) -> None:
        """Look who has it."""
        if round_.asking or round_ not in self._marked:
            return
        self._pace.forget(round_)
        round_.asking = True
        present = any(waiter.at_once for waiter in round_.waiters)
        round_.lane.ask([COUNT, INFO] if present else [COUNT], partial(self._counted, round_))

    def _counted(self, round_: MarkerRound, frames: list[bytes]) -> None:
        """Let go those who have enough, and ask for acknowledgments again while somebody has not."""
        if round_ not in self._marked:
            return
        counts = self._read(round_.primary, frames[0])
        if counts is None:
            return
        local, count = counts
        round_.asking = False
        round_.timing = self._steps.counted(round_.timing, count)
        most = online(frames[1]) if round_.marked and len(frames) > 1 else 0
        round_.waiters = [waiter for waiter in round_.waiters if not waiter.see(count, local, most)]
        self._saw()
        self._check_aof(round_.primary, local)
        if round_.waiters:
            self._rest(round_)
            return
        self._marked.remove(round_)
        if round_.marked:
            round_.primary.free.append(round_.lane)
        if self._unmarked:
            self._stir()

    def _read(self, primary: Primary, frame: bytes) -> tuple[int, int] | None:
        """(local, replicas); None, the primary being given up, when it does not say."""
        if is_error(frame):
            self._give_up(primary, demoted=OF_A_REPLICA in _text(frame))
            return None
        local, count = elements(frame)
        return integer_value(local), integer_value(count)

    def _give_up(self, primary: Primary, demoted: bool) -> None:
        """The node is not what it was, or not now: whoever leads is asked, a little later."""
        if demoted:
            self._incarnations.observe(Life(primary.node_id, primary.run_id, "slave", "", NO_SECOND_ID))
        self._reacher.failed = True
        self._reset()

    # -- what is rare ---------------------------------------------------------------------------
    async def run(self) -> None:
        """Reach the primary when that is wanted, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._reacher.run()

    def _forget_gone(self) -> None:
        self._unmarked, self._unwritten = _staying(self._unmarked), _staying(self._unwritten)

    def _go_on(self) -> None:
        """See what is to be asked, if anything is."""
        if self._unmarked or self._unwritten:
            self._stir()

    async def _open(self, primary: Primary) -> None:
        """Have one more lane."""
        try:
            connection = await self._connect()
        except (ConnectionLost, ReplyError):
            await trio.sleep(RETRY)
        else:
            if primary is self._current() and not primary.closed:
                lane = AckLane(self._plane, connection, lambda reason: self._lane_lost(primary, lane))
                self._lanes[lane] = primary
                primary.free.append(lane)
            else:
                connection.abort()
        finally:
            self._opening = False
        self._stir()

    def _lane_lost(self, primary: Primary, lane: AckLane) -> None:
        """The lane's own write offset is lost with it: those who wait need another marker."""
        self._lanes.pop(lane, None)
        if lane in primary.free:
            primary.free.remove(lane)
        for round_ in [each for each in self._marked if each.lane is lane]:
            self._marked.remove(round_)
            self._pace.forget(round_)
            self._unmarked.extend(_staying(round_.waiters))
        if self._marking is not None and self._marking[0].lane is lane:
            self._unmarked = _staying(self._marking[1]) + self._unmarked
            self._marking = None
        if self._unmarked:
            self._pace.rest((self, "retry"), trio.current_time() + RETRY, self._stir)

    def _check_aof(self, primary: Primary, local: int) -> None:
        """A shard without AOF refuses numlocal 1 in the engine's own words; the error wins over numbers."""
        if local or self._checking or not any(waiter.want_local and not waiter.done for waiter in self._waiters):
            return
        self._checking = True
        self._the_nursery.start_soon(self._refuse_without_aof, primary)

    async def _refuse_without_aof(self, primary: Primary) -> None:
        try:
            await primary.main.call("WAITAOF", 1, 0, 1)
        except ReplyError as error:
            if WITHOUT_AOF in str(error):
                for waiter in [each for each in self._waiters if each.want_local and not each.done]:
                    self.leave(waiter)
                    waiter.fail(error)
            else:  # a node that is a replica by now, or loads its data
                self._give_up(primary, demoted=OF_A_REPLICA in str(error))
        except ConnectionLost:
            self._give_up(primary, demoted=False)
        finally:
            self._checking = False

    def _close(self, wrote: bool) -> None:
        """What is about to be sent is not for those who come later."""
        self.open = {kind: waiter for kind, waiter in self.open.items() if kind[2] is not wrote}

    @property
    def _the_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("nobody runs the rounds")
        return self._nursery


def _text(frame: bytes) -> str:
    return frame[1:].decode("utf-8", "replace").strip()


def _staying(waiters: list[Waiter]) -> list[Waiter]:
    return [waiter for waiter in waiters if not waiter.done]
