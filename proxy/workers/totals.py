"""The figures of several workers made into one set.

What lives here: how families travel, and how several of the same become one (``Family.together`` tells). What a worker
that is gone had counted stays: counters and histograms never go back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from proxy.observe.families import Together, every

Family = tuple[str, str, str, str, list[tuple[str, dict[str, str], float]]]
"""(name, help, type, unit, samples of (name, labels, value))."""
Rule = Callable[[float, float], float]


def _sum(one: float, other: float) -> float:
    return one + other


_RULES: Final[dict[str, Rule]] = {"sum": _sum, "max": max, "min": min, "seen": max}
OF_PROCESSES: Final[dict[str, Together]] = {
    "python_info": "max",
    "process_start_time_seconds": "min",
    "process_max_fds": "min",
    "process_virtual_memory_bytes": "sum",
    "process_resident_memory_bytes": "sum",
    "process_open_fds": "sum",
}
"""Gauges that come from prometheus-client."""
TOGETHER: Final[dict[str, Together]] = OF_PROCESSES | {family.full_name: family.together for family in every()}
"""By the name of the family.  What is not here is summed."""
SEEN_LONGER = 10.0
"""Seconds for which nodes' own counters are shown as a worker that is gone saw them: then others have looked, too."""
UPTIME = "ackgate_node_uptime_seconds"


def families(registry: CollectorRegistry) -> list[Family]:
    """All of ``registry``, as it travels."""
    return [
        (family.name, family.documentation, family.type, family.unit, _samples(family)) for family in registry.collect()
    ]


async def families_in_pieces(registry: CollectorRegistry) -> list[Family]:
    """As ``families``, but clients have their turn behind each: all of them at once take several milliseconds."""
    found: list[Family] = []
    for family in registry.collect():
        found.append((family.name, family.documentation, family.type, family.unit, _samples(family)))
        await trio.lowlevel.checkpoint()
    return found


def _samples(family: Metric) -> list[tuple[str, dict[str, str], float]]:
    return [(sample.name, sample.labels, sample.value) for sample in family.samples]


class Totals:
    """What workers that are gone had counted, and the sums with those that are there.

    A worker that takes the place of one that is gone, its number, counts on from there.
    """

    def __init__(self) -> None:
        self._gone: dict[int, _Sums] = {}
        self._seen: list[tuple[float, dict[str, float], list[Family]]] = []
        """Until when, nodes' ages, and their counters."""

    def bury(self, number: int, last: Sequence[Family]) -> None:
        """Keep the counters and histograms of a worker that is gone."""
        seen = [family for family in last if family[2] == "counter" and not _is_ours(family[0])]
        self._seen.append((time.monotonic() + SEEN_LONGER, _ages(last), seen))
        kept = (family for family in last if family[2] in ("counter", "histogram") and _is_ours(family[0]))
        self._gone.setdefault(number, _Sums(_life_by_life)).add(kept)

    def together(
        self, workers: Mapping[int, Iterable[Family]], others: Sequence[Iterable[Family]] = ()
    ) -> Iterator[Metric]:
        """The families of all workers, by number, and of those that are gone as one; those of ``others`` are added."""
        sums = _Sums(_side_by_side)
        for number in sorted(workers.keys() | self._gone.keys()):
            families = workers.get(number, ())
            gone = self._gone.get(number)
            if gone is not None:
                lives = _Sums(_life_by_life)
                lives.add(families)
                lives.add(gone.families())
                families = lives.families()
            sums.add(families)
        for other in others:
            sums.add(other)
        self._seen = [each for each in self._seen if each[0] > time.monotonic()]
        if self._seen:
            ages = _ages(list(sums.families()))
            for _, before, seen in self._seen:
                started_anew = {node for node, age in before.items() if ages.get(node, age) < age - SEEN_LONGER}
                sums.add(_without(started_anew, seen))
        return sums.metrics()


def _ages(families: Iterable[Family]) -> dict[str, float]:
    """Of nodes, in seconds."""
    samples = (sample for name, _, _, _, samples in families if name == UPTIME for sample in samples)
    return {labels["node"]: age for _, labels, age in samples}


def _without(nodes: set[str], families: Iterable[Family]) -> Iterator[Family]:
    for *head, samples in families:
        name, text, kind, unit = head
        yield name, text, kind, unit, [sample for sample in samples if sample[1].get("node") not in nodes]


class _Sums:
    """``rule(kind, family, sample)``: how two samples of the same name and labels become one."""

    def __init__(self, rule: Callable[[str, str, str], Rule]) -> None:
        self._rule = rule
        self._heads: dict[str, tuple[str, str, str, str]] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def add(self, families: Iterable[Family]) -> None:
        for name, text, kind, unit, samples in families:
            self._heads.setdefault(name, (name, text, kind, unit))
            values = self._values.setdefault(name, {})
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                values[key] = value if key not in values else self._rule(kind, name, sample)(values[key], value)

    def families(self) -> Iterator[Family]:
        for name, head in self._heads.items():
            yield *head, [(sample, dict(labels), value) for (sample, labels), value in self._values[name].items()]

    def metrics(self) -> Iterator[Metric]:
        for name, text, kind, unit, samples in self.families():
            metric = Metric(name, text, kind, unit)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


def _is_ours(name: str) -> bool:
    """Whether the workers count it; what nodes count is not lost with one that saw it."""
    return TOGETHER.get(name) != "seen"


def _life_by_life(kind: str, name: str, sample: str) -> Rule:
    """Of workers of the same number, one after the other."""
    return min if sample.endswith("_created") else _sum


def _side_by_side(kind: str, name: str, sample: str) -> Rule:
    """Of workers at the same time."""
    if sample.endswith("_created"):
        return min
    if kind in ("counter", "histogram", "gauge"):
        return _RULES[TOGETHER.get(name, "sum")]
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
