"""The figures of several workers made into one set.

What lives here: how families travel, and what each kind of figure means when there are several of it. Counters and
histograms are summed, and what a worker that is gone had counted stays in the sums: they never go back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

Family = tuple[str, str, str, str, list[tuple[str, dict[str, str], float]]]
"""(name, help, type, unit, samples of (name, labels, value))."""
Rule = Callable[[float, float], float]


def _sum(one: float, other: float) -> float:
    return one + other


# What is not here is summed: so many of something that each worker has for itself.
GAUGES: Final[dict[str, Rule]] = {
    # Every worker is told the same of the cluster, one sooner than another: what the last one knows ...
    "ackgate_ready": min,
    "ackgate_slots_covered": min,
    "ackgate_shard_up": min,
    "ackgate_shard_waitaof_trusted": min,
    # ... or the newest, or the worst.
    "ackgate_slot_map_version": max,
    "ackgate_engine_nodes": max,
    "ackgate_nodes_with_differing_users": max,
    "ackgate_shard_slots": max,
    "ackgate_shard_replicas_online": max,
    "ackgate_shard_replication_offset_bytes": max,
    "ackgate_shard_oldest_command_seconds": max,
    "ackgate_replica_lag_bytes": max,
    "ackgate_replica_lag_seconds": max,
    "ackgate_paused": max,
    "ackgate_peers": max,
    # Of processes.
    "python_info": max,
    "process_start_time_seconds": min,
    "process_max_fds": min,
}
COUNTERS: Final[dict[str, Rule]] = {"ackgate_pauses": max}
"""Counters of what all workers see."""
SUMMED: Final = frozenset(
    {
        *(f"ackgate_{name}" for name in ("clients_open", "lanes_open", "leased_lanes_open", "blocked_clients")),
        *(f"ackgate_{name}" for name in ("identities", "tracking_clients", "shared_subscriptions", "held_commands")),
        *(f"ackgate_{name}" for name in ("subscription_links_open", "held_bytes", "waits_open", "parked_commands")),
        *(f"ackgate_{name}" for name in ("concern_questions_open", "shard_lanes_open", "shard_outstanding_commands")),
        *(f"process_{name}" for name in ("virtual_memory_bytes", "resident_memory_bytes", "open_fds")),
    }
)
"""Gauges of which it was thought that the sum is what is meant: a test holds them against what there is."""


def families(registry: CollectorRegistry) -> list[Family]:
    """All of ``registry``, as it travels."""
    return [
        (family.name, family.documentation, family.type, family.unit, _samples(family)) for family in registry.collect()
    ]


def _samples(family: Metric) -> list[tuple[str, dict[str, str], float]]:
    return [(sample.name, sample.labels, sample.value) for sample in family.samples]


class Totals:
    """What workers that are gone had counted, and the sums with those that are there."""

    def __init__(self) -> None:
        self._gone = _Sums()

    def bury(self, last: Iterable[Family]) -> None:
        """Keep the counters and histograms of a worker that is gone."""
        self._gone.add(family for family in last if family[2] in ("counter", "histogram"))

    def together(self, sources: Sequence[Iterable[Family]]) -> Iterator[Metric]:
        """The families of all ``sources`` and of those that are gone as one."""
        sums = _Sums()
        for source in sources:
            sums.add(source)
        sums.add(self._gone.families())
        return sums.metrics()


class _Sums:
    def __init__(self) -> None:
        self._heads: dict[str, tuple[str, str, str, str]] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def add(self, families: Iterable[Family]) -> None:
        for name, text, kind, unit, samples in families:
            self._heads.setdefault(name, (name, text, kind, unit))
            values = self._values.setdefault(name, {})
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                values[key] = value if key not in values else _rule(kind, name, sample)(values[key], value)

    def families(self) -> Iterator[Family]:
        for name, head in self._heads.items():
            yield *head, [(sample, dict(labels), value) for (sample, labels), value in self._values[name].items()]

    def metrics(self) -> Iterator[Metric]:
        for name, text, kind, unit, samples in self.families():
            metric = Metric(name, text, kind, unit)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


def _rule(kind: str, name: str, sample: str) -> Rule:
    if kind in ("counter", "histogram"):
        return min if sample.endswith("_created") else COUNTERS.get(name, _sum)
    if kind == "gauge":
        return GAUGES.get(name, _sum)
    return max  # what is running


class _Collected:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def render(metrics: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """(body, content type) in the exposition format that the ``Accept`` header ``accept`` asks for."""
    encode, content_type = choose_encoder(accept)
    collected: Any = _Collected(metrics)
    return encode(collected), content_type
