"""The five steps on their way into the metrics: what the data plane timed, and what the rounds did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.acks.steps import Step
from proxy.dataplane import Sample, Tally
from proxy.observe.metrics import Metrics


class ShardRecorder:
    """What the rounds of one shard tell (``proxy.acks.steps.Recorder``)."""

    def __init__(self, steps: StepFigures, shard: int) -> None:
        self._steps = steps
        self._shard = shard

    def round(self, waiters: int) -> None:
        self._steps.metrics.observe_round(waiters)

    def step(self, step: Step, seconds: float) -> None:
        if step != "persist" or self._steps.believed(self._shard):
            self._steps.observe(step, self._shard, seconds)


class StepFigures:
    """``name(shard)`` is the id of a shard's index, None for one that is gone; ``believed(shard)`` whether its WAITAOF
    is true: a time to an fsync that did not happen is none.  ``traced`` gets the samples whose clients asked for them.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        name: Callable[[int], str | None],
        believed: Callable[[int], bool],
        traced: Callable[[Sample], None],
    ) -> None:
        self.metrics = metrics
        self.believed = believed
        self.at_shard = Tally()
        """How long commands took at their shards."""
        self._name = name
        self._traced = traced

    def observe(self, step: Step, shard: int, seconds: float) -> None:
        name = self._name(shard)
        if name is not None:
            self.metrics.observe_step(step, name, seconds)

    def take(self, samples: Sequence[Sample]) -> None:
        """Samples that the data plane completed."""
        for sample in samples:
            if sample.traced:
                self._traced(sample)
            name = self._name(sample.shard)
            if name is None:
                continue
            execute = sample.replied - sample.handed
            self.metrics.observe_step("dispatch", name, sample.handed - sample.born)
            self.metrics.observe_step("execute", name, execute)
            self.at_shard.add(sample.command_id, self.at_shard.bucket(execute), execute, b"")
            self.metrics.observe_step("relay", name, sample.relayed - sample.replied)

    def of(self, shard: int) -> ShardRecorder:
        return ShardRecorder(self, shard)
