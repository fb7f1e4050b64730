"""Functions: a shard that has no library at all gets those of the others when one of their functions is called on it.

The engine replicates libraries within a shard, and FUNCTION LOAD and its kin go to every shard; but a shard that joins
begins with none.  (The engine's own tool copies them there, ``valkey-cli --cluster add-node``; others do not.)  A shard
that has libraries and lacks this one is left as it is: that may be somebody's intention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import structlog
import trio

from proxy.codec import decode_request, encode_request
from proxy.codec.reply import bulk_value, decode, is_error
from proxy.control.sending import Sender
from proxy.dataplane import Lane, Request
from proxy.topology.redirects import Redirects

NOT_FOUND = b"-ERR Function not found\r\n"
CALLS = frozenset({b"fcall", b"fcall_ro"})
LIST = encode_request([b"FUNCTION", b"LIST"])
DUMP = encode_request([b"FUNCTION", b"DUMP"])
PAUSE = 0.05  # seconds between two looks at the shards' libraries: a function that is nowhere may be asked for at will


class Missed(NamedTuple):
    """A call whose function the shard does not have."""

    lane: Lane
    name: bytes
    decided: Callable[[bool], None]
    """With True it is sent again, with False it is told so."""

    @property
    def shard(self) -> int:
        return self.lane.shard


class Libraries:
    """See the module.  ``may_write()``: no pause postpones what writes, and all that comes behind it on its lane."""

    def __init__(self, sender: Sender, redirects: Redirects, may_write: Callable[[], bool]) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.redirects = redirects
        self._may_write = may_write
        self.log = structlog.get_logger("control")
        self._missed: list[Missed] = []
        self._wanted = trio.Event()

    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        """A reply says that there is no such function: look whether another shard has it, or pass the reply on."""
        args = decode_request(request.raw)
        life = lane.owner.run_id
        if args[0].lower() not in CALLS:
            if request.write and request.client is not None:
                request.client.wrote(lane)  # a script said so itself, and may have written before
            self.plane.answer(request, frame)
        elif lane.owner.leased or request.sticks or request.mended == life:
            self.plane.answer(request, frame)
        else:
            request.mended = life
            self._missed.append(Missed(lane, args[1], self.redirects.missed(request, lane, frame)))
            self._wanted.set()

    async def run(self) -> None:
        """Deal with what was missed, for ever; one look serves all who came before it."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self._look()
            await trio.sleep(PAUSE)

    async def _look(self) -> None:
        missed, self._missed = self._missed, []
        restored: dict[int, bool] = {}
        lists = await self._lists()
        for each in missed:
            if each.shard not in restored:
                restored[each.shard] = await self._restore(each, lists)
        with self.plane.turn():
            for each in missed:
                each.decided(restored[each.shard])
        self.redirects.flush()

    async def _lists(self) -> dict[int, bytes]:
        """Each shard's libraries, as FUNCTION LIST tells."""
        shards = self.sender.cluster.serving()
        lists: dict[int, bytes] = {}

        async def one(shard: int) -> None:
            lists[shard] = await self.sender.ask_shard(shard, LIST)

        async with trio.open_nursery() as nursery:
            for shard in shards:
                nursery.start_soon(one, shard)
        return lists

    async def _restore(self, missed: Missed, lists: dict[int, bytes]) -> bool:
        """Give a shard without libraries those of one that has the function."""
        if lists.get(missed.shard) != b"*0\r\n" or not self._may_write():
            return False
        donor = next((shard for shard, reply in lists.items() if missed.name.lower() in registered(reply)), None)
        if donor is None:
            return False
        dump = await self.sender.ask_shard(donor, DUMP)
        if is_error(dump):
            return False
        restore = encode_request([b"FUNCTION", b"RESTORE", bulk_value(dump) or b""])
        if is_error(await self.sender.ask_shard(missed.shard, restore)):
            return False
        self.log.info("function libraries copied to a shard that had none", shard=missed.shard, source=donor)
        return True


def registered(reply: bytes) -> dict[bytes, frozenset[bytes]]:
    """The functions in a FUNCTION LIST reply (RESP2), in small letters, and what they declare (``no-writes`` ...).

    The engine takes their names in any (functions.c: functionDictType).
    """
    if is_error(reply):
        return {}
    libraries: Sequence[list[Any]] = decode(reply)
    found = {}
    for library in libraries:
        for function in _pairs(library)[b"functions"]:
            fields = _pairs(function)
            found[fields[b"name"].lower()] = frozenset(fields[b"flags"])
    return found


def _pairs(values: list[Any]) -> dict[bytes, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))
