"""Never a false number: WAITAOF that the engine answers too early, and whom the proxy believes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from tests.acks.staging import BOTH, ONE, fan_out, in_step, naive_write, put
from tests.harness import Up, until
from tests.system.beside import plain_server, proxy_beside, redis_binary
from tests.system.nodes import Node, Shard, configured, metric, shards_of
from tests.system.wire import Wire


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


def said_by(node: Node) -> str:
    """What a node says of the others, as it says it."""
    with node.wire() as wire:
        return wire.call("CLUSTER", "NODES").decode()


def probes(node: Node) -> int:
    """How often the proxy has asked it for the cluster."""
    return int(node.direct.info("commandstats")["cmdstat_cluster|shards"]["calls"])


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


def test_while_a_replica_hangs_each_deadline_gets_what_is_true(steady: Up, shards: list[Shard]) -> None:
    """It is waited for a moment to tell its settings, which must not make others late."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(Wire.to(steady.redis_url)) for _ in range(60)]
        with shards[0].replica.stopped():
            for session in sessions:
                put(session, shards[0])
            for number, session in enumerate(sessions):
                session.send("WAITAOF", 1, 1, 200 + 4 * number)
            assert {session.receive() for session in sessions} == {b"*2\r\n:1\r\n:0\r\n"}


@pytest.mark.slow
def test_a_replica_that_is_back_before_that_is_known_is_not_believed_unasked(tmp_path: Path) -> None:
    text = "cluster: {shards: 1, replicas: 1, node_timeout_ms: 1000}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as session:
        [shard] = in_step(running)
        shard.replica.call("CONFIG", "SET", "appendfsync", "everysec")
        put(session, shard)
        assert session.call("WAITAOF", 0, 1, 0).startswith(b"-ERR WAITAOF cannot be believed")
        with shard.replica.stopped():
            put(session, shard)
            until(lambda: ",fail " in said_by(shard.primary), "it is taken for dead")
            probed = probes(shard.primary)
            until(lambda: probes(shard.primary) > probed + 2, "which the proxy has heard")
            session.send("WAITAOF", 0, 1, 0)
            until(lambda: metric(running, "ackgate_waits_open") == 1, "it waits")
        assert session.receive().startswith(b"-ERR WAITAOF cannot be believed")
