"""What a local cluster can be told, and what is said to nonsense."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shard.settings import ClusterSettings


def test_without_replication_there_are_no_replicas() -> None:
    assert ClusterSettings(replication="none", replicas=2).replicas == 0
    assert ClusterSettings(shards=4, replicas=2).nodes == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shards": 0}, "shards must be at least 1"),
        ({"replicas": -1}, "replicas must be at least 0"),
        ({"host": "localhost"}, "must be an IP address"),
        ({"host": "0.0.0.0"}, "one address of this machine"),
        ({"host": "10.1.2.3"}, "password_file"),
        ({"first_port": 60000}, "first_port"),
        ({"maxmemory": "1gb\nrequirepass x"}, "one plain word"),
        ({"replication": "multi-zone", "zones": ["a", "a"]}, "two different"),
        ({"zones": ["a b"]}, "letters, digits"),
        ({"start_timeout": 0}, "more than 0"),
        ({"appendfsync": "always"}, "unknown field"),
        ({"aof": "yes"}, "Invalid enum value"),
    ],
)
def test_nonsense_is_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(settings, ClusterSettings)


def test_another_address_is_allowed_with_a_password() -> None:
    assert ClusterSettings(host="10.1.2.3", password_file="secret").host == "10.1.2.3"
