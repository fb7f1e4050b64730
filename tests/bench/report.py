"""What came of it: a table on the terminal, the same as Markdown, all of it as JSON, a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.rounds import Sample
from tests.bench.targets import Target
from tests.bench.workloads import Workload

REFERENCES = ("twemproxy", "envoy", "direct")
OURS = "ackgate"

# Above it, what the others do shows in the ratios of short rounds.
_BUSY_SHARE = 0.1
_MANY_CLIENTS = 1000
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


def make_report(
    targets: Sequence[Target], workloads: Sequence[Workload], samples: list[Sample], left_out: Sequence[str]
) -> Report:
    """Sum up the samples of one run."""
    rows = [_row(workload, target, samples) for workload in workloads for target in targets]
    return Report(_about(targets, samples, left_out), list(workloads), rows, samples)


def _row(workload: Workload, target: Target, samples: list[Sample]) -> Row:
    mine = [sample for sample in samples if (sample.workload, sample.target) == (workload.name, target.name)]
    good = [sample for sample in mine if not sample.failure]
    failures = tuple(dict.fromkeys(sample.failure for sample in mine if sample.failure))
    doubts = tuple(dict.fromkeys(sample.doubt for sample in mine if sample.doubt))
    if not good:
        return Row(workload.name, target.name, 0, failures, doubts)

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
        silent_clients=good[0].silent_clients,
        bytes_per_client=median(memories) if memories else None,
        cpu_ratios=_ratios(good, samples, lambda sample: sample.cpu_us),
        throughput_ratios=_ratios(good, samples, lambda sample: sample.per_second),
    )


def _ratios(good: list[Sample], samples: list[Sample], read: Callable[[Sample], float]) -> dict[str, Ratio]:
    ratios: dict[str, Ratio] = {}
    for reference in REFERENCES:
        by_round = {
            sample.round: read(sample)
            for sample in samples
            if (sample.workload, sample.target) == (good[0].workload, reference) and not sample.failure
        }
        quotients = [read(sample) / by_round[sample.round] for sample in good if by_round.get(sample.round)]
        if quotients:
            ratios[reference] = Ratio(median(quotients), min(quotients), max(quotients))
    return ratios


def _about(targets: Sequence[Target], samples: list[Sample], left_out: Sequence[str]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPUs, {_cpu_model()}, Linux {platform.release()}",
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "versions": {target.name: target.version for target in targets},
        "left_out": list(left_out),
        "one_shard_targets": [target.name for target in targets if target.one_shard],
        "rounds": max(sample.round for sample in samples),
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


def _cells(row: Row) -> list[str]:
    if not row.rounds:
        return [row.target, "failed", *[""] * (len(HEADINGS) - 3)]
    return [
        row.target + ("*" if row.failures or row.doubts else ""),
        f"{row.per_second:,.0f}",
        f"{row.cpu_us:.2f}",
        f"{row.shards_cpu_us:.2f}" if row.shards_cpu_us else "",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.resident_bytes / _MB:.0f}",
        *(_against(row, reference) for reference in REFERENCES),
    ]


def _against(row: Row, reference: str) -> str:
    ratio = (row.cpu_ratios or {}).get(reference)
    return "" if ratio is None or row.target == reference else str(ratio)


def show(report: Report, console: Console) -> None:
    """Print the tables and what has to be known to read them."""
    table = Table(*HEADINGS, title="medians of the rounds; ratios round by round: median (least-most)")
    for column in table.columns[2:]:
        column.justify = "right"
    for workload in report.workloads:
        table.add_section()
        for number, row in enumerate(row for row in report.rows if row.workload == workload.name):
            table.add_row(workload.name if number == 0 else "", *_cells(row), style=_style(row))
    console.print(table)
    if aims := _aims(report):
        console.print(_aims_table(aims))
    for line in _notes(report):
        console.print(line, highlight=False)


def _style(row: Row) -> str:
    if not row.rounds:
        return "red"
    return "bold" if row.target == OURS else ""


@dataclass(frozen=True)
class Aim:
    """A figure of ours next to what it should be at most."""

    workload: str
    what: str
    figure: str
    value: float
    limit: float

    @property
    def verdict(self) -> str:
        return "reached" if self.value <= self.limit else f"missed by {self.value / self.limit - 1:.0%}"


def _aims(report: Report) -> list[Aim]:
    aims: list[Aim] = []
    for workload in report.workloads:
        row = next((row for row in report.rows if (row.workload, row.target) == (workload.name, OURS)), None)
        if row is None or not row.rounds:
            continue
        for reference, limit in workload.goals:
            if ratio := (row.cpu_ratios or {}).get(reference):
                aims.append(Aim(workload.name, f"CPU / {reference}", str(ratio), ratio.median, limit))
        if workload.goal_kb_per_client is not None and row.bytes_per_client is not None:
            kb = row.bytes_per_client / _KB
            aims.append(Aim(workload.name, "KB a silent client", f"{kb:.1f}", kb, workload.goal_kb_per_client))
    return aims


def _aims_table(aims: list[Aim]) -> Table:
    table = Table("workload", "what", "figure", "aim", "", title=f"what {OURS} is to reach")
    for aim in aims:
        style = "green" if aim.verdict == "reached" else "yellow"
        table.add_row(aim.workload, aim.what, aim.figure, f"<= {aim.limit:g}", aim.verdict, style=style)
    return table


def _notes(report: Report) -> list[str]:
    about = report.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['date']}; {about['machine']}; Python {about['python']}",
        versions,
        f"{about['rounds']} rounds; other programs had {about['others_share']:.0%} of the machine (median)",
    ]
    if about["others_share"] > _BUSY_SHARE:
        lines.append(
            "that is much: run it again on a quieter machine before believing a difference of less than a third"
        )
    lines += [
        f"{workload.name}: connecting is part of it, once for {_commands_per_client(report, workload):.0f} commands"
        for workload in report.workloads
        if workload.clients >= _MANY_CLIENTS
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
        lines += [f"* {row.workload} {row.target}: {why}" for why in (*row.failures, *row.doubts)]
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
    lines = [_markdown_row(HEADINGS), _markdown_row(["---", "---", *["---:"] * (len(HEADINGS) - 2)])]
    lines += [_markdown_row([row.workload, *_cells(row)]) for row in report.rows]
    if aims := _aims(report):
        lines += ["", _markdown_row(["workload", "what", "figure", "aim", ""]), _markdown_row(["---"] * 5)]
        lines += [_markdown_row([aim.workload, aim.what, aim.figure, f"<= {aim.limit:g}", aim.verdict]) for aim in aims]
    lines += ["", *(f"- {line}" for line in _notes(report))]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(report: Report, path: Path) -> bool:
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    targets = list(report.about["versions"])
    figure, panels = plt.subplots(2, 1, figsize=(4 + 1.1 * len(report.workloads), 9), layout="constrained")
    reads: list[tuple[str, Callable[[Row], float]]] = [
        ("CPU of the target, us per command (less is better)", lambda row: row.cpu_us),
        ("commands per second (more is better)", lambda row: row.per_second),
    ]
    width = 0.8 / len(targets)
    for panel, (title, read) in zip(panels, reads, strict=True):
        for number, target in enumerate(targets):
            rows = [row for row in report.rows if row.target == target]
            places = [place + (number - (len(targets) - 1) / 2) * width for place in range(len(rows))]
            # Nothing is drawn for a failed one: a logarithmic axis has no zero.
            heights = [read(row) if row.rounds else float("nan") for row in rows]
            panel.bar(places, heights, width, label=target, zorder=2)
        panel.set_title(title)
        panel.set_yscale("log")
        panel.set_xticks(range(len(report.workloads)), [workload.name for workload in report.workloads])
        panel.grid(axis="y", which="both", linewidth=0.3, zorder=1)
    panels[0].legend(ncols=len(targets))
    figure.supxlabel(f"{report.about['date'][:10]}, {report.about['machine']}", fontsize="small")
    figure.savefig(path)
    plt.close(figure)
    return True
