"""A run on disk: the tables as Markdown, all of it as JSON, a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.report import Report, Row
from tests.bench.tables import aims, failures, notes, tables
from tests.bench.workloads import Workload


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
    for _, headings, workloads, cells in tables(report):
        lines += [_markdown_row(headings), _markdown_row(["---", "---", *["---:"] * (len(headings) - 2)])]
        lines += [_markdown_row([row.workload, *cells(row)]) for each in workloads for row in report.rows_of(each)]
        lines.append("")
    if reached := aims(report):
        lines += [_markdown_row(["workload", "what", "figure", "aim", ""]), _markdown_row(["---"] * 5)]
        lines += [_markdown_row([aim.workload, aim.what, aim.figure, aim.wanted, aim.verdict]) for aim in reached]
    lines += ["", *(f"- {line}" for line in (*notes(report), *failures(report)))]
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

    groups = [workloads for _, _, workloads, _ in tables(report)]
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
