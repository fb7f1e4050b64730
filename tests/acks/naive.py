"""Naive fan-out: the obvious WAIT of a proxy, which the tests here catch lying.

Writes go to the primary of their slot, WAIT to every primary, and the least of the answers is the answer.  A connection
that was lost is made anew, and a WAIT that was lost with it is asked again: it changes nothing, so why not?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.system.wire import Closed, Wire

Address = tuple[str, int]


class Refused(Exception):
    """A node's error in place of a number: it is no primary any more, say."""


class Naive:
    """``primaries`` tells today's primaries, every time it is asked.  ``fresh``: a new connection for each WAIT."""

    def __init__(self, primaries: Callable[[], Sequence[Address]], fresh: bool = False) -> None:
        self.primaries = primaries
        self.fresh = fresh
        self.lanes: dict[Address, Wire] = {}

    def call(self, address: Address, *args: bytes | str | int) -> bytes:
        """One command on the connection to a primary, on a new one when that is lost.  Raises ``OSError``."""
        for _ in range(2):
            lane = self.lanes.get(address) or self.lanes.setdefault(address, Wire(*address))
            try:
                return lane.call(*args)
            except (Closed, OSError):
                lane.close()
                del self.lanes[address]
        raise ConnectionResetError

    def wait(self, replicas: int, timeout: int) -> int:
        """Raises ``Refused``, ``OSError``."""
        return min(self._ask("WAIT", replicas, timeout))

    def waitaof(self, local: int, replicas: int, timeout: int) -> tuple[int, int]:
        counts = self._ask("WAITAOF", local, replicas, timeout)
        return min(counts[::2]), min(counts[1::2])

    def _ask(self, *args: str | int) -> list[int]:
        """The integers of every primary's reply."""
        if self.fresh:
            self.close()
        numbers: list[int] = []
        for address in self.primaries():
            reply = self.call(address, *args)
            if reply.startswith(b"-"):
                raise Refused(reply)
            numbers += [int(line[1:]) for line in reply.split(b"\r\n") if line.startswith(b":")]
        return numbers

    def close(self) -> None:
        for lane in self.lanes.values():
            lane.close()
        self.lanes.clear()
