"""``python -m tests.bench run [WORKLOAD...]`` and ``python -m tests.bench profile WORKLOAD``."""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shard.errors import ShardError
from tests.bench import profile as profiling
from tests.bench import report
from tests.bench.errors import BenchError
from tests.bench.rounds import Sample, measure_all
from tests.bench.targets import NAMES, Target, running
from tests.bench.workloads import WORKLOADS, Workload, choose

RESULTS = Path(__file__).parent / "results"
_WIDTH_OF_TABLES = 160


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _all_descriptors() -> None:
    # Ten thousand clients need as many descriptors, here and in every process started from here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _console() -> Console:
    # A file or a pipe has no width, and rich's 80 columns would break every line of the table.
    return Console(width=None if sys.stdout.isatty() else _WIDTH_OF_TABLES)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Ackgate next to other proxies on this machine."""
    _all_descriptors()
    signal.signal(signal.SIGTERM, _stop)


@main.command()
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--target", "targets", multiple=True, type=click.Choice(NAMES), help="Only this one; may be repeated.")
@click.option("--rounds", type=click.IntRange(1, 100), help="How often each is measured.  [default: 5; quick: 2]")
@click.option("--seconds", type=click.FloatRange(0.1, 60), help="How long each time.  [default: 1; quick: 0.3]")
@click.option("--quick", is_flag=True, help="Less than two minutes, for a first look: few and short rounds.")
def run(
    names: tuple[str, ...], targets: tuple[str, ...], rounds: int | None, seconds: float | None, quick: bool
) -> None:
    """Measure the workloads (all of them if none is named) and write table, JSON and picture to tests/bench/results."""
    workloads = choose(names)
    rounds = rounds or (2 if quick else 5)
    seconds = seconds or (0.3 if quick else 1.0)
    started = time.monotonic()
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ackgate-bench-") as folder, _progress() as progress:

        def hear(line: str) -> None:
            progress.console.print(line, highlight=False)
            if line.startswith("left out"):
                left_out.append(line)

        with running(targets or NAMES, Path(folder), hear) as fleet:
            task = progress.add_task("", total=rounds * len(workloads) * len(fleet))

            def tell(workload: Workload, target: Target, number: int, sample: Sample | None) -> None:
                if sample is None:
                    progress.update(task, description=f"round {number}/{rounds} {workload.name} {target.name}")
                    return
                progress.advance(task)
                if sample.failure:
                    progress.console.print(f"{workload.name} {target.name}: {sample.failure}", highlight=False)

            samples = measure_all(fleet, workloads, rounds, seconds, 30 if quick else 100, tell)
    found = report.make_report(fleet, workloads, samples, left_out)
    console = _console()
    report.show(found, console)
    name = "all" if len(workloads) == len(WORKLOADS) else "-".join(workload.name for workload in workloads)
    written = report.save(found, RESULTS, name)
    console.print(f"{time.monotonic() - started:.0f} s; written: {_names(written)}", highlight=False)


@main.command()
@click.argument("name", metavar="WORKLOAD")
@click.option("--seconds", type=click.FloatRange(1, 600), default=5, show_default=True, help="How long is sampled.")
@click.option("--ahead", is_flag=True, help="Give Ackgate a CPU before all others, so that no waiting for one is seen.")
def profile(name: str, seconds: float, ahead: bool) -> None:
    """Show where Ackgate spends its time under a WORKLOAD: ranked lists, and a flame graph in tests/bench/results."""
    [workload] = choose((name,))
    if workload.idle_clients:
        raise BenchError(f"{workload.name} measures memory: profile A-get instead")
    console = _console()
    with (
        tempfile.TemporaryDirectory(prefix="ackgate-bench-") as folder,
        running(["ackgate"], Path(folder), lambda line: Console(stderr=True).print(line, highlight=False)) as [target],
    ):
        found, written = profiling.profile(target, workload, seconds, RESULTS, ahead=ahead)
    profiling.show(found, console)
    console.print(f"{workload.name}, ackgate {target.version}; written: {_names(written)}", highlight=False)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    # Drawn seldom: the bar runs on the CPUs that are measured.
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=2)


def _names(paths: list[Path]) -> str:
    here = Path.cwd()
    return ", ".join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths)


if __name__ == "__main__":
    try:
        main(prog_name="python -m tests.bench")
    except (BenchError, ShardError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
