"""Transactions: WATCH, MULTI, EXEC, DISCARD, UNWATCH on leased lanes.

MULTI is answered here and the lane leased when the first key shows which shard it is for; from then on the
engine itself queues, refuses and executes.  Should the slot move before EXEC, the queued commands are
played again on the new owner, since nothing of them has run; with keys being watched that cannot be done
without breaking the watch, so that these count as changed: EXEC answers null, and the client tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

import trio

from proxy.codec import encode_request
from proxy.codec.reply import OK, QUEUED, error, is_error, null_array
from proxy.dataplane import DataPlane, Lane, Request
from proxy.routing import Command
from proxy.sessions.queued import Extra, Queued
from proxy.sessions.session import Session
from proxy.topology.lanes import Lanes
from proxy.topology.owners import Busy, Identity
from proxy.topology.redirects import NOT_SENT_AGAIN, UNKNOWN

MULTI = encode_request([b"MULTI"])
EXEC = encode_request([b"EXEC"])
DISCARD = encode_request([b"DISCARD"])
UNWATCH = encode_request([b"UNWATCH"])
ASKING = encode_request([b"ASKING"])

NOT_HERE = (b"-MOVED ", b"-ASK ", b"-TRYAGAIN ", b"-CLUSTERDOWN ", b"-LOADING ", b"-READONLY ")
ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"
LOST = b"-EXECABORT Transaction discarded because of: the connection to the shard was lost before EXEC\r\n"
CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
RETRY = 0.02  # seconds before a transaction that met "not now" is played again


class Places(Protocol):
    """Where slots are served, as topology knows it."""

    def shard_of(self, slot: int) -> int:
        """Index of the shard that serves ``slot``; -1 for none."""

    def any_shard(self) -> int:
        """Some shard, for what has no key."""

    def redirected(self, lane: Lane, frame: bytes) -> int | None:
        """Take in a MOVED or ASK; the shard that an ASK names, None otherwise."""

    def answer(self, request: Request, frame: bytes) -> None:
        """Answer, and let the client go on if it stood behind this command."""


Fill = Callable[[Session, int, Mapping[int, Extra], bytes], Awaitable[bytes]]
"""``fill(session, shard, extras, frame)``: EXEC's reply with the extras' replies at their places."""


class Transaction:
    """One session's WATCH ... MULTI ... EXEC.  ``fill`` makes the replies of extras, once EXEC has run."""

    def __init__(
        self, session: Session, plane: DataPlane, lanes: Lanes, places: Places, patience: float, fill: Fill
    ) -> None:
        self.session = session
        self._fill = fill
        self.plane = plane
        self.lanes = lanes
        self.places = places
        self.patience = patience
        """Seconds for which a transaction whose slot is not served is played again."""
        self.multi = False
        self.slot: int | None = None
        """By which the shard is found: of the first key, watched or queued."""
        self.queued_slot: int | None = None
        self.lane: Lane | None = None
        self.watched: set[int] = set()
        """The slots of what is watched."""
        self.watching = False
        self.begun = False
        """MULTI was sent to the lane."""
        self.dirty = False
        """An error was answered here that the engine does not know of."""
        self.crossed = False
        self.displaced = False
        """The slot is not served where the lane goes: EXEC plays everything again."""
        self.doubted = False
        """The rules of its user may have changed since it began."""
        self.queued = Queued()
        self.soiled = False
        """The lane's connection is another than its identity says."""

    # -- before MULTI ------------------------------------------------------------------------------
    async def watch(self, request: Request, slots: frozenset[int]) -> None:
        """WATCH, at its turn.  While its slot is not served it is held, as long as nothing is watched yet."""
        slot = next(iter(slots))
        if len(slots) > 1 or (self.slot is not None and self.places.shard_of(slot) != self.places.shard_of(self.slot)):
            self._answer(request, CROSSSLOT)
            return
        deadline = trio.current_time() + self.patience
        while True:
            shard = self.places.shard_of(slot)
            if self.lane is None and shard >= 0:
                await self.lanes.room(self.session.identity, shard, deadline)
            frame = await self._try_to_watch(request.raw, slot)
            not_now = frame.startswith(NOT_HERE) or frame == NOT_SENT_AGAIN
            if not not_now or self.watching or trio.current_time() > deadline:
                break
            self._give_back(clean=False)
            await trio.sleep(RETRY)
        if not_now and self.watching:
            self.displaced = True  # EXEC will say so; what was watched before has to be unwatched all the same
            frame = OK
        if not is_error(frame):
            self.watching = True
            self.watched.add(slot)
        elif not self.watching:
            self.end(clean=True)
        self._answer(request, frame)

    async def _try_to_watch(self, raw: bytes, slot: int) -> bytes:
        """The reply to WATCH; an error of this file where there is no lane for it."""
        refused = self._take_lane(slot)
        lane = self.lane
        if refused is not None or lane is None:
            return refused or LOST
        if lane.closed:
            return OK  # what was watched is not any more: EXEC will say so, and until then nothing has to be sent
        frames: list[bytes] = []
        done = trio.Event()

        def replied(frame: bytes) -> None:
            frames.append(frame)
            done.set()

        self._send(lane, raw, replied)
        await done.wait()
        if frames[0].startswith(NOT_HERE):
            self.places.redirected(lane, frames[0])
        return frames[0]

    def unwatch(self, request: Request) -> None:
        """UNWATCH outside MULTI."""
        self._finish(request, UNWATCH)

    # -- MULTI and what is queued ---------------------------------------------------------------------
    def begin(self, request: Request) -> None:
        self.multi = True
        self._answer(request, OK)

    def queue(
        self,
        request: Request,
        command: Command,
        slot: int | None,
        *,
        put_in: bool = False,
        extra: Extra | None = None,
        raw: bytes | None = None,
    ) -> None:
        """One command inside MULTI; ``slot`` of its first key, None for none.

        ``put_in``: its reply will be put in by the proxy before EXEC; ``extra``: when EXEC has run. It is queued all
        the same, which keeps its place; ``raw`` in its stead where it must not run on the lane.
        """
        queued = self.queued
        queued.reserve(put_in, extra)
        raw = raw or request.raw
        queued.size += len(request.raw)
        if queued.size > self.plane.limits.query:  # the engine counts it to the query, too (networking.c)
            self.plane.refuse(self.session.client, "closing a client whose transaction exceeds the query limit")
            return
        queued.note(command, self.session.client.concern_of(request.raw) if command.counts_as_write else 0)
        if slot is not None:
            self._cross(slot)
        if self.lane is not None and self.lane.closed:
            self.displaced = True  # it was lost while nothing was under way on it
        elif slot is not None and self.lane is None and not self._has_place(slot):
            self.displaced = True  # EXEC waits for somebody to serve the slot, and for a lane
        elif slot is not None and self._may_not_begin():
            self.displaced = True
        if self.crossed or self.displaced or (slot is None and self.lane is None):
            queued.raws.append(raw)
            self._answer(request, QUEUED)
            return
        if slot is not None and not self._lease(slot, request):
            self.dirty = True
            return
        self._begin_on_lane()
        queued.raws.append(raw)
        lane = self.lane
        assert lane is not None

        def replied(frame: bytes) -> None:
            if frame.startswith(NOT_HERE):
                self.places.redirected(lane, frame)
                self.displaced = True
                frame = QUEUED
            elif lane.closed:
                self.displaced = True  # nothing has run: EXEC finds another lane, or says so
                frame = QUEUED
            elif is_error(frame):
                self.dirty = True
            self._answer(request, frame)

        self._send(lane, raw, replied)

    def _has_place(self, slot: int) -> bool:
        shard = self.places.shard_of(slot)
        return shard >= 0 and self.lanes.has_room(self.session.identity, shard)

    def _cross(self, slot: int) -> None:
        """Keys of one slot only; watched ones may have another, as long as the same shard serves both."""
        if self.queued_slot is None:
            self.queued_slot = slot
            elsewhere = self.watching and self.slot is not None and self.lane is not None
            self.crossed = elsewhere and self.places.shard_of(slot) != self.places.shard_of(self.slot or 0)
            if not self.crossed:
                self.slot = slot
        self.crossed = self.crossed or slot != self.queued_slot

    def _begin_on_lane(self) -> None:
        if self.begun:
            return
        assert self.lane is not None
        self.begun = True
        for raw in (MULTI, *self.queued.raws):
            self._send(self.lane, raw, self._queued_early)

    def _queued_early(self, frame: bytes) -> None:
        """The engine's word on what was answered QUEUED here."""
        if is_error(frame):
            # A lost lane refuses nothing: none of it has run, and EXEC finds another lane.
            lost = self.lane is None or self.lane.closed
            self.dirty = self.dirty or not (lost or frame.startswith(NOT_HERE))
            self.displaced = True

    @property
    def yet_to_begin(self) -> bool:
        """MULTI is yet to be sent to a lane."""
        return self.multi and not self.begun

    def _may_not_begin(self) -> bool:
        """Whether MULTI may be denied by now: what is sent behind it would run.  EXEC asks the engine first."""
        return self.doubted and self.yet_to_begin and not self.lanes.transacts(self.session.identity.user)

    def refuse(self, request: Request, frame: bytes) -> None:
        """An error while queueing: EXEC will say EXECABORT."""
        self.dirty = True
        self._answer(request, frame)

    # -- the end ----------------------------------------------------------------------------------------
    def discard(self, request: Request) -> None:
        self._finish(request, DISCARD if self.begun else UNWATCH)

    def _finish(self, request: Request, raw: bytes) -> None:
        lane = self.lane
        if lane is None or lane.closed:
            self.end(clean=False)
            self._answer(request, OK)
            return

        def replied(frame: bytes) -> None:
            self.end(clean=not is_error(frame))
            self._answer(request, OK)

        self._send(lane, raw, replied)

    @property
    def doomed(self) -> bool:
        """EXEC will run nothing."""
        return self.dirty or self.crossed

    def execute(self, request: Request) -> Coroutine[Any, Any, None] | None:
        """EXEC at its turn.  What has to be awaited is returned."""
        if self.doomed:
            self.abort(request, ABORTED if self.dirty else CROSSSLOT)
            return None
        lane = self.lane
        if lane is None and not self.queued:
            self.end(clean=True)
            self._answer(request, b"*0\r\n")
            return None
        if lane is not None and any(self.places.shard_of(slot) != lane.shard for slot in self.watched):
            self.displaced = True  # what is written there now is not seen on this lane
        if lane is not None and lane.owner.retiring_since is not None:
            self.displaced = True  # the shard has another primary: this one may not have heard, and would forget it
        if self.displaced or lane is None or lane.closed:
            if self.watching:
                self.abort(request, LOST if lane is None or lane.closed else null_array(self.session.protocol))
                return None
            return self._play_again(request)
        self._begin_on_lane()
        replay: list[bool] = []

        filling: list[bytes] = []

        def replied(frame: bytes) -> None:
            frame = self._outcome(frame)
            if frame.startswith(NOT_HERE):
                self.places.redirected(lane, frame)
                replay.append(True)
            elif frame == NOT_SENT_AGAIN:
                replay.append(True)  # it did not run, or changes nothing
            else:
                self.end(clean=not self.queued.soils)
                if self.queued.is_to_fill(frame):
                    filling.append(frame)
                else:
                    self._answer(request, self.queued.filled(frame))
            done.set()

        done = trio.Event()
        self._send_exec(lane, replied, lambda: self._give_back(clean=not self.queued.soils))

        async def follow() -> None:
            await done.wait()
            if replay and self.watching:
                self.abort(request, LOST if lane.closed else null_array(self.session.protocol))
            elif replay:
                await self._play_again(request)
            elif filling:
                await self._fill_and_answer(request, filling[0], lane.shard)

        return follow()

    async def _fill_and_answer(self, request: Request, frame: bytes, shard: int) -> None:
        self._answer(request, await self._fill(self.session, shard, self.queued.extras, self.queued.filled(frame)))

    def abort(self, request: Request, frame: bytes) -> None:
        """End the transaction with this error, or with the null of keys that have changed."""
        self.end(clean=False)
        self._answer(request, frame)

    async def _play_again(self, request: Request) -> None:
        """Nothing has run yet: queue and execute all of it where the slot is served now."""
        self._give_back(clean=False)
        deadline = trio.current_time() + self.patience
        asked: int | None = None
        while True:
            shard = asked if asked is not None else self._shard()
            if shard >= 0:
                await self.lanes.room(self.session.identity, shard, deadline)
            frame, lane = await self._play(shard, asking=asked is not None)
            not_now = frame.startswith(NOT_HERE) or frame == NOT_SENT_AGAIN
            if not not_now or trio.current_time() > deadline:
                break
            asked = self.places.redirected(lane, frame) if lane is not None and frame != NOT_SENT_AGAIN else None
            await trio.sleep(RETRY)
        self.end(clean=True)
        if self.queued.is_to_fill(frame):
            await self._fill_and_answer(request, frame, lane.shard if lane is not None else -1)
        else:
            self._answer(request, self.queued.filled(frame))

    def _shard(self) -> int:
        return self.places.any_shard() if self.slot is None else self.places.shard_of(self.slot)

    async def _play(self, shard: int, asking: bool) -> tuple[bytes, Lane | None]:
        """The reply to EXEC, or the first error that says "not here" or "not now"."""
        if shard < 0:
            return b"-CLUSTERDOWN Hash slot not served\r\n", None
        try:
            lane = self.lanes.lease(self.session.identity, shard)
        except Busy as busy:
            return error(str(busy)), None
        frames: list[bytes] = []
        done = trio.Event()

        def replied(frame: bytes) -> None:
            frames.append(frame)
            if len(frames) == count:
                done.set()

        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self.lanes.release(lane, clean=not lane.fifo and not self.queued.soils)

        requests = [*([ASKING] if asking else []), MULTI, *self.queued.raws]
        count = len(requests) + 1
        was_up = lane.attached
        try:
            with self.plane.turn():
                for raw in requests:
                    self._send(lane, raw, replied)
                self._send_exec(lane, replied, give_back)
            await done.wait()
        finally:  # also when the client goes meanwhile
            lost = lane.closed
            give_back()
        not_here = next((frame for frame in frames if frame.startswith(NOT_HERE)), None)
        if lost and not was_up and not lane.sent:
            return b"-CLUSTERDOWN the shard cannot be reached\r\n", lane
        return not_here or self._outcome(frames[-1]), lane

    def _outcome(self, frame: bytes) -> bytes:
        """EXEC's reply: of a lost lane, only what nobody hears of may be done again."""
        return UNKNOWN if frame == NOT_SENT_AGAIN and self.queued.heard else frame

    # -- the lane ---------------------------------------------------------------------------------------------
    def _lease(self, slot: int, request: Request) -> bool:
        """Have the lane for ``slot``; False: there is none and the request was answered so."""
        refused = self._take_lane(slot)
        if refused is not None:
            self._answer(request, refused)
        return refused is None

    def _take_lane(self, slot: int) -> bytes | None:
        """Have the lane for ``slot``, or say why there is none."""
        if self.lane is not None and self.lane.closed and not self.watching and not self.begun:
            self.lane = None  # nothing was lost with it
        if self.lane is not None:
            self.slot = slot if self.slot is None else self.slot
            return None
        shard = self.places.shard_of(slot)
        if shard < 0:
            return b"-CLUSTERDOWN Hash slot not served\r\n"
        try:
            self.lane = self.lanes.lease(self.session.identity, shard)
        except Busy as busy:
            return error(str(busy))
        self.slot = slot
        return None

    def _send(self, lane: Lane, raw: bytes, on_reply: Callable[[bytes], None]) -> None:
        self.plane.submit(lane, raw, on_reply, client=self.session.client, pinned=True)

    def _send_exec(self, lane: Lane, on_reply: Callable[[bytes], None], on_kept: Callable[[], None]) -> None:
        """``on_kept``: EXEC has run, so the lane is free, though its reply is kept back for an acknowledgment."""
        self.plane.submit(
            lane,
            EXEC,
            on_reply,
            client=self.session.client,
            write=self.queued.write,
            pinned=True,
            concern=self.queued.concern,
            on_kept=on_kept,
        )

    def _give_back(self, clean: bool) -> None:
        """``clean``: nothing is watched or queued on the lane.  Else that is undone, where that makes it clean."""
        lane, self.lane = self.lane, None
        begun, self.begun = self.begun, False
        soiled, self.soiled = self.soiled, False
        if lane is None:
            return
        if clean or self.queued.soils or soiled:
            self.lanes.release(lane, clean and not soiled)
        else:
            self.lanes.wash(lane, begun)

    def follow(self, before: Identity, now: Identity) -> None:
        """The session travels as another identity: so does the lane on which it watches, as its connection would."""
        lane = self.lane
        if lane is None or lane.closed or before == now:
            return
        if before.user != now.user or before.own or now.own:
            self.abandon()
            return
        said: list[list[bytes]] = []
        if now.database != before.database:
            said.append([b"SELECT", b"%d" % now.database])
        if now.protocol != before.protocol:
            said.append([b"HELLO", b"%d" % now.protocol])
        for mode in sorted({*before.modes} ^ {*now.modes}):
            said.append([b"CLIENT", mode.encode(), b"ON" if mode in now.modes else b"OFF"])

        def replied(frame: bytes) -> None:
            if is_error(frame) and self.lane is lane:
                self.abandon()

        self.soiled = True
        for words in said:
            self._send(lane, encode_request(words), replied)

    def abandon(self) -> None:
        """The session's user is another: its lane is of no use to it, and what it watched counts as changed."""
        if self.lane is not None and not self.lane.closed:
            self.lanes.release(self.lane, clean=False)

    def end(self, clean: bool) -> None:
        """Nothing is watched or queued any more; ``clean`` tells whether the lane knows."""
        self._give_back(clean)
        if self.session.transaction is self:
            self.session.transaction = None

    def _answer(self, request: Request, frame: bytes) -> None:
        self.places.answer(request, frame)
