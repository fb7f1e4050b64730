"""The lanes: one per identity and shard, kept connected, and leased ones from a bounded pool."""

from __future__ import annotations

import enum
import random
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import trio

from proxy.acks.incarnation import Incarnation, Life, Stamp, parse_info
from proxy.codec import encode_request
from proxy.codec.reply import error, is_error
from proxy.dataplane import DataPlane, Lane, Lost
from proxy.routing.slot_map import Node
from proxy.settings import LaneSettings
from proxy.topology.logins import Denied, Logins
from shard.client import Arg, ConnectionLost, ControlConnection, Credentials, ReplyError


class Identity(NamedTuple):
    """What a lane's connection is: sessions that agree in it may share one."""

    user: str
    database: int
    protocol: int
    modes: tuple[str, ...] = ()
    """Subcommands of CLIENT said ON on it, in order: what they change is the connection's (NO-TOUCH ...)."""
    own: int = 0
    """Of lanes that one session has to itself, because the shard sends it what it reads of others' writes: its
    client's id (see ``Lanes.greetings``).  0: they are shared."""


BASE = Identity("default", 0, 2)
DISCARD, UNWATCH = encode_request([b"DISCARD"]), encode_request([b"UNWATCH"])

KEEPALIVE = 30  # seconds of silence on a lane before the kernel probes its peer
CONNECTING = 32  # leased lanes of one shard that shake hands at a time: more would only make each other late
LOCKED_OUT_LOOK = 0.05  # seconds between two looks whether somebody needs a lane whose user is not let in
SETTLE = 5.0  # seconds at most for which a node that says it does not serve yet is waited for before its lane is used;
# a primary that was started anew takes 2 s and more (cluster_legacy.c: CLUSTER_WRITABLE_DELAY)
SETTLE_LOOK = 0.01  # seconds between two looks whether it does
HERD = 0.001  # seconds per identity over which those that wait for the same node spread when it is back
PRUNE = 0.5  # how often, in terms of ``lanes.leased_idle``, it is looked for lanes that nobody uses


class Use(enum.Enum):
    """What a leased lane is wanted for, by the name of the setting that bounds it."""

    TURN = "leased_per_shard"
    """A transaction, a large request: for as long as the shard takes."""
    BLOCK = "blocked_per_shard"
    """A blocking command: for as long as its client likes."""


class Owner:
    """What topology keeps on a lane."""

    __slots__ = (
        "client_id",
        "doubted",
        "identity",
        "idle_since",
        "incarnation",
        "leased",
        "node_id",
        "patience",
        "retiring_since",
        "run_id",
        "shard",
        "use",
    )

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
        self.doubted: Doubt | None = None
        self.use: Use | None = None
        """Of a leased lane; None: it is idle."""
        self.idle_since = 0.0
        self.patience = 0.0
        """Seconds that its command may take on purpose, beyond what any may: it blocks."""


class Doubt(NamedTuple):
    """The node did not answer for a while, and the lane may not have survived what it was."""

    since: float
    """On trio's clock."""
    seen: tuple[int, int, int]
    """What would change if the lane did anything."""


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
        self.dropped = False
        """Nobody uses them any more."""
        self.sessions = 0
        """How many travel on them."""
        self.unused_since = time.monotonic()
        self.lost: dict[int, str] = {}
        """Of the shards whose lanes were lost: the life of the process they were lost to."""
        self.denied: set[int] = set()
        """The shards whose primaries do not let the user in."""

    @property
    def unused(self) -> bool:
        """Nobody travels on them, and nothing is under way."""
        return not self.sessions and not any(lane.fifo for lane in self)


class Lanes:
    """See the module.

    ``primary(shard)`` is a shard's present primary; ``observe(life)`` its incarnation (None: no primary);
    ``stamp(shard, incarnation)`` what writes are remembered with; ``trouble()`` is called when a node
    could not be reached, so that topology looks again; ``logins`` makes a connection its user's;
    ``denied(lane, frame)`` is told when a node does not let a lane's user in, ``expelled(identity)`` when none does;
    ``passwords(identity)`` are those of its sessions, ``outdated(lane, passwords)`` is told which of them are another
    user's, of the same name, by now.
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
        logins: Logins,
        denied: Callable[[Lane, bytes], None],
        expelled: Callable[[Identity], None],
        passwords: Callable[[Identity], set[bytes]],
        outdated: Callable[[Lane, frozenset[bytes]], None],
    ) -> None:
        self.plane = plane
        self.settings = settings
        self.credentials = credentials
        self.connect_timeout = connect_timeout
        self.connects = 0
        self.sets: dict[Identity, LaneSet] = {}
        self.retiring: list[Lane] = []
        self.greetings: dict[int, list[bytes]] = {}
        """Requests that come first on each new lane of a session's own, by ``Identity.own``."""
        self.disturbed: Callable[[int], None] = lambda own: None
        """Told when a lane of a session's own was lost, replaced or connected: what the shard knew of it is gone."""
        self._primary = primary
        self._observe = observe
        self._stamp = stamp
        self._trouble = trouble
        self._logins = logins
        self._denied = denied
        self._expelled = expelled
        self._passwords = passwords
        self._outdated = outdated
        self._shards = 0
        self._nursery: trio.Nursery | None = None
        self._connected: defaultdict[int, set[Lane]] = defaultdict(set)
        self._graves: dict[str, Graves] = {}
        self._idle: defaultdict[tuple[Identity, int], list[Lane]] = defaultdict(list)
        self._leased: defaultdict[int, int] = defaultdict(int)
        """Open ones by shard, idle ones included."""
        self._in_use: Counter[tuple[int, Use]] = Counter()
        self._on_hold: dict[int, trio.Event] = {}
        """Shards that are sent nothing for the moment; the event is set when they are again."""
        self._connecting: defaultdict[int, trio.CapacityLimiter] = defaultdict(lambda: trio.CapacityLimiter(CONNECTING))
        self.base = self.of(BASE)

    async def run(self) -> None:
        """Keep every lane connected, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for lanes in self.sets.values():
                for shard in range(self._shards):
                    nursery.start_soon(self._keep, lanes, shard)
            await self._prune_for_ever()

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

    def enter(self, identity: Identity) -> LaneSet:
        """The lanes of an identity, for one session more; ``leave`` them.  Raises ``Busy``."""
        if identity not in self.sets and not identity.own and len(self.sets) >= self.settings.identities:
            self._make_room_for_identity()
        lanes = self.of(identity)
        lanes.sessions += 1
        return lanes

    def leave(self, lanes: LaneSet) -> None:
        lanes.sessions -= 1
        lanes.unused_since = time.monotonic()

    def _make_room_for_identity(self) -> None:
        shared = [lanes for lanes in self.sets.values() if not lanes.identity.own]
        if len(shared) < self.settings.identities:
            return
        unused = [lanes for lanes in shared if lanes is not self.base and lanes.unused]
        if not unused:
            limit = self.settings.identities
            what = f"all {limit} identities (user, database, protocol)"
            raise Busy(f"ERR {what} are in use (lanes.identities): try again")
        self.drop(min(unused, key=lambda lanes: lanes.unused_since).identity)

    def _end_unused(self, seconds: float) -> None:
        """Close the lanes of identities that nobody has used for so long."""
        oldest = time.monotonic() - seconds
        for lanes in list(self.sets.values()):
            if lanes is not self.base and lanes.unused_since < oldest and lanes.unused:
                self.drop(lanes.identity)

    def renew(self, user: str) -> None:
        """Another password is known of a user: those of its lanes that were not let in try again."""
        for lanes in self.sets.values():
            if lanes.identity.user == user:
                denied, lanes.denied = lanes.denied, set()
                for shard in denied:
                    self._wake(lanes, shard)

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
        stamp: Stamp | None = None  # one for all of a life: there may be thousands of lanes, and this is done often
        for lane in self._connected[shard]:
            if stamp is None or stamp.incarnation is not lane.stamp.incarnation:
                stamp = Stamp(lane.stamp.incarnation, tick, generation)
            lane.stamp = stamp

    # -- keeping them connected ------------------------------------------------------------------------
    async def _keep(self, lanes: LaneSet, shard: int) -> None:
        pause = self.settings.reconnect_min
        while not lanes.dropped:
            wake = lanes.wake[shard]
            target = None if lanes[shard].attached or shard in self._on_hold else self._primary(shard)
            if target is None:
                await wake.wait()
                continue
            try:
                made = await self._connect(target, lanes.identity, shard)
                await self._part_from_outdated(lanes, shard, made)
                self._still(target, shard, made)
                if lanes.dropped:
                    made.connection.abort()
                    return
                lanes.denied.discard(shard)
                self._attach(lanes[shard], shard, made)
            except Denied as denied:
                await self._locked_out(lanes, shard, error(str(denied)))
            except (ConnectionLost, ReplyError, OSError):
                self._trouble()
                with trio.move_on_after(pause * random.uniform(0.5, 1.5)) as waited:
                    await wake.wait()
                if not waited.cancelled_caught:
                    await trio.sleep(random.uniform(0, HERD * len(self.sets)))
                pause = min(pause * 2, self.settings.reconnect_max)
            else:
                pause = self.settings.reconnect_min

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

    async def _connect(self, target: Node, identity: Identity, settles: int | None = None) -> Connected:
        """Connect and shake hands.  Old connections of ours at that node are killed first, so that
        nothing that was sent on them long ago can run behind what this one will carry.

        ``settles``: the shard whose primary it is and that is to be served by it before this returns, if that is soon.
        """
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
            if settles is not None:
                await self._settled(target, settles, connection)
            # All of the above is ours to ask and may be denied to the user: it logs in last.
            await self._logins.log_in(connection, identity.user, life.run_id)
        except BaseException:
            connection.abort()
            raise
        self.connects += 1
        return Connected(connection, life, int(client_id))

    async def _settled(self, target: Node, shard: int, connection: ControlConnection) -> None:
        """Come back when the node serves what it has.

        Until then it refuses one command of a packet and may carry out the next, which must not overtake it.  One that
        can be read all the same (cluster-allow-reads-when-down) is not waited for without end.
        """
        deadline = trio.current_time() + SETTLE
        while self._leads(target, shard) and trio.current_time() < deadline:
            try:
                if b"cluster_state:ok" in await connection.call("CLUSTER", "INFO"):
                    return
            except ReplyError:
                pass  # LOADING
            await trio.sleep(SETTLE_LOOK)

    def _leads(self, node: Node, shard: int) -> bool:
        present = self._primary(shard)
        return present is not None and present.address == node.address

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
        if not self._leads(target, shard) or shard in self._on_hold:
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
        self._connected[shard].add(lane)
        pushes = owner.identity.protocol == 3
        sock = made.connection.detach()
        _keep_alive(sock)
        greeting = self._greeting(owner.identity)
        self.plane.attach(lane, sock, self._stamp(shard, incarnation), pushes, greeting)
        if owner.identity.own and not owner.leased:
            self.disturbed(owner.identity.own)

    def _greeting(self, identity: Identity) -> list[bytes]:
        """What makes a new connection what its identity says."""
        modes = [encode_request([b"CLIENT", mode.encode(), b"ON"]) for mode in identity.modes]
        return modes + self.greetings.get(identity.own, [])

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
        self._forget(lane)
        owner: Owner = lane.owner
        lanes = self.sets.get(owner.identity)
        if lanes is not None and owner.node_id:
            lanes.lost[owner.shard] = owner.run_id
        return self._replace(lane)

    def _replace(self, lane: Lane) -> Lane | None:
        owner: Owner = lane.owner
        lanes = self.sets.get(owner.identity)
        if owner.leased or owner.shard < 0 or lanes is None or lanes[owner.shard] is not lane:
            return None
        lanes[owner.shard] = self.plane.new_lane(owner.shard, Owner(owner.identity, owner.shard, leased=False))
        self._wake(lanes, owner.shard)
        return lanes[owner.shard]

    def drop(self, identity: Identity) -> None:
        """Close the lanes of an identity that no session has any more."""
        lanes = self.sets.pop(identity, None)
        if lanes is None:
            return
        lanes.dropped = True
        for shard in lanes.wake:
            self._wake(lanes, shard)
        idle = [lane for shard in lanes.wake for lane in self._idle.pop((identity, shard), ())]
        for lane in (*lanes, *idle):
            for lost in self.close(lane):
                lost.request.answer(b"-ERR the connection to the shard was closed\r\n")

    def _forget(self, lane: Lane, clean: bool = False) -> None:
        owner: Owner = lane.owner
        self._connected[owner.shard].discard(lane)
        if lane in self.retiring:
            self.retiring.remove(lane)
        if owner.node_id and not clean:
            self._remember_grave(owner)
        if owner.leased:
            self._leased[owner.shard] -= 1
            self._not_in_use(owner)
            idle = self._idle[owner.identity, owner.shard]
            if lane in idle:
                idle.remove(lane)
        if owner.identity.own and owner.retiring_since is None and owner.identity in self.sets:
            self.disturbed(owner.identity.own)

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
            self._replace(lane)
            if owner.identity.own:
                self.disturbed(owner.identity.own)
        self.wake(shard)

    def hold(self, shard: int) -> None:
        """Send a shard nothing more until ``let_go``: its lanes end when what is on them is answered."""
        self._on_hold.setdefault(shard, trio.Event())
        self.retire(shard)

    def let_go(self, shard: int) -> None:
        """Connect to the shard's primary, which may be another by now, and send what was held."""
        held = self._on_hold.pop(shard, None)
        if held is not None:
            held.set()
            self.wake(shard)

    def on_hold(self, shard: int) -> bool:
        return shard in self._on_hold

    def busy(self, shard: int) -> bool:
        """Whether something sent to the shard is to be answered soon: it does not block on purpose."""
        return any(lane.fifo for lane in self._connected[shard] if lane.owner.use is not Use.BLOCK)

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
        self._replace(lane)
        return self.plane.close_lane(lane)

    # -- leased lanes ------------------------------------------------------------------------------------------
    @property
    def leased(self) -> int:
        """Leased lanes open now, idle ones included."""
        return sum(self._leased.values())

    def lease(self, identity: Identity, shard: int, use: Use = Use.TURN) -> Lane:
        """A lane of one's own to a shard's primary, clean; what is put on a new one is sent once it is connected.

        Raises ``Busy`` when as many are in use as may be.
        """
        if identity.own and identity not in self.sets:
            raise Busy("ERR the connections of this client are closed")
        if identity.own and use is Use.TURN:
            return self.sets[identity][shard]
        limit: int = getattr(self.settings, use.value)
        if self._in_use[shard, use] >= limit:
            raise Busy(f"ERR all {limit} leased lanes of the shard are in use (lanes.{use.value}): try again")
        idle = self._idle[identity, shard]
        while idle:
            lane = idle.pop()
            if not lane.closed:
                return self._taken(lane, use)
        if self._leased[shard] >= self.settings.leased_per_shard + self.settings.blocked_per_shard:
            self._make_room(shard)
        assert self._nursery is not None
        self._leased[shard] += 1
        lane = self.plane.new_lane(shard, Owner(identity, shard, leased=True))
        self._nursery.start_soon(self._connect_leased, lane, identity, shard)
        return self._taken(lane, use)

    def _taken(self, lane: Lane, use: Use) -> Lane:
        owner: Owner = lane.owner
        owner.use = use
        self._in_use[owner.shard, use] += 1
        return lane

    def _not_in_use(self, owner: Owner) -> None:
        if owner.use is not None:
            self._in_use[owner.shard, owner.use] -= 1
            owner.use = None
        owner.patience = 0.0

    async def _connect_leased(self, lane: Lane, identity: Identity, shard: int) -> None:
        async with self._connecting[shard]:
            while shard in self._on_hold:
                await self._on_hold[shard].wait()
            if not lane.closed:  # by now whoever wanted it may have gone
                await self._connect_lane(lane, identity, shard)

    async def _connect_lane(self, lane: Lane, identity: Identity, shard: int) -> None:
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
        except Denied as denied:
            self._denied(lane, error(str(denied)))
            lane.lose(str(denied))
        except (ConnectionLost, ReplyError, OSError) as problem:
            self._trouble()
            lane.lose(str(problem))

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

    def _make_room(self, shard: int) -> None:
        """Close an idle leased lane of another identity."""
        for (_, index), idle in self._idle.items():
            if index == shard and idle:
                self._close_idle(idle[0])
                return

    def _close_idle(self, lane: Lane) -> None:
        """Close a clean lane: it leaves nothing behind at the node that would have to be killed."""
        self._forget(lane, clean=True)
        self.plane.close_lane(lane)

    def close_idle(self, shard: int) -> None:
        """Close the leased lanes of a shard that nobody has now."""
        for lane in [lane for (_, index), idle in self._idle.items() if index == shard for lane in idle]:
            self.close(lane)

    async def _prune_for_ever(self) -> None:
        """Close leased lanes that nobody has used for a while, so that a crowd that was here once costs nothing."""
        limit = self.settings.leased_idle
        while True:
            await trio.sleep(limit * PRUNE)
            oldest = trio.current_time() - limit
            for key, idle in list(self._idle.items()):
                for lane in [lane for lane in idle if lane.owner.idle_since < oldest]:
                    self._close_idle(lane)
                if not idle:
                    del self._idle[key]
            self._end_unused(limit)

    def release(self, lane: Lane, clean: bool) -> None:
        """Give a leased lane back; one that is not known to be clean is closed."""
        owner: Owner = lane.owner
        if lane.closed:
            return
        if not owner.leased:
            if not clean:
                self._tidy(lane)
            return
        wanted = not owner.identity.own or owner.identity in self.sets
        if clean and wanted and owner.shard >= 0 and not lane.fifo and owner.retiring_since is None:
            self._not_in_use(owner)
            owner.idle_since = trio.current_time()
            self._idle[owner.identity, owner.shard].append(lane)
            return
        for lost in self.close(lane):
            lost.request.answer(b"-ERR the connection to the shard was closed\r\n")

    def wash(self, lane: Lane, begun: bool) -> None:
        """Give back a lane on which keys are watched or, if ``begun``, commands queued: clean, once that is undone."""
        owner: Owner = lane.owner
        if not owner.leased or not lane.attached or lane.closed or owner.retiring_since is not None:
            self.release(lane, clean=False)
            return

        def undone(frame: bytes) -> None:
            clean = not is_error(frame) or frame.startswith(b"-ERR DISCARD without MULTI")  # EXEC came before
            self.release(lane, clean)

        self.plane.submit(lane, DISCARD if begun else UNWATCH, undone, pinned=True)

    def _tidy(self, lane: Lane) -> None:
        """Have nothing queued or watched on a lane that its session goes on with."""
        for raw in (DISCARD, UNWATCH):
            self.plane.submit(lane, raw, lambda frame: None, pinned=True)


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished while its command blocks and nothing is sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE // 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _outlived(owner: Owner) -> bool:
    return owner.retiring_since is None and owner.incarnation is not None and owner.incarnation.ended
