"""Those who wait for replicas to have an offset: a look costs nothing for those whom it does not satisfy."""

from __future__ import annotations

import itertools
from heapq import heapify, heappop, heappush

from proxy.acks.waiters import Waiter

PURGE = 64  # who left is taken out once they are so many, and more than those who wait


class Waitlist:
    """Waiters by how many replicas they want, and by their thresholds.  True while somebody waits."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        """What each online replica had at the last look."""
        self._looks = 0
        self._unsampled: list[Waiter] = []
        self._by_want: dict[int, list[tuple[int, int, Waiter]]] = {}
        self._at_once: list[Waiter] = []
        self._number = itertools.count()
        self._kept = 0
        self._left = 0

    def __bool__(self) -> bool:
        return self._kept > self._left

    @property
    def unsampled(self) -> bool:
        """Somebody may want an offset sampled."""
        return bool(self._unsampled)

    def add(self, waiter: Waiter) -> None:
        """It stays until a look satisfies it, or it leaves."""
        self._list(waiter)
        waiter.joined = self._looks
        if waiter.threshold is None:
            self._unsampled.append(waiter)
        else:
            self._place(waiter, waiter.threshold)

    def _place(self, waiter: Waiter, threshold: int) -> None:
        if waiter.at_once:
            self._at_once.append(waiter)
        else:
            heappush(self._by_want.setdefault(waiter.want, []), (threshold, next(self._number), waiter))

    def take_unsampled(self) -> list[Waiter]:
        """Those for whom an offset is about to be sampled: :meth:`sampled` or :meth:`put_back` has to follow."""
        unsampled, self._unsampled = self._unsampled, []
        return unsampled

    def put_back(self, unsampled: list[Waiter]) -> None:
        """Nothing was sampled."""
        self._unsampled = self._staying(unsampled) + self._unsampled

    def sampled(self, unsampled: list[Waiter], offset: int, now: float = 0.0) -> None:
        """They wait for this offset from now on."""
        for waiter in unsampled:
            waiter.threshold = offset
            waiter.since = now
            self._place(waiter, offset)

    def release(self, acknowledged: list[int]) -> None:
        """Let go those who have enough by what each online replica has."""
        self.acknowledged = acknowledged
        self._looks += 1
        best = sorted(acknowledged, reverse=True)
        for want, heap in list(self._by_want.items()):
            while heap and (want <= 0 or (want <= len(best) and heap[0][0] <= best[want - 1])):
                waiter = heappop(heap)[2]
                self._forget(waiter)
                if not waiter.done:
                    waiter.see(self._count(waiter))
            if not heap:
                del self._by_want[want]
        at_once, self._at_once = self._at_once, []
        for waiter in at_once:
            self._forget(waiter)
            if not waiter.done and not waiter.see(self._count(waiter), online=len(acknowledged)):
                self._list(waiter)
                self._at_once.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """One that was not satisfied is gone; its count is what the last look showed, if there was any since it came.

        Harmless for one that is not listed.
        """
        if not waiter.listed:
            return
        if waiter.threshold is not None and self._looks > waiter.joined:
            waiter.count = self._count(waiter)
        waiter.done = True
        self._left += 1
        if self._left > max(PURGE, self._kept // 2):
            self._purge()

    def _count(self, waiter: Waiter) -> int:
        threshold = waiter.threshold or 0
        return sum(1 for offset in self.acknowledged if offset >= threshold)

    def _list(self, waiter: Waiter) -> None:
        waiter.listed = True
        self._kept += 1

    def _forget(self, waiter: Waiter) -> None:
        waiter.listed = False
        self._kept -= 1
        if waiter.done:
            self._left -= 1

    def _staying(self, waiters: list[Waiter]) -> list[Waiter]:
        for waiter in waiters:
            if waiter.done:
                self._forget(waiter)
        return [waiter for waiter in waiters if waiter.listed]

    def _purge(self) -> None:
        # While a shard cannot be reached nobody is sampled or looked at, and these grow as well.
        self._unsampled = self._staying(self._unsampled)
        self._at_once = self._staying(self._at_once)
        for want, heap in list(self._by_want.items()):
            self._staying([waiter for _, _, waiter in heap])
            heap[:] = [entry for entry in heap if entry[2].listed]
            heapify(heap)
            if not heap:
                del self._by_want[want]
