"""Forming again nodes that know each other, after every address changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shard.errors import ShardError
from tests.harness import until
from tests.shard.containers import Container, Network, containers


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with containers(tmp_path) as network:
        yield network


def test_nodes_are_introduced_again_at_new_addresses(network: Network) -> None:
    one, two, three, replica = network.add(4)
    groups = [[one, replica], [two], [three]]
    network.start()
    network.form(*groups)
    one.call("SET", "{06S}", "kept")  # slot 0
    before = network.picture()
    ids = [node.call("CLUSTER", "MYID") for node in network.containers]
    start_elsewhere(network, network.new_addresses(4))
    until(lambda: all(map(is_alone, network.containers)), "nobody finds another")
    network.form(*groups)
    assert network.picture() == before
    assert replica.call("CONFIG", "GET", "cluster-replica-no-failover")[1] == "no"
    assert [node.call("CLUSTER", "MYID") for node in network.containers] == ids
    assert one.call("GET", "{06S}") == "kept"
    assert one.call("WAIT", 1, 5000) == 1
    assert replica.call("DBSIZE") == 1
    for node in network.containers:
        shown = [line.split()[1].partition(":")[0] for line in node.call("CLUSTER", "NODES").splitlines()]
        assert sorted(shown) == sorted(network.hosts.values())


@pytest.mark.slow
def test_nodes_are_introduced_again_where_others_were(tmp_path: Path) -> None:
    with containers(tmp_path, NODE_TIMEOUT_MS="2500") as network:
        one, two, three, replica = network.add(4)
        groups = [[one, replica], [two], [three]]
        network.start()
        network.form(*groups)
        before = network.picture()
        first, *others = network.hosts.values()
        start_elsewhere(network, [*others, first])
        network.form(*groups)
        assert network.picture() == before


def start_elsewhere(network: Network, addresses: list[str]) -> None:
    """Start all again there, where nothing is found by name."""
    network.stop()
    network.place(dict(zip(network.hosts, addresses, strict=True)))
    network.publish({})
    network.start()


def is_alone(node: Container) -> bool:
    """Whether it holds all others for failed."""
    rows = node.call("CLUSTER", "NODES").splitlines() if node.role() else []
    return len(rows) > 1 and all("myself" in row or "fail" in row or "noaddr" in row for row in rows)


def test_forming_again_where_nothing_changed_changes_nothing(network: Network) -> None:
    [one, two] = network.add(2)
    network.start()
    network.form([one, two])
    before = one.call("CLUSTER", "INFO").splitlines()
    two.call("CONFIG", "SET", "cluster-replica-no-failover", "yes")
    [told, _] = network.form([one, two])
    assert "is told never to take over" in told
    after = one.call("CLUSTER", "INFO").splitlines()
    kept = ("cluster_current_epoch", "cluster_my_epoch", "cluster_known_nodes", "cluster_stats_messages_meet_sent")
    assert [line for line in before if line.startswith(kept)] == [line for line in after if line.startswith(kept)]


def test_a_node_that_is_not_up_yet_is_waited_for(network: Network) -> None:
    one, two = network.add(2)
    one.start()
    with pytest.raises(ShardError, match=r"connection refused, waited for 0\.5 s"):
        network.form_named([one, two], timeout=0.5)
    until(one.role, "the first is up")
    steps: list[tuple[str, int, int]] = []

    def progress(step: str, done: int, total: int) -> None:
        steps.append((step, done, total))
        if step == "wait" and done == 1:
            two.start()

    network.form_named([one, two], progress=progress)
    assert steps[:2] == [("wait", 1, 2), ("wait", 2, 2)]
    assert two.role() == "slave"
