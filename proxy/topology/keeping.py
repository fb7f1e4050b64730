"""Keeping lanes connected: a task for each identity and shard, and one for each lane that is leased anew."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from proxy.acks.incarnation import Incarnation, Life, Stamp
from proxy.codec import encode_request
from proxy.codec.reply import error
from proxy.dataplane import Lane
from proxy.routing.slot_map import Node
from proxy.topology.connecting import Connected, Connector, keep_alive
from proxy.topology.logins import Denied, Logins
from proxy.topology.owners import Identity, LaneSet, Owner
from shard.client import ConnectionLost, Credentials, ReplyError

if TYPE_CHECKING:
    from proxy.topology.lanes import Lanes

CONNECTING = 32  # leased lanes of one shard that shake hands at a time: more would only make each other late
LOCKED_OUT_LOOK = 0.05  # seconds between two looks whether somebody needs a lane whose user is not let in
HERD = 0.001  # seconds per identity over which those that wait for the same node spread when it is back


class Attempt(NamedTuple):
    """A lane is being connected."""

    target: Node
    scope: trio.CancelScope


class Keeper:
    """See the module; its arguments are those of ``Lanes``."""

    def __init__(
        self,
        lanes: Lanes,
        credentials: Credentials,
        connect_timeout: float,
        *,
        primary: Callable[[int], Node | None],
        observe: Callable[[Life], Incarnation | None],
        stamp: Callable[[int, Incarnation], Stamp],
        trouble: Callable[[], None],
        logins: Logins,
        denied: Callable[[Lane, bytes], None],
        expelled: Callable[[Identity], None],
        passwords: Callable[[Identity], set[bytes]],
        outdated: Callable[[Lane, frozenset[bytes]], None],
    ) -> None:
        self.lanes = lanes
        self.connector = Connector(credentials, connect_timeout, logins, self.leads)
        self._primary = primary
        self._observe = observe
        self._stamp = stamp
        self._trouble = trouble
        self._logins = logins
        self._denied = denied
        self._expelled = expelled
        self._passwords = passwords
        self._outdated = outdated
        self._attempts: defaultdict[int, set[Attempt]] = defaultdict(set)
        self._connecting: defaultdict[int, trio.CapacityLimiter] = defaultdict(lambda: trio.CapacityLimiter(CONNECTING))

    def leads(self, node: Node, shard: int) -> bool:
        """Whether it is the shard's present primary."""
        present = self._primary(shard)
        return present is not None and present.address == node.address

    def give_up_vain(self, shard: int, anew: bool) -> None:
        """End attempts to connect to who leads the shard no more, or, ``anew``, to whoever leads it."""
        for attempt in list(self._attempts[shard]):
            if anew or not self.leads(attempt.target, shard):
                attempt.scope.cancel()

    async def keep(self, lanes: LaneSet, shard: int) -> None:
        """Keep one connected, for as long as its identity has any."""
        pause = self.lanes.settings.reconnect_min
        while not lanes.dropped:
            wake = lanes.wake[shard]
            target = None if lanes[shard].attached or shard in self.lanes.held else self._primary(shard)
            if target is None:
                await wake.wait()
                continue
            try:
                await self._reach(lanes, shard, target)
            except Denied as denied:
                await self._locked_out(lanes, shard, error(str(denied)))
            except (ConnectionLost, ReplyError, OSError):
                self._trouble()
                with trio.move_on_after(pause * random.uniform(0.5, 1.5)) as waited:
                    await wake.wait()
                if not waited.cancelled_caught:
                    await trio.sleep(random.uniform(0, HERD * len(self.lanes.sets)))
                pause = min(pause * 2, self.lanes.settings.reconnect_max)
            else:
                pause = self.lanes.settings.reconnect_min

    async def _reach(self, lanes: LaneSet, shard: int, target: Node) -> None:
        """Connect the lane; or not, if there is a reason to look again at once."""
        with self._attempt(shard, target):
            made = await self.connector.connect(target, lanes.identity, shard)
            await self._part_from_outdated(lanes, shard, made)
            self._still(target, shard, made)
            if lanes.dropped or self.connector.is_outdated(made):
                made.connection.abort()
                return
            lanes.denied.discard(shard)
            self._attach(lanes[shard], shard, made)

    @contextmanager
    def _attempt(self, shard: int, target: Node) -> Iterator[None]:
        """Give up what is done to connect to a node as soon as it is in vain (``wake``), without an error."""
        with trio.CancelScope() as scope:
            attempt = Attempt(target, scope)
            self._attempts[shard].add(attempt)
            try:
                yield
            finally:
                self._attempts[shard].discard(attempt)

    async def _part_from_outdated(self, lanes: LaneSet, shard: int, made: Connected) -> None:
        """A node that closed a lane and lives on may have deleted the user, and have another of this name by now.

        The sessions of the former, who are not let in with what they gave, must not go on as the latter.
        """
        if lanes.lost.get(shard) == made.life.run_id:
            refused = await self._logins.refused(
                made.connection, lanes.identity.user, self._passwords(lanes.identity)
            )
            if refused and not lanes[shard].attached:
                self._outdated(lanes[shard], refused)
        lanes.lost.pop(shard, None)

    async def _locked_out(self, lanes: LaneSet, shard: int, frame: bytes) -> None:
        """The user is not let in: who needs the lane is told; comes back when it is worth another try."""
        lanes.denied.add(shard)
        wake = lanes.wake[shard]
        self._denied(lanes[shard], frame)
        if all(each in lanes.denied for each in lanes.wake if self._primary(each) is not None):
            self._expelled(lanes.identity)
        while not lanes[shard].fifo and not lanes.dropped:
            with trio.move_on_after(LOCKED_OUT_LOOK):
                await wake.wait()
                return

    def _still(self, target: Node, shard: int, made: Connected) -> None:
        """The shard may have got another primary while we connected to this one."""
        if not self.leads(target, shard) or shard in self.lanes.held:
            made.connection.abort()
            raise ConnectionLost("the shard has, or will have, another primary by now")

    def _attach(self, lane: Lane, shard: int, made: Connected) -> None:
        incarnation = self._observe(made.life)
        if incarnation is None:
            made.connection.abort()
            raise ConnectionLost("the node is not a primary")
        owner: Owner = lane.owner
        owner.node_id = made.life.node_id
        owner.run_id = made.life.run_id
        owner.client_id = made.client_id
        owner.incarnation = incarnation
        self.lanes.connected(shard).add(lane)
        pushes = owner.identity.protocol == 3
        sock = made.connection.detach()
        keep_alive(sock)
        greeting = self._greeting(owner.identity)
        self.lanes.plane.attach(lane, sock, self._stamp(shard, incarnation), pushes, greeting)
        if owner.identity.own and not owner.leased:
            self.lanes.disturbed(owner.identity.own)

    def _greeting(self, identity: Identity) -> list[bytes]:
        """What makes a new connection what its identity says."""
        modes = [encode_request([b"CLIENT", mode.encode(), b"ON"]) for mode in identity.modes]
        return modes + self.lanes.greetings.get(identity.own, [])

    async def connect_leased(self, lane: Lane, identity: Identity, shard: int) -> None:
        """Connect a new one, unless it is not wanted any more."""
        async with self._connecting[shard]:
            while shard in self.lanes.held:
                await self.lanes.held[shard].wait()
            while not (lane.closed or lane.attached):  # by now whoever wanted it may have gone
                await self._connect_lane(lane, identity, shard)

    async def _connect_lane(self, lane: Lane, identity: Identity, shard: int) -> None:
        target = self._primary(shard)
        try:
            if target is None:
                raise ConnectionLost("the shard has no primary")
            with self._attempt(shard, target):
                made = await self.connector.connect(target, identity)
                self._still(target, shard, made)
                if lane.closed or self.connector.is_outdated(made):
                    made.connection.abort()
                else:
                    self._attach(lane, shard, made)
        except Denied as denied:
            self._denied(lane, error(str(denied)))
            lane.lose(str(denied))
        except (ConnectionLost, ReplyError, OSError) as problem:
            self._trouble()
            lane.lose(str(problem))
