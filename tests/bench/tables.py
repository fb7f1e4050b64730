"""The tables of a run: what was measured, what is to be reached, and what has to be known to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench.report import OURS, REFERENCES, UNHELD, Ratio, Report, Row
from tests.bench.workloads import Workload

# Above it, what the others do shows in the ratios of short rounds.
_BUSY_SHARE = 0.1
_MANY_CLIENTS = 1000
# Above it, clients wait for their own program rather than for the target.
_BUSY_LOAD = 0.9
_KB = 1024
_MB = 1024 * 1024

HEADINGS = (
    "workload",
    "target",
    "ops/s",
    "CPU us/cmd",
    "shards us/cmd",
    "p50 ms",
    "p99 ms",
    "RSS MB",
    "CPU / twemproxy",
    "CPU / envoy",
    "CPU / direct",
)


ACK_HEADINGS = (
    "workload",
    "target",
    "pairs/s",
    "CPU us/pair",
    "shards us/pair",
    "p50 ms",
    "p99 ms",
    "RSS MB before",
    "after",
    "growth",
    "load's CPU",
    "pairs/s / direct",
)

DURABLE_HEADINGS = (*HEADINGS[: -len(REFERENCES)], f"CPU / {UNHELD}", f"ops/s / {UNHELD}")


def _cells(row: Row) -> list[str]:
    if not row.rounds:
        return [row.target, "FAILED", *[""] * (len(HEADINGS) - 3)]
    return [*_figures(row), *(_against(row, row.cpu_ratios, reference) for reference in REFERENCES)]


def _durable_cells(row: Row) -> list[str]:
    if not row.rounds:
        return [row.target, "FAILED", *[""] * (len(DURABLE_HEADINGS) - 3)]
    return [*_figures(row), _against(row, row.cpu_ratios, UNHELD), _against(row, row.throughput_ratios, UNHELD)]


def _figures(row: Row) -> list[str]:
    return [
        _name(row),
        f"{row.per_second:,.0f}",
        f"{row.cpu_us:.2f}",
        f"{row.shards_cpu_us:.2f}" if row.shards_cpu_us else "",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.resident_bytes / _MB:.0f}",
    ]


def _ack_cells(row: Row) -> list[str]:
    if not row.rounds:
        return [row.target, "FAILED", *[""] * (len(ACK_HEADINGS) - 3)]
    return [
        _name(row),
        f"{row.per_second:,.0f}",
        f"{row.cpu_us:.1f}",
        f"{row.shards_cpu_us:.1f}",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.resident_before / _MB:.1f}",
        f"{row.resident_bytes / _MB:.1f}",
        f"{row.resident_growth:+.1%}",
        f"{row.load_share:.0%}",
        _against(row, row.throughput_ratios, "direct"),
    ]


def _name(row: Row) -> str:
    return row.target + (" FAILED at times*" if row.failures else "*" if row.doubts else "")


def _against(row: Row, ratios: dict[str, Ratio] | None, reference: str) -> str:
    ratio = (ratios or {}).get(reference)
    return "" if ratio is None or row.target == reference else str(ratio)


def show(report: Report, console: Console) -> None:
    """Print the tables and what has to be known to read them."""
    for title, headings, workloads, cells in tables(report):
        table = Table(*headings, title=title)
        for column in table.columns[2:]:
            column.justify = "right"
        for workload in workloads:
            table.add_section()
            for number, row in enumerate(report.rows_of(workload)):
                table.add_row(workload.name if number == 0 else "", *cells(row), style=_style(row))
        console.print(table)
    if reached := aims(report):
        console.print(_aims_table(reached))
    for line in notes(report):
        console.print(line, highlight=False)
    for line in failures(report):
        console.print(line, style="bold red", highlight=False)


def tables(
    report: Report,
) -> Iterator[tuple[str, tuple[str, ...], list[Workload], Callable[[Row], list[str]]]]:
    """Title, headings, workloads and the cells of a row, for each table that has any."""
    plain, pairs, durable = (
        [workload for workload in report.workloads if workload.kind == kind] for kind in ("plain", "acks", "durable")
    )
    ratios = "medians of the rounds; ratios round by round: median (least-most)"
    if plain:
        yield ratios, HEADINGS, plain, _cells
    if pairs:
        yield f"SET and its acknowledgment; {ratios}", ACK_HEADINGS, pairs, _ack_cells
    if durable:
        yield f"SET, its reply held back by policy; {ratios}", DURABLE_HEADINGS, durable, _durable_cells


def failures(report: Report) -> list[str]:
    """What could not be measured, and why."""
    return [f"FAILED: {row.workload} on {row.target}: {why}" for row in report.rows for why in row.failures]


def _style(row: Row) -> str:
    if not row.rounds:
        return "red"
    return "bold" if row.target in OURS else ""


@dataclass(frozen=True)
class Aim:
    """A figure of ours next to what it should be at most, or at least."""

    workload: str
    what: str
    figure: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"

    @property
    def verdict(self) -> str:
        if self.value >= self.limit if self.at_least else self.value <= self.limit:
            return "reached"
        return f"missed by {abs(self.value / self.limit - 1):.0%}"


def aims(report: Report) -> list[Aim]:
    """What is to be reached, of all that was measured."""
    found: list[Aim] = []
    for workload in report.workloads:
        for row in report.rows_of(workload):
            if row.target in OURS and row.rounds:
                found += _ack_aims(workload, row) if workload.acks is not None else _plain_aims(workload, row)
    return found


def _plain_aims(workload: Workload, row: Row) -> Iterator[Aim]:
    for reference, limit in workload.goals:
        if ratio := (row.cpu_ratios or {}).get(reference):
            yield Aim(workload.name, f"CPU / {reference}", str(ratio), ratio.median, limit)
    if workload.goal_kb_per_client is not None and row.bytes_per_client is not None:
        kb = row.bytes_per_client / _KB
        yield Aim(workload.name, "KB a silent client", f"{kb:.1f}", kb, workload.goal_kb_per_client)
    for target, limit in workload.durable_goals:
        if target == row.target and (ratio := (row.cpu_ratios or {}).get(UNHELD)):
            yield Aim(workload.name, f"{target}: CPU / {UNHELD}", str(ratio), ratio.median, limit)


def _ack_aims(workload: Workload, row: Row) -> Iterator[Aim]:
    goals, timeout_ms = workload.ack_goals, workload.acks.timeout_ms if workload.acks is not None else 0
    ratio = (row.throughput_ratios or {}).get("direct")
    if goals.per_second is not None and ratio is not None:
        what = f"{row.target}: pairs/s / direct"
        yield Aim(workload.name, what, str(ratio), ratio.median, goals.per_second, at_least=True)
    figures = (
        ("p50 ms", row.p50_ms, goals.p50_ms),
        ("p50 ms over direct", row.p50_over_direct_ms, goals.p50_over_direct_ms),
        ("p99 ms", row.p99_ms, goals.p99_ms),
        ("median ms behind the deadline", row.p50_ms - timeout_ms, goals.late_ms),
        ("growth of memory", row.resident_growth, goals.growth),
    )
    for what, value, limit in figures:
        if value is not None and limit is not None:
            yield Aim(workload.name, f"{row.target}: {what}", f"{value:.2f}", value, limit)


def _aims_table(found: list[Aim]) -> Table:
    table = Table("workload", "what", "figure", "aim", "", title="what ackgate is to reach")
    for aim in found:
        style = "green" if aim.verdict == "reached" else "yellow"
        table.add_row(aim.workload, aim.what, aim.figure, aim.wanted, aim.verdict, style=style)
    return table


def notes(report: Report) -> list[str]:
    """What has to be known to read the tables."""
    about = report.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rounds = " and ".join(map(str, about["rounds"]))
    lines = [
        f"{about['date']}; {about['machine']}; Python {about['python']}",
        versions,
        f"{rounds} rounds; other programs had {about['others_share']:.0%} of the machine (median)",
    ]
    if about["others_share"] > _BUSY_SHARE:
        lines.append(
            "that is much: run it again on a quieter machine before believing a difference of less than a third"
        )
    lines += [
        f"{workload.name}: connecting is part of it, once for {_commands_per_client(report, workload):.0f} commands"
        for workload in report.workloads
        if workload.clients >= _MANY_CLIENTS and workload.acks is None
    ]
    splitting = [workload.name for workload in report.workloads if workload.splits]
    if splitting and about["one_shard_targets"]:
        names = " and ".join(about["one_shard_targets"])
        lines.append(f"{', '.join(splitting)}: {names} have one shard and nothing to split, do not compare with them")
    for row in report.rows:
        if row.bytes_per_client is not None:
            memory = f"{row.bytes_per_client / _KB:.1f} KB for each of {row.silent_clients} silent clients"
            lines.append(f"{row.workload} {row.target}: {memory}")
    for row in report.rows:
        lines += [f"* {row.workload} {row.target}: {why}" for why in row.doubts]
        if row.load_share > _BUSY_LOAD:
            share = f"{row.load_share:.0%}"
            lines.append(f"{row.workload} {row.target}: the clients had {share} of a CPU and may be the limit")
    return lines + [f"{line}" for line in about["left_out"]]


def _commands_per_client(report: Report, workload: Workload) -> float:
    return median(
        [s.commands / workload.clients for s in report.samples if s.workload == workload.name and not s.failure]
        or [0.0]
    )
