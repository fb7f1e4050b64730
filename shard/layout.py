"""The plan of a local cluster: which nodes, on which ports, of which shard; kept in ``cluster.json``, found again.

Roles are not kept: after a failover they are the engine's to tell.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from shard.errors import ShardError
from shard.settings import ClusterSettings

PLAN_FILE = "cluster.json"
LOCK_FILE = "lock"
BUS_OFFSET = 10000
"""The cluster bus listens on the node's port plus this (engine default, ``cluster-port 0``)."""

# Node and bus ports both stay below 32768, where Linux starts to give out ports to outgoing connections.
_PORTS = range(20000, 22700)


class PlannedNode(msgspec.Struct, frozen=True):
    """One node: folder name, shard number (from 1), place in the shard (from 0; 0 starts as primary), port."""

    name: str
    shard: int
    place: int
    port: int


class Layout(msgspec.Struct, frozen=True):
    """The whole plan. ``hash_seed`` is shared by all nodes, see the configuration."""

    shards: int
    replicas: int
    host: str
    hash_seed: str
    nodes: list[PlannedNode]
    format: int = 1


class DirectoryInUseError(ShardError):
    """Another process holds the data folder."""


class DirectoryLock:
    """Holds a data folder for one process; released with it, however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let the folder go; harmless when already done."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_directory(directory: Path) -> DirectoryLock:
    """Create the folder (mode 0700) where it is missing and take hold of it.

    Raises ``ShardError`` when it cannot be written to, ``DirectoryInUseError`` (one too) when another process, named by
    its pid, holds it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(directory, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise DirectoryInUseError(
            f"{directory} is in use by process {holder}: stop that one first, or choose another folder with --dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, b"%d\n" % os.getpid())
    return DirectoryLock(descriptor)


def unwritable(path: Path, error: OSError) -> ShardError:
    """Return the line for a folder or file that cannot be written."""
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return ShardError(f"cannot write to {path} ({reason}): choose another folder with --dir")


def load_layout(directory: Path, settings: ClusterSettings) -> Layout | None:
    """Return the saved plan, None if there is none. Raises ``ShardError`` if it is damaged or not what is asked for."""
    path = directory / PLAN_FILE
    try:
        layout = msgspec.json.decode(path.read_bytes(), type=Layout)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardError(f"cannot read {path} ({error.strerror}): choose another folder with --dir") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ShardError(f"{path} is damaged ({error}): restore it, or choose another folder with --dir") from None
    _check_same(directory, layout, settings)
    return layout


def _check_same(directory: Path, layout: Layout, settings: ClusterSettings) -> None:
    saved = {"shards": layout.shards, "replicas": layout.replicas, "host": layout.host}
    asked = {"shards": settings.shards, "replicas": settings.replicas, "host": settings.host}
    if settings.first_port:
        saved["first_port"], asked["first_port"] = layout.nodes[0].port, settings.first_port
    for name, value in saved.items():
        if asked[name] != value:
            raise ShardError(
                f"{directory} holds a cluster with {name} {value}, not {asked[name]}: "
                f"start it with {name} {value}, or choose another folder with --dir"
            )


def save_layout(directory: Path, layout: Layout) -> None:
    """Write the plan, whole or not at all, mode 0600. Raises ``ShardError``."""
    path = directory / PLAN_FILE
    data = msgspec.json.format(msgspec.json.encode(layout), indent=2) + b"\n"
    try:
        write_private(path.with_suffix(".new"), data)
        path.with_suffix(".new").replace(path)
    except OSError as error:
        raise unwritable(path, error) from None


def write_private(path: Path, data: bytes) -> None:
    """Write a file only its owner can read, and have it on disk when this returns. Raises ``OSError``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def zone_of(settings: ClusterSettings, node: PlannedNode) -> str:
    """Return the node's zone, empty unless multi-zone. No replica shares the zone of its shard's first primary.

    The first nodes of the shards go round the zones; a shard's other nodes go round the zones that are left.
    """
    if settings.replication != "multi-zone":
        return ""
    zones = list(dict.fromkeys(settings.zones))
    turn = (node.shard - 1) % len(zones)
    first, *others = zones[turn:] + zones[:turn]
    return first if node.place == 0 else others[(node.place - 1) % len(others)]


class PortReservation:
    """Ports that are ours until released, without anything listening on them.

    A socket bound without SO_REUSEADDR finds out whether anybody has the port; given the option afterwards it lets the
    node, which binds with it, in beside it (Linux allows that while nobody else listens). Two clusters created at the
    same moment thus never choose the same port.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, host: str, port: int) -> bool:
        """Reserve ``port`` and its bus port; False if one is not free."""
        taken: list[socket.socket] = []
        for number in (port, port + BUS_OFFSET):
            held = _bind(host, number, shared=False)
            if held is None:
                _close_all(taken)
                return False
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.append(held)
        self._sockets += taken
        return True

    def release(self) -> None:
        """Let the ports go; harmless when already done."""
        _close_all(self._sockets)
        self._sockets.clear()


def create_layout(settings: ClusterSettings, reservation: PortReservation) -> Layout:
    """Return a new plan with ports that are free now and held by ``reservation``. Raises ``ShardError``."""
    ports = _fixed_ports(settings, reservation) if settings.first_port else _free_ports(settings, reservation)
    nodes = [
        PlannedNode(f"shard-{shard}-{place + 1}", shard, place, next(ports))
        for place in range(1 + settings.replicas)
        for shard in range(1, settings.shards + 1)
    ]
    return Layout(settings.shards, settings.replicas, settings.host, secrets.token_hex(16), nodes)


def _fixed_ports(settings: ClusterSettings, reservation: PortReservation) -> Iterator[int]:
    ports = range(settings.first_port, settings.first_port + settings.nodes)
    for port in ports:
        if not reservation.take(settings.host, port):
            raise port_in_use(settings.host, port)
    return iter(ports)


def _free_ports(settings: ClusterSettings, reservation: PortReservation) -> Iterator[int]:
    found: list[int] = []
    # In random order, so that clusters created side by side seldom try the same.
    for port in random.sample(_PORTS, len(_PORTS)):
        if reservation.take(settings.host, port):
            found.append(port)
        if len(found) == settings.nodes:
            return iter(found)
    raise ShardError(f"no {settings.nodes} free ports from {_PORTS.start} to {_PORTS.stop - 1}: set `first_port`")


def port_in_use(host: str, port: int) -> ShardError:
    """Return the line for a node port (or its bus port) that another program has."""
    return ShardError(
        f"port {port} (or {port + BUS_OFFSET}, its cluster bus) on {host} is in use: "
        "stop the program that has it, or choose another folder with --dir"
    )


def ports_free(host: str, port: int) -> bool:
    """True if a node could listen on ``port`` and its bus port now."""
    for number in (port, port + BUS_OFFSET):
        probe = _bind(host, number, shared=True)
        if probe is None:
            return False
        probe.close()
    return True


def _bind(host: str, port: int, *, shared: bool) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ShardError(f"{host} is not an address of this machine: correct the setting `host`") from None
        if error.errno == errno.EACCES:
            raise ShardError(f"port {port} may not be used by this user: choose a first_port above 1023") from None
        return None
    return sock


def _close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
