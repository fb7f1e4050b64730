"""The board: the pauses of this proxy and of its peers, and the one that all of them make together.

Each proxy keeps its own and believes those of others for as long as it hears of them.  What ends all of them, CLIENT
UNPAUSE, is a *round*: a number that only rises.  A pause belongs to the round in which it was set, and one of an
earlier round than anybody has reached is over.  So it does not matter in which order proxies hear of each other.

Times are seconds on the caller's clock.  Nothing here reads a clock or waits.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import NamedTuple


class Mode(enum.IntEnum):
    """What is postponed; the larger, the more."""

    NONE = 0
    WRITE = 1
    ALL = 2


class Pause(NamedTuple):
    """Until ``end``, on the caller's clock."""

    mode: Mode
    end: float


NO_PAUSE = Pause(Mode.NONE, -math.inf)


class _Heard(NamedTuple):
    pause: Pause
    believed_until: float


class Board:
    """See the module."""

    def __init__(self) -> None:
        self.round = 0
        self.own = NO_PAUSE
        self._others: dict[str, _Heard] = {}

    def effective(self, now: float) -> Pause:
        """What holds now: the strictest mode of all that run, until the last one ends."""
        return _together([self.own, *(each.pause for each in self._believed(now))], now)

    def next_change(self, now: float) -> float:
        """When ``effective`` may be another by itself; ``inf``: not unless something is heard."""
        times = [self.own.end]
        times += [min(each.pause.end, each.believed_until) for each in self._others.values()]
        return min((time for time in times if time > now), default=math.inf)

    def add(self, mode: Mode, end: float, now: float) -> None:
        """CLIENT PAUSE, here.  It never ends earlier or holds less than what runs already does
        (networking.c: pauseClientsByClient)."""
        running = self.effective(now)
        self.own = Pause(max(mode, running.mode), max(end, running.end))

    def clear(self) -> None:
        """CLIENT UNPAUSE, here: all pauses are over."""
        self._begin(self.round + 1)

    def hear(self, peer: str, round_: int, pause: Pause, believed_until: float) -> None:
        """A peer tells its own pause, and the latest round that it knows of."""
        if round_ > self.round:
            self._begin(round_)
        if round_ < self.round or pause.mode is Mode.NONE:
            self._others.pop(peer, None)
        else:
            self._others[peer] = _Heard(pause, believed_until)

    def _begin(self, round_: int) -> None:
        self.round = round_
        self.own = NO_PAUSE
        self._others.clear()

    def _believed(self, now: float) -> list[_Heard]:
        for peer in [peer for peer, each in self._others.items() if each.believed_until <= now]:
            del self._others[peer]
        return list(self._others.values())


def _together(pauses: Iterable[Pause], now: float) -> Pause:
    running = [pause for pause in pauses if pause.mode is not Mode.NONE and pause.end > now]
    if not running:
        return NO_PAUSE
    return Pause(max(pause.mode for pause in running), max(pause.end for pause in running))
