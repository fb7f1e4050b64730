"""The ack lanes to one primary: the connections by which its replicas are asked, none of which ever writes."""

from __future__ import annotations

import trio

from shard.client import ConnectionLost, ControlConnection, ReplyError

KICK = ("WAIT", 2147483647, 0)
"""More replicas than there are, for ever: it makes the primary ask every replica for an acknowledgment."""
KICK_AGAIN = 1.0  # seconds; replicas speak on their own once a second, so this is no more than a reminder

UNREAD = 0.001  # seconds before a kick that was not found blocked is looked for again


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
        self._freed = False
        """The reply to the last kick is there, or on its way."""

    @property
    def _free(self) -> tuple[str, str, int]:
        return "CLIENT", "UNBLOCK", self.kicker_id

    async def look(self, kick_follows: bool = False) -> tuple[int, list[int]]:
        """The stream's offset and what each online replica acknowledged.  Raises ``Demoted``, ``ConnectionLost``.

        ``kick_follows``: the kicker is freed on the same way, which saves :meth:`kick` one.
        """
        if kick_follows and self.kicker.pending and not self._freed:
            role, freed = await self.main.pipeline(["ROLE"], self._free)
            self._freed = freed == 1
            if isinstance(role, ReplyError):
                raise role
        else:
            role = await self.main.call("ROLE")
        if role[0] != b"master":
            raise Demoted("the node is not a primary any more")
        return int(role[1]), [int(replica[2]) for replica in role[2]]

    async def kick(self) -> None:
        """Ask the replicas to acknowledge what was sampled before this call."""
        self.kicked = trio.current_time()
        if self.kicker.pending:
            await self._receive_kick()
        await self.kicker.send(*KICK)

    async def _receive_kick(self) -> None:
        """Have the last kick answered."""
        patience = trio.current_time() + self.kicker.timeout
        while not self._freed:
            self._freed = await self.main.call(*self._free) == 1
            if self._freed:
                break
            # It does not block: the node has not read it yet, as the two connections are served in any order; or it
            # was refused.  To await its reply as if it had been freed would be to wait for ever.
            with trio.move_on_after(UNREAD):
                await self.kicker.receive()
                return
            if trio.current_time() > patience:
                raise ConnectionLost(f"{self.kicker.address}: a kick was neither taken nor answered")
        self._freed = False
        await self.kicker.receive()

    def close(self) -> None:
        for connection in (self.main, self.kicker, *self.free):
            connection.abort()
