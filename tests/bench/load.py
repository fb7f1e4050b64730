"""Making a target work: redis-benchmark where it can, the mix of ``tests.bench.mixed`` where it cannot."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench import acks
from tests.bench.errors import BenchError
from tests.bench.targets import ROOT
from tests.bench.workloads import Workload

_PATIENCE_S = 60
_WARM_UP_S = 0.15
_WARM_UP_TURNS = 20


@dataclass(frozen=True)
class Load:
    """What the clients saw."""

    commands: int
    per_second: float
    p50_ms: float
    p99_ms: float


class Loader:
    """Loads a target for about so many seconds, by what it could do the last time.

    ``least``: commands of each client at the least. With fewer, connecting would be a good part of what is measured.
    """

    def __init__(self, least: int = 20) -> None:
        if shutil.which("redis-benchmark") is None:
            raise BenchError("redis-benchmark is not installed: apt install redis-tools")
        self._least = least
        self._per_second: dict[tuple[str, int], float] = {}

    def run(self, workload: Workload, port: int, seconds: float) -> Load:
        """Raises ``BenchError`` when a client got an error, or no answer for a minute."""
        if not workload.command:
            return _run(_mixed_argv(workload, port, seconds), _read_mixed)
        if (workload.name, port) not in self._per_second:
            self.warm_up(workload, port)
        wanted = int(self._per_second[workload.name, port] * seconds)
        return self._run_counted(workload, port, max(wanted, workload.clients * self._least))

    def warm_up(self, workload: Workload, port: int) -> None:
        """A short load, so that the first measured one does not pay for what happens once. Raises as ``run``."""
        if workload.acks is not None:
            return  # its clients warm up themselves
        if not workload.command:
            self.run(workload, port, _WARM_UP_S)
            return
        self._run_counted(workload, port, workload.clients * workload.pipeline * _WARM_UP_TURNS)

    def _run_counted(self, workload: Workload, port: int, wanted: int) -> Load:
        # Whole pipelines for every client: what redis-benchmark sends then is exactly what it was asked for.
        unit = workload.clients * workload.pipeline
        count = max(2, -(-wanted // unit)) * unit
        load = _run(_counted_argv(workload, port, count), lambda text: _read_counted(text, count))
        self._per_second[workload.name, port] = load.per_second
        return load


def endless_argv(workload: Workload, port: int, seconds: float) -> list[str]:
    """Return a program that loads a port for at least so many seconds, and is to be killed then."""
    if workload.acks is not None:
        return acks.argv(workload, port, seconds)
    if not workload.command:
        return _mixed_argv(workload, port, seconds)
    return _counted_argv(workload, port, 1_000_000_000)


@contextmanager
def loading(workload: Workload, port: int, seconds: float) -> Iterator[None]:
    """The load runs while the block does, which is not to take longer than ``seconds``. Raises ``BenchError``."""
    argv = endless_argv(workload, port, seconds)
    pipe, nothing, both = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
    with subprocess.Popen(argv, cwd=ROOT, stdin=nothing, stdout=pipe, stderr=both, text=True) as process:
        try:
            yield
            if process.poll() is not None:
                assert process.stdout is not None
                raise BenchError(f"the load ended too soon: {process.stdout.read().strip()[-200:]}")
        finally:
            process.kill()


def _counted_argv(workload: Workload, port: int, count: int) -> list[str]:
    options = {
        "-h": "127.0.0.1",
        "-p": port,
        "-c": workload.clients,
        "-P": workload.pipeline,
        "-n": count,
        "-r": workload.keys,
        "--precision": 3,
    }
    flat = [str(word) for pair in options.items() for word in pair]
    return ["redis-benchmark", *flat, "--csv", *workload.command]


def _mixed_argv(workload: Workload, port: int, seconds: float) -> list[str]:
    return [sys.executable, "-m", "tests.bench.mixed", str(port), str(workload.clients), str(seconds)]


def _run(argv: list[str], read: Callable[[str], Load]) -> Load:
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"no end of the load within {_PATIENCE_S} s") from None
    try:
        return read(done.stdout)
    except (ValueError, KeyError, StopIteration):
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip() and '"p99_' not in line]
        raise BenchError(f"the load failed: {words[-1] if words else 'it said nothing'}") from None


def _read_counted(text: str, commands: int) -> Load:
    # An error reply ends redis-benchmark with "Error from server: ..." and without a row.
    lines = text.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith('"test"'))
    row = next(csv.DictReader(lines[header:]))
    return Load(commands, float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"]))


def _read_mixed(text: str) -> Load:
    return Load(**json.loads(text))
