"""What waits for a primary: how long, how much, in which order, and what becomes of it when one is back."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Up, until
from tests.system.load import metric
from tests.system.test_failure import TOO_LATE, TOO_MANY, node, primary_of, ready, single
from tests.system.wire import Wire, request

CROWD = 2000


@pytest.fixture(scope="module", autouse=True)
def _many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def kill(running: Up) -> None:
    os.kill(primary_of(running, 0)["pid"], signal.SIGKILL)
    until(lambda: not ready(running), "the loss is noticed")


def test_a_pipeline_waits_once_and_fails_fast_then(tmp_path: Path) -> None:
    """Each WAIT stops what is behind it until it is answered, and 350 commands are more than may be under way."""
    settings = "timeouts: {hold: 1500ms}\nclients: {outstanding_commands: 100}"
    with single(tmp_path, settings, restart=False) as running, ExitStack() as stack:
        first, second, later = (stack.enter_context(Wire.to(running.redis_url)) for _ in range(3))
        kill(running)
        for _ in range(4):
            first.send_raw(request("SET", "key", 1) + request("WAIT", 0, 100))
        second.send_raw(b"".join(request("INCR", "key") for _ in range(350)))
        assert first.receive() == TOO_LATE
        later.send("SET", "key", 1)
        replies = [first.receive() for _ in range(7)]
        assert replies[1::2] == [TOO_LATE] * 3
        # The one that came later has its own time to wait, and is still waiting.
        later.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            later.sock.recv(1)
        later.sock.settimeout(30)
        assert [second.receive() for _ in range(350)] == [TOO_LATE] * 350
        assert later.receive() == TOO_LATE
        # What a client sends when it has been told is held anew.
        first.send("SET", "key", 1)
        until(lambda: metric(running, "ackgate_held_commands") == 1, "it is held")
        assert first.receive() == TOO_LATE


def test_what_is_held_is_bounded_over_all_identities(tmp_path: Path) -> None:
    settings = "timeouts: {hold: 3s}\nlanes: {held_commands: 20}"
    with single(tmp_path, settings, restart=False) as running, ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(30)]
        for at, client in enumerate(clients):
            assert client.call("SELECT", at % 3) == b"+OK\r\n"
        kill(running)
        for client in clients:
            client.send("SET", "key", 1)
        until(lambda: metric(running, "ackgate_held_commands") == 20, "ten are refused")
        replies = [client.receive() for client in clients]
        assert replies.count(TOO_MANY) == 10
        assert replies.count(b"-CLUSTERDOWN no primary served this slot within 3 s: send the command again\r\n") == 20


def test_a_crowd_waits_for_a_shard_on_the_lanes_there_are(tmp_path: Path) -> None:
    settings = "timeouts: {hold: 60s}\nlanes: {leased_per_shard: 16}"
    with single(tmp_path, settings) as running, ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(CROWD)]
        for at, client in enumerate(clients):
            client.send_raw(request("SELECT", at % 8) + request("SET", f"before:{at}", at))
        for client in clients:
            assert [client.receive(), client.receive()] == [b"+OK\r\n"] * 2
        kill(running)
        for at, client in enumerate(clients):
            client.send_raw(request("GET", f"before:{at}") + request("APPEND", f"held:{at}", at))
        for at, client in enumerate(clients):
            length = len(str(at))
            assert client.receive() == b"$%d\r\n%d\r\n" % (length, at)
            assert client.receive() == b":%d\r\n" % length, "it ran once"
        with node(primary_of(running, 0)["address"]) as direct:
            names = [each["name"] for each in direct.client_list()]
            assert names.count("ackgate") == 8, "one lane for each identity"
            # Those, and what probes, acks and the supervisor need: the crowd shows nowhere.
            assert direct.info("stats")["total_connections_received"] < 100


def test_commands_wait_while_a_node_loads_and_keep_their_order(tmp_path: Path) -> None:
    with single(tmp_path, "timeouts: {hold: 60s}") as running, Wire.to(running.redis_url) as client:
        script = "for i = 1, 300000 do redis.call('SET', '{k}' .. i, i) end"
        assert client.call("EVAL", script, 1, "{k}") == b"$-1\r\n"
        os.kill(primary_of(running, 0)["pid"], signal.SIGKILL)
        until(lambda: not ready(running), "the loss is noticed")
        client.send_raw(b"".join(request("RPUSH", "list", at) for at in range(100)) + request("LLEN", "list"))
        assert [client.receive() for _ in range(100)] == [b":%d\r\n" % (at + 1) for at in range(100)]
        assert client.receive() == b":100\r\n"
        expected = b"*100\r\n" + b"".join(b"$%d\r\n%d\r\n" % (len(str(at)), at) for at in range(100))
        assert client.call("LRANGE", "list", 0, -1) == expected


def test_watched_keys_and_a_primary_that_dies(tmp_path: Path) -> None:
    with single(tmp_path, "timeouts: {hold: 60s}") as running, ExitStack() as stack:
        watching, queueing, late = (stack.enter_context(Wire.to(running.redis_url)) for _ in range(3))
        assert watching.call("SET", "key", 1) == b"+OK\r\n"
        for client in (watching, queueing):
            assert client.call("WATCH", "key") == b"+OK\r\n"
        assert [queueing.call("MULTI"), queueing.call("SET", "key", 2)] == [b"+OK\r\n", b"+QUEUED\r\n"]
        kill(running)
        late.send("WATCH", "key")  # it is held: nothing is watched yet
        assert watching.call("MULTI") == b"+OK\r\n"
        assert watching.call("SET", "key", 3) == b"+QUEUED\r\n"
        assert watching.call("EXEC").startswith(b"-EXECABORT ")
        assert queueing.call("EXEC").startswith(b"-EXECABORT ")
        assert late.receive() == b"+OK\r\n"
        assert watching.call("GET", "key") == b"$1\r\n1\r\n", "nothing of either ran"
        assert [late.call("MULTI"), late.call("SET", "key", 4)] == [b"+OK\r\n", b"+QUEUED\r\n"]
        assert late.call("EXEC") == b"*1\r\n+OK\r\n"
        assert watching.call("WATCH", "key") == b"+OK\r\n"
        assert queueing.call("SET", "key", 5) == b"+OK\r\n"
        assert [watching.call("MULTI"), watching.call("PING")] == [b"+OK\r\n", b"+QUEUED\r\n"]
        assert watching.call("EXEC") == b"*-1\r\n", "a watch that is new holds again"
