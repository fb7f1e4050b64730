"""SIGTERM: what was sent is answered, then everybody is let out, and the process ends with status 0."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness import ENVIRONMENT, PATIENCE_S, SMALL, Up, gone, until, up
from tests.system.load import metric
from tests.system.wire import Closed, Wire, request


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One shard without a replica, for proxies to stand in front of."""
    with up(tmp_path_factory.mktemp("drain"), *SMALL) as started:
        yield started


Start = Callable[..., Up]


@pytest.fixture
def start(cluster: Up, tmp_path: Path) -> Iterator[Start]:
    """Starts ``ackgate proxy`` with so much time to drain."""
    seed = cluster.topology()["shards"][0]["primary"]["address"]
    config, errors = tmp_path / "proxy.yaml", tmp_path / "proxy.err"
    with cluster.client() as client, ExitStack() as stack:
        client.flushall()

        def begin(drain: str = "60s") -> Up:
            config.write_text(
                f"cluster: {{seeds: ['{seed}']}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n"
                f"timeouts: {{drain: {drain}}}\n"
            )
            words = [sys.executable, "-m", "proxy", "proxy", "--config", str(config)]
            stderr = stack.enter_context(errors.open("w"))
            process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return Up(process, errors)

        yield begin
    told = errors.read_text()
    assert "Traceback" not in told and "defect" not in told, told


def refused(up: Up) -> bool:
    """Nobody is let in any more."""
    address = urlsplit(up.redis_url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) != 0


def ended(up: Up) -> int:
    return up.process.wait(PATIENCE_S)


def unready_reason(up: Up) -> str:
    try:
        urllib.request.urlopen(f"{up.admin_url}/readyz", timeout=10).close()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    return ""


def test_idle_clients_and_subscribers_are_let_go_at_once(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as idle, Wire.to(up.redis_url) as subscriber:
        assert idle.call("PING") == b"+PONG\r\n"
        assert subscriber.call("SUBSCRIBE", "news").startswith(b"*3\r\n")
        with Wire.to(up.redis_url) as watcher:
            assert watcher.call("MONITOR") == b"+OK\r\n"
            begun = time.monotonic()
            up.process.send_signal(signal.SIGTERM)
            assert idle.at_eof() and subscriber.at_eof()
            while True:  # what it was shown comes before the end
                try:
                    watcher.receive()
                except Closed:
                    break
        assert ended(up) == 0
        assert time.monotonic() - begun < 60, "nobody had to be waited for"


def test_what_was_sent_is_carried_out_and_answered_before_the_end(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as first, Wire.to(up.redis_url) as second:
        first.call("PING")
        second.call("PING")
        [shard] = up.pids()
        os.kill(shard, signal.SIGSTOP)
        try:
            # Behind a barrier, too, and of another client that waits for the same shard.
            first.send_raw(request("INCR", "own") + request("WAIT", 0, 0) + request("INCR", "own"))
            second.send_raw(b"".join(request("INCR", "counter") for _ in range(500)))
            until(lambda: metric(up, "ackgate_commands_total") >= 504, "it has been read")
            up.process.send_signal(signal.SIGTERM)
            until(lambda: refused(up), "nobody is let in")
        finally:
            os.kill(shard, signal.SIGCONT)
        assert [first.receive() for _ in range(3)] == [b":1\r\n", b":0\r\n", b":2\r\n"]
        assert [second.receive() for _ in range(500)] == [b":%d\r\n" % (at + 1) for at in range(500)]
        assert first.at_eof() and second.at_eof()
        assert ended(up) == 0


def test_a_transaction_that_was_begun_may_be_carried_to_its_end(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as client, Wire.to(up.redis_url) as watching:
        assert client.call("MULTI") == b"+OK\r\n"
        assert client.call("INCR", "counter") == b"+QUEUED\r\n"
        assert watching.call("WATCH", "watched") == b"+OK\r\n"
        up.process.send_signal(signal.SIGTERM)
        until(lambda: refused(up), "nobody is let in")
        assert "being stopped" in unready_reason(up)
        assert client.call("INCR", "counter") == b"+QUEUED\r\n"
        assert watching.call("GET", "watched") == b"$-1\r\n"
        assert client.call("EXEC") == b"*2\r\n:1\r\n:2\r\n"
        assert client.at_eof()
        assert watching.call("MULTI") == b"+OK\r\n"
        assert watching.call("SET", "watched", 1) == b"+QUEUED\r\n"
        assert watching.call("EXEC") == b"*1\r\n+OK\r\n"
        assert watching.at_eof()
        assert ended(up) == 0


def test_a_blocked_client_is_told_and_no_element_is_lost_with_it(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as blocked, Wire.to(up.redis_url) as pusher:
        blocked.send("BLPOP", "queue", 0)
        until(lambda: b"blocked_clients:1\r\n" in pusher.call("INFO", "clients"), "it blocks")
        assert pusher.call("MULTI") == b"+OK\r\n"  # keeps the proxy from ending
        up.process.send_signal(signal.SIGTERM)
        assert blocked.receive() == b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"
        assert blocked.at_eof()
        assert pusher.call("RPUSH", "queue", "kept") == b"+QUEUED\r\n"
        assert pusher.call("LLEN", "queue") == b"+QUEUED\r\n"
        assert pusher.call("EXEC") == b"*2\r\n:1\r\n:1\r\n", "nobody took it"
        assert ended(up) == 0


def test_a_wait_has_its_answer_before_the_end(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as client:
        assert client.call("SET", "key", 1) == b"+OK\r\n"
        client.send("WAIT", 1, 1500)
        until(lambda: metric(up, "ackgate_waits_open") == 1, "it waits")
        up.process.send_signal(signal.SIGTERM)
        until(lambda: refused(up), "nobody is let in")
        assert client.receive() == b":0\r\n", "there is no replica: the number at its deadline"
        assert client.at_eof()
        assert ended(up) == 0


def test_who_does_not_come_to_an_end_is_closed_when_the_time_is_up(start: Start, tmp_path: Path) -> None:
    up = start("500ms")
    with Wire.to(up.redis_url) as waits, Wire.to(up.redis_url) as open_ended:
        assert waits.call("SET", "key", 1) == b"+OK\r\n"
        waits.send("WAIT", 1, 0)
        assert open_ended.call("MULTI") == b"+OK\r\n"
        until(lambda: metric(up, "ackgate_waits_open") == 1, "it waits")
        assert up.stop() == 0
        assert waits.at_eof() and open_ended.at_eof()
    told = (tmp_path / "proxy.err").read_text()
    assert re.search("closed with something under way.*clients=2", re.sub(r"\x1b\[[0-9;]*m", "", told)), told


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as client:
        assert client.call("MULTI") == b"+OK\r\n"
        up.process.send_signal(signal.SIGTERM)
        until(lambda: refused(up), "it drains")
        up.process.send_signal(signal.SIGTERM)
        assert ended(up) == 128 + signal.SIGTERM


def test_the_last_replies_reach_a_client_that_goes_on_sending(start: Start) -> None:
    up = start()
    with Wire.to(up.redis_url) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert client.call("SET", "large", "x" * 20_000) == b"+OK\r\n"
        client.send_raw(request("GET", "large") * 4)
        until(lambda: metric(up, "ackgate_commands_total") >= 5, "it has been read")
        up.process.send_signal(signal.SIGTERM)
        until(lambda: refused(up), "nobody is let in")
        client.send_raw(request("GET", "large") * 4)
        for _ in range(4):
            assert client.receive() == b"$20000\r\n" + b"x" * 20_000 + b"\r\n"
        assert client.at_eof()
        assert ended(up) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_waits_for_nobody(start: Start, number: int) -> None:
    up = start()
    with Wire.to(up.redis_url) as client:
        assert client.call("MULTI") == b"+OK\r\n"
        assert up.stop(number) == 0
        assert client.at_eof()


def test_with_a_cluster_of_its_own_the_nodes_stay_until_it_has_drained(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running, Wire.to(running.redis_url) as client:
        pids = running.pids()
        assert client.call("MULTI") == b"+OK\r\n"
        running.process.send_signal(signal.SIGTERM)
        until(lambda: refused(running), "nobody is let in")
        assert client.call("SET", "key", "value") == b"+QUEUED\r\n"
        assert client.call("EXEC") == b"*1\r\n+OK\r\n"
        assert client.at_eof()
        assert ended(running) == 0
        assert gone(pids)


def test_with_a_cluster_of_its_own_a_second_signal_ends_all_of_it_at_once(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running, Wire.to(running.redis_url) as client:
        pids = running.pids()
        assert client.call("MULTI") == b"+OK\r\n"
        running.process.send_signal(signal.SIGTERM)
        until(lambda: refused(running), "it drains")
        running.process.send_signal(signal.SIGTERM)
        assert ended(running) == 128 + signal.SIGTERM
        until(lambda: gone(pids), "the nodes went with it")
