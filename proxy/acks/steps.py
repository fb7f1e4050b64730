"""Steps 5 to 8 as the rounds of one shard see them: how long replicas take to have a write, and to have it on disk.

Neither can be seen for a single write, so one offset at a time is timed on the rounds that run anyway.  ``replicate``:
from the look that sampled an offset which was not acknowledged yet to the first look that shows as many replicas to
have it as its first waiter asked for.  ``persist``: from the reply to a marker to the WAITAOF that shows it on as many
replicas' disks; the way of the marker to the replicas is in it, since nothing tells the two apart.

Which rounds are timed does not depend on how they end, or the quick ones alone would be: who asks for more replicas
than there are is left out, and what is not reached within ``STUCK`` is counted as that long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import trio

from proxy.acks.primary import Primary
from proxy.acks.waiters import Waiter

Step = Literal["replicate", "persist"]
STUCK = 10.0  # seconds


class Recorder(Protocol):
    """Who keeps the figures.  Quick, and never raises."""

    def round(self, waiters: int) -> None:
        """A round was put to the shard for so many."""

    def step(self, step: Step, seconds: float) -> None:
        """A step took so long."""


class Unrecorded:
    """Nobody."""

    def round(self, waiters: int) -> None: ...

    def step(self, step: Step, seconds: float) -> None: ...


class Timing:
    """One offset, or marker, on its way to ``want`` replicas."""

    __slots__ = ("offset", "since", "want")

    def __init__(self, want: int, offset: int = 0) -> None:
        self.want = want
        self.offset = offset
        self.since = trio.current_time()

    @property
    def seconds(self) -> float:
        return trio.current_time() - self.since


class Steps:
    """See the module.  The rounds tell it what they do; ``lookers`` are shown each look at the primary."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.lookers: list[Callable[[Primary], None]] = []
        self.last: dict[Step, float] = {"replicate": -math.inf, "persist": -math.inf}
        """When a round of the kind began last, on trio's clock."""
        self._replicate: Timing | None = None

    def sampled(self, waiters: Sequence[Waiter], offset: int, acknowledged: Sequence[int]) -> None:
        """A round began for ``waiters`` with this offset."""
        self.recorder.round(sum(waiter.sessions for waiter in waiters))
        self.last["replicate"] = trio.current_time()
        self.awaited(waiters[0], offset, acknowledged)

    def awaited(self, waiter: Waiter, offset: int, acknowledged: Sequence[int]) -> None:
        """Somebody waits for an offset from now on."""
        if self._replicate is not None or waiter.at_once or not 0 < waiter.want <= len(acknowledged):
            return
        if not _have(acknowledged, offset, waiter.want):
            self._replicate = Timing(waiter.want, offset)

    def looked(self, primary: Primary, acknowledged: Sequence[int]) -> None:
        """What each online replica has by the look that just came back."""
        for looker in tuple(self.lookers):
            looker(primary)
        timing = self._replicate
        if timing is None:
            return
        seconds = timing.seconds
        if _have(acknowledged, timing.offset, timing.want) or seconds >= STUCK:
            self._replicate = None
            self.recorder.step("replicate", seconds)

    def idle(self) -> None:
        """Nobody waits any more, so nobody looks."""
        self._replicate = None

    def marked(self, waiters: Sequence[Waiter]) -> Timing | None:
        """A round began for ``waiters``, whose marker was just answered; what is to be timed of it."""
        self.recorder.round(sum(waiter.sessions for waiter in waiters))
        self.last["persist"] = trio.current_time()
        return Timing(waiters[0].want) if waiters[0].want > 0 and not waiters[0].at_once else None

    def counted(self, timing: Timing | None, count: int) -> Timing | None:
        """WAITAOF told how many replicas have the marker on disk; what is still to be timed."""
        if timing is None:
            return None
        seconds = timing.seconds
        if count < timing.want and seconds < STUCK:
            return timing
        self.recorder.step("persist", seconds)
        return None


def _have(acknowledged: Sequence[int], offset: int, want: int) -> bool:
    return sum(1 for each in acknowledged if each >= offset) >= want
