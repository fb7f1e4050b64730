"""What the pages have in common: their variables, marks, colours, and short ways to write PromQL.

What lives here: strings. ``rate`` and ``quantile`` are over the window that fits what is shown; nothing is shown by
proxy and by shard at once but for what only a table can hold.
"""

from __future__ import annotations

from typing import Final

from deploy.dashboards.panels import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, YELLOW, Mark, Query, Variable

PROXY: Final = 'instance=~"$proxy"'
SHARD: Final = f'{PROXY},shard=~"$shard"'
WINDOW: Final = "$__rate_interval"

VARIABLES: Final = (
    Variable("proxy", "Proxy", "label_values(ackgate_ready, instance)"),
    Variable("shard", "Shard", "label_values(ackgate_shard_up, shard)"),
)
MARKS: Final = (
    Mark(
        "Failover",
        'max by (shard) (increase(ackgate_primary_changes_total{kind="failover"}[1m])) > 0',
        RED,
        "A replica of shard {{shard}} took over from a primary that did not answer.",
    ),
    Mark(
        "Switchover",
        'max by (shard) (increase(ackgate_primary_changes_total{kind="switchover"}[1m])) > 0',
        PURPLE,
        "Another node of shard {{shard}} leads, as planned.",
    ),
    Mark("Pause", "max(ackgate_paused) > 0", YELLOW, "CLIENT PAUSE held clients."),
)
# A median is blue, what few see is orange; red is for what is wrong, and for nothing else.
QUANTILES: Final = {"median": BLUE, "99 %": ORANGE}
RESULTS: Final = {
    "reached": GREEN,
    "passed": BLUE,
    "deadline": ORANGE,
    "gone": GREY,
    "refused": RED,
    "unconfirmed": "dark-red",
}


def rate(name: str, labels: str = PROXY, by: str = "", window: str = WINDOW) -> str:
    """How many a second, summed, by ``by``."""
    return f"sum{_by(by)} (rate({name}{{{labels}}}[{window}]))"


def quantile(at: float, name: str, labels: str = PROXY, by: str = "", window: str = WINDOW) -> str:
    """The value that a share ``at`` of what a histogram counted did not exceed."""
    return f"histogram_quantile({at}, {rate(f'{name}_bucket', labels, f'{by}, le' if by else 'le', window)})"


def mean(name: str, labels: str = PROXY, by: str = "") -> str:
    """The mean of what a histogram counted."""
    return f"{rate(f'{name}_sum', labels, by)} / {rate(f'{name}_count', labels, by)}"


def worst(name: str, labels: str = PROXY, by: str = "") -> str:
    """The greatest that any proxy sees."""
    return f"max{_by(by)} ({name}{{{labels}}})"


def both(name: str, labels: str = PROXY, by: str = "", legend: str = "") -> tuple[Query, Query]:
    """The median and what one in a hundred exceeds."""
    prefix = f"{legend} " if legend else ""
    return (
        Query(quantile(0.5, name, labels, by), f"{prefix}median"),
        Query(quantile(0.99, name, labels, by), f"{prefix}99 %"),
    )


def errors_by_kind(name: str, labels: str = PROXY) -> str:
    """Commands answered by an error, by its first word: those that there are, ``none`` where there is none."""
    none = 'label_replace(vector(0), "error", "none", "", "")'
    return f"{rate(name, labels, 'error')} > 0 or on() {none}"


def _by(by: str) -> str:
    return f" by ({by})" if by else ""
