"""One switchover, step by step; what keeps it from its end is undone.

The order, after the page of CLIENT PAUSE (https://valkey.io/commands/client-pause/):

1. ``approach``: the replica comes close to its primary while everything goes on.  Nobody waits yet.
2. ``hold``: this proxy sends the shard nothing more, and what is under way there is answered.  The stall begins.
3. ``pause``: the primary postpones the writes of everybody else: other proxies', and of those who talk to it directly.
4. ``level``: the replica takes in the last bytes of a stream that stands still now.
5. ``promote``: CLUSTER FAILOVER, the engine's own, which again lets nothing through that the replica lacks.
6. ``route``: the new map is taken as soon as the nodes agree on it; the hold ends with that and the primary of before,
   a replica now, is unpaused: it sends those it had postponed to their new primary.
7. ``replica``: the primary of before follows the new one and is in step.  Now WAIT has somebody to count.

Until 5 is answered nothing has changed but pauses, which are undone.  Should this process die on the way, the pause
ends by itself very soon (it is short, and renewed while the switchover lives), and so does a failover nobody votes for
(within the stall that is allowed).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import trio

from proxy.routing.slot_map import Node
from proxy.switchover.choice import Choice, name_of, text_of
from proxy.topology.cluster import Cluster
from shard import handover
from shard.client import ConnectionLost, ControlConnection, ReplyError

APPROACH = 10.0  # seconds for a replica to come close, while nobody waits
CLOSE = 1 << 20  # bytes that the last steps have time for
LOOK = 0.002  # seconds between two looks at a condition while commands are held
SOON = 0.02  # the same while nobody waits
DRAIN = 0.25
"""Seconds for what is under way to be answered; what takes longer is answered, or redirected, by the engine."""
AGREE = 2.0  # seconds for the nodes to agree on the new primary, behind its promotion
BACK = 15.0  # seconds for the former primary to be in step as a replica
SOONER = 0.25  # seconds by which the engine gives up before: it looks ten times a second (cluster_legacy.c)
LEEWAY = 0.5  # seconds for a promotion, whatever was left of the stall that is allowed, and for the pause to be ended
LEASE = 0.5  # seconds for which the primary is paused at a time
RENEW = 0.1  # seconds between two renewals


class RolledBack(Exception):
    """It could not be done and everything is as before: one line that says why."""


class Incomplete(Exception):
    """The new primary leads, and something behind that is not as it should be: one line."""


class Holds(NamedTuple):
    """What the rooms around do for a switchover; each takes the shard's index."""

    hold: Callable[[int], None]
    """Park the shard's commands."""
    let_go: Callable[[int], None]
    """Send them to whoever leads the shard by now."""
    busy: Callable[[int], bool]
    """Whether something that was sent to the shard is not answered yet."""
    served: Callable[[int], bool]
    """Whether commands can be sent to the primary."""


Tell = Callable[[str, dict[str, Any]], None]
"""``tell(step, details)``: the step begins."""


class Procedure:
    """See the module.  ``most`` is the longest stall allowed, in seconds."""

    def __init__(self, cluster: Cluster, holds: Holds, choice: Choice, *, most: float, tell: Tell) -> None:
        self.cluster = cluster
        self.holds = holds
        self.choice = choice
        self.most = most
        self.stall = 0.0
        """Seconds for which commands were held."""
        self.silence = 0.0
        """Seconds from the hold to where the new primary's replica acknowledges again."""
        self._tell = tell
        self._held_at = 0.0
        self._deadline = 0.0
        self._promoted = False
        self._pausing = False
        self._unpaused = trio.Event()
        self._timeouts: list[bytes | None] = []

    async def run(self, nursery: trio.Nursery) -> None:
        """``nursery`` keeps the primary paused meanwhile.  Raises ``RolledBack``, ``Incomplete``."""
        try:
            async with await self._reach(self.choice.replica) as replica:
                async with await self._reach(self.choice.primary) as primary:
                    await self._approach(primary, replica)
                    async with self._held(primary):
                        await self._switch(primary, replica, nursery)
                await self._replica_is_back(replica)
        except (ConnectionLost, ReplyError) as error:
            raise self._failure(f"{error}") from None

    async def _reach(self, node: Any) -> ControlConnection:
        return await self.cluster.connect(node.host, node.port)

    def _failure(self, why: str) -> Exception:
        if self._promoted:
            return Incomplete(f"{text_of(self.choice.replica)} leads {name_of(self.choice.shard)} now, but {why}")
        if why.startswith(f"{text_of(self.choice.primary)}: "):  # as ConnectionLost says it
            return RolledBack(f"{why}; the shard's nodes decide now who leads, as after any failure")
        return RolledBack(f"{why}; {text_of(self.choice.primary)} goes on leading {name_of(self.choice.shard)}")

    # -- while nobody waits ----------------------------------------------------------------------------
    async def _approach(self, primary: ControlConnection, replica: ControlConnection) -> None:
        self._tell("approach", {"primary": text_of(self.choice.primary), "replica": text_of(self.choice.replica)})
        # Looked at before that: another switchover changes them only while it pauses.
        self._timeouts = [await handover.failover_timeout(node) for node in (primary, replica)]
        if await handover.is_paused(primary):
            raise RolledBack("clients are paused there (CLIENT PAUSE, or another switchover); try again behind that")
        deadline = trio.current_time() + APPROACH
        while True:
            ahead, behind = await handover.standing(primary), await handover.standing(replica)
            if not ahead.leads:
                raise RolledBack(f"{text_of(self.choice.primary)} leads no more; look who does and try again")
            missing = ahead.offset - behind.offset
            if behind.linked and missing <= CLOSE:
                return
            if trio.current_time() > deadline:
                what = f"is still {missing} bytes behind" if behind.linked else "has no link to its primary"
                raise self._failure(f"replica {text_of(self.choice.replica)} {what} after {APPROACH:g} s")
            await trio.sleep(SOON)

    # -- while commands are held ---------------------------------------------------------------------------
    @asynccontextmanager
    async def _held(self, primary: ControlConnection) -> AsyncIterator[None]:
        """Commands are held here, and writes postponed there, until the block ends in whatever way it does."""
        index = self.choice.shard.index
        self._held_at = time.monotonic()
        self._deadline = trio.current_time() + self.most
        self._tell("hold", {})
        self.holds.hold(index)
        try:
            await self._until(lambda: not self.holds.busy(index), DRAIN)
            yield
        finally:
            self.holds.let_go(index)
            if self._pausing:
                with trio.CancelScope(shield=True):
                    await self._unpause(primary)
            if not self.stall:  # nobody leads in its place: it goes on
                await self._until(lambda: self.holds.served(index), AGREE)
                self.stall = time.monotonic() - self._held_at

    async def _unpause(self, primary: ControlConnection) -> None:
        """Whatever became of the connection: the pause may stand there."""
        self._pausing = False
        self._unpaused.set()
        with trio.move_on_after(LEEWAY):
            try:
                if not primary.closed:
                    await handover.unpause(primary)
                    return
                async with await self._reach(self.choice.primary) as again:
                    await handover.unpause(again)
            except (ConnectionLost, ReplyError):
                return  # it ends by itself, or with the node

    async def _keep_paused(self, primary: ControlConnection) -> None:
        """Until it is unpaused, which then comes behind the last renewal on the same connection.

        Should a renewal fail or be late, the engine's own failover still lets nothing through that the replica lacks.
        """
        while True:
            with trio.move_on_after(RENEW):
                await self._unpaused.wait()
            if self._unpaused.is_set():
                return
            with suppress(ConnectionLost, ReplyError):
                await handover.pause_writes(primary, LEASE)

    async def _switch(self, primary: ControlConnection, replica: ControlConnection, nursery: trio.Nursery) -> None:
        self._tell("pause", {})
        self._pausing = True
        await handover.pause_writes(primary, LEASE)
        nursery.start_soon(self._keep_paused, primary)
        offset = (await handover.standing(primary)).offset
        self._tell("level", {"offset": offset})
        # Half of the time for each: a failover that is asked for and not waited for could come when nobody is ready.
        missing = await handover.level(replica, offset, self._deadline - self.most / 2)
        if missing:
            over = f"when half of {self.most:g} s was over"
            raise self._failure(f"replica {text_of(self.choice.replica)} was still {missing} bytes behind {over}")
        self._tell("promote", {})
        left = max(LEEWAY, self._deadline - trio.current_time())
        self._deadline = trio.current_time() + left
        # The engine gives up first: elected behind our back, the replica would lack what was let through by then.
        nodes = list(zip((primary, replica), self._timeouts, strict=True))
        async with handover.giving_up_at(self._deadline - SOONER, self.cluster.connect, nodes) as renew:
            await self._promote(replica, left, renew)
        await self._unpause(primary)  # it pauses by itself, until it knows that it leads no more
        await self._route()

    async def _promote(self, replica: ControlConnection, left: float, renew: handover.Renew) -> None:
        who = f"replica {text_of(self.choice.replica)}"
        try:
            self._promoted = await handover.promote(replica, self._deadline, renew)
        except ConnectionLost:
            raise self._failure(f"{who} stopped answering when told to take over, and may do so yet") from None
        except ReplyError:
            if not (await handover.standing(replica)).leads:
                raise
            raise RolledBack(f"{who} leads already: somebody else had it take over meanwhile") from None
        if not self._promoted:
            raise self._failure(f"{who} was not elected within {left:.1f} s: too few primaries voted for it")

    async def _route(self) -> None:
        self._tell("route", {})
        index, address = self.choice.shard.index, self.choice.replica.address

        def routed() -> bool:
            leader = self.cluster.primary(index)
            return leader is not None and leader.address == address and self.holds.served(index)

        await self._until(routed, AGREE, self.cluster.hint)
        self.stall = time.monotonic() - self._held_at
        if not routed():
            raise self._failure(f"the nodes did not agree on that within {AGREE:g} s; the proxy goes on looking")

    async def _until(self, condition: Callable[[], bool], seconds: float, do: Callable[[], None] | None = None) -> None:
        """Come back when it holds, or the time is up."""
        deadline = trio.current_time() + seconds
        while not condition() and trio.current_time() < deadline:
            if do is not None:
                do()
            await trio.sleep(LOOK)

    # -- behind it -----------------------------------------------------------------------------------------
    async def _replica_is_back(self, replica: ControlConnection) -> None:
        former = self.choice.primary
        self._tell("replica", {"replica": text_of(former), "held_ms": round(self.stall * 1000)})
        deadline = trio.current_time() + BACK
        while not any(self._is(former, *place) for place in (await handover.standing(replica)).online):
            if trio.current_time() > deadline:
                raise self._failure(f"{text_of(former)} is not back as its replica after {BACK:g} s")
            await trio.sleep(LOOK if self.stall < 1 else SOON)
        self.silence = time.monotonic() - self._held_at

    def _is(self, node: Node, ip: str, port: int) -> bool:
        """Whether nodes call it so; where the proxy reaches it at another address, its port has to do."""
        found = self.cluster.named(ip, port)
        return found == node.address if found is not None else port == node.port
