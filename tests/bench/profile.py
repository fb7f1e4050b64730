"""Where Ackgate spends its time under a load: a flame graph, and lists of rooms, functions and lines by their share."""

from __future__ import annotations

import linecache
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.errors import BenchError
from tests.bench.load import Loader, loading
from tests.bench.measure import spent, thread_times, thread_waits
from tests.bench.targets import ROOT, Target
from tests.bench.workloads import Workload

_RATE_HZ = 250
_ROWS = 25
_AHEAD = -20
_MUCH_WAITING = 0.2
# "function (/full/path/of/file.py:123)"; frames of native code have no line.
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>.*?)(?::(?P<line>\d+))?\)")


@dataclass(frozen=True)
class Frame:
    """A place in the code. ``file`` is relative to the project, or begins with the package it belongs to."""

    function: str
    file: str
    line: int
    path: str

    @property
    def room(self) -> str:
        """What it belongs to: a room of the proxy, or a library."""
        first, *rest = Path(self.file).parts
        return f"{first}/{rest[0]}" if first == "proxy" and rest else first


@dataclass
class Profile:
    """How many samples had each place as their innermost (self), or anywhere in their stack (all)."""

    samples: int
    rooms: Counter[str]
    functions: Counter[tuple[str, str]]
    functions_all: Counter[tuple[str, str]]
    lines: Counter[Frame]
    seconds: float = 0.0
    ran_s: float = 0.0
    """Seconds on a CPU while samples were taken."""
    waited_s: float = 0.0
    """Seconds ready to run and without a CPU: samples of that time show where it was pushed aside."""


def profile(
    target: Target, workload: Workload, seconds: float, folder: Path, *, ahead: bool = False
) -> tuple[Profile, list[Path]]:
    """Sample the target under load, return the shares and the files written. Raises ``BenchError``.

    The sampler goes by the clock. Each send wakes a shard or a client, which then takes the CPU from the sender where
    there are few: that waiting counts as sending. ``ahead``: nobody takes it away; but served at once, events come in
    smaller batches than they do under load. The truth lies between the two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stacks, graph = folder / f"profile-{workload.name}.txt", folder / f"profile-{workload.name}.svg"
    Loader().warm_up(workload, target.port)
    if ahead:
        _put_ahead(target.pid)
    # One after the other: two samplers at a time would halt the process twice as often, and each other.
    with loading(workload, target.port, 4 * seconds + 60):
        times, waits, started = thread_times([target.pid]), thread_waits([target.pid]), time.perf_counter()
        _record(target.pid, seconds, "raw", stacks)
        elapsed = time.perf_counter() - started
        ran_s = spent(times, thread_times([target.pid])) / 1e9
        waited_s = spent(waits, thread_waits([target.pid])) / 1e9
        _record(target.pid, seconds, "flamegraph", graph)
    found = read_profile(stacks.read_text().splitlines())
    return replace(found, seconds=elapsed, ran_s=ran_s, waited_s=waited_s), [stacks, graph]


def _put_ahead(pid: int) -> None:
    """Let a process have a CPU before all others. Raises ``BenchError``."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, _AHEAD)
        # Where the kernel groups processes by their session, the group's place in the queue counts, not the process'.
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(str(_AHEAD))
    except PermissionError:
        raise BenchError("only a superuser may put a process ahead of others: leave --ahead out") from None


def _record(pid: int, seconds: float, form: str, path: Path) -> None:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("py-spy", path=beside)
    if program is None:
        raise BenchError("py-spy is not installed: pip install py-spy")
    options = ["--format", form, "--rate", str(_RATE_HZ), "--duration", str(max(1, round(seconds)))]
    argv = [program, "record", "--pid", str(pid), "--full-filenames", *options, "--output", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr + done.stdout).strip()
        cure = "; run it as root, or set kernel.yama.ptrace_scope to 0" if "ermission" in words else ""
        raise BenchError(f"py-spy failed: {words.splitlines()[-1] if words else 'it said nothing'}{cure}")


def read_profile(lines: Iterable[str]) -> Profile:
    """Sum up collapsed stacks: ``frame;frame;frame count``, outermost first."""
    found = Profile(0, Counter(), Counter(), Counter(), Counter())
    for text in lines:
        stack, _, count_text = text.rpartition(" ")
        count = int(count_text)
        frames = [_frame(part) for part in stack.split(";")]
        innermost = frames[-1]
        found.samples += count
        found.rooms[innermost.room] += count
        found.functions[innermost.function, innermost.file] += count
        found.lines[innermost] += count
        for function in {(frame.function, frame.file) for frame in frames}:
            found.functions_all[function] += count
    return found


def _frame(text: str) -> Frame:
    match = _FRAME.fullmatch(text)
    if match is None:
        return Frame(text, "native", 0, "")
    path = match["file"]
    return Frame(match["function"], _short(path), int(match["line"] or 0), path)


def _short(path: str) -> str:
    if path.startswith(f"{ROOT}/"):
        return path.removeprefix(f"{ROOT}/")
    for mark in ("/site-packages/", f"/python{sys.version_info.major}.{sys.version_info.minor}/"):
        if mark in path:
            rest = path.rpartition(mark)[2]
            return rest if mark == "/site-packages/" else f"stdlib/{rest}"
    return path.lstrip("/<").rstrip(">") or "native"


def show(found: Profile, console: Console) -> None:
    """Print the lists, the largest share first."""
    if not found.samples:
        raise BenchError("no samples were taken: the process was idle; give it more --seconds")
    console.print(f"{found.samples} samples; self: the innermost place, all: anywhere in the stack", highlight=False)
    console.print(
        f"it ran for {found.ran_s:.1f} of {found.seconds:.1f} s, and waited {found.waited_s:.1f} s more for a CPU",
        highlight=False,
    )
    if found.waited_s > _MUCH_WAITING * found.ran_s:
        console.print(
            "samples go by the clock: such waiting counts where it happens, mostly in send, which wakes the receiver; "
            "--ahead (as a superuser) takes it out",
            highlight=False,
        )
    rooms = Table("self", "room", title="rooms")
    for room, count in found.rooms.most_common(_ROWS):
        rooms.add_row(_share(count, found), room)
    console.print(rooms)
    functions = Table("self", "all", "function", "file", title="functions")
    for (function, file), count in found.functions.most_common(_ROWS):
        functions.add_row(_share(count, found), _share(found.functions_all[function, file], found), function, file)
    console.print(functions)
    lines = Table("self", "where", "line", title="lines")
    for frame, count in found.lines.most_common(_ROWS):
        source = linecache.getline(frame.path, frame.line).strip()
        lines.add_row(_share(count, found), f"{frame.file}:{frame.line}", Text(source))
    console.print(lines)


def _share(count: int, found: Profile) -> str:
    return f"{count / found.samples:5.1%}"
