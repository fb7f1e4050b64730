"""Never a false number: each test stages what makes naive fan-out lie, on real nodes, and then hears the proxy.

Two more stand in ``tests/system/test_acks.py``: a slot that moved, or is on its way, between the write and the WAIT.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
import redis

from tests.acks.naive import Address, Naive, Refused
from tests.harness import Up, until
from tests.system.beside import plain_server, proxy_beside, redis_binary
from tests.system.load import tag
from tests.system.nodes import Node, Shard, configured, metric, promote, shards_of, unconfirmed
from tests.system.wire import Wire

ONE = b":1\r\n"
NONE = b":0\r\n"
CALLS = count()
BOTH = b"*2\r\n:1\r\n:1\r\n"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Nodes may be stopped for a while here without being taken for dead."""
    with configured(tmp_path_factory.mktemp("steady"), "cluster: {node_timeout_ms: 20000}") as running:
        yield running


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


def in_step(running: Up) -> list[Shard]:
    """Today's shards, once a session gets its number for writes to all of them; ``key`` is of each call's own."""
    found: list[Shard] = []
    call = next(CALLS)

    def looks() -> bool:
        found[:] = shards_of(running)
        for shard in found:
            shard.key = f"key{call}{tag(shard.slot)}"
        with Wire.to(running.redis_url) as client:
            if any(client.call("SET", shard.key + "step", "in step") != b"+OK\r\n" for shard in found):
                return False
            client.send("WAITAOF", 1, 1, 300)
            return client.receive() == BOTH

    until(looks, "every replica is in step")
    return found


@pytest.fixture
def shards(steady: Up) -> list[Shard]:
    return in_step(steady)


@pytest.fixture
def session(steady: Up) -> Iterator[Wire]:
    with Wire.to(steady.redis_url) as connection:
        yield connection


def put(session: Wire, shard: Shard, value: str = "value") -> None:
    assert session.call("SET", shard.key, value) == b"+OK\r\n"


def address(node: Node) -> Address:
    return node.host, node.port


def fan_out(running: Up, fresh: bool = False) -> Naive:
    """It follows the cluster's changes, as a proxy would."""
    return Naive(lambda: [address(shard.primary) for shard in shards_of(running)], fresh)


def lies(naive: Naive) -> bool:
    """Whether it acknowledges by now; a node that is just changing its role may refuse to speak."""
    try:
        return naive.wait(1, 1000) == 1
    except (Refused, OSError):
        return False


def naive_write(naive: Naive, shard: Shard) -> None:
    assert naive.call(address(shard.primary), "SET", shard.key, "naive") == b"+OK\r\n"


def cut(shard: Shard) -> None:
    """End the replica's link: what is written from now on is not even on its way."""
    assert int(shard.primary.call("CLIENT", "KILL", "TYPE", "replica")) >= 1


@contextmanager
def unreplicated(shard: Shard) -> Iterator[None]:
    """What is written within never reaches the replica, which goes on behind it, unless it asks the primary for it."""
    with shard.replica.stopped():
        cut(shard)
        yield


def value_at(node: Node, key: str) -> str | None:
    with node.wire() as wire:
        wire.call("READONLY")
        reply = wire.call("GET", key)
    return None if reply.startswith(b"$-1") else reply.split(b"\r\n")[1].decode()


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
        assert unconfirmed(waiting) and unconfirmed(fsync), "those who wait are told at once"
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
        shard.replica.call("SET", shard.key + "more", "x" * 1000)
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


# ---- WAITAOF that the engine answers too early ---------------------------------------------------------------------


def everysec(folder: Path, binary: Path | None = None) -> AbstractContextManager[int]:
    """The port of a plain server that has a second to bring its AOF to disk."""
    return plain_server(folder, binary, appendonly="yes", appendfsync="everysec")


@contextmanager
def fsyncs(port: int, folder: Path) -> Iterator[Callable[[], list[float]]]:
    """Sees every fsync of a server process as it ends; yields what tells their times so far, on the wall clock."""
    folder.mkdir()
    with redis.Redis(port=port) as client:
        pid = client.info("server")["process_id"]
    seen = folder / "trace"
    words = ["strace", "-f", "-qq", "-ttt", "-T", "-e", "trace=fsync,fdatasync", "-o", str(seen), "-p", str(pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    def ended() -> list[float]:
        whole = [line for line in seen.read_text().splitlines() if line.endswith(">") and " = 0 " in line]
        return [float(line.split()[1]) + float(line[line.rindex("<") + 1 : -1]) for line in whole]

    try:
        until(lambda: traced(pid) or tracer.poll() is not None, "the tracer looks on")
        if tracer.poll() is not None:
            assert tracer.stderr is not None
            pytest.skip(f"processes cannot be traced here: {tracer.stderr.read()}")
        yield ended
    finally:
        tracer.terminate()
        tracer.wait()


def traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def early(port: int, ended: Callable[[], list[float]]) -> list[bool]:
    """For some writes: whether WAITAOF acknowledged them before any fsync that could have covered them had ended."""
    verdicts = []
    with Wire("127.0.0.1", port) as client:
        for number in range(4):
            assert client.call("SET", "key", number) == b"+OK\r\n"
            written = time.time()
            assert client.call("WAITAOF", 1, 0, 0) == b"*2\r\n:1\r\n:0\r\n"
            told = time.time()
            verdicts.append(first_behind(written, ended) > told)
    return verdicts


def first_behind(written: float, ended: Callable[[], list[float]]) -> float:
    """When the first fsync ended that ended behind a write."""
    return float(until(lambda: min((end for end in ended() if end >= written), default=None), "it is on disk at last"))


@pytest.mark.skipif(shutil.which("strace") is None, reason="only strace sees when a server calls fsync")
@pytest.mark.slow
def test_valkey_with_everysec_acknowledges_before_the_fsync(tmp_path: Path) -> None:
    with everysec(tmp_path / "server") as port, fsyncs(port, tmp_path / "traced") as ended:
        assert any(early(port, ended)), "if this fails the engine is mended: believe it from that version on"


@pytest.mark.skipif(shutil.which("strace") is None, reason="only strace sees when a server calls fsync")
@pytest.mark.slow
def test_redis_with_everysec_acknowledges_behind_the_fsync(tmp_path: Path) -> None:
    with everysec(tmp_path / "server", redis_binary()) as port, fsyncs(port, tmp_path / "traced") as ended:
        assert not any(early(port, ended))


@pytest.mark.slow
def test_redis_with_everysec_is_believed(tmp_path: Path) -> None:
    text = f"cluster: {{shards: 1, replicas: 1, aof: everysec, databases: 1, binary: {redis_binary()}}}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as session:
        [shard] = shards_of(running)
        assert shard.primary.direct.info("server")["redis_version"] >= "8.2"
        put(session, shard)
        assert session.call("WAITAOF", 1, 1, 0) == BOTH
        with shard.replica.stopped():
            put(session, shard)
            assert session.call("WAITAOF", 1, 1, 50) in (b"*2\r\n:0\r\n:0\r\n", b"*2\r\n:1\r\n:0\r\n")


@pytest.mark.parametrize("which", ["primary", "replica"])
def test_everysec_set_while_running_is_noticed(which: str, steady: Up, session: Wire, shards: list[Shard]) -> None:
    """At the very next WAITAOF, and by one that waits already."""
    naive = fan_out(steady)
    node: Node = getattr(shards[2], which)
    with shards[2].replica.stopped():
        put(session, shards[2])
        session.send("WAITAOF", 1, 1, 0)
        until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
        if which == "primary":
            node.call("CONFIG", "SET", "appendfsync", "everysec")
    node.call("CONFIG", "SET", "appendfsync", "everysec")
    try:
        if which == "primary":
            assert session.receive().startswith(b"-ERR WAITAOF cannot be believed")
        else:
            session.receive()  # set before or behind the acknowledgment
        naive_write(naive, shards[2])
        assert naive.waitaof(1, 1, 2000) == (1, 1), "it takes the engine's word"
        put(session, shards[2])
        words = session.call("WAITAOF", 1, 1, 2000).decode()
        assert words.startswith("-ERR WAITAOF cannot be believed") and f":{node.port} has appendfsync everysec" in words
        assert session.call("WAIT", 1, 0) == ONE
    finally:
        node.call("CONFIG", "SET", "appendfsync", "always")
    put(session, shards[2])
    assert session.call("WAITAOF", 1, 1, 0) == BOTH


def test_the_engines_word_is_passed_on_where_that_is_asked_for(tmp_path: Path) -> None:
    text = "cluster: {shards: 1, replicas: 1, aof: everysec}\nproxy: {acks: {untrusted_waitaof: %s}}"
    (tmp_path / "error").mkdir()
    with configured(tmp_path / "error", text % "error") as running, Wire.to(running.redis_url) as session:
        [shard] = shards_of(running)
        put(session, shard)
        assert session.call("WAITAOF", 1, 0, 0).startswith(b"-ERR WAITAOF cannot be believed")
        with proxy_beside(running, tmp_path, acks={"untrusted_waitaof": "pass"}) as url, Wire.to(url) as other:
            put(other, shard)
            assert other.call("WAITAOF", 1, 1, 0) == BOTH


# ---- the marker by which a WAITAOF is asked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting, value, word",
    [("maxmemory", "1", b"(OOM "), ("min-replicas-to-write", "2", b"(NOREPLICAS "), ("acl", "", b"(NOPERM ")],
)
def test_a_shard_that_takes_no_marker_says_why(
    setting: str, value: str, word: bytes, session: Wire, shards: list[Shard]
) -> None:
    """Nor has it any number while its replica is stopped; WAIT needs no marker."""
    shard = shards[0]
    put(session, shard)
    with shard.replica.stopped(), refusing(shard.primary, setting, value):
        words = session.call("WAITAOF", 1, 1, 0)
        assert words.startswith(b"-ERR WAITAOF cannot be answered: ") and word in words, words
        assert b":%d refused" % shard.primary.port in words
        assert session.call("WAIT", 1, 100) == NONE
    assert session.call("WAIT", 1, 0) == ONE
    assert session.call("WAITAOF", 1, 1, 0) == BOTH


@contextmanager
def refusing(node: Node, setting: str, value: str) -> Iterator[None]:
    if setting != "acl":
        with node.set(setting, value):
            yield
        return
    node.call("ACL", "SETUSER", "default", "-function|restore")
    try:
        yield
    finally:
        node.call("ACL", "SETUSER", "default", "+@all")


def test_a_marker_that_is_postponed_by_a_pause_claims_nothing(session: Wire, shards: list[Shard]) -> None:
    shard = shards[0]
    with shard.replica.stopped():
        put(session, shard)
        shard.primary.call("CLIENT", "PAUSE", 60_000, "WRITE")
        try:
            start = time.monotonic()
            assert session.call("WAITAOF", 0, 1, 200) in (b"*2\r\n:0\r\n:0\r\n", b"*2\r\n:1\r\n:0\r\n")
            assert time.monotonic() - start >= 0.2
            session.send("WAITAOF", 1, 1, 0)
        finally:
            shard.primary.call("CLIENT", "UNPAUSE")
    assert session.receive() == BOTH


def test_a_marker_that_is_slow_claims_nothing(steady: Up, session: Wire, shards: list[Shard]) -> None:
    """The primary hangs for a while, and goes on."""
    shard = shards[0]
    with shard.replica.stopped():
        put(session, shard)
        with shard.primary.stopped():
            start = time.monotonic()
            assert session.call("WAITAOF", 0, 1, 200) == b"*2\r\n:0\r\n:0\r\n"
            assert time.monotonic() - start >= 0.2
            session.send("WAITAOF", 1, 1, 0)
            until(lambda: metric(steady, "ackgate_waits_open") == 1, "it waits")
    assert session.receive() == BOTH
