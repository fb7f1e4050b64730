"""The lanes: one per identity and shard, kept connected, and leased ones from a bounded pool."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import trio

from proxy.acks.incarnation import Incarnation, Life, Stamp, parse_info
from proxy.dataplane import DataPlane, Lane, Lost
from proxy.routing.slot_map import Node
from proxy.settings import LaneSettings
from shard.client import Arg, ConnectionLost, ControlConnection, Credentials, ReplyError


class Identity(NamedTuple):
    """What a lane's connection is: sessions that agree in it may share one."""

    user: str
    database: int
    protocol: int


BASE = Identity("default", 0, 2)


class Owner:
    """What topology keeps on a lane."""

    __slots__ = ("client_id", "identity", "incarnation", "leased", "node_id", "retiring_since", "run_id", "shard")

    def __init__(self, identity: Identity, shard: int, leased: bool) -> None:
        self.identity = identity
        self.shard = shard
        self.leased = leased
        self.node_id = ""
        self.run_id = ""
        self.client_id = 0
        """The connection's CLIENT ID at the node."""
        self.incarnation: Incarnation | None = None
        self.retiring_since: float | None = None


class Busy(Exception):
    """No leased lane is to be had: the message is the error's text."""


class Connected(NamedTuple):
    """A connection with its handshake done."""

    connection: ControlConnection
    life: Life
    client_id: int


class Graves(NamedTuple):
    """Our connections to one process that ended here, and may not have there."""

    run_id: str
    client_ids: set[int]


class LaneSet(list[Lane]):
    """The lanes of one identity: by shard index; the last one parks what no shard serves."""

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self.identity = identity
        self.wake: dict[int, trio.Event] = {}


class Lanes:
    """See the module.

    ``primary(shard)`` is a shard's present primary; ``observe(life)`` its incarnation (None: no primary);
    ``stamp(shard, incarnation)`` what writes are remembered with; ``trouble()`` is called when a node
    could not be reached, so that topology looks again.
    """

    def __init__(
        self,
        plane: DataPlane,
        settings: LaneSettings,
        credentials: Credentials,
        connect_timeout: float,
        *,
        primary: Callable[[int], Node | None],
        observe: Callable[[Life], Incarnation | None],
        stamp: Callable[[int, Incarnation], Stamp],
        trouble: Callable[[], None],
    ) -> None:
        self.plane = plane
        self.settings = settings
        self.credentials = credentials
        self.connect_timeout = connect_timeout
        self.connects = 0
        self.sets: dict[Identity, LaneSet] = {}
        self.retiring: list[Lane] = []
        self._primary = primary
        self._observe = observe
        self._stamp = stamp
        self._trouble = trouble
        self._shards = 0
        self._nursery: trio.Nursery | None = None
        self._connected: defaultdict[int, set[Lane]] = defaultdict(set)
        self._graves: dict[str, Graves] = {}
        self._idle: defaultdict[tuple[Identity, int], list[Lane]] = defaultdict(list)
        self._leased: defaultdict[int, int] = defaultdict(int)
        self.base = self.of(BASE)

    async def run(self) -> None:
        """Keep every lane connected, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for lanes in self.sets.values():
                for shard in range(self._shards):
                    nursery.start_soon(self._keep, lanes, shard)
            await trio.sleep_forever()

    # -- sets --------------------------------------------------------------------------------------
    def of(self, identity: Identity) -> LaneSet:
        """The lanes of an identity, made (and soon connected) when first asked for."""
        lanes = self.sets.get(identity)
        if lanes is None:
            lanes = self.sets[identity] = LaneSet(identity)
            lanes.append(self.plane.new_lane(-1, Owner(identity, -1, leased=False)))
            for shard in range(self._shards):
                self._add(lanes, shard)
        return lanes

    def grow(self, shards: int) -> None:
        """There are shards up to this index now."""
        for shard in range(self._shards, shards):
            for lanes in self.sets.values():
                self._add(lanes, shard)
        self._shards = max(self._shards, shards)

    def _add(self, lanes: LaneSet, shard: int) -> None:
        lanes.insert(shard, self.plane.new_lane(shard, Owner(lanes.identity, shard, leased=False)))
        lanes.wake[shard] = trio.Event()
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, lanes, shard)

    def connected(self, shard: int) -> set[Lane]:
        """Every open lane of a shard: shared, leased, retiring."""
        return self._connected[shard]

    def all_connected(self) -> Iterator[Lane]:
        for lanes in self._connected.values():
            yield from lanes

    def restamp(self, shard: int, tick: int, generation: int) -> None:
        """Writes answered from now on are remembered with this tick and generation."""
        for lane in self._connected[shard]:
            lane.stamp = Stamp(lane.stamp.incarnation, tick, generation)

    # -- keeping them connected ------------------------------------------------------------------------
    async def _keep(self, lanes: LaneSet, shard: int) -> None:
        pause = self.settings.reconnect_min
        while True:
            wake = lanes.wake[shard]
            target = None if lanes[shard].attached else self._primary(shard)
            if target is None:
                await wake.wait()
                continue
            try:
                made = await self._connect(target, lanes.identity)
                self._still(target, shard, made)
                self._attach(lanes[shard], shard, made)
            except (ConnectionLost, ReplyError, OSError):
                self._trouble()
                with trio.move_on_after(pause * random.uniform(0.5, 1.5)):
                    await wake.wait()
                pause = min(pause * 2, self.settings.reconnect_max)
            else:
                pause = self.settings.reconnect_min

    async def _connect(self, target: Node, identity: Identity) -> Connected:
        """Connect and shake hands.  Old connections of ours at that node are killed first, so that
        nothing that was sent on them long ago can run behind what this one will carry."""
        connection = await ControlConnection.open(
            target.host,
            target.port,
            username=self.credentials.username,
            password=self.credentials.password,
            timeout=self.connect_timeout,
            protocol=identity.protocol,
            client_name="ackgate",
        )
        try:
            select: list[Sequence[Arg]] = [["SELECT", identity.database]] if identity.database else []
            replies = await connection.pipeline(
                *select, ["CLUSTER", "MYID"], ["INFO", "server"], ["INFO", "replication"], ["CLIENT", "ID"]
            )
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise reply
            node_id, server, replication, client_id = replies[-4:]
            life = Life.read(node_id.decode(), parse_info(server) | parse_info(replication))
            if target.node_id and node_id != target.node_id:
                raise ConnectionLost("another node answers at that address")
            await self._bury(connection, life)
        except BaseException:
            connection.abort()
            raise
        self.connects += 1
        return Connected(connection, life, int(client_id))

    async def _bury(self, connection: ControlConnection, life: Life) -> None:
        """Kill our lost connections at a node.  A process started anew has none, and gives their numbers to others."""
        graves = self._graves.get(life.node_id)
        if graves is None:
            return
        if graves.run_id != life.run_id:
            del self._graves[life.node_id]
            return
        dead = list(graves.client_ids)
        kills: list[Sequence[Arg]] = [["CLIENT", "KILL", "ID", client_id] for client_id in dead]
        if kills:
            await connection.pipeline(*kills)
            graves.client_ids.difference_update(dead)

    def _still(self, target: Node, shard: int, made: Connected) -> None:
        """The shard may have got another primary while we connected to this one."""
        present = self._primary(shard)
        if present is None or present.address != target.address:
            made.connection.abort()
            raise ConnectionLost("the shard has another primary by now")

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
        self._connected[shard].add(lane)
        pushes = owner.identity.protocol == 3
        self.plane.attach(lane, made.connection.detach(), self._stamp(shard, incarnation), pushes)

    def wake(self, shard: int) -> None:
        """Something changed for a shard: its keepers look again."""
        for lanes in self.sets.values():
            if shard in lanes.wake:
                self._wake(lanes, shard)

    def _wake(self, lanes: LaneSet, shard: int) -> None:
        lanes.wake[shard].set()
        lanes.wake[shard] = trio.Event()

    # -- the end of a lane ---------------------------------------------------------------------------------
    def gone(self, lane: Lane) -> Lane | None:
        """A lane was lost.  What stands in its place from now on (None: it was leased or retiring)."""
        owner: Owner = lane.owner
        self._forget(lane)
        if owner.leased:
            return None
        lanes = self.sets[owner.identity]
        if owner.shard < 0 or lanes[owner.shard] is not lane:
            return None
        lanes[owner.shard] = self.plane.new_lane(owner.shard, Owner(owner.identity, owner.shard, leased=False))
        self._wake(lanes, owner.shard)
        return lanes[owner.shard]

    def _forget(self, lane: Lane) -> None:
        owner: Owner = lane.owner
        self._connected[owner.shard].discard(lane)
        if lane in self.retiring:
            self.retiring.remove(lane)
        if owner.node_id:
            self._remember_grave(owner)
        if owner.leased:
            self._leased[owner.shard] -= 1
            idle = self._idle[owner.identity, owner.shard]
            if lane in idle:
                idle.remove(lane)

    def _remember_grave(self, owner: Owner) -> None:
        graves = self._graves.get(owner.node_id)
        if graves is None or graves.run_id != owner.run_id:
            graves = self._graves[owner.node_id] = Graves(owner.run_id, set())
        graves.client_ids.add(owner.client_id)

    def retire(self, shard: int, keep: Incarnation | None = None) -> None:
        """The shard has another primary: lanes to the former one take nothing new and end when they are empty."""
        for lane in list(self._connected[shard]):
            owner: Owner = lane.owner
            if owner.retiring_since is not None or owner.incarnation is keep is not None:
                continue
            if owner.leased and lane in self._idle[owner.identity, shard]:
                self.close(lane)
                continue
            owner.retiring_since = trio.current_time()
            self.retiring.append(lane)
            if not owner.leased:
                lanes = self.sets[owner.identity]
                lanes[shard] = self.plane.new_lane(shard, Owner(owner.identity, shard, leased=False))
        self.wake(shard)

    def retire_ended(self) -> list[int]:
        """Retire what belongs to a life that has ended; the shards that had such lanes."""
        shards = [
            shard
            for shard, lanes in list(self._connected.items())
            if shard >= 0 and any(_outlived(lane.owner) for lane in lanes)
        ]
        for shard in shards:
            present = (lane.owner.incarnation for lane in self._connected[shard])
            self.retire(shard, keep=next((life for life in present if life is not None and not life.ended), None))
        return shards

    def close(self, lane: Lane) -> list[Lost]:
        """Close a lane that is not wanted any more; its unanswered requests."""
        self._forget(lane)
        return self.plane.close_lane(lane)

    # -- leased lanes ------------------------------------------------------------------------------------------
    @property
    def leased(self) -> int:
        """Leased lanes open now, idle ones included."""
        return sum(self._leased.values())

    def lease(self, identity: Identity, shard: int) -> Lane:
        """A lane of one's own to a shard's primary, clean; what is put on a new one is sent once it is connected.

        Raises ``Busy`` when the pool is exhausted.
        """
        idle = self._idle[identity, shard]
        while idle:
            lane = idle.pop()
            if not lane.closed:
                return lane
        if self._leased[shard] >= self.settings.leased_per_shard and not self._make_room(shard):
            limit = self.settings.leased_per_shard
            raise Busy(f"ERR all {limit} leased lanes of the shard are in use (lanes.leased_per_shard): try again")
        assert self._nursery is not None
        self._leased[shard] += 1
        lane = self.plane.new_lane(shard, Owner(identity, shard, leased=True))
        self._nursery.start_soon(self._connect_leased, lane, identity, shard)
        return lane

    async def _connect_leased(self, lane: Lane, identity: Identity, shard: int) -> None:
        target = self._primary(shard)
        try:
            if target is None:
                raise ConnectionLost("the shard has no primary")
            made = await self._connect(target, identity)
            self._still(target, shard, made)
            if lane.closed:
                made.connection.abort()
            else:
                self._attach(lane, shard, made)
        except (ConnectionLost, ReplyError, OSError) as error:
            self._trouble()
            lane.lose(str(error))

    async def lease_node(self, identity: Identity, node: Node) -> Lane:
        """A lane to one node, replica or not, for commands that go to every node.  Raises ``ConnectionLost``."""
        made = await self._connect(node, identity)
        owner = Owner(identity, -1, leased=True)
        owner.node_id = made.life.node_id
        owner.run_id = made.life.run_id
        owner.client_id = made.client_id
        self._leased[-1] += 1
        lane = self.plane.new_lane(-1, owner)
        self._connected[-1].add(lane)
        self.plane.attach(lane, made.connection.detach(), None, identity.protocol == 3)
        return lane

    def _make_room(self, shard: int) -> bool:
        """Close an idle leased lane of another identity."""
        for (_, index), idle in self._idle.items():
            if index == shard and idle:
                self.close(idle[0])
                return True
        return False

    def release(self, lane: Lane, clean: bool) -> None:
        """Give a leased lane back; one that is not known to be clean is closed."""
        owner: Owner = lane.owner
        if lane.closed:
            return
        if clean and owner.shard >= 0 and not lane.fifo and owner.retiring_since is None:
            self._idle[owner.identity, owner.shard].append(lane)
            return
        for lost in self.close(lane):
            lost.request.answer(b"-ERR the connection to the shard was closed\r\n")


def _outlived(owner: Owner) -> bool:
    return owner.retiring_since is None and owner.incarnation is not None and owner.incarnation.ended
