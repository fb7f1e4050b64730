"""The ack lanes to one primary: the connections by which its replicas are asked, none of which ever writes."""

from __future__ import annotations

import trio

from shard.client import ConnectionLost, ControlConnection

KICK = ("WAIT", 2147483647, 0)
"""More replicas than there are, for ever: it makes the primary ask every replica for an acknowledgment."""
KICK_AGAIN = 1.0  # seconds; replicas speak on their own once a second, so this is no more than a reminder


class Demoted(ConnectionLost):
    """The node says itself that it is no primary any more."""


class Primary:
    """The ack lanes to one primary: ``main`` looks, ``kicker`` is kept blocked; neither ever writes."""

    def __init__(self, main: ControlConnection, kicker: ControlConnection, node_id: str, info: dict[str, str]) -> None:
        self.main = main
        self.kicker = kicker
        self.node_id = node_id
        self.run_id = info.get("run_id", "")
        self.kicker_id = 0
        self.engine = "valkey" if "valkey_version" in info else "redis"
        self.version = info.get("valkey_version") or info.get("redis_version", "")
        self.kicked = -KICK_AGAIN
        self.free: list[ControlConnection] = []
        self.lanes = 0

    async def look(self) -> tuple[int, list[int]]:
        """The stream's offset and what each online replica acknowledged.  Raises ``Demoted``, ``ConnectionLost``."""
        role = await self.main.call("ROLE")
        if role[0] != b"master":
            raise Demoted("the node is not a primary any more")
        return int(role[1]), [int(replica[2]) for replica in role[2]]

    async def kick(self) -> None:
        """Ask the replicas to acknowledge what was sampled before this call."""
        self.kicked = trio.current_time()
        if self.kicker.pending:
            await self.main.call("CLIENT", "UNBLOCK", self.kicker_id)
            await self.kicker.receive()
        await self.kicker.send(*KICK)

    def close(self) -> None:
        for connection in (self.main, self.kicker, *self.free):
            connection.abort()
