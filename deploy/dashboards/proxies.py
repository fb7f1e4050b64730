"""Proxies as processes: CPU, memory, lateness, clients, connections to shards, pauses, workers."""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, ORANGE, RED, YELLOW, Column, Page, Panel, Query, Row
from deploy.dashboards.words import MARKS, PROXY, VARIABLES, quantile, rate, worst

PROCESS = f'job="ackgate",{PROXY}'


def _by_proxy(title: str, help: str, expr: str, unit: str = "short") -> Panel:
    return Panel(title, help, (Query(expr, "{{instance}}"),), unit=unit)


def _now(name: str) -> str:
    return f"sum by (instance) ({name}{{{PROXY}}})"


PROXIES = Panel(
    "State of the proxies",
    "Each with all its workers.",
    (
        Query(f"max by (instance, version, data_plane) (ackgate_build_info{{{PROXY}}})"),
        Query(_now("ackgate_ready")),
        Query(_now("ackgate_clients_open")),
        Query(rate("process_cpu_seconds_total", PROCESS, "instance", "1m")),
        Query(f"sum by (instance) (process_resident_memory_bytes{{{PROCESS}}})"),
        Query(f"sum by (instance) (process_open_fds{{{PROCESS}}})"),
        Query(_now("ackgate_lanes_open")),
        Query(f"time() - max by (instance) (process_start_time_seconds{{{PROCESS}}})"),
    ),
    "table",
    width=24,
    height=6,
    columns=(
        Column("instance", "Proxy"),
        Column("version", "Version"),
        Column("data_plane", "Data plane"),
        Column("Value #B", "Ready", "bool_yes_no", ((None, RED), (1, GREEN))),
        Column("Value #C", "Clients"),
        Column("Value #D", "CPU", "percentunit"),
        Column("Value #E", "Memory", "bytes"),
        Column("Value #F", "Open files"),
        Column("Value #G", "Connections to shards"),
        Column("Value #H", "Up for", "s"),
    ),
)

PAGE = Page(
    "proxies",
    "Proxies",
    "Proxies as processes, their clients, and what they tell each other.",
    (
        Row(
            "Processes",
            (
                PROXIES,
                _by_proxy(
                    "CPU",
                    "Cores in use; a process without workers can use one.",
                    rate("process_cpu_seconds_total", PROCESS, "instance"),
                    "percentunit",
                ),
                _by_proxy(
                    "Memory",
                    "Resident, all workers together.",
                    f"sum by (instance) (process_resident_memory_bytes{{{PROCESS}}})",
                    "bytes",
                ),
                Panel(
                    "Lateness of the loop, 99 %",
                    "How late it runs what is due.",
                    (Query(quantile(0.99, "ackgate_loop_delay_seconds", PROXY, "instance"), "{{instance}}"),),
                    unit="s",
                    steps=((None, GREEN), (0.1, RED)),
                ),
            ),
        ),
        Row(
            "Clients",
            (
                Panel(
                    "Open connections",
                    "And as many as are taken (clients.maxclients).",
                    (
                        Query(_now("ackgate_clients_open"), "{{instance}}"),
                        Query(f"min(ackgate_clients_limit{{{PROXY}}})", "limit"),
                    ),
                    colours={"limit": RED},
                    logarithmic=True,
                ),
                Panel(
                    "Came and refused",
                    "Connections a second.",
                    (
                        Query(rate("ackgate_clients_accepted_total"), "accepted"),
                        Query(rate("ackgate_clients_refused_total"), "refused"),
                    ),
                    unit="ops",
                    colours={"accepted": BLUE, "refused": RED},
                ),
                Panel(
                    "Closed for a reason",
                    "Connections a second: replies or messages not read, or not the protocol.",
                    (
                        Query(rate("ackgate_clients_closed_slow_total"), "replies not read"),
                        Query(rate("ackgate_subscribers_cut_total"), "messages not read"),
                        Query(rate("ackgate_protocol_errors_total"), "protocol errors"),
                    ),
                    unit="ops",
                ),
                _by_proxy(
                    "Received from clients",
                    "A second.",
                    rate("ackgate_client_received_bytes_total", by="instance"),
                    "Bps",
                ),
                _by_proxy(
                    "Sent to clients",
                    "A second.",
                    rate("ackgate_client_sent_bytes_total", by="instance"),
                    "Bps",
                ),
                Panel(
                    "Clients of a kind",
                    "With a connection to shards of their own: blocking, tracking keys.",
                    (
                        Query(f"sum(ackgate_blocked_clients{{{PROXY}}})", "blocking"),
                        Query(f"sum(ackgate_tracking_clients{{{PROXY}}})", "tracking"),
                    ),
                    colours={"blocking": BLUE, "tracking": GREEN},
                ),
            ),
        ),
        Row(
            "Connections to shards",
            (
                _by_proxy("Open", "Lanes and leased ones, to all shards.", _now("ackgate_lanes_open")),
                _by_proxy("Leased", "Of one client each, for a while.", _now("ackgate_leased_lanes_open")),
                Panel(
                    "Made and lost",
                    "A second.",
                    (
                        Query(rate("ackgate_lane_connects_total"), "made"),
                        Query(rate("ackgate_lane_losses_total"), "lost"),
                    ),
                    unit="ops",
                    colours={"made": BLUE, "lost": RED},
                ),
                _by_proxy(
                    "Identities", "Users, databases and protocols that have connections.", _now("ackgate_identities")
                ),
                _by_proxy(
                    "Shared subscriptions", "At nodes, for all who want them.", _now("ackgate_shared_subscriptions")
                ),
                Panel(
                    "Discoveries",
                    "Times the slot map was read, or no node could be asked, a second.",
                    (
                        Query(rate("ackgate_discoveries_total"), "read"),
                        Query(rate("ackgate_discovery_failures_total"), "failed"),
                    ),
                    unit="ops",
                    colours={"read": BLUE, "failed": RED},
                ),
            ),
        ),
        Row(
            "Pauses, and what proxies tell each other",
            (
                Panel(
                    "Paused",
                    "CLIENT PAUSE, by this proxy or another.",
                    (Query(worst("ackgate_paused", by="instance"), "{{instance}}"),),
                    "states",
                    states={"0": ("no", "transparent"), "1": ("writes", YELLOW), "2": ("all", ORANGE)},
                ),
                _by_proxy("Parked commands", "They wait for the end of a pause.", _now("ackgate_parked_commands")),
                Panel(
                    "Other proxies heard",
                    "And messages that were not sealed with our secret, a second.",
                    (
                        Query(worst("ackgate_peers", by="instance"), "{{instance}}"),
                        Query(rate("ackgate_peer_messages_refused_total"), "refused"),
                    ),
                    colours={"refused": RED},
                ),
            ),
        ),
        Row(
            "Workers, where there are several",
            (
                Panel(
                    "CPU by worker",
                    "Cores in use; each can use one.",
                    (
                        Query(
                            rate("ackgate_worker_cpu_seconds_total", by="instance, worker"), "{{instance}} {{worker}}"
                        ),
                    ),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Clients by worker",
                    "The kernel deals them out.",
                    (
                        Query(
                            f"sum by (instance, worker) (ackgate_worker_clients_open{{{PROXY}}})",
                            "{{instance}} {{worker}}",
                        ),
                    ),
                ),
                Panel(
                    "Restarts",
                    "Of workers that died, in what is shown.",
                    (Query(f"sum(increase(ackgate_worker_restarts_total{{{PROXY}}}[$__range]))"),),
                    "stat",
                    steps=((None, GREEN), (1, RED)),
                    decimals=0,
                ),
            ),
        ),
    ),
    (VARIABLES[0],),
    MARKS,
)
