"""What came of it: a table on the terminal, the same as Markdown, all of it as JSON, a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.samples import Sample
from tests.bench.targets import Target
from tests.bench.workloads import Workload

REFERENCES = ("twemproxy", "envoy", "direct")
UNHELD = "ackgate-3"
"""What durable writes are compared with: the target where no policy holds them."""
OURS = ("ackgate", "ackgate-1", UNHELD, "ackgate-replicas", "ackgate-disks")

# Above it, what the others do shows in the ratios of short rounds.
_BUSY_SHARE = 0.1
_MANY_CLIENTS = 1000
# Above it, clients wait for their own program rather than for the target.
_BUSY_LOAD = 0.9
_KB = 1024
_MB = 1024 * 1024


@dataclass(frozen=True)
class Ratio:
    """A quotient taken round by round."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


@dataclass(frozen=True)
class Row:
    """One workload on one target: medians of its rounds, and CPU and throughput in multiples of others'."""

    workload: str
    target: str
    rounds: int
    failures: tuple[str, ...]
    doubts: tuple[str, ...]
    per_second: float = 0.0
    cpu_us: float = 0.0
    shards_cpu_us: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    resident_bytes: float = 0.0
    resident_before: float = 0.0
    resident_growth: float = 0.0
    load_share: float = 0.0
    p50_over_direct_ms: float | None = None
    silent_clients: int = 0
    bytes_per_client: float | None = None
    cpu_ratios: dict[str, Ratio] | None = None
    throughput_ratios: dict[str, Ratio] | None = None


@dataclass(frozen=True)
class Report:
    """Everything about one run."""

    about: dict[str, Any]
    workloads: list[Workload]
    rows: list[Row]
    samples: list[Sample]

    @property
    def failed(self) -> bool:
        """Something could not be measured, be it in one round only."""
        return any(row.failures or not row.rounds for row in self.rows)

    def rows_of(self, workload: Workload) -> list[Row]:
        """The workload on each of its targets."""
        return [row for row in self.rows if row.workload == workload.name]


@dataclass(frozen=True)
class Part:
    """Workloads that were measured on the same targets."""

    targets: Sequence[Target]
    workloads: Sequence[Workload]
    samples: list[Sample]
    interrupted: bool


def make_report(parts: Sequence[Part], left_out: Sequence[str]) -> Report:
    """Sum up the samples of one run."""
    rows = [
        _row(workload, target, part.samples)
        for part in parts
        for workload in part.workloads
        for target in part.targets
    ]
    workloads = [workload for part in parts for workload in part.workloads]
    samples = [sample for part in parts for sample in part.samples]
    return Report(_about(parts, samples, left_out), workloads, rows, samples)


def _row(workload: Workload, target: Target, samples: list[Sample]) -> Row:
    mine = [sample for sample in samples if (sample.workload, sample.target) == (workload.name, target.name)]
    good = [sample for sample in mine if not sample.failure]
    failures = tuple(dict.fromkeys(sample.failure for sample in mine if sample.failure))
    doubts = tuple(dict.fromkeys(sample.doubt for sample in mine if sample.doubt))
    if not good:
        return Row(workload.name, target.name, 0, failures or ("not measured",), doubts)

    def middle(read: Callable[[Sample], float]) -> float:
        return median(map(read, good))

    memories = [sample.bytes_per_client for sample in good if sample.bytes_per_client is not None]
    return Row(
        workload=workload.name,
        target=target.name,
        rounds=len(good),
        failures=failures,
        doubts=doubts,
        per_second=middle(lambda sample: sample.per_second),
        cpu_us=middle(lambda sample: sample.cpu_us),
        shards_cpu_us=middle(lambda sample: sample.shards_cpu_us),
        p50_ms=middle(lambda sample: sample.p50_ms),
        p99_ms=middle(lambda sample: sample.p99_ms),
        resident_bytes=middle(lambda sample: sample.resident_bytes),
        resident_before=middle(lambda sample: sample.resident_before),
        resident_growth=middle(lambda sample: sample.resident_growth),
        load_share=middle(lambda sample: sample.load_share),
        p50_over_direct_ms=_over_direct(good, samples),
        silent_clients=good[0].silent_clients,
        bytes_per_client=median(memories) if memories else None,
        cpu_ratios=_ratios(good, samples, lambda sample: sample.cpu_us),
        throughput_ratios=_ratios(good, samples, lambda sample: sample.per_second),
    )


def _ratios(good: list[Sample], samples: list[Sample], read: Callable[[Sample], float]) -> dict[str, Ratio]:
    ratios: dict[str, Ratio] = {}
    for reference in (*REFERENCES, UNHELD):
        by_round = _by_round(good[0].workload, reference, samples, read)
        quotients = [read(sample) / by_round[sample.round] for sample in good if by_round.get(sample.round)]
        if quotients:
            ratios[reference] = Ratio(median(quotients), min(quotients), max(quotients))
    return ratios


def _by_round(
    workload: str, target: str, samples: list[Sample], read: Callable[[Sample], float]
) -> dict[int, float]:
    mine = [sample for sample in samples if (sample.workload, sample.target) == (workload, target)]
    return {sample.round: read(sample) for sample in mine if not sample.failure}


def _over_direct(good: list[Sample], samples: list[Sample]) -> float | None:
    direct = _by_round(good[0].workload, "direct", samples, lambda sample: sample.p50_ms)
    differences = [sample.p50_ms - direct[sample.round] for sample in good if sample.round in direct]
    return median(differences) if differences else None


def _about(parts: Sequence[Part], samples: list[Sample], left_out: Sequence[str]) -> dict[str, Any]:
    targets = [target for part in parts for target in part.targets]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPUs, {_cpu_model()}, Linux {platform.release()}",
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "versions": {target.name: target.version for target in targets},
        "left_out": list(left_out),
        "one_shard_targets": list(dict.fromkeys(target.name for target in targets if target.one_shard)),
        "rounds": [max(sample.round for sample in part.samples) for part in parts],
        "others_share": median([sample.others_share for sample in samples if not sample.failure] or [0.0]),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


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
    for title, headings, workloads, cells in _tables(report):
        table = Table(*headings, title=title)
        for column in table.columns[2:]:
            column.justify = "right"
        for workload in workloads:
            table.add_section()
            for number, row in enumerate(report.rows_of(workload)):
                table.add_row(workload.name if number == 0 else "", *cells(row), style=_style(row))
        console.print(table)
    if aims := _aims(report):
        console.print(_aims_table(aims))
    for line in _notes(report):
        console.print(line, highlight=False)
    for line in _failures(report):
        console.print(line, style="bold red", highlight=False)


def _tables(
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


def _failures(report: Report) -> list[str]:
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


def _aims(report: Report) -> list[Aim]:
    aims: list[Aim] = []
    for workload in report.workloads:
        for row in report.rows_of(workload):
            if row.target in OURS and row.rounds:
                aims += _ack_aims(workload, row) if workload.acks is not None else _plain_aims(workload, row)
    return aims


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


def _aims_table(aims: list[Aim]) -> Table:
    table = Table("workload", "what", "figure", "aim", "", title="what ackgate is to reach")
    for aim in aims:
        style = "green" if aim.verdict == "reached" else "yellow"
        table.add_row(aim.workload, aim.what, aim.figure, aim.wanted, aim.verdict, style=style)
    return table


def _notes(report: Report) -> list[str]:
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


def save(report: Report, folder: Path, name: str) -> list[Path]:
    """Write ``name``.json, .md and .svg, return their paths; the picture only where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text, picture = (folder / f"{name}.{ending}" for ending in ("json", "md", "svg"))
    data.write_text(json.dumps(asdict(report), indent=1) + "\n")
    text.write_text(_markdown(report))
    written = [data, text]
    if _draw(report, picture):
        written.append(picture)
    return written


def _markdown(report: Report) -> str:
    lines: list[str] = []
    for _, headings, workloads, cells in _tables(report):
        lines += [_markdown_row(headings), _markdown_row(["---", "---", *["---:"] * (len(headings) - 2)])]
        lines += [_markdown_row([row.workload, *cells(row)]) for each in workloads for row in report.rows_of(each)]
        lines.append("")
    if aims := _aims(report):
        lines += [_markdown_row(["workload", "what", "figure", "aim", ""]), _markdown_row(["---"] * 5)]
        lines += [_markdown_row([aim.workload, aim.what, aim.figure, aim.wanted, aim.verdict]) for aim in aims]
    lines += ["", *(f"- {line}" for line in (*_notes(report), *_failures(report)))]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(report: Report, path: Path) -> bool:
    try:
        import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # type: ignore[import-not-found, unused-ignore]

    groups = [workloads for _, _, workloads, _ in _tables(report)]
    widths = [4 + 1.1 * len(workloads) for workloads in groups]
    figure, panels = plt.subplots(
        2, len(groups), figsize=(sum(widths), 9), layout="constrained", squeeze=False, width_ratios=widths
    )
    for number, workloads in enumerate(groups):
        what = "command" if workloads[0].acks is None else "pair"
        _bars(panels[0][number], report, workloads, f"CPU of the target, us per {what} (less is better)", _cpu)
        _bars(panels[1][number], report, workloads, f"{what}s per second (more is better)", _speed)
        panels[0][number].legend(ncols=3)
    figure.supxlabel(f"{report.about['date'][:10]}, {report.about['machine']}", fontsize="small")
    figure.savefig(path)
    plt.close(figure)
    return True


def _cpu(row: Row) -> float:
    return row.cpu_us


def _speed(row: Row) -> float:
    return row.per_second


def _bars(panel: Any, report: Report, workloads: list[Workload], title: str, read: Callable[[Row], float]) -> None:
    rows = [report.rows_of(workload) for workload in workloads]
    targets = [row.target for row in rows[0]]
    width = 0.8 / len(targets)
    for number, target in enumerate(targets):
        places = [place + (number - (len(targets) - 1) / 2) * width for place in range(len(workloads))]
        # Nothing is drawn for a failed one: a logarithmic axis has no zero.
        heights = [read(row[number]) if row[number].rounds else float("nan") for row in rows]
        panel.bar(places, heights, width, label=target, zorder=2)
    panel.set_title(title)
    panel.set_yscale("log")
    panel.set_xticks(range(len(workloads)), [workload.name for workload in workloads])
    panel.grid(axis="y", which="both", linewidth=0.3, zorder=1)
