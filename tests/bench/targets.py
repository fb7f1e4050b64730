"""A target: a process with an endpoint that is measured, and how processes are started, looked at and ended."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from shard.errors import ShardError
from shard.process import Process, spawn
from tests.bench.errors import BenchError
from tests.bench.wire import connected
from tests.bench.workloads import BIG_BYTES, BIG_KEYS, KEYS, VALUE_BYTES

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}

_START_S = 30
_STOP_S = 10
# Below the ports that the kernel gives to outgoing connections: ten thousand of those would take a target's own port
# while it is started afresh.
_PORTS = range(23_000, 32_000)


@dataclass
class Target:
    """One thing that is measured, and the shards behind it."""

    name: str
    version: str
    port: int
    launch: Callable[[], Process]
    ready: Callable[[], bool]
    log: Path
    shard_ports: list[int]
    shard_pids: Callable[[], list[int]]
    one_shard: bool = False
    """Whatever is asked goes to one shard: there is nothing to split."""
    sockets_per_client: int = 1
    admin_port: int = 0
    """Where its metrics are; 0: nowhere."""
    holds_data: bool = False
    """It is a shard itself: started afresh, it must be loaded again."""
    failure: str = ""
    """Why it cannot be measured; empty: it can."""
    process: Process | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Process id of the target, or of the first of its processes."""
        assert self.process is not None
        return self.process.pid

    @property
    def most_clients(self) -> int:
        """How many clients its descriptors suffice for."""
        spare = 400
        return (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - spare) // self.sockets_per_client

    def start(self) -> None:
        """Start it and wait until it answers. Raises ``BenchError``."""
        self.process = self.launch()
        wait_for(self.ready, self.process, self.name, self.log)

    def last_words(self) -> str:
        """Return how it ended and the last line it said; empty while it runs."""
        if self.process is None or self.process.alive:
            return ""
        return f"it died (status {self.process.returncode}): {_last_line(self.log)}"

    def stop(self) -> None:
        """End it; harmless when it has ended."""
        if self.process is not None:
            end(self.process)
            self.process = None

    def restart(self) -> None:
        """Begin anew, with the memory of a process that has just been started. Raises ``BenchError``."""
        self.stop()
        self.start()
        if self.holds_data:
            load_data(self.port)

    def misses(self) -> int:
        """Return how many reads found nothing at the shards, since their start. Raises ``BenchError``, ``OSError``."""
        return sum(int(info_field(port, "stats", b"keyspace_misses")) for port in self.shard_ports)


def load_data(port: int) -> None:
    """Write every key that is read by a workload. Raises ``BenchError``."""
    small, big = b"v" * VALUE_BYTES, b"v" * BIG_BYTES
    try:
        with connected(port) as connection:
            connection.ask_all([("SET", f"key:{number:012d}", small) for number in range(KEYS)])
            for number in range(BIG_KEYS):
                connection.ask("SET", f"big:{number:012d}", big)
    except OSError as error:
        raise BenchError(f"loading data through port {port} failed: {error}") from None


def answers(port: int) -> bool:
    """True if a read gets an answer that is no error."""
    try:
        with connected(port) as connection:
            connection.ask("GET", "key:000000000000")
    except (OSError, BenchError):
        return False
    return True


def info(port: int, section: str) -> bytes:
    """Return a section of a node's INFO. Raises ``BenchError``, ``OSError``."""
    with connected(port) as connection:
        text: bytes = connection.ask("INFO", section)
    return text


def info_field(port: int, section: str, name: bytes) -> bytes:
    """Return one field of it. Raises ``BenchError``, ``OSError``."""
    for line in info(port, section).splitlines():
        if line.startswith(name + b":"):
            return line.partition(b":")[2]
    raise BenchError(f"port {port} shows no {name.decode()} in INFO {section}")


def free_port() -> int:
    """Return a port nobody listens on now, another one at each call."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}: stop what listens there")


def launch(argv: Sequence[str], log: Path) -> Process:
    """Start a program that ends with this one; what it says goes to ``log``. Raises ``BenchError``."""
    try:
        return spawn(argv, cwd=log.parent, log=log, env=ENVIRONMENT)
    except (OSError, ShardError) as error:
        raise BenchError(f"{argv[0]} was not started: {error}") from None


def wait_for(condition: Callable[[], bool], process: Process, name: str, log: Path) -> None:
    """Wait until ``condition`` holds. Raises ``BenchError`` when the process ends before, or it takes too long."""
    deadline = time.monotonic() + _START_S
    while not condition():
        if not process.alive:
            raise BenchError(f"{name} ended at its start (status {process.returncode}): {_last_line(log)}")
        if time.monotonic() > deadline:
            end(process)
            raise BenchError(f"{name} did not answer within {_START_S} s: {_last_line(log)}")
        time.sleep(0.02)


def end(process: Process) -> None:
    """SIGTERM, some seconds, SIGKILL; returns when it is gone."""
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while process.alive:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.02)


def said(log: Path, beginning: str) -> str | None:
    """Return what follows ``beginning`` in the first whole line of a log that begins so."""
    with suppress(OSError):
        for line in log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith(beginning) and line.endswith("\n"):
                return line.removeprefix(beginning).strip()
    return None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"
