"""One sample of writes and their acknowledgments: ``tests.bench.pairs`` at work, and replicas stopped meanwhile."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.bench.errors import BenchError
from tests.bench.measure import Cost, Meter, resident_bytes
from tests.bench.samples import Sample
from tests.bench.targets import ROOT, Target, info_field
from tests.bench.wire import connected
from tests.bench.workloads import Acks, Workload

_PATIENCE_S = 30
_LOOK_S = 0.1
_STEP_S = 0.02
_STOPPED_KEY = "key:000000000000"
"""What clients write where the replica of one shard is stopped."""


def measure(workload: Workload, target: Target, number: int, seconds: float) -> Sample:
    """Return the figures of about so many seconds. Raises ``BenchError``, ``OSError``."""
    assert workload.acks is not None
    with _stopped(target, workload.acks), _clients(workload, target.port, seconds) as clients:
        clients.hear("connected")
        before = resident_bytes(target.pid)
        clients.go()
        clients.hear("measuring")
        meter = Meter(target.pid, target.shard_pids())
        memory = _Memory(target.pid)
        seen = json.loads(clients.line(memory.look))
        cost = meter.stop(seen["load_s"])
        if seen["least_ms"] < workload.acks.timeout_ms:
            raise BenchError(f"a WAIT {workload.acks.timeout_ms} ms long was answered after {seen['least_ms']:.3f} ms")
        return Sample(
            workload=workload.name,
            target=target.name,
            round=number,
            commands=seen["pairs"],
            per_second=seen["per_second"],
            cpu_us=cost.target_ns / 1000 / seen["pairs"],
            shards_cpu_us=cost.shards_ns / 1000 / seen["pairs"],
            p50_ms=seen["p50_ms"],
            p99_ms=seen["p99_ms"],
            resident_bytes=resident_bytes(target.pid),
            others_share=cost.others_share,
            resident_before=before,
            resident_growth=memory.growth(),
            load_share=seen["load_s"] / seen["elapsed_s"],
            doubt=_doubt(cost),
        )


def _doubt(cost: Cost) -> str:
    return "a thread ended, and its CPU is missing" if cost.threads_lost else ""


class _Memory:
    """What a process has in RAM as time passes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looks: list[int] = []

    def look(self) -> None:
        self._looks.append(resident_bytes(self._pid))

    def growth(self) -> float:
        """Return the most of the second half over the most of the first, less one."""
        half = len(self._looks) // 2
        return max(self._looks[half:]) / max(self._looks[:half]) - 1 if half else 0.0


class _Clients:
    """The running program, and what it says line by line."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._patience_s = _PATIENCE_S + seconds
        self._said = b""

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the next line that is not heard tells why
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def hear(self, word: str) -> None:
        """Wait until it says so. Raises ``BenchError``."""
        if (line := self.line()) != word:
            raise BenchError(f"the load said {line!r} instead of {word!r}")

    def line(self, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Return the next line, calling ``meanwhile`` as time passes. Raises ``BenchError`` when there is none."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self._patience_s
        while b"\n" not in self._said:
            if time.monotonic() > deadline:
                raise BenchError(f"no end of the load within {self._patience_s:.0f} s")
            if not select.select([descriptor], [], [], _LOOK_S)[0]:
                meanwhile()
                continue
            if not (data := os.read(descriptor, 1 << 16)):
                raise BenchError(f"the load failed: {self._last_words()}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def argv(workload: Workload, port: int, seconds: float) -> list[str]:
    """Return the program that makes a target work for so many seconds once it is told to begin."""
    assert workload.acks is not None
    settings = {
        "port": port,
        "clients": workload.clients,
        "seconds": seconds,
        "command": workload.acks.command,
        "reply": workload.acks.reply,
        "key": _STOPPED_KEY if workload.acks.stopped == "one" else "",
    }
    return [sys.executable, "-m", "tests.bench.pairs", json.dumps(settings)]


@contextmanager
def _clients(workload: Workload, port: int, seconds: float) -> Iterator[_Clients]:
    pipe = subprocess.PIPE
    command = argv(workload, port, seconds)
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield _Clients(process, seconds)
        finally:
            process.kill()


@dataclass(frozen=True)
class _Replica:
    port: int
    primary_port: int
    pid: int


@contextmanager
def _stopped(target: Target, acks: Acks) -> Iterator[None]:
    """The replicas are stopped while the block runs; behind it they have caught up. Raises ``BenchError``."""
    if not acks.stopped:
        yield
        return
    replicas = [found for port in target.shard_ports if (found := _replica(port)) is not None]
    if acks.stopped == "one":
        replicas = [replica for replica in replicas if _serves(replica.primary_port, _STOPPED_KEY)]
    if not replicas:
        raise BenchError(f"{target.name} has no replica to stop")
    try:
        for replica in replicas:
            os.kill(replica.pid, signal.SIGSTOP)
        yield
    finally:
        for replica in replicas:
            os.kill(replica.pid, signal.SIGCONT)
        for replica in replicas:
            _catch_up(replica)


def _replica(port: int) -> _Replica | None:
    """Return the node as a replica; None when it is none."""
    if info_field(port, "replication", b"role") != b"slave":
        return None
    primary_port, pid = info_field(port, "replication", b"master_port"), info_field(port, "server", b"process_id")
    return _Replica(port, int(primary_port), int(pid))


def _serves(port: int, key: str) -> bool:
    with connected(port) as connection:
        try:
            connection.ask("GET", key)
        except BenchError:  # MOVED
            return False
    return True


def _catch_up(replica: _Replica) -> None:
    wanted = int(info_field(replica.primary_port, "replication", b"master_repl_offset"))
    deadline = time.monotonic() + _PATIENCE_S
    while int(info_field(replica.port, "replication", b"slave_repl_offset")) < wanted:
        if time.monotonic() > deadline:
            raise BenchError(f"the replica at port {replica.port} did not catch up within {_PATIENCE_S} s")
        time.sleep(_STEP_S)
