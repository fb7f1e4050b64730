"""Reaching a shard's primary whenever that is wanted, with a pause behind each failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from shard.client import ConnectionLost, ReplyError

RETRY = 0.05  # seconds between attempts to reach a shard's primary


class Reacher:
    """See the module.

    ``reach()`` opens the connections; ``gave_up()`` is called when it could not, ``go_on()`` behind every attempt, to
    see whether there is something to ask, or whether another attempt is wanted.
    """

    def __init__(
        self, reach: Callable[[], Awaitable[object]], gave_up: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        self.failed = False
        """What was reached last did not answer as it should: the next attempt waits a little."""
        self._reach = reach
        self._gave_up = gave_up
        self._go_on = go_on
        self._wanted = trio.Event()

    def want(self) -> None:
        """Somebody has something to ask."""
        self._wanted.set()

    async def run(self) -> None:
        """Do it, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self.failed:
                self.failed = False
                await trio.sleep(RETRY)
            try:
                await self._reach()
            except (ConnectionLost, ReplyError):
                self.failed = True
                self._gave_up()
            self._go_on()
