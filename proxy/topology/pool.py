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
        self._washing: defaultdict[tuple[Identity, int], list[Lane]] = defaultdict(list)
        """Nobody has them, but what makes them clean is not answered yet: what is put behind that finds them so."""
        self._open: defaultdict[int, int] = defaultdict(int)
        """By shard, idle ones included."""
        self._in_use: Counter[tuple[int, Use]] = Counter()
        self._waiting: defaultdict[int, trio.lowlevel.ParkingLot] = defaultdict(trio.lowlevel.ParkingLot)
        """By shard, who waits for a lane for a turn."""

    def __len__(self) -> int:
        """How many are open, idle ones included."""
        return sum(self._open.values())

    def take(self, identity: Identity, shard: int, use: Use) -> Lane | None:
        """One that nobody has; None: there is none, and one may be made.

        Raises ``Busy`` when as many are in use as may be.
        """
        if self.used_up(shard, use):
            limit: int = getattr(self._settings, use.value)
            raise Busy(f"ERR all {limit} leased lanes of the shard are in use (lanes.{use.value}): try again")
        for free in self._idle[identity, shard], self._washing[identity, shard]:
            while free:
                lane = free.pop()
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

    def wash(self, lane: Lane) -> None:
        """Nobody has it any more, and it is being made clean."""
        owner: Owner = lane.owner
        self._not_in_use(owner)
        self._washing[owner.identity, owner.shard].append(lane)

    def washed(self, lane: Lane) -> bool:
        """It is clean; False: somebody has it already."""
        washing = self._washing[lane.owner.identity, lane.owner.shard]
        if lane not in washing:
            return False
        washing.remove(lane)
        return True

    def forget(self, lane: Lane) -> None:
        """It is lost, or about to be closed."""
        owner: Owner = lane.owner
        self._open[owner.shard] -= 1
        self._not_in_use(owner)
        for free in self._idle[owner.identity, owner.shard], self._washing[owner.identity, owner.shard]:
            if lane in free:
                free.remove(lane)

    def _not_in_use(self, owner: Owner) -> None:
        if owner.use is not None:
            self._in_use[owner.shard, owner.use] -= 1
            if owner.use is Use.TURN:
                self._waiting[owner.shard].unpark()
            owner.use = None
        owner.patience = 0.0

    def is_unused(self, lane: Lane) -> bool:
        key = lane.owner.identity, lane.owner.shard
        return lane in self._idle[key] or lane in self._washing[key]

    def unused(self, shard: int, identity: Identity | None = None) -> list[Lane]:
        """Those of a shard that nobody has, of one identity or of all; clean ones first."""
        return [
            lane
            for kind in (self._idle, self._washing)
            for (who, index), free in kind.items()
            if index == shard and identity in (None, who)
            for lane in free
        ]

    def idle_before(self, moment: float) -> list[Lane]:
        """Those that nobody has had since then."""
        self._idle = defaultdict(list, {key: idle for key, idle in self._idle.items() if idle})
        self._washing = defaultdict(list, {key: free for key, free in self._washing.items() if free})
        return [lane for idle in self._idle.values() for lane in idle if lane.owner.idle_since < moment]
