"""SCAN over all shards with cursors that carry everything, so that any proxy goes on where another stopped.

An iteration has one position, a *slot*: every slot below it has been covered, whichever shard owned it at the time.
Slots do not change their order when they change their owner, so a moved slot is met where it stands, on its new
owner, and a key that was there all along is never missed.  Keys may be seen twice, as with any SCAN.  Two ways, by
what the engine's own cursor says:

*positional* (Valkey 8.0, Redis 7.4 and newer): a node of a cluster keeps one table per slot, walks the slots upwards,
and the low 14 bits of its cursor are the slot (``kvstore.c``).  Each step asks the owner of the slot stood at; what a
reply covers is believed up to the end of the range that node owns without a gap, and the next step begins behind it.

*anchored* (older engines): a shard is read from beginning to end, and the position is a slot of it, the anchor.
While the map stays as it was, each shard is read once, at its lowest slot.  Once the map has changed, the shard being
read starts again and from there on every contiguous range has its owner read anew: more work, nothing lost.

A cursor is a decimal of four fields, lowest first: slot (14 bits), mark of the node (anchored: and of the map) that
gave the engine's cursor (12 bits), "not by plan" (1 bit: the map has changed), engine cursor.  A node's cursor means
nothing to another node (their hash seeds differ), nor to the same one restarted; so where the mark is another, that
slot (anchored: that shard) starts again.  Clients parse cursors as 64-bit integers, JavaScript as 53: 26 bits stay
below 2^53 for the engine's part, which positional is a slot of several hundred million keys.  Above, cursors are
still right where the client's integers are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

from proxy.codec.reply import error
from proxy.routing.slot_map import SLOTS, Ranges, Shard, SlotMap, intersect_ranges

SLOT_BITS = 14
MARK_BITS = 12
ENGINE_SHIFT = SLOT_BITS + MARK_BITS + 1
_SLOT_MASK = (1 << SLOT_BITS) - 1
_MARK_MASK = (1 << MARK_BITS) - 1
MAX_CURSOR = (1 << 64) - 1

Life = Callable[[Shard], bytes]
"""Names the life of a shard's primary in which its cursors stay valid: best the run id, which a restart changes, of the
very server the step is sent to."""


class BadCursor(Exception):
    """The client's cursor is none.  ``frame`` is the engine's error."""

    frame = error(b"ERR invalid cursor")


class NotServed(Exception):
    """The slot the iteration stands at has no shard now; going on would lose its keys."""

    def __init__(self, slot: int) -> None:
        super().__init__(slot)
        self.slot = slot


class Cursor(NamedTuple):
    """A proxy cursor unpacked.  ``engine`` is the engine's cursor (positional: without the slot)."""

    slot: int = 0
    mark: int = 0
    changed: bool = False
    engine: int = 0

    @classmethod
    def decode(cls, text: bytes) -> Cursor:
        """Read what the client sent.  Raises BadCursor where the engine would."""
        number = _unsigned(text)
        mark = number >> SLOT_BITS & _MARK_MASK
        return cls(number & _SLOT_MASK, mark, bool(number >> ENGINE_SHIFT - 1 & 1), number >> ENGINE_SHIFT)

    def encode(self) -> bytes:
        """The decimal for the client: ``b"0"`` for DONE alone."""
        number = self.engine << ENGINE_SHIFT | self.changed << ENGINE_SHIFT - 1 | self.mark << SLOT_BITS | self.slot
        return b"%d" % number


DONE = Cursor()
"""What :meth:`Scan.after` returns at the end; as an argument it means the beginning."""


class Step(NamedTuple):
    """What to ask next: ``SCAN <engine_cursor> ...`` at the primary of the shard with index ``shard``."""

    shard: int
    engine_cursor: int
    slot: int
    mark: int
    changed: bool
    owned: Ranges
    """What the map said the shard owned when the step was made."""


class Scan:
    """The rules of one cluster.

    ``positional``: the engine's cursors carry the slot (Valkey 8.0, Redis 7.4 and newer).  ``portable``: a shard's
    cursors mean the same on each of its nodes and over restarts (one ``hash-seed`` for the cluster).  ``life``: see
    :data:`Life`; else the primary's node id is used.
    """

    __slots__ = ("_life", "_portable", "_positional")

    def __init__(self, *, positional: bool, portable: bool = False, life: Life | None = None) -> None:
        self._positional = positional
        self._portable = portable
        self._life = life or _primary_id

    def next_step(self, slot_map: SlotMap, cursor: Cursor) -> Step:
        """Whom to ask, and with which cursor.  Raises NotServed."""
        shard = slot_map.owner(cursor.slot)
        if shard is None:
            raise NotServed(cursor.slot)
        mark = self._mark(slot_map, shard)
        same = cursor.mark == mark
        engine = cursor.engine if same else 0
        if self._positional:
            engine = engine << SLOT_BITS | cursor.slot
            return Step(shard.index, engine, cursor.slot, mark, False, shard.ranges)
        changed = cursor.changed or not (same or cursor == DONE)
        return Step(shard.index, engine, cursor.slot, mark, changed, shard.ranges)

    def after(self, slot_map: SlotMap, step: Step, returned: int, owned: Ranges | None = None) -> Cursor:
        """Where the iteration stands after the reply to ``step``; DONE when it is over.

        ``returned`` is the cursor the shard gave; ``slot_map`` the map as it is now.  ``owned``: the slot ranges
        which that shard said it owned both before and after the SCAN (:func:`agreed_ranges`).  Without it the maps of
        the step and of now are believed, and a move they have not learnt of yet can hide a slot's keys.  What
        ``after`` cannot prove covered, it lets the next step ask again.
        """
        if self._positional:
            return self._positional_after(slot_map, step, returned, owned)
        return self._anchored_after(slot_map, step, returned)

    def _positional_after(self, slot_map: SlotMap, step: Step, returned: int, owned: Ranges | None) -> Cursor:
        if owned is None:
            # A slot that arrived while the shard was asked was not looked at: only what was owned all along counts.
            shard = slot_map.shard(step.shard)
            owned = agreed_ranges(step.owned, shard.ranges) if shard is not None else ()
        end = _range_end(owned, step.slot)
        if end is None:
            # Not the owner (any more): what it said proves nothing.  The flag keeps slot 0 from looking like the end.
            return Cursor(step.slot, changed=True)
        slot = returned & _SLOT_MASK
        if returned and step.slot <= slot <= end:
            return Cursor(slot, step.mark, False, returned >> SLOT_BITS)
        return Cursor(end + 1) if end + 1 < SLOTS else DONE

    def _anchored_after(self, slot_map: SlotMap, step: Step, returned: int) -> Cursor:
        shard = slot_map.owner(step.slot)
        if shard is None or self._mark(slot_map, shard) != step.mark:
            return Cursor(step.slot, changed=True)
        if returned:
            return Cursor(step.slot, step.mark, step.changed, returned)
        following = _next_range(shard, step.slot) if step.changed else _next_shard(slot_map, step.slot)
        if following >= SLOTS:
            return DONE
        owner = slot_map.owner(following)
        mark = self._mark(slot_map, owner) if owner is not None else 0
        return Cursor(following, mark, step.changed)

    def _mark(self, slot_map: SlotMap, shard: Shard) -> int:
        life = b"" if self._portable else self._life(shard)
        parts = [shard.id, life] if self._positional else [_digest(slot_map), shard.id, life]
        # 0 is left for "no node yet".
        return 1 + zlib.crc32(b"\0".join(parts)) % _MARK_MASK


def agreed_ranges(before: Ranges, after: Ranges) -> Ranges:
    """Slots a shard owned during a SCAN: those it owned both before and after it.

    Read them by pipelining ``CLUSTER SLOTS``, ``SCAN``, ``CLUSTER SLOTS`` to the shard in one packet.
    """
    return intersect_ranges(before, after)


def _range_end(ranges: Ranges, slot: int) -> int | None:
    return next((last for first, last in ranges if first <= slot <= last), None)


def _next_range(shard: Shard, slot: int) -> int:
    end = _range_end(shard.ranges, slot)
    return SLOTS if end is None else end + 1


def _next_shard(slot_map: SlotMap, slot: int) -> int:
    """The next lowest slot of a shard, or the next slot without one: the iteration may not step over its keys."""
    starts = [shard.lowest_slot for shard in slot_map.shards if shard.lowest_slot > slot]
    unserved = [first for first, _ in slot_map.missing() if first > slot] if not slot_map.covered() else []
    return min([*starts, *unserved], default=SLOTS)


def _digest(slot_map: SlotMap) -> bytes:
    owners = sorted((shard.id, shard.ranges) for shard in slot_map.shards if shard.ranges)
    return b"%08x" % zlib.crc32(repr(owners).encode())


def _primary_id(shard: Shard) -> bytes:
    return shard.primary.node_id if shard.primary is not None else b""


def _unsigned(text: bytes) -> int:
    """``string2ull`` of the engine (util.c): strtoull's leniency with leading space and a plus sign, nothing behind."""
    digits = text.partition(b"\0")[0].lstrip(b" \t\n\v\f\r")
    digits = digits[1:] if digits[:1] == b"+" else digits
    if not digits.isdigit() or len(digits.lstrip(b"0")) > 20:
        raise BadCursor
    number = int(digits)
    if number > MAX_CURSOR:
        raise BadCursor
    return number
