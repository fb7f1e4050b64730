"""The pool of leased lanes: how many of each shard there are and may be, and which of them nobody has now."""

from __future__ import annotations

from collections import Counter, defaultdict

import trio

from proxy.dataplane import Lane
from proxy.settings import LaneSettings
from proxy.topology.owners import Busy, Identity, Owner, Use


class Pool:
    """See the module."""

    def __init__(self, settings: LaneSettings) -> None:
        self._settings = settings
        self._idle: defaultdict[tuple[Identity, int], list[Lane]] = defaultdict(list)
        self._open: defaultdict[int, int] = defaultdict(int)
        """By shard, idle ones included."""
        self._in_use: Counter[tuple[int, Use]] = Counter()
        self._waiting: defaultdict[int, trio.lowlevel.ParkingLot] = defaultdict(trio.lowlevel.ParkingLot)
        """By shard, who waits for a lane for a turn."""

    def __len__(self) -> int:
        """How many are open, idle ones included."""
        return sum(self._open.values())

    def take(self, identity: Identity, shard: int, use: Use) -> Lane | None:
        """An idle one; None: there is none, and one may be made.  Raises ``Busy`` when as many are in use as may be."""
        if self.used_up(shard, use):
            limit: int = getattr(self._settings, use.value)
            raise Busy(f"ERR all {limit} leased lanes of the shard are in use (lanes.{use.value}): try again")
        idle = self._idle[identity, shard]
        while idle:
            lane = idle.pop()
            if not lane.closed:
                return self.taken(lane, use)
        return None

    def used_up(self, shard: int, use: Use) -> bool:
        """Whether as many are in use as may be."""
        limit: int = getattr(self._settings, use.value)
        return self._in_use[shard, use] >= limit

    async def room(self, shard: int) -> None:
        """Come back when there is one for a turn."""
        while self.used_up(shard, Use.TURN):
            await self._waiting[shard].park()

    def taken(self, lane: Lane, use: Use) -> Lane:
        """Somebody has it now."""
        owner: Owner = lane.owner
        owner.use = use
        self._in_use[owner.shard, use] += 1
        return lane

    def opened(self, shard: int) -> None:
        """One more was made."""
        self._open[shard] += 1

    def full(self, shard: int) -> bool:
        """Whether there are as many as may be in use, of whatever kind."""
        return self._open[shard] >= self._settings.leased_per_shard + self._settings.blocked_per_shard

    def put_back(self, lane: Lane) -> None:
        """Nobody has it any more, and it is clean."""
        owner: Owner = lane.owner
        self._not_in_use(owner)
        owner.idle_since = trio.current_time()
        owner.doubted = None  # it has answered
        self._idle[owner.identity, owner.shard].append(lane)

    def forget(self, lane: Lane) -> None:
        """It is lost, or about to be closed."""
        owner: Owner = lane.owner
        self._open[owner.shard] -= 1
        self._not_in_use(owner)
        idle = self._idle[owner.identity, owner.shard]
        if lane in idle:
            idle.remove(lane)

    def _not_in_use(self, owner: Owner) -> None:
        if owner.use is not None:
            self._in_use[owner.shard, owner.use] -= 1
            if owner.use is Use.TURN:
                self._waiting[owner.shard].unpark()
            owner.use = None
        owner.patience = 0.0

    def is_idle(self, lane: Lane) -> bool:
        return lane in self._idle[lane.owner.identity, lane.owner.shard]

    def idle(self, shard: int, identity: Identity | None = None) -> list[Lane]:
        """Those of a shard that nobody has, of one identity or of all."""
        if identity is not None:
            return list(self._idle[identity, shard])
        return [lane for (_, index), idle in self._idle.items() if index == shard for lane in idle]

    def idle_before(self, moment: float) -> list[Lane]:
        """Those that nobody has had since then."""
        self._idle = defaultdict(list, {key: idle for key, idle in self._idle.items() if idle})
        return [lane for idle in self._idle.values() for lane in idle if lane.owner.idle_since < moment]
