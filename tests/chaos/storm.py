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

from rich import box
from rich.table import Table

from tests.chaos.clients import BATCH, Client, HeldClient, Ledger, NaiveClient, ProxyClient
from tests.chaos.faults import BUSY_ENOUGH, Faults
from tests.chaos.proxies import Proxy, new_secret, two_proxies
from tests.chaos.records import RecordClient, check_count, check_log
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

NODES = (
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
"""One turn of what is done to the nodes alone."""

OTHERS = (
    "primary cut off",
    "pause of writes",
    "proxy killed",
    "slow way to a primary",
    "primary cut off from the other nodes alone",
    "switchover by a proxy",
    "one proxy cut off from a primary",
    "pause of everything",
    "proxy hung for a moment",
    "primary cut off from the other nodes alone",
    "switchover, and its proxy killed",
    "way to a primary that loses packets",
    "pause, and its proxy killed",
    "replica cut off",
    "primary cut off",
    "switchover by a proxy",
)
"""And to proxies and the network."""

KILLS = ("primary killed", "primary killed with writes unreplicated") * 4
"""And so that enough primaries are killed in the time."""

EVERYTHING = tuple(
    kind for kinds in itertools.zip_longest(NODES, OTHERS, KILLS) for kind in kinds if kind is not None
)
"""One turn of the storm."""


@dataclass
class Outcome:
    """What came of a storm."""

    name: str
    faults: Faults
    ledger: Ledger
    kills: float
    """Primaries that were to be killed, with ``BUSY_ENOUGH`` writes acknowledged in the second before."""
    lost: list[str] = field(default_factory=list)
    gone: int = 0
    """Writes that were answered OK, never acknowledged, and are lost: nobody was promised anything about them."""
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
def fleet(folder: Path, more: str = "\nproxy:") -> Iterator[tuple[Up, list[Proxy]]]:
    """The same with two more proxies in front, which all know of each other."""
    secret = new_secret(folder)
    with (
        cluster(folder, f"{more}\n  peers: {{secret_file: {secret}}}\n") as running,
        two_proxies(folder, running, secret) as proxies,
    ):
        yield running, proxies


@contextmanager
def through_the_proxy(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    yield mixed([running.redis_url], ledger)


def through(proxies: Sequence[Proxy]) -> Crew:
    """A crew that uses these."""

    @contextmanager
    def crew(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
        yield mixed([proxy.url for proxy in proxies], ledger)

    return crew


def mixed(urls: Sequence[str], ledger: Ledger) -> list[Client]:
    """A quarter of them keeps records."""
    records = CLIENTS // 4
    plain: list[Client] = [ProxyClient(number, ledger, urls) for number in range(CLIENTS - records)]
    return plain + [RecordClient(number, ledger, urls) for number in range(CLIENTS - records, CLIENTS)]


@contextmanager
def under_durability(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    """They ask for nothing; half of them write what has to be on disks, too.  See ``DURABILITY``."""
    prefixes = ["held:"] * 4 + ["disk:"] * 4  # clients write in four ways
    yield [HeldClient(n, ledger, [running.redis_url], prefixes[n % len(prefixes)]) for n in range(CLIENTS)]
    until(lambda: metric(running, "ackgate_concern_questions_open") == 0, "no reply is kept back any more")


@contextmanager
def under_no_rule(running: Up, ledger: Ledger) -> Iterator[list[Client]]:
    """The same, of keys that no rule is for."""
    yield [HeldClient(number, ledger, [running.redis_url], "free:") for number in range(CLIENTS)]


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
    at_least: float = 0.0,
    proxies: Sequence[Proxy] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Strike as planned, again and again, until ``kills`` primaries were killed or the time is up; see what is lost.

    Only kills with ``BUSY_ENOUGH`` writes acknowledged in the second before are counted. It lasts ``at_least`` so many
    seconds, and where that is not 0, until all of the plan was done once, unless the time is up.
    """
    ledger = Ledger()
    faults = Faults(running, ledger, seed, list(proxies))
    outcome = Outcome(name, faults, ledger, kills)
    started = time.monotonic()

    def strike() -> None:
        for number, kind in enumerate(itertools.cycle(plan)):
            lasted = time.monotonic() - started
            done = not at_least or (lasted > at_least and number >= len(plan))
            if (faults.kills >= kills and done) or lasted > seconds:
                return
            faults.strike(kind, BUSY if "killed" in kind and "proxy" not in kind else 1)
            told = f"{time.monotonic() - started:.0f} s: {kind} ({faults.kills} kills)"
            tell(f"{name}, {told}, {ledger.confirmed} acknowledged, longest stall {ledger.stall:.1f} s")

    with crew(running, ledger) as clients, at_work(clients):
        strike()
        faults.settled()
    outcome.lost = missing(running, ledger.acknowledged)
    for client in clients:
        outcome.lost += checked(running, client) if isinstance(client, RecordClient) else []
    outcome.gone = len(missing(running, dict(ledger.unconfirmed)))
    check_transactions(running, ledger)
    outcome.seconds = time.monotonic() - started
    return outcome


def checked(running: Up, client: RecordClient) -> list[str]:
    """What was acknowledged to it and is not there; broken invariants go to its ledger."""
    lost = []
    for log in client.logs:
        lost += check_log(log, numbers(running, "LRANGE", log.key, 0, -1), client.ledger)
    (found,) = numbers(running, "GET", client.count.key) or [0]
    return lost + check_count(client.count, found, client.ledger)


def numbers(running: Up, *command: str | int) -> list[int]:
    """The numbers in a reply."""

    def values() -> list[bytes] | None:
        with Wire.to(running.redis_url) as wire:
            reply = wire.call(*command)
        return None if reply.startswith(b"-") else reply.split(b"\r\n")

    words: list[bytes] = until(values, "everything can be read")
    return [int(word) for word in words if word.isdigit()]


def check_transactions(running: Up, ledger: Ledger) -> None:
    """Of those that nobody acknowledged, all was done or nothing."""
    doubtful = [keys for keys in ledger.transactions if keys[0] not in ledger.acknowledged]
    for start in range(0, len(doubtful), READ_AT_ONCE // BATCH):
        some = doubtful[start : start + READ_AT_ONCE // BATCH]
        values = iter(read(running, [key for keys in some for key in keys]))
        for keys in some:
            there = sum(next(values) is not None for _ in keys)
            if there not in (0, len(keys)):
                ledger.broke("half a transaction", f"{there} of {len(keys)} keys of {keys[0]}")


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
    table = Table(title="acknowledged writes under faults", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for outcome in outcomes:
        table.add_column(outcome.name, justify="right", no_wrap=True)

    def row(title: str, cell: Callable[[Outcome], object]) -> None:
        table.add_row(title, *(str(cell(outcome)) for outcome in outcomes))

    def section(title: str, counter: Callable[[Outcome], dict[str, int]]) -> None:
        table.add_section()
        for kind in sorted({kind for outcome in outcomes for kind in counter(outcome)}):
            table.add_row(f"{title}: {kind}", *(str(counter(outcome).get(kind, "")) for outcome in outcomes))

    row("seconds", lambda outcome: f"{outcome.seconds:.0f}")
    table.add_section()
    for kind in sorted({kind for outcome in outcomes for kind in outcome.faults.done}):
        table.add_row(f"fault, longest stall: {kind}", *(struck(outcome, kind) for outcome in outcomes))
    row("faults", lambda outcome: outcome.faults.done.total())
    row("primaries killed", lambda outcome: outcome.faults.killed)
    row(f"with {BUSY_ENOUGH} acknowledged in the second before, of those asked for", kills_of)
    row("switchovers called off", lambda outcome: outcome.faults.proxies.called_off)
    table.add_section()
    row("writes", lambda outcome: outcome.ledger.operations)
    row("acknowledged", lambda outcome: outcome.ledger.confirmed)
    row("answered OK and never acknowledged", lambda outcome: len(outcome.ledger.unconfirmed))
    row("and gone, as they may be", lambda outcome: outcome.gone)
    section("WAIT", lambda outcome: outcome.ledger.waits)
    section("error", lambda outcome: outcome.ledger.errors)
    table.add_section()
    row("longest stall of a client, s", lambda outcome: f"{outcome.ledger.stall:.1f}")
    row("from whole nodes to served by all proxies, most, s", lambda outcome: f"{outcome.faults.slowest[0]:.2f}")
    table.add_section()
    row("acknowledged and lost", lambda outcome: len(outcome.lost))
    section("broken", lambda outcome: outcome.ledger.broken)
    row("invariants broken", lambda outcome: outcome.ledger.broken.total())
    return table


def kills_of(outcome: Outcome) -> str:
    """How many count, and how many were asked for."""
    return f"{outcome.faults.kills} of {outcome.kills:g}"


def struck(outcome: Outcome, kind: str) -> str:
    """How often, and the longest stall of a client by it in seconds."""
    number = outcome.faults.done[kind]
    return f"{number:3} {outcome.ledger.stalls.get(kind, 0.0):5.1f}" if number else ""
