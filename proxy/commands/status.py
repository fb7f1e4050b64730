"""``ackgate status``: the shards as the nodes themselves tell of them.

The admin endpoint, a configuration, a data folder or seeds only say *where* the nodes are. They are asked directly,
since only they know their lag and persistence; where they cannot be reached from here (containers, a password) the
proxy's own picture is shown, with what it does not know left open.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import click
import msgspec
import trio
from rich import box
from rich.console import Console
from rich.table import Table

from proxy.commands.common import CommandError
from proxy.commands.endpoint import DEFAULT_ADMIN
from proxy.configfile import load_any, read_password
from proxy.settings import LocalSettings, split_address
from shard.client import Credentials
from shard.errors import ShardError
from shard.layout import PLAN_FILE, Layout
from shard.status import ClusterStatus, NodeStatus, ShardStatus, read_status

P = ParamSpec("P")
R = TypeVar("R")
Address = tuple[str, int]

_ADMIN_TIMEOUT_S = 5.0


class _Source(NamedTuple):
    """Where the nodes are and what they ask for; ``topology`` is what the proxy says, if it was asked."""

    seeds: list[Address]
    password_file: str | None = None
    username: str | None = None
    topology: dict[str, Any] | None = None


def source_options(command: Callable[P, R]) -> Callable[P, R]:
    """The options that say where to look."""
    for option in reversed(
        (
            click.option(
                "--admin",
                metavar="URL",
                envvar="ACKGATE_ADMIN",
                help=f"Admin endpoint of a running proxy.  [default: {DEFAULT_ADMIN}]",
            ),
            click.option(
                "--config",
                "file",
                type=click.Path(),
                metavar="FILE",
                help="Configuration of a proxy or of `ackgate up`: its nodes are asked.",
            ),
            click.option(
                "--seed",
                "seeds",
                multiple=True,
                metavar="HOST:PORT",
                help="A node of the cluster; may be given several times.",
            ),
            click.option("--username", help="ACL user to log in to the nodes as."),
            click.option(
                "--password-file",
                type=click.Path(),
                metavar="FILE",
                help="File whose first line is the nodes' password.",
            ),
            click.option("--json", "as_json", is_flag=True, help="JSON instead of a table."),
        )
    ):
        command = option(command)
    return command


@click.command()
@source_options
def status(
    admin: str | None,
    file: str | None,
    seeds: tuple[str, ...],
    username: str | None,
    password_file: str | None,
    as_json: bool,
) -> int:
    """Show shards, primaries, replicas, slots, lag and persistence.

    Asks the admin endpoint where the nodes are, unless --seed or --config says so, and then the nodes themselves.
    """
    return show_status(
        admin=admin, file=file, seeds=seeds, username=username, password_file=password_file, as_json=as_json
    )


def show_status(
    *,
    admin: str | None,
    file: str | None,
    seeds: tuple[str, ...],
    username: str | None,
    password_file: str | None,
    as_json: bool,
) -> int:
    """Prints the status and returns 0. Raises CommandError, SettingsError or ShardError when there is nobody to ask."""
    if sum(map(bool, (admin, file, seeds))) > 1:
        raise click.UsageError("give one of --admin, --config and --seed", click.get_current_context())
    source = _source(admin, file, seeds)
    password_file = password_file if password_file is not None else source.password_file
    password = read_password(password_file) if password_file is not None else None
    picture = _ask(source, Credentials(username or source.username, password))
    paused = _paused(source.topology)
    if as_json:
        told = {**msgspec.to_builtins(picture), "paused": paused} if paused is not None else picture
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        _print(picture)
        if paused is not None and paused["mode"] != "none":
            what = "writes are" if paused["mode"] == "write" else "everything is"
            left, parked = paused["seconds_left"], paused["parked"]
            click.echo(f"{what} paused (CLIENT PAUSE) for {left:g} s more; commands that wait here: {parked}")
    return 0


def _paused(topology: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the proxy tells of a pause; None where no proxy was asked."""
    found = (topology or {}).get("paused")
    return found if isinstance(found, dict) else None


def _source(admin: str | None, file: str | None, seeds: tuple[str, ...]) -> _Source:
    if seeds:
        try:
            return _Source([split_address(seed) for seed in seeds])
        except ValueError as error:
            raise CommandError(str(error)) from None
    if file is not None:
        return _source_in_file(file)
    if admin is not None:
        return _source_at_admin(admin)
    try:
        return _source_at_admin(DEFAULT_ADMIN)
    except CommandError:
        # No proxy on the default port: `ackgate up` may run with another one, in this folder.
        local = _source_in_folder(Path(LocalSettings().dir), None)
        if local is None:
            raise
        return local


def _source_in_file(file: str) -> _Source:
    settings = load_any(file)
    if not isinstance(settings, LocalSettings):
        cluster = settings.cluster
        return _Source([split_address(seed) for seed in cluster.seeds], cluster.password_file, cluster.username)
    local = _source_in_folder(Path(settings.dir), settings.cluster.password_file)
    if local is None:
        raise CommandError(f"{settings.dir} holds no cluster yet; start one with: ackgate up --config {file}")
    return local


def _source_in_folder(directory: Path, password_file: str | None) -> _Source | None:
    try:
        layout = msgspec.json.decode((directory / PLAN_FILE).read_bytes(), type=Layout)
    except (OSError, ValueError):
        return None
    return _Source([(layout.host, node.port) for node in layout.nodes], password_file)


def _source_at_admin(url: str) -> _Source:
    if not url.startswith(("http://", "https://")):
        raise CommandError(f"{url!r} is not the URL of an admin endpoint; write it like {DEFAULT_ADMIN}")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/topology", timeout=_ADMIN_TIMEOUT_S) as answer:
            topology = json.load(answer)
        nodes = [
            node for shard in topology["shards"] for node in (shard["primary"], *shard["replicas"]) if node is not None
        ]
        seeds = [split_address(node["address"]) for node in nodes]
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(
            f"no proxy answers at {url}: {getattr(reason, 'strerror', None) or reason}; "
            "start one with `ackgate up`, or say where to look with --admin URL or --seed HOST:PORT"
        ) from None
    except (ValueError, TypeError, LookupError):
        raise CommandError(f"{url} is not the admin endpoint of a proxy; look at the ready line for its URL") from None
    if not seeds:
        raise CommandError(f"the proxy at {url} has not found its cluster yet; {url}/readyz tells why")
    return _Source(seeds, topology=topology)


def _ask(source: _Source, credentials: Credentials) -> ClusterStatus:
    try:
        return trio.run(partial(read_status, source.seeds, credentials))
    except ShardError as error:
        if source.topology is None:
            raise
        return _as_the_proxy_sees_it(source.topology, str(error))


def _as_the_proxy_sees_it(topology: dict[str, Any], reason: str) -> ClusterStatus:
    shards = [
        ShardStatus(
            id=shard["id"],
            slots=[(first, last) for first, last in shard["slots"]],
            primary=_node(shard["primary"], "primary", None) if shard["primary"] is not None else None,
            replicas=[_node(replica, "replica", shard["primary"]) for replica in shard["replicas"]],
        )
        for shard in topology["shards"]
    ]
    return ClusterStatus(
        ok=False, shards=shards, problems=[f"as the proxy sees it; the nodes cannot be asked from here: {reason}"]
    )


def _node(node: dict[str, Any], role: Any, primary: dict[str, Any] | None) -> NodeStatus:
    offset = node.get("offset")
    ahead = primary.get("offset") if primary is not None else None
    return NodeStatus(
        address=node["address"],
        node_id=node["node_id"],
        role=role,
        health=node["health"],
        zone=node.get("zone") or "",
        pid=node.get("pid"),
        offset=offset,
        lag=max(0, ahead - offset) if ahead is not None and offset is not None else None,
    )


def _print(picture: ClusterStatus) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width; do not cut what a script or a log wants whole
    table = Table(box=box.SIMPLE_HEAD)
    for column in (
        "shard",
        "slots",
        "role",
        "node",
        "health",
        "lag",
        "persistence",
        "keys",
        "memory",
        "pid",
        "zone",
        "engine",
    ):
        table.add_column(
            column, justify="right" if column in ("lag", "keys", "memory", "pid") else "left", no_wrap=column == "node"
        )
    for number, shard in enumerate(picture.shards, 1):
        _add_shard(table, number, shard)
    console.print(table)
    if any(node.aof == "everysec" and (node.version or "").startswith("valkey") for node in _nodes(picture)):
        console.print(
            "WAITAOF is not trusted: under aof everysec Valkey claims the fsync before it happened; use always",
            style="yellow",
        )
    for problem in picture.problems:
        console.print(problem, style="yellow", markup=False)
    if picture.ok:
        console.print("all slots are served", style="green")


def _nodes(picture: ClusterStatus) -> list[NodeStatus]:
    return [node for shard in picture.shards for node in (shard.primary, *shard.replicas) if node is not None]


def _add_shard(table: Table, number: int, shard: ShardStatus) -> None:
    slots = " ".join(f"{first}-{last}" for first, last in shard.slots) or "none"
    if shard.primary is None:
        table.add_row(str(number), slots, "primary", "-", "[red]none[/red]")
    else:
        _add_node(table, shard.primary, "primary", str(number), slots)
    for replica in shard.replicas:
        _add_node(table, replica, "replica" if replica.role == "replica" else "former primary")


def _add_node(table: Table, node: NodeStatus, role: str, number: str = "", slots: str = "") -> None:
    colour = {"online": "green", "loading": "yellow"}.get(node.health, "red")
    health = node.health if node.link != "down" else f"{node.health}, no link"
    table.add_row(
        number,
        slots,
        role,
        node.address,
        f"[{colour}]{health}[/{colour}]",
        _bytes(node.lag),
        _persistence(node),
        "-" if node.keys is None else str(node.keys),
        _bytes(node.used_memory),
        "-" if node.pid is None else str(node.pid),
        node.zone or "-",
        node.version or "-",
    )


def _persistence(node: NodeStatus) -> str:
    if node.aof is None:
        return "-"
    snapshot = ", last snapshot failed" if node.last_bgsave not in (None, "ok") else ""
    return f"aof {node.aof}{snapshot}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"
