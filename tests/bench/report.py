"""What came of it: the samples of a run summed up, each target beside the others round by round."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.samples import Figures, Sample
from tests.bench.targets import Target
from tests.bench.workloads import Workload

REFERENCES = ("twemproxy", "envoy", "direct")
UNHELD = "ackgate-3"
"""What durable writes are compared with: the target where no policy holds them."""
OURS = ("ackgate", "ackgate-1", UNHELD, "ackgate-replicas", "ackgate-disks")



@dataclass(frozen=True)
class Ratio:
    """A quotient taken round by round."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


@dataclass(frozen=True)
class Row(Figures):
    """One workload on one target: medians of its rounds, and CPU and throughput in multiples of others'."""

    workload: str
    target: str
    rounds: int
    failures: tuple[str, ...]
    doubts: tuple[str, ...]
    p50_over_direct_ms: float | None = None
    cpu_ratios: dict[str, Ratio] | None = None
    throughput_ratios: dict[str, Ratio] | None = None


@dataclass(frozen=True)
class Report:
    """Everything about one run."""

    about: dict[str, Any]
    workloads: list[Workload]
    rows: list[Row]
    samples: list[Sample]

    @property
    def failed(self) -> bool:
        """Something could not be measured, be it in one round only."""
        return any(row.failures or not row.rounds for row in self.rows)

    def rows_of(self, workload: Workload) -> list[Row]:
        """The workload on each of its targets."""
        return [row for row in self.rows if row.workload == workload.name]


@dataclass(frozen=True)
class Part:
    """Workloads that were measured on the same targets."""

    targets: Sequence[Target]
    workloads: Sequence[Workload]
    samples: list[Sample]
    interrupted: bool


def make_report(parts: Sequence[Part], left_out: Sequence[str]) -> Report:
    """Sum up the samples of one run."""
    rows = [
        _row(workload, target, part.samples)
        for part in parts
        for workload in part.workloads
        for target in part.targets
    ]
    workloads = [workload for part in parts for workload in part.workloads]
    samples = [sample for part in parts for sample in part.samples]
    return Report(_about(parts, samples, left_out), workloads, rows, samples)


def _row(workload: Workload, target: Target, samples: list[Sample]) -> Row:
    mine = [sample for sample in samples if (sample.workload, sample.target) == (workload.name, target.name)]
    good = [sample for sample in mine if not sample.failure]
    failures = tuple(dict.fromkeys(sample.failure for sample in mine if sample.failure))
    doubts = tuple(dict.fromkeys(sample.doubt for sample in mine if sample.doubt))
    if not good:
        return Row(workload.name, target.name, 0, failures or ("not measured",), doubts)

    def middle(read: Callable[[Sample], float]) -> float:
        return median(map(read, good))

    memories = [sample.bytes_per_client for sample in good if sample.bytes_per_client is not None]
    return Row(
        workload=workload.name,
        target=target.name,
        rounds=len(good),
        failures=failures,
        doubts=doubts,
        per_second=middle(lambda sample: sample.per_second),
        cpu_us=middle(lambda sample: sample.cpu_us),
        shards_cpu_us=middle(lambda sample: sample.shards_cpu_us),
        p50_ms=middle(lambda sample: sample.p50_ms),
        p99_ms=middle(lambda sample: sample.p99_ms),
        resident_bytes=middle(lambda sample: sample.resident_bytes),
        resident_before=middle(lambda sample: sample.resident_before),
        resident_growth=middle(lambda sample: sample.resident_growth),
        load_share=middle(lambda sample: sample.load_share),
        p50_over_direct_ms=_over_direct(good, samples),
        silent_clients=good[0].silent_clients,
        bytes_per_client=median(memories) if memories else None,
        cpu_ratios=_ratios(good, samples, lambda sample: sample.cpu_us),
        throughput_ratios=_ratios(good, samples, lambda sample: sample.per_second),
    )


def _ratios(good: list[Sample], samples: list[Sample], read: Callable[[Sample], float]) -> dict[str, Ratio]:
    ratios: dict[str, Ratio] = {}
    for reference in (*REFERENCES, UNHELD):
        by_round = _by_round(good[0].workload, reference, samples, read)
        quotients = [read(sample) / by_round[sample.round] for sample in good if by_round.get(sample.round)]
        if quotients:
            ratios[reference] = Ratio(median(quotients), min(quotients), max(quotients))
    return ratios


def _by_round(
    workload: str, target: str, samples: list[Sample], read: Callable[[Sample], float]
) -> dict[int, float]:
    mine = [sample for sample in samples if (sample.workload, sample.target) == (workload, target)]
    return {sample.round: read(sample) for sample in mine if not sample.failure}


def _over_direct(good: list[Sample], samples: list[Sample]) -> float | None:
    direct = _by_round(good[0].workload, "direct", samples, lambda sample: sample.p50_ms)
    differences = [sample.p50_ms - direct[sample.round] for sample in good if sample.round in direct]
    return median(differences) if differences else None


def _about(parts: Sequence[Part], samples: list[Sample], left_out: Sequence[str]) -> dict[str, Any]:
    targets = [target for part in parts for target in part.targets]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPUs, {_cpu_model()}, Linux {platform.release()}",
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "versions": {target.name: target.version for target in targets},
        "left_out": list(left_out),
        "one_shard_targets": list(dict.fromkeys(target.name for target in targets if target.one_shard)),
        "rounds": [max(sample.round for sample in part.samples) for part in parts],
        "others_share": median([sample.others_share for sample in samples if not sample.failure] or [0.0]),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
