"""Nodes that die, hang and come back, under load: what clients see of it, and what is kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.harness import ENVIRONMENT, PATIENCE_S, Up, until, up
from tests.system.load import Confirmer, Setter, Transactor, Worker, go_on, load, metric
from tests.system.nodes import stopped
from tests.system.wire import Wire

UNKNOWN = (
    b"-ERR the connection to the shard was lost while this command was under way: its outcome is unknown, "
    b"read before you write it again\r\n"
)
SEND_AGAIN = b"-ERR the connection to the shard was lost before this command's reply: send it again\r\n"
ABORTED = b"-EXECABORT Transaction discarded because of: the connection to the shard was lost before EXEC\r\n"
UNBLOCKED = b"-UNBLOCKED force unblock from blocking operation, the primary that took writes of this session"
TOO_MANY = b"-CLUSTERDOWN too many commands wait for a primary of this slot: send the command again later\r\n"
TOO_LATE = b"-CLUSTERDOWN no primary served this slot within 1.5 s: send the command again\r\n"
SLOTS = (100, 6000, 12000)  # one of each shard of three


class Carrier(Transactor):
    """A Transactor that may meet failures: EXEC either ran as a whole, or its error says what is known."""

    def check(self, reply: bytes) -> None:
        assert reply.startswith(b"*2\r\n:"), reply
        one, other = (int(each) for each in reply[5:-2].split(b"\r\n:"))
        assert one == other


@contextmanager
def proxy(tmp_path: Path, seeds: Sequence[str], name: str = "proxy") -> Iterator[subprocess.Popen[str]]:
    """``ackgate proxy`` in front of these seeds, started but not necessarily ready."""
    config = tmp_path / f"{name}.yaml"
    config.write_text(f"cluster: {{seeds: {json.dumps(list(seeds))}}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n")
    with (tmp_path / f"{name}.err").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "proxy", "--config", str(config)],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ready(running: Up) -> bool:
    try:
        with urllib.request.urlopen(f"{running.admin_url}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 503:
            raise
        return False


def node(address: str) -> redis.Redis:
    host, _, port = address.rpartition(":")
    return redis.Redis(host, int(port), decode_responses=True)


def shard_of(running: Up, slot: int) -> dict[str, Any]:
    shards = running.topology()["shards"]
    return next(each for each in shards if any(first <= slot <= last for first, last in each["slots"]))


def primary_of(running: Up, slot: int) -> dict[str, Any]:
    primary = shard_of(running, slot)["primary"]
    assert primary is not None
    return dict(primary)


def whole(running: Up) -> bool:
    """Every shard has a primary that a replica follows in step."""
    topology = running.topology()["shards"]
    nodes = [each for shard in topology for each in [shard["primary"], *shard["replicas"]]]
    if not ready(running) or len(nodes) != 6 or not all(each and each["health"] == "online" for each in nodes):
        return False
    for shard in topology:
        with node(shard["primary"]["address"]) as client:
            replication = client.info("replication")
        if replication["role"] != "master" or replication.get("slave0", {}).get("state") != "online":
            return False
    return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """3 primaries and 3 replicas that the tests here break and that mend themselves."""
    folder = tmp_path_factory.mktemp("failure")
    with up(folder, "--port", "0", "--admin-port", "0") as running:
        yield running
        told = (folder / "data.err").read_text()
    assert "Traceback" not in told and "defect" not in told, told


@pytest.fixture
def broken(cluster: Up) -> Up:
    until(lambda: whole(cluster), "the cluster is whole")
    return cluster


def crowd() -> tuple[list[Setter], list[Confirmer], list[Carrier]]:
    """20 clients over all shards."""
    setters = [Setter(SLOTS[name % 3] + name, name) for name in range(9)]
    confirmers = [Confirmer(SLOTS[name % 3] + name, name) for name in range(8)]
    return setters, confirmers, [Carrier(slot, 0) for slot in SLOTS]


def on(slot: int, workers: Sequence[Worker], running: Up) -> tuple[list[Worker], list[Worker]]:
    """The workers of the shard that serves ``slot``, and all others."""
    ranges = shard_of(running, slot)["slots"]
    there = [each for each in workers if any(first <= each.slot <= last for first, last in ranges)]
    return there, [each for each in workers if each not in there]


def nothing_confirmed_is_gone(running: Up, confirmers: Sequence[Confirmer]) -> None:
    with running.client() as client:
        for each in confirmers:
            assert each.confirmed, f"{each} never got a confirmation"
            assert client.mget(list(each.confirmed)) == list(each.confirmed.values())


def only_documented(setters: Sequence[Setter], confirmers: Sequence[Confirmer], carriers: Sequence[Carrier]) -> None:
    for setter in setters:
        assert set(setter.errors) <= {UNKNOWN}
    for confirmer in confirmers:
        assert all(each == UNKNOWN or each.startswith(UNBLOCKED) for each in confirmer.errors), confirmer.errors
    for carrier in carriers:
        assert set(carrier.errors) <= {UNKNOWN, SEND_AGAIN, ABORTED}
        assert len(carrier.errors) <= 2, carrier.errors


def test_a_killed_primary_is_replaced_while_other_shards_go_on(broken: Up, tmp_path: Path) -> None:
    victim = primary_of(broken, SLOTS[0])
    setters, confirmers, carriers = crowd()
    everybody = [*setters, *confirmers, *carriers]
    hit, spared = on(SLOTS[0], everybody, broken)
    with ExitStack() as stack:
        # A second proxy knows one dead address and the node that is about to die.
        beside = Up(
            stack.enter_context(proxy(tmp_path, ["127.0.0.1:1", victim["address"]])), tmp_path / "proxy.err"
        )
        through_it = Setter(SLOTS[0], 99)
        stack.enter_context(load(beside.redis_url, [through_it]))
        with load(broken.redis_url, everybody):
            go_on([*everybody, through_it])
            os.kill(victim["pid"], signal.SIGKILL)
            until(lambda: shard_of(broken, SLOTS[0])["primary"] is None, "topology shows that there is no primary")
            assert not ready(broken)
            # WAIT asks every shard, the dead one too: confirmers elsewhere wait as long as they said they would.
            go_on([each for each in spared if not isinstance(each, Confirmer)], 20)
            assert shard_of(broken, SLOTS[0])["primary"] is None, "the others went on during the outage, not after it"
            until(lambda: ready(broken), "a replica has taken over")
            assert primary_of(broken, SLOTS[0])["address"] != victim["address"]
            go_on([*everybody, through_it])
            until(lambda: whole(broken), "the killed node is back")
            replicas = shard_of(broken, SLOTS[0])["replicas"]
            assert [(each["address"], each["node_id"]) for each in replicas] == [(victim["address"], victim["node_id"])]
            go_on([*everybody, through_it])
        assert ready(beside)
    only_documented([*setters, through_it], confirmers, carriers)
    assert not any(each.errors for each in spared)
    assert all(len(each.errors) <= 2 for each in hit), "one command was under way, nothing later failed"
    nothing_confirmed_is_gone(broken, confirmers)


def test_a_killed_replica_is_noticed_by_nobody_but_wait(broken: Up) -> None:
    victim = shard_of(broken, SLOTS[1])["replicas"][0]
    setters, confirmers, carriers = crowd()
    everybody = [*setters, *confirmers, *carriers]
    with load(broken.redis_url, everybody):
        go_on(everybody)
        os.kill(victim["pid"], signal.SIGKILL)
        until(
            lambda: shard_of(broken, SLOTS[1])["replicas"][0]["pid"] not in (victim["pid"], None), "the replica is back"
        )
        until(lambda: whole(broken), "it follows again")
        go_on(everybody)
    assert not any(each.errors for each in everybody)
    nothing_confirmed_is_gone(broken, confirmers)


def test_a_primary_and_then_its_successor_are_killed(broken: Up) -> None:
    setters, confirmers, carriers = crowd()
    everybody = [*setters, *confirmers, *carriers]
    _, spared = on(SLOTS[2], everybody, broken)
    with load(broken.redis_url, everybody):
        for _ in range(2):
            go_on(everybody)
            victim = primary_of(broken, SLOTS[2])
            os.kill(victim["pid"], signal.SIGKILL)
            until(lambda gone=victim: _led_by_another(broken, SLOTS[2], gone), "its replica has taken over")  # type: ignore[misc]
            until(lambda: whole(broken), "the killed node is back")
        go_on(everybody)
    only_documented(setters, confirmers, carriers)
    assert not any(each.errors for each in spared)
    nothing_confirmed_is_gone(broken, confirmers)


def _led_by_another(running: Up, slot: int, former: dict[str, Any]) -> bool:
    primary = shard_of(running, slot)["primary"]
    return primary is not None and primary["address"] != former["address"]


def test_a_primary_that_hangs_is_replaced_and_returns_as_a_replica(broken: Up) -> None:
    victim = primary_of(broken, SLOTS[1])
    setters, confirmers, carriers = crowd()
    everybody = [*setters, *confirmers, *carriers]
    _, spared = on(SLOTS[1], everybody, broken)
    with load(broken.redis_url, everybody):
        go_on(everybody)
        os.kill(victim["pid"], signal.SIGSTOP)
        try:
            until(lambda: _led_by_another(broken, SLOTS[1], victim), "a replica has taken over")
            go_on([*setters, *carriers])  # there is no replica that a WAIT could count
        finally:
            os.kill(victim["pid"], signal.SIGCONT)
        until(lambda: whole(broken), "the node follows its successor")
        assert shard_of(broken, SLOTS[1])["replicas"][0]["pid"] == victim["pid"]
        go_on(everybody)
    only_documented(setters, confirmers, carriers)
    assert not any(each.errors for each in spared)
    nothing_confirmed_is_gone(broken, confirmers)


def test_all_nodes_die_and_the_proxy_finds_the_cluster_again(broken: Up) -> None:
    with broken.client() as client:
        keys = {f"kept:{number}": str(number) for number in range(200)}
        assert client.mset(keys)
        with load(broken.redis_url, [Setter(slot, 7) for slot in SLOTS]) as setters:
            go_on(setters)
            for pid in broken.pids():
                os.kill(pid, signal.SIGKILL)
            until(lambda: not ready(broken), "the loss is noticed")
            until(lambda: whole(broken), "everything is back")
            go_on(setters)
        assert client.mget(list(keys)) == list(keys.values()), "appendfsync always: the disk had it all"
    for setter in setters:
        assert all(error == UNKNOWN or error.startswith(b"-CLUSTERDOWN ") for error in setter.errors)


def test_two_primaries_die_at_once_and_come_back_with_what_they_confirmed(broken: Up) -> None:
    victims = [primary_of(broken, slot) for slot in SLOTS[:2]]
    setters, confirmers, carriers = crowd()
    everybody = [*setters, *confirmers, *carriers]
    with load(broken.redis_url, everybody):
        go_on(everybody)
        for victim in victims:
            os.kill(victim["pid"], signal.SIGKILL)
        until(lambda: not ready(broken), "the loss is noticed")
        until(lambda: whole(broken), "no majority could elect: the primaries themselves are back")
        go_on(everybody)
    only_documented(setters, confirmers, carriers)
    nothing_confirmed_is_gone(broken, confirmers)


def test_a_whole_shard_dies_and_the_others_go_on(broken: Up) -> None:
    shard = shard_of(broken, SLOTS[2])
    setters, confirmers, carriers = crowd()
    everybody = [*setters, *confirmers, *carriers]
    with load(broken.redis_url, everybody):
        go_on(everybody)
        for victim in [shard["primary"], *shard["replicas"]]:
            os.kill(victim["pid"], signal.SIGKILL)
        until(lambda: not ready(broken), "the loss is noticed")
        until(lambda: whole(broken), "both are back")
        go_on(everybody)
    only_documented(setters, confirmers, carriers)
    assert not any(each.errors for each in on(SLOTS[0], everybody, broken)[0])
    nothing_confirmed_is_gone(broken, confirmers)


def test_nodes_that_hang_all_together_go_on_as_if_nothing_had_been(broken: Up) -> None:
    pids = broken.pids()
    setters = [Setter(slot, 0) for slot in SLOTS]
    with load(broken.redis_url, setters):
        go_on(setters)
        with stopped(pids):
            until(lambda: not ready(broken), "the loss is noticed")
        until(lambda: ready(broken), "all is well again")
        go_on(setters)
    assert all(error == UNKNOWN for each in setters for error in each.errors)
    assert set(broken.pids()) == set(pids), "nothing was restarted"


def test_a_shard_that_hangs_with_its_replica_delays_its_own_commands_alone(broken: Up) -> None:
    shard = shard_of(broken, SLOTS[0])
    hit, *spared = [Setter(slot, 0) for slot in SLOTS]
    with load(broken.redis_url, [hit, *spared]):
        go_on([hit, *spared])
        with stopped([each["pid"] for each in [shard["primary"], *shard["replicas"]]]):
            until(lambda: not ready(broken), "the loss is noticed")
            go_on(spared, 20)
        go_on([hit, *spared])
    assert not any(each.errors for each in spared)


# -- one shard without a replica: what is lost comes back by itself or not at all -----------------------------------


@contextmanager
def single(tmp_path: Path, settings: str, restart: bool = True) -> Iterator[Up]:
    config = tmp_path / "single.yaml"
    config.write_text(
        f"cluster: {{shards: 1, replicas: 0, restart: {str(restart).lower()}}}\nproxy:\n"
        + "".join(f"  {line}\n" for line in settings.splitlines())
    )
    with up(tmp_path, "--port", "0", "--admin-port", "0", "--config", str(config)) as running:
        yield running


def test_commands_wait_for_a_primary_that_is_started_again(tmp_path: Path) -> None:
    with single(tmp_path, "timeouts: {hold: 30s}") as running, ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(50)]
        for at, client in enumerate(clients[:20]):
            assert client.call("SELECT", at % 4) == b"+OK\r\n"
            assert client.call("SET", f"before:{at}", at) == b"+OK\r\n"
            assert client.call("HELLO", 2 + at % 2)
        former = primary_of(running, 0)
        os.kill(former["pid"], signal.SIGKILL)
        until(lambda: not ready(running), "the loss is noticed")
        for at, client in enumerate(clients):
            client.send("RPUSH", f"held:{at}", 1)
            client.send("GET", f"before:{at}")
            client.send("RPUSH", f"held:{at}", 2)
        replies = [[client.receive() for _ in range(3)] for client in clients]
        for at, (one, read, two) in enumerate(replies):
            assert (one, two) == (b":1\r\n", b":2\r\n")
            assert at >= 20 or read == b"$%d\r\n%d\r\n" % (len(str(at)), at), "appendfsync always: it was on disk"
        again = primary_of(running, 0)
        assert again["pid"] != former["pid"]
        with node(again["address"]) as direct:
            # One lane for each of the 8 identities and no storm of attempts: 50 clients are no 50 connections.
            lanes = [each for each in direct.client_list() if each["name"] == "ackgate"]
            assert len(lanes) <= 8
            assert direct.info("stats")["total_connections_received"] < 50


def test_a_write_handed_to_a_hung_node_never_runs_behind_a_later_one(tmp_path: Path) -> None:
    settings = "timeouts: {command: 500ms, probe: 500ms, connect: 500ms, hold: 60s}"
    with single(tmp_path, settings) as running, ExitStack() as stack:
        client = stack.enter_context(Wire.to(running.redis_url))
        assert client.call("RPUSH", "log", "first") == b":1\r\n"
        hung = primary_of(running, 0)
        with node(hung["address"]) as direct:
            before = {each["id"] for each in direct.client_list() if each["name"] == "ackgate"}
        os.kill(hung["pid"], signal.SIGSTOP)
        try:
            assert client.call("RPUSH", "log", "old") == UNKNOWN
            client.send("RPUSH", "log", "new")
            client.send("LRANGE", "log", 0, -1)
            until(lambda: metric(running, "ackgate_held_commands") >= 1, "the second write is held")
        finally:
            os.kill(hung["pid"], signal.SIGCONT)
        client.receive()
        seen = client.receive()
        with node(hung["address"]) as direct:
            assert not before & {each["id"] for each in direct.client_list()}, "the old lane was killed before"
            assert direct.lrange("log", 0, -1) in (["first", "new"], ["first", "old", "new"])
        assert client.call("LRANGE", "log", 0, -1) == seen


def test_holds_are_bounded_in_time_and_number(tmp_path: Path) -> None:
    settings = "timeouts: {hold: 1500ms}\nlanes: {held_commands: 20, held_bytes: 64kb}"
    with single(tmp_path, settings, restart=False) as running, ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(30)]
        os.kill(primary_of(running, 0)["pid"], signal.SIGKILL)
        until(lambda: not ready(running), "the loss is noticed")
        for at, client in enumerate(clients):
            client.send("SET", f"key:{at}", at)
        replies = [client.receive() for client in clients]
        assert replies.count(TOO_MANY) == 10
        assert replies.count(TOO_LATE) == 20
        first, second = clients[:2]
        first.send("SET", "key", "x" * 40_000)
        until(lambda: metric(running, "ackgate_held_bytes") > 40_000, "the first is held")
        assert second.call("SET", "key", "x" * 40_000) == TOO_MANY
        assert second.call("PING") == b"+PONG\r\n"
        assert first.receive() == TOO_LATE
        # A pipeline over the limit is answered in order, too.
        half = first.pipeline([["SET", f"key:{at}", at] for at in range(40)])
        assert half == [TOO_LATE] * 20 + [TOO_MANY] * 20


def test_reconnects_keep_their_distance(tmp_path: Path) -> None:
    settings = "lanes: {reconnect_min: 40ms, reconnect_max: 10s}"
    with single(tmp_path, settings, restart=False) as running, ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(8)]
        for at, client in enumerate(clients):
            assert client.call("SELECT", at) == b"+OK\r\n"
            assert client.call("SET", "key", "value") == b"+OK\r\n"
        primary = primary_of(running, 0)
        port = int(primary["address"].rpartition(":")[2])
        os.kill(primary["pid"], signal.SIGKILL)
        until(lambda: not ready(running), "the loss is noticed")
        times = _attempts(port, 8 * 5 + 1)
    # So many attempts of 8 lanes: one of them made 6, with pauses of at least half of 0.04, 0.08 ... 0.64 s in between.
    assert times[-1] - times[0] >= (0.04 + 0.08 + 0.16 + 0.32 + 0.64) / 2
    last = times[-8:]
    assert max(later - earlier for earlier, later in pairwise(last)) > 0.01, "the lanes do not come all at once"


def _attempts(port: int, count: int) -> list[float]:
    """The times of so many connections of lanes to a port at which nobody answers."""
    times: list[float] = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(100)
        listener.settimeout(PATIENCE_S)
        while len(times) < count:
            attempt, _ = listener.accept()
            with attempt:
                attempt.settimeout(PATIENCE_S)
                if b"\r\nackgate\r\n" in attempt.recv(1000):
                    times.append(time.monotonic())
    return times
