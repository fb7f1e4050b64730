"""``python -m tests.bench run [WORKLOAD...]`` and ``python -m tests.bench profile WORKLOAD``."""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shard.errors import ShardError
from tests.bench import pages, report, tables
from tests.bench import profile as profiling
from tests.bench.errors import BenchError
from tests.bench.fleet import NAMES, running
from tests.bench.rounds import measure_all
from tests.bench.samples import Sample
from tests.bench.targets import Target
from tests.bench.workloads import WORKLOADS, Kind, Workload, choose

RESULTS = Path(__file__).parent / "results"
_WIDTH_OF_TABLES = 160
_TARGETS = tuple(dict.fromkeys(name for names in NAMES.values() for name in names))

_PROFILED: Mapping[Kind, str] = {"plain": "ackgate", "acks": "ackgate-3", "durable": "ackgate-replicas"}


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
@click.option("--target", "targets", multiple=True, type=click.Choice(_TARGETS), help="Only this one; may be repeated.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    help="How often each is measured.  [default: 5, acknowledged writes 3; quick: 2, 1]",
)
@click.option("--seconds", type=click.FloatRange(0.1, 60), help="How long each time.  [default: 1; quick: 0.3]")
@click.option("--quick", is_flag=True, help="About three minutes, for a first look: few and short rounds.")
def run(
    names: tuple[str, ...], targets: tuple[str, ...], rounds: int | None, seconds: float | None, quick: bool
) -> None:
    """Measure the workloads (all of them if none is named) and write table, JSON and picture to tests/bench/results.

    The exit status is 1 when anything could not be measured.
    """
    workloads = choose(names)
    seconds = seconds or (0.3 if quick else 1.0)
    started = time.monotonic()
    left_out: list[str] = []
    parts: list[report.Part] = []
    with _progress() as progress:

        def hear(line: str) -> None:
            progress.console.print(line, highlight=False)
            if line.startswith("left out"):
                left_out.append(line)

        for chosen, fleet_names in _parts(workloads, targets):
            usual = 2 if quick else 5
            # A sample of acknowledged writes takes longer.
            turns = rounds or (usual if chosen[0].kind == "plain" else (usual + 1) // 2)
            part = _measure(chosen, fleet_names, turns, seconds, quick, progress, hear)
            parts.append(part)
            if part.interrupted:
                break
    found = report.make_report(parts, left_out)
    console = _console()
    tables.show(found, console)
    name = "all" if len(workloads) == len(WORKLOADS) else "-".join(workload.name for workload in workloads)
    written = pages.save(found, RESULTS, name)
    console.print(f"{time.monotonic() - started:.0f} s; written: {_names(written)}", highlight=False)
    if found.failed:
        sys.exit(1)


def _parts(workloads: Sequence[Workload], targets: Sequence[str]) -> Iterator[tuple[list[Workload], list[str]]]:
    """The workloads of each kind, with their targets. Raises ``BenchError`` when there is none for any."""
    found = False
    for kind, all_names in NAMES.items():
        chosen = [workload for workload in workloads if workload.kind == kind]
        names = [name for name in all_names if name in targets or not targets]
        if chosen and names:
            found = True
            yield chosen, names
    if not found:
        raise BenchError(f"{', '.join(targets)} cannot be measured under {workloads[0].name}")


def _measure(
    workloads: list[Workload],
    names: list[str],
    rounds: int,
    seconds: float,
    quick: bool,
    progress: Progress,
    hear: Callable[[str], None],
) -> report.Part:
    with (
        tempfile.TemporaryDirectory(prefix="ackgate-bench-") as folder,
        running(names, Path(folder), hear, workloads[0].kind) as fleet,
    ):
        task = progress.add_task("", total=rounds * len(workloads) * len(fleet))

        def tell(workload: Workload, target: Target, number: int, sample: Sample | None) -> None:
            if sample is None:
                progress.update(task, description=f"round {number}/{rounds} {workload.name} {target.name}")
                return
            progress.advance(task)
            if sample.failure:
                progress.console.print(f"failed: {workload.name} {target.name}: {sample.failure}", highlight=False)

        samples = measure_all(fleet, workloads, rounds, seconds, 30 if quick else 100, tell)
        interrupted = len(samples) < rounds * len(workloads) * len(fleet)
        return report.Part(fleet, workloads, samples, interrupted)


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
    name = _PROFILED[workload.kind]

    def tell(line: str) -> None:
        Console(stderr=True).print(line, highlight=False)

    with (
        tempfile.TemporaryDirectory(prefix="ackgate-bench-") as folder,
        running([name], Path(folder), tell, workload.kind) as [target],
    ):
        if target.failure:
            raise BenchError(target.failure)
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
