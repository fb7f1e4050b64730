"""What follows from news of the cluster: the rooms of one server brought in line with it.

What lives here: who has to be told what, and in which order.  What may not: how news are found out
(``proxy.topology``), and what a room does about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.acks.incarnation import NO_SECOND_ID, Incarnation, Life, Stamp
from proxy.dataplane import Client, Lane
from proxy.routing.slot_map import NO_SHARD, Node, Shard, SlotMap

if TYPE_CHECKING:
    from proxy.server import Server

OF_UNKNOWN_OUTCOME = Incarnation(Life("", "", "master", "", NO_SECOND_ID))
"""Stands in a session's memory for a write that nobody can answer for any more."""
OF_UNKNOWN_OUTCOME.ended = True


class News:
    """Of one server: called by its rooms."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def map_changed(self, old: SlotMap, new: SlotMap) -> None:
        """Bring lanes, acks and routes in line with a new slot map, in that order."""
        server = self._server
        with server.plane.turn():
            server.lanes.grow(new.next_index)
            led_anew = False
            for shard in new.shards:
                server.metrics.know_shard(shard.id.decode())
                led_anew |= self.shard_changed(old.shard(shard.index), shard)
            for shard in old.shards:
                if new.shard(shard.index) is None:
                    server.lanes.retire(shard.index)
                    server.acks.of(shard.index).owns(frozenset())
            if old.shard_of_slot != new.shard_of_slot:
                server.tracking.slots_moved()
                server.plane.set_routes([-1 if index == NO_SHARD else index for index in new.shard_of_slot])
            elif led_anew:
                server.plane.fence_all()
            else:
                return
            server.redirects.routes_changed()

    def shard_changed(self, old: Shard | None, new: Shard) -> bool:
        """Whether the shard has another primary than before."""
        server = self._server
        server.acks.of(new.index).owns(frozenset(_range_text(first, last) for first, last in new.ranges))
        if old is not None and _same_node(old.primary, new.primary):
            return False
        if new.primary is not None:
            before = server.cluster.watch_of(old.primary) if old is not None and old.primary is not None else None
            server.pulse.leads(new.id.decode(), new.primary, answered=before is not None and before.alive)
        server.lanes.retire(new.index)
        server.lanes.let_go(new.index)
        leads = new.primary.node_id.decode() if new.primary is not None else ""
        server.acks.primary_changed(new.index, leads or None)
        return True

    def hold(self, shard: int) -> None:
        """Send a shard nothing more, until it is let go or has another primary."""
        server = self._server
        with server.plane.turn():
            server.lanes.hold(shard)
            server.plane.fence_all()
            server.redirects.routes_changed()

    def life_ended(self) -> None:
        """Lanes of a life that is over take nothing new, even where the slot map shows the same primary as before."""
        server = self._server
        server.cluster.hint()
        if server.lanes.retire_ended():
            server.plane.fence_all()
            server.redirects.routes_changed()

    def user_deleted(self, user: str) -> None:
        server = self._server
        server.logins.forget(user)
        server.router.expel(user)

    def user_is_another(self, lane: Lane, passwords: frozenset[bytes]) -> None:
        """What those who logged in with these passwords have under way must not run as that one's."""
        server = self._server
        with server.plane.turn():
            server.router.part_from(lane.owner.identity, passwords)
            server.redirects.sift(lane)

    def users_changed(self) -> None:
        server = self._server
        server.router.users_changed()
        server.pubsub.users_changed()

    def recovered(self, address: tuple[str, int]) -> None:
        """A node answers again: what it leads need not wait for the next attempt, and its old lanes may be dead."""
        server = self._server
        server.redirects.doubts.doubt(server.cluster.nodes[address].node_id)
        for shard in server.cluster.map.shards:
            if shard.primary is not None and shard.primary.address == address:
                server.lanes.wake(shard.index, anew=True)
                server.acks.primary_changed(shard.index, shard.primary.node_id.decode())  # on new connections, at least

    def lived(self, life: Life) -> None:
        server = self._server
        server.acks.incarnations.observe(life)

    def lost_write(self, client: Client, lane: Lane) -> None:
        """Whether the write ran is not known: no later WAIT of the session may count it."""
        shard: int = lane.owner.shard
        client.writes[shard] = [Stamp(OF_UNKNOWN_OUTCOME, 0, 0)] * 2


def _range_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _same_node(one: Node | None, other: Node | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.address != other.address:
        return False
    return one.node_id == other.node_id or not one.node_id or not other.node_id
