"""The metrics a scrape gets."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy import __version__
from proxy.observe.families import every
from proxy.observe.figures import NO_COMMANDS, CommandFigures, Counters, NodeFigures, ShardFigures, Timed
from proxy.observe.metrics import Metrics
from proxy.observe.page import page

ROOT = Path(__file__).parents[2]
LABELS = {
    *("shard", "node", "replica", "command", "error", "result", "step", "replicas", "kind", "worker"),
    *("engine", "version", "codec", "data_plane", "python"),
}
"""None of them is a client's to choose."""


class Stub:
    def __init__(
        self,
        counters: Counters | None = None,
        shards: Sequence[ShardFigures] = (),
        nodes: Sequence[NodeFigures] = (),
        commands: CommandFigures = NO_COMMANDS,
    ) -> None:
        self._counters: Counters = counters or {}
        self._shards = shards
        self._nodes = nodes
        self._commands = commands

    def counters(self) -> Counters:
        return self._counters

    def shard_figures(self) -> Sequence[ShardFigures]:
        return self._shards

    def node_figures(self) -> Sequence[NodeFigures]:
        return self._nodes

    def command_figures(self) -> CommandFigures:
        return self._commands


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
    several = {"engine_versions": {"valkey 9.1.2": 77}, "primary_changes": {("abc", "failover"): 78}}
    counters = {key: number for number, key in enumerate(Counters.__annotations__, 1000) if key not in several}
    found = families(Metrics(Stub(counters | several)))  # type: ignore[arg-type]
    published = {
        sample.value for family in found.values() for sample in family.samples if sample.name.startswith("ackgate_")
    }
    assert set(counters.values()) <= published
    assert value(found, "ackgate_engine_nodes", engine="valkey", version="9.1.2") == 77
    assert value(found, "ackgate_primary_changes", "_total", shard="abc", kind="failover") == 78


def test_every_documented_figure_of_a_shard_is_published() -> None:
    keys = [key for key in ShardFigures.__annotations__ if key not in ("shard", "lag_bytes", "lag_seconds")]
    figures = {key: number for number, key in enumerate(keys, 1000)}
    shard = figures | {"shard": "abc", "lag_bytes": {"127.0.0.1:7001": 5000}, "lag_seconds": {"127.0.0.1:7001": 0.75}}
    found = families(Metrics(Stub(shards=[shard])))  # type: ignore[list-item]
    samples = [sample for family in found.values() for sample in family.samples if sample.labels.get("shard") == "abc"]
    changes = 0  # counted from the start
    assert set(figures.values()) | {5000, 0.75, changes} == {sample.value for sample in samples}
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


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_in_pieces_it_is_the_same(accept: str) -> None:
    metrics = Metrics(Stub({"commands": 3}, [{"shard": "a", "up": 1}]))
    (whole, kind), (pieces, same_kind) = metrics.render(accept), await metrics.render_in_pieces(accept)
    moving = (b"process_", b"python_gc")

    def still(body: bytes) -> list[bytes]:
        return [line for line in body.splitlines() if not line.startswith(moving)]

    assert kind == same_kind
    assert still(whole) == still(pieces)
    assert pieces.count(b"# EOF") == bool(accept)


def test_registering_reads_no_figures() -> None:
    class Early(Stub):
        def counters(self) -> Counters:
            raise AssertionError("figures were read before anybody scraped")

    Metrics(Early())


def test_every_documented_figure_of_a_node_is_published() -> None:
    keys = [key for key in NodeFigures.__annotations__ if key not in ("shard", "node")]
    figures = {key: number for number, key in enumerate(keys, 1000)}
    node = figures | {"shard": "abc", "node": "127.0.0.1:7001"}
    found = families(Metrics(Stub(nodes=[node, {"shard": "abc", "node": "b:1", "up": 0}])))  # type: ignore[list-item]
    samples = [sample for family in found.values() for sample in family.samples if "node" in sample.labels]
    assert {sample.value for sample in samples if sample.labels["node"] != "b:1"} == set(figures.values())
    unknown = [sample.value for sample in samples if sample.labels["node"] == "b:1"]
    assert unknown == [0], "what is not known is left out"


def test_commands_have_counts_times_and_errors() -> None:
    answered = {"get": Timed([1, 2, *[0] * 15, 1], 12.5), "config|get": Timed([1, *[0] * 17], 0.25)}
    errors = {("get", "WRONGTYPE"): 1}
    widths = Timed([3, 1, *[0] * 9], 5), Timed([], 0)
    figures = CommandFigures(answered, {"get": Timed([0, 2, *[0] * 16], 0.5)}, errors, *widths, {"WRONGTYPE": 1})
    found = families(Metrics(Stub(commands=figures)))
    assert value(found, "ackgate_command_calls", "_total", command="get") == 4
    assert value(found, "ackgate_command_errors", "_total", command="get", error="WRONGTYPE") == 1
    assert value(found, "ackgate_errors", "_total", error="WRONGTYPE") == 1
    assert value(found, "ackgate_command_seconds", "_bucket", command="get", le="5e-05") == 1
    assert value(found, "ackgate_command_seconds", "_bucket", command="get", le="0.0001") == 3
    assert value(found, "ackgate_command_seconds", "_bucket", command="get", le="10.0") == 3
    assert value(found, "ackgate_command_seconds", "_bucket", command="get", le="+Inf") == 4
    assert value(found, "ackgate_command_seconds", "_sum", command="config|get") == 0.25
    assert value(found, "ackgate_command_shard_seconds", "_count", command="get") == 2
    assert value(found, "ackgate_split_parts", "_sum") == 5
    assert value(found, "ackgate_split_parts", "_bucket", le="1.0") == 3
    assert value(found, "ackgate_fanout_shards", "_count") == 0


def test_what_is_served_is_what_is_documented() -> None:
    shard: ShardFigures = {"shard": "a"}
    documented = {family.full_name: family for family in every()}
    served = {
        family.name.removesuffix("_info"): family
        for family in Metrics(Stub(shards=[shard])).registry.collect()
        if family.name.startswith("ackgate_")
    }
    of_the_parent = {name for name in documented if name.startswith("ackgate_worker")}
    assert served.keys() == documented.keys() - of_the_parent
    for name, family in served.items():
        assert (family.type, family.documentation) == (documented[name].kind, documented[name].text)


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "METRICS.md").read_text() == page(), "METRICS.md is stale: make metrics-page writes it anew"


def test_names_keep_the_conventions() -> None:
    names = [family.name for family in every()]
    assert len(names) == len(set(names))
    for family in every():
        assert not family.name.endswith("_total"), "the suffix is added by the exposition"
        assert family.text.endswith(".") and family.text[0].isupper() == family.text[0].isalpha(), family.text
        assert (family.kind == "histogram") == bool(family.buckets)
        assert set(family.labels) <= LABELS


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is of Debian's package prometheus")
def test_prometheus_own_linter_finds_nothing() -> None:
    body, _ = Metrics(Stub(shards=[{"shard": "a", "up": 1}])).render()
    checked = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
