"""The ack lanes to one primary: the connections by which its replicas are asked, none of which ever writes."""

from __future__ import annotations

from typing import Any

import trio

from shard.client import ConnectionLost, ControlConnection, ReplyError

KICK = ("WAIT", 2147483647, 0)
"""More replicas than there are, for ever: it makes the primary ask every replica for an acknowledgment."""
STOCK = 64
"""So many of them stand on the kicker, one behind another: to free the first is to have the next one run."""
KICK_AGAIN = 1.0  # seconds; replicas speak on their own once a second, so this is no more than a reminder
MISSES = 3  # kicks in a row that found the kicker not blocked, before it is looked at
UNREAD = 0.001  # seconds given to it then


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
        self.doubtful = False
        """The last kick freed none: the next look kicks again."""
        self.free: list[ControlConnection] = []
        self.lanes = 0
        self.replicas: list[Any] = []
        """As the last look showed them: host, port and offset acknowledged, each as bytes."""
        self._stocked = 0
        """Kicks on the kicker that were not freed, the one that blocks included."""
        self._misses = 0

    async def look(self, kick: bool = False) -> tuple[int, list[int]]:
        """The stream's offset and what each online replica acknowledged.  Raises ``Demoted``, ``ConnectionLost``.

        ``kick``: behind that, ask the replicas to acknowledge what was sampled.
        """
        if kick:
            await self._stock()
            role, freed = await self.main.pipeline(["ROLE"], self._free)
            self._kicked(freed)
            if isinstance(role, ReplyError):
                raise role
        else:
            role = await self.main.call("ROLE")
        if role[0] != b"master":
            raise Demoted("the node is not a primary any more")
        self.replicas = role[2]
        return int(role[1]), [int(replica[2]) for replica in role[2]]

    async def kick(self) -> None:
        """Ask the replicas to acknowledge what was sampled before this call."""
        await self._stock()
        self._kicked(await self.main.call(*self._free))

    @property
    def _free(self) -> tuple[str, str, int]:
        return "CLIENT", "UNBLOCK", self.kicker_id

    def _kicked(self, freed: Any) -> None:
        # Not freed: the next one has yet to run, the two connections being served in any order, and will ask then. Or
        # there is none: the connection was killed, or somebody else freed what stood on it.
        self.kicked = trio.current_time()
        self.doubtful = freed != 1
        self._stocked -= freed == 1
        self._misses = 0 if freed == 1 else self._misses + 1

    async def _stock(self) -> None:
        """Have one more behind the one that blocks."""
        if self._misses >= MISSES:
            # To await a reply as if one had been freed would be to wait for ever; but it may have been refused, or the
            # connection be gone.
            with trio.move_on_after(UNREAD):
                await self.kicker.drop(self.kicker.pending)
            self._stocked = self.kicker.pending
            self._misses = 0
        if self._stocked < 2:
            await self.kicker.drop(self.kicker.pending - self._stocked)
            more = STOCK - self._stocked
            await self.kicker.send_times(more, *KICK)
            self._stocked += more

    def close(self) -> None:
        for connection in (self.main, self.kicker, *self.free):
            connection.abort()
