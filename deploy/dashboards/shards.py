"""Shards, their nodes and disks; failovers and switchovers, what was held meanwhile, the ways to the shards."""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, ORANGE, RED, Column, Page, Panel, Query, Row
from deploy.dashboards.words import MARKS, PROXY, SHARD, VARIABLES, both, rate, worst

NODE = "shard, node"
_YES = ((None, RED), (1, GREEN))


def _by_node(title: str, help: str, expr: str, unit: str = "short") -> Panel:
    return Panel(title, help, (Query(expr, "{{node}}"),), unit=unit)


def _by_shard(title: str, help: str, expr: str, unit: str = "short") -> Panel:
    return Panel(title, help, (Query(expr, "{{shard}}"),), unit=unit)


SHARDS = Panel(
    "State of the shards",
    "As the proxies see them.",
    (
        Query(worst("ackgate_shard_up", SHARD, "shard")),
        Query(worst("ackgate_shard_slots", SHARD, "shard")),
        Query(worst("ackgate_shard_replicas_online", SHARD, "shard")),
        Query(worst("ackgate_shard_replicas", SHARD, "shard")),
        Query(worst("ackgate_shard_replication_offset_bytes", SHARD, "shard")),
        Query(worst("ackgate_replica_lag_seconds", SHARD, "shard")),
        Query(
            f"max by (shard) (ackgate_node_keys{{{SHARD}}} and on (instance, shard, node) ackgate_node_primary == 1)"
        ),
    ),
    "table",
    width=24,
    height=6,
    columns=(
        Column("shard", "Shard"),
        Column("Value #A", "Primary answers", "bool_yes_no", _YES),
        Column("Value #B", "Slots"),
        Column("Value #C", "Replicas online", "", ((None, ORANGE), (1, GREEN))),
        Column("Value #D", "Replicas"),
        Column("Value #E", "Offset", "bytes"),
        Column("Value #F", "Behind", "s", ((None, GREEN), (5, RED))),
        Column("Value #G", "Keys", "short"),
    ),
)
NODES = Panel(
    "State of the nodes",
    "As their own INFO tells.",
    (
        Query(worst("ackgate_node_up", SHARD, NODE)),
        Query(worst("ackgate_node_primary", SHARD, NODE)),
        Query(worst("ackgate_node_ops_per_second", SHARD, NODE)),
        Query(worst("ackgate_node_connected_clients", SHARD, NODE)),
        Query(worst("ackgate_node_memory_used_bytes", SHARD, NODE)),
        Query(worst("ackgate_node_replication_offset_bytes", SHARD, NODE)),
        Query(f"min by ({NODE}) (ackgate_node_aof_write_ok{{{SHARD}}})"),
        Query(worst("ackgate_node_aof_size_bytes", SHARD, NODE)),
        Query(worst("ackgate_node_uptime_seconds", SHARD, NODE)),
    ),
    "table",
    width=24,
    height=8,
    columns=(
        Column("node", "Node"),
        Column("shard", "Shard"),
        Column("Value #A", "Answers", "bool_yes_no", _YES),
        Column("Value #B", "Primary", "bool_yes_no"),
        Column("Value #C", "Commands", "ops"),
        Column("Value #D", "Connections"),
        Column("Value #E", "Memory", "bytes"),
        Column("Value #F", "Offset", "bytes"),
        Column("Value #G", "AOF writes", "bool_yes_no", _YES),
        Column("Value #H", "AOF", "bytes"),
        Column("Value #I", "Up for", "s"),
    ),
)

PAGE = Page(
    "shards",
    "Shards and failover",
    "Shards and their nodes, changes of primaries, and what clients had to wait for.",
    (
        Row(
            "Shards",
            (
                SHARDS,
                Panel(
                    "Has a primary that answers",
                    "Seen by any proxy.",
                    (Query(worst("ackgate_shard_up", SHARD, "shard"), "{{shard}}"),),
                    "states",
                    width=12,
                    states={"0": ("no primary", RED), "1": ("primary", GREEN)},
                ),
                Panel(
                    "Leads its shard",
                    "Which node is the primary. A former one is back as a replica, when it is.",
                    (
                        Query(
                            f"{worst('ackgate_node_primary', SHARD, 'node')}"
                            f" + 2 * (1 - {worst('ackgate_node_up', SHARD, 'node')})",
                            "{{node}}",
                        ),
                    ),
                    "states",
                    width=12,
                    states={
                        "0": ("replica", BLUE),
                        "1": ("primary", GREEN),
                        "2": ("down", RED),
                        "3": ("down", RED),
                    },
                ),
            ),
        ),
        Row(
            "Failovers and switchovers",
            (
                Panel(
                    "Changes of primaries",
                    "In what is shown. failover: the former one did not answer.",
                    (
                        Query(
                            "sum by (kind) (max by (shard, kind) "
                            f"(increase(ackgate_primary_changes_total{{{SHARD}}}[$__range])))",
                            "{{kind}}",
                        ),
                    ),
                    "stat",
                    steps=((None, BLUE),),
                    decimals=0,
                ),
                Panel(
                    "Without a primary",
                    "Mean time for which no primary of the shard answered, of the failures in what is shown.",
                    (
                        Query(
                            f"max by (shard) (increase(ackgate_shard_outage_seconds_sum{{{SHARD}}}[$__range])"
                            f" / increase(ackgate_shard_outage_seconds_count{{{SHARD}}}[$__range]))",
                            "{{shard}}",
                        ),
                    ),
                    "stat",
                    unit="s",
                    steps=((None, GREEN), (5, ORANGE), (10, RED)),
                ),
                Panel(
                    "Planned switchovers",
                    "Mean duration and mean stall of commands, in what is shown.",
                    (
                        Query(
                            f"sum(increase(ackgate_switchover_seconds_sum{{{PROXY}}}[$__range]))"
                            f" / sum(increase(ackgate_switchover_seconds_count{{{PROXY}}}[$__range]))",
                            "whole",
                        ),
                        Query(
                            f"sum(increase(ackgate_switchover_stall_seconds_sum{{{PROXY}}}[$__range]))"
                            f" / sum(increase(ackgate_switchover_stall_seconds_count{{{PROXY}}}[$__range]))",
                            "stall",
                        ),
                    ),
                    "stat",
                    unit="s",
                    steps=((None, BLUE),),
                ),
                Panel(
                    "Held commands",
                    "Their slots have no primary, or it is being changed.",
                    (Query(f"sum by (instance) (ackgate_held_commands{{{PROXY}}})", "{{instance}}"),),
                ),
                Panel(
                    "Fullest hold queue",
                    "Of what may be held for one shard (lanes.held_commands, lanes.held_bytes).",
                    (Query(worst("ackgate_hold_fill_ratio", by="instance"), "{{instance}}"),),
                    unit="percentunit",
                    steps=((None, GREEN), (0.5, RED)),
                    most=1,
                ),
                Panel(
                    "What clients saw of it",
                    "Commands that were held, that waited in vain, and writes of unknown outcome, in each window.",
                    (
                        Query(f"sum(increase(ackgate_holds_total{{{PROXY}}}[$__rate_interval]))", "held"),
                        Query(f"sum(increase(ackgate_hold_timeouts_total{{{PROXY}}}[$__rate_interval]))", "in vain"),
                        Query(
                            f"sum(increase(ackgate_outcome_unknown_total{{{PROXY}}}[$__rate_interval]))",
                            "outcome unknown",
                        ),
                    ),
                    colours={"held": BLUE, "in vain": RED, "unknown": ORANGE},
                    decimals=0,
                ),
            ),
        ),
        Row(
            "Ways to the shards",
            (
                _by_shard(
                    "Unanswered commands",
                    "Sent to the shard, all proxies together.",
                    f"sum by (shard) (ackgate_shard_outstanding_commands{{{SHARD}}})",
                ),
                _by_shard(
                    "Oldest of them",
                    "For how long the oldest has waited for its reply.",
                    worst("ackgate_shard_oldest_command_seconds", SHARD, "shard"),
                    "s",
                ),
                _by_shard(
                    "Queued bytes",
                    "Put on lanes, not yet taken by the kernel.",
                    f"sum by (shard) (ackgate_shard_queued_bytes{{{SHARD}}})",
                    "bytes",
                ),
                _by_shard(
                    "Sent to shards",
                    "All proxies together, a second.",
                    rate("ackgate_shard_sent_bytes_total", SHARD, "shard"),
                    "Bps",
                ),
                _by_shard(
                    "Received from shards",
                    "All proxies together, a second.",
                    rate("ackgate_shard_received_bytes_total", SHARD, "shard"),
                    "Bps",
                ),
                Panel(
                    "Connections made and lost",
                    "All proxies together, a second.",
                    (
                        Query(rate("ackgate_shard_lane_connects_total", SHARD), "made"),
                        Query(rate("ackgate_shard_lane_losses_total", SHARD), "lost"),
                    ),
                    unit="ops",
                    colours={"made": BLUE, "lost": RED},
                ),
                Panel(
                    "Redirections",
                    "MOVED, ASK and TRYAGAIN of shards, followed behind the clients' backs.",
                    (Query(rate("ackgate_redirections_total", by="kind"), "{{kind}}"),),
                    unit="ops",
                ),
                Panel(
                    "Version of the slot map",
                    "Each proxy counts for itself.",
                    (Query(worst("ackgate_slot_map_version", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    "Age of the slot map",
                    "Since the cluster last confirmed it.",
                    (Query(worst("ackgate_slot_map_age_seconds", by="instance"), "{{instance}}"),),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                NODES,
                _by_node(
                    "Commands", "As the node counts them.", worst("ackgate_node_ops_per_second", SHARD, "node"), "ops"
                ),
                _by_node(
                    "Memory",
                    "Used by the engine, for data and clients.",
                    worst("ackgate_node_memory_used_bytes", SHARD, "node"),
                    "bytes",
                ),
                _by_node(
                    "CPU",
                    "Cores in use.",
                    f"max by (node) (rate(ackgate_node_cpu_seconds_total{{{SHARD}}}[$__rate_interval]))",
                    "percentunit",
                ),
                _by_node(
                    "Evicted keys",
                    "For want of memory, a second.",
                    f"max by (node) (rate(ackgate_node_evicted_keys_total{{{SHARD}}}[$__rate_interval]))",
                    "ops",
                ),
                _by_node(
                    "Expired keys",
                    "A second.",
                    f"max by (node) (rate(ackgate_node_expired_keys_total{{{SHARD}}}[$__rate_interval]))",
                    "ops",
                ),
                _by_node(
                    "Found keys",
                    "Share of reads that found theirs.",
                    f"max by (node) (rate(ackgate_node_keyspace_hits_total{{{SHARD}}}[$__rate_interval])"
                    f" / (rate(ackgate_node_keyspace_hits_total{{{SHARD}}}[$__rate_interval])"
                    f" + rate(ackgate_node_keyspace_misses_total{{{SHARD}}}[$__rate_interval])))",
                    "percentunit",
                ),
            ),
        ),
        Row(
            "Disks",
            (
                _by_node(
                    "Size of the AOF",
                    "Its base and what was appended since.",
                    worst("ackgate_node_aof_size_bytes", SHARD, "node"),
                    "bytes",
                ),
                Panel(
                    "AOF",
                    "Whether the node's last writes to it went well.",
                    (
                        Query(
                            f"min by (node) (ackgate_node_aof_write_ok{{{SHARD}}}"
                            f" * (1 + ackgate_node_aof_rewriting{{{SHARD}}}))",
                            "{{node}}",
                        ),
                    ),
                    "states",
                    states={"0": ("fails", RED), "1": ("written", GREEN), "2": ("being rewritten", BLUE)},
                ),
                Panel(
                    "Snapshot",
                    "Whether the last one went well.",
                    (
                        Query(
                            f"min by (node) (ackgate_node_rdb_save_ok{{{SHARD}}}"
                            f" * (1 + ackgate_node_rdb_saving{{{SHARD}}}))",
                            "{{node}}",
                        ),
                    ),
                    "states",
                    states={"0": ("failed", RED), "1": ("saved", GREEN), "2": ("being saved", BLUE)},
                ),
                _by_node(
                    "Age of the snapshot",
                    "Since the last one that went well, or since the node started.",
                    f"time() - {worst('ackgate_node_rdb_last_save_timestamp_seconds', SHARD, 'node')}",
                    "s",
                ),
                _by_node(
                    "Delayed fsyncs",
                    "Writes that waited for the disk (appendfsync everysec), a second.",
                    f"max by (node) (rate(ackgate_node_aof_delayed_fsyncs_total{{{SHARD}}}[$__rate_interval]))",
                    "ops",
                ),
                Panel(
                    "Fsync of writes",
                    "From a marker to its fsync by the replicas.",
                    both("ackgate_step_seconds", f'{SHARD},step="persist"'),
                    unit="s",
                    colours={"median": BLUE, "99 %": ORANGE},
                ),
            ),
        ),
    ),
    VARIABLES,
    MARKS,
)
