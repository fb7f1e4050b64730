"""Never a false number: each test stages what makes naive fan-out lie, on real nodes, and then hears the proxy.

More of them: ``test_trust.py`` (everysec), ``test_markers.py``, and in ``tests/system/test_acks.py`` a slot that moved,
or is on its way, between the write and the WAIT.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis

from tests.acks.naive import Naive
from tests.acks.staging import (
    BOTH,
    NONE,
    ONE,
    address,
    cut,
    fan_out,
    in_step,
    lies,
    naive_write,
    put,
    unreplicated,
    value_at,
)
from tests.harness import Up, until
from tests.system.beside import plain_server
from tests.system.nodes import Node, Shard, configured, metric, migrate, promote, unconfirmed
from tests.system.wire import Wire

ALONE = 'ackgate_ack_fallbacks_total{kind="alone"}'


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Nodes that die, or hang, are replaced soon."""
    with configured(tmp_path_factory.mktemp("quick"), "cluster: {node_timeout_ms: 1000}") as running:
        yield running


@pytest.fixture(scope="module")
def unseeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The proxy looks at the nodes so seldom that it has to see by itself what happened."""
    text = "cluster: {node_timeout_ms: 1000}\nproxy: {timeouts: {probe_interval: 60s}}"
    with configured(tmp_path_factory.mktemp("unseeing"), text) as running:
        yield running


# ---- connections that wrote nothing --------------------------------------------------------------------------------


def test_a_stopped_replica_acknowledges_nothing(steady: Up, session: Wire, shards: list[Shard]) -> None:
    naive = fan_out(steady, fresh=True)
    with shards[0].replica.stopped():
        naive_write(naive, shards[0])
        assert naive.wait(1, 100) == 1 and naive.waitaof(1, 1, 100) == (1, 1), "a fresh connection has written nothing"
        put(session, shards[0])
        assert session.call("WAIT", 1, 100) == NONE
        assert session.call("WAITAOF", 1, 1, 100) == b"*2\r\n:1\r\n:0\r\n"
    assert session.call("WAIT", 1, 0) == ONE


@pytest.mark.parametrize("how", ["killed", "freed"])
def test_who_takes_the_asking_away_costs_no_number(how: str, session: Wire, shards: list[Shard]) -> None:
    """Replicas speak on their own once a second; what asks them sooner may be killed, or freed by somebody else."""
    shard = shards[0]
    direct = shard.primary.direct
    for _ in range(4):
        put(session, shard, "1")
        assert session.call("WAIT", 1, 0) == b":1\r\n"
        [asking] = [each["id"] for each in direct.client_list() if each["cmd"] == "wait"]
        if how == "killed":
            shard.primary.call("CLIENT", "KILL", "ID", asking)
        while any("b" in each["flags"] for each in direct.client_list() if each["id"] == asking):
            shard.primary.call("CLIENT", "UNBLOCK", asking)
        put(session, shard, "2")
        assert session.call("WAIT", 1, 500) == b":1\r\n"


def test_a_connection_made_anew_between_write_and_wait_costs_no_truth(
    steady: Up, session: Wire, shards: list[Shard]
) -> None:
    shard = shards[0]
    naive = fan_out(steady)
    with shard.replica.stopped():
        naive_write(naive, shard)
        put(session, shard)
        assert naive.wait(1, 100) == 0, "as long as the connection lives it knows"
        shard.primary.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert naive.wait(1, 100) == 1 and naive.waitaof(0, 1, 100) == (1, 1)
        assert session.call("WAIT", 1, 100) == NONE
        assert session.call("WAITAOF", 0, 1, 100) == b"*2\r\n:1\r\n:0\r\n"
    assert session.call("WAIT", 1, 0) == ONE


def test_a_slot_that_moves_while_another_shard_is_waited_for_is_counted_where_it_is(
    steady: Up, session: Wire, shards: list[Shard]
) -> None:
    """What was seen of one shard before the last of the others had enough may hold no more by then."""
    source, target, slow = shards
    with ExitStack() as stack:
        other = stack.enter_context(Wire.to(steady.redis_url))
        stack.enter_context(target.replica.stopped())
        with slow.replica.stopped():
            put(session, source)
            put(session, slow)
            session.send("WAIT", 1, 2000)
            until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
            put(other, source)
            assert other.call("WAIT", 1, 0) == ONE, "of the first shard all has been seen"
            migrate(source, target, source.slot)
        assert session.receive() == NONE
        naive = fan_out(steady)
        naive_write(naive, slow)
        assert naive.wait(1, 100) == 1, "for it has written nothing to where the key is"
    assert session.call("WAIT", 1, 0) == ONE
    migrate(target, source, source.slot)


def test_a_slot_that_moves_while_a_shard_without_writes_has_no_replica_is_counted_where_it_is(
    steady: Up, session: Wire, shards: list[Shard]
) -> None:
    """Who wrote nothing to a shard waits for its replicas to be there, and what was seen elsewhere grows old."""
    source, target, slow = shards
    with target.replica.stopped():
        with slow.replica.stopped():
            cut(slow)
            until(lambda: not slow.primary.call("ROLE")[2], "it has no replica")
            put(session, source)
            session.send("WAIT", 1, 2500)
            until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
            with Wire.to(steady.redis_url) as other:
                put(other, source)
                assert other.call("WAIT", 1, 50) == NONE, "for the third shard; of the first all has been seen"
            migrate(source, target, source.slot)
        until(lambda: slow.primary.call("ROLE")[2], "it has one again")
        assert session.receive() == NONE
    assert session.call("WAIT", 1, 0) == ONE
    migrate(target, source, source.slot)


# ---- primaries that lost what they had -----------------------------------------------------------------------------


def test_a_killed_primary_takes_the_numbers_of_its_sessions_along(quick: Up) -> None:
    """The primary is killed with a write that no replica has; its replica leads, and it comes back as a replica."""
    shard = in_step(quick)[0]
    naive = fan_out(quick)
    before = metric(quick, "ackgate_acks_unconfirmed_total")
    with ExitStack() as stack:
        waiting, fsync, idle, reader, multi, mute = (stack.enter_context(Wire.to(quick.redis_url)) for _ in range(6))
        with unreplicated(shard):
            for session in (waiting, fsync, idle, multi, mute):
                put(session, shard, "lost")
            naive_write(naive, shard)
            waiting.send("WAIT", 1, 0)
            fsync.send("WAITAOF", 1, 1, 0)
            until(lambda: metric(quick, "ackgate_waits_open") == 2, "they wait")
            os.kill(shard.primary.pid, signal.SIGKILL)
            assert unconfirmed(waiting) and unconfirmed(fsync), "at once, and not when another leads: none can"
        assert metric(quick, "ackgate_acks_unconfirmed_total") == before + 2
        idle.send("GET", shard.key)
        assert idle.receive() == b"$-1\r\n", "reads go on"
        assert reader.call("WAIT", 0, 0).startswith(b":"), "who wrote nothing has nothing to lose"
        in_step(quick)
        until(lambda: lies(naive), "the old primary is back as a replica")
        assert reader.call("GET", shard.key) == b"$-1\r\n", "which was lost"
        idle.send("WAIT", 1, 1000)
        idle.send("SET", shard.key, "behind")
        assert unconfirmed(idle)
        assert metric(quick, "ackgate_acks_unconfirmed_total") == before + 3
        assert reader.call("GET", shard.key) == b"$-1\r\n", "and what stood behind is not run"
        for words in (["MULTI"], ["WAIT", 1, 0], ["SET", shard.key, "behind"], ["EXEC"]):
            multi.send(*words)
        assert [multi.receive() for _ in range(3)] == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"]
        assert unconfirmed(multi)
        mute.send("CLIENT", "REPLY", "OFF")
        mute.send("WAIT", 1, 0)
        mute.send("SET", shard.key, "behind")
        assert mute.at_eof(), "without a word"
        assert reader.call("GET", shard.key) == b"$-1\r\n", "nor is the transaction, nor what was not to be heard"


def test_a_primary_that_hung_and_came_back_as_a_replica_has_no_numbers(quick: Up) -> None:
    """Its connections survive, and so does what they think of the offset they wrote to."""
    shard = in_step(quick)[1]
    naive = fan_out(quick)
    with ExitStack() as stack:
        waiting, idle = (stack.enter_context(Wire.to(quick.redis_url)) for _ in range(2))
        with unreplicated(shard):
            for session in (waiting, idle):
                put(session, shard, "lost")
            naive_write(naive, shard)
            waiting.send("WAIT", 1, 0)
            until(lambda: metric(quick, "ackgate_waits_open") == 1, "it waits")
            os.kill(shard.primary.pid, signal.SIGSTOP)
        until(lambda: shard.replica.call("ROLE")[0] == "master", "its replica leads")
        assert unconfirmed(waiting)
        os.kill(shard.primary.pid, signal.SIGCONT)
        in_step(quick)
        until(lambda: lies(naive), "the old primary is back as a replica")
        assert value_at(shard.replica, shard.key) is None, "which was lost"
        idle.send("WAITAOF", 1, 1, 1000)
        assert unconfirmed(idle)


@pytest.mark.parametrize("looks", ["quick", "unseeing"])
def test_a_primary_demoted_and_promoted_again_has_no_numbers_for_its_former_life(
    looks: str, request: pytest.FixtureRequest
) -> None:
    """The connection survives both, and the new history soon has more bytes than the lost one."""
    running: Up = request.getfixturevalue(looks)
    shard = in_step(running)[2]
    naive = Naive(lambda: [address(shard.primary)])
    with Wire.to(running.redis_url) as session:
        with unreplicated(shard):
            put(session, shard, "lost")
            naive_write(naive, shard)
            assert naive.wait(1, 100) == 0
            os.kill(shard.primary.pid, signal.SIGSTOP)
        try:
            until(lambda: taken_over(shard.replica), "its replica leads")
            assert value_at(shard.replica, shard.key) is None
        finally:
            os.kill(shard.primary.pid, signal.SIGCONT)
        shard.replica.call("SET", shard.key + "more", "x" * 100_000)
        promote(shard.primary)
        until(lambda: lies(naive), "its former primary follows")
        assert value_at(shard.primary, shard.key) is None, "which was lost"
        session.send("WAIT", 1, 1000)
        assert unconfirmed(session)
    in_step(running)


def taken_over(replica: Node) -> bool:
    if replica.call("ROLE")[0] != "master":
        replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
    return bool(replica.call("ROLE")[0] == "master")


@pytest.mark.slow
def test_a_primary_started_again_on_an_emptier_disk_has_no_numbers(tmp_path: Path) -> None:
    """It makes its replica forget as well."""
    text = "cluster: {shards: 1, replicas: 1, node_timeout_ms: 20000, restart: false}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as session:
        [shard] = in_step(running)
        naive = Naive(lambda: [address(shard.primary)])
        put(session, shard)
        naive_write(naive, shard)
        assert naive.wait(1, 0) == 1 and session.call("WAIT", 1, 0) == ONE
        with started_again_without_data(shard.primary):
            until(lambda: value_at(shard.replica, shard.key) is None, "the replica has forgotten, too")
            until(lambda: lies(naive), "the replica follows")
            session.send("WAIT", 1, 1000)
            assert unconfirmed(session)
            with Wire.to(running.redis_url) as other:
                until(lambda: other.call("SET", shard.key, "new") == b"+OK\r\n", "writes are taken again")
                assert other.call("WAIT", 1, 0) == ONE, "the new life has its numbers"


@contextmanager
def started_again_without_data(node: Node) -> Iterator[None]:
    """The node's process is killed and started again with its cluster's configuration, but without its AOF."""
    server = node.direct.info("server")
    data = Path(node.call("CONFIG", "GET", "dir")["dir"])
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not listens(node), "it is dead")
    shutil.rmtree(data / "appendonlydir")
    process = subprocess.Popen([server["executable"], server["config_file"]], stdout=subprocess.DEVNULL)
    try:
        until(lambda: listens(node), "it is back")
        yield
    finally:
        process.kill()
        process.wait()


def listens(node: Node) -> bool:
    try:
        return bool(node.direct.ping())
    except redis.RedisError:
        return False


# ---- changes that are no new life ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_freed_backlog_and_a_first_replica_are_no_new_life(tmp_path: Path) -> None:
    """Either gives the primary a new replication id."""
    with configured(tmp_path, "cluster: {shards: 1, replicas: 1, node_timeout_ms: 20000}") as running:
        [shard] = in_step(running)
        with Wire.to(running.redis_url) as session, Wire.to(running.redis_url) as blocked:
            put(session, shard)
            put(blocked, shard)
            former = replid(shard.primary)
            with shard.primary.set("repl-backlog-ttl", "1"), unreplicated(shard):
                blocked.send("WAIT", 1, 0)
                until(lambda: replid(shard.primary) != former, "the backlog is freed")
                assert session.call("WAIT", 1, 100) == NONE
                assert session.call("WAITAOF", 1, 1, 100) == b"*2\r\n:1\r\n:0\r\n"
            assert blocked.receive() == ONE
            assert session.call("WAIT", 1, 0) == ONE
            assert session.call("WAITAOF", 1, 1, 0) == BOTH
            assert metric(running, "ackgate_acks_unconfirmed_total") == 0


def replid(node: Node) -> str:
    fields = node.direct.info("replication")
    return f"{fields['master_replid']}"


def test_a_planned_switchover_that_carried_everything_answers_with_the_number(quick: Up) -> None:
    shard = in_step(quick)[0]
    before = metric(quick, "ackgate_acks_unconfirmed_total")
    naive = Naive(lambda: [address(shard.primary)])
    with ExitStack() as stack:
        idle, writing, fsync, blocked = (stack.enter_context(Wire.to(quick.redis_url)) for _ in range(4))
        for session in (idle, fsync, blocked):
            put(session, shard)
        naive_write(naive, shard)
        assert fsync.call("WAITAOF", 1, 1, 0) == BOTH
        blocked.send("WAIT", 2, 0)
        until(lambda: metric(quick, "ackgate_waits_open") == 1, "it waits")
        for replica in (shard.replica, shard.primary, shard.replica):
            for session in (idle, writing):
                put(session, shard)
            promote(replica)
            put(writing, shard)
            assert writing.call("WAIT", 1, 0) == ONE
            assert idle.call("WAITAOF", 1, 1, 0) == BOTH
            assert fsync.call("WAITAOF", 1, 1, 0) == BOTH
        assert naive.call(address(shard.primary), "WAIT", 1, 0).startswith(b"-ERR"), "there it is an error"
        alone = metric(quick, ALONE)
        for _ in range(5):
            put(idle, shard)
            assert idle.call("WAIT", 1, 0) == ONE
            assert writing.call("WAITAOF", 1, 1, 0) == BOTH
        assert metric(quick, ALONE) == alone, "and from then on they are answered like all others"
        assert metric(quick, "ackgate_waits_open") == 1, "who asks for more than there are waits on"
        assert metric(quick, "ackgate_acks_unconfirmed_total") == before


def test_a_promotion_that_left_a_write_behind_answers_with_none(quick: Up) -> None:
    """The former primary answers all the time, and is a replica in step a moment later."""
    shard = in_step(quick)[1]
    naive = fan_out(quick, fresh=True)
    with ExitStack() as stack:
        blocked, idle = (stack.enter_context(Wire.to(quick.redis_url)) for _ in range(2))
        with unreplicated(shard):
            shard.primary.call("CONFIG", "SET", "maxclients", "1")  # the replica, among others, does not come back
            put(idle, shard, "lost")
            put(blocked, shard, "lost")
            blocked.send("WAIT", 1, 0)
        until(lambda: taken_over(shard.replica), "it leads, without asking anybody")
        shard.primary.call("CONFIG", "SET", "maxclients", "10000")
        assert unconfirmed(blocked)
        until(lambda: lies(naive), "its former primary follows")
        assert value_at(shard.replica, shard.key) is None
        idle.send("WAIT", 1, 1000)
        assert unconfirmed(idle)
    in_step(quick)


def test_a_primary_that_hung_and_follows_by_now_is_asked_as_any_other_replica(quick: Up) -> None:
    """It was taken for dead when the present map was made."""
    shard = in_step(quick)[1]
    former, leader = shard.primary, shard.replica
    with former.stopped():
        until(lambda: leader.call("ROLE")[0] == "master", "its replica leads")
        until(lambda: leads(quick, leader), "which the proxy has heard")
    until(lambda: former.call("ROLE")[0] == "slave", "it follows")
    [shard] = [each for each in in_step(quick) if each.primary.id == leader.id]
    with Wire.to(quick.redis_url) as session:
        for name, value in (("hz", "11"), ("hz", "10")):
            assert session.call("CONFIG", "SET", name, value) == b"+OK\r\n"
            assert former.direct.config_get(name) == {name: value}, "every node is told"
        put(session, shard)
        assert session.call("WAITAOF", 1, 1, 0) == BOTH
        with former.set("appendfsync", "everysec"):
            put(session, shard)
            assert session.call("WAITAOF", 1, 1, 1000).startswith(b"-ERR WAITAOF cannot be believed")


def test_a_replica_that_joined_a_moment_ago_is_not_believed_unasked(unseeing: Up, tmp_path: Path) -> None:
    shard = in_step(unseeing)[2]
    everybody = [node for each in in_step(unseeing) for node in (each.primary, each.replica)]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        bus = probe.getsockname()[1]
    cluster = {"cluster_enabled": "yes", "cluster_databases": "16", "cluster_port": str(bus)}
    options = {"appendonly": "yes", "appendfsync": "everysec", **cluster}
    with plain_server(tmp_path / "newcomer", None, **options) as port, redis.Redis(port=port) as newcomer:
        own_id = newcomer.cluster("MYID").decode()
        shard.primary.call("CLUSTER", "MEET", "127.0.0.1", port, bus)
        until(lambda: follows(newcomer, shard.primary), "it is told whom to follow")
        with shard.replica.stopped(), Wire.to(unseeing.redis_url) as session:
            with shard.primary.wire() as naive:

                def counted() -> bool:
                    assert naive.call("SET", shard.key, "naive") == b"+OK\r\n"
                    return naive.call("WAITAOF", 0, 1, 500) == BOTH

                until(counted, "its primary counts it")
            put(session, shard)
            assert session.call("WAITAOF", 0, 1, 0).startswith(b"-ERR WAITAOF cannot be believed")
    for node in everybody:
        node.call("CLUSTER", "FORGET", own_id)


def follows(newcomer: redis.Redis, primary: Node) -> bool:
    with suppress(redis.ResponseError):  # they have not met yet
        newcomer.execute_command("CLUSTER", "REPLICATE", primary.id)  # type: ignore[no-untyped-call]
        return True
    return False


def leads(running: Up, node: Node) -> bool:
    rows = running.topology()["shards"]
    return any(row["primary"] is not None and row["primary"]["node_id"] == node.id for row in rows)
