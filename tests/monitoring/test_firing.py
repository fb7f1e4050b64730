"""A real Prometheus raises the alarm about a real cluster, and calms down again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Up, until, up
from tests.monitoring.prometheus import Prometheus, prometheus
from tests.system.nodes import shards_of

pytestmark = pytest.mark.monitoring


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("firing"), "--port", "0", "--admin-port", "0") as found:
        yield found


@pytest.fixture(scope="module")
def watching(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("watching") / "prometheus", [running.admin_url]) as found:
        until(lambda: found.query("shard:ackgate_shard_up:max"), "it has scraped and kept its rules")
        until(lambda: not grave(found), "all is well")
        yield found


def grave(watching: Prometheus) -> set[tuple[str, str]]:
    """(name, shard) of alerts about shards that fire and are not for the record."""
    fired = [each["labels"] for each in watching.firing() if each["labels"]["severity"] != "info"]
    return {(labels["alertname"], labels["shard"]) for labels in fired if "shard" in labels}


def test_a_shard_without_replica(running: Up, watching: Prometheus) -> None:
    shard = shards_of(running)[1]
    named = next(row["id"] for row in running.topology()["shards"] if row["primary"]["node_id"] == shard.primary.id)
    with shard.replica.stopped():
        until(lambda: ("AckgateShardWithoutReplica", named) in grave(watching), "the alert fires")
        assert {each for _, each in grave(watching)} == {named}
    until(lambda: not grave(watching), "all is well again")


def test_a_shard_without_primary(running: Up, watching: Prometheus) -> None:
    shard = shards_of(running)[2]
    with shard.replica.stopped(), shard.primary.stopped():
        until(lambda: "AckgateShardWithoutPrimary" in {name for name, _ in grave(watching)}, "the alert fires")
    until(lambda: not grave(watching), "all is well again")
