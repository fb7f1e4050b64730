"""What a user may configure, with every default.

What lives here: the typed settings of the proxy (``ProxySettings``) and of ``ackgate up`` (``LocalSettings``). What
may not: reading files and explaining faults (``proxy.configfile``), or acting on a setting (the room that owns the
matter). ``config/proxy.yaml`` and ``config/local.yaml`` show the same settings to users; a test holds the two against
each other.

Units: sizes are bytes (a file may say ``64kb``, ``1mb``, ``1gb``: powers of 1024, as in the engine's own
configuration), durations are seconds (a file may say ``500ms``, ``10s``, ``5m``, ``1h``). Paths are relative to the
folder the command runs in.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shard.settings import ClusterSettings

BYTES = "bytes"
SECONDS = "seconds"
ADDRESS = "host:port"

Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Size = Annotated[int, msgspec.Meta(ge=1, extra={"unit": BYTES})]
Duration = Annotated[float, msgspec.Meta(gt=0, extra={"unit": SECONDS})]
DurationOrNever = Annotated[float, msgspec.Meta(ge=0, extra={"unit": SECONDS})]
Address = Annotated[
    str, msgspec.Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):[0-9]{1,5}$", extra={"unit": ADDRESS})
]
Host = Annotated[str, msgspec.Meta(min_length=1)]
MOST_WORKERS = 128
Workers = Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKERS)] | Literal["auto"]

KB = 1024
MB = 1024 * KB
GB = 1024 * MB


class ListenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where clients connect.

    - ``host``: address to listen on. Default 127.0.0.1.
    - ``port``: TCP port; 0 takes any free one and the ready line names it. Default 6379, the port every Redis client
      tries first.
    - ``backlog``: connections the kernel may hold that are not yet accepted (capped by net.core.somaxconn). Default
      4096.
    """

    host: Host = "127.0.0.1"
    port: Port = 6379
    backlog: Count = 4096


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where health, readiness, metrics and topology are read over HTTP, and a switchover is ordered. Reading asks for
    no password: keep it on a private address.

    - ``host``: address to listen on. Default 127.0.0.1.
    - ``port``: TCP port; 0 takes any free one. Default 9121.
    - ``token_file``: file whose first line those must present who order a switchover; null takes orders from this
      machine alone, and from everybody on it. Default null.
    - ``command_metrics``: count answers, errors and times of each command, and time the steps of some. Default true.
    """

    host: Host = "127.0.0.1"
    port: Port = 9121
    token_file: str | None = None
    command_metrics: bool = True


class SeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cluster in front of which the proxy stands.

    - ``seeds``: ``host:port`` of some of its nodes; one that answers is enough, the rest is discovered. No default:
      ``ackgate proxy`` needs one.
    - ``username``: ACL user the proxy's own connections log in as; null is the default user. It needs every right
      (``~* &* +@all``). Default null.
    - ``password_file``: file whose first line is that user's password; null when the nodes ask for none. Default null.
    """

    seeds: tuple[Address, ...] = ()
    username: str | None = None
    password_file: str | None = None


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What clients must present.

    - ``password_file``: file whose first line is the password of the user ``default``; null asks for none. Default
      null. Every other user is the engine's (ACL SETUSER): it checks their passwords and rules.
    - ``heal_users``: a node that joined or was wiped is given the ACL users on which most of the others agree. Default
      true.
    """

    password_file: str | None = None
    heal_users: bool = True


class ClientSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of client connections.

    - ``maxclients``: connections at a time; one more gets the engine's "max number of clients reached". Default
      10000, as the engine's.
    - ``tcp_keepalive``: seconds of silence before the kernel probes the peer; 0 is never. Default 300, as the engine's.
    - ``idle_timeout``: seconds without a command before a connection is closed; 0 is never. Default 0, as the engine's.
    - ``query_limit``: bytes of one request, all its arguments together. Default 1gb, as the engine's
      client-query-buffer-limit.
    - ``outstanding_commands``: unanswered commands of one client above which it is not read. Default 10000.
    - ``outstanding_bytes``: bytes of unanswered requests of one client above which it is not read. Default 64mb.
    - ``output_limit``: bytes of replies waiting for a client that does not read them, above which it is closed.
      Default 256mb.
    - ``pubsub_output_limit``: the same of a client with subscriptions. Default 32mb, as the engine's
      client-output-buffer-limit pubsub 32mb 8mb 60.
    - ``pubsub_output_soft_limit``: bytes above which it may stay for ``pubsub_output_soft_seconds``. Default 8mb.
    - ``pubsub_output_soft_seconds``: seconds above that limit after which it is closed. Default 60.
    - ``subscriptions``: most channels and patterns of one client. Default 100000.
    """

    maxclients: Count = 10_000
    tcp_keepalive: DurationOrNever = 300.0
    idle_timeout: DurationOrNever = 0.0
    query_limit: Size = 1 * GB
    outstanding_commands: Count = 10_000
    outstanding_bytes: Size = 64 * MB
    output_limit: Size = 256 * MB
    pubsub_output_limit: Size = 32 * MB
    pubsub_output_soft_limit: Size = 8 * MB
    pubsub_output_soft_seconds: Duration = 60.0
    subscriptions: Count = 100_000


class LaneSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Connections from the proxy to the shards.

    - ``leased_per_shard``: most lanes of one shard that sessions have to themselves (transactions, large requests);
      a transaction that finds none waits for one, ``timeouts.hold`` at most. Default 64.
    - ``blocked_per_shard``: most lanes of one shard on which sessions block (BLPOP, XREAD BLOCK ...), one for each of
      them. Every one is a client of the shard's nodes, whose maxclients has to allow for it. Default 4000.
    - ``leased_idle``: seconds without use after which a lane of either kind is closed. Default 60.
    - ``identities``: most combinations of user, database and protocol (RESP 2 or 3) that have lanes at a time, one to
      each shard; those that no client uses are closed after ``leased_idle``. Default 256.
    - ``private_sessions``: most sessions that track keys (CLIENT TRACKING) at a time: each has a lane to every shard
      to itself. Default 500.
    - ``large_request``: bytes above which a request travels on a leased lane, so that it blocks nobody. Default 1mb.
    - ``reconnect_min``: seconds before the first attempt to reconnect a lost lane; doubled, with jitter, each time.
      Default 0.05.
    - ``reconnect_max``: most seconds between two attempts. Default 2.
    - ``held_bytes``: bytes of requests held for one shard, all its clients, while it has no primary. Default 256mb.
      When twice as many are under way to all shards, nobody is read who waits for a reply.
    - ``held_commands``: commands held for one shard, all its clients together. Default 100000.
    """

    leased_per_shard: Count = 64
    blocked_per_shard: Count = 4000
    leased_idle: Duration = 60.0
    identities: Count = 256
    private_sessions: Count = 500
    large_request: Size = 1 * MB
    reconnect_min: Duration = 0.05
    reconnect_max: Duration = 2.0
    held_bytes: Size = 256 * MB
    held_commands: Count = 100_000

    def __post_init__(self) -> None:
        if self.reconnect_min > self.reconnect_max:
            raise ValueError("reconnect_min is larger than reconnect_max; make it smaller or equal")


class TimeoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Deadlines. None of them may be endless: a peer that hangs has to be noticed.

    - ``connect``: seconds to connect and log in to a node. Default 2.
    - ``probe_interval``: seconds between two probes of a node. Default 0.5.
    - ``probe``: seconds without an answer to a probe before a node counts as failed. Default 2.
    - ``hold``: seconds a command is held while its slot has no primary, then it gets an error. Default 10.
    - ``command``: seconds a shard may take for one command before its lane counts as lost. Default 60.
    - ``drain``: seconds that clients have on SIGTERM to get their answers, then they are closed. Default 10.
    """

    connect: Duration = 2.0
    probe_interval: Duration = 0.5
    probe: Duration = 2.0
    hold: Duration = 10.0
    command: Duration = 60.0
    drain: Duration = 10.0


class AckSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """WAIT and WAITAOF.

    - ``untrusted_waitaof``: what WAITAOF answers where the engine is known to claim an fsync before it happened
      (Valkey with ``appendfsync everysec``): ``error`` answers an error naming the shard and the cure, ``pass`` hands
      on the engine's number. Default error.
    - ``probe_interval``: seconds between two measurements of how long replication and fsync take, of a shard where
      nobody waits for them; one writes a marker of 48 bytes that changes nothing. 0 is never. Default 10.
    """

    untrusted_waitaof: Literal["error", "pass"] = "error"
    probe_interval: DurationOrNever = 10.0


class DurabilityRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a write must have reached before its reply is passed on; the client need not ask with WAIT. A write goes by
    the first rule that matches it, and by none where none does. One whose keys match several goes by the first of
    those that asks for anything. A rule with neither ``replicas`` nor ``fsync`` exempts what it matches.

    - ``user``: the ACL user who writes; null is everybody. Default null.
    - ``prefix``: what its key begins with; null is any key, and commands without one. Default null.
    - ``replicas``: replicas of its shard that must have it. Default 0.
    - ``fsync``: on whose disk it must be: ``none``, ``local`` (the primary's), ``replica`` (of so many replicas, one at
      least) or ``both``. Default none.
    - ``timeout``: seconds for that, from the shard's reply on. Default 1.
    - ``on_timeout``: ``error`` answers -UNCONFIRMED then, although the write was applied; ``ack`` passes its reply and
      counts it. Default error.
    """

    user: str | None = None
    prefix: str | None = None
    replicas: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    fsync: Literal["none", "local", "replica", "both"] = "none"
    timeout: Duration = 1.0
    on_timeout: Literal["error", "ack"] = "error"


class PeerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The other proxies in front of the same cluster. They tell each other of CLIENT PAUSE and UNPAUSE, over the
    cluster's own pub/sub, in messages sealed with a secret.

    - ``secret_file``: file whose first line is that secret, the same for all of them, long and random. null: the
      password of ``cluster``, and where there is none no proxy knows of the others: CLIENT PAUSE holds the clients of
      the one it was sent to. Default null.
    """

    secret_file: str | None = None


class CommandSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Commands that would break the cluster under the proxy (SHUTDOWN, REPLICAOF, DEBUG, MIGRATE ...) are refused.

    - ``allow``: names of such commands to let through all the same, as in ``["debug", "cluster|failover"]``. Default
      none.
    """

    allow: tuple[str, ...] = ()


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Logs go to standard error, one event a line; keys, values and passwords never appear in them.

    - ``level``: the least severe level written. Default info.
    - ``format``: ``console`` for people, ``json`` for collectors. Default console.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class EndpointSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about the proxy but the cluster it stands in front of.

    - ``workers``: processes that serve clients on the one port, dealt out by the kernel; ``auto`` is one for each
      usable CPU. Limits of ``clients`` and ``lanes`` hold for each of them. Default 1: this process itself.
    """

    workers: Workers = 1
    listen: ListenSettings = msgspec.field(default_factory=ListenSettings)
    admin: AdminSettings = msgspec.field(default_factory=AdminSettings)
    auth: AuthSettings = msgspec.field(default_factory=AuthSettings)
    clients: ClientSettings = msgspec.field(default_factory=ClientSettings)
    lanes: LaneSettings = msgspec.field(default_factory=LaneSettings)
    timeouts: TimeoutSettings = msgspec.field(default_factory=TimeoutSettings)
    acks: AckSettings = msgspec.field(default_factory=AckSettings)
    durability: tuple[DurabilityRule, ...] = ()
    peers: PeerSettings = msgspec.field(default_factory=PeerSettings)
    commands: CommandSettings = msgspec.field(default_factory=CommandSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)


class ProxySettings(EndpointSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of ``ackgate proxy``."""

    cluster: SeedSettings = msgspec.field(default_factory=SeedSettings)


class LocalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of ``ackgate up``: a cluster on this machine and the proxy in front of it.

    - ``dir``: folder of the nodes' data, logs and configuration; found again at the next start. Default ``.ackgate``.
    - ``cluster``: the engine's processes, see ``shard.settings``.
    - ``proxy``: the proxy, without its seeds: those are the nodes just started.
    """

    dir: Host = ".ackgate"
    cluster: ClusterSettings = msgspec.field(default_factory=ClusterSettings)
    proxy: EndpointSettings = msgspec.field(default_factory=EndpointSettings)


def in_front_of(endpoint: EndpointSettings, cluster: SeedSettings) -> ProxySettings:
    """The settings of a proxy like ``endpoint`` in front of ``cluster``."""
    fields = {name: getattr(endpoint, name) for name in EndpointSettings.__struct_fields__}
    return ProxySettings(cluster=cluster, **fields)


def split_address(address: str) -> tuple[str, int]:
    """``"host:port"`` or ``"[v6]:port"`` as (host, port).

    Raises ValueError when it is neither or the port is not within 1..65535.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{address!r} is not host:port; write it like 127.0.0.1:7000")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    return host, int(port)
