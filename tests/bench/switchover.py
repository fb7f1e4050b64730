"""``python -m tests.bench.switchover``: ten planned switchovers under clients that set and WAIT without a pause.

What a client saw is the longest time from one confirmed write of any of them to its next; what the proxy says is for
how long it held commands, and how long it took until the former primary, a replica by then, was in step again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import trio
from rich.console import Console
from rich.table import Table

from proxy.commands.checked import Load, tags_of
from shard.client import ControlConnection
from tests.harness import Up, up

TARGET_MS = 500.0
CALM_S = 1.0  # of load before each and behind it


class Switchover(NamedTuple):
    """One of them; times in milliseconds."""

    result: str
    held: float
    silence: float
    seen: float
    """The longest that a client waited, for its write and the WAIT behind it."""
    writes: int
    errors: dict[str, int]
    lost: int
    steps: str
    """When each began."""


@click.command()
@click.option("--times", type=click.IntRange(1), default=10, show_default=True, help="Switchovers.")
@click.option("--clients", type=click.IntRange(1), default=50, show_default=True, help="Clients.")
def main(times: int, clients: int) -> None:
    """Measure planned switchovers under load; the exit status is 1 when a client saw an error or waited too long."""
    with tempfile.TemporaryDirectory() as folder, up(Path(folder), "--port", "0", "--admin-port", "0") as running:
        found = [trio.run(_one, running, number % 3, clients) for number in range(times)]
    Console(width=110).print(_table(found))
    slowest = max(found, key=lambda each: each.held)
    click.echo(f"the one that held longest: {slowest.steps}")
    failed = any(each.result != "done" or each.errors or each.lost for each in found)
    sys.exit(1 if failed or median(each.seen for each in found) > TARGET_MS else 0)


async def _one(running: Up, index: int, clients: int) -> Switchover:
    rows = running.topology()["shards"]
    assert all(row["primary"] and row["replicas"] for row in rows), "the last one left its shard whole"
    row = rows[index]
    port = int(running.redis_url.rpartition(":")[2])
    load = Load(partial(ControlConnection.open, "127.0.0.1", port), "bench:", pace=0.0)
    group = load.group("all", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run, group, tags_of(row["slots"], clients), clients)
        await trio.sleep(CALM_S)
        *steps, last = await trio.to_thread.run_sync(_order, running, row["id"])
        await trio.sleep(CALM_S)
        nursery.cancel_scope.cancel()
    await load.check()
    return Switchover(
        last["result"],
        last["stall_ms"],
        last["silence_ms"],
        group.stall * 1000,
        group.writes,
        dict(group.errors),
        len(group.lost),
        ", ".join(f"{line['step']} at {line['at_ms']:.0f} ms" for line in steps),
    )


def _order(running: Up, shard: str) -> list[dict[str, Any]]:
    body = json.dumps({"shard": shard}).encode()
    request = urllib.request.Request(f"{running.admin_url}/switchover", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [json.loads(line) for line in answer]


def _table(found: list[Switchover]) -> Table:
    table = Table(title="planned switchovers under SET + WAIT 1")
    times = ("held ms", "replica back after ms", "longest wait of a client ms")
    for title in ("", "result", *times, "writes", "errors", "lost"):
        table.add_column(title, justify="right")
    for number, each in enumerate(found, 1):
        cells = (f"{each.held:.0f}", f"{each.silence:.0f}", f"{each.seen:.0f}")
        table.add_row(str(number), each.result, *cells, str(each.writes), _text(each.errors), str(each.lost))
    table.add_section()
    middle = [median(row) for row in zip(*((each.held, each.silence, each.seen) for each in found), strict=True)]
    counted = [(each.writes, sum(each.errors.values()), each.lost) for each in found]
    sums = [sum(row) for row in zip(*counted, strict=True)]
    table.add_row("median, sum", "", *(f"{value:.0f}" for value in middle), *map(str, sums))
    return table


def _text(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in errors.items()) or "0"


if __name__ == "__main__":
    main()
