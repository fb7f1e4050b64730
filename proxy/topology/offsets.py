"""Which replication offset a node had when, and by that, how far a replica is behind."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

KEPT = 1200  # changes of the offset; at two probes a second, ten minutes of steady writing


class Lag(NamedTuple):
    """How far a replica is behind its primary."""

    size: int
    """Bytes of the replication stream."""
    seconds: float
    """Age of the first of them, as closely as the probes tell."""


class Offsets:
    """A node's offsets as its probes read them, times on trio's clock."""

    def __init__(self) -> None:
        self._changes: deque[list[float]] = deque(maxlen=KEPT)
        """[offset, when it was read first, when it was read last], ascending."""

    def add(self, now: float, offset: int) -> None:
        """The node has ``offset`` at ``now``.  One that is lower than before is another history's."""
        if self._changes and offset < self._changes[-1][0]:
            self._changes.clear()
        if self._changes and self._changes[-1][0] == offset:
            self._changes[-1][2] = now
        else:
            self._changes.append([offset, now, now])

    def until(self, offset: float, at: float, now: float) -> Lag:
        """How far behind who has ``offset`` is at ``now``, when all it may know is what this node had at ``at``."""
        past = [change for change in self._changes if change[1] <= at]
        if not past or past[-1][0] <= offset:
            return Lag(0, 0.0)
        behind = next(change for change in past if change[0] > offset)
        return Lag(int(past[-1][0] - offset), max(0.0, now - behind[1]))
