"""Who becomes a primary and whose replica the others become."""

from __future__ import annotations

import pytest

from shard.arrange import arrange, election_warning
from shard.errors import ShardError

NODES = [("127.0.0.1", 7000 + number) for number in range(6)]


def ports(groups: list[list[tuple[str, int]]]) -> list[list[int]]:
    return [[port for _host, port in group] for group in groups]


def test_the_first_become_primaries_and_the_others_go_round() -> None:
    assert ports(arrange(NODES, 3, 1)) == [[7000, 7003], [7001, 7004], [7002, 7005]]
    assert ports(arrange(NODES, 2, 2)) == [[7000, 7002, 7004], [7001, 7003, 7005]]
    assert ports(arrange(NODES[:1], 1, 0)) == [[7000]]


def test_a_replica_goes_to_a_primary_of_another_zone_even_if_others_must_make_room() -> None:
    zones = ["a", "a", "b", "b", "a", "b"]
    groups = arrange(NODES, 3, 1, zones)
    zone_of = dict(zip(NODES, zones, strict=True))
    assert [zone_of[group[0]] for group in groups] == ["a", "a", "b"]
    assert all(zone_of[replica] != zone_of[primary] for primary, replica in groups)


def test_zones_that_cannot_be_kept_apart_are_refused() -> None:
    with pytest.raises(ShardError, match="outside its zone 'a'"):
        arrange(NODES, 3, 1, ["a", "a", "b", "a", "a", "b"])


@pytest.mark.parametrize(("shards", "replicas"), [(3, 0), (4, 1), (0, 1), (3, -1)])
def test_numbers_that_do_not_match_are_refused(shards: int, replicas: int) -> None:
    with pytest.raises(ShardError):
        arrange(NODES, shards, replicas)
    with pytest.raises(ShardError, match="different nodes"):
        arrange([*NODES[:5], NODES[0]], 3, 1)


def test_who_cannot_elect_is_warned() -> None:
    assert election_warning(3, 1) is None
    assert election_warning(1, 0) is None
    assert "1 primary cannot elect" in str(election_warning(1, 1))
    assert "2 primaries cannot elect" in str(election_warning(2, 1))
