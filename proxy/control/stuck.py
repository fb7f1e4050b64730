"""A defect of Valkey 9.1: scripts of a node stuck for good.

One call within a script that names keys of several slots (``redis.call('mget', 'a', 'b')``) fails, as it should; but
from then on every call of every script and function on that node fails with the same error, whoever's it is, PING
included.  (The client by which scripts call commands keeps the flag that says so; nothing but a new process clears it.)
Nothing can be done from here, but it can be told: the error alone says nothing of all that.
"""

from __future__ import annotations

import structlog

from proxy.codec import encode_request
from proxy.control.sending import Sender
from proxy.dataplane import Lane, Request
from proxy.topology.owners import Owner

NON_LOCAL = b"-ERR Attempted to access a non local key in a cluster node"
HARMLESS = encode_request([b"EVAL", b"return redis.call('ping')", b"0"])
ASK_AGAIN = 5.0  # seconds at least between two questions to one process
MOST_NODES = 1000  # remembered


class StuckScripts:
    """See the module."""

    def __init__(self, sender: Sender) -> None:
        self.plane = sender.plane
        self.lanes = sender.lanes
        self.log = structlog.get_logger("control")
        self._asked: dict[str, float] = {}
        self._told: set[str] = set()

    def held_back(self, request: Request, lane: Lane, frame: bytes) -> None:
        """A script met the error: pass it on, and see whether it is the node's by now."""
        if request.write and request.client is not None:
            request.client.wrote(lane)
        self.plane.answer(request, frame)
        owner: Owner = lane.owner
        run_id, now = owner.run_id, self.plane.now
        if run_id in self._told or now - self._asked.get(run_id, -ASK_AGAIN) < ASK_AGAIN or owner.shard < 0:
            return
        if len(self._asked) >= MOST_NODES:
            self._asked.clear()
        self._asked[run_id] = now

        def replied(reply: bytes) -> None:
            if reply.startswith(NON_LOCAL):
                self._told.add(run_id)
                self.log.error(
                    "scripts are stuck: a call that named keys of several slots has left the node refusing every call "
                    "of any script (a defect of Valkey 9.1); have a replica take over (CLUSTER FAILOVER) or restart it",
                    shard=owner.shard,
                    node=owner.node_id,
                )

        self.plane.submit(self.lanes.base[owner.shard], HARMLESS, replied, pinned=True)
