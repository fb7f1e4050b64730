"""Nodes are known by name: the deployment survives that all their addresses change."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.compose.stack import NODES, Stack, docker
from tests.harness import until

pytestmark = pytest.mark.compose

OTHER_ADDRESSES = Path(__file__).with_name("other-addresses.yaml")
KEYS = 500


def move_to(stack: Stack, subnet: str) -> None:
    """The network is made anew there at the next start."""
    stack.environment["SUBNET"] = subnet
    if OTHER_ADDRESSES not in stack.files:
        stack.files.append(OTHER_ADDRESSES)


def write(stack: Stack, name: str) -> None:
    with stack.client() as client:
        client.mset({f"{name}:{number}": number for number in range(KEYS)})
        assert client.waitaof(1, 1, 5000) == [1, 1]


def all_there(stack: Stack, name: str) -> bool:
    keys = [f"{name}:{number}" for number in range(KEYS)]
    with suppress(redis.RedisError), stack.client() as client:
        return client.mget(keys) == [str(number) for number in range(KEYS)]
    return False


def test_down_and_up_with_every_address_changed(whole: Stack) -> None:
    write(whole, "moved")
    addresses, roles = whole.addresses(), whole.roles()
    whole.compose("down")
    move_to(whole, "10.213.7.0/24")
    whole.up()
    assert set(whole.addresses().values()).isdisjoint(addresses.values())
    assert all_there(whole, "moved")
    assert whole.roles() == roles
    whole.until_whole()
    assert docker("logs", whole.container("form")).endswith("formed: 3 shards with 1 replicas each")
    # Or both are counted twice for five minutes, and alerts fire about proxies that are none any more.
    present = {f"{address}:9121" for address in whole.proxies()}
    until(lambda: proxies_seen(whole) == present, "Prometheus goes by the proxies' present addresses")


def proxies_seen(stack: Stack) -> set[str]:
    found = stack.prometheus("/api/v1/query?query=ackgate_ready")["data"]["result"]
    return {series["metric"]["instance"] for series in found}


def test_nodes_whose_machine_was_started_again_find_each_other_without_the_forming(whole: Stack) -> None:
    """As after a reboot: the engine starts the containers that ran, at new addresses; `form` had ended."""
    write(whole, "rebooted")
    addresses, roles = whole.addresses(), whole.roles()
    whole.compose("down")
    move_to(whole, "10.213.8.0/24")
    whole.up("--no-deps", *NODES, "proxy", "endpoint", "prometheus")
    assert not whole.containers("form")
    assert set(whole.addresses().values()).isdisjoint(addresses.values())
    until(lambda: all_there(whole, "rebooted"), "everything is there again")
    whole.until_whole()
    assert sorted(whole.roles()) == sorted(roles)


def test_up_again_finds_the_cluster_formed(whole: Stack) -> None:
    write(whole, "again")
    before, roles = whole.containers(*NODES, "proxy"), whole.roles()
    whole.up()
    assert whole.containers(*NODES, "proxy") == before
    assert whole.roles() == roles
    assert all_there(whole, "again")
    assert docker("logs", whole.container("form")).endswith("formed: 3 shards with 1 replicas each")
