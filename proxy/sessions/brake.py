"""The brake on guessing passwords: the answer to a wrong one comes later and later."""

from __future__ import annotations

from collections import OrderedDict

import trio

FREE = 10  # wrong passwords from one address that are answered at once
FIRST = 0.05  # seconds for which the next one waits, doubled with each
LONGEST = 1.6
FORGIVEN = 2.0  # seconds in which one of them is forgotten
ADDRESSES = 10_000  # remembered; the one longest silent is forgotten first


class Brake:
    """See the module.  Right passwords are never held up, not even from the same address."""

    def __init__(self) -> None:
        self.failures = 0
        """Wrong passwords ever."""
        self._wrong: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address -> how many wrong passwords, and as of when."""

    async def wrong(self, address: str) -> None:
        """A wrong password came from this address: comes back when it may be answered."""
        self.failures += 1
        delay = self._count(address)
        if delay:
            await trio.sleep(delay)

    def _count(self, address: str) -> float:
        now = trio.current_time()
        count, since = self._wrong.pop(address, (0.0, now))
        count = max(0.0, count - (now - since) / FORGIVEN) + 1
        self._wrong[address] = count, now
        while len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)
        if count <= FREE:
            return 0.0
        return float(min(LONGEST, FIRST * 2.0 ** min(count - FREE - 1, 10)))
