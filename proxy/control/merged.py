"""RANDOMKEY, SCAN, INFO, SCRIPT KILL: answers that take several steps, or more than the shards' replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import trio

from proxy.codec import encode_request
from proxy.codec.reply import OK, array, bulk, bulk_value, decode, elements, error, integer_value, is_error, verbatim
from proxy.control.call import Call, Handler, Step
from proxy.control.permissions import Permissions
from proxy.control.sending import NOT_SERVED, Sender
from proxy.control.siblings import Place
from proxy.control.versions import numbers
from proxy.dataplane import Lane
from proxy.routing import (
    DONE,
    BadCursor,
    Cursor,
    NotServed,
    Scan,
    Shard,
    ShardFigures,
    aggregate,
    agreed_ranges,
    choose_shard,
    merge_info,
    shard_sections,
)
from proxy.routing.slot_map import Ranges
from proxy.sessions.session import Session
from proxy.sessions.transaction import NOT_HERE
from proxy.topology.owners import Owner
from shard.client import ConnectionLost, ReplyError

INFO = "info"  # what siblings are asked
NOPERM = b"-NOPERM "
SCAN_RETRY = 0.02  # seconds before a SCAN whose slot is not served is tried again
SCAN_SHARDS = 16  # shards at most that one step of SCAN goes over
SCAN_COUNT = 10  # keys that SCAN looks for where the client does not say (db.c)


class Scanned(NamedTuple):
    """What one shard had to say in a step of SCAN.  ``end_of_shard``: it is through."""

    following: Cursor
    keys: list[bytes]
    end_of_shard: bool


class MergedCommands:
    """See the module.  ``own_info(siblings)`` gives INFO's sections about the proxy itself, with what its siblings
    answered to INFO; ``patience`` in seconds."""

    def __init__(
        self,
        sender: Sender,
        permissions: Permissions,
        own_info: Callable[[Sequence[dict[str, int]]], dict[str, dict[str, object]]],
        patience: float,
        place: Place,
    ) -> None:
        self.place = place
        self.sender = sender
        self.permissions = permissions
        self.cluster = sender.cluster
        self.patience = patience
        self._own_info = own_info
        self._random = Random()
        self._scan_cache: tuple[bytes, Ranges] = (b"", ())
        self._blind: set[str] = set()
        """Users who may not ask for the slots."""
        self.handlers: dict[bytes, Handler] = {
            b"scan": self._scan,
            b"randomkey": self._randomkey,
            b"info": self._info,
            b"script|kill": self._kill,
            b"function|kill": self._kill,
        }

    async def _randomkey(self, call: Call) -> None:
        """A shard drawn by its number of keys, so that every key is as likely as any other."""
        frame = b"$-1\r\n" if call.session.protocol == 2 else b"_\r\n"
        for _ in range(3):  # the key may be gone again when it is asked for
            shards = self.cluster.serving()
            sizes = await self.sender.of_all(call.session, shards, encode_request([b"DBSIZE"]))
            failed = next((each for each in sizes if is_error(each)), None)
            if failed is not None and not failed.startswith(NOPERM):
                frame = failed
                break
            # Who may not ask for sizes gets keys all the same, by the sizes that the proxy knows of.
            known = {figures.index: figures.keys for figures in self._shard_figures()}
            keys = [known.get(each, 0) for each in shards] if failed else [integer_value(each) for each in sizes]
            drawn = choose_shard(keys, self._random)
            if drawn is None:
                break
            lane = self.sender.lane(call.session, shards[drawn])
            frame = await self.sender.ask(call.session, lane, call.request.raw, call.request)
            if frame not in (b"$-1\r\n", b"_\r\n"):
                break
        self.sender.answer(call.request, frame)

    async def _scan(self, call: Call) -> None:
        """One step of SCAN over shards.  The shard says before and behind it which slots it owns.

        A shard that is through before COUNT keys were found is followed by the next: what fits into one step on a
        plain server does here.
        """
        try:
            cursor = Cursor.decode(call.args[1])
        except BadCursor as bad:
            self.sender.answer(call.request, bad.frame)
            return
        deadline = trio.current_time() + self.patience
        scan = Scan(positional=self._cursors_carry_slots(), life=self._life_of(call.session))
        gathered: list[bytes] = []
        wanted = _scan_count(call.args)
        for turn in range(SCAN_SHARDS):
            part = await self._scan_shard(call, scan, cursor, 0.0 if turn else deadline)
            if isinstance(part, bytes):
                if turn:
                    break  # the client's next step meets it, with what came before in its hands
                self.sender.answer(call.request, part)
                return
            cursor = part.following
            gathered += part.keys
            if not part.end_of_shard or cursor == DONE or len(gathered) >= wanted:
                break
        self.sender.answer(call.request, array([bulk(cursor.encode()), array(gathered)]))

    async def _scan_shard(self, call: Call, scan: Scan, cursor: Cursor, deadline: float) -> Scanned | bytes:
        """What the shard that ``cursor`` stands at has to say, asked again while nobody serves it; or the error."""
        while True:
            part = await self._scan_step(call.session, scan, cursor, call.args)
            if part is not None:
                return part
            if trio.current_time() > deadline:
                return NOT_SERVED
            self.cluster.hint()
            await trio.sleep(SCAN_RETRY)

    async def _scan_step(
        self, session: Session, scan: Scan, cursor: Cursor, args: Sequence[bytes]
    ) -> Scanned | bytes | None:
        """What one shard says, or its error; None when the slot that ``cursor`` stands at is not served now."""
        slot_map = self.cluster.map
        try:
            step = scan.next_step(slot_map, cursor)
        except NotServed:
            return None
        lane = self.sender.lane(session, step.shard)
        if not lane.attached:
            return None
        raw = encode_request([args[0], b"%d" % step.engine_cursor, *args[2:]])
        scanned = await self._scan_between(session, lane, raw)
        if lane.closed or scanned is None:
            return None
        before, frame, after = scanned
        if is_error(frame):
            return None if frame.startswith(NOT_HERE) else frame
        owned = agreed_ranges(before, after)
        returned, keys = elements(frame)
        number = int(bulk_value(returned) or 0)
        following = scan.after(self.cluster.map, step, number, owned)
        if following != DONE and following.encode() == b"0":
            following = Cursor(following.slot, following.mark, True, following.engine)
        return Scanned(following, elements(keys), number == 0)

    async def _scan_between(self, session: Session, lane: Lane, raw: bytes) -> tuple[Ranges, bytes, Ranges] | None:
        """The reply to a SCAN, between the slots its node owned before and behind it; None when these are not known."""
        user = session.identity.user
        if user not in self._blind:
            slots = encode_request([b"CLUSTER", b"SLOTS"])
            before, frame, after = await self.sender.together(session, lane, [slots, raw, slots])
            if not any(is_error(each) for each in (before, after)):
                return self._own_ranges(lane, before), frame, self._own_ranges(lane, after)
            if not before.startswith(NOPERM):
                return None
            self._blind.add(user)
        # A user who may not ask for the slots need not know of them: they are asked for by the proxy itself.
        first = await self._asked_ranges(lane)
        if lane.closed:
            return None
        frame = await self.sender.ask(session, lane, raw, pinned=True)
        second = await self._asked_ranges(lane)
        return (first, frame, second) if first is not None and second is not None else None

    async def _asked_ranges(self, lane: Lane) -> Ranges | None:
        owner: Owner = lane.owner
        node = self.cluster.primary(owner.shard)
        try:
            if node is None or node.node_id.decode() != owner.node_id:
                return None
            rows = await self.permissions.ask(node.address, "CLUSTER", "SLOTS")
        except (ConnectionLost, ReplyError):
            return None
        return tuple(sorted((row[0], row[1]) for row in rows if row[2][2] == owner.node_id.encode()))

    def _own_ranges(self, lane: Lane, frame: bytes) -> Ranges:
        """The slot ranges of the lane's node in its CLUSTER SLOTS reply; the same bytes are read once."""
        owner: Owner = lane.owner
        key = owner.node_id.encode() + frame
        if self._scan_cache[0] != key:
            rows = decode(frame)
            ranges = tuple(sorted((row[0], row[1]) for row in rows if row[2][2] == owner.node_id.encode()))
            self._scan_cache = key, ranges
        return self._scan_cache[1]

    def _cursors_carry_slots(self) -> bool:
        """Valkey 8 and Redis 8 keep one table per slot and put the slot into the cursor (kvstore.c)."""
        return all(numbers(watch.version) >= (8,) for watch in self.cluster.nodes.values() if watch.version)

    def _life_of(self, session: Session) -> Callable[[Shard], bytes]:
        def life(shard: Shard) -> bytes:
            incarnation = self.sender.lane(session, shard.index).owner.incarnation
            return incarnation.run_id.encode() if incarnation is not None else b""

        return life

    async def _kill(self, call: Call) -> None:
        """SCRIPT KILL and FUNCTION KILL, on connections of their own: a lane may stand behind what is to be killed."""
        shards = self.cluster.serving()
        frames: list[bytes] = [NOT_SERVED] * max(len(shards), 1)

        async def one(at: int, shard: int) -> None:
            node = self.cluster.primary(shard)
            if node is None:
                return
            try:
                async with await self.cluster.connect(node.host, node.port, name=None) as connection:
                    # Until the script counts as slow (busy-reply-threshold) the node reads nothing.
                    await connection.call(*call.args, timeout=self.patience)
                    frames[at] = OK
            except ReplyError as refused:
                frames[at] = error(str(refused))
            except ConnectionLost as problem:
                frames[at] = error(f"ERR node {node.host}:{node.port} could not be reached ({problem}): try again")

        async with trio.open_nursery() as nursery:
            for at, shard in enumerate(shards):
                nursery.start_soon(one, at, shard)
        self.sender.answer(call.request, aggregate(call.command, call.args, frames, call.session.protocol))

    def _info(self, call: Call) -> Step | None:
        if not self.place.alone:
            return self._info_of_all(call)
        self._gather_info(call, ())
        return None

    async def _info_of_all(self, call: Call) -> None:
        self._gather_info(call, await self.place.siblings.ask(INFO, None))

    def _gather_info(self, call: Call, siblings: Sequence[dict[str, int]]) -> None:
        names = call.args[1:]
        sections = shard_sections(names)

        def answer(texts: Sequence[bytes]) -> None:
            text = merge_info(names, texts, self._own_info(siblings), self._shard_figures())
            self.sender.answer(call.request, verbatim(text, call.session.protocol))

        def combine(frames: list[bytes]) -> None:
            failed = next((frame for frame in frames if is_error(frame)), None)
            if failed is not None:
                self.sender.answer(call.request, failed)
            else:
                answer([bulk_value(frame) or b"" for frame in frames])

        if not sections:
            answer([])
            return
        self.sender.fan_out(call.session, call.request, encode_request([b"INFO", *sections]), combine)

    def _shard_figures(self) -> list[ShardFigures]:
        figures = []
        for shard in self.cluster.map.shards:
            watch = self.cluster.watch_of(shard.primary) if shard.primary is not None else None
            address = f"{shard.primary.host}:{shard.primary.port}" if shard.primary is not None else ""
            keys = watch.keys if watch is not None else 0
            figures.append(ShardFigures(shard.index, shard.id.decode(), address, shard.ranges, keys))
        return figures


def _scan_count(args: Sequence[bytes]) -> int:
    """The COUNT of a SCAN.  Whether the options are right, the shard says."""
    options = [word.lower() for word in args[2::2]]
    given = args[3 + 2 * options.index(b"count") :][:1] if b"count" in options else []
    return int(given[0]) if given and given[0].isdigit() else SCAN_COUNT
