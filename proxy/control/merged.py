"""RANDOMKEY, SCAN, INFO, SCRIPT KILL: answers that take several steps, or more than the shards' replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import trio

from proxy.codec import encode_request
from proxy.codec.reply import OK, array, bulk, bulk_value, decode, elements, error, integer_value, is_error, verbatim
from proxy.control.call import Call, Handler
from proxy.control.sending import NOT_SERVED, Sender
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
from proxy.topology.lanes import Owner
from shard.client import ConnectionLost, ReplyError

SCAN_RETRY = 0.02  # seconds before a SCAN whose slot is not served is tried again


class MergedCommands:
    """See the module.  ``own_info()`` gives INFO's sections about the proxy itself; ``patience`` in seconds."""

    def __init__(self, sender: Sender, own_info: Callable[[], dict[str, dict[str, object]]], patience: float) -> None:
        self.sender = sender
        self.cluster = sender.cluster
        self.patience = patience
        self._own_info = own_info
        self._random = Random()
        self._scan_cache: tuple[bytes, Ranges] = (b"", ())
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
            if failed is not None:
                frame = failed
                break
            drawn = choose_shard([integer_value(each) for each in sizes], self._random)
            if drawn is None:
                break
            lane = self.sender.lane(call.session, shards[drawn])
            frame = await self.sender.ask(call.session, lane, call.request.raw, call.request)
            if frame not in (b"$-1\r\n", b"_\r\n"):
                break
        self.sender.answer(call.request, frame)

    async def _scan(self, call: Call) -> None:
        """One step of SCAN over shards.  The shard says before and behind it which slots it owns."""
        try:
            cursor = Cursor.decode(call.args[1])
        except BadCursor as bad:
            self.sender.answer(call.request, bad.frame)
            return
        deadline = trio.current_time() + self.patience
        scan = Scan(positional=self._cursors_carry_slots(), life=self._life_of(call.session))
        while True:
            frame = await self._scan_step(call.session, scan, cursor, call.args)
            if frame is not None or trio.current_time() > deadline:
                break
            self.cluster.hint()
            await trio.sleep(SCAN_RETRY)
        self.sender.answer(call.request, frame or NOT_SERVED)

    async def _scan_step(self, session: Session, scan: Scan, cursor: Cursor, args: Sequence[bytes]) -> bytes | None:
        """The reply to a SCAN with ``cursor``; None when the slot it stands at is not served now."""
        slot_map = self.cluster.map
        try:
            step = scan.next_step(slot_map, cursor)
        except NotServed:
            return None
        lane = self.sender.lane(session, step.shard)
        if not lane.attached:
            return None
        slots = encode_request([b"CLUSTER", b"SLOTS"])
        raw = encode_request([args[0], b"%d" % step.engine_cursor, *args[2:]])
        before, frame, after = await self.sender.together(session, lane, [slots, raw, slots])
        if lane.closed or any(is_error(each) for each in (before, after)):
            return None
        if is_error(frame):
            return None if frame.startswith(NOT_HERE) else frame
        owned = agreed_ranges(self._own_ranges(lane, before), self._own_ranges(lane, after))
        returned, keys = elements(frame)
        following = scan.after(self.cluster.map, step, int(bulk_value(returned) or 0), owned)
        text = following.encode()
        if following != DONE and text == b"0":
            text = Cursor(following.slot, following.mark, True, following.engine).encode()
        return array([bulk(text), keys])

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

    def _info(self, call: Call) -> None:
        names = call.args[1:]
        sections = shard_sections(names)

        def answer(texts: Sequence[bytes]) -> None:
            text = merge_info(names, texts, self._own_info(), self._shard_figures())
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
