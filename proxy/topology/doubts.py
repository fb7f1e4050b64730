"""Lanes that are of no use any more, or may not be: of a former primary, hung, dead at the other end."""

from __future__ import annotations

import trio

from proxy.codec import encode_request
from proxy.dataplane import DataPlane, Lane
from proxy.settings import TimeoutSettings
from proxy.topology.cluster import Cluster
from proxy.topology.lanes import Lanes
from proxy.topology.owners import Doubt, Owner, Use

PING = encode_request([b"PING"])
DOUBT = 0.5  # seconds a lane has to answer, once its node answers others again, to be believed alive


class Doubts:
    """See the module."""

    def __init__(self, plane: DataPlane, cluster: Cluster, lanes: Lanes, timeouts: TimeoutSettings) -> None:
        self.plane = plane
        self.cluster = cluster
        self.lanes = lanes
        self.timeouts = timeouts

    def sweep(self) -> None:
        """End those that are found out by now."""
        self._end_retiring()
        self._lose_hung()
        self._lose_dead()

    def _end_retiring(self) -> None:
        for lane in list(self.lanes.retiring):
            owner: Owner = lane.owner
            if not lane.fifo:
                if not owner.leased:  # the session that has one gives it back
                    self.lanes.close(lane)
            elif not self.cluster.answers(owner.node_id) and not self._leads(owner):
                lane.lose("its node does not answer and has a successor")

    def _leads(self, owner: Owner) -> bool:
        primary = self.cluster.primary(owner.shard)
        return primary is not None and primary.node_id.decode() == owner.node_id

    def _lose_hung(self) -> None:
        for lane in list(self.lanes.all_connected()):
            limit = self.timeouts.command
            owner: Owner = lane.owner
            age = self.plane.lane_age(lane)
            if age > limit + owner.patience or (age > limit < self.cluster.silence(owner.node_id)):
                lane.lose(f"no reply within {limit:g} s")

    def doubt(self, node_id: str) -> None:
        """A node answers after it did not for a while.  It may have hung, or the way there was cut: lanes that did not
        survive that would swallow what is sent on them.  Each has to show that it lives.
        """
        with self.plane.turn():
            for lane in list(self.lanes.all_connected()):
                owner: Owner = lane.owner
                if owner.node_id != node_id:
                    continue
                if owner.leased and owner.use is None and owner.shard >= 0:
                    self.lanes.close(lane)  # nobody has it now
                    continue
                owner.doubted = Doubt(trio.current_time(), _activity(lane))
                if not owner.leased:  # within a transaction it would count as one of its commands
                    self.plane.submit(lane, PING, lambda frame, owner=owner: _believe(owner), pinned=True)  # type: ignore[misc]

    def _lose_dead(self) -> None:
        now = trio.current_time()
        for lane in list(self.lanes.all_connected()):
            owner: Owner = lane.owner
            doubted = owner.doubted
            if doubted is None or (owner.use is Use.BLOCK and owner.retiring_since is None):
                continue  # what blocks may be silent for as long as its client likes; a former primary frees it
            if doubted.seen != _activity(lane) or (owner.leased and not lane.fifo):
                owner.doubted = Doubt(now, _activity(lane))
            elif now - doubted.since > DOUBT + self.cluster.silence(owner.node_id):
                lane.lose("no reply, while its node answers others")
            elif now - doubted.since > DOUBT:
                self.cluster.hint()  # whether it does


def _believe(owner: Owner) -> None:
    owner.doubted = None


def _activity(lane: Lane) -> tuple[int, int, int]:
    """Changes whenever the lane sends or receives."""
    return lane.sent, lane.outstanding, id(lane.fifo[0]) if lane.fifo else 0
