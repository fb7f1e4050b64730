"""The shape of the figures that a scrape reads.

What lives here: which figures there are, and of what.  What each of them means stands beside its family
(``proxy.observe.families``): a figure's name here is its family's ``key`` there.  What may not: counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypedDict


class Counters(TypedDict, total=False):
    """Figures of the whole proxy since its start.  A key that is missing counts as 0.

    ``engine_versions``: number of nodes by engine and version, as ``{"valkey 9.1.2": 6}``; ``primary_changes``: how
    often another node took over, by shard id and kind ("failover", "switchover").
    """

    clients_open: int
    clients_limit: int
    clients_accepted: int
    clients_refused: int
    clients_closed_slow: int
    draining: int
    commands: int
    commands_control: int
    protocol_errors: int
    subscribers_cut: int
    subscriptions_shared: int
    subscription_links: int
    messages_delivered: int
    bytes_in: int
    bytes_out: int
    shard_bytes_in: int
    shard_bytes_out: int
    lanes_open: int
    lane_connects: int
    lane_losses: int
    leased_open: int
    blocked: int
    identities: int
    tracking: int
    logins_refused: int
    users_healed: int
    users_differ: int
    paused: int
    paused_seconds: float
    parked: int
    pauses: int
    peers: int
    peer_messages_refused: int
    moved: int
    ask: int
    tryagain: int
    splits: int
    fanouts: int
    outcome_unknown: int
    refused: int
    held: int
    held_bytes: int
    hold_fill: float
    holds: int
    hold_timeouts: int
    waits_open: int
    concerns_open: int
    ack_rounds: int
    acks_unconfirmed: int
    markers_refused: int
    markers_raised: int
    waits_alone: int
    slot_map_version: int
    slot_map_age: float
    slot_map_changed: float
    slots_covered: int
    discoveries: int
    discovery_failures: int
    ready: int
    engine_versions: dict[str, int]
    primary_changes: dict[tuple[str, str], int]


class _ShardId(TypedDict):
    shard: str


class ShardFigures(_ShardId, total=False):
    """Figures of one shard.  ``shard`` is its id, the label; a key that is missing leaves its sample out.

    ``lag_bytes`` and ``lag_seconds``: by replica address, how far it is behind.
    """

    up: int
    slots: int
    replicas: int
    replicas_online: int
    offset: int
    lag_bytes: dict[str, int]
    lag_seconds: dict[str, float]
    outstanding: int
    oldest_seconds: float
    queued_bytes: int
    lanes_open: int
    lane_connects: int
    lane_losses: int
    bytes_in: int
    bytes_out: int
    incarnations: int
    waitaof_trusted: int


class _NodeId(TypedDict):
    shard: str
    node: str


class NodeFigures(_NodeId, total=False):
    """Figures of one server process.  ``node`` is its address; a key that is missing leaves its sample out."""

    up: int
    primary: int
    loading: int
    link_up: int
    offset: int
    keys: int
    uptime: int
    clients: int
    blocked: int
    ops: int
    commands: int
    bytes_in: int
    bytes_out: int
    expired: int
    evicted: int
    hits: int
    misses: int
    cpu_seconds: float
    memory_used: int
    memory_rss: int
    memory_limit: int
    aof_enabled: int
    aof_always: int
    aof_write_ok: int
    aof_rewrite_ok: int
    aof_rewriting: int
    aof_size: int
    aof_delayed: int
    rdb_ok: int
    rdb_saving: int
    rdb_saved_at: int
    rdb_changes: int


class Timed(NamedTuple):
    """Times of one command: how many in each bucket (not added up), and all of them together."""

    counts: Sequence[int]
    seconds: float


class CommandFigures(NamedTuple):
    """What was counted of commands, by name."""

    answered: Mapping[str, Timed]
    at_shard: Mapping[str, Timed]
    errors: Mapping[tuple[str, str], int]
    """(command, the error's first word)."""
    split_parts: Timed
    fanout_shards: Timed
    kinds: Mapping[str, int] = MappingProxyType({})
    """All errors by their first word, each that there can be; none where nothing is counted."""


NO_COMMANDS = CommandFigures({}, {}, {}, Timed((), 0), Timed((), 0))


class Figures(Protocol):
    """What a scrape reads.  All calls are quick, await nothing and may come at any time."""

    def counters(self) -> Counters: ...

    def shard_figures(self) -> Sequence[ShardFigures]: ...

    def node_figures(self) -> Sequence[NodeFigures]: ...

    def command_figures(self) -> CommandFigures: ...
