"""Forming again nodes that know each other, after every address changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shard.errors import ShardError
from tests.harness import until
from tests.shard.containers import Network, containers


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    # The nodes shall not be held for failed while they are asked.
    with containers(tmp_path, NODE_TIMEOUT_MS="2500") as network:
        yield network


def _anew(network: Network) -> list[str]:
    return network.new_addresses(len(network.containers))


def _each_that_of_the_next(network: Network) -> list[str]:
    first, *others = (network.hosts[node.name] for node in network.containers)
    return [*others, first]


@pytest.mark.parametrize("change", [_anew, pytest.param(_each_that_of_the_next, marks=pytest.mark.slow)])
def test_nodes_are_introduced_again_at_new_addresses(network: Network, change: Callable[[Network], list[str]]) -> None:
    one, two, three, replica = network.add(4)
    network.start()
    network.form([one, replica], [two], [three])
    one.call("SET", "{06S}", "kept")  # slot 0
    before = network.picture()
    ids = [node.call("CLUSTER", "MYID") for node in network.containers]
    network.stop()
    network.place(dict(zip(network.hosts, change(network), strict=True)))
    network.publish({})  # nothing is found by name when the nodes start
    network.start()
    network.form([one, replica], [two], [three])
    assert network.picture() == before
    assert [node.call("CLUSTER", "MYID") for node in network.containers] == ids
    assert one.call("GET", "{06S}") == "kept"
    assert one.call("WAIT", 1, 5000) == 1
    assert replica.call("DBSIZE") == 1
    for node in network.containers:
        shown = [line.split()[1].partition(":")[0] for line in node.call("CLUSTER", "NODES").splitlines()]
        assert sorted(shown) == sorted(network.hosts.values())


def test_forming_again_where_nothing_changed_changes_nothing(network: Network) -> None:
    [one, two] = network.add(2)
    network.start()
    network.form([one, two])
    before = one.call("CLUSTER", "INFO").splitlines()
    network.form([one, two])
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
