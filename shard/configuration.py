"""The configuration file of a node as text: a pure function. What an older engine lacks is left out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shard.binary import Server
from shard.settings import SNAPSHOT_SECONDS, ClusterSettings

Directive = tuple[str, ...]

SHUTDOWN_SECONDS = 5
"""How long a primary told to end waits for its replicas to have everything (``shutdown-timeout``)."""


@dataclass(frozen=True)
class NodeFacts:
    """What one node's file needs beyond the cluster's settings."""

    directory: Path
    port: int
    zone: str = ""
    hash_seed: str = ""
    password: str | None = field(default=None, repr=False)


def render(server: Server, settings: ClusterSettings, node: NodeFacts) -> str:
    """Return the file's text, one directive a line, values quoted where the engine's reader needs it."""
    groups = (_place(settings, node), _cluster(server, settings, node), _copies(server, node), _disk(settings))
    lines = [_line(directive) for group in groups for directive in group]
    return "# Written by ackgate at each start; changes made here are lost.\n" + "\n".join(lines) + "\n"


def _place(settings: ClusterSettings, node: NodeFacts) -> Iterator[Directive]:
    yield "bind", settings.host
    yield "port", str(node.port)
    yield "protected-mode", "yes"
    yield "dir", str(node.directory)
    yield "daemonize", "no"
    # To standard output, that is to the node's log file: what the engine says before it has read this lands there too.
    yield "logfile", ""
    # The engine's 511 drops connections when every client of a restarted proxy comes back at once.
    yield "tcp-backlog", "1024"
    yield "maxclients", str(settings.maxclients)
    if settings.maxmemory is not None:
        yield "maxmemory", settings.maxmemory
    yield "maxmemory-policy", settings.maxmemory_policy
    if node.password is not None:
        yield "requirepass", node.password


def _cluster(server: Server, settings: ClusterSettings, node: NodeFacts) -> Iterator[Directive]:
    yield "cluster-enabled", "yes"
    yield "cluster-config-file", "nodes.conf"
    yield "cluster-node-timeout", str(settings.node_timeout_ms)
    # A node that never met another does not know its own address; the only node of a cluster would announce none.
    if not ipaddress.ip_address(settings.host).is_unspecified:
        yield "cluster-announce-ip", settings.host
    # The loss of one shard must not stop the others.
    yield "cluster-require-full-coverage", "no"
    # Replicas stay with the shard they were planned for (zones, ports, restart rule).
    yield "cluster-allow-replica-migration", "no"
    if server.has(valkey=(9, 0, 0)):
        yield "cluster-databases", str(settings.databases)
    if node.hash_seed and server.has(valkey=(9, 1, 0)):
        # One seed for all nodes: a SCAN cursor stays good on the replica that took over.
        yield "hash-seed", node.hash_seed
    if node.zone and server.has(valkey=(8, 1, 0)):
        yield "availability-zone", node.zone


def _copies(server: Server, node: NodeFacts) -> Iterator[Directive]:
    # The default waits 5 s for more replicas to come before a full copy starts; ours come one to a primary.
    yield "repl-diskless-sync-delay", "0"
    yield "repl-backlog-size", "64mb"
    if server.engine == "redis":
        # Redis shows a replica in CLUSTER SLOTS once its offset moved; an idle primary moves it by this ping alone.
        yield "repl-ping-replica-period", "1"
    yield "shutdown-timeout", str(SHUTDOWN_SECONDS)
    if node.password is not None:
        yield "primaryauth" if server.has(valkey=(8, 0, 0)) else "masterauth", node.password


def _disk(settings: ClusterSettings) -> Iterator[Directive]:
    yield "appendonly", "no" if settings.aof == "off" else "yes"
    if settings.aof != "off":
        yield "appendfsync", settings.aof
    if settings.snapshot == "off":
        yield "save", ""
    else:
        yield "save", str(SNAPSHOT_SECONDS[settings.snapshot]), "1"


def _line(directive: Directive) -> str:
    name, *values = directive
    return " ".join([name, *map(_quoted, values)])


def _quoted(value: str) -> str:
    """Quote as the engine's ``sdssplitargs`` reads it: C escapes inside double quotes."""
    if value and all(character.isalnum() or character in "-_./:" for character in value):
        return value
    return '"' + "".join(map(_escaped, value.encode())) + '"'


def _escaped(byte: int) -> str:
    character = chr(byte)
    if character in '"\\':
        return "\\" + character
    return character if 32 <= byte < 127 else f"\\x{byte:02x}"
