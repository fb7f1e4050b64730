"""The metrics of one proxy: what only a histogram can keep, and the registry that renders all of them.

What lives here: figures that are told one by one and cannot be read later: durations, of WAITs, of rounds, of outages
and of the few commands that are timed, and how many waited for a round.  Everything else is read when somebody scrapes
(``proxy.observe.readout``), so that a figure costs the data path an addition and nothing else.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import trio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from proxy.observe import families
from proxy.observe.families import MANY_REPLICAS, Family
from proxy.observe.figures import Figures
from proxy.observe.readout import Build, Readout

WaitCommand = Literal["wait", "waitaof"]
ConcernResult = Literal["reached", "deadline", "passed", "refused", "unconfirmed"]
"""``deadline`` and ``refused`` answered an error, ``passed`` the reply although one of the two was met."""
WaitResult = Literal["reached", "deadline", "unconfirmed", "refused", "gone"]
"""``reached`` as many as asked; ``deadline`` fewer, at the timeout; ``unconfirmed`` a life had ended, so there was no
number; ``refused`` an error; ``gone`` the client left."""
SwitchoverResult = Literal["done", "incomplete", "rolled_back"]
"""``incomplete``: the new primary leads, and something behind that is not as it should be."""
StepName = Literal["dispatch", "execute", "relay", "replicate", "persist"]

_WAIT_COMMANDS: Final[tuple[WaitCommand, ...]] = ("wait", "waitaof")
_CONCERN_RESULTS: Final[tuple[ConcernResult, ...]] = ("reached", "deadline", "passed", "refused", "unconfirmed")
_WAIT_RESULTS: Final[tuple[WaitResult, ...]] = ("reached", "deadline", "unconfirmed", "refused", "gone")
_SWITCHOVER_RESULTS: Final[tuple[SwitchoverResult, ...]] = ("done", "incomplete", "rolled_back")
_STEPS: Final[tuple[StepName, ...]] = ("dispatch", "execute", "relay", "replicate", "persist")
END: Final = b"# EOF\n"  # of OpenMetrics
MOST_CHILDREN: Final = 64  # counters found without asking for their labels


class Metrics:
    """The registry of one proxy and the way to render it.

    Nothing is registered globally, so that several proxies (tests, embedding) can live in one process.
    """

    def __init__(self, figures: Figures, *, codec: str = "python", dataplane: str = "python") -> None:
        self.registry = CollectorRegistry()
        self._wait_children: dict[tuple[WaitCommand, WaitResult], Histogram] = {}
        self._replicas_children: dict[tuple[WaitCommand, int], Counter] = {}
        self._wait_seconds = self._histogram(families.WAITS)
        self._wait_replicas = self._counter(families.WAIT_REPLICAS)
        self._concern_replies = self._counter(families.CONCERNS)
        self._switchover_seconds = self._histogram(families.SWITCHOVER)
        self._switchover_stall = self._histogram(families.STALL)
        self._outage_seconds = self._histogram(families.OUTAGE)
        self._round_waiters = self._histogram(families.ROUND_WAITERS)
        self._step_seconds = self._histogram(families.STEPS)
        self._loop_delay = self._histogram(families.LOOP_DELAY)
        self._steps: dict[str, dict[StepName, Histogram]] = {}
        self._begin_at_zero()
        self.registry.register(Build(codec, dataplane))
        self.registry.register(Readout(figures))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _histogram(self, family: Family) -> Histogram:
        return Histogram(
            family.full_name, family.text, family.labels, buckets=family.buckets, registry=self.registry
        )

    def _counter(self, family: Family) -> Counter:
        return Counter(family.full_name, family.text, family.labels, registry=self.registry)

    def _begin_at_zero(self) -> None:
        """Have what is known to come present from the start: a rate over a series that appears later misses its
        first events."""
        for command in _WAIT_COMMANDS:
            for result in _WAIT_RESULTS:
                self._wait_seconds.labels(command, result)
            for replicas in range(MANY_REPLICAS + 1):
                self._wait_replicas.labels(command, _replicas_label(replicas))
        for concern_result in _CONCERN_RESULTS:
            self._concern_replies.labels(concern_result)
        for switchover_result in _SWITCHOVER_RESULTS:
            self._switchover_seconds.labels(switchover_result)
            self._switchover_stall.labels(switchover_result)

    def observe_wait(self, command: WaitCommand, result: WaitResult, seconds: float, replicas: int | None) -> None:
        """Counts one finished WAIT or WAITAOF that took ``seconds`` and answered ``replicas``; None: no number."""
        histogram = self._wait_children.get((command, result))
        if histogram is None:
            histogram = self._wait_children[command, result] = self._wait_seconds.labels(command, result)
        histogram.observe(seconds)
        if replicas is not None:
            counter = self._replicas_children.get((command, replicas))
            if counter is None:
                counter = self._wait_replicas.labels(command, _replicas_label(replicas))
                if len(self._replicas_children) < MOST_CHILDREN:
                    self._replicas_children[command, replicas] = counter
            counter.inc()

    def observe_switchover(self, result: SwitchoverResult, seconds: float, stall: float) -> None:
        """Counts a planned switchover that took ``seconds`` in all and held commands for ``stall``."""
        self._switchover_seconds.labels(result).observe(seconds)
        self._switchover_stall.labels(result).observe(stall)

    def observe_outage(self, shard: str, seconds: float) -> None:
        """Counts a time without a primary that answers, of the shard with the id ``shard``."""
        self._outage_seconds.labels(shard).observe(seconds)

    def observe_round(self, waiters: int) -> None:
        """Counts a round of acknowledgments that was begun for so many."""
        self._round_waiters.observe(waiters)

    def observe_delay(self, seconds: float) -> None:
        """Counts one look at how late the event loop is."""
        self._loop_delay.observe(seconds)

    def know_shard(self, shard: str) -> dict[StepName, Histogram]:
        """The steps of the shard with the id ``shard``, which are there from the first call on, at 0."""
        steps = self._steps.get(shard)
        if steps is None:
            steps = self._steps[shard] = {name: self._step_seconds.labels(name, shard) for name in _STEPS}
            self._outage_seconds.labels(shard)
        return steps

    def observe_step(self, step: StepName, shard: str, seconds: float) -> None:
        """Counts one step of a write to a shard."""
        self.know_shard(shard)[step].observe(seconds)

    def observe_concern(self, result: ConcernResult, replies: int) -> None:
        """Counts replies to writes that were kept back until they were acknowledged, or were not."""
        self._concern_replies.labels(result).inc(replies)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """(body, content type) in the exposition format that the ``Accept`` header ``accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    async def render_in_pieces(self, accept: str = "") -> tuple[bytes, str]:
        """``render`` that lets clients have their turn behind each family: all of them at once take 10 ms and more."""
        encode, content_type = choose_encoder(accept)
        pieces = []
        for metric in self.registry.collect():
            alone: Any = _Alone(metric)
            pieces.append(encode(alone).removesuffix(END))
            await trio.lowlevel.checkpoint()
        if content_type.startswith("application/openmetrics-text"):
            pieces.append(END)
        return b"".join(pieces), content_type


class _Alone:
    """One family as a registry."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def _replicas_label(replicas: int) -> str:
    return str(replicas) if replicas < MANY_REPLICAS else f"{MANY_REPLICAS}+"
