"""What processes cost, read from ``/proc``: CPU of all their threads, memory, and what else the machine was busy with.

Some facts about the figures (proc_pid_schedstat in the kernel's scheduler documentation, proc(5)):

* ``/proc/PID/task/TID/schedstat`` begins with the nanoseconds this thread has been on a CPU, in user and kernel mode.
  Interrupts that are served meanwhile count as the thread's, for every target alike.
* The second number is the nanoseconds it was ready to run and waited for a CPU.
* A thread that ended has taken its figure with it. That is noticed and told, never passed over.
* ``/proc/stat`` counts in ticks of 10 ms: good for the share of the machine that others had, not for a command's cost.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Threads = dict[tuple[int, int], int]

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_CPUS = os.cpu_count() or 1


def tree(pid: int) -> list[int]:
    """Return ``pid`` and all its descendants that run now."""
    found = [pid]
    for parent in found:
        found.extend(_children(parent))
    return found


def _children(pid: int) -> Iterator[int]:
    for task in _tasks(pid):
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:
            continue


def _tasks(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def thread_times(pids: Iterable[int]) -> Threads:
    """Return nanoseconds on CPU by (process, thread) of the processes and all that descends from them."""
    return _thread_figures(pids, 0)


def thread_waits(pids: Iterable[int]) -> Threads:
    """Return, like ``thread_times``, the nanoseconds that threads were ready to run and had no CPU."""
    return _thread_figures(pids, 1)


def _thread_figures(pids: Iterable[int], field: int) -> Threads:
    times: Threads = {}
    for pid in {member for root in pids for member in tree(root)}:
        for task in _tasks(pid):
            try:
                times[pid, int(task.name)] = int((task / "schedstat").read_text().split()[field])
            except (OSError, IndexError):
                continue
    return times


def spent(before: Threads, after: Threads) -> int:
    """Return nanoseconds of CPU between two readings; threads that came in between count from their start."""
    return sum(time_ns - before.get(thread, 0) for thread, time_ns in after.items())


def resident_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants that is in RAM, in bytes."""
    return sum(_resident(member) for member in tree(pid))


def _resident(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


@dataclass(frozen=True)
class Cost:
    """What a stretch of time cost."""

    target_ns: int
    shards_ns: int
    others_share: float
    """Part of the machine that neither target, shards nor load had: other programs, other guests of the host."""
    threads_lost: bool
    """A thread of the target ended meanwhile: ``target_ns`` is too small."""


class Meter:
    """Reads everything at its making and again at ``stop``."""

    def __init__(self, target: int, shards: Iterable[int]) -> None:
        self._target = target
        self._shards = [pid for pid in shards if pid != target]
        self._target_before = thread_times([target])
        self._shards_before = thread_times(self._shards)
        self._machine_before = _machine_busy_s()
        self._load_before = _own_s()
        self._started = time.perf_counter()

    def stop(self, load_s: float = 0.0) -> Cost:
        """Read again and return the differences. ``load_s``: seconds of CPU of a load that has not ended."""
        elapsed = time.perf_counter() - self._started
        target_after = thread_times([self._target])
        target = spent(self._target_before, target_after)
        shards = spent(self._shards_before, thread_times(self._shards))
        ours = (target + shards) / 1e9 + load_s + _own_s() - self._load_before
        others = _machine_busy_s() - self._machine_before - ours
        return Cost(
            target_ns=target,
            shards_ns=shards,
            others_share=max(0.0, others / (elapsed * _CPUS)),
            threads_lost=not self._target_before.keys() <= target_after.keys(),
        )


def _own_s() -> float:
    """Return seconds of CPU of this process and of its children that have ended: the load."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _machine_busy_s() -> float:
    # user nice system idle iowait irq softirq steal; "steal" is what the host gave to other guests.
    fields = list(map(int, (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) * _TICK_S
