"""``ackgate drill``: break a shard on purpose, and show what clients saw of it.

What lives here: which node is broken, when the shard counts as whole, and the table and time line.  How it is broken
and mended is in ``proxy.commands.breaking``, the load that is checked meanwhile in ``proxy.commands.checked``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
import trio
from rich import box
from rich.console import Console
from rich.table import Table

from proxy.commands.breaking import How, broken, check_process
from proxy.commands.checked import Group, Load, tags_of
from proxy.commands.common import CommandError
from proxy.commands.endpoint import Address, endpoint_options, get, password_in, reached, topology_at
from proxy.commands.packetfilter import check_tools
from proxy.commands.progress import Progress
from proxy.observe.orders import is_loopback
from proxy.routing.slot_map import Node, Shard
from proxy.settings import split_address
from proxy.switchover.choice import SHORT, Refused, find_shard
from shard.client import ConnectionLost, ControlConnection, ReplyError, format_address

_CONNECT_TIMEOUT_S = 15.0  # longer than a command is held while its slot has no primary
_CALM_S = 2.0  # of load before anything is broken, and behind the end of it
_PACE_S = 0.01  # between two writes of a client
_CLIENTS, _OTHERS = 8, 4
_TAGS = 50
_LOOK_S = 0.05
_WHOLE_S = 60.0  # for the shard to be whole again
_SLICE_S = 0.5
_BAR = 30  # columns
_BROKEN: dict[How, str] = {"kill": "killed", "stop": "stopped", "partition": "cut off"}
_MENDED: dict[How, str] = {"stop": "goes on", "partition": "can be reached again"}


@dataclass
class _Target:
    """The shard that is broken, as it was."""

    id: str
    slots: list[tuple[int, int]]
    others: list[tuple[int, int]]
    """The slots of the other shards."""
    address: str
    pid: int
    replicas: int


@dataclass
class _Story:
    """What happened when, in seconds since the load began."""

    events: list[tuple[float, str]] = field(default_factory=list)
    broken_at: float = 0.0
    led_at: float | None = None
    """Another node leads."""
    whole: bool = False


@click.command()
@click.argument("shard")
@click.option("--kill", "how", flag_value="kill", default="kill", help="SIGKILL its primary.  [default]")
@click.option("--stop", "how", flag_value="stop", help="SIGSTOP its primary, which hangs until the drill is over.")
@click.option(
    "--partition",
    "how",
    flag_value="partition",
    help="Cut its primary off from clients, proxies and other nodes until the drill is over. Takes root and iptables.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=15.0,
    show_default=True,
    metavar="N",
    help="Load from the failure on.",
)
@endpoint_options
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def drill(
    shard: str,
    how: How,
    seconds: float,
    url: str | None,
    admin: str,
    password_file: str | None,
    as_json: bool,
) -> int:
    """Break a shard, as a failure would, under a small load that is checked, and show what clients saw.

    SHARD is its id, the beginning of that, or the address of one of its nodes. Its primary has to run on this machine.
    The load writes keys of its own, asks WAIT for a copy on every replica, and deletes them in the end. A killed node
    is started again by who supervises it, as `ackgate up` does. Exits with 1 when something confirmed was lost.
    """
    host = urlsplit(admin).hostname
    if host is not None and host != "localhost" and not is_loopback(host):
        raise CommandError("a drill breaks processes of this machine; run it where the nodes and a proxy run")
    topology = topology_at(admin)
    target = _target(topology, shard)
    endpoint, password = reached(topology, admin, url), password_in(password_file)
    check_process(target.pid, target.address)
    if how == "partition":
        check_tools()
    with Progress() as progress:
        load, story = trio.run(partial(_drill, target, how, seconds, admin, endpoint, password, progress))
    result = _result(target, how, load, story)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        _draw(result)
    if not story.whole:
        raise CommandError(
            f"the shard is not whole again after {_WHOLE_S:g} s; `ackgate status` shows what is missing. A node that "
            "nobody supervises has to be started again by hand"
        )
    return 1 if any(group.lost for group in load.groups) else 0


# -- what is broken ------------------------------------------------------------------------------------------------
def _target(topology: dict[str, Any], text: str) -> _Target:
    """The shard that is meant, if it can be broken and be whole again."""
    rows = [row for row in topology["shards"] if row["slots"]]
    try:
        found = find_shard([_shard(index, row) for index, row in enumerate(rows)], text)
    except Refused as error:
        raise CommandError(str(error)) from None
    row = rows[found.index]
    name = f"shard {row['id'][:SHORT]}"
    if not _whole(topology):
        raise CommandError("the cluster is not whole; `ackgate status` shows what is missing, mend that first")
    if not row["replicas"]:
        raise CommandError(f"{name} has no replica: nothing would take over, and there is nothing to see")
    if row["primary"]["pid"] is None:
        raise CommandError(f"the primary of {name} does not run on this machine; run the drill where it does")
    slots = [(first, last) for first, last in row["slots"]]
    others = [(first, last) for each in rows if each is not row for first, last in each["slots"]]
    primary = row["primary"]
    return _Target(row["id"], slots, others, primary["address"], primary["pid"], len(row["replicas"]))


def _shard(index: int, row: dict[str, Any]) -> Shard:
    nodes = [Node(*split_address(node["address"])) for node in [row["primary"], *row["replicas"]] if node is not None]
    return Shard(index, row["id"].encode(), None, tuple(nodes), tuple((first, last) for first, last in row["slots"]))


def _whole(topology: dict[str, Any]) -> bool:
    """Every shard is served, and all its nodes are up."""
    served = [row for row in topology["shards"] if row["slots"]]
    slots = sum(last - first + 1 for row in served for first, last in row["slots"])
    nodes = [node for row in served for node in [row["primary"], *row["replicas"]]]
    return slots == 16384 and all(node is not None and node["health"] == "online" for node in nodes)


# -- the drill -----------------------------------------------------------------------------------------------------
async def _drill(
    target: _Target,
    how: How,
    seconds: float,
    admin: str,
    endpoint: Address,
    password: str | None,
    progress: Progress,
) -> tuple[Load, _Story]:
    where = f"redis://{format_address(*endpoint)}"
    connect = partial(ControlConnection.open, *endpoint, password=password, timeout=_CONNECT_TIMEOUT_S)
    try:
        async with await connect() as connection:
            await connection.call("PING")
    except (ConnectionLost, ReplyError) as error:
        raise CommandError(f"{where} answers: {error}; give --url, and the password with --password-file") from None
    load = Load(connect, f"ackgate:drill:{os.getpid()}:", pace=_PACE_S, slice_=_SLICE_S)
    story = _Story()

    def tell(text: str) -> None:
        story.events.append((load.now, text))
        progress(text, 0, 0)

    async with trio.open_nursery() as nursery:
        group = load.group("the shard", target.replicas)
        nursery.start_soon(load.run, group, tags_of(target.slots, _TAGS), _CLIENTS)
        if target.others:
            # WAIT is about every shard: it would show of them what happens to this one.
            group = load.group("other shards", 0)
            nursery.start_soon(load.run, group, tags_of(target.others, _TAGS), _OTHERS)
        await trio.sleep(_CALM_S)
        with broken(target.pid, target.address, how) as node:
            story.broken_at = load.now
            tell(f"primary {target.address} {_BROKEN[how]} (process {target.pid})")
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as meanwhile:
                    meanwhile.start_soon(node.keep)
                    await _until_led(target, admin, story, tell)
                    if how == "kill":
                        await _until_whole(admin, story, tell)
        if how in _MENDED:
            tell(f"{target.address} {_MENDED[how]}")
        with trio.move_on_after(_WHOLE_S):
            await _until_whole(admin, story, tell)
        await trio.sleep(_CALM_S)
        nursery.cancel_scope.cancel()
    progress("reading back what was confirmed", 0, 0)
    try:
        await load.check()
    except (ConnectionLost, ReplyError) as error:
        raise CommandError(f"what was confirmed cannot be read back: {error}; `ackgate status` shows why") from None
    return load, story


async def _until_led(target: _Target, admin: str, story: _Story, tell: Any) -> None:
    while story.led_at is None:
        await trio.sleep(_LOOK_S)
        topology = await _look(admin)
        for primary in [row["primary"] for row in topology["shards"] if row["id"] == target.id and row["primary"]]:
            if primary["health"] == "online" and primary["address"] != target.address:
                tell(f"{primary['address']} leads")
                story.led_at = story.events[-1][0]


async def _until_whole(admin: str, story: _Story, tell: Any) -> None:
    while not story.whole:
        await trio.sleep(_LOOK_S)
        if _whole(await _look(admin)):
            tell("every node is up")
            story.whole = True


async def _look(admin: str) -> dict[str, Any]:
    found = await trio.to_thread.run_sync(get, admin, "/topology")
    return found if isinstance(found, dict) else {"shards": []}


# -- what is shown -------------------------------------------------------------------------------------------------
def _result(target: _Target, how: How, load: Load, story: _Story) -> dict[str, Any]:
    return {
        "shard": target.id,
        "how": how,
        "primary": target.address,
        "broken_at": round(story.broken_at, 3),
        "led_after": None if story.led_at is None else round(story.led_at - story.broken_at, 3),
        "whole": story.whole,
        "clients": [_figures(group) for group in load.groups],
        "events": [{"at": round(at, 3), "what": what} for at, what in story.events],
        "timeline": _timeline(load, story),
    }


def _figures(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "writes": group.writes,
        "confirmed": len(group.confirmed),
        "unconfirmed": group.unconfirmed,
        "errors": dict(sorted(group.errors.items())),
        "longest_stall_ms": round(group.stall * 1000, 1),
        "stalled_at": round(group.stalled_at, 3),
        "lost": len(group.lost),
        "lost_keys": group.lost[:100],
    }


def _timeline(load: Load, story: _Story) -> list[dict[str, Any]]:
    last = max((at for group in load.groups for at in (*group.done, *group.failed)), default=0)
    return [
        {
            "at": at * _SLICE_S,
            "groups": {
                group.name: {
                    "confirmed": group.done[at],
                    "errors": group.failed[at],
                    "slowest_ms": round(group.slowest.get(at, 0.0) * 1000, 1),
                }
                for group in load.groups
            },
            "events": [what for when, what in story.events if at <= when / _SLICE_S < at + 1],
        }
        for at in range(last + 1)
    ]


def _draw(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # as `ackgate status` does: a file or a pipe has no width
    console.print(_timeline_table(result))
    console.print(_summary(result))
    lost = sum(group["lost"] for group in result["clients"])
    style = "red" if lost else "green"
    console.print(f"{lost} confirmed writes lost", style=style)


def _timeline_table(result: dict[str, Any]) -> Table:
    names = [group["group"] for group in result["clients"]]
    most = max((row["groups"][name]["confirmed"] for row in result["timeline"] for name in names), default=0) or 1
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("at s", justify="right")
    for name in names:
        for title in (name, "writes", "errors", "slowest ms"):
            table.add_column(title, justify="left" if title is name else "right", no_wrap=True)
    table.add_column("")
    for row in result["timeline"]:
        cells = [f"{row['at'] - result['broken_at']:+.1f}"]
        for name in names:
            figures = row["groups"][name]
            bar = "━" * round(figures["confirmed"] / most * _BAR)
            failed = f"[red]{figures['errors']}[/red]" if figures["errors"] else ""
            cells += [f"[green]{bar}[/green]", str(figures["confirmed"]), failed, f"{figures['slowest_ms']:.0f}"]
        table.add_row(*cells, "; ".join(row["events"]))
    return table


def _summary(result: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("what clients saw")
    for group in result["clients"]:
        table.add_column(group["group"], justify="right")

    def row(title: str, key: str) -> None:
        table.add_row(title, *(str(group[key]) for group in result["clients"]))

    row("writes", "writes")
    row("confirmed by WAIT", "confirmed")
    row("answered OK, not confirmed", "unconfirmed")
    for kind in sorted({kind for group in result["clients"] for kind in group["errors"]}):
        table.add_row(f"error: {kind}", *(str(group["errors"].get(kind, 0)) for group in result["clients"]))
    table.add_row("longest stall, ms", *(f"{group['longest_stall_ms']:.0f}" for group in result["clients"]))
    row("confirmed and lost", "lost")
    led = result["led_after"]
    others = [""] * (len(result["clients"]) - 1)
    table.add_row("another primary, s after the failure", "none" if led is None else f"{led:.2f}", *others)
    return table


