"""When a shard is looked at again that has nothing to be looked for yet.

The clock of trio has whole milliseconds, acknowledgments take less.  So whoever rests is looked after behind each turn
of the data plane, which come often while there is much to do; the clock is for when there is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import trio


class Pace:
    """Calls back whoever rests, at the time he named or a little later.

    ``call(wake)`` does it, so that a defect of one need not be that of all.
    """

    def __init__(self, call: Callable[[Callable[[], None]], None] = lambda wake: wake()) -> None:
        self._call = call
        self.resting: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._next = math.inf
        self._sooner = trio.Event()

    def rest(self, who: Hashable, until: float, wake: Callable[[], None]) -> None:
        """Call ``wake`` at a time on trio's clock; once for each, the last one asked for."""
        self.resting[who] = until, wake
        if until < self._next:
            self._next = until
            self._sooner.set()

    def forget(self, who: Hashable) -> None:
        self.resting.pop(who, None)

    def turned(self) -> None:
        """Wake those whose time has come."""
        now = trio.current_time()
        for who, rest in list(self.resting.items()):
            until, wake = rest
            if until <= now and self.resting.get(who) is rest:  # else one woken before him has changed that
                del self.resting[who]
                self._call(wake)

    async def run(self) -> None:
        """Wake them by the clock, for ever."""
        while True:
            self._next = min((until for until, _ in self.resting.values()), default=math.inf)
            self._sooner = trio.Event()
            with trio.move_on_at(self._next):
                await self._sooner.wait()
            self.turned()
