"""Which node goes into which shard, and what a user has to know about the numbers. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from shard.client import format_address
from shard.errors import ShardError

Address = tuple[str, int]
"""Host (name or IP) and port of a node."""


def election_warning(shards: int, replicas: int) -> str | None:
    """Return what to tell a user whose cluster cannot elect a new primary, None if it can."""
    if shards >= 3 or replicas == 0:
        return None
    return (
        f"{shards} primar{'y' if shards == 1 else 'ies'} cannot elect a new primary after a failure (a majority of "
        "primaries must survive): use 3 shards or more for automatic failover"
    )


def arrange(
    addresses: Sequence[Address], shards: int, replicas: int, zones: Sequence[str] | None = None
) -> list[list[Address]]:
    """Return the nodes grouped by shard, the first of each group to be its primary.

    The first ``shards`` addresses become primaries. With ``zones`` (one for each address) a replica is put into a shard
    whose primary is in another zone. Raises ``ShardError`` if that is impossible or the numbers do not match.
    """
    given = len(set(addresses))
    if shards < 1 or replicas < 0:
        raise ShardError("a cluster needs at least 1 shard and 0 replicas: correct --shards or --replicas")
    if given != shards * (1 + replicas) or given != len(addresses):
        raise ShardError(
            f"{shards} shards with {replicas} replicas each need {shards * (1 + replicas)} different nodes, "
            f"{given} were given: name more or fewer"
        )
    groups = [[address] for address in addresses[:shards]]
    if zones is None or not any(zones):
        for number, address in enumerate(addresses[shards:]):
            groups[number % shards].append(address)
        return groups
    _place_in_other_zones(groups, list(addresses), list(zones), replicas)
    return groups


def _place_in_other_zones(
    groups: list[list[Address]], addresses: list[Address], zones: list[str], replicas: int
) -> None:
    zone_of = dict(zip(addresses, zones, strict=True))
    waiting = addresses[len(groups) :]
    # Each replica seat is given by augmenting paths (Kuhn's matching): a greedy choice can strand the last replica.
    seats = [group for group in range(len(groups)) for _ in range(replicas)]
    taken: dict[int, Address] = {}

    def seat(address: Address, tried: set[int]) -> bool:
        for number, group in enumerate(seats):
            if number in tried or zone_of[groups[group][0]] == zone_of[address]:
                continue
            tried.add(number)
            if number not in taken or seat(taken[number], tried):
                taken[number] = address
                return True
        return False

    for address in waiting:
        if not seat(address, set()):
            raise ShardError(
                f"no shard is left for replica {format_address(*address)} whose primary is outside its zone "
                f"{zone_of[address]!r}: spread the nodes over the zones more evenly"
            )
    for number, group in enumerate(seats):
        groups[group].append(taken[number])
