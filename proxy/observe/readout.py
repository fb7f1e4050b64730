"""Metric families built at scrape time from the figures the rooms keep.

What lives here: how figures become samples.  What may not: names and texts (``proxy.observe.families``), and counting:
the data path adds to plain integers of its own, which are read when somebody scrapes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy import __version__
from proxy.observe import families
from proxy.observe.families import OF_NODE, OF_PROXY, OF_SHARD, Family
from proxy.observe.figures import CommandFigures, Counters, Figures, NodeFigures, ShardFigures, Timed

_KINDS_OF_REDIRECTION = ("moved", "ask", "tryagain")
_KINDS_OF_FALLBACK = (("markers_raised", "raised"), ("waits_alone", "alone"))
_CHANGES = ("failover", "switchover")


class Readout(Collector):
    """The families of one proxy's figures."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        counters, shards = self._figures.counters(), self._figures.shard_figures()
        yield from _of_proxy(counters, shards)
        yield from _of_shards(shards)
        yield from _of_nodes(self._figures.node_figures())
        yield from _of_commands(self._figures.command_figures())

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read figures of a proxy that is still being built."""
        return ()


class Build(Collector):
    """What is running."""

    def __init__(self, codec: str, dataplane: str) -> None:
        self._codec = codec
        self._dataplane = dataplane

    def collect(self) -> Iterator[Metric]:
        compiled = {"codec": self._codec, "data_plane": self._dataplane}
        build = {"version": __version__, **compiled, "python": platform.python_version()}
        yield InfoMetricFamily(families.BUILD.full_name, families.BUILD.text, value=build)


def empty(family: Family) -> GaugeMetricFamily | CounterMetricFamily:
    """A gauge or counter without samples."""
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return kind(family.full_name, family.text, labels=family.labels)


def _of_proxy(counters: Counters, shards: Sequence[ShardFigures]) -> Iterator[Metric]:
    for family in OF_PROXY:
        found = empty(family)
        found.add_metric((), _number(counters, family.key))
        yield found
    fallbacks = empty(families.FALLBACKS)
    for key, kind in _KINDS_OF_FALLBACK:
        fallbacks.add_metric((kind,), _number(counters, key))
    yield fallbacks
    redirections = empty(families.REDIRECTIONS)
    for kind in _KINDS_OF_REDIRECTION:
        redirections.add_metric((kind,), _number(counters, kind))
    yield redirections
    nodes = empty(families.ENGINE_NODES)
    for label, count in counters.get("engine_versions", {}).items():
        engine, _, version = label.partition(" ")
        nodes.add_metric((engine, version), count)
    yield nodes
    yield _changes(counters.get("primary_changes", {}), shards)


def _changes(counted: Mapping[tuple[str, str], int], shards: Sequence[ShardFigures]) -> Metric:
    # Present from the start at 0: a rate over a series that appears later misses its first events.
    present = {(shard["shard"], kind): 0 for shard in shards for kind in _CHANGES}
    changes = empty(families.PRIMARY_CHANGES)
    for labels, count in {**present, **counted}.items():
        changes.add_metric(labels, count)
    return changes


def _of_shards(shards: Sequence[ShardFigures]) -> Iterator[Metric]:
    for family in OF_SHARD:
        found = empty(family)
        for figures in shards:
            if family.key in figures:
                found.add_metric((figures["shard"],), _number(figures, family.key))
        yield found
    size, age = empty(families.LAG_BYTES), empty(families.LAG_SECONDS)
    for figures in shards:
        for replica, behind in figures.get("lag_bytes", {}).items():
            size.add_metric((figures["shard"], replica), behind)
        for replica, seconds in figures.get("lag_seconds", {}).items():
            age.add_metric((figures["shard"], replica), seconds)
    yield size
    yield age


def _of_nodes(nodes: Sequence[NodeFigures]) -> Iterator[Metric]:
    for family in OF_NODE:
        found = empty(family)
        for figures in nodes:
            if family.key in figures:
                found.add_metric((figures["shard"], figures["node"]), _number(figures, family.key))
        yield found


def _of_commands(commands: CommandFigures) -> Iterator[Metric]:
    calls, errors = empty(families.CALLS), empty(families.ERRORS)
    for command, timed in commands.answered.items():
        calls.add_metric((command,), sum(timed.counts))
    for labels, count in commands.errors.items():
        errors.add_metric(labels, count)
    kinds = empty(families.KINDS)
    for kind, count in commands.kinds.items():
        kinds.add_metric((kind,), count)
    yield calls
    yield errors
    yield kinds
    yield _histogram(families.SECONDS, {(command,): timed for command, timed in commands.answered.items()})
    yield _histogram(families.SHARD_SECONDS, {(command,): timed for command, timed in commands.at_shard.items()})
    yield _histogram(families.SPLIT_PARTS, {(): commands.split_parts})
    yield _histogram(families.FANOUT_SHARDS, {(): commands.fanout_shards})


def _histogram(family: Family, samples: Mapping[tuple[str, ...], Timed]) -> Metric:
    ends = [*map(floatToGoString, family.buckets), "+Inf"]
    found = HistogramMetricFamily(family.full_name, family.text, labels=family.labels)
    for labels, timed in samples.items():
        counts = timed.counts or [0] * len(ends)
        found.add_metric(labels, list(zip(ends, accumulate(counts), strict=True)), timed.seconds)
    return found


def _number(figures: Counters | ShardFigures | NodeFigures, key: str) -> float:
    value = figures.get(key, 0)
    return value if isinstance(value, int | float) else 0
