"""Blocking commands (BLPOP, XREAD BLOCK ...): each has a leased lane for as long as it blocks.

The engine blocks, serves in its own order and keeps the timeout; a shared lane would stand still meanwhile.  What the
engine cannot know is added here: the client that goes, whose place in the engine's queue has to go with it before an
element falls to it; CLIENT UNBLOCK, which names our client and not the lane's; and the shard that changes underneath:
what was not served there goes on waiting where the slot is served now, for the time that is left.

There is no task for a blocked session: thousands may block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import uniform
from typing import Any

import trio

from proxy.codec import encode_request
from proxy.codec.reply import error, integer
from proxy.control.call import Call, Handler, Step
from proxy.control.sending import Sender
from proxy.control.siblings import Place, worker_of
from proxy.dataplane import Lane
from proxy.routing import first_slot
from proxy.sessions import clients
from proxy.sessions.blocking import timeout_of, with_time_left
from proxy.sessions.session import Blocked, Session
from proxy.sessions.transaction import ASKING, NOT_HERE
from proxy.topology.owners import Busy, Use
from proxy.topology.redirects import NOT_SENT_AGAIN, NOT_SERVED, REDIRECTIONS, RETRY

DEMOTED = b"-UNBLOCKED force unblock from blocking operation, instance state changed"
"""A primary was made a replica (blocked.c: disconnectOrRedirectAllBlockedClients); it closes the connection then."""
UNBLOCKED = b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"
SLOWEST = 0.5  # seconds at most between two attempts to go on waiting somewhere
UNBLOCK = "client unblock"  # what siblings are asked
AT_ONCE = 3  # times that the engine is asked again with the word that nobody blocks yet
UNBLOCK_TRIES = 20  # a command on its way to the engine does not block there yet
UNBLOCK_RETRY = 0.005  # seconds
SETTLED = 1.0  # seconds in one place behind which it is not on its way from another any more
BACKLOG = 0.1  # seconds for which a shared lane may have stood still to be asked to free a lane quickly


class Block:
    """One session's blocking command."""

    __slots__ = (
        "_asked",
        "_attempts",
        "_deadline",
        "_lane",
        "_leaving",
        "_room",
        "_sent_at",
        "_slot",
        "_timeout",
        "_waits_since",
        "call",
        "due",
        "over",
    )

    def __init__(self, room: BlockingCommands, call: Call) -> None:
        self.call = call
        self.over = False
        """It has its answer, or nobody wants one."""
        self.due = math.inf
        """When it is tried again, while no shard blocks it."""
        self._room = room
        self._slot = first_slot(call.command, call.args)
        self._timeout = timeout_of(call.command, call.args)
        seconds = self._timeout.seconds if self._timeout is not None else math.inf
        self._deadline = trio.current_time() + seconds
        self._waits_since = math.inf
        self._attempts = 0
        self._sent_at = math.inf
        self._leaving = False
        self._lane: Lane | None = None
        self._asked: int | None = None
        """The shard that an ASK names."""

    # -- on its way to a shard -------------------------------------------------------------------
    def send(self) -> None:
        """Block at the shard that serves the slot now."""
        sender = self._room.sender
        asked, self._asked = self._asked, None
        shard = asked if asked is not None else self._shard()
        if shard < 0:
            self._try_later()
            return
        try:
            lane = sender.lanes.lease(self.call.session.identity, shard, Use.BLOCK)
        except Busy as busy:
            self._finish(error(str(busy)))
            return
        self._lane = lane
        self._sent_at = trio.current_time()
        lane.owner.patience = self._deadline - self._sent_at
        with sender.plane.turn():
            if asked is not None:
                sender.plane.submit(lane, ASKING, _ignore, pinned=True)
            sender.plane.submit(
                lane,
                self._words(),
                lambda frame: self._replied(lane, frame),
                client=self.call.session.client,
                command_id=self.call.request.command_id,
                write=self.call.request.write,
                pinned=True,
                on_kept=self._kept,
            )

    def _shard(self) -> int:
        sender = self._room.sender
        return sender.any_shard() if self._slot is None else sender.shard_of(self._slot)

    def _words(self) -> bytes:
        """The request; on a second way for the time that is left."""
        if self._timeout is None or not self._attempts:
            return self.call.request.raw
        return encode_request(with_time_left(self.call.args, self._timeout, self._deadline - trio.current_time()))

    def _try_later(self) -> None:
        """Nobody serves the slot now."""
        now = trio.current_time()
        if self._leaving:
            self._room.sender.plane.kill(self.call.session.client)
            return
        self._waits_since = min(self._waits_since, now)
        pause = min(RETRY * 2.0 ** min(self._attempts, 8), SLOWEST) * uniform(0.5, 1.0)
        self._attempts += 1
        self.due = now + pause
        self._room.park(self)

    def look_again(self, now: float) -> bool:
        """Whether it need not be tried later any more: it is on its way, or answered."""
        if self.over:
            return True
        if now >= self._deadline:
            self._finish(self._nothing())
        elif now - self._waits_since > self._room.patience:
            self._finish(NOT_SERVED % self._room.patience)
        elif now < self.due or not self._room.serves(self._shard()):
            return False
        else:
            self.due = math.inf
            self.send()
            return self.due == math.inf
        return True

    # -- the engine's answer ---------------------------------------------------------------------
    def _replied(self, lane: Lane, frame: bytes) -> None:
        redirected = frame.startswith(NOT_HERE)
        demoted = frame.startswith(DEMOTED)
        if redirected and not self.over:
            self._asked = self._room.sender.redirected(lane, frame)
        self._release(clean=not demoted)
        if self.over:
            return
        if not (redirected or demoted or frame == NOT_SENT_AGAIN):
            self._finish(frame)
            return
        # Not served there: it waits on where the slot is now.
        if trio.current_time() - self._sent_at > SETTLED:  # it did block there: what was before is another story
            self._attempts, self._waits_since = min(self._attempts, 1), math.inf
        moved = frame.startswith(b"-MOVED ") or self._asked is not None
        if moved and self._attempts < REDIRECTIONS:
            self._attempts += 1
            self.send()
        else:
            self._asked = None
            self._room.sender.cluster.hint()
            self._try_later()

    def _kept(self) -> None:
        """It is served, and its reply kept back until the write is acknowledged."""
        self.call.session.blocked = None
        self._release(clean=True)

    def _release(self, clean: bool) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            self._room.release(lane, clean and not lane.fifo)

    def _nothing(self) -> bytes:
        """The answer when the time is up; all of them have the same (blocked.c: replyToBlockedClientOnTimeout)."""
        return b"*-1\r\n" if self.call.session.protocol == 2 else b"_\r\n"

    def _finish(self, frame: bytes) -> None:
        self._end()
        session = self.call.session
        if self._leaving and frame == self._nothing():
            self._room.sender.plane.kill(session.client)  # as a client that blocks and is gone
            return
        session.blocked = session.working = None  # before the answer, behind which the next command may block
        self._room.sender.answer(self.call.request, frame)

    def _end(self) -> None:
        self.over = True
        self._room.blocks.discard(self)

    # -- ended from outside ------------------------------------------------------------------------
    def unblock(self, with_error: bool) -> None:
        """As CLIENT UNBLOCK does, whose caller need not know whether an element was faster."""
        self.ask_to_unblock(with_error, _ignore)

    def ask_to_unblock(self, with_error: bool, told: Callable[[bytes], None]) -> None:
        """Have the engine unblock it; ``told`` of the engine's answer, 0 when it did not block there (any more)."""
        lane, kept = self._lane, self.call.session.blocked is None
        if self.over or kept:
            told(integer(0))
        elif lane is None or not lane.attached:  # on its way: it blocks here alone
            self._finish(UNBLOCKED if with_error else self._nothing())
            self._release(clean=False)  # behind that: what is lost with the lane is no answer
            told(integer(1))
        else:
            way = self._room.way_to(lane)
            if way is None:
                told(integer(0))
                return
            self._room.unblock(way, lane, b"ERROR" if with_error else b"TIMEOUT", told)

    @property
    def blocks(self) -> bool:
        """Its client waits for an element: none is there that is yet to be acknowledged."""
        return not self.over and self.call.session.blocked is self

    def half_closed(self) -> None:
        """The client sends nothing more.  What is there for it is its own, but it does not block for anything else.

        It may as well be gone: as in ``cancel``, the engine is told ahead of what others push from now on.
        """
        if self._leaving:
            return
        self._leaving = True
        lane = self._lane
        if lane is not None and lane.attached:
            self._leave(AT_ONCE)
        else:  # not sent yet: by the time it were, it would take what came later
            self._room.sender.plane.kill(self.call.session.client)

    def _leave(self, tries: int) -> None:
        def told(frame: bytes) -> None:
            if frame == integer(1) or not self.blocks:
                return  # the engine's word is the end of it
            if tries:
                self._leave(tries - 1)  # before anything that others push meanwhile
            else:
                self._room.let_go(self)

        self.ask_to_unblock(False, told)

    def cancel(self) -> None:
        """The client is gone: nothing may fall to it any more.

        The engine is told on a lane whose commands, such as the next client's push, run behind that.  The lane is free
        with the reply to the command; if it did not block yet or the engine cannot be told, the lane is closed.
        """
        self._end()
        lane = self._lane
        if lane is None:
            return
        way = self._room.way_to(lane) if lane.sent else None
        if way is None or self._room.sender.plane.lane_age(way) > BACKLOG:
            self._release(clean=False)
            return

        def told(frame: bytes) -> None:
            if frame != integer(1):
                self._release(clean=False)

        self._room.unblock(way, lane, b"TIMEOUT", told)


class BlockingCommands:
    """See the module.  ``patience``: seconds for which a command waits for somebody to serve its slot."""

    def __init__(self, sender: Sender, sessions: dict[int, Session], patience: float, place: Place) -> None:
        self.sender = sender
        self.place = place
        self.patience = patience
        self.blocks: set[Block] = set()
        self._sessions = sessions
        self._parked: list[Block] = []
        self._asked: dict[Lane, int] = {}
        """Lanes that the engine is being asked to unblock: nobody else may be on them by then."""
        self._waiting: set[Lane] = set()
        """Those of them that are clean and free otherwise."""
        self._wanted = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.handlers: dict[bytes, Handler] = {b"client|unblock": self._unblock}

    async def run(self) -> None:
        """Try again, for ever, what no shard takes now."""
        async with trio.open_nursery() as self._nursery:
            await self._try_again()

    async def _try_again(self) -> None:
        while True:
            await self._wanted.wait()
            while self._parked:
                await trio.sleep(RETRY)
                parked, self._parked = self._parked, []
                now = trio.current_time()
                with self.sender.plane.turn():
                    waiting = [block for block in parked if not block.look_again(now)]
                self._parked = list(dict.fromkeys([*waiting, *self._parked]))
            self._wanted = trio.Event()

    def block(self, call: Call) -> None:
        """A call that blocks, at its turn."""
        block = Block(self, call)
        call.session.blocked = call.session.working = block
        self.blocks.add(block)
        block.send()

    def park(self, block: Block) -> None:
        self._parked.append(block)
        self._wanted.set()

    def let_go(self, block: Block) -> None:
        """Of a client that sends nothing more."""
        assert self._nursery is not None
        self._nursery.start_soon(self._let_go, block)

    async def _let_go(self, block: Block) -> None:
        """The engine serves it or lets it go, whose word is the end of it either way."""
        if block.blocks and not await _ended(block, with_error=False) and block.blocks:
            self.sender.plane.kill(block.call.session.client)

    def serves(self, shard: int) -> bool:
        """Whether it is worth while to connect to the shard's primary."""
        return shard >= 0 and self.sender.lanes.base[shard].attached

    def way_to(self, lane: Lane) -> Lane | None:
        """A shared lane to the very process that a leased one is connected to."""
        if lane.owner.shard < 0 or not lane.attached:
            return None
        way = self.sender.lanes.base[lane.owner.shard]
        same = (way.owner.node_id, way.owner.run_id) == (lane.owner.node_id, lane.owner.run_id)
        return way if same and way.attached and not way.closed else None

    def unblock(self, way: Lane, lane: Lane, reason: bytes, told: Callable[[bytes], None]) -> None:
        """CLIENT UNBLOCK of a leased lane's connection, on another lane."""

        def answered(frame: bytes) -> None:
            left = self._asked.pop(lane) - 1
            if left:
                self._asked[lane] = left
            told(frame)
            if not left and lane in self._waiting:
                self._waiting.discard(lane)
                self.sender.lanes.release(lane, clean=not lane.fifo)

        self._asked[lane] = self._asked.get(lane, 0) + 1
        words = [b"CLIENT", b"UNBLOCK", b"%d" % lane.owner.client_id, reason]
        self.sender.plane.submit(way, encode_request(words), answered, pinned=True)

    def release(self, lane: Lane, clean: bool) -> None:
        """A lane is free; one that may yet be unblocked is kept until that is over."""
        if clean and lane in self._asked:
            self._waiting.add(lane)
        else:
            self._waiting.discard(lane)
            self.sender.lanes.release(lane, clean)

    def _unblock(self, call: Call) -> Step | None:
        """CLIENT UNBLOCK: the engine decides what came first, an element or this."""
        asked = clients.parse_unblock(call.args)
        if isinstance(asked, bytes):
            self.sender.answer(call.request, asked)
            return None
        if not self.place.alone and worker_of(asked.client) != self.place.number:
            return self._unblock_elsewhere(call, asked)
        blocked = self._blocked_in(asked.client)
        if isinstance(blocked, Block):
            return self._unblock_at_engine(call, blocked, asked.with_error)
        self.sender.answer(call.request, integer(self._unblock_here(asked.client, asked.with_error)))
        return None

    def _blocked_in(self, client: int) -> Blocked | None:
        session = self._sessions.get(client)
        return session.blocked if session is not None else None

    def _unblock_here(self, client: int, with_error: bool) -> int:
        """Of a client that no engine blocks: how many that were."""
        blocked = self._blocked_in(client)
        if blocked is None:
            return 0
        self._sessions[client].blocked = None
        blocked.unblock(with_error)
        return 1

    async def _unblock_at_engine(self, call: Call, block: Block, with_error: bool) -> None:
        self.sender.answer(call.request, integer(await _ended(block, with_error)))

    async def _unblock_elsewhere(self, call: Call, asked: clients.Unblock) -> None:
        unblocked = sum(await self.place.siblings.ask(UNBLOCK, [asked.client, asked.with_error]))
        self.sender.answer(call.request, integer(unblocked))

    async def answer_sibling(self, value: Any) -> int:
        """UNBLOCK on behalf of another worker's client: how many that were."""
        client, with_error = value
        blocked = self._blocked_in(client)
        if isinstance(blocked, Block):
            return await _ended(blocked, with_error)
        with self.sender.plane.turn():
            return self._unblock_here(client, with_error)


async def _ended(block: Block, with_error: bool) -> int:
    """1 when the engine ended it, 0 when something else did."""
    for attempt in range(UNBLOCK_TRIES):
        if attempt:
            await trio.sleep(UNBLOCK_RETRY)
        if await _answer_of(block, with_error) == integer(1):
            return 1
        if block.over:
            break
    return 0


async def _answer_of(block: Block, with_error: bool) -> bytes:
    frames: list[bytes] = []
    done = trio.Event()

    def told(frame: bytes) -> None:
        frames.append(frame)
        done.set()

    block.ask_to_unblock(with_error, told)
    await done.wait()
    return frames[0]


def _ignore(frame: bytes) -> None:
    """Whose reply nobody waits for."""
