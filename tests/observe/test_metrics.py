"""The metrics a scrape gets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy import __version__
from proxy.observe import metrics as module
from proxy.observe.metrics import Counters, Metrics, ShardFigures


class Stub:
    def __init__(self, counters: Counters | None = None, shards: Sequence[ShardFigures] = ()) -> None:
        self._counters: Counters = counters or {}
        self._shards = shards

    def counters(self) -> Counters:
        return self._counters

    def shard_figures(self) -> Sequence[ShardFigures]:
        return self._shards


def families(metrics: Metrics) -> dict[str, Metric]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {family.name: family for family in parse_text(body.decode())}


def value(found: dict[str, Metric], family: str, suffix: str = "", **labels: str) -> float:
    for sample in found[family].samples:
        if sample.name == family + suffix and labels.items() <= sample.labels.items():
            return float(sample.value)
    raise AssertionError(f"no sample {family}{suffix} {labels}")


def test_figures_appear_under_their_names() -> None:
    found = families(Metrics(Stub({"clients_open": 3, "commands": 12, "bytes_in": 99, "moved": 2, "ready": 1})))
    assert value(found, "ackgate_clients_open") == 3
    assert value(found, "ackgate_commands", "_total") == 12
    assert value(found, "ackgate_client_received_bytes", "_total") == 99
    assert value(found, "ackgate_redirections", "_total", kind="moved") == 2
    assert value(found, "ackgate_redirections", "_total", kind="ask") == 0
    assert value(found, "ackgate_ready") == 1


def test_a_scrape_reads_the_figures_of_that_moment() -> None:
    counters: Counters = {"commands": 1}
    metrics = Metrics(Stub(counters))
    assert value(families(metrics), "ackgate_commands", "_total") == 1
    counters["commands"] = 5
    assert value(families(metrics), "ackgate_commands", "_total") == 5


def test_every_documented_figure_is_published() -> None:
    counters = {key: number for number, key in enumerate(Counters.__annotations__, 1) if key != "engine_versions"}
    found = families(Metrics(Stub(counters | {"engine_versions": {"valkey 9.1.2": 77}})))  # type: ignore[arg-type]
    published = {
        sample.value for family in found.values() for sample in family.samples if sample.name.startswith("ackgate_")
    }
    assert set(counters.values()) <= published
    assert value(found, "ackgate_engine_nodes", engine="valkey", version="9.1.2") == 77


def test_every_documented_figure_of_a_shard_is_published() -> None:
    keys = [key for key in ShardFigures.__annotations__ if key not in ("shard", "lag_bytes", "lag_seconds")]
    figures = {key: number for number, key in enumerate(keys, 1000)}
    shard = figures | {"shard": "abc", "lag_bytes": {"127.0.0.1:7001": 5000}, "lag_seconds": {"127.0.0.1:7001": 0.75}}
    found = families(Metrics(Stub(shards=[shard])))  # type: ignore[list-item]
    samples = [sample for family in found.values() for sample in family.samples if sample.labels.get("shard") == "abc"]
    assert set(figures.values()) | {5000, 0.75} == {sample.value for sample in samples}
    assert value(found, "ackgate_replica_lag_bytes", shard="abc", replica="127.0.0.1:7001") == 5000
    assert value(found, "ackgate_replica_lag_seconds", shard="abc", replica="127.0.0.1:7001") == 0.75


def test_the_steps_of_a_shard_are_there_once_it_is_known() -> None:
    metrics = Metrics(Stub())
    metrics.know_shard("abc")
    metrics.observe_step("relay", "abc", 0.00003)
    found = families(metrics)
    assert value(found, "ackgate_step_seconds", "_count", shard="abc", step="relay") == 1
    assert value(found, "ackgate_step_seconds", "_bucket", shard="abc", step="relay", le="2e-05") == 0
    assert value(found, "ackgate_step_seconds", "_count", shard="abc", step="persist") == 0


def test_fallbacks_are_told_by_kind() -> None:
    found = families(Metrics(Stub({"markers_raised": 2, "waits_alone": 3})))
    assert value(found, "ackgate_ack_fallbacks", "_total", kind="raised") == 2
    assert value(found, "ackgate_ack_fallbacks", "_total", kind="alone") == 3


def test_a_shard_without_a_figure_has_no_sample_of_it() -> None:
    found = families(Metrics(Stub(shards=[{"shard": "a", "up": 0}, {"shard": "b", "up": 1, "offset": 7}])))
    assert [sample.labels["shard"] for sample in found["ackgate_shard_up"].samples] == ["a", "b"]
    assert [sample.labels["shard"] for sample in found["ackgate_shard_replication_offset_bytes"].samples] == ["b"]


def test_waits_are_counted_by_command_and_result_and_start_at_zero() -> None:
    metrics = Metrics(Stub())
    assert value(families(metrics), "ackgate_wait_seconds", "_count", command="waitaof", result="unconfirmed") == 0
    metrics.observe_wait("wait", "reached", 0.0004, 1)
    metrics.observe_wait("wait", "reached", 0.3, 7)
    found = families(metrics)
    assert value(found, "ackgate_wait_seconds", "_count", command="wait", result="reached") == 2
    assert value(found, "ackgate_wait_seconds", "_sum", command="wait", result="reached") == pytest.approx(0.3004)
    assert value(found, "ackgate_wait_seconds", "_bucket", command="wait", result="reached", le="0.0005") == 1
    assert value(found, "ackgate_wait_replicas", "_total", command="wait", replicas="1") == 1
    assert value(found, "ackgate_wait_replicas", "_total", command="wait", replicas="5+") == 1


def test_build_process_and_platform_are_told() -> None:
    found = families(Metrics(Stub(), codec="cython", dataplane="python"))
    assert found["ackgate_build_info"].samples[0].labels["data_plane"] == "python"
    assert found["ackgate_build_info"].samples[0].labels["version"] == __version__
    assert found["ackgate_build_info"].samples[0].labels["codec"] == "cython"
    assert value(found, "process_resident_memory_bytes") > 0
    assert "python_info" in found


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    body, content_type = Metrics(Stub({"commands": 3})).render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert (
        value({family.name: family for family in parse_openmetrics(body.decode())}, "ackgate_commands", "_total") == 3
    )


def test_registering_reads_no_figures() -> None:
    class Early(Stub):
        def counters(self) -> Counters:
            raise AssertionError("figures were read before anybody scraped")

    Metrics(Early())


def test_names_keep_the_conventions() -> None:
    for _, name, text in module._COUNTERS + module._SHARD_COUNTERS:
        assert not name.endswith("_total"), "the suffix is added by the exposition"
        assert text.endswith(".")
    names = [name for _, name, _ in module._COUNTERS + module._GAUGES + module._SHARD_COUNTERS + module._SHARD_GAUGES]
    assert len(names) == len(set(names))
