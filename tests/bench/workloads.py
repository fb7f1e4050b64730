"""What the targets are asked to do: data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.bench.errors import BenchError

KEYS = 100_000
"""Keys ``key:000000000000`` and up, all of them loaded everywhere, so that every read hits."""

VALUE_BYTES = 64
BIG_KEYS = 100
"""Keys ``big:000000000000`` and up. Few, so that three shards hold them in tens of megabytes."""

BIG_BYTES = 64 * 1024

# redis-benchmark writes a random number of twelve digits in place of this, another one at each place and time.
_ANY = "__rand_int__"


@dataclass(frozen=True)
class Workload:
    """One thing to measure."""

    name: str
    summary: str
    clients: int
    command: tuple[str, ...] = ()
    """For redis-benchmark; empty: the mix of ``tests.bench.mixed``."""
    pipeline: int = 1
    keys: int = KEYS
    idle_clients: int = 0
    """Further clients that asked once and are then silent, on a target started afresh: their memory is measured."""
    splits: bool = False
    """A command has keys of several shards: a target with one shard behind it has less to do, and is not comparable."""
    goals: tuple[tuple[Literal["twemproxy", "envoy"], float], ...] = ()
    """The most that a command may cost Ackgate in CPU, in multiples of what it costs the other."""
    goal_kb_per_client: float | None = None
    """The most memory that an idle client may cost Ackgate, in units of 1024 bytes."""


_GET = ("GET", f"key:{_ANY}")
_SET = ("SET", f"key:{_ANY}", "x" * VALUE_BYTES)


def _goals(twemproxy: float, envoy: float) -> tuple[tuple[Literal["twemproxy", "envoy"], float], ...]:
    return ("twemproxy", twemproxy), ("envoy", envoy)


WORKLOADS: tuple[Workload, ...] = (
    Workload("A-set", "SET of 64 bytes, 50 clients", 50, _SET, goals=_goals(1.5, 1.0)),
    Workload("A-get", "GET of 64 bytes, 50 clients", 50, _GET, goals=_goals(1.5, 1.0)),
    Workload("B-set", "SET of 64 bytes, 50 clients, 16 pipelined", 50, _SET, pipeline=16, goals=_goals(0.85, 0.6)),
    Workload("B-get", "GET of 64 bytes, 50 clients, 16 pipelined", 50, _GET, pipeline=16, goals=_goals(0.85, 0.6)),
    Workload("C-get", "GET of 64 bytes, 200 clients", 200, _GET, goals=_goals(1.5, 1.0)),
    Workload("D-get", "GET of 64 bytes, 1000 clients", 1000, _GET, goals=_goals(1.5, 1.0)),
    Workload("E-64k", "GET of 64 KB, 50 clients", 50, ("GET", f"big:{_ANY}"), keys=BIG_KEYS, goals=_goals(1.5, 1.0)),
    Workload(
        "F-mget",
        "MGET of 10 random keys, 50 clients",
        50,
        ("MGET", *[f"key:{_ANY}"] * 10),
        splits=True,
        goals=_goals(2.2, 1.3),
    ),
    Workload("G-1c", "GET of 64 bytes, 1 client", 1, _GET),
    Workload("mixed", "80 % GET, 15 % SET, 5 % MGET of 10, 50 clients", 50, splits=True),
    Workload(
        "idle-10k",
        "GET of 64 bytes, 50 clients beside 9,900 silent ones",
        50,
        _GET,
        idle_clients=9_900,
        goal_kb_per_client=20.0,
    ),
)


def choose(names: tuple[str, ...]) -> list[Workload]:
    """Return the named workloads, all of them if none is named. Raises ``BenchError`` for a name there is not."""
    known = {workload.name.lower(): workload for workload in WORKLOADS}
    for name in names:
        if name.lower() not in known:
            raise BenchError(f"no workload {name}: choose of {', '.join(workload.name for workload in WORKLOADS)}")
    return [known[name.lower()] for name in names] or list(WORKLOADS)
