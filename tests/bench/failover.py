"""``python -m tests.bench.failover``: how long clients notice that a primary is gone, and what of that is the proxy's.

Each round breaks the primary of one shard after the other. Two clients look on: one writes to that shard through the
proxy without a pause, one asks the replica itself, again and again, whether it has been promoted. What lies between the
promotion and the first write that passes is the proxy's share; what lies before it, the engine's.

Then more is broken than can be replaced: a shard with its replica, and all nodes, killed or stopped for a while. Every
node is asked directly, without a pause, for a write of its shard; what lies between the first that it takes and the
first that passes through the proxy is the proxy's share.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from tests.harness import Up, until, up
from tests.system.load import tag
from tests.system.wire import Closed, Wire

RESULTS = Path(__file__).parent / "results"
TARGET_MS = 300.0
ROLE_EVERY_S = 0.001
LATE_MS = 1000.0
STOPPED_S = 4.0
KINDS = ("kill", "stop")
OUTAGES = ("shard killed", "shard stopped", "all killed", "all stopped")


class Failover(NamedTuple):
    """One of them; times in milliseconds."""

    kind: str
    shard: int
    promoted: float
    """From the fault to the promotion: the engine's."""
    served: float
    """From the promotion to the first write that passed: the proxy's."""
    stall: float
    """The longest time in which the client had no write that passed."""
    errors: int
    """What the client was told in the meantime."""


class Recovery(NamedTuple):
    """One outage; times in milliseconds."""

    outage: str
    whole: float
    """From the fault, or its end, until every shard took a write of its own: the engine's, and who restarts it."""
    served: float
    """From there until the proxy had passed one to every shard: the longest of the shards."""


class Writer(threading.Thread):
    """Writes through the proxy, one write after the other, and remembers when each was confirmed."""

    def __init__(self, running: Up, slot: int) -> None:
        super().__init__(daemon=True)
        self.wire = Wire.to(running.redis_url)
        self.key = "failover" + tag(slot)
        self.passed: list[float] = []
        self.errors = 0
        self.over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            if self.wire.call("SET", self.key, number) == b"+OK\r\n":
                self.passed.append(time.perf_counter())
            else:
                self.errors += 1
            time.sleep(ROLE_EVERY_S)


@contextmanager
def writing(running: Up, slot: int) -> Iterator[Writer]:
    writer = Writer(running, slot)
    writer.start()
    try:
        until(lambda: len(writer.passed) > 10, "writes pass")
        yield writer
    finally:
        writer.over.set()
        writer.join()
        writer.wire.close()


def promotion(address: str) -> float:
    """When a replica became a primary, by its own word."""
    host, _, port = address.rpartition(":")
    with Wire(host, int(port)) as wire:
        while not wire.call("ROLE").startswith(b"*3\r\n$6\r\nmaster"):
            time.sleep(ROLE_EVERY_S)
        return time.perf_counter()


def whole(running: Up) -> list[dict[str, Any]] | None:
    """The shards, if each has a primary and a replica in step."""
    shards: list[dict[str, Any]] = running.topology()["shards"]
    for shard in shards:
        nodes = [shard["primary"], *shard["replicas"]]
        if len(nodes) < 2 or not all(node and node["health"] == "online" for node in nodes):
            return None
        host, _, port = shard["primary"]["address"].rpartition(":")
        with Wire(host, int(port)) as wire:
            if b"state=online" not in wire.call("INFO", "replication"):
                return None
    return shards


def fail_over(running: Up, kind: str, index: int) -> Failover:
    shard = until(lambda: whole(running), "the cluster is whole")[index]
    pid = shard["primary"]["pid"]
    with writing(running, shard["slots"][0][0]) as writer:
        before = writer.errors
        broken = time.perf_counter()
        os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        try:
            promoted = promotion(shard["replicas"][0]["address"])
            until(lambda: writer.passed[-1] > promoted, "writes pass again")
        finally:
            if kind == "stop":
                os.kill(pid, signal.SIGCONT)
        served = next(at for at in writer.passed if at > promoted)
        last = max(at for at in writer.passed if at < served)
        errors = writer.errors - before
    return Failover(
        kind,
        index,
        promoted=1000 * (promoted - broken),
        served=1000 * (served - promoted),
        stall=1000 * (served - last),
        errors=errors,
    )


class Asker(threading.Thread):
    """Asks one node, without the proxy, for a write until it takes one."""

    def __init__(self, address: str, slot: int) -> None:
        super().__init__(daemon=True)
        host, _, port = address.rpartition(":")
        self.address = host, int(port)
        self.key = "asked" + tag(slot)
        self.taken = math.inf
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                with Wire(*self.address) as wire:
                    while not self.over.is_set():
                        if wire.call("SET", self.key, 1) == b"+OK\r\n":
                            self.taken = time.perf_counter()
                            return
                        time.sleep(ROLE_EVERY_S)
            except (OSError, Closed):
                time.sleep(ROLE_EVERY_S)


def recover(running: Up, outage: str) -> Recovery:
    shards = until(lambda: whole(running), "the cluster is whole")
    hit = shards if outage.startswith("all") else shards[:1]
    slots = [shard["slots"][0][0] for shard in hit]
    nodes = [(slot, node) for slot, shard in zip(slots, hit, strict=True) for node in nodes_of(shard)]
    kills = outage.endswith("killed")
    with ExitStack() as stack:
        writers = [stack.enter_context(writing(running, slot)) for slot in slots]
        askers = [(slot, Asker(node["address"], slot)) for slot, node in nodes]
        for _, node in nodes:
            os.kill(node["pid"], signal.SIGKILL if kills else signal.SIGSTOP)
        if not kills:
            time.sleep(STOPPED_S)
        for _, asker in askers:
            asker.start()
        since = time.perf_counter()
        if not kills:
            for _, node in nodes:
                os.kill(node["pid"], signal.SIGCONT)

        def taken(slot: int) -> float:
            return min(asker.taken for each, asker in askers if each == slot)

        until(lambda: all(taken(slot) < math.inf for slot in slots), "every shard takes writes")
        both = list(zip(slots, writers, strict=True))
        until(lambda: all(writer.passed[-1] > taken(slot) for slot, writer in both), "writes pass to every shard")
        firsts = [next(at for at in writer.passed if at > since) for writer in writers]
        late = [max(0.0, first - taken(slot)) for slot, first in zip(slots, firsts, strict=True)]
        for _, asker in askers:
            asker.over.set()
    return Recovery(outage, 1000 * (max(map(taken, slots)) - since), 1000 * max(late))


def nodes_of(shard: dict[str, Any]) -> list[dict[str, Any]]:
    return [shard["primary"], *shard["replicas"]]


def recovery_table(rows: list[Recovery]) -> Table:
    found = Table(title="outages that nobody can take over", title_justify="left")
    for name in ("outage", "cluster: whole after ms", "proxy: serving ms later"):
        found.add_column(name, justify="left" if name == "outage" else "right")
    for row in rows:
        found.add_row(row.outage, f"{row.whole:.0f}", f"{row.served:.0f}")
    return found


_WORDS = {"kill": "killed", "stop": "hung"}


def table(rows: list[Failover], node_timeout: int) -> Table:
    found = Table(title=f"failovers, node timeout {node_timeout} ms", title_justify="left")
    for name in ("primary", "shard", "engine: promoted after ms", "proxy: serving ms later", "stall ms", "errors"):
        found.add_column(name, justify="left" if name == "primary" else "right")
    for row in rows:
        cells = (f"{span:.0f}" for span in (row.promoted, row.served, row.stall))
        found.add_row(_WORDS[row.kind], str(row.shard), *cells, str(row.errors))
    return found


def summary(rows: list[Failover]) -> list[str]:
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows):
        times = sorted(row.served for row in rows if row.kind == kind)
        lines.append(
            f"{_WORDS[kind]}: {len(times)} failovers, from the promotion to the first write through the proxy: "
            f"median {median(times):.0f} ms, least {times[0]:.0f}, most {times[-1]:.0f}"
        )
    return lines


@click.command()
@click.option("--failovers", type=click.IntRange(1, 1000), default=10, show_default=True, help="Of each kind.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only this one; may be repeated.")
@click.option("--outages", type=click.IntRange(0, 1000), default=2, show_default=True, help="Of each kind.")
@click.option("--node-timeout", type=click.IntRange(200, 60_000), default=2000, show_default=True, help="Milliseconds.")
def main(failovers: int, kinds: tuple[str, ...], outages: int, node_timeout: int) -> None:
    """Kill and stop primaries under load, and tell how long the proxy took behind each promotion.

    The exit status is 1 when the median is above 300 ms, or the proxy was more than a second behind a whole cluster.
    """
    rows: list[Failover] = []
    recoveries: list[Recovery] = []
    say: Callable[[str], None] = Console(stderr=True).print
    with tempfile.TemporaryDirectory(prefix="ackgate-failover-") as folder:
        config = Path(folder) / "failover.yaml"
        config.write_text(f"cluster: {{node_timeout_ms: {node_timeout}}}\nproxy: {{timeouts: {{hold: 60s}}}}\n")
        with up(Path(folder), "--port", "0", "--admin-port", "0", "--config", str(config)) as running:
            for kind in kinds or KINDS:
                for number in range(failovers):
                    rows.append(fail_over(running, kind, number % 3))
                    say(f"{kind} {number + 1} of {failovers}: {rows[-1].served:.0f} ms")
            for outage in OUTAGES:
                for number in range(outages):
                    recoveries.append(recover(running, outage))
                    say(f"{outage} {number + 1} of {outages}: {recoveries[-1].served:.0f} ms")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(rows, node_timeout))
    for line in summary(rows):
        console.print(line)
    if recoveries:
        console.print(recovery_table(recoveries))
    RESULTS.mkdir(exist_ok=True)
    told = {"failovers": [row._asdict() for row in rows], "outages": [row._asdict() for row in recoveries]}
    (RESULTS / "failover.json").write_text(json.dumps(told, indent=1) + "\n")
    slow = median(row.served for row in rows) > TARGET_MS
    sys.exit(slow or any(row.served > LATE_MS for row in recoveries))


if __name__ == "__main__":
    main()
