"""The rendered file: what must be in it, what an older engine must not be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shard.binary import Server
from shard.configuration import NodeFacts, render
from shard.settings import ClusterSettings


def directives(server: Server, settings: ClusterSettings | None = None, **facts: Any) -> dict[str, str]:
    node = NodeFacts(**{"directory": Path("/data"), "port": 7001, **facts})
    lines = render(server, settings or ClusterSettings(), node).splitlines()
    return dict(line.partition(" ")[::2] for line in lines if not line.startswith("#"))


VALKEY = Server(Path("x"), "valkey", (9, 1, 2))
REDIS = Server(Path("x"), "redis", (7, 2, 0))


def test_the_cluster_is_set_up_as_the_measurements_ask() -> None:
    found = directives(VALKEY)
    expected = {
        "cluster-enabled": "yes",
        "cluster-require-full-coverage": "no",
        "cluster-node-timeout": "2000",
        "cluster-databases": "16",
        "repl-diskless-sync-delay": "0",
        "protected-mode": "yes",
        "bind": "127.0.0.1",
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "always",
        "save": '""',
    }
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (ClusterSettings(aof="off"), {"appendonly": "no"}),
        (ClusterSettings(aof="everysec"), {"appendonly": "yes", "appendfsync": "everysec"}),
        (ClusterSettings(aof="no"), {"appendonly": "yes", "appendfsync": "no"}),
        (ClusterSettings(snapshot="1h"), {"save": "3600 1"}),
        (ClusterSettings(snapshot="6h"), {"save": "21600 1"}),
        (ClusterSettings(snapshot="12h"), {"save": "43200 1"}),
        (ClusterSettings(maxmemory="64mb", maxmemory_policy="allkeys-lru"), {"maxmemory": "64mb"}),
    ],
)
def test_persistence_and_memory_follow_the_settings(settings: ClusterSettings, lines: dict[str, str]) -> None:
    assert lines.items() <= directives(VALKEY, settings).items()


def test_an_engine_is_told_only_what_it_knows() -> None:
    facts: dict[str, Any] = {"zone": "zone-a", "hash_seed": "ab" * 16, "password": "secret"}
    assert {"cluster-databases", "hash-seed", "availability-zone", "primaryauth"} <= directives(VALKEY, **facts).keys()
    old = directives(REDIS, **facts).keys()
    assert not {"cluster-databases", "hash-seed", "availability-zone", "primaryauth"} & old
    assert "masterauth" in old
    between = directives(Server(Path("x"), "valkey", (9, 0, 0)), **facts).keys()
    assert "hash-seed" not in between
    assert "cluster-databases" in between


def test_odd_values_are_quoted() -> None:
    found = directives(VALKEY, directory=Path('/with blank/"é'), password="a\\b")
    assert found["dir"] == r'"/with blank/\"\xc3\xa9"'
    assert found["requirepass"] == r'"a\\b"'
    assert "secret" not in repr(NodeFacts(Path("/"), 1, password="secret"))
