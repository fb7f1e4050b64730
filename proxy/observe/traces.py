"""Traces: the way of single writes, followed to the replicas' disks.

A client that asked for it (``proxy.sessions.clients.TRACED``) has each of its writes timed by the data plane, on the
lane that it takes anyway.  From the reply on the write is followed here by the rounds of its shard: as a waiter that
wants more than there is, so that the rounds look again until all replicas have it; and as another behind a marker,
one after the other, or the second would slow down what the first shows.

What is kept of a trace is times, addresses and offsets: no key, no value.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from proxy.acks.incarnation import Incarnation
from proxy.acks.primary import Primary
from proxy.acks.rounds import ShardRounds
from proxy.acks.wait import Acks
from proxy.acks.waiters import Gate, Waiter
from proxy.dataplane import Sample
from shard.client import ConnectionLost, ReplyError, format_address

KEPT = 64  # traces, the latest
PATIENCE = 1.0  # seconds for the replicas, and as many for their disks
PROOF = 1.0  # seconds for what is read behind
ALL = 1 << 30  # more replicas than there are


class Trace:
    """One write.  Times are seconds since its bytes were read."""

    def __init__(self, sample: Sample, shard: dict[str, Any]) -> None:
        self.born = sample.born
        self.shard = shard
        self.route = sample.handed - sample.born
        self.done = sample.replied - sample.born
        self.ack = sample.relayed - sample.born
        self.offset: int | None = None
        self.online: int | None = None
        """Replicas that the primary sees."""
        self.replicas: dict[str, tuple[float, int]] = {}
        """Address -> (when it was seen to have the write, the offset it had then)."""
        self.primary_fsync: float | None = None
        self.replica_fsyncs: list[float] = []
        """When the first, the second ... replica was known to have it on disk."""
        self.notes: list[str] = []
        self.complete = False

    def now(self) -> float:
        return time.monotonic() - self.born

    def forget_copies(self, why: str) -> None:
        """What was seen of copies says nothing about this write."""
        self.replicas = {}
        self.forget_fsyncs(why)

    def forget_fsyncs(self, why: str) -> None:
        self.primary_fsync = None
        self.replica_fsyncs = []
        self.notes.append(why)

    def describe(self) -> dict[str, Any]:
        """As JSON.  ``replicate`` is None until all replicas that the primary sees have it, ``persist`` likewise."""
        acknowledged = max((at for at, _ in self.replicas.values()), default=None)
        if len(self.replicas) < (self.online or 0):
            acknowledged = None
        fsynced = self.replica_fsyncs[-1] if self.online and len(self.replica_fsyncs) == self.online else None
        persist = max(0.0, fsynced - acknowledged) if fsynced is not None and acknowledged is not None else None
        return {
            "complete": self.complete,
            "shard": self.shard,
            "at": {
                "write": 0.0,
                "route": self.route,
                "done": self.done,
                "ack": self.ack,
                "replicate": self.done,
                "acknowledged": acknowledged,
                "persist": acknowledged,
                "fsynced": fsynced,
            },
            "steps": {
                "dispatch": self.route,
                "execute": self.done - self.route,
                "relay": self.ack - self.done,
                "replicate": acknowledged - self.done if acknowledged is not None else None,
                "persist": persist,
            },
            "offset": self.offset,
            "replicas": [
                {"address": address, "at": at, "offset": offset} for address, (at, offset) in self.replicas.items()
            ],
            "replicas_online": self.online,
            "fsync": {"primary": self.primary_fsync, "replicas": self.replica_fsyncs},
            "notes": self.notes,
        }


class _Disk(Waiter):
    """Notes when WAITAOF's numbers rise."""

    __slots__ = ("full", "trace")

    def __init__(self, gate: Gate, trace: Trace) -> None:
        super().__init__(gate, ALL, 1, None)
        self.trace = trace
        self.full = trio.Event()

    def see(self, count: int, local: int = 0, online: int = 0) -> bool:
        trace = self.trace
        if local and trace.primary_fsync is None:
            trace.primary_fsync = trace.now()
        while len(trace.replica_fsyncs) < count:
            trace.replica_fsyncs.append(trace.now())
        if local and trace.online is not None and count >= trace.online:
            self.full.set()
        return super().see(count, local, online)


class Traces:
    """``describe(shard)`` is a shard as in the topology; ``keeps_aof(shard)`` whether its primary keeps an AOF;
    ``named(ip, port)`` by which host and port the topology has a node."""

    def __init__(
        self,
        acks: Acks,
        *,
        describe: Callable[[int], dict[str, Any] | None],
        keeps_aof: Callable[[int], bool],
        named: Callable[[str, int], tuple[str, int] | None],
    ) -> None:
        self._acks = acks
        self._describe = describe
        self._keeps_aof = keeps_aof
        self._named = named
        self._traces: OrderedDict[int, Trace] = OrderedDict()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Follow writes, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def of(self, client: int) -> dict[str, Any] | None:
        """The last write of a client that was timed, as JSON; None when there is none."""
        trace = self._traces.get(client)
        return trace.describe() if trace is not None else None

    def begin(self, sample: Sample) -> None:
        """The reply to a write of a client that asked for it was sent: follow it."""
        client = sample.batch.client
        shard = self._describe(sample.shard)
        followed = sum(1 for trace in self._traces.values() if not trace.complete)
        if shard is None or self._nursery is None or client.id in self._traces or followed >= KEPT:
            return  # of each client one write, and not too many at a time, so that nobody makes work without end
        trace = self._traces[client.id] = Trace(sample, shard)
        while len(self._traces) > KEPT:
            self._traces.popitem(last=False)
        stamp = sample.stamp
        self._nursery.start_soon(self._follow, trace, self._acks.of(sample.shard), stamp.incarnation)

    async def _follow(self, trace: Trace, rounds: ShardRounds, life: Incarnation) -> None:
        with trio.move_on_after(PATIENCE):
            await self._to_replicas(trace, rounds)
        if self._keeps_aof(rounds.shard):
            with trio.move_on_after(PATIENCE):
                await self._to_disks(trace, rounds)
        else:
            trace.notes.append("the primary keeps no AOF: nothing is fsynced")
        await self._prove(trace, rounds, life)
        trace.complete = True

    async def _to_replicas(self, trace: Trace, rounds: ShardRounds) -> None:
        waiter = Waiter(Gate(1), ALL, 0, None)
        full = trio.Event()

        def look(primary: Primary) -> None:
            if waiter.threshold is None:
                return
            trace.offset = waiter.threshold
            trace.online = len(primary.replicas)
            for host, port, acknowledged in primary.replicas:
                place = host.decode(), int(port)
                address = format_address(*(self._named(*place) or place))
                if int(acknowledged) >= waiter.threshold and address not in trace.replicas:
                    trace.replicas[address] = trace.now(), int(acknowledged)
            if len(trace.replicas) >= trace.online:
                full.set()

        rounds.steps.lookers.append(look)
        rounds.join(waiter)
        try:
            await full.wait()
        finally:
            rounds.leave(waiter)
            rounds.steps.lookers.remove(look)

    @staticmethod
    async def _to_disks(trace: Trace, rounds: ShardRounds) -> None:
        gate = Gate(1)
        waiter = _Disk(gate, trace)
        rounds.join_fsync(waiter, wrote=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_first, gate.wait, nursery.cancel_scope)
                nursery.start_soon(_first, waiter.full.wait, nursery.cancel_scope)
        finally:
            rounds.leave(waiter)
        if gate.failure is not None:
            trace.notes.append(str(gate.failure).removeprefix("ERR "))

    @staticmethod
    async def _prove(trace: Trace, rounds: ShardRounds, life: Incarnation) -> None:
        """What was seen counts only if the primary is still in the life that took the write."""
        verdict = None
        with trio.move_on_after(PROOF), suppress(ConnectionLost, ReplyError):
            verdict = await rounds.verdict(fsync=bool(trace.replica_fsyncs or trace.primary_fsync))
        if verdict is None or verdict.incarnation is not life.present:
            trace.forget_copies("the primary that took the write is no longer in charge: its copies are not known")
        elif verdict.untrusted is not None:
            trace.forget_fsyncs(verdict.untrusted.removeprefix("ERR "))


async def _first(wait: Callable[[], Any], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
