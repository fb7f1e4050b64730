"""WAIT and WAITAOF through the proxy: every number is true, and where there is none the session is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Up, until
from tests.system.load import tag
from tests.system.nodes import Shard, configured, metric, migrate, shards_of, unconfirmed
from tests.system.wire import Wire

ACK_LANES = 8  # connections that a shard may see for acknowledgments, at the most
NO_AOF = b"-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Nodes may be stopped for a while here without being taken for dead."""
    with configured(tmp_path_factory.mktemp("acks"), "cluster: {node_timeout_ms: 10000}") as running:
        yield running


@pytest.fixture
def shards(cluster: Up) -> list[Shard]:
    """Today's shards, every replica in step."""
    found = shards_of(cluster)
    with Wire.to(cluster.redis_url) as client:

        def in_step() -> bool:
            for shard in found:
                client.call("SET", shard.key, "in step")
            return client.call("WAITAOF", 1, 1, 100) == b"*2\r\n:1\r\n:1\r\n"

        until(in_step, "every replica is in step")
    return found


@pytest.fixture
def session(cluster: Up) -> Iterator[Wire]:
    with Wire.to(cluster.redis_url) as connection:
        yield connection


def put(session: Wire, *shards: Shard) -> None:
    for shard in shards:
        assert session.call("SET", shard.key, "value") == b"+OK\r\n"


# ---- counts --------------------------------------------------------------------------------------------------------


def test_every_shard_is_asked_and_the_least_answered(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    first, second, _ = shards
    with first.replica.stopped(), Wire.to(cluster.redis_url) as other:
        put(session, *shards)
        put(other, second)
        assert session.call("WAIT", 1, 200) == b":0\r\n"
        assert session.call("WAITAOF", 1, 1, 200) == b"*2\r\n:1\r\n:0\r\n", "each of the two numbers is the least"
        assert other.call("WAIT", 1, 0) == b":1\r\n"
        assert other.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


def test_a_script_that_words_its_error_like_the_engine_runs_once(session: Wire, shards: list[Shard]) -> None:
    key = shards[0].key + "once"
    session.call("DEL", key)
    for runs, error in enumerate(["TRYAGAIN later", "CLUSTERDOWN mine", "LOADING mine", "MOVED house", "ASK me"], 1):
        script = f"redis.call('INCR', KEYS[1]) return redis.error_reply('{error}')"
        assert session.call("EVAL", script, 1, key).startswith(b"-" + error.encode())
        assert session.call("GET", key) == b"$1\r\n%d\r\n" % runs
    with shards[0].replica.stopped():
        session.call("EVAL", "redis.call('INCR', KEYS[1]) return redis.error_reply('MOVED house')", 1, key)
        assert session.call("WAIT", 1, 100) == b":0\r\n"


def test_no_number_is_given_to_one_session_for_anothers_look(cluster: Up, shards: list[Shard]) -> None:
    """Many sessions write and wait at all times of the rounds, while the replica takes nothing in."""
    shard = shards[0]
    told: list[bytes] = []

    def write_and_wait(url: str, number: int) -> None:
        with Wire.to(url) as session:
            for turn in range(8):
                replies = session.pipeline([["SET", shard.key, turn], ["WAIT", 1, 15 + number % 7]])
                told.append(replies[1])

    with shard.replica.stopped():
        threads = [threading.Thread(target=write_and_wait, args=(cluster.redis_url, number)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert told == [b":0\r\n"] * 320


# ---- order and time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "half-close", "reset"])
def test_for_ever_ends_with_the_client(end: str, cluster: Up, shards: list[Shard]) -> None:
    """Also with one that is gone before its wait has begun."""
    for patient in (True, False):
        with ExitStack() as stack:
            sessions = [stack.enter_context(Wire.to(cluster.redis_url)) for _ in range(10)]
            for number, session in enumerate(sessions):
                put(session, shards[0])
                session.send(*(["WAIT", 5, 0] if number % 2 else ["WAITAOF", 1, 5, 0]))
            if patient:
                until(lambda: metric(cluster, "ackgate_waits_open") == 10, "all wait")
            for session in sessions:
                if end == "half-close":
                    session.sock.shutdown(socket.SHUT_WR)
                else:
                    if end == "reset":
                        session.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    session.close()
            until(lambda: metric(cluster, "ackgate_waits_open") == 0, "nobody waits")
            until(lambda: metric(cluster, "ackgate_clients_open") == 0, "their connections are closed")
    calls = shards[0].primary.direct.info("commandstats")["cmdstat_cluster|nodes"]["calls"]
    with Wire.to(cluster.redis_url) as session:
        assert session.call("WAIT", 1, 0) == b":1\r\n"
    looks = shards[0].primary.direct.info("commandstats")["cmdstat_cluster|nodes"]["calls"] - calls
    assert looks <= 3, "nobody is looked for any more, but for this one and the probes"


def test_those_who_leave_take_no_number_from_those_who_stay(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    put(session, *shards)
    session.send("WAIT", 2, 400)
    for _ in range(40):
        with Wire.to(cluster.redis_url) as impatient:
            put(impatient, shards[0])
            impatient.send("WAIT", 1, 0)
    assert session.receive() == b":1\r\n"


# ---- many ----------------------------------------------------------------------------------------------------------


def test_two_hundred_at_once_share_a_few_connections(cluster: Up, shards: list[Shard]) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(Wire.to(cluster.redis_url)) for _ in range(200)]
        for turn in range(4):
            for number, session in enumerate(sessions):
                session.send("SET", shards[(turn + number) % 3].key, number)
                session.send(*(["WAIT", 1, 0] if (turn + number) % 2 else ["WAITAOF", 1, 1, 0]))
            for number, session in enumerate(sessions):
                assert session.receive() == b"+OK\r\n"
                assert session.receive() == (b":1\r\n" if (turn + number) % 2 else b"*2\r\n:1\r\n:1\r\n")
        for shard in shards:
            clients = [each["name"] for each in shard.primary.direct.client_list()]
            assert clients.count("ackgate-control") <= ACK_LANES + 1, "and one that probes the node"


def test_hopeless_waits_hold_back_nobody(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    with ExitStack() as stack:
        for number in range(12):
            hopeless = stack.enter_context(Wire.to(cluster.redis_url))
            put(hopeless, *shards)
            hopeless.send(*(["WAIT", 5, 0] if number % 2 else ["WAITAOF", 1, 5, 0]))
            put(session, *shards)
            assert session.call("WAIT", 1, 0) == b":1\r\n"
            put(session, *shards)
            assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


# ---- what the engine cannot be asked, or believed ------------------------------------------------------------------


def test_a_shard_without_aof_refuses_in_the_engines_words(session: Wire, shards: list[Shard]) -> None:
    put(session, *shards)
    with shards[1].primary.set("appendonly", "no"):
        assert session.call("WAITAOF", 1, 0, 0) == NO_AOF
        assert session.call("WAITAOF", 0, 1, 0).startswith(b"*2\r\n:0\r\n"), "replicas can be waited for all the same"
        assert session.call("WAIT", 1, 0) == b":1\r\n"


# ---- slots that move -----------------------------------------------------------------------------------------------


def naive(shards: list[Shard]) -> int:
    """What WAIT says when it is put to each primary on a connection that wrote nothing."""
    return min(int(shard.primary.call("WAIT", 1, 100)) for shard in shards)


def test_a_write_whose_slot_moved_waits_for_its_new_replica(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    source, target, _ = shards
    slot = source.slot + 7
    key = "moved" + tag(slot)
    with Wire.to(cluster.redis_url) as other:
        assert session.call("SET", key, "value") == b"+OK\r\n"
        assert session.call("WAIT", 1, 0) == b":1\r\n"
        with target.replica.stopped():
            migrate(source, target, slot)
            assert session.call("WAIT", 1, 200) == b":0\r\n"
            assert session.call("WAITAOF", 0, 1, 200) == b"*2\r\n:1\r\n:0\r\n"
            assert other.call("WAIT", 1, 0) == b":1\r\n" and naive(shards) == 1, "which is not what was asked"
        assert session.call("WAIT", 1, 0) == b":1\r\n"
        assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
        migrate(target, source, slot)
        assert session.call("WAIT", 1, 0) == b":1\r\n"
        assert session.call("GET", key) == b"$5\r\nvalue\r\n"


def test_a_write_on_its_way_to_another_shard_waits_for_both(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    source, target, _ = shards
    slot = source.slot + 9
    key = "moving" + tag(slot)
    assert session.call("SET", key, "value") == b"+OK\r\n"
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    target.primary.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.primary.id)
    source.primary.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.primary.id)
    with target.replica.stopped():
        source.primary.call("MIGRATE", target.primary.host, target.primary.port, key, 0, 5000)
        assert session.call("WAIT", 1, 200) == b":0\r\n"
        assert naive(shards) == 1, "which is not what was asked"
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    for node in (target.primary, source.primary):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", target.primary.id)
    with target.replica.stopped():
        assert session.call("SET", key, "other") == b"+OK\r\n"
        assert session.call("WAIT", 1, 200) == b":0\r\n"
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    migrate(target, source, slot)


# ---- lives ---------------------------------------------------------------------------------------------------------


def test_a_connection_that_was_cut_behind_the_write_costs_no_number(session: Wire, shards: list[Shard]) -> None:
    put(session, shards[0])
    shards[0].primary.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


def test_a_primary_that_came_back_empty_confirms_nothing_of_before(tmp_path: Path) -> None:
    text = "cluster: {shards: 1, replicas: 0, aof: off}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as session:
        [row] = running.topology()["shards"]
        assert session.call("SET", "key", "value") == b"+OK\r\n"
        assert session.call("WAIT", 0, 0) == b":0\r\n"
        os.kill(row["primary"]["pid"], signal.SIGKILL)

        def again() -> bool:
            [present] = running.topology()["shards"]
            return present["primary"] is not None and present["primary"]["pid"] not in (None, row["primary"]["pid"])

        until(again, "the node is started again")
        assert session.call("GET", "key") == b"$-1\r\n"
        session.send("WAIT", 0, 0)
        assert unconfirmed(session)
        with Wire.to(running.redis_url) as other:
            assert other.call("SET", "key", "value") == b"+OK\r\n"
            assert other.call("WAIT", 0, 0) == b":0\r\n"
