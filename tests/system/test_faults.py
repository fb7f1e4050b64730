"""The way to the nodes fails: cut, half open, reset, refused, slow, or leading to somebody else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ENVIRONMENT, SMALL, Up, until, up
from tests.system.faultproxy import FaultProxy, fault_proxy
from tests.system.load import Confirmer, Setter, Worker, go_on, load, tag
from tests.system.nodes import Node, Shard, shards_of
from tests.system.test_failure import UNBLOCKED, UNKNOWN, ready, shard_of
from tests.system.wire import Wire, request

SLOTS = (100, 6000, 12000)  # one of each shard of three
QUICK = "timeouts: {connect: 500ms, probe: 500ms, probe_interval: 100ms, hold: 30s}\n"


@contextmanager
def proxy(tmp_path: Path, seeds: Sequence[str], settings: str = QUICK, name: str = "proxy") -> Iterator[Up]:
    """``ackgate proxy`` in front of these seeds, once it is ready."""
    config, errors = tmp_path / f"{name}.yaml", tmp_path / f"{name}.err"
    config.write_text(
        f"cluster: {{seeds: {json.dumps(list(seeds))}}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n{settings}"
    )
    words = [sys.executable, "-m", "proxy", "proxy", "--config", str(config)]
    with errors.open("w") as stderr:
        process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    with process:
        try:
            yield Up(process, errors)
        finally:
            process.kill()
    told = errors.read_text()
    assert "Traceback" not in told and "defect" not in told, told


class Ways:
    """A cluster, and a proxy that reaches every node of it by way of a fault proxy."""

    def __init__(self, behind: Up, through: Up, log: Path, ways: dict[str, FaultProxy]) -> None:
        self.behind = behind
        self.through = through
        self.log = log
        self.of = ways

    def primary(self, slot: int) -> FaultProxy:
        """The way to the primary that serves a slot, as the proxy sees it."""
        primary = until(lambda: shard_of(self.through, slot)["primary"], "the shard is served")
        return self.of[primary["node_id"]]

    def shard(self, slot: int) -> Shard:
        return next(each for each in shards_of(self.behind) if _serves(self.behind, each, slot))


def _serves(running: Up, shard: Shard, slot: int) -> bool:
    primary = shard_of(running, slot)["primary"]
    return primary is not None and primary["node_id"] == shard.primary.id


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """3 primaries and 3 replicas that announce the ports of fault proxies."""
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        behind = stack.enter_context(up(folder, "--port", "0", "--admin-port", "0"))
        # The proxy that has known them by their own ports follows them to the others.
        workers: list[Any] = [kind(slot, name) for name, slot in enumerate(SLOTS) for kind in (Setter, Confirmer)]
        nodes = [node for shard in shards_of(behind) for node in (shard.primary, shard.replica)]
        with load(behind.redis_url, workers):
            go_on(workers)
            ways = {node.id: stack.enter_context(_announced(node)) for node in nodes}
            announced = {way.port for way in ways.values()}
            until(lambda: _ports(behind) == announced, "the proxy has followed")
            go_on(workers)
        assert not any(worker.errors for worker in workers), "addresses that change cost nobody an error"
        seeds = [f"127.0.0.1:{port}" for port in announced]
        through = stack.enter_context(proxy(folder, seeds))
        yield Ways(behind, through, folder / "proxy.err", ways)
    told = (folder / "data.err").read_text()
    assert "Traceback" not in told and "defect" not in told, told


@contextmanager
def _announced(node: Node) -> Iterator[FaultProxy]:
    with fault_proxy((node.host, node.port)) as way:
        node.call("CONFIG", "SET", "cluster-announce-port", way.port)
        yield way


def _ports(running: Up) -> set[int]:
    nodes = [node for shard in running.topology()["shards"] for node in (shard["primary"], *shard["replicas"]) if node]
    return {int(node["address"].rpartition(":")[2]) for node in nodes}


@pytest.fixture
def ways(cluster: Ways) -> Iterator[Ways]:
    until(lambda: ready(cluster.through), "all is well")
    yield cluster
    for way in cluster.of.values():
        way.heal()
    until(lambda: ready(cluster.through), "all is well again, without a restart")


def crowd() -> tuple[list[Worker], list[Worker]]:
    """Clients of the first shard, and those of the others."""
    hit = [Setter(SLOTS[0] + name, name) for name in range(4)]
    spared = [Setter(SLOTS[1 + name % 2] + name, name) for name in range(4)]
    return [*hit, Confirmer(SLOTS[0], 9)], [*spared]


def only_documented(workers: Sequence[Worker]) -> None:
    for each in workers:
        assert all(error == UNKNOWN or error.startswith(UNBLOCKED) for error in each.errors), each.errors


def unserved(ways: Ways) -> bool:
    return shard_of(ways.through, SLOTS[0])["primary"] is None


def test_a_cut_way_holds_up_nobody_else_and_goes_on_where_it_was(ways: Ways) -> None:
    hit, spared = crowd()
    with load(ways.through.redis_url, [*hit, *spared]):
        go_on([*hit, *spared])
        way = ways.primary(SLOTS[0])
        way.cut()
        until(lambda: unserved(ways), "the node is missed")
        assert not ready(ways.through)
        go_on(spared, 20)
        way.heal()
        until(lambda: ready(ways.through), "the node is back")
        go_on([*hit, *spared])
    assert not any(each.errors for each in [*hit, *spared]), "what waited in the cable was delivered"


def test_connections_that_lead_nowhere_any_more_are_given_up(ways: Ways) -> None:
    everybody, spared = crowd()
    hit = [each for each in everybody if isinstance(each, Setter)]  # the replica has lost its connection, too
    with load(ways.through.redis_url, [*hit, *spared]):
        go_on([*hit, *spared])
        ways.primary(SLOTS[0]).half_open()
        go_on([*hit, *spared])
    assert not any(each.errors for each in spared)
    assert all(len(each.errors) <= 1 for each in hit), "one command was under way"
    only_documented(hit)


def test_an_idle_connection_that_leads_nowhere_is_found_before_it_is_needed(ways: Ways) -> None:
    with Wire.to(ways.through.redis_url) as client:
        assert client.call("SET", "key" + tag(SLOTS[0]), 1) == b"+OK\r\n"
        told = len(ways.log.read_text())
        ways.primary(SLOTS[0]).half_open()
        until(lambda: unserved(ways), "a probe is missed")
        given_up = "no reply, while its node answers others"
        until(lambda: given_up in ways.log.read_text()[told:], "the lanes are given up")
        assert client.call("SET", "key" + tag(SLOTS[0]), 2) == b"+OK\r\n"


@pytest.mark.parametrize("how", ["reset", "refuse"])
def test_connections_that_are_reset_cost_what_was_under_way_at_most(ways: Ways, how: str) -> None:
    hit, spared = crowd()
    with load(ways.through.redis_url, [*hit, *spared]):
        go_on([*hit, *spared])
        way = ways.primary(SLOTS[0])
        getattr(way, how)()
        if how == "refuse":
            until(lambda: unserved(ways), "the node is missed")
            go_on(spared, 20)
            way.listen()
        go_on([*hit, *spared])
    assert not any(each.errors for each in spared)
    assert all(len(each.errors) <= 2 for each in hit), "one command was under way, and a WAIT may tell of it"
    only_documented(hit)


@pytest.mark.parametrize("how", ["late", "trickling"])
def test_a_slow_way_is_slow_and_nothing_else(ways: Ways, how: str) -> None:
    hit, spared = crowd()
    way = ways.primary(SLOTS[0])
    with load(ways.through.redis_url, [*hit, *spared]):
        go_on([*hit, *spared])
        way.delay, way.trickles = (0.1, False) if how == "late" else (0.0, True)
        go_on(hit)
        go_on(spared, 50)
        assert ready(ways.through) or how == "trickling", "probes come through in time"
    assert not any(each.errors for each in [*hit, *spared])


def test_every_way_is_cut_at_once_and_healed(ways: Ways) -> None:
    hit, spared = crowd()
    with load(ways.through.redis_url, [*hit, *spared]):
        go_on([*hit, *spared])
        for way in ways.of.values():
            way.cut()
        until(lambda: not ready(ways.through), "the loss is noticed")
        for way in ways.of.values():
            way.heal()
        until(lambda: ready(ways.through), "all are back")
        go_on([*hit, *spared])
    only_documented([*hit, *spared])


def test_another_node_behind_the_address_gets_no_command(ways: Ways) -> None:
    key = "key" + tag(SLOTS[0])
    home, other = ways.shard(SLOTS[0]), ways.shard(SLOTS[1])
    way = ways.primary(SLOTS[0])
    target = way.target
    with Wire.to(ways.through.redis_url) as client, other.primary.wire() as stranger:
        assert client.call("SET", key, "home") == b"+OK\r\n"
        calls = _calls(stranger, b"incr")
        way.retarget((other.primary.host, other.primary.port))
        client.send("INCRBY", "number" + tag(SLOTS[0]), 1)
        until(lambda: not ready(ways.through), "the node is missed")
        tried = way.accepted
        until(lambda: way.accepted > tried + 10, "probes and lanes look whether it is back")
        way.retarget(target)
        assert client.receive() == b":1\r\n"
        assert client.call("GET", key) == b"$4\r\nhome\r\n"
        assert _calls(stranger, b"incr") == calls
        client.call("DEL", "number" + tag(SLOTS[0]))
    assert home.primary.id == ways.shard(SLOTS[0]).primary.id


def _calls(wire: Wire, command: bytes) -> int:
    told = wire.call("INFO", "commandstats")
    return int(told.split(b"cmdstat_" + command + b"by:calls=")[1].split(b",")[0]) if command + b"by" in told else 0


def test_a_node_of_another_cluster_behind_the_address_is_not_believed(ways: Ways, tmp_path: Path) -> None:
    hit, spared = crowd()
    with up(tmp_path, *SMALL) as stranger, load(ways.through.redis_url, [*hit, *spared]):
        [shard] = stranger.topology()["shards"]
        host, _, port = shard["primary"]["address"].rpartition(":")
        way = ways.primary(SLOTS[0])
        target = way.target
        go_on([*hit, *spared])
        way.retarget((host, int(port)))
        until(lambda: not ready(ways.through), "the node is missed")
        go_on(spared, 20)
        assert int(port) not in _ports(ways.through)
        way.retarget(target)
        go_on([*hit, *spared])
        with stranger.client() as client:
            assert client.dbsize() == 0, "nothing was written there"
    only_documented(hit)
    assert not any(each.errors for each in spared)


def test_what_lay_in_a_cut_cable_does_not_run_behind_later_writes(ways: Ways) -> None:
    """The cut primary is replaced; what was on its way to it reaches a node that is none any more.

    That it answers where it was before its address changed is of no use.
    """
    shard = ways.shard(SLOTS[2])
    way = ways.of[shard.primary.id]
    for port in way.target[1], way.port:
        shard.primary.call("CONFIG", "SET", "cluster-announce-port", port)
        until(lambda port=port: port in _ports(ways.through), "the proxy has followed")  # type: ignore[misc]
    log = "log" + tag(SLOTS[2])
    with Wire.to(ways.through.redis_url) as client, Wire.to(ways.through.redis_url) as watching:
        assert client.call("RPUSH", log, "first") == b":1\r\n"
        assert client.call("WAIT", 1, 5000) == b":1\r\n"
        assert watching.call("WATCH", log) == b"+OK\r\n"
        way.cut()
        client.send("RPUSH", log, "old")
        until(lambda: shard_of(ways.through, SLOTS[2])["primary"] is None, "the node is missed")
        shard.replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
        assert client.receive() == UNKNOWN
        assert client.call("RPUSH", log, "new") == b":2\r\n"
        # What was watched may have changed, and had: nothing of the transaction may run.
        assert watching.call("MULTI") == b"+OK\r\n"
        watching.call("RPUSH", log, "unseen")
        assert watching.call("EXEC").startswith(b"-EXECABORT ")
        way.heal()
        until(lambda: shard.primary.call("ROLE")[0] == "slave", "the former primary follows")
        until(lambda: _in_step(shard), "it is in step")
        assert shard.replica.call("LRANGE", log, 0, -1) == ["first", "new"]
        assert client.call("LRANGE", log, 0, -1) == b"*2\r\n$5\r\nfirst\r\n$3\r\nnew\r\n"
        assert watching.call("WATCH", log) == b"+OK\r\n"
        assert [watching.call(*words) for words in (["MULTI"], ["LLEN", log], ["EXEC"])][-1] == b"*1\r\n:2\r\n"


def _in_step(shard: Shard) -> bool:
    return bool(shard.primary.direct.info("replication").get("master_link_status") == "up")


DOWN = b"-CLUSTERDOWN The cluster is down\r\n"
Words = list[bytes | str | int]


@pytest.mark.parametrize(
    ("first", "second", "replies"),
    [
        (["SET", "{k}", "old"], ["SET", "{k}", "new"], [DOWN, b"+OK\r\n"]),
        (["SET", "{k}", "old"], ["GET", "{k}"], [DOWN, b"$-1\r\n"]),
        (["GET", "{k}"], ["SET", "{k}", "new"], [DOWN, b"+OK\r\n"]),
        (["GET", "{k}"], ["STRLEN", "{k}"], [b"$-1\r\n", b":0\r\n"]),
        (["SET", "{k}", "old"], ["SET", "other" + tag(SLOTS[0] + 1), "new"], [b"+OK\r\n", b"+OK\r\n"]),
    ],
)
def test_a_command_refused_for_now_is_not_sent_again_behind_what_ran_since(
    ways: Ways, first: Words, second: Words, replies: list[bytes]
) -> None:
    """The node was down for the first of a packet and up for the second: that has run when the first could be sent."""
    key = "torn" + tag(SLOTS[0])
    one, two = ([key if word == "{k}" else word for word in words] for words in (first, second))
    with Wire.to(ways.through.redis_url) as client:
        client.call("DEL", key)
        ways.primary(SLOTS[0]).intercepted = request(*one), DOWN
        assert client.pipeline([one, two]) == replies
        assert ways.primary(SLOTS[0]).intercepted is None
