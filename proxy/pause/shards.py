"""The shards' own pauses: PAUSE WRITE at every primary, short, and renewed while the proxy that set the pause lives.

What this is for, where clients are held by the proxies anyway: a paused primary expires and evicts nothing, and takes
no write by another way.  Some facts the code leans on:

* A write that meets a paused primary stands in the way of all that comes behind it on its lane, for as long as the
  pause lasts.  So none is paused before what was sent to it is answered, however long that takes.
* A pause is its node's, and does not pass to a replica that takes over: whoever is primary then is paused anew.
* CLIENT PAUSE again never makes one shorter, and CLIENT and what probes ask are not postponed by PAUSE WRITE.
* A node looks whether its pause is over ten times a second, so its end is told to it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from proxy.topology.cluster import Cluster
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

LEASE = 1.0  # seconds for which a primary is paused at a time
RENEW = 0.25  # seconds between two renewals
PATIENCE = 0.25  # seconds for one primary to answer: a second one that hangs must not have a third run out
BEGIN = 1.0  # seconds for which the answer to CLIENT PAUSE waits for primaries that have much to do before
SAY_AGAIN = 60.0  # seconds before it is said again that one could not be paused

Address = tuple[str, int]
Words = tuple[str | int, ...]


class _Grip:
    """One shard's primary, as far as it is paused from here."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        """One word to the primary at a time: a renewal must not come behind the end."""
        self.connection: ControlConnection | None = None
        self.meant: Address | None = None
        """The node that is paused, or to be paused when it has done what was sent to it."""
        self.taken = trio.Event()
        """It has been told once."""

    def is_on(self, address: Address) -> bool:
        """Whether there is a connection to the node."""
        kept = self.connection
        return kept is not None and not kept.closed and (kept.host, kept.port) == address

    def is_lost(self, address: Address) -> bool:
        """Whether it was told, and may have been started anew since."""
        return self.taken.is_set() and not self.is_on(address)


class ShardPauses:
    """See the module.

    ``left()`` is for how many seconds more this proxy pauses; not above 0: it does not.  ``caught_up(shard)`` comes
    back when what clients sent to a shard before the pause, and what was held, is done.
    """

    def __init__(
        self, cluster: Cluster, left: Callable[[], float], caught_up: Callable[[int], Awaitable[None]]
    ) -> None:
        self.cluster = cluster
        self.log = structlog.get_logger("pause")
        self.held = False
        """Primaries may be paused from here."""
        self._left = left
        self._caught_up = caught_up
        self._grips: dict[int, _Grip] = {}
        self._wanted = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._say_again = -math.inf

    async def run(self) -> None:
        """Renew the pauses while there is one to be kept, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if self._left() > 0:
                    self._wanted.set()  # there will be a next time
                    await self._renew()

    async def _renew(self) -> None:
        version = self.cluster.map.version
        self._approach_all()
        await self._all(self._pause)
        with trio.move_on_after(min(RENEW, max(self._left(), 0.0))):
            while self.cluster.map.version == version:
                await self.cluster.updated.wait()

    async def take(self) -> None:
        """Pause the primaries, and keep them so: comes back when they are, or could not be told, or are too busy."""
        self.held = True
        self._wanted.set()
        self._approach_all()
        with trio.move_on_after(BEGIN):
            await self._all(self._pause)
            for grip in [grip for grip in self._grips.values() if grip.meant is not None]:
                await grip.taken.wait()

    async def end(self) -> None:
        """Let the primaries go on; comes back when they do, or cannot be told (it ends by itself then)."""
        self.held = False
        for grip in self._grips.values():
            grip.meant = None
        await self._all(self._unpause)
        if not self.held:
            for grip in self._grips.values():
                if grip.connection is not None:
                    grip.connection.abort()
            self._grips.clear()

    def _approach_all(self) -> None:
        """Begin with the primaries that were not paused in this pause: they may lead since just now."""
        assert self._nursery is not None
        for shard in self.cluster.serving():
            node = self.cluster.primary(shard)
            grip = self._grips.setdefault(shard, _Grip())
            if node is not None and (grip.meant != node.address or grip.is_lost(node.address)):
                grip.meant, grip.taken = node.address, trio.Event()
                self._nursery.start_soon(partial(self._approach, shard, grip, grip.taken))

    async def _approach(self, shard: int, grip: _Grip, taken: trio.Event) -> None:
        await self._caught_up(shard)
        if grip.taken is taken:
            await self._say(shard, self._words)
        taken.set()

    async def _all(self, work: Callable[[int], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            for shard in self.cluster.serving():
                nursery.start_soon(work, shard)

    async def _pause(self, shard: int) -> None:
        """Again: what is approached is told by who does that."""
        grip = self._grips.get(shard)
        if grip is not None and grip.taken.is_set():
            await self._say(shard, self._words)

    def _words(self, grip: _Grip, address: Address) -> Words | None:
        left = min(self._left(), LEASE)
        if left <= 0 or grip.meant != address:
            return None
        return ("CLIENT", "PAUSE", math.ceil(left * 1000), "WRITE")

    async def _unpause(self, shard: int) -> None:
        await self._say(shard, lambda grip, address: ("CLIENT", "UNPAUSE"))

    async def _say(self, shard: int, words: Callable[[_Grip, Address], Words | None]) -> None:
        """``words`` are asked for at their turn: they may have nothing to say by then."""
        grip = self._grips.setdefault(shard, _Grip())
        async with grip.lock:
            node = self.cluster.primary(shard)
            said = words(grip, node.address) if node is not None else None
            if said is None or node is None:
                return
            try:
                with trio.fail_after(PATIENCE):
                    connection = await self._connection(grip, node.address)
                    await connection.call(*said)
            except (ConnectionLost, ReplyError, trio.TooSlowError) as problem:
                if grip.connection is not None:
                    grip.connection.abort()
                self.cluster.hint()
                self._warn(node.address, str(problem) or f"no answer within {PATIENCE:g} s")

    async def _connection(self, grip: _Grip, address: Address) -> ControlConnection:
        if grip.connection is not None:
            if grip.is_on(address):
                return grip.connection
            grip.connection.abort()
        grip.connection = await self.cluster.connect(*address)
        return grip.connection

    def _warn(self, address: Address, reason: str) -> None:
        if trio.current_time() >= self._say_again:
            self._say_again = trio.current_time() + SAY_AGAIN
            self.log.warning("a primary is not told of a pause", node=format_address(*address), reason=reason)
