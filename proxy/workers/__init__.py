"""Several processes on one port: a parent that serves nobody itself, and workers, each a whole proxy.

What lives here: starting and restarting workers, the private socket between them and their parent, what is asked over
it, and how their figures become one. What may not: what a worker does for its clients (``proxy.server``).

The kernel deals new connections out to the workers (SO_REUSEPORT, by a hash of the addresses). Nothing is shared but
the port: each worker finds the cluster, has lanes and sessions of its own.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count(setting: int | str) -> int:
    """How many workers the setting ``workers`` asks for."""
    return usable_cpus() if setting == "auto" else int(setting)


def usable_cpus() -> int:
    """CPUs that this process may run on, and no more than its container's share of them (cgroup v2, cpu.max)."""
    return max(1, min(len(os.sched_getaffinity(0)), _share()))


def _share() -> int:
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
        return os.cpu_count() or 1
