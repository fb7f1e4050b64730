"""The switchovers of one proxy: one at a time, whoever asks, and what is told of each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Literal

import structlog
import trio

from proxy.switchover.choice import Refused, choose, name_of, text_of
from proxy.switchover.procedure import Holds, Incomplete, Procedure, RolledBack
from proxy.topology.cluster import Cluster

MOST_STALL = 3.0  # seconds, where nobody says
LEAST_STALL = 0.2
OF_HOLD = 0.5  # of ``timeouts.hold`` that a stall may take, so that no held command comes to its end

Result = Literal["done", "incomplete", "rolled_back"]
"""``incomplete``: the new primary leads, and something behind that is not as it should be."""
Observe = Callable[[Result, float, float], None]
"""``observe(result, seconds, stall)``."""


class Report:
    """What was told of one switchover so far; a list of dictionaries, the last with ``result``."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.over = False
        self._told = trio.Event()
        self._began = time.monotonic()

    def add(self, line: dict[str, Any], *, last: bool = False) -> None:
        self.lines.append({**line, "at_ms": round((time.monotonic() - self._began) * 1000, 1)})
        self.over = last
        self._told.set()
        self._told = trio.Event()

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Every line, as it comes; who stops listening stops nothing."""
        seen = 0
        while True:
            told = self._told
            for line in self.lines[seen:]:
                seen += 1
                yield line
            if self.over and seen == len(self.lines):
                return
            if seen == len(self.lines):
                await told.wait()


class Switchovers:
    """See the module.

    ``observe`` counts one that is over; ``longest_hold``: seconds for which a command is held at most
    (``timeouts.hold``).
    """

    def __init__(self, cluster: Cluster, holds: Holds, observe: Observe, longest_hold: float) -> None:
        self.cluster = cluster
        self.log = structlog.get_logger("switchover")
        self._holds = holds
        self._observe = observe
        self._most = longest_hold * OF_HOLD
        self._under_way: str | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Carry out what :meth:`begin` began, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def begin(self, shard: str, to: str | None = None, most_stall: float | None = None) -> Report:
        """Begin one; it goes on whether or not its report is followed.  Raises ``Refused``.

        ``shard``: an id, the beginning of one, or the address of a node; ``to``: a replica, named likewise (None:
        the one that is furthest); ``most_stall``: seconds for which commands may be held.
        """
        if self._nursery is None:
            raise Refused("the proxy is still starting; try again when it is ready", 503)
        if self._under_way is not None:
            raise Refused(f"a switchover of {self._under_way} is under way; try again when it is over")
        most = min(MOST_STALL, self._most) if most_stall is None else most_stall
        if not LEAST_STALL <= most <= self._most:
            limit = "half of timeouts.hold, above which clients would see errors"
            raise Refused(f"the longest stall has to be from {LEAST_STALL:g} to {self._most:g} s ({limit})", 400)
        choice = choose(self.cluster, shard, to)
        report = Report()

        def tell(step: str, details: dict[str, Any]) -> None:
            self.log.info(f"switchover: {step}", shard=choice.shard.id.decode(), **details)
            report.add({"step": step, **details})

        self._under_way = name_of(choice.shard)
        procedure = Procedure(self.cluster, self._holds, choice, most=most, tell=tell)
        self._nursery.start_soon(partial(self._carry_out, procedure, report))
        return report

    async def _carry_out(self, procedure: Procedure, report: Report) -> None:
        began = time.monotonic()
        try:
            async with trio.open_nursery() as nursery:
                result, why = await self._result(procedure, nursery)
        finally:
            self._under_way = None
        seconds = time.monotonic() - began
        self._observe(result, seconds, procedure.stall)
        choice = procedure.choice
        line = {
            "result": result,
            "shard": choice.shard.id.decode(),
            "from": text_of(choice.primary),
            "to": text_of(choice.replica),
            "stall_ms": round(procedure.stall * 1000, 1),
            "silence_ms": round(procedure.silence * 1000, 1),
        }
        say = self.log.info if why is None else self.log.warning
        say("switchover: over", seconds=round(seconds, 3), **line, **({"reason": why} if why else {}))
        report.add(line | ({"error": why} if why else {}), last=True)

    async def _result(self, procedure: Procedure, nursery: trio.Nursery) -> tuple[Result, str | None]:
        """How it ended, and the reason where it is not done."""
        try:
            await procedure.run(nursery)
        except RolledBack as failure:
            return "rolled_back", str(failure)
        except Incomplete as failure:
            return "incomplete", str(failure)
        except Exception as defect:  # one switchover is lost by it, not the proxy
            self.log.error("defect: a switchover was broken off", exc_info=defect)
            return "incomplete", "of a defect in the proxy; its log tells more"
        return "done", None
