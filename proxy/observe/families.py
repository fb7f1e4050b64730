"""The metric families: every name under ``/metrics``, what it means, and what it means when several workers have it.

What lives here: one line a family, from which the exposition, the sums over workers and METRICS.md are made.  What may
not: figures.

Names and types follow https://prometheus.io/docs/practices/naming/.  No label ever carries a key, a value, a user's
name or a password, and the values of each come from a set that clients cannot make grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from proxy.dataplane import BOUNDS, WIDTHS

PREFIX: Final = "ackgate_"
Kind = Literal["counter", "gauge", "histogram", "info"]
Together = Literal["sum", "max", "min", "seen"]
"""Of what several workers say: ``sum`` of what each has for itself, ``max`` or ``min`` of what all are told of the same
thing; ``seen``: ``max``, of what others count and start anew when they like."""

MANY_REPLICAS: Final = 5  # achieved replicas from which on they are counted together
_SHORT: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
# From a relay on an idle machine (20 us) to a replica that is stuck.
_STEP_BUCKETS: Final = (0.00002, 0.00005, 0.0001, *_SHORT, 1.0, 2.5, 9.99)
# From the fastest acknowledgment measured on loopback (0.3 ms) to the timeouts people give.
_WAIT_BUCKETS: Final = (*_SHORT, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WAITER_BUCKETS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
_SWITCHOVER_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_OUTAGE_BUCKETS: Final = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
_DELAY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Family(NamedTuple):
    """One family.  ``name`` is without prefix and ``_total``; ``key``: of its figure (``proxy.observe.figures``)."""

    name: str
    kind: Kind
    text: str
    key: str = ""
    labels: tuple[str, ...] = ()
    together: Together = "sum"
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def scraped_name(self) -> str:
        """As it is asked for."""
        return self.full_name + ("_total" if self.kind == "counter" else "_info" if self.kind == "info" else "")


_SHARD: Final = ("shard",)
_NODE: Final = ("shard", "node")


def _counter(name: str, text: str, key: str = "", together: Together = "sum") -> Family:
    return Family(name, "counter", text, key or name, together=together)


def _gauge(name: str, text: str, key: str = "", together: Together = "sum") -> Family:
    return Family(name, "gauge", text, key or name, together=together)


def _of_shard(name: str, kind: Kind, text: str, key: str, together: Together = "sum") -> Family:
    return Family(f"shard_{name}", kind, text, key, _SHARD, together)


def _of_node(name: str, text: str, key: str, together: Together = "max") -> Family:
    return Family(f"node_{name}", "gauge", text, key, _NODE, together)


def _counted_by_node(name: str, text: str, key: str) -> Family:
    return Family(f"node_{name}", "counter", text, key, _NODE, "seen")


def _histogram(
    name: str, text: str, buckets: tuple[float, ...], *labels: str, together: Together = "sum"
) -> Family:
    return Family(name, "histogram", text, labels=labels, together=together, buckets=buckets)


# ---- clients -------------------------------------------------------------------------------------------------------
CLIENTS: Final = (
    _gauge("clients_open", "Client connections now."),
    _gauge("clients_limit", "Client connections that are let in at most (clients.maxclients)."),
    _counter("clients_accepted", "Client connections accepted."),
    _counter("clients_refused", "Client connections refused: maxclients reached or no descriptors left."),
    _counter("clients_closed_slow", "Client connections closed because they did not read their replies."),
    _counter(
        "subscribers_cut",
        "Client connections with subscriptions closed because they did not read their messages.",
    ),
    _counter("protocol_errors", "Client connections closed for a protocol error."),
    _counter("client_received_bytes", "Bytes received from clients.", "bytes_in"),
    _counter("client_sent_bytes", "Bytes sent to clients.", "bytes_out"),
    _gauge("blocked_clients", "Clients that block now (BLPOP, XREAD BLOCK ...), each on a leased lane.", "blocked"),
    _gauge("tracking_clients", "Clients now that have their keys tracked, on lanes of their own.", "tracking"),
    _gauge("shared_subscriptions", "Channels and patterns subscribed at nodes now.", "subscriptions_shared"),
    _gauge("subscription_links_open", "Connections to nodes now that carry subscriptions.", "subscription_links"),
    _counter("messages_delivered", "Messages of channels handed to clients."),
    _counter("logins_refused", "Wrong passwords."),
    _counter("users_given_to_nodes", "ACL users given to nodes that had joined or were wiped.", "users_healed"),
    _gauge("nodes_with_differing_users", "Nodes whose ACL users are not those of most others.", "users_differ", "max"),
)

# ---- commands ------------------------------------------------------------------------------------------------------
CALLS: Final = Family(
    "command_calls",
    "counter",
    "Commands answered to clients, by command (config|get; unknown: what the engine has no command for). In a "
    "transaction each command's QUEUED is one.",
    labels=("command",),
)
ERRORS: Final = Family(
    "command_errors",
    "counter",
    "Commands answered by an error, by its first word; other: one that is neither the engine's nor Ackgate's, as "
    "scripts may return. Errors within the reply to EXEC are not counted.",
    labels=("command", "error"),
)
KINDS: Final = Family(
    "errors",
    "counter",
    "Commands answered by an error, all commands together, by its first word; each is there from the start.",
    labels=("error",),
)
SECONDS: Final = _histogram(
    "command_seconds",
    "Time at the proxy, of every command: from the turn that read it from the client to the turn that had its reply. "
    "Holds, pauses, blocking and WAIT are in it.",
    BOUNDS,
    "command",
)
SHARD_SECONDS: Final = _histogram(
    "command_shard_seconds",
    "Time at the shard, of some commands: from taken by the kernel for the shard to its reply read. One at a time is "
    "timed on each lane, at most 50 a second.",
    BOUNDS,
    "command",
)
COMMANDS: Final = (
    _counter("commands", "Commands received from clients."),
    _counter("commands_control", "Commands that took the way through control, not the plain one."),
    _counter("refused_commands", "Commands refused: dangerous, or not supported yet.", "refused"),
    CALLS,
    ERRORS,
    KINDS,
    SECONDS,
    SHARD_SECONDS,
)

# ---- routing -------------------------------------------------------------------------------------------------------
REDIRECTIONS: Final = Family(
    "redirections",
    "counter",
    "Redirections by shards (moved, ask, tryagain), followed.",
    labels=("kind",),
)
SPLIT_PARTS: Final = _histogram("split_parts", "Into how many parts multi-key commands were split.", WIDTHS)
FANOUT_SHARDS: Final = _histogram("fanout_shards", "To how many shards commands for all shards were sent.", WIDTHS)
ENGINE_NODES: Final = Family(
    "engine_nodes",
    "gauge",
    "Nodes of the cluster by engine and version.",
    labels=("engine", "version"),
    together="max",
)
ROUTING: Final = (
    _gauge("ready", "1 when every slot has a primary that answers.", together="min"),
    _gauge("draining", "1 while the proxy lets everybody out, to be stopped.", together="max"),
    _gauge("slot_map_version", "Version of the slot map; raised whenever it changes.", together="max"),
    _gauge("slot_map_age_seconds", "Seconds since nodes last confirmed the slot map.", "slot_map_age", "max"),
    _gauge(
        "slot_map_changed_timestamp_seconds", "When the slot map last changed, in Unix time.", "slot_map_changed", "max"
    ),
    _gauge("slots_covered", "Slots that have a primary, of 16384.", together="min"),
    _counter("discoveries", "Times the slot map was read from the cluster."),
    _counter("discovery_failures", "Times no node could be asked for the slot map."),
    ENGINE_NODES,
    REDIRECTIONS,
    _counter("splits", "Multi-key commands split by slot."),
    SPLIT_PARTS,
    _counter("fanouts", "Commands sent to several shards."),
    FANOUT_SHARDS,
    _counter("outcome_unknown", "Writes answered with an error because their outcome is unknown."),
)

# ---- holds, pauses, failovers, switchovers -------------------------------------------------------------------------
HOLDS: Final = (
    _gauge("held_commands", "Commands held now, because their slots have no primary.", "held"),
    _gauge("held_bytes", "Bytes of requests held now."),
    _gauge(
        "hold_fill_ratio",
        "How full the fullest queue of held commands is, by lanes.held_commands or lanes.held_bytes; at 1 the newest "
        "are refused.",
        "hold_fill",
        "max",
    ),
    _counter("holds", "Commands ever held."),
    _counter("hold_timeouts", "Holds that ended in an error, at their deadline."),
    _gauge("paused", "CLIENT PAUSE now: 0 nothing is postponed, 1 writes, 2 everything.", together="max"),
    _gauge("paused_seconds", "For how long clients have been paused now; 0: they are not.", together="max"),
    _gauge("parked_commands", "Commands that wait for the end of a pause now.", "parked"),
    _counter("pauses", "Times clients were paused, by this proxy or another.", together="max"),
    _gauge("peers", "Other proxies, and workers, in front of the cluster that are heard now.", together="max"),
    _counter(
        "peer_messages_refused",
        "Messages on the proxies' channel that were not sealed with our secret, or not in time.",
    ),
)
PRIMARY_CHANGES: Final = Family(
    "primary_changes",
    "counter",
    "Times another node took over as a shard's primary. failover: the former one did not answer; switchover: it did "
    "(a planned change, whoever ordered it).",
    labels=("shard", "kind"),
    together="max",
)
OUTAGE: Final = _histogram(
    "shard_outage_seconds",
    "For how long a shard had no primary that answered, counted once it has one again; to 0.1 s.",
    _OUTAGE_BUCKETS,
    "shard",
    together="max",
)
SWITCHOVER: Final = _histogram(
    "switchover_seconds",
    "Planned switchovers by this proxy, by how they ended: from the beginning to the former primary in step as a "
    "replica.",
    _SWITCHOVER_BUCKETS,
    "result",
)
STALL: Final = _histogram(
    "switchover_stall_seconds",
    "For how long a planned switchover held the commands of its shard.",
    _SWITCHOVER_BUCKETS,
    "result",
)
FAILOVERS: Final = (PRIMARY_CHANGES, OUTAGE, SWITCHOVER, STALL)

# ---- lanes ---------------------------------------------------------------------------------------------------------
LANES: Final = (
    _gauge("lanes_open", "Connections to shards now."),
    _gauge("leased_lanes_open", "Leased lanes now.", "leased_open"),
    _gauge("identities", "Combinations of user, database and protocol that have lanes now."),
    _counter("lane_connects", "Connections to shards made."),
    _counter("lane_losses", "Connections to shards lost."),
    _counter(
        "lanes_received_bytes", "Bytes received from all shards, with what acknowledgments take.", "shard_bytes_in"
    ),
    _counter("lanes_sent_bytes", "Bytes sent to all shards, with what acknowledgments take.", "shard_bytes_out"),
    _of_shard("lanes_open", "gauge", "Connections to the shard now.", "lanes_open"),
    _of_shard("lane_connects", "counter", "Connections to the shard made.", "lane_connects"),
    _of_shard("lane_losses", "counter", "Connections to the shard lost.", "lane_losses"),
    _of_shard("outstanding_commands", "gauge", "Runs of commands at the shard, not answered yet.", "outstanding"),
    _of_shard("oldest_command_seconds", "gauge", "Age of the oldest unanswered command.", "oldest_seconds", "max"),
    _of_shard("queued_bytes", "gauge", "Bytes for the shard that the kernel has not taken yet.", "queued_bytes"),
    _of_shard("received_bytes", "counter", "Bytes received from the shard for clients.", "bytes_in"),
    _of_shard("sent_bytes", "counter", "Bytes sent to the shard for clients.", "bytes_out"),
)

# ---- acknowledgments -----------------------------------------------------------------------------------------------
STEPS: Final = _histogram(
    "step_seconds",
    "The steps of a write's way. dispatch: read from the client to taken by the kernel for the shard; execute: "
    "to its reply; relay: to the reply taken by the kernel for the client; these of a few commands a "
    "second, which are sampled. replicate: from an offset to its acknowledgment by the replicas; persist: from "
    "a marker to its fsync by the replicas; these of rounds, or of a probe where none ran for 10 s.",
    _STEP_BUCKETS,
    "step",
    "shard",
)
WAITS: Final = _histogram(
    "wait_seconds",
    "Time from a WAIT's or WAITAOF's turn to its answer, by how it ended.",
    _WAIT_BUCKETS,
    "command",
    "result",
)
WAIT_REPLICAS: Final = Family(
    "wait_replicas",
    "counter",
    f"WAIT and WAITAOF answered by a number, by how many replicas it was; {MANY_REPLICAS}+ is that or more.",
    labels=("command", "replicas"),
)
CONCERNS: Final = Family(
    "concern_replies",
    "counter",
    "Replies to writes kept back for their acknowledgment (durability), by what became of it.",
    labels=("result",),
)
ROUND_WAITERS: Final = _histogram(
    "ack_round_waiters", "How many waited for a round of acknowledgments.", _WAITER_BUCKETS
)
FALLBACKS: Final = Family(
    "ack_fallbacks",
    "counter",
    "Acknowledgments asked for in another way than the usual one. raised: a marker was put on a lane that "
    "carried one already, all being taken; alone: a wait was answered by a task of its own, because slots had "
    "moved or a proof was missing.",
    labels=("kind",),
)
ACKS: Final = (
    STEPS,
    WAITS,
    WAIT_REPLICAS,
    _gauge("waits_open", "WAIT and WAITAOF being waited for now."),
    CONCERNS,
    _gauge(
        "concern_questions_open", "Questions under way for writes whose replies are kept back.", "concerns_open"
    ),
    _counter("ack_rounds", "Rounds of acknowledgments put to shards."),
    ROUND_WAITERS,
    _counter(
        "acks_unconfirmed",
        "WAIT and WAITAOF that got no number, because a primary that took the session's writes is no longer in charge.",
    ),
    _counter(
        "ack_markers_refused",
        "Markers that shards did not take, or not in time: their WAITAOF got an error.",
        "markers_refused",
    ),
    FALLBACKS,
)

# ---- shards and nodes ----------------------------------------------------------------------------------------------
LAG_BYTES: Final = Family(
    "replica_lag_bytes", "gauge", "How far a replica is behind its primary.", "lag_bytes", ("shard", "replica"), "max"
)
LAG_SECONDS: Final = Family(
    "replica_lag_seconds",
    "gauge",
    "Age of the oldest part of its primary's data that a replica is not known to have.",
    "lag_seconds",
    ("shard", "replica"),
    "max",
)
SHARDS: Final = (
    _of_shard("up", "gauge", "1 when the shard's primary answers.", "up", "min"),
    _of_shard("slots", "gauge", "Slots the shard serves.", "slots", "max"),
    _of_shard("replicas", "gauge", "Replicas by the slot map, whether they answer or not.", "replicas", "max"),
    _of_shard("replicas_online", "gauge", "Replicas online.", "replicas_online", "max"),
    _of_shard("replication_offset_bytes", "gauge", "The primary's replication offset.", "offset", "max"),
    _of_shard("waitaof_trusted", "gauge", "1 when the shard's WAITAOF can be believed.", "waitaof_trusted", "min"),
    _of_shard("incarnations", "counter", "Times a primary of the shard began a new life.", "incarnations", "max"),
    LAG_BYTES,
    LAG_SECONDS,
)
NODES: Final = (
    _of_node("up", "1 when the node answered its last probe.", "up", "min"),
    _of_node("primary", "1 for a primary, 0 for a replica.", "primary"),
    _of_node("loading", "1 while it loads its data.", "loading"),
    _of_node("link_up", "1 when a replica's link to its primary is up.", "link_up", "min"),
    _of_node("replication_offset_bytes", "Its replication offset.", "offset"),
    _of_node("keys", "Keys in all its databases.", "keys"),
    _of_node("uptime_seconds", "Age of the process.", "uptime"),
    _of_node("connected_clients", "Connections it has, the proxy's own among them.", "clients"),
    _of_node("blocked_clients", "Connections of it that block.", "blocked"),
    _of_node("ops_per_second", "Commands a second, by its own count.", "ops"),
    _counted_by_node("commands", "Commands it has processed.", "commands"),
    _counted_by_node("received_bytes", "Bytes it has received.", "bytes_in"),
    _counted_by_node("sent_bytes", "Bytes it has sent.", "bytes_out"),
    _counted_by_node("expired_keys", "Keys that expired.", "expired"),
    _counted_by_node("evicted_keys", "Keys evicted for want of memory.", "evicted"),
    _counted_by_node("keyspace_hits", "Keys looked up and found.", "hits"),
    _counted_by_node("keyspace_misses", "Keys looked up and not found.", "misses"),
    _counted_by_node("cpu_seconds", "CPU time of the process.", "cpu_seconds"),
    _of_node("memory_used_bytes", "Memory it uses for data and buffers.", "memory_used"),
    _of_node("memory_rss_bytes", "Memory of the process, as the kernel sees it.", "memory_rss"),
    _of_node("memory_limit_bytes", "Its maxmemory; 0: none.", "memory_limit"),
    _of_node("aof_enabled", "1 with an append-only file.", "aof_enabled"),
    _of_node("aof_fsync_always", "1 when it syncs its append-only file before each reply.", "aof_always"),
    _of_node("aof_write_ok", "0 when its last write to the append-only file failed.", "aof_write_ok", "min"),
    _of_node("aof_rewrite_ok", "0 when its last rewrite of the append-only file failed.", "aof_rewrite_ok", "min"),
    _of_node("aof_rewriting", "1 while it rewrites its append-only file.", "aof_rewriting"),
    _of_node("aof_size_bytes", "Size of its append-only file.", "aof_size"),
    _counted_by_node("aof_delayed_fsyncs", "Times a write had to wait for an fsync (everysec).", "aof_delayed"),
    _of_node("rdb_save_ok", "0 when its last snapshot failed.", "rdb_ok", "min"),
    _of_node("rdb_saving", "1 while it saves a snapshot.", "rdb_saving"),
    _of_node(
        "rdb_last_save_timestamp_seconds", "When it last saved a snapshot, or started, in Unix time.", "rdb_saved_at"
    ),
    _of_node("rdb_changes_since_save", "Changes since then.", "rdb_changes"),
)

# ---- processes -----------------------------------------------------------------------------------------------------
BUILD: Final = Family(
    "build", "info", "What is running.", labels=("version", "codec", "data_plane", "python"), together="max"
)
LOOP_DELAY: Final = _histogram(
    "loop_delay_seconds",
    "How late the event loop runs what is due, by ten looks a second: what a client may wait for its turn.",
    _DELAY_BUCKETS,
)
PROCESS: Final = (BUILD, LOOP_DELAY)
_WORKER: Final = ("worker",)
WORKER_COUNT: Final = Family("workers", "gauge", "Workers that there are to be.")
WORKER_UP: Final = Family("worker_up", "gauge", "1 when the worker accepts clients and answers.", labels=_WORKER)
WORKER_RESTARTS: Final = Family("worker_restarts", "counter", "Times the worker was started again.", labels=_WORKER)
WORKER_CLIENTS: Final = Family("worker_clients_open", "gauge", "Client connections of the worker now.", labels=_WORKER)
WORKER_CPU: Final = Family("worker_cpu_seconds", "counter", "CPU time of the worker's processes.", labels=_WORKER)
WORKERS: Final = (WORKER_COUNT, WORKER_UP, WORKER_RESTARTS, WORKER_CLIENTS, WORKER_CPU)
"""There with ``workers`` above 1, from the process that holds them together."""

GROUPS: Final[dict[str, tuple[Family, ...]]] = {
    "Clients": CLIENTS,
    "Commands": COMMANDS,
    "Routing": ROUTING,
    "Holds and pauses": HOLDS,
    "Failovers and switchovers": FAILOVERS,
    "Lanes": LANES,
    "Acknowledgments": ACKS,
    "Shards": SHARDS,
    "Nodes": NODES,
    "Process": PROCESS,
    "Workers": WORKERS,
}


def every() -> Iterator[Family]:
    """All families."""
    for group in GROUPS.values():
        yield from group


OF_PROXY: Final = tuple(family for family in every() if family.key and not family.labels)
"""Those with one figure of the whole proxy (``Counters``)."""
OF_SHARD: Final = tuple(family for family in every() if family.key and family.labels == _SHARD)
OF_NODE: Final = tuple(family for family in every() if family.key and family.labels == _NODE)
