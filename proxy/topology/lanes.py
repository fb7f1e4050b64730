"""The lanes: one per identity and shard, kept connected, and leased ones from a bounded pool."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import trio

from proxy.acks.incarnation import Incarnation, Life, Stamp
from proxy.codec import encode_request
from proxy.codec.reply import is_error
from proxy.dataplane import DataPlane, Lane, Lost
from proxy.routing.slot_map import Node
from proxy.settings import LaneSettings
from proxy.topology.keeping import Keeper
from proxy.topology.logins import Logins
from proxy.topology.owners import BASE, Busy, Identity, LaneSet, Owner, Use
from proxy.topology.pool import Pool
from shard.client import Credentials

DISCARD, UNWATCH = encode_request([b"DISCARD"]), encode_request([b"UNWATCH"])

NOT_BEGUN = b"-ERR DISCARD without MULTI"

PRUNE = 0.5  # how often, in terms of ``lanes.leased_idle``, it is looked for lanes that nobody uses


class Lanes:
    """See the module.

    ``primary(shard)`` is a shard's present primary; ``observe(life)`` its incarnation (None: no primary);
    ``stamp(shard, incarnation)`` what writes are remembered with; ``trouble()`` is called when a node
    could not be reached, so that topology looks again; ``logins`` makes a connection its user's;
    ``denied(lane, frame)`` is told when a node does not let a lane's user in, ``expelled(identity)`` when none does;
    ``transacts(user)`` says whether it may surely MULTI, DISCARD and UNWATCH;
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
        transacts: Callable[[str], bool],
    ) -> None:
        self.plane = plane
        self.settings = settings
        self.sets: dict[Identity, LaneSet] = {}
        self.retiring: list[Lane] = []
        self.greetings: dict[int, list[bytes]] = {}
        """Requests that come first on each new lane of a session's own, by ``Identity.own``."""
        self.disturbed: Callable[[int], None] = lambda own: None
        """Told when a lane of a session's own was lost, replaced or connected: what the shard knew of it is gone."""
        self._primary = primary
        self._shards = 0
        self._nursery: trio.Nursery | None = None
        self._connected: defaultdict[int, set[Lane]] = defaultdict(set)
        self._pool = Pool(settings)
        self.transacts = transacts
        self.held: dict[int, trio.Event] = {}
        """Shards that are sent nothing for the moment; the event is set when they are again."""
        self._keeper = Keeper(
            self,
            credentials,
            connect_timeout,
            primary=primary,
            observe=observe,
            stamp=stamp,
            trouble=trouble,
            logins=logins,
            denied=denied,
            expelled=expelled,
            passwords=passwords,
            outdated=outdated,
        )
        self.connector = self._keeper.connector
        self.base = self.of(BASE)

    async def run(self) -> None:
        """Keep every lane connected, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for lanes in self.sets.values():
                for shard in range(self._shards):
                    nursery.start_soon(self._keeper.keep, lanes, shard)
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
            self._nursery.start_soon(self._keeper.keep, lanes, shard)

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

    def wake(self, shard: int, anew: bool = False) -> None:
        """Something changed for a shard: its keepers look again.

        ``anew``: its primary answers again, and connecting to it may have begun when it did not.
        """
        self._keeper.give_up_vain(shard, anew)
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
        unused = [lane for shard in lanes.wake for lane in self._pool.unused(shard, identity)]
        for lane in (*lanes, *unused):
            for lost in self.close(lane):
                lost.request.answer(b"-ERR the connection to the shard was closed\r\n")

    def _forget(self, lane: Lane, clean: bool = False) -> None:
        owner: Owner = lane.owner
        self._connected[owner.shard].discard(lane)
        if lane in self.retiring:
            self.retiring.remove(lane)
        if owner.node_id and not clean:
            self.connector.lost(owner)
        if owner.leased:
            self._pool.forget(lane)
        if owner.identity.own and owner.retiring_since is None and owner.identity in self.sets:
            self.disturbed(owner.identity.own)

    def retire(self, shard: int, keep: Incarnation | None = None) -> None:
        """The shard has another primary: lanes to the former one take nothing new and end when they are empty."""
        for lane in list(self._connected[shard]):
            owner: Owner = lane.owner
            if owner.retiring_since is not None or owner.incarnation is keep is not None:
                continue
            if owner.leased and self._pool.is_unused(lane):
                self.close(lane)
                continue
            self._retire(lane)
            if owner.identity.own:
                self.disturbed(owner.identity.own)
        self.wake(shard)

    def beware(self, lane: Lane) -> bool:
        """A lane was lost, and something sent on it may still run: nothing of its session's may run before that.

        So whatever lane that session takes next to the shard has to be one that was connected behind the end of the
        lost one at the node.  Whether any lane was replaced: then every client is to be fenced.
        """
        owner: Owner = lane.owner
        primary = self._primary(owner.shard)
        if primary is None or not owner.node_id or primary.node_id.decode() != owner.node_id:
            return False  # what runs at a node that was replaced is not seen
        self.connector.beware(owner.node_id)
        for unused in self._pool.unused(owner.shard):
            self._close_unused(unused)
        shared = [lanes[owner.shard] for lanes in self.sets.values() if not lanes.identity.own]
        attached = [each for each in shared if each.attached and not each.closed]
        for each in attached:
            self._retire(each)
        return bool(attached)

    def _retire(self, lane: Lane) -> None:
        lane.owner.retiring_since = trio.current_time()
        self.retiring.append(lane)
        self._replace(lane)

    def hold(self, shard: int) -> None:
        """Send a shard nothing more until ``let_go``: its lanes end when what is on them is answered."""
        self.held.setdefault(shard, trio.Event())
        self.retire(shard)

    def let_go(self, shard: int) -> None:
        """Connect to the shard's primary, which may be another by now, and send what was held."""
        held = self.held.pop(shard, None)
        if held is not None:
            held.set()
            self.wake(shard)

    def on_hold(self, shard: int) -> bool:
        return shard in self.held

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
        return len(self._pool)

    def lease(self, identity: Identity, shard: int, use: Use = Use.TURN) -> Lane:
        """A lane of one's own to a shard's primary, clean; what is put on a new one is sent once it is connected.

        Raises ``Busy`` when as many are in use as may be.
        """
        if identity.own and identity not in self.sets:
            raise Busy("ERR the connections of this client are closed")
        if identity.own and use is Use.TURN:
            return self.sets[identity][shard]
        idle = self._pool.take(identity, shard, use)
        if idle is not None:
            return idle
        if self._pool.full(shard):
            self._make_room(shard)
        assert self._nursery is not None
        self._pool.opened(shard)
        lane = self.plane.new_lane(shard, Owner(identity, shard, leased=True))
        self._nursery.start_soon(self._keeper.connect_leased, lane, identity, shard)
        return self._pool.taken(lane, use)

    def has_room(self, identity: Identity, shard: int) -> bool:
        """Whether ``lease`` has a lane for a turn now."""
        return bool(identity.own) or not self._pool.used_up(shard, Use.TURN)

    async def room(self, identity: Identity, shard: int, deadline: float) -> None:
        """Come back when it has, or at the deadline (trio's clock)."""
        if not self.has_room(identity, shard):
            with trio.move_on_at(deadline):
                await self._pool.room(shard)

    async def lease_node(self, identity: Identity, node: Node) -> Lane:
        """A lane to one node, replica or not, for commands that go to every node.  Raises ``ConnectionLost``."""
        made = await self.connector.connect(node, identity)
        owner = Owner(identity, -1, leased=True)
        owner.node_id = made.life.node_id
        owner.run_id = made.life.run_id
        owner.client_id = made.client_id
        self._pool.opened(-1)
        lane = self.plane.new_lane(-1, owner)
        self._connected[-1].add(lane)
        self.plane.attach(lane, made.connection.detach(), None, identity.protocol == 3)
        return lane

    def _make_room(self, shard: int) -> None:
        """Close a leased lane of another identity that nobody has."""
        unused = self._pool.unused(shard)
        if unused:
            self._close_unused(unused[0])

    def _close_unused(self, lane: Lane) -> None:
        """Close a lane that is clean, or all but so: it leaves nothing at the node that would have to be killed."""
        self._forget(lane, clean=True)
        self.plane.close_lane(lane)

    async def _prune_for_ever(self) -> None:
        """Close leased lanes that nobody has used for a while, so that a crowd that was here once costs nothing."""
        limit = self.settings.leased_idle
        while True:
            await trio.sleep(limit * PRUNE)
            for lane in self._pool.idle_before(trio.current_time() - limit):
                self._close_unused(lane)
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
            self._pool.put_back(lane)
            return
        for lost in self.close(lane):
            lost.request.answer(b"-ERR the connection to the shard was closed\r\n")

    def wash(self, lane: Lane, begun: bool) -> None:
        """Give back a lane on which keys are watched or, if ``begun``, commands queued: clean, once that is undone.

        It may have its next user before that, unless the engine might refuse the former one to undo it.
        """
        owner: Owner = lane.owner
        if not owner.leased or not lane.attached or lane.closed or owner.retiring_since is not None:
            self.release(lane, clean=False)
            return

        shared = self.transacts(owner.identity.user)

        def undone(frame: bytes) -> None:
            clean = not is_error(frame) or frame.startswith(NOT_BEGUN)  # EXEC came before
            taken = shared and not self._pool.is_unused(lane)
            if taken and not clean:
                lane.lose("what its former user left could not be undone")  # what the next one sent may have run
            elif not shared or not clean or (not taken and not lane.fifo and self._pool.washed(lane)):
                self.release(lane, clean)

        if shared:
            self._pool.wash(lane)
        self.plane.submit(lane, DISCARD if begun else UNWATCH, undone, pinned=True)

    def _tidy(self, lane: Lane) -> None:
        """Have nothing queued or watched on a lane that its session goes on with."""

        def discarded(frame: bytes) -> None:
            if is_error(frame) and not frame.startswith(NOT_BEGUN):
                lane.lose("what its session queued could not be discarded")

        self.plane.submit(lane, DISCARD, discarded, pinned=True)
        self.plane.submit(lane, UNWATCH, lambda frame: None, pinned=True)


def _outlived(owner: Owner) -> bool:
    return owner.retiring_since is None and owner.incarnation is not None and owner.incarnation.ended
