"""The ack lanes to one primary: the connections by which its replicas are asked, none of which ever writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from proxy.acks.incarnation import parse_info
from proxy.codec import encode_request
from proxy.dataplane import DataPlane
from shard.client import ConnectionLost, ControlConnection, ReplyError

KICK = encode_request([b"WAIT", b"2147483647", b"0"])
"""More replicas than there are, for ever: it makes the primary ask every replica for an acknowledgment."""
STOCK = 64
"""So many of them stand on the kicker, one behind another: to free the first is to have the next one run."""
KICK_AGAIN = 1.0  # seconds; replicas speak on their own once a second, so this is no more than a reminder
INFO = encode_request([b"INFO", b"replication"])


class Demoted(ConnectionLost):
    """The node says itself that it is no primary any more."""


class AckLane:
    """A connection that the data plane reads, so that replies reach acks in the turn in which they come in.

    ``lost(reason)`` is called when it is gone, unless it was closed here.
    """

    __slots__ = ("_lane", "_plane", "address", "lost")

    def __init__(self, plane: DataPlane, connection: ControlConnection, lost: Callable[[str], None]) -> None:
        self.address = connection.address
        self.lost = lost
        self._plane = plane
        self._lane = plane.new_lane(-1, self)
        plane.attach(self._lane, connection.detach(), None)

    @property
    def closed(self) -> bool:
        return self._lane.closed

    @property
    def pending(self) -> int:
        """Replies that are still to come."""
        return len(self._lane.fifo)

    def ask(self, raws: Sequence[bytes], done: Callable[[list[bytes]], None]) -> None:
        """Send requests in one packet; ``done`` gets their raw replies, in a turn of the data plane."""
        frames: list[bytes] = []
        with self._plane.turn():
            for raw in raws[:-1]:
                self._plane.submit(self._lane, raw, frames.append, pinned=True)
            self._plane.submit(self._lane, raws[-1], lambda frame: done([*frames, frame]), pinned=True)

    def send(self, raw: bytes, times: int) -> None:
        """Send a request so many times; nobody wants the replies."""
        with self._plane.turn():
            for _ in range(times):
                self._plane.submit(self._lane, raw, _unheard, pinned=True)

    def close(self) -> None:
        if not self._lane.closed:
            self._plane.close_lane(self._lane)


def _unheard(frame: bytes) -> None:
    """Nobody wants it."""


class Primary:
    """See the module: ``looker`` looks, ``kicker`` is kept blocked, ``main`` is for what takes its time."""

    def __init__(
        self,
        main: ControlConnection,
        looker: AckLane,
        kicker: AckLane,
        kicker_id: int,
        node_id: str,
        info: dict[str, str],
    ) -> None:
        self.main = main
        self.looker = looker
        self.node_id = node_id
        self.run_id = info.get("run_id", "")
        self.engine = "valkey" if "valkey_version" in info else "redis"
        self.version = info.get("valkey_version") or info.get("redis_version", "")
        self.kicked = trio.current_time() - KICK_AGAIN
        self.doubtful = False
        """The last kick freed none: the next look kicks again."""
        self.free: list[AckLane] = []
        """For markers."""
        self.replicas: list[tuple[bytes, bytes, bytes]] = []
        """As the last look showed them: host, port and offset acknowledged."""
        self.keeps_aof = True
        """By its settings, when they were read last."""
        self._kicker = kicker
        self._free = encode_request([b"CLIENT", b"UNBLOCK", b"%d" % kicker_id])

    @property
    def closed(self) -> bool:
        return self.main.closed or self.looker.closed or self._kicker.closed

    def look(self, requests: Sequence[bytes], done: Callable[[list[bytes]], None], kick: bool = False) -> None:
        """Ask all of it as of one moment; ``kick``: behind that, ask replicas to acknowledge what it shows."""
        if not kick:
            self.looker.ask(requests, done)
            return

        def kicked(frames: list[bytes]) -> None:
            self._kicked(frames.pop())
            done(frames)

        self._stock()
        self.looker.ask([*requests, self._free], kicked)

    def kick(self) -> None:
        """Ask the replicas to acknowledge what was sampled before this call.  Raises ``ConnectionLost``."""
        if self.closed:
            raise ConnectionLost("the ack lanes are closed")
        self._stock()
        self.looker.ask([self._free], lambda frames: self._kicked(frames[0]))

    def _kicked(self, freed: bytes) -> None:
        # Not freed: the next one has yet to run, the two connections being served in any order, and will ask then. Or
        # somebody else freed what stood on it.
        self.doubtful = freed != b":1\r\n"
        if not self.doubtful:
            self.kicked = trio.current_time()

    def _stock(self) -> None:
        """Have one more behind the one that blocks."""
        if self._kicker.pending < 2:
            self._kicker.send(KICK, STOCK)

    def close(self) -> None:
        self.looker.close()
        self._kicker.close()
        self.main.abort()

    @classmethod
    async def reach(
        cls, plane: DataPlane, connect: Callable[[], Awaitable[ControlConnection]], lost: Callable[[str], None]
    ) -> Primary:
        """Open the ack lanes.  Raises ``ConnectionLost``, ``ReplyError``."""
        opened: list[ControlConnection] = []
        try:
            said = []
            for _ in range(3):
                opened.append(await connect())
                replies = await opened[-1].pipeline(["CLUSTER", "MYID"], ["INFO", "server"], ["CLIENT", "ID"])
                for reply in replies:
                    if isinstance(reply, ReplyError):
                        raise reply
                said.append((replies[0].decode(), parse_info(replies[1]), int(replies[2])))
            if len({(node_id, info.get("run_id")) for node_id, info, _ in said}) > 1:
                raise ConnectionLost("the ack lanes met different nodes")
        except BaseException:
            for connection in opened:
                connection.abort()
            raise
        node_id, info, _ = said[0]
        main, looker, kicker = opened
        return cls(main, AckLane(plane, looker, lost), AckLane(plane, kicker, lost), said[2][2], node_id, info)
