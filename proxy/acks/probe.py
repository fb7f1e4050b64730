"""Probes: where nobody asks for acknowledgments, the proxy does now and then, so that steps 5 to 8 are measured always.

A probe is a waiter like any other.  That of ``replicate`` writes nothing: a request for acknowledgments itself takes a
few bytes of the replication stream, which the acknowledgment of the next one shows to have arrived.  That of
``persist`` needs a marker, so it is put only to a shard that keeps an AOF.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import trio

from proxy.acks.rounds import ShardRounds
from proxy.acks.wait import Acks
from proxy.acks.waiters import Gate, Waiter
from shard.client import ConnectionLost, ReplyError

PATIENCE = 2.0  # seconds for one probe
SETTLES = 0.01  # seconds until the bytes of the first request are in the stream


class Probes:
    """``every`` so many seconds, 0 for never; ``replicas(shard)`` is how many of a shard's replicas answer;
    ``keeps_aof(shard)`` whether its primary does.
    """

    def __init__(
        self, acks: Acks, every: float, *, replicas: Callable[[int], int], keeps_aof: Callable[[int], bool]
    ) -> None:
        self._acks = acks
        self._every = every or math.inf
        self._replicas = replicas
        self._keeps_aof = keeps_aof

    async def run(self) -> None:
        """Probe the shards that are due, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._every)
                for shard in self._acks.shards():
                    if self._replicas(shard):
                        nursery.start_soon(self._probe, self._acks.of(shard), self._replicas(shard))

    async def _probe(self, rounds: ShardRounds, replicas: int) -> None:
        due = trio.current_time() - self._every * 0.9
        with suppress(ConnectionLost, ReplyError):
            if rounds.steps.last["replicate"] < due:
                with trio.move_on_after(PATIENCE):
                    await rounds.nudge()
                    await trio.sleep(SETTLES)
                    await self._wait(rounds, Waiter(gate := Gate(1), replicas, 0, None), gate)
            if rounds.steps.last["persist"] < due and self._keeps_aof(rounds.shard):
                with trio.move_on_after(PATIENCE):
                    await self._wait(rounds, Waiter(gate := Gate(1), replicas, 1, None), gate, fsync=True)

    @staticmethod
    async def _wait(rounds: ShardRounds, waiter: Waiter, gate: Gate, fsync: bool = False) -> None:
        try:
            if fsync:
                rounds.join_fsync(waiter, wrote=True)
            else:
                rounds.join(waiter)
            await gate.wait()
        finally:
            rounds.leave(waiter)
