"""The rounds: each workload on each target in turn, as often as wanted.

A B C A B C, never A A B B C C: what the machine does besides changes by the minute, and hits all targets of a round
alike. All workloads are done once before any is done again, so that an interrupted run is a whole one with fewer
rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.bench import acks
from tests.bench.errors import BenchError
from tests.bench.idle import silent_clients
from tests.bench.load import Load, Loader
from tests.bench.measure import Cost, Meter, resident_bytes, spent, thread_times
from tests.bench.samples import Sample
from tests.bench.targets import Target
from tests.bench.workloads import Workload

_SETTLE_S = 10.0
_SETTLE_STEP_S = 0.05
_SETTLED_SHARE = 0.1


def measure_all(
    targets: Sequence[Target],
    workloads: Sequence[Workload],
    rounds: int,
    seconds: float,
    least: int,
    tell: Callable[[Workload, Target, int, Sample | None], None],
) -> list[Sample]:
    """Return a sample for each workload, target and round; ``tell`` hears of each before and after it is taken.

    A sample takes about ``seconds``, and longer where that is fewer than ``least`` commands of each client.
    Ctrl-C ends the rounds, not the run: what has been measured is returned.
    """
    samples: list[Sample] = []
    loader = Loader(least) if any(workload.acks is None for workload in workloads) else None
    try:
        for number in range(1, rounds + 1):
            for workload in workloads:
                for target in targets:
                    tell(workload, target, number, None)
                    samples.append(_sample(loader, workload, target, number, seconds))
                    tell(workload, target, number, samples[-1])
    except KeyboardInterrupt:
        if not samples:
            raise
    return samples


def _sample(loader: Loader | None, workload: Workload, target: Target, number: int, seconds: float) -> Sample:
    if target.failure:
        return Sample(workload.name, target.name, number, failure=target.failure)
    try:
        sample = _measure(loader, workload, target, number, seconds)
        if not target.last_words():
            return sample
        failure = target.last_words()
    except (BenchError, OSError) as error:
        failure = "; ".join(filter(None, [target.last_words(), str(error)]))
    _recover(target)
    return Sample(workload.name, target.name, number, failure=failure)


def _recover(target: Target) -> None:
    """Give the next workload a target that works; if none can be had, each of them tells."""
    try:
        target.restart()
    except BenchError as error:
        target.failure = str(error)


def _measure(loader: Loader | None, workload: Workload, target: Target, number: int, seconds: float) -> Sample:
    if workload.acks is not None:
        return acks.measure(workload, target, number, max(seconds, workload.acks.least_s))
    assert loader is not None
    if not workload.idle_clients:
        if number == 1:
            loader.warm_up(workload, target.port)
        return _loaded(loader, workload, target, number, seconds)
    target.restart()
    loader.warm_up(workload, target.port)
    with _crowd(workload, target) as (count, bytes_per_client):
        sample = _loaded(loader, workload, target, number, seconds, count, bytes_per_client)
    _settle(target)
    return sample


@contextmanager
def _crowd(workload: Workload, target: Target) -> Iterator[tuple[int, float]]:
    """The silent clients; their number, and what one of them costs the target in bytes."""
    count = min(workload.idle_clients, target.most_clients - workload.clients)
    before = resident_bytes(target.pid)
    with silent_clients(target.port, count):
        _settle(target)
        yield count, (resident_bytes(target.pid) - before) / count


def _loaded(
    loader: Loader,
    workload: Workload,
    target: Target,
    number: int,
    seconds: float,
    silent: int = 0,
    bytes_per_client: float | None = None,
) -> Sample:
    misses = target.misses()
    meter = Meter(target.pid, target.shard_pids())
    load = loader.run(workload, target.port, seconds)
    cost = meter.stop()
    return Sample(
        workload=workload.name,
        target=target.name,
        round=number,
        commands=load.commands,
        per_second=load.per_second,
        cpu_us=cost.target_ns / 1000 / load.commands,
        shards_cpu_us=cost.shards_ns / 1000 / load.commands,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        resident_bytes=resident_bytes(target.pid),
        others_share=cost.others_share,
        silent_clients=silent,
        bytes_per_client=bytes_per_client,
        doubt=_doubt(load, cost, target.misses() - misses),
    )


def _doubt(load: Load, cost: Cost, misses: int) -> str:
    if misses:
        return f"{misses} reads found nothing"
    if cost.threads_lost:
        return "a thread ended, and its CPU is missing"
    if not cost.target_ns:
        return "no CPU was counted"
    return ""


def _settle(target: Target) -> None:
    """Wait until the target has done what it had to do for clients that came or went."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        before = thread_times([target.pid])
        time.sleep(_SETTLE_STEP_S)
        if spent(before, thread_times([target.pid])) < _SETTLED_SHARE * _SETTLE_STEP_S * 1e9:
            return
