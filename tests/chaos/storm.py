"""The storm: clients write and wait while nodes break, and in the end everything acknowledged is read back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.chaos.clients import Client, HeldClient, Ledger, NaiveClient, ProxyClient
from tests.chaos.faults import BUSY_ENOUGH, Faults
from tests.harness import PATIENCE_S, Up, until
from tests.system.nodes import configured, metric
from tests.system.wire import Wire

CLIENTS = 16
BUSY = 500  # writes acknowledged a second before a primary is killed; some kills have their replica stopped first
READ_AT_ONCE = 500
LOOK_S = 0.05  # between two looks of naive fan-out at the topology

DURABILITY = """
proxy:
  durability:
    - {prefix: "held:", replicas: 1, timeout: 700ms}
    - {prefix: "disk:", fsync: both, timeout: 700ms}
"""

EVERYTHING = (
    "primary killed",
    "switchover",
    "primary killed with writes unreplicated",
    "replica stopped for a moment",
    "primary killed",
    "slots moved",
    "primary killed with writes unreplicated",
    "two switchovers",
    "primary killed",
    "connections cut",
    "primary hung, replaced, back",
    "primary killed with writes unreplicated",
    "two forced promotions",
    "primary killed",
    "replica killed",
    "takeover with writes unreplicated",
    "primary killed with writes unreplicated",
    "primary stopped for a moment",
    "primary hung with writes unreplicated, replaced, back",
    "primary and replica killed",
)
"""One turn of the storm."""


@dataclass
class Outcome:
    """What came of a storm."""

    name: str
    faults: Faults
    ledger: Ledger
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


Crew = Callable[[Up, Ledger], AbstractContextManager[list[Client]]]
"""Makes the clients of a storm."""


@contextmanager
def cluster(folder: Path, more: str = "") -> Iterator[Up]:
    """Three shards with a replica each, AOF always, that fail over quickly; ``more`` configuration."""
    text = "cluster: {shards: 3, replicas: 1, aof: always, node_timeout_ms: 1000}"
    with configured(folder, text + more) as running:
        yield running


@contextmanager
def through_the_proxy(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    yield [ProxyClient(number, ledger, running.redis_url) for number in range(CLIENTS)]


@contextmanager
def under_durability(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    """They ask for nothing; half of them write what has to be on disks, too.  See ``DURABILITY``."""
    prefixes = ["held:"] * 4 + ["disk:"] * 4  # clients write in four ways
    yield [HeldClient(n, ledger, running.redis_url, prefixes[n % len(prefixes)]) for n in range(CLIENTS)]
    until(lambda: metric(running, "ackgate_concern_questions_open") == 0, "no reply is kept back any more")


@contextmanager
def under_no_rule(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    """The same, of keys that no rule is for."""
    yield [HeldClient(number, ledger, running.redis_url, "free:") for number in range(CLIENTS)]


@contextmanager
def by_naive_fan_out(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    """They share one look at the topology, taken again and again."""
    present: list[dict[str, Any]] = running.topology()["shards"]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            present[:] = running.topology()["shards"]

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield [NaiveClient(number, ledger, lambda: list(present)) for number in range(CLIENTS)]
    finally:
        ended.set()
        looking.join()


@contextmanager
def at_work(clients: Sequence[Client]) -> Iterator[None]:
    """The clients run while the block does; one that failed fails the storm."""
    stopping = threading.Event()
    threads = [threading.Thread(target=client.run, args=(stopping,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        for client in clients:
            client.close()
    for thread, client in zip(threads, clients, strict=True):
        assert not thread.is_alive(), f"{client.name} hangs"
        if client.failure is not None:
            raise AssertionError(f"{client.name} failed") from client.failure


def storm(
    running: Up,
    name: str,
    plan: Sequence[str],
    crew: Crew = through_the_proxy,
    *,
    kills: float,
    seconds: float,
    seed: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Strike as planned, again and again, until ``kills`` primaries were killed or the time is up; see what is lost.

    Only kills with ``BUSY_ENOUGH`` writes acknowledged in the second before are counted.
    """
    ledger = Ledger()
    faults = Faults(running, ledger.in_the_last_second, seed)
    outcome = Outcome(name, faults, ledger)
    started = time.monotonic()

    def strike() -> None:
        for kind in itertools.cycle(plan):
            if faults.kills >= kills or time.monotonic() - started > seconds:
                return
            faults.strike(kind, BUSY if "killed" in kind else 1)
            tell(f"{name}: {kind} ({faults.kills} kills, {len(ledger.acknowledged)} acknowledged)")

    with crew(running, ledger) as clients, at_work(clients):
        strike()
        faults.settled()
    outcome.lost = missing(running, ledger.acknowledged)
    outcome.seconds = time.monotonic() - started
    return outcome


def missing(running: Up, acknowledged: dict[str, str]) -> list[str]:
    """The keys that were acknowledged and are not there, or have another value."""
    lost: list[str] = []
    keys = list(acknowledged)
    for start in range(0, len(keys), READ_AT_ONCE):
        asked = keys[start : start + READ_AT_ONCE]
        for key, value in zip(asked, read(running, asked), strict=True):
            if value != acknowledged[key]:
                lost.append(key)
    return lost


def read(running: Up, keys: list[str]) -> list[str | None]:
    """The values of the keys; a shard that is not served for the moment is waited for."""

    def values() -> list[str | None] | None:
        with Wire.to(running.redis_url) as wire:
            replies = wire.pipeline([["GET", key] for key in keys])
        if any(reply.startswith(b"-") for reply in replies):
            return None
        return [None if reply.startswith(b"$-1") else reply.split(b"\r\n")[1].decode() for reply in replies]

    found: list[str | None] = until(values, "everything can be read")
    return found


def report(outcomes: Sequence[Outcome]) -> Table:
    """One table, a column for each storm."""
    table = Table(title="acknowledged writes under faults")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.name, justify="right")

    def row(title: str, cell: Callable[[Outcome], object]) -> None:
        table.add_row(title, *(str(cell(outcome)) for outcome in outcomes))

    def section(title: str, counter: Callable[[Outcome], dict[str, int]]) -> None:
        table.add_section()
        for kind in sorted({kind for outcome in outcomes for kind in counter(outcome)}):
            table.add_row(f"{title}: {kind}", *(str(counter(outcome).get(kind, 0)) for outcome in outcomes))

    row("seconds", lambda outcome: f"{outcome.seconds:.0f}")
    section("fault", lambda outcome: outcome.faults.done)
    row("primaries killed", lambda outcome: outcome.faults.killed)
    row(f"with {BUSY_ENOUGH} acknowledged in the second before", lambda outcome: outcome.faults.kills)
    row("acknowledged in the second before, least", lambda outcome: min(outcome.faults.busy_before_kill, default=0))
    table.add_section()
    row("writes", lambda outcome: outcome.ledger.operations)
    row("acknowledged", lambda outcome: len(outcome.ledger.acknowledged))
    row("answered OK and never confirmed", lambda outcome: outcome.ledger.unconfirmed)
    section("WAIT", lambda outcome: outcome.ledger.waits)
    section("error", lambda outcome: outcome.ledger.errors)
    table.add_section()
    row("acknowledged and lost", lambda outcome: len(outcome.lost))
    return table
