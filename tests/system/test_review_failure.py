"""Failures at awkward instants: writes that come late, strangers, promotions while something is under way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import SMALL, until, up
from tests.system.faultproxy import FaultProxy
from tests.system.load import metric, tag
from tests.system.nodes import Node, Shard, shards_of
from tests.system.test_failure import UNKNOWN, primary_of, ready, single
from tests.system.test_faults import Ways, _announced, _ports, proxy
from tests.system.wire import Wire, request

PATIENT = "timeouts: {connect: 60s, probe: 500ms, probe_interval: 100ms, command: 60s, hold: 60s}\n"
QUICK = "timeouts: {connect: 500ms, probe: 500ms, probe_interval: 100ms, command: 500ms, hold: 30s}\n"
SLOTS = (100, 6000, 12000)  # one of each shard of three


def reached(folder: Path, stack: ExitStack, settings: str, *args: str) -> Ways:
    """A cluster whose nodes announce the ports of fault proxies, and a proxy that reaches them by these alone."""
    behind = stack.enter_context(up(folder, "--port", "0", "--admin-port", "0", *args))
    rows = [node for shard in behind.topology()["shards"] for node in (shard["primary"], *shard["replicas"])]
    ways = {node.id: stack.enter_context(_announced(node)) for node in map(Node, rows)}
    until(lambda: _ports(behind) == {way.port for way in ways.values()}, "the nodes tell each other")
    seeds = [f"127.0.0.1:{way.port}" for way in ways.values()]
    through = stack.enter_context(proxy(folder, seeds, settings))
    return Ways(behind, through, folder / "proxy.err", ways)


@pytest.fixture(scope="module")
def primaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with ExitStack() as stack:
        yield reached(tmp_path_factory.mktemp("primaries"), stack, QUICK, "--replicas", "0")


@pytest.fixture
def ways(primaries: Ways) -> Iterator[Ways]:
    """To three primaries without replicas."""
    until(lambda: ready(primaries.through), "all is well")
    targets = {way: way.target for way in primaries.of.values()}
    yield primaries
    for way, target in targets.items():
        way.deliver()
        way.heal()
        if way.target != target:
            way.retarget(target)
    until(lambda: ready(primaries.through), "all is well again, without a restart")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The primary of another cluster."""
    with up(tmp_path_factory.mktemp("stranger"), *SMALL) as running:
        yield Node(running.topology()["shards"][0]["primary"])


# -- what was sent long ago ----------------------------------------------------------------------------------------


def out_of_the_cable(way: FaultProxy) -> None:
    """What was stalled has come out of the cable, and the node has seen it."""
    way.deliver()
    until(lambda: way.delivered == way.stalled, "it has come out")
    with Wire(*way.target) as node:
        for _ in range(2):  # it may have been about to read, but not twice
            assert node.call("PING") == b"+PONG\r\n"


def in_transaction(client: Wire, *words: str) -> bytes:
    assert client.call("MULTI") == b"+OK\r\n"
    assert client.call(*words) == b"+QUEUED\r\n"
    return client.call("EXEC").removeprefix(b"*1\r\n")


def in_another_protocol(client: Wire, *words: str) -> bytes:
    client.send_raw(request("HELLO", 3) + request(*words))
    assert client.receive().startswith(b"%")
    return client.receive()


def test_a_transaction_that_comes_late_does_not_run_behind_a_later_write(ways: Ways) -> None:
    log = "transaction" + tag(SLOTS[0])
    way = ways.primary(SLOTS[0])
    with Wire.to(ways.through.redis_url) as client:
        assert in_transaction(client, "RPUSH", log, "first") == b":1\r\n"
        assert client.call("MULTI") == b"+OK\r\n"
        assert client.call("RPUSH", log, "old") == b"+QUEUED\r\n"
        way.stalls = b"EXEC"
        client.send_raw(request("EXEC") + request("RPUSH", log, "new"))
        assert [client.receive(), client.receive()] == [UNKNOWN, b":2\r\n"]
        out_of_the_cable(way)
        assert client.call("LRANGE", log, 0, -1) == b"*2\r\n$5\r\nfirst\r\n$3\r\nnew\r\n"


@pytest.mark.parametrize("goes_on", [in_transaction, in_another_protocol])
def test_a_write_that_comes_late_does_not_run_behind_one_that_went_another_way(
    ways: Ways, goes_on: Callable[..., bytes]
) -> None:
    log = goes_on.__name__ + tag(SLOTS[0])
    way = ways.primary(SLOTS[0])
    with Wire.to(ways.through.redis_url) as client, Wire.to(ways.through.redis_url) as other:
        # The lanes that the later write may take are connected already.
        assert in_another_protocol(other, "RPUSH", log, "first") == b":1\r\n"
        assert in_transaction(client, "LLEN", log) == b":1\r\n"
        way.stalls = b"old"
        assert client.call("RPUSH", log, "old") == UNKNOWN
        assert goes_on(client, "RPUSH", log, "new") == b":2\r\n"
        out_of_the_cable(way)
        assert other.call("LRANGE", log, 0, -1) == b"*2\r\n$5\r\nfirst\r\n$3\r\nnew\r\n"


# -- strangers -----------------------------------------------------------------------------------------------------


def test_a_stranger_at_the_address_of_a_node_is_shown_no_user_and_no_password(ways: Ways, stranger: Node) -> None:
    way = ways.primary(SLOTS[0])
    home = way.target
    with Wire.to(ways.through.redis_url) as client:
        assert client.call("ACL", "SETUSER", "alice", "on", ">secret", "~*", "+@all") == b"+OK\r\n"
        way.retarget((stranger.host, stranger.port))
        until(lambda: not ready(ways.through), "the node is missed")
        home_of_others = ways.primary(SLOTS[1]).target
        seen = _calls(home_of_others, "acl|list")
        # As long as it takes to find that a node lacks a user, and to give it that user.
        while _calls(home_of_others, "acl|list") < seen + 5:
            with Wire.to(ways.through.redis_url) as alice:
                assert alice.call("AUTH", "alice", "secret") == b"+OK\r\n"
                assert alice.call("SET", "key" + tag(SLOTS[1]), 1) == b"+OK\r\n"
        asked = set(stranger.direct.info("commandstats"))
        assert not asked & {"cmdstat_auth", "cmdstat_acl|setuser", "cmdstat_acl|dryrun"}
        assert stranger.call("ACL", "USERS") == ["default"]
        way.retarget(home)
        until(lambda: ready(ways.through), "the node is back")
        assert client.call("ACL", "DELUSER", "alice") == b":1\r\n"


def test_what_a_stranger_publishes_reaches_nobody(ways: Ways, stranger: Node) -> None:
    with Wire.to(ways.through.redis_url) as client:
        assert client.call("SUBSCRIBE", "news").endswith(b":1\r\n")
        [way] = [each for each in ways.of.values() if _is_listened_to(each)]
        way.retarget((stranger.host, stranger.port))
        until(lambda: any(map(_is_listened_to, ways.of.values())), "another node is listened to")
        assert stranger.call("PUBLISH", "news", "foreign") == 0
        with Wire.to(ways.through.redis_url) as other:
            until(lambda: other.call("PUBLISH", "news", "ours") == b":1\r\n", "the client listens there")
        assert client.receive().endswith(b"$4\r\nours\r\n")


def _is_listened_to(way: FaultProxy) -> bool:
    with Wire(*way.target) as node:
        return node.call("PUBSUB", "CHANNELS", "news") != b"*0\r\n"


# -- what needs no shard in particular -------------------------------------------------------------------------------


def test_what_any_shard_can_do_does_not_wait_for_a_dead_one(ways: Ways) -> None:
    way = ways.primary(SLOTS[0])
    with Wire.to(ways.through.redis_url) as client, Wire.to(ways.through.redis_url) as waiting:
        way.cut()
        until(lambda: not ready(ways.through), "the node is missed")
        waiting.send("GET", "key" + tag(SLOTS[0]))
        assert client.call("TIME").startswith(b"*2\r\n")
        assert client.call("EVAL", "return 7", 0) == b":7\r\n"
        assert client.call("PUBLISH", "news", "x") == b":0\r\n"
        assert client.call("SELECT", 7) == b"+OK\r\n"
        assert in_transaction(client, "ECHO", "x") == b"$1\r\nx\r\n"
        assert client.call("COMMAND", "GETKEYS", "GET", "k") == b"*1\r\n$1\r\nk\r\n"
        assert not ready(ways.through)
        way.heal()
        assert waiting.receive() == b"$-1\r\n"


# -- more transactions than lanes for them ---------------------------------------------------------------------------


def test_transactions_wait_for_a_lane_while_their_shard_is_away(tmp_path: Path) -> None:
    with single(tmp_path, "timeouts: {hold: 60s}\nlanes: {leased_per_shard: 4}") as running, ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(60)]
        assert all(client.call("PING") == b"+PONG\r\n" for client in clients)
        os.kill(primary_of(running, 0)["pid"], signal.SIGKILL)
        until(lambda: not ready(running), "the loss is noticed")
        begin = request("MULTI") + request("INCR", "number") + request("INCR", "number") + request("EXEC")
        for client in clients[::2]:
            client.send_raw(begin)
        for at, client in enumerate(clients[1::2]):
            client.send_raw(request("WATCH", f"watched:{at}") + begin)
        for client in clients[1::2]:
            assert client.receive() == b"+OK\r\n"
        for client in clients:
            assert [client.receive() for _ in range(3)] == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"]
            assert client.receive().startswith(b"*2\r\n:")
        assert clients[0].call("GET", "number") == b"$3\r\n120\r\n"


# -- a primary that is replaced while it is being connected to -------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """A primary and its replica; the proxy takes a minute for giving up a connection."""
    with ExitStack() as stack:
        yield reached(tmp_path_factory.mktemp("pair"), stack, PATIENT, "--shards", "1")


@pytest.fixture
def two(pair: Ways) -> Iterator[tuple[Ways, FaultProxy, Node, Node]]:
    """(ways, that to the primary, the primary, its replica)."""
    until(lambda: ready(pair.through), "all is well")
    shard = until(lambda: _in_step(pair), "the replica follows")
    yield pair, pair.of[shard.primary.id], shard.primary, shard.replica
    for way in pair.of.values():
        way.heal()
    until(lambda: ready(pair.through), "all is well again, without a restart")


def _in_step(pair: Ways) -> Shard | None:
    [shard] = shards_of(pair.behind)
    follows = shard.replica.direct.info("replication").get("master_link_status") == "up"
    return shard if follows else None


def test_a_promotion_ends_the_wait_for_the_former_primary_to_accept_connections(
    two: tuple[Ways, FaultProxy, Node, Node]
) -> None:
    ways, way, _, replica = two
    with ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(ways.through.redis_url)) for _ in range(4)]
        way.cut()
        connected = way.accepted
        clients[0].send_raw(request("HELLO", 3) + request("INCR", "number"))
        clients[1].send("WATCH", "key")
        clients[2].send("SUBSCRIBE", "news")
        clients[3].send("BLPOP", "list", 0.1)
        until(lambda: way.accepted >= connected + 4, "all of them are being connected")
        replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
        assert clients[0].receive().startswith(b"%")
        assert clients[0].receive() == b":1\r\n"
        assert clients[1].receive() == b"+OK\r\n"
        assert clients[2].receive().endswith(b":1\r\n")
        assert clients[3].receive() == b"*-1\r\n"


def test_half_a_reply_of_a_lost_primary_is_nobodys(two: tuple[Ways, FaultProxy, Node, Node]) -> None:
    ways, way, _, replica = two
    value = b"".join(b"%07d" % at for at in range(400_000))
    with Wire.to(ways.through.redis_url) as client:
        assert client.call("SET", "large", value) == b"+OK\r\n"
        assert client.call("WAIT", 1, 30_000) == b":1\r\n"
        sent = metric(ways.through, "ackgate_lanes_received_bytes_total")
        way.delay = 0.05
        client.send_raw(request("GET", "large") + request("STRLEN", "large"))
        until(
            lambda: metric(ways.through, "ackgate_lanes_received_bytes_total") > sent + len(value) // 4, "some is there"
        )
        way.cut()
        replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
        assert client.receive() == b"$%d\r\n%s\r\n" % (len(value), value)
        assert client.receive() == b":%d\r\n" % len(value)


def test_a_connection_to_a_former_primary_that_leads_nowhere_is_given_up(
    two: tuple[Ways, FaultProxy, Node, Node]
) -> None:
    ways, way, primary, replica = two
    with Wire.to(ways.through.redis_url) as client, Wire.to(ways.through.redis_url) as blocked:
        assert client.call("SET", "key", 1) == b"+OK\r\n"
        blocked.send("BLPOP", "list", 0)
        until(lambda: "blpop" in {each["cmd"] for each in primary.direct.client_list()}, "it blocks")
        way.half_open()
        client.send("SET", "key", 2)
        replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
        assert client.receive() == UNKNOWN
        assert blocked.receive() == UNKNOWN


def _calls(address: tuple[str, int], command: str) -> int:
    with Wire(*address) as node:
        told = node.call("INFO", "commandstats").split(b"cmdstat_%s:calls=" % command.encode())
    return int(told[1].split(b",")[0]) if len(told) > 1 else 0
