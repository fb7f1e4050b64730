"""Figures of several workers as one set: what each kind means, and that counts never go back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.figures import NO_COMMANDS, CommandFigures, Counters, NodeFigures, ShardFigures
from proxy.observe.metrics import Metrics
from proxy.workers.totals import TOGETHER, Family, Totals, families, families_in_pieces, render

LAGS: dict[str, int] = {"r": 5}


class Figures:
    def __init__(self, counters: Counters, shard: ShardFigures, node: NodeFigures | None = None) -> None:
        self._counters = counters
        self._shard = shard
        self._node = node

    def counters(self) -> Counters:
        return self._counters

    def shard_figures(self) -> Sequence[ShardFigures]:
        return [self._shard]

    def node_figures(self) -> Sequence[NodeFigures]:
        return [self._node] if self._node is not None else []

    def command_figures(self) -> CommandFigures:
        return NO_COMMANDS


def worker(
    counters: Counters, shard: ShardFigures | None = None, node: NodeFigures | None = None
) -> list[Family]:
    return families(Metrics(Figures(counters, shard or {"shard": "s"}, node)).registry)


def samples(totals: Totals, *sources: list[Family], accept: str = "") -> dict[str, float]:
    text = render(totals.together(dict(enumerate(sources, 1))), accept)[0].decode()
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.removesuffix("# EOF\n"))
        for sample in family.samples
    }


def test_what_each_has_is_summed_and_what_all_see_is_not() -> None:
    one = worker(
        {"clients_open": 3, "commands": 10, "ready": 1, "slot_map_version": 4, "slots_covered": 16384, "pauses": 2},
        {"shard": "s", "up": 1, "offset": 100, "replicas_online": 2, "lag_bytes": LAGS, "lanes_open": 2},
    )
    other = worker(
        {"clients_open": 4, "commands": 20, "ready": 0, "slot_map_version": 5, "slots_covered": 100, "pauses": 2},
        {"shard": "s", "up": 0, "offset": 90, "replicas_online": 1, "lag_bytes": {"r": 9}, "lanes_open": 2},
    )
    found = samples(Totals(), one, other)
    assert found["ackgate_clients_open"] == 7
    assert found["ackgate_commands_total"] == 30
    assert found["ackgate_ready"] == 0
    assert found["ackgate_slot_map_version"] == 5
    assert found["ackgate_slots_covered"] == 100
    assert found["ackgate_pauses_total"] == 2
    assert found["ackgate_shard_up shard=s"] == 0
    assert found["ackgate_shard_replication_offset_bytes shard=s"] == 100
    assert found["ackgate_shard_replicas_online shard=s"] == 2
    assert found["ackgate_shard_lanes_open shard=s"] == 4
    assert found["ackgate_replica_lag_bytes replica=r shard=s"] == 9
    assert sum(name.startswith("ackgate_build_info") for name in found) == 1


def test_one_worker_alone_is_what_it_says() -> None:
    metrics = Metrics(Figures({"clients_open": 3, "commands": 10}, {"shard": "s", "up": 1, "offset": 7}))
    metrics.observe_wait("wait", "reached", 0.003, 1)
    metrics.observe_step("execute", "s", 0.001)
    alone = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for sample in family.samples
    }
    together = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(
            render(Totals().together({1: families(metrics.registry)}), "")[0].decode()
        )
        for sample in family.samples
    }
    moving = ("process_", "python_gc")
    assert alone.keys() == together.keys()
    assert {key: value for key, value in alone.items() if not key[0].startswith(moving)} == {
        key: value for key, value in together.items() if not key[0].startswith(moving)
    }


def test_every_gauge_has_its_meaning() -> None:
    """A new gauge has to be thought about: is it the sum, the largest or the smallest of what workers say?"""
    gauges = {name for name, _, kind, _, _ in worker({}) if kind == "gauge"}
    assert gauges <= TOGETHER.keys()


def test_counts_of_one_that_is_gone_stay_and_what_it_had_does_not() -> None:
    totals = Totals()
    staying = worker({"clients_open": 1, "commands": 5})
    totals.bury(2, worker({"clients_open": 4, "commands": 100}))
    totals.bury(2, worker({"clients_open": 4, "commands": 10}))
    found = samples(totals, staying)
    assert found["ackgate_commands_total"] == 115
    assert found["ackgate_clients_open"] == 1
    assert samples(totals)["ackgate_commands_total"] == 110, "also when nobody is left"


def test_what_all_see_is_counted_on_by_one_that_takes_anothers_place() -> None:
    totals = Totals()
    totals.bury(1, worker({"pauses": 5}))
    assert samples(totals, worker({"pauses": 0}), worker({"pauses": 5}))["ackgate_pauses_total"] == 5
    assert samples(totals, worker({"pauses": 2}), worker({"pauses": 7}))["ackgate_pauses_total"] == 7
    assert samples(totals, worker({"pauses": 3}))["ackgate_pauses_total"] == 8


def test_what_nodes_count_is_not_kept_when_a_worker_that_saw_it_is_gone() -> None:
    """A node started anew counts from 0, and nobody else."""
    totals = Totals()
    node: NodeFigures = {"shard": "s", "node": "n", "up": 1, "commands": 1000, "keys": 3, "uptime": 100}
    totals.bury(1, worker({}, node=node))
    anew: NodeFigures = {"shard": "s", "node": "n", "up": 1, "commands": 4, "keys": 3, "uptime": 2}
    other: NodeFigures = {"shard": "s", "node": "n", "up": 0, "commands": 3, "keys": 3, "uptime": 1}
    found = samples(totals, worker({}, node=anew), worker({}, node=other))
    assert found["ackgate_node_commands_total node=n shard=s"] == 4
    assert found["ackgate_node_keys node=n shard=s"] == 3
    assert found["ackgate_node_up node=n shard=s"] == 0


def test_what_a_worker_that_is_gone_saw_last_holds_until_others_have_looked() -> None:
    totals = Totals()
    totals.bury(1, worker({}, node={"shard": "s", "node": "n", "up": 1, "commands": 1000, "keys": 3, "uptime": 100}))
    late: NodeFigures = {"shard": "s", "node": "n", "up": 1, "commands": 990, "keys": 4, "uptime": 96}
    found = samples(totals, worker({}, node=late))
    assert found["ackgate_node_commands_total node=n shard=s"] == 1000
    assert found["ackgate_node_keys node=n shard=s"] == 4


def test_histograms_are_added_bucket_by_bucket_and_their_birth_is_the_first() -> None:
    def observed(*values: float) -> list[Family]:
        registry = CollectorRegistry()
        histogram = Histogram("h", "A histogram.", ("shard",), buckets=(1, 2), registry=registry)
        for value in values:
            histogram.labels("s").observe(value)
        return families(registry)

    first, second, third = observed(0.5, 1.5), observed(1.5), observed(9, 0.1)
    totals = Totals()
    totals.bury(1, third)
    found = samples(totals, first, second)
    assert found["h_bucket le=1.0 shard=s"] == 2
    assert found["h_bucket le=2.0 shard=s"] == 4
    assert found["h_bucket le=+Inf shard=s"] == found["h_count shard=s"] == 5
    assert found["h_sum shard=s"] == pytest.approx(0.5 + 1.5 + 1.5 + 9.1)
    born = [value for source in (first, second, third) for name, _, value in source[0][4] if name == "h_created"]
    [together] = totals.together({1: first, 2: second})
    assert [sample.value for sample in together.samples if sample.name == "h_created"] == [min(born)]


def test_labels_that_only_some_have_are_kept_and_the_openmetrics_form_is_whole() -> None:
    def counted(*labels: str) -> list[Family]:
        registry = CollectorRegistry()
        counter = Counter("c", "A counter.", ("kind",), registry=registry)
        for label in labels:
            counter.labels(label).inc()
        return families(registry)

    found = samples(Totals(), counted("a", "b"), counted("b", "c"))
    assert [found[f"c_total kind={kind}"] for kind in "abc"] == [1, 2, 1]
    body, kind = render(Totals().together({1: worker({"commands": 1})}), "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text") and body.endswith(b"# EOF\n")


async def test_clients_have_their_turns_while_figures_are_read() -> None:
    metrics = Metrics(Figures({"clients_open": 3}, {"shard": "s"}))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        found = await families_in_pieces(metrics.registry)
        nursery.cancel_scope.cancel()
    assert [each[0] for each in found] == [each[0] for each in families(metrics.registry)]
    assert turns > len(found) // 2
