"""WAIT and WAITAOF through the proxy: every number is true, and where there is none the session is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Up, until
from tests.system.load import tag
from tests.system.nodes import Shard, configured, metric, migrate, promote, shards_of, unconfirmed
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


# ---- words ---------------------------------------------------------------------------------------------------------


def test_calls_are_refused_in_the_engines_words(session: Wire, direct: int) -> None:
    calls = ["WAIT", "WAIT 1", "WAIT 1 0 0", "WAIT a 0", "WAIT 1 a", "WAIT x y", "WAIT 1 -1", f"WAIT 1 {(1 << 63) - 1}"]
    calls += ["WAITAOF", "WAITAOF 1 0", "WAITAOF 1 0 0 0", "WAITAOF 2 0 0", "WAITAOF a 0 0", "WAITAOF 0 -1 0"]
    calls += ["WAITAOF 0 x 0", "WAITAOF 0 0 -1", "WAITAOF 0 0 x"]
    with Wire("127.0.0.1", direct) as engine:
        for call in calls:
            assert session.call(*call.split()) == engine.call(*call.split()), call


@pytest.mark.parametrize("protocol", [2, 3])
def test_replies_have_the_engines_form_in_both_protocols(protocol: int, session: Wire, shards: list[Shard]) -> None:
    session.call("HELLO", protocol)
    put(session, *shards)
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


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


def test_a_session_that_wrote_nothing_counts_the_replicas(session: Wire, shards: list[Shard]) -> None:
    with shards[0].replica.stopped():
        session.call("GET", shards[0].key)
        assert session.call("WAIT", 1, 0) == b":1\r\n"
        assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


def test_who_asks_for_nothing_never_blocks(session: Wire, shards: list[Shard]) -> None:
    with shards[0].replica.stopped():
        put(session, shards[0])
        assert session.call("WAIT", 0, 0) == b":0\r\n"
        assert session.call("WAIT", -1, 0) == b":0\r\n"
        assert session.call("WAITAOF", 0, 0, 0) == b"*2\r\n:1\r\n:0\r\n"


def test_what_was_acknowledged_once_is_told_again_at_once(session: Wire, shards: list[Shard]) -> None:
    put(session, shards[0])
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
    with shards[0].replica.stopped():
        put(Wire.to(f"redis://{shards[0].primary.host}:{shards[0].primary.port}"), shards[0])  # somebody else's
        assert session.call("WAIT", 1, 0) == b":1\r\n"
        assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
        put(session, shards[0])
        assert session.call("WAIT", 1, 50) == b":0\r\n"
        assert session.call("WAITAOF", 1, 1, 50) == b"*2\r\n:1\r\n:0\r\n"


@pytest.mark.parametrize("what", ["SETNX", "MULTI", "EVAL", "failed script", "split", "everywhere", "large"])
def test_every_way_to_write_counts(what: str, session: Wire, shards: list[Shard]) -> None:
    first, second, _ = shards
    ways: dict[str, list[list[bytes | str | int]]] = {
        "SETNX": [["SETNX", first.key + "n", 1]],
        "MULTI": [["MULTI"], ["INCR", first.key + "i"], ["EXEC"]],
        "EVAL": [["EVAL", "return redis.call('SET', KEYS[1], 1)", 1, first.key]],
        "failed script": [["EVAL", "redis.call('SET', KEYS[1], 1) error({err = 'READONLY mine'})", 1, first.key]],
        "split": [["MSET", second.key, 1, first.key, 1]],
        "everywhere": [["FLUSHALL"]],
        "large": [["SET", first.key + "l", b"x" * (2 << 20)]],
    }
    with first.replica.stopped():
        replies = session.pipeline(ways[what])
        assert what == "failed script" or not any(reply.startswith(b"-") for reply in replies), replies
        assert session.call("WAIT", 1, 100) == b":0\r\n"
        assert session.call("WAITAOF", 0, 1, 100) in (b"*2\r\n:1\r\n:0\r\n", b"*2\r\n:0\r\n:0\r\n")
    assert session.call("WAIT", 1, 0) == b":1\r\n"


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


def test_commands_behind_a_wait_run_behind_it(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    shard = shards[0]
    behind = shard.key + "behind"
    with Wire.to(cluster.redis_url) as other:
        other.call("DEL", behind)
        with shard.replica.stopped():
            for request in (["SET", shard.key, 1], ["WAIT", 1, 0], ["SET", behind, 2], ["GET", behind]):
                session.send(*request)
            until(lambda: metric(cluster, "ackgate_waits_open") == 1, "it waits")
            assert other.call("GET", behind) == b"$-1\r\n"
        assert [session.receive() for _ in range(4)] == [b"+OK\r\n", b":1\r\n", b"+OK\r\n", b"$1\r\n2\r\n"]


@pytest.mark.parametrize("timeout", [1, 20, 130])
def test_a_deadline_is_never_early(timeout: int, session: Wire, shards: list[Shard]) -> None:
    with shards[0].replica.stopped():
        put(session, shards[0])
        for call in (["WAIT", 1, timeout], ["WAITAOF", 1, 1, timeout], ["WAIT", 5, timeout]):
            start = time.monotonic()
            session.call(*call)
            assert time.monotonic() - start >= timeout / 1000


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
    calls = shards[0].primary.direct.info("commandstats")["cmdstat_role"]["calls"]
    with Wire.to(cluster.redis_url) as session:
        assert session.call("WAIT", 1, 0) == b":1\r\n"
    rounds = shards[0].primary.direct.info("commandstats")["cmdstat_role"]["calls"] - calls
    assert rounds <= 2, "nobody is looked for any more"


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


def test_an_aof_that_is_switched_off_ends_the_wait_for_it(cluster: Up, session: Wire, shards: list[Shard]) -> None:
    with shards[0].replica.stopped():
        put(session, shards[0])
        session.send("WAITAOF", 1, 1, 0)
        until(lambda: metric(cluster, "ackgate_waits_open") == 1, "it waits")
        with shards[0].primary.set("appendonly", "no"):
            assert session.receive() == NO_AOF


def test_a_replica_without_aof_never_counts(session: Wire, shards: list[Shard]) -> None:
    with shards[0].replica.set("appendonly", "no"):
        put(session, shards[0])
        assert session.call("WAITAOF", 1, 1, 150) == b"*2\r\n:1\r\n:0\r\n"
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


def numbered(running: Up, shard: Shard) -> Callable[[], bool]:
    """Whether a new session gets its number."""

    def looks() -> bool:
        with Wire.to(running.redis_url) as session:
            if session.call("SET", shard.key, "value") != b"+OK\r\n":
                return False
            return session.call("WAIT", 1, 200) == b":1\r\n"

    return looks


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Its nodes fail over quickly; the proxy looks at them seldom, so that it has to see by itself what happened."""
    text = "cluster: {node_timeout_ms: 1000}\nproxy: {timeouts: {probe_interval: 60s}}"
    with configured(tmp_path_factory.mktemp("lives"), text) as running:
        yield running


def test_a_connection_that_was_cut_behind_the_write_costs_no_number(session: Wire, shards: list[Shard]) -> None:
    put(session, shards[0])
    shards[0].primary.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"


def test_two_failovers_that_nobody_saw_confirm_nothing_of_before(quick: Up) -> None:
    shard = shards_of(quick)[0]
    until(numbered(quick, shard), "all is well")
    with Wire.to(quick.redis_url) as session:
        put(session, shard)
        promote(shard.replica)
        promote(shard.primary)
        session.send("WAIT", 1, 0)
        assert unconfirmed(session)
    until(numbered(quick, shard), "new sessions get numbers")


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
