"""Is all well, and how much is going on: what one looks at first. Prometheus' own console shows the same."""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, ORANGE, RED, YELLOW, Page, Panel, Query, Row
from deploy.dashboards.words import (
    MARKS,
    PROXY,
    QUANTILES,
    SHARD,
    VARIABLES,
    both,
    errors_by_kind,
    quantile,
    rate,
    worst,
)

ALERTS = 'ALERTS{alertname=~"Ackgate.*",alertstate="firing",severity!="info"}'
ERRORS = f"{rate('ackgate_errors_total')} / {rate('ackgate_commands_total')}"


def _now(
    title: str, help: str, expr: str, unit: str, *steps: tuple[float | None, str], decimals: int | None = None
) -> Panel:
    return Panel(title, help, (Query(expr),), "stat", unit, 3, 4, steps or ((None, BLUE),), decimals=decimals)


NOW = Row(
    "Now",
    (
        _now(
            "Alerts",
            "Alerts that fire, those for the record left out.",
            f"count({ALERTS}) or vector(0)",
            "short",
            (None, GREEN),
            (1, RED),
        ),
        _now(
            "Proxies ready",
            "Proxies for which every slot has a primary that answers.",
            f"sum(ackgate_ready{{{PROXY}}})",
            "short",
            (None, RED),
            (1, GREEN),
        ),
        _now(
            "Slots served",
            "Of 16384, those that have a primary.",
            f"max(ackgate_slots_covered{{{PROXY}}}) / 16384",
            "percentunit",
            (None, RED),
            (1, GREEN),
        ),
        _now(
            "Without replica",
            "Shards with slots of which no replica is online.",
            f"count({worst('ackgate_shard_replicas_online', SHARD, 'shard')} == 0"
            f" unless {worst('ackgate_shard_slots', SHARD, 'shard')} == 0) or vector(0)",
            "short",
            (None, GREEN),
            (1, ORANGE),
        ),
        _now("Clients", "Connections of clients.", f"sum(ackgate_clients_open{{{PROXY}}})", "short"),
        _now("Commands", "Commands received a second.", rate("ackgate_commands_total"), "ops"),
        _now(
            "Slowest 1 %",
            "Time from a command read to its reply, that one command in a hundred exceeds.",
            quantile(0.99, "ackgate_command_seconds"),
            "s",
            (None, GREEN),
            (0.1, YELLOW),
            (1, RED),
        ),
        _now(
            "Errors",
            "Share of commands answered by an error.",
            ERRORS,
            "percentunit",
            (None, GREEN),
            (0.01, YELLOW),
            (0.05, RED),
            decimals=2,
        ),
    ),
)

PAGE = Page(
    "overview",
    "Overview",
    "Is all well, and how much is going on.",
    (
        NOW,
        Row(
            "Load",
            (
                Panel(
                    "Commands by proxy",
                    "Commands received a second.",
                    (Query(rate("ackgate_commands_total", by="instance"), "{{instance}}"),),
                    unit="ops",
                ),
                Panel(
                    "Time of a command",
                    "From a command read to its reply ready, at the proxies; those that block and WAIT are among them.",
                    both("ackgate_command_seconds"),
                    unit="s",
                    logarithmic=True,
                    colours=QUANTILES,
                ),
                Panel(
                    "Errors by kind",
                    "Commands answered by an error, by its first word.",
                    (Query(errors_by_kind("ackgate_errors_total"), "{{error}}"),),
                    unit="ops",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Acknowledgments",
            (
                Panel(
                    "WAIT and WAITAOF",
                    "Time from their turn to their answer.",
                    (
                        *both("ackgate_wait_seconds", f'{PROXY},command="wait"', legend="WAIT"),
                        *both("ackgate_wait_seconds", f'{PROXY},command="waitaof"', legend="WAITAOF"),
                    ),
                    unit="s",
                    logarithmic=True,
                    colours={
                        "^WAIT median": "light-blue",
                        "^WAIT 99": BLUE,
                        "AOF median": "light-orange",
                        "AOF 99": ORANGE,
                    },
                ),
                Panel(
                    "Steps of a write, median",
                    "dispatch to the shard, execute there, relay to the client; replicate to the replicas, persist on "
                    "their disks.",
                    (Query(quantile(0.5, "ackgate_step_seconds", SHARD, "step"), "{{step}}"),),
                    unit="s",
                    logarithmic=True,
                ),
                Panel(
                    "Replicas behind",
                    "Age of the oldest part of its primary's data that a replica is not known to have; one that starts "
                    "anew lacks everything for a moment.",
                    (Query(worst("ackgate_replica_lag_seconds", SHARD, "replica"), "{{replica}}"),),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Health",
            (
                Panel(
                    "Waiting commands",
                    "held: their slots have no primary; parked: clients are paused.",
                    (
                        Query(f"sum(ackgate_held_commands{{{PROXY}}})", "held"),
                        Query(f"sum(ackgate_parked_commands{{{PROXY}}})", "parked"),
                    ),
                    colours={"held": RED, "parked": YELLOW},
                ),
                Panel(
                    "Clients by proxy",
                    "Connections of clients.",
                    (Query(f"sum by (instance) (ackgate_clients_open{{{PROXY}}})", "{{instance}}"),),
                ),
                Panel(
                    "CPU by proxy",
                    "Cores in use; a process without workers can use one.",
                    (Query(rate("process_cpu_seconds_total", f'job="ackgate",{PROXY}', "instance"), "{{instance}}"),),
                    unit="percentunit",
                ),
            ),
        ),
    ),
    VARIABLES,
    MARKS,
)
