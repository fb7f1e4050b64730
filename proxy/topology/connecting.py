"""Connecting: the handshake of every lane, behind the end of our dead ones at the node."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from proxy.acks.incarnation import Life, parse_info
from proxy.routing.slot_map import Node
from proxy.topology.logins import Logins
from proxy.topology.owners import Identity, Owner
from shard.client import Arg, ConnectionLost, ControlConnection, Credentials, ReplyError

KEEPALIVE = 30  # seconds of silence on a lane before the kernel probes its peer
SETTLE = 5.0  # seconds at most for which a node that says it does not serve yet is waited for before its lane is used;
# a primary that was started anew takes 2 s and more (cluster_legacy.c: CLUSTER_WRITABLE_DELAY)
SETTLE_LOOK = 0.01  # seconds between two looks whether it does


class Connected(NamedTuple):
    """A connection with its handshake done."""

    connection: ControlConnection
    life: Life
    client_id: int
    late: int
    """How often something sent on another one was in doubt before our dead connections there were killed."""


class Graves(NamedTuple):
    """Our connections to one process that ended here, and may not have there."""

    run_id: str
    client_ids: set[int]


class Connector:
    """See the module.  ``leads(node, shard)``: whether it is the shard's present primary."""

    def __init__(
        self, credentials: Credentials, connect_timeout: float, logins: Logins, leads: Callable[[Node, int], bool]
    ) -> None:
        self.credentials = credentials
        self.connect_timeout = connect_timeout
        self.connects = 0
        """How often it was done."""
        self._logins = logins
        self._leads = leads
        self._graves: dict[str, Graves] = {}
        self._late: Counter[str] = Counter()
        """By node: how often a connection of ours ended here while something sent on it may still reach the node."""

    async def connect(self, target: Node, identity: Identity, settles: int | None = None) -> Connected:
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
            late = self._late[life.node_id]
            await self._bury(connection, life)
            if settles is not None:
                await self._settled(target, settles, connection)
            # All of the above is ours to ask and may be denied to the user: it logs in last.
            await self._logins.log_in(connection, identity.user, life.run_id)
        except BaseException:
            connection.abort()
            raise
        self.connects += 1
        return Connected(connection, life, int(client_id), late)

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

    def lost(self, owner: Owner) -> None:
        """A connection ended here, and may not have at the node: it will be killed there."""
        graves = self._graves.get(owner.node_id)
        if graves is None or graves.run_id != owner.run_id:
            graves = self._graves[owner.node_id] = Graves(owner.run_id, set())
        graves.client_ids.add(owner.client_id)

    def beware(self, node_id: str) -> None:
        """A connection ended here, and something sent on it may still run at the node."""
        self._late[node_id] += 1

    def is_outdated(self, made: Connected) -> bool:
        """Whether a connection ended here meanwhile that has yet to be killed at the node."""
        return made.late != self._late[made.life.node_id]


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that vanished while its command blocks and nothing is sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE // 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
