"""CLIENT PAUSE and UNPAUSE: the calls that wait for the end, and everybody who has to know.

The gate stands behind all that is answered without being run (syntax, arity, permissions), in front of all else.  While
nobody pauses it costs one look.  While somebody does, what may be postponed stops its client's parser (``Router``), so
that it comes here at its turn and nothing behind it is read: a client's order is kept by standing still.

Beginning: the gate is closed at once, then peers close theirs, then the shards are paused, and then it is answered.
What was sent before goes through meanwhile: a write that met a paused shard would stand in everybody's way on its lane.
A shard that has much to do is paused later than others, and peers tell while something of theirs is under way.
Ending: the shards first, then the gates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import structlog
import trio

from proxy.codec import decode_request, encode_request
from proxy.codec.reply import OK, bulk_value, is_error
from proxy.control.call import Call, Handler, Step
from proxy.control.functions import LIST, registered
from proxy.control.permissions import Permissions
from proxy.control.scripts import BY_SHA, ScriptBook
from proxy.control.sending import Sender
from proxy.control.transactions import refused_within
from proxy.dataplane import Lane, Request
from proxy.pause.board import NO_PAUSE, Board, Mode, Pause
from proxy.pause.scope import NO_WRITES, by_body, names_to_stop, parse, postpones
from proxy.pause.shards import LEASE, ShardPauses
from proxy.peers import Peers
from proxy.routing import Command, CommandTable
from proxy.sessions.session import Session

PING = encode_request([b"PING"])
DRAIN = 0.05  # seconds that what was sent before may take, before it is told that it takes longer
CATCH_UP = 0.25  # seconds that a primary has for what was held until it came
OF_PEERS = 1.0  # seconds that the shards wait for what peers have under way
LET_GO = 0.05  # seconds that shards have to be unpaused in
SAY_AGAIN = 60.0  # seconds before it is said again that nobody else is told
AT_ONCE = 1000  # calls that go on in one turn
TOPIC = "pause"
NAMES = {Mode.NONE: "none", Mode.WRITE: "write", Mode.ALL: "all"}


class Pausing:
    """See the module.

    ``table()`` is the command table, ``engine()`` the engine's name; ``changed()`` has the data plane stop at other
    commands; ``pass_on(call)`` does a call that is not postponed, ``again(call)`` one whose pause is over, ``refuse``
    answers one that may not be; ``held(shard)`` is how many commands wait for a shard's primary.
    """

    def __init__(
        self,
        sender: Sender,
        permissions: Permissions,
        scripts: ScriptBook,
        peers: Peers,
        *,
        table: Callable[[], CommandTable],
        engine: Callable[[], bytes],
        changed: Callable[[], None],
        pass_on: Callable[[Call], Step | None],
        again: Callable[[Call], None],
        refuse: Callable[[Session, Request, bytes], None],
        held: Callable[[int], int],
    ) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.permissions = permissions
        self.scripts = scripts
        self.peers = peers
        self.mode = Mode.NONE
        """What the gate goes by now."""
        self.parked: dict[int, Call] = {}
        """By client, in the order in which they came."""
        self.pauses = 0
        """How often it began."""
        self._began = 0.0
        """When it did last."""
        self.board = Board()
        self.shards = ShardPauses(sender.cluster, self._own_left, self._caught_up)
        self.log = structlog.get_logger("pause")
        self._table = table
        self._engine = engine
        self._changed = changed
        self._pass_on = pass_on
        self._again = again
        self._refuse = refuse
        self._held = held
        self._functions: dict[bytes, frozenset[bytes]] | None = None
        """The shards' functions and what they declare; they change only while nobody pauses."""
        self._catching_up = False
        """Something that was sent before the pause is under way yet."""
        self._behind: set[str] = set()
        """Peers of which that is so."""
        self._caught = trio.Event()
        self._say_again = -math.inf
        self._look = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.handlers: dict[bytes, Handler] = {b"client|pause": self._pause, b"client|unpause": self._unpause}
        peers.topic(TOPIC, self._tell, self._hear, self._settle)

    # -- what others ask -------------------------------------------------------------------------------
    def present(self) -> Pause:
        """What holds now."""
        return self.board.effective(trio.current_time())

    @property
    def lasted(self) -> float:
        """Seconds for which clients have been paused now; 0.0: they are not."""
        return trio.current_time() - self._began if self.mode else 0.0

    def info(self) -> dict[str, object]:
        """INFO's fields of it (server.c: genValkeyInfoString)."""
        pause = self.present()
        left = max(0.0, pause.end - trio.current_time()) if pause.mode else 0.0
        return {
            "paused_reason": "client_pause" if pause.mode else "none",
            "paused_actions": NAMES[pause.mode],
            "paused_timeout_milliseconds": round(left * 1000),
        }

    def describe(self) -> dict[str, object]:
        """For the topology: what is paused, for how long, and how many calls wait."""
        pause = self.present()
        left = max(0.0, pause.end - trio.current_time()) if pause.mode else 0.0
        return {"mode": NAMES[pause.mode], "seconds_left": round(left, 3), "parked": len(self.parked)}

    def names_to_stop(self, table: CommandTable) -> set[bytes]:
        """Names of commands behind which a client is not read now."""
        return names_to_stop(table, self.mode)

    # -- the gate ------------------------------------------------------------------------------------------
    def stops(self, call: Call) -> bool:
        """Whether a call is, or may be, postponed.  One that stops no parser was taken before the pause."""
        return call.request.barrier and self._postpones(call) is not False

    def hold(self, call: Call) -> Step | None:
        """Have a call wait that ``stops``."""
        if self._postpones(call) and self.permissions.free(call.session):
            self._park(call)
            return None
        return self._look_closer(call)

    async def _look_closer(self, call: Call) -> None:
        if not self.permissions.free(call.session):
            refusal = await self.permissions.refusal(call.session, call.args)
            if refusal is not None:
                self._refuse(call.session, call.request, refusal)
                return
        if self._postpones(call) or await self._engine_postpones(call):
            self._park(call)
            return
        step = self._pass_on(call)
        if step is not None:
            await step

    def _postpones(self, call: Call) -> bool | None:
        """None: it takes a question to the engine."""
        transaction = call.session.transaction
        if transaction is None or not call.session.in_multi:
            return postpones(self.mode, call.command, call.args)
        if refused_within(call.command):
            return False  # told so at once
        if self.mode is Mode.WRITE and call.command.name == b"exec":
            if transaction.doomed:
                return False
            verdicts = [postpones(Mode.WRITE, command, args) for command, args in self._queued(call.session)]
            return True if True in verdicts else None if None in verdicts else False
        return postpones(self.mode, call.command, call.args)

    def _queued(self, session: Session) -> Iterator[tuple[Command, Sequence[bytes]]]:
        """What EXEC would run."""
        transaction = session.transaction
        assert transaction is not None
        queued = transaction.queued
        for at, raw in enumerate(queued.raws):
            if at in queued.extras:
                yield queued.extras[at]
                continue
            args = decode_request(raw)
            command = self._table().lookup(args)
            if command is not None:
                yield command, args

    async def _engine_postpones(self, call: Call) -> bool:
        calls = [(call.command, call.args)]
        if call.command.name == b"exec":
            calls = list(self._queued(call.session))
        for command, args in calls:
            if postpones(Mode.WRITE, command, args) is None and await self._program_postpones(command, args):
                return True
        return False

    async def _program_postpones(self, command: Command, args: Sequence[bytes]) -> bool:
        """Of a script that was loaded, or a function."""
        if command.name in BY_SHA:
            text = self.scripts.find(args[1].lower())
            if text is None:
                text = bulk_value(shown) if not is_error(shown := await self._ask(_show(args[1]))) else None
            return True if text is None else by_body(text, read_only=False)
        if self._functions is None:
            self._functions = registered(await self._ask(LIST))
        flags = self._functions.get(args[1].lower())
        if flags is None:
            return command.name == b"fcall"
        return NO_WRITES not in flags

    async def _ask(self, raw: bytes) -> bytes:
        """Any shard's reply to the proxy's own question."""
        shard = self.sender.any_shard()
        return await self.sender.ask_shard(shard, raw) if shard >= 0 else b"-CLUSTERDOWN\r\n"

    def _park(self, call: Call) -> None:
        if not self.mode:  # it is over by now
            self._again(call)
            return
        call.session.parked = True
        self.parked[call.session.client.id] = call

    def gone(self, session: Session) -> None:
        """The client is gone, and what it sent is dropped."""
        self.parked.pop(session.client.id, None)

    # -- CLIENT PAUSE, CLIENT UNPAUSE ----------------------------------------------------------------------
    def _pause(self, call: Call) -> Step | None:
        asked = parse(call.args, time.time_ns() // 1_000_000, strict=self._engine() == b"redis")
        if isinstance(asked, bytes):
            self.sender.answer(call.request, asked)
            return None
        now = trio.current_time()
        self.board.add(asked.mode, now + asked.seconds, now)
        self._close()
        if not self.peers.on and now >= self._say_again:
            self._say_again = now + SAY_AGAIN
            cure = "give them all the same peers.secret_file"
            self.log.info("other proxies, if there are any, are not told of the pause", cure=cure)
        return self._answer_after(call, self._begin())

    def _unpause(self, call: Call) -> Step | None:
        paused = bool(self.present().mode)
        if not paused and not self.peers.peers:
            self.sender.answer(call.request, OK)
            return None
        self.board.clear()  # one of which nothing is heard for a while, too
        return self._answer_after(call, self._end(paused))

    async def _answer_after(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Even when the client goes meanwhile, the work is done."""
        assert self._nursery is not None
        done = trio.Event()

        async def do() -> None:
            await work
            done.set()

        self._nursery.start_soon(do)
        await done.wait()
        self.sender.answer(call.request, OK)

    async def _begin(self) -> None:
        await self.peers.tell()
        if self._own_left() > 0:
            await self.shards.take()

    async def _end(self, paused: bool) -> None:
        if paused:
            await self._let_shards_go()
        self._look.set()
        await self.peers.tell()

    async def _drain(self, shard: int | None = None) -> None:
        """Come back when what was put on lanes before, to this shard or all, is answered or lost."""
        lanes = [lane for lane in self._shared_lanes() if shard in (None, lane.shard)]
        missing = set(lanes)
        done = trio.Event()
        for lane in lanes:

            def replied(frame: bytes, lane: Lane = lane) -> None:
                missing.discard(lane)
                if not missing:
                    done.set()

            self.plane.submit(lane, PING, replied, pinned=True)
        if missing:
            await done.wait()

    def _shared_lanes(self) -> set[Lane]:
        """Those that something is under way on."""
        room = self.sender.lanes
        shared = {lane for lanes in room.sets.values() for lane in lanes if lane.shard >= 0}
        shared |= {lane for lane in room.all_connected() if not lane.owner.leased}
        return {lane for lane in shared if lane.outstanding and lane.attached and not lane.closed}

    async def _caught_up(self, shard: int) -> None:
        """What was sent to a shard since before the pause is done, and what waited for its primary has reached it."""
        with trio.move_on_after(OF_PEERS):
            while self._behind:
                await self._caught.wait()
        with trio.move_on_after(CATCH_UP):
            while self._held(shard):  # noqa: ASYNC110 -- what it is held by, is told nobody in particular
                await trio.sleep(CATCH_UP / 50)
        await self._drain(shard)

    # -- beginning and end ---------------------------------------------------------------------------------
    async def run(self) -> None:
        """End pauses when their time comes, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.shards.run)
            while True:
                self._look = trio.Event()
                now = trio.current_time()
                await self._follow()
                with trio.move_on_at(self.board.next_change(now)):  # it may have come meanwhile
                    await self._look.wait()

    def _close(self) -> None:
        """Close the gate at once where more is paused than before; what else has changed is seen to soon."""
        self.peers.busy = self._own_left() > 0
        present = self.present()
        if present.mode > self.mode:
            left = round(present.end - trio.current_time(), 3)
            self._enter(present.mode)
            self.log.info("clients are paused", mode=NAMES[present.mode], seconds=left)
        self._look.set()

    async def _follow(self) -> None:
        """Open the gate as far as nothing is paused any more."""
        self.peers.busy = self._own_left() > 0
        if self.shards.held and not self.present().mode:
            await self._let_shards_go()
        present = self.present()
        if present.mode >= self.mode:
            return
        self._enter(present.mode)
        if not present.mode:
            self.log.info("clients go on", parked=len(self.parked))
        await self._release()

    def _enter(self, mode: Mode) -> None:
        if not self.mode:
            self.pauses += 1
            self._began = trio.current_time()
            self._functions = None
        self.mode = mode
        self._changed()

    async def _let_shards_go(self) -> None:
        """Not waiting for one that hangs: its pause ends by itself."""
        assert self._nursery is not None
        done = trio.Event()

        async def end() -> None:
            await self.shards.end()
            done.set()

        self._nursery.start_soon(end)
        with trio.move_on_after(LET_GO):
            await done.wait()

    async def _release(self) -> None:
        """Let go on who waits; what is still postponed is parked again, in the same order."""
        calls = list(self.parked.values())
        self.parked.clear()
        for at in range(0, len(calls), AT_ONCE):
            with self.plane.turn():
                for call in calls[at : at + AT_ONCE]:
                    call.session.parked = False
                    if not call.session.client.closed:
                        self._again(call)
            await trio.lowlevel.checkpoint()

    def _own_left(self) -> float:
        own = self.board.own
        return own.end - trio.current_time() if own.mode else 0.0

    # -- peers -----------------------------------------------------------------------------------------------
    def _tell(self) -> dict[str, object]:
        left = max(0.0, self._own_left())
        mode = self.board.own.mode if left else Mode.NONE
        # Unheard, nobody would believe us for long: where no replica passes it on, for all of the time.
        lease = LEASE if self.peers.heard_in_pause else max(LEASE, left)
        behind = bool(self.mode) and (self._catching_up or any(map(self._held, self.sender.cluster.serving())))
        return {"round": self.board.round, "mode": int(mode), "left": left, "lease": lease, "behind": behind}

    def _hear(self, peer: str, told: Any) -> None:
        if told is None:
            self._set_behind(peer, False)
            return  # it is not believed for longer than for its lease
        try:
            mode, left, lease = Mode(told["mode"]), float(told["left"]), float(told["lease"])
            round_ = int(told["round"])
        except (LookupError, TypeError, ValueError):
            return  # of another version
        self._set_behind(peer, bool(told.get("behind")))
        now = trio.current_time()
        pause = Pause(mode, now + left) if mode else NO_PAUSE
        self.board.hear(peer, round_, pause, now + lease)
        self._close()

    def _set_behind(self, peer: str, behind: bool) -> None:
        if behind:
            self._behind.add(peer)
        elif peer in self._behind:
            self._behind.discard(peer)
            self._caught.set()
            self._caught = trio.Event()

    async def _settle(self) -> None:
        """What a peer told is done here, or it will be told that it takes longer."""
        if not self.mode or self._catching_up:
            return
        with trio.move_on_after(DRAIN) as quick:
            await self._drain()
        if quick.cancelled_caught and not self._catching_up:
            assert self._nursery is not None
            self._catching_up = True
            self._nursery.start_soon(self._catch_up)

    async def _catch_up(self) -> None:
        await self._drain()
        self._catching_up = False
        self.peers.tell_soon()


def _show(digest: bytes) -> bytes:
    return encode_request([b"SCRIPT", b"SHOW", digest])
