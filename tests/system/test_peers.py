"""Proxies side by side: a pause set at one holds the clients of all, and ends with the one that set it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.peers.bus import CHANNEL
from proxy.peers.messages import Message, derive, seal
from tests.harness import ENVIRONMENT, READY, Up, ackgate, until
from tests.system.beside import everybody, node_wire, on, overloaded, primaries
from tests.system.wire import Wire

LONG = 60_000  # milliseconds; every test ends its pause itself
SECRET = "a secret for tests"
NOWHERE = {"cluster": {"seeds": ["127.0.0.1:1"]}, "listen": {"port": 0}, "admin": {"port": 0}}


class Proxy:
    """A proxy of one's own in front of the shared cluster."""

    def __init__(self, running: Up, folder: Path, secret: str | None, **sections: Any) -> None:
        folder.mkdir()
        own = {"cluster": {"seeds": primaries(running)}, "listen": {"port": 0}, "admin": {"port": 0}, **sections}
        if secret is not None:
            (folder / "secret").write_text(f"{secret}\n")
            own["peers"] = {"secret_file": str(folder / "secret")}
        (folder / "proxy.yaml").write_text(yaml.safe_dump(own))
        self.errors = folder / "proxy.err"
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "proxy", "--config", str(folder / "proxy.yaml")],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        match = READY.match(self.process.stdout.readline())
        assert match, self.errors.read_text()
        self.url, self.admin_url = match.groups()
        self.admin = self.connect()

    def connect(self) -> Wire:
        return Wire.to(self.url)

    def topology(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.admin_url}/topology", timeout=10) as answer:
            return dict(json.load(answer))

    def peers(self) -> int | None:
        found: int | None = self.topology()["peers"]
        return found

    def mode(self) -> str:
        return str(self.topology()["paused"]["mode"])

    def parked(self) -> int:
        return int(self.topology()["paused"]["parked"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def proxies(running: Up, folder: Path, count: int, secret: str | None = SECRET) -> Iterator[list[Proxy]]:
    """So many, each of which hears the others."""
    with ExitStack() as stack:
        started: list[Proxy] = []
        for at in range(count):
            started.append(Proxy(running, folder / f"proxy{at}", secret))
            stack.callback(started[-1].kill)
        if secret is not None:
            until(lambda: all(each.peers() == count - 1 for each in started), "they hear each other")
        yield started


@pytest.fixture(scope="module")
def trio_of(endpoint: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Proxy]]:
    """Three proxies; tests must leave them unpaused."""
    with proxies(endpoint, tmp_path_factory.mktemp("peers"), 3) as started:
        yield started


@pytest.fixture
def three(trio_of: list[Proxy]) -> Iterator[list[Proxy]]:
    trio_of[0].admin.call("FLUSHALL")
    yield trio_of
    with trio_of[0].connect() as wire:
        assert wire.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
    until(lambda: all(each.mode() == "none" for each in trio_of), "nothing is paused")


def readable(wire: Wire) -> bool:
    return bool(select.select([wire.sock], [], [], 0)[0])


def paused_nodes(addresses: Sequence[str]) -> list[bool]:
    return [b"\r\npaused_actions:write\r\n" in text for text in on(addresses, "INFO", "clients")]


@pytest.mark.parametrize("mode", ["write", "all"])
def test_a_pause_holds_the_clients_of_every_proxy(mode: str, three: list[Proxy], endpoint: Up) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(each.connect()) for each in three]
        assert three[0].admin.call("CLIENT", "PAUSE", LONG, mode) == b"+OK\r\n"
        assert [each.mode() for each in three] == [mode] * 3, "before it is answered"
        assert paused_nodes(primaries(endpoint)) == [True] * 3
        for at, wire in enumerate(wires):
            wire.send("SET", f"key{at}", at)
        until(lambda: [each.parked() for each in three] == [1, 1, 1], "all wait")
        assert not any(readable(wire) for wire in wires)
        assert three[1].admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n", "anybody may end it"
        assert [wire.receive() for wire in wires] == [b"+OK\r\n"] * 3
        assert [each.mode() for each in three] == ["none"] * 3
        assert paused_nodes(primaries(endpoint)) == [False] * 3


def test_a_peers_reads_pass_though_its_writes_were_waiting_for_a_busy_shard(three: list[Proxy]) -> None:
    """The shard is not paused before what all have sent to it is done."""
    with three[1].connect() as reader, overloaded(three[1].url) as (writer, count):
        assert three[0].admin.call("CLIENT", "PAUSE", LONG, "WRITE") == b"+OK\r\n"
        reader.sock.settimeout(10)
        assert reader.call("GET", "{k}")
        assert three[1].mode() == "write"
        assert three[0].admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert [writer.receive() for _ in range(count)] == [b"+OK\r\n"] * count


def test_a_pause_ends_at_the_same_time_everywhere(three: list[Proxy]) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(each.connect()) for each in three]
        started = time.monotonic()
        three[2].admin.call("CLIENT", "PAUSE", 500)
        for wire in wires:
            wire.send("PING")
        ended = []
        for wire in wires:
            assert wire.receive() == b"+PONG\r\n"
            ended.append(time.monotonic() - started)
        assert min(ended) >= 0.49, "a message takes its time, and nobody goes on much before"


def test_pauses_of_several_proxies_are_one(three: list[Proxy]) -> None:
    """The strictest mode and the latest end, as of several clients at one server."""
    with three[2].connect() as wire:
        started = time.monotonic()
        three[0].admin.call("CLIENT", "PAUSE", 700, "WRITE")
        three[1].admin.call("CLIENT", "PAUSE", 1, "ALL")
        until(lambda: three[2].mode() == "all", "the third knows")
        assert wire.call("PING") == b"+PONG\r\n"
        assert time.monotonic() - started >= 0.69


@pytest.mark.slow
def test_a_pause_outlasts_the_lease_by_which_it_is_kept(three: list[Proxy]) -> None:
    with three[1].connect() as wire:
        started = time.monotonic()
        three[0].admin.call("CLIENT", "PAUSE", 2500, "WRITE")
        wire.send("SET", "key", 1)
        assert wire.receive() == b"+OK\r\n"
        assert time.monotonic() - started >= 2.49


def test_a_proxy_that_comes_late_learns_of_the_pause(three: list[Proxy], endpoint: Up, tmp_path: Path) -> None:
    three[0].admin.call("CLIENT", "PAUSE", LONG, "WRITE")
    late = Proxy(endpoint, tmp_path / "late", SECRET)
    try:
        with late.connect() as wire:
            assert late.mode() == "write", "before it takes a client"
            wire.send("SET", "key", 1)
            until(lambda: late.parked() == 1, "it waits")
            three[0].admin.call("CLIENT", "UNPAUSE")
            assert wire.receive() == b"+OK\r\n"
    finally:
        late.kill()


def test_a_pause_dies_with_the_proxy_that_set_it(three: list[Proxy], endpoint: Up, tmp_path: Path) -> None:
    mortal = Proxy(endpoint, tmp_path / "mortal", SECRET)
    with three[1].connect() as wire:
        try:
            until(lambda: three[1].peers() == 3, "it is heard")
            mortal.admin.call("CLIENT", "PAUSE", LONG, "WRITE")
            wire.send("SET", "key", 1)
            until(lambda: three[1].parked() == 1, "it waits")
        finally:
            mortal.kill()
        assert wire.receive() == b"+OK\r\n"
    until(lambda: paused_nodes(primaries(endpoint)) == [False] * 3, "nor are the shards paused")
    until(lambda: [each.peers() for each in three] == [2, 2, 2], "it is forgotten")


def test_the_end_of_a_pause_binds_a_proxy_that_was_not_heard_meanwhile(three: list[Proxy]) -> None:
    three[0].admin.call("CLIENT", "PAUSE", LONG, "WRITE")
    os.kill(three[0].process.pid, signal.SIGSTOP)
    try:
        until(lambda: three[1].mode() == "none", "it is not believed any more")
        assert three[1].admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
    finally:
        os.kill(three[0].process.pid, signal.SIGCONT)
    until(lambda: three[0].mode() == "none", "it hears of the end")
    assert [each.admin.call("SET", "key", 1) for each in three] == [b"+OK\r\n"] * 3


def test_without_a_secret_a_pause_is_one_proxys_own(endpoint: Up, tmp_path: Path) -> None:
    with proxies(endpoint, tmp_path, 1, secret=None) as (one,), Wire.to(endpoint.redis_url) as other:
        assert one.peers() is endpoint.topology()["peers"] is None
        assert one.admin.call("CLIENT", "PAUSE", LONG, "ALL") == b"+OK\r\n"
        assert (one.mode(), endpoint.topology()["paused"]["mode"]) == ("all", "none")
        assert other.call("PING") == b"+PONG\r\n"
        assert "other proxies, if there are any, are not told of the pause" in one.errors.read_text()
        assert one.admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"


@pytest.mark.slow
def test_with_another_secret_nobody_is_heard(three: list[Proxy], endpoint: Up, tmp_path: Path) -> None:
    stranger = Proxy(endpoint, tmp_path / "stranger", "another secret")
    try:
        until(lambda: "is not taken" in stranger.errors.read_text(), "it says so")
        assert stranger.peers() == 0
        stranger.admin.call("CLIENT", "PAUSE", LONG, "ALL")
        assert [each.mode() for each in three] == ["none"] * 3
    finally:
        stranger.kill()
    assert "secret" not in stranger.errors.read_text().replace("peers.secret_file", "").replace("our secret", "")


def forged(key: bytes, number: int = 1, at: float | None = None, sender: str = "forger") -> bytes:
    topics = {"pause": {"round": 0, "mode": 2, "left": 60.0, "lease": 60.0}}
    return seal(Message(sender, time.time() if at is None else at, number, topics), key)


@pytest.mark.parametrize(
    "data",
    [
        lambda: forged(derive("guessed")),
        lambda: forged(derive(SECRET), at=time.time() - 60),
        lambda: forged(derive(SECRET), at=time.time() + 60),
        lambda: forged(derive(SECRET))[:-1] + b" ",
        lambda: b"0" * 64 + b" {}",
        lambda: b"",
    ],
    ids=["another key", "old", "from the future", "changed", "no seal", "empty"],
)
def test_what_is_not_authentic_is_not_believed(data: Callable[[], bytes], three: list[Proxy], endpoint: Up) -> None:
    before = [refused(each) for each in three]
    with node_wire(primaries(endpoint)[0]) as node:
        node.call("PUBLISH", CHANNEL, data())
    until(lambda: all(now > then for now, then in zip(map(refused, three), before, strict=True)), "it is refused")
    assert [each.mode() for each in three] == ["none"] * 3


def refused(proxy: Proxy) -> float:
    with urllib.request.urlopen(f"{proxy.admin_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().split("\n")
    return next(float(line.split()[1]) for line in lines if line.startswith("ackgate_peer_messages_refused_total "))


def test_what_was_said_once_cannot_be_said_again(three: list[Proxy], endpoint: Up) -> None:
    """A pause that was listened to, and is published again when it is over."""
    with node_wire(primaries(endpoint)[0]) as node, node_wire(primaries(endpoint)[1]) as thief:
        thief.call("SUBSCRIBE", CHANNEL)
        with three[0].connect() as admin:
            admin.call("CLIENT", "PAUSE", LONG, "ALL")
            heard = [thief.receive()]
            while b'"mode":2' not in heard[-1]:
                heard.append(thief.receive())
            admin.call("CLIENT", "UNPAUSE")
        until(lambda: [each.mode() for each in three] == ["none"] * 3, "it is over")
        stolen = heard[-1].rpartition(b"\r\n$")[2].partition(b"\r\n")[2].removesuffix(b"\r\n")
        assert stolen.startswith(tuple(b"%x" % digit for digit in range(16))) and stolen.endswith(b"}")
        node.call("PUBLISH", CHANNEL, stolen)
        node.call("PUBLISH", CHANNEL, forged(derive("guessed")))
        before = [refused(each) for each in three]
        node.call("PUBLISH", CHANNEL, forged(derive("guessed")))
        until(lambda: all(now > then for now, then in zip(map(refused, three), before, strict=True)), "that too")
        assert [each.mode() for each in three] == ["none"] * 3


def test_the_channel_is_closed_to_clients(three: list[Proxy]) -> None:
    with three[0].connect() as wire, three[1].connect() as listener:
        for words in (["SUBSCRIBE", CHANNEL], ["PUBLISH", CHANNEL, "x"], ["SSUBSCRIBE", CHANNEL]):
            assert wire.call(*words).startswith(b"-ERR channels whose names begin with"), words
        assert wire.call("PUBSUB", "CHANNELS", "*") == b"*0\r\n"
        listener.call("PSUBSCRIBE", "*")
        wire.call("PUBLISH", "news", "x")
        assert listener.receive().endswith(b"$4\r\nnews\r\n$1\r\nx\r\n"), "and nothing else"


@pytest.mark.slow
def test_peers_hear_each_other_though_nodes_fail(endpoint: Up, tmp_path: Path, fresh: Callable[..., Up]) -> None:
    """The node that carried messages hangs: another does."""
    running = fresh("--shards", "1")
    with proxies(running, tmp_path, 2) as (one, other):
        [shard] = running.topology()["shards"]
        with node_wire(shard["primary"]["address"]) as node:
            assert node.call("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "no").startswith(b":")
        with node_wire(shard["replicas"][0]["address"]) as node:
            node.call("CLIENT", "KILL", "TYPE", "pubsub")
            node.call("CLIENT", "KILL", "TYPE", "normal")
        one.admin.call("CLIENT", "PAUSE", LONG, "WRITE")
        until(lambda: other.mode() == "write", "it is heard")
        other.admin.call("CLIENT", "UNPAUSE")
        until(lambda: one.mode() == "none", "and so is the end")


@pytest.mark.slow
def test_without_a_replica_a_pause_is_told_before_it_begins(tmp_path: Path, fresh: Callable[..., Up]) -> None:
    """A paused primary passes nothing on: peers believe in the end that they were told."""
    running = fresh("--shards", "1", "--replicas", "0")
    assert len(everybody(running)) == 1
    with proxies(running, tmp_path, 2) as (one, other), other.connect() as wire:
        started = time.monotonic()
        one.admin.call("CLIENT", "PAUSE", 2000, "WRITE")
        assert wire.call("SET", "key", 1) == b"+OK\r\n"
        assert time.monotonic() - started >= 1.99
        one.admin.call("CLIENT", "PAUSE", LONG, "WRITE")
        assert other.mode() == "write"
        other.admin.call("CLIENT", "UNPAUSE")
        until(lambda: one.mode() == "none", "the end is heard")
        assert one.admin.call("SET", "key", 2) == b"+OK\r\n"


@pytest.mark.parametrize(
    "content, problem",
    [(None, "cannot be read: No such file or directory; name a readable file"), ("\n", "the first line is empty")],
)
def test_a_secret_that_cannot_be_had_is_told_in_one_line(content: str | None, problem: str, tmp_path: Path) -> None:
    secret, config = tmp_path / "secret", tmp_path / "proxy.yaml"
    if content is not None:
        secret.write_text(content)
    config.write_text(yaml.safe_dump({**NOWHERE, "peers": {"secret_file": str(secret)}}))
    told = ackgate("proxy", "--config", str(config))
    assert told.returncode != 0
    [line] = told.stderr.strip().split("\n")
    assert f"{secret}:1: peers.secret_file: {problem}" in line


@pytest.mark.slow
def test_the_password_of_the_cluster_is_a_secret_to_share(tmp_path: Path, fresh: Callable[..., Up]) -> None:
    password = tmp_path / "password"
    password.write_text("a password of nodes\n")
    config = tmp_path / "local.yaml"
    config.write_text(f"cluster: {{shards: 1, replicas: 1, password_file: {password}}}\n")
    running = fresh("--config", str(config))
    [address] = primaries(running)
    beside = {"cluster": {"seeds": [address], "password_file": str(password)}}
    other = Proxy(running, tmp_path / "other", None, **beside)
    try:
        until(lambda: other.peers() == 1, "they hear each other")
        with Wire.to(running.redis_url) as wire:
            assert wire.call("CLIENT", "PAUSE", LONG, "WRITE") == b"+OK\r\n"
            assert other.mode() == "write"
            assert other.admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
            assert wire.call("SET", "key", 1) == b"+OK\r\n"
    finally:
        other.kill()
