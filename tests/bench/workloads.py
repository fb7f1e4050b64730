"""What the targets are asked to do: data only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tests.bench.errors import BenchError

KEYS = 100_000
"""Keys ``key:000000000000`` and up, all of them loaded everywhere, so that every read hits."""

VALUE_BYTES = 64
BIG_KEYS = 100
"""Keys ``big:000000000000`` and up. Few, so that three shards hold them in tens of megabytes."""

BIG_BYTES = 64 * 1024

Kind = Literal["plain", "acks", "durable"]
"""Plain commands; pairs of a write and its acknowledgment; plain writes, whose replies a policy may hold back."""

# redis-benchmark writes a random number of twelve digits in place of this, another one at each place and time.
_ANY = "__rand_int__"


@dataclass(frozen=True)
class Acks:
    """SET and this command in one packet, and both replies waited for: a pair."""

    command: tuple[str, ...]
    reply: str
    """The only right one."""
    stopped: Literal["", "one", "all"] = ""
    """Whose replica is stopped meanwhile: of the shard that is written to, or of all."""
    timeout_ms: int = 0
    """No pair may be answered earlier."""
    least_s: float = 0.0
    """How long it has to be measured at the least, for there to be enough to see."""


@dataclass(frozen=True)
class AckGoals:
    """What a pair through Ackgate is to reach, with one shard and with three."""

    per_second: float | None = None
    """At least, in multiples of direct."""
    p50_ms: float | None = None
    p50_over_direct_ms: float | None = None
    p99_ms: float | None = None
    late_ms: float | None = None
    """The median, behind the timeout."""
    growth: float | None = None
    """Of the memory while it runs, as a share of what it is in the first half."""


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
    acks: Acks | None = None
    """Not plain commands, but writes and their acknowledgments, for ``tests.bench.acks``."""
    ack_goals: AckGoals = AckGoals()
    durable: bool = False
    """On targets that differ in their durability policy only."""
    durable_goals: tuple[tuple[str, float], ...] = ()
    """The most that a command may cost a target in CPU, in multiples of what it costs where no policy holds it."""

    @property
    def kind(self) -> Kind:
        """What its targets are chosen by, and its table."""
        if self.acks is not None:
            return "acks"
        return "durable" if self.durable else "plain"


_GET = ("GET", f"key:{_ANY}")
_SET = ("SET", f"key:{_ANY}", "x" * VALUE_BYTES)


def _goals(twemproxy: float, envoy: float) -> tuple[tuple[Literal["twemproxy", "envoy"], float], ...]:
    return ("twemproxy", twemproxy), ("envoy", envoy)


_WAIT = Acks(("WAIT", "1", "0"), ":1\r\n")
_WAITAOF = Acks(("WAITAOF", "1", "1", "0"), "*2\r\n:1\r\n:1\r\n")
# The server alone answers a lone client's WAITAOF once a second, and two thousand clients' WAIT in waves as long.
_SLOW_S = 2.0
_SLOWEST_S = 3.0


def _pairs(name: str, clients: int, acks: Acks, goals: AckGoals) -> Workload:
    summary = f"SET and {' '.join(acks.command)} in one packet, {clients} clients"
    if acks.stopped:
        summary += f", the replica of {'the' if acks.stopped == 'one' else 'every'} shard stopped"
    return Workload(name, summary, clients, acks=acks, ack_goals=goals)


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
    _pairs("wait-1", 1, _WAIT, AckGoals(p50_over_direct_ms=0.7)),
    _pairs("wait-50", 50, _WAIT, AckGoals(per_second=0.4)),
    _pairs("wait-500", 500, _WAIT, AckGoals(per_second=0.4)),
    _pairs("wait-2000", 2000, replace(_WAIT, least_s=_SLOW_S), AckGoals(per_second=1.0)),
    _pairs("waitaof-1", 1, replace(_WAITAOF, least_s=_SLOWEST_S), AckGoals(p50_ms=10)),
    _pairs("waitaof-50", 50, _WAITAOF, AckGoals(per_second=0.35, p99_ms=50)),
    _pairs("waitaof-500", 500, _WAITAOF, AckGoals(per_second=0.35)),
    _pairs("waitaof-2000", 2000, replace(_WAITAOF, least_s=_SLOW_S), AckGoals(per_second=0.35)),
    _pairs(
        "stopped-2000",
        2000,
        Acks(("WAIT", "1", "100"), ":0\r\n", stopped="all", timeout_ms=100, least_s=_SLOW_S),
        AckGoals(p99_ms=150, growth=0.05),
    ),
    _pairs(
        "deadline-idle",
        1,
        # More replicas than there are.
        Acks(("WAIT", "2", "100"), ":1\r\n", timeout_ms=100, least_s=_SLOW_S),
        AckGoals(late_ms=5),
    ),
    _pairs(
        "deadline-stopped",
        1,
        Acks(("WAIT", "1", "100"), ":0\r\n", stopped="one", timeout_ms=100, least_s=_SLOW_S),
        AckGoals(late_ms=5),
    ),
    Workload(
        "durable-500",
        "SET of 64 bytes, 500 clients, held back by policy",
        500,
        _SET,
        durable=True,
        durable_goals=(("ackgate-replicas", 1.5),),
    ),
)


def choose(names: tuple[str, ...]) -> list[Workload]:
    """Return the named workloads, all of them if none is named. Raises ``BenchError`` for a name there is not."""
    known = {workload.name.lower(): workload for workload in WORKLOADS}
    for name in names:
        if name.lower() not in known:
            raise BenchError(f"no workload {name}: choose of {', '.join(workload.name for workload in WORKLOADS)}")
    return [known[name.lower()] for name in names] or list(WORKLOADS)
