"""Commands: how many of which, how long they take at the proxy and at the shard, what they are answered."""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, ORANGE, RED, YELLOW, Column, Page, Panel, Query, Row, Variable
from deploy.dashboards.words import MARKS, PROXY, QUANTILES, VARIABLES, both, errors_by_kind, mean, quantile, rate

COMMAND = f'{PROXY},command=~"$command"'
_SLOW = ((None, GREEN), (0.1, YELLOW), (1, RED))


def _widths(title: str, help: str, name: str) -> Panel:
    return Panel(
        title,
        help,
        (Query(mean(name), "mean"), Query(quantile(0.99, name), "99 %")),
        colours={"mean": BLUE, "99 %": ORANGE},
    )


PAGE = Page(
    "commands",
    "Commands",
    "How many of which command, how long they take, and what they are answered.",
    (
        Row(
            "All commands chosen",
            (
                Panel(
                    "The ten most frequent",
                    "Answered, a second.",
                    (Query(f"topk(10, {rate('ackgate_command_calls_total', COMMAND, 'command')})", "{{command}}"),),
                    unit="ops",
                    stacked=True,
                ),
                Panel(
                    "Time at the proxy",
                    "From a command read to its reply ready.",
                    both("ackgate_command_seconds", COMMAND),
                    unit="s",
                    logarithmic=True,
                    colours=QUANTILES,
                ),
                Panel(
                    "Time at the shard",
                    "From a command taken by the kernel to its reply read; sampled.",
                    both("ackgate_command_shard_seconds", COMMAND),
                    unit="s",
                    logarithmic=True,
                    colours=QUANTILES,
                ),
                Panel(
                    "How long commands take",
                    "At the proxy; the darker, the more.",
                    (Query(f"sum by (le) (increase(ackgate_command_seconds_bucket{{{COMMAND}}}[$__rate_interval]))"),),
                    "heatmap",
                    unit="s",
                    width=16,
                ),
                Panel(
                    "Errors by kind",
                    "By the first word of the answer.",
                    (Query(errors_by_kind("ackgate_command_errors_total", COMMAND), "{{error}}"),),
                    unit="ops",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Command by command",
            (
                Panel(
                    "Commands",
                    "Over the last five minutes.",
                    (
                        Query(rate("ackgate_command_calls_total", COMMAND, "command", "5m")),
                        Query(rate("ackgate_command_errors_total", COMMAND, "command", "5m")),
                        Query(quantile(0.5, "ackgate_command_seconds", COMMAND, "command", "5m")),
                        Query(quantile(0.99, "ackgate_command_seconds", COMMAND, "command", "5m")),
                        Query(quantile(0.99, "ackgate_command_shard_seconds", COMMAND, "command", "5m")),
                    ),
                    "table",
                    width=16,
                    height=12,
                    columns=(
                        Column("command", "Command"),
                        Column("Value #A", "Calls", "ops"),
                        Column("Value #B", "Errors", "ops", ((None, GREEN), (0.0001, RED))),
                        Column("Value #C", "Median", "s", _SLOW),
                        Column("Value #D", "99 %", "s", _SLOW),
                        Column("Value #E", "99 % at the shard", "s", _SLOW),
                    ),
                ),
                Panel(
                    "The ten slowest",
                    "What one in a hundred of them exceeds, at the proxy.",
                    (
                        Query(
                            f"topk(10, {quantile(0.99, 'ackgate_command_seconds', COMMAND, 'command')})", "{{command}}"
                        ),
                    ),
                    unit="s",
                    height=12,
                    logarithmic=True,
                ),
            ),
        ),
        Row(
            "Ways through the proxy",
            (
                Panel(
                    "Split, fanned out, by control",
                    "Commands split by slot, sent to several shards, and those that did not take the plain way.",
                    (
                        Query(rate("ackgate_splits_total"), "split"),
                        Query(rate("ackgate_fanouts_total"), "fanned out"),
                        Query(rate("ackgate_commands_control_total"), "by control"),
                    ),
                    unit="ops",
                ),
                _widths("Parts of a split command", "Into how many it was split.", "ackgate_split_parts"),
                _widths("Shards of a fanned out command", "To how many it was sent.", "ackgate_fanout_shards"),
                Panel(
                    "Refused",
                    "Commands that would break the cluster or are not supported, and wrong passwords, a second.",
                    (
                        Query(rate("ackgate_refused_commands_total"), "commands"),
                        Query(rate("ackgate_logins_refused_total"), "passwords"),
                    ),
                    unit="ops",
                    colours={"commands": ORANGE, "passwords": RED},
                ),
                Panel(
                    "Blocking clients",
                    "BLPOP, XREAD BLOCK and their kin.",
                    (Query(f"sum by (instance) (ackgate_blocked_clients{{{PROXY}}})", "{{instance}}"),),
                ),
                Panel(
                    "Messages of channels",
                    "Handed to clients, a second.",
                    (Query(rate("ackgate_messages_delivered_total", by="instance"), "{{instance}}"),),
                    unit="ops",
                ),
            ),
        ),
    ),
    (VARIABLES[0], Variable("command", "Command", "label_values(ackgate_command_calls_total, command)")),
    MARKS,
)
