"""``python -m tests.bench.counting``: what the metrics cost: CPU of a command with them, over that without them.

The same Ackgate twice before the same shards, in turn, a round at a time: one as it is, whose metrics are scraped as
often as by the Prometheus in ``deploy``; one with ``admin.command_metrics: false``, that nobody scrapes. What is
compared is the median of the rounds' ratios: what else the machine does hits both of a round alike.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from tests.bench.errors import BenchError
from tests.bench.fleet import UNCOUNTED, running
from tests.bench.rounds import measure_all
from tests.bench.samples import Sample
from tests.bench.targets import Target
from tests.bench.workloads import Workload, choose

COUNTED = "ackgate"
WORKLOADS = ("A-get", "A-set", "B-get", "B-set")
MOST_PLAIN, MOST_PIPELINED = 1.10, 1.20
SCRAPE_S = 5.0
_LEAST = 100


class Scraper(threading.Thread):
    """Scrapes ``target`` while there is one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.target: Target | None = None
        self.scrapes = 0
        self.bytes = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(SCRAPE_S):
            target = self.target
            if target is not None:
                with suppress(OSError):
                    with urllib.request.urlopen(f"http://127.0.0.1:{target.admin_port}/metrics", timeout=5) as answer:
                        self.bytes = len(answer.read())
                    self.scrapes += 1

    def end(self) -> None:
        self._over.set()
        self.join()


@click.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=9, show_default=True, help="How often each is measured.")
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=2.0, show_default=True, help="How long each time.")
def main(rounds: int, seconds: float) -> None:
    """Measure what metrics cost; the exit status is 1 when it is more than 10 % unpipelined or 20 % pipelined."""
    workloads = choose(WORKLOADS)
    scraper = Scraper()

    def tell(workload: Workload, target: Target, number: int, sample: Sample | None) -> None:
        scraper.target = target if sample is None and target.name == COUNTED else None
        if sample is not None and sample.failure:
            raise BenchError(f"{workload.name}: {sample.failure}")

    with (
        tempfile.TemporaryDirectory(prefix="ackgate-bench-") as folder,
        running([COUNTED, UNCOUNTED], Path(folder), lambda line: click.echo(line, err=True), "plain") as targets,
    ):
        scraper.start()
        try:
            samples = measure_all(targets, workloads, rounds, seconds, _LEAST, tell)
        finally:
            scraper.end()
    table = Table("workload", "CPU/command with, us", "without, us", "ratio: median", "least", "most", "goal")
    failed = False
    for workload in workloads:
        failed |= _row(table, workload, samples)
    Console(width=110).print(table)
    click.echo(f"{rounds} rounds of {seconds:g} s; {scraper.scrapes} scrapes, the last of {scraper.bytes} bytes")
    sys.exit(1 if failed else 0)


def _row(table: Table, workload: Workload, samples: list[Sample]) -> bool:
    """Whether it costs more than it may."""
    by_target = {
        name: {each.round: each.cpu_us for each in samples if (each.workload, each.target) == (workload.name, name)}
        for name in (COUNTED, UNCOUNTED)
    }
    with_them, without = by_target[COUNTED], by_target[UNCOUNTED]
    ratios = [with_them[number] / without[number] for number in with_them.keys() & without.keys()]
    most = MOST_PIPELINED if workload.pipeline > 1 else MOST_PLAIN
    table.add_row(
        workload.name,
        f"{median(with_them.values()):.2f}",
        f"{median(without.values()):.2f}",
        f"{median(ratios):.3f}",
        f"{min(ratios):.3f}",
        f"{max(ratios):.3f}",
        f"<= {most:.2f}",
    )
    return median(ratios) > most


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
