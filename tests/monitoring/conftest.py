"""A cluster under mixed load with things happening to it, and a real Prometheus that watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.harness import ENVIRONMENT, READY, Up, ackgate, until, up
from tests.monitoring.prometheus import INTERVAL_S, Prometheus, prometheus
from tests.system.load import Confirmer, Setter, Worker, go_on, load, tag
from tests.system.nodes import shards_of
from tests.system.wire import Closed, Wire

SLOTS = (100, 8000, 16000)  # one of each shard
PROXIES = 2
SCRAPES = 5  # that see each thing that happens: a rate needs two


class Everything(Worker):
    """One of nearly everything a client can ask for, wrong things among them."""

    def step(self) -> None:
        one, other = f"kept:{self.tag}", f"list:{self.tag}"
        spread = [f"spread:{tag(slot)}" for slot in SLOTS]
        asked: list[list[bytes | str | int]] = [
            ["SET", one, self.steps, "PX", 50],
            ["GET", one],
            ["GET", f"missing:{self.tag}"],
            ["RPUSH", other, self.steps],
            ["BLPOP", other, 1],
            ["EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, one, self.steps],
            ["MSET", *(word for key in spread for word in (key, self.steps))],
            ["MGET", *spread],
            ["DEL", *spread],
            ["MULTI"],
            ["INCR", f"count:{self.tag}"],
            ["EXEC"],
            ["PUBLISH", "news", self.steps],
            ["DBSIZE"],
            ["WAITAOF", 1, 1, 3000],
            ["WAIT", 5, 1],
            ["LPUSH", one, "wrong type"],
            ["INCR", other, "too many"],
            ["SHUTDOWN"],
            ["NOSUCHCOMMAND"],
            ["AUTH", "default", "a wrong password"],
        ]
        try:
            for request in asked:
                self.wire.call(*request)
        except (Closed, OSError):  # as a WAIT does that has no number to give
            self.wire.close()
            self.wire = Wire.to(self.url)

    def run(self, url: str, stopping: threading.Event) -> None:
        self.url = url
        super().run(url, stopping)


class Listener(Worker):
    """Listens to a channel until it hears something, again and again, and blocks in vain."""

    protocol = 3  # so that it can publish while it listens

    def step(self) -> None:
        self.wire.send("SUBSCRIBE", "news")
        while not self.wire.call("PUBLISH", "news", self.steps).startswith(b">3\r\n$7\r\nmessage"):
            pass
        self.wire.send("UNSUBSCRIBE", "news")
        self._until(b">3\r\n$11\r\nunsubscribe")
        self.wire.send("BLPOP", f"nothing:{self.tag}", 0.2)
        self._until(b"_\r\n")

    def _until(self, beginning: bytes) -> None:
        while not self.wire.receive().startswith((beginning, b"-")):
            pass


@dataclass(frozen=True)
class Watched:
    """What was watched from ``start`` to ``end`` (``time.time()``), and by whom."""

    prometheus: Prometheus
    start: float
    end: float


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two proxies, one of them with two workers, while a primary is killed, one changed, and clients are paused."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "secret").write_text("the proxies know each other by this\n")
    shared = {
        "peers": {"secret_file": str(folder / "secret")},
        "durability": [{"prefix": "kept:", "replicas": 1, "timeout": "2s"}],
    }
    (folder / "up.yaml").write_text(yaml.safe_dump({"proxy": shared}))
    arguments = ("--port", "0", "--admin-port", "0", "--workers", "2", "--config", str(folder / "up.yaml"))
    with (
        up(folder, *arguments) as running,
        _beside(running, folder, shared) as (url, admin),
        prometheus(folder / "prometheus", [running.admin_url, admin]) as watching,
    ):
        _seen(watching)
        start = time.time()
        with load(url, [*map(Everything, SLOTS), Listener(SLOTS[0])]), load(running.redis_url, _steady()) as steady:
            _seen(watching)
            _happens(running, watching)
            go_on(steady)
            _seen(watching)
        yield Watched(watching, start, time.time())


def _steady() -> list[Worker]:
    return [kind(slot, at) for at, slot in enumerate(SLOTS) for kind in (Setter, Confirmer)]


def _happens(running: Up, watching: Prometheus) -> None:
    shards = shards_of(running)
    with Wire.to(running.redis_url) as wire:
        wire.call("CLIENT", "PAUSE", 60_000, "WRITE")
        _seen(watching)
        wire.call("CLIENT", "UNPAUSE")
    changed = ackgate("switchover", f"127.0.0.1:{shards[1].primary.port}", "--admin", running.admin_url)
    assert changed.returncode == 0, changed.stderr
    os.kill(shards[2].primary.pid, signal.SIGKILL)
    until(lambda: shards_of(running)[2].primary.id != shards[2].primary.id, "another node leads the shard")


def _seen(watching: Prometheus) -> None:
    """Returns when Prometheus has looked at both proxies some times more."""
    deadline = time.time() + SCRAPES * INTERVAL_S

    def looked() -> bool:
        moments = [float(row["value"][1]) for row in watching.query("timestamp(up == 1)")]
        return len(moments) == PROXIES and min(moments) >= deadline

    until(looked, "it looks")


@contextmanager
def _beside(running: Up, folder: Path, sections: dict[str, object]) -> Iterator[tuple[str, str]]:
    """(URL, admin URL) of another proxy in front of the same nodes."""
    seeds = [f"127.0.0.1:{shard.primary.port}" for shard in shards_of(running)]
    own = {"cluster": {"seeds": seeds}, "listen": {"port": 0}, "admin": {"port": 0}}
    (folder / "proxy.yaml").write_text(yaml.safe_dump(own | sections))
    with (folder / "proxy.err").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "proxy", "--config", str(folder / "proxy.yaml")],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            match = READY.match(process.stdout.readline())
            assert match, (folder / "proxy.err").read_text()
            yield match[1], match[2]
        finally:
            process.kill()

