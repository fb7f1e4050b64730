"""``ackgate shard``: the cluster alone, without a proxy."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from proxy.commands.common import CommandError, Stop, run_until_stopped
from proxy.commands.local import STEPS, cluster_options, local_settings, running_cluster
from proxy.commands.progress import Progress
from proxy.commands.status import show_status, source_options
from proxy.configfile import read_password
from proxy.observe.log import configure_log
from proxy.settings import LocalSettings, split_address
from shard.client import Credentials, format_address
from shard.form import form as form_cluster


@click.group()
def shard() -> None:
    """Run or form a cluster alone, without a proxy."""


@shard.command()
@cluster_options
def start(
    shards: int | None, replicas: int | None, directory: str | None, appendfsync: str | None, file: str | None
) -> int:
    """Run a cluster on this machine until Ctrl-C.

    When it is formed, the line "ready HOST:PORT HOST:PORT ..." on standard output names its nodes: the seeds for a
    proxy.
    """
    settings = local_settings(file, shards=shards, replicas=replicas, directory=directory, appendfsync=appendfsync)

    async def body(stop: Stop) -> int:
        return await _start(settings, stop)

    return run_until_stopped(body)


async def _start(settings: LocalSettings, stop: Stop) -> int:
    log = configure_log(settings.proxy.log)
    with Progress() as progress:
        async with running_cluster(settings, Path(settings.dir), stop=stop, progress=progress, log=log) as cluster:
            progress.pause()
            stop.status = 0
            click.echo(f"ready {' '.join(format_address(*seed) for seed in cluster.seeds())}")
            await trio.sleep_forever()
    return 0


@shard.command()
@click.argument("nodes", nargs=-1, required=True, metavar="HOST:PORT...")
@click.option(
    "--shards", type=click.IntRange(1, 1000), help="Primaries.  [default: the nodes there are, divided by 1 + replicas]"
)
@click.option("--replicas", type=click.IntRange(0, 100), default=1, show_default=True, help="Replicas of each primary.")
@click.option("--username", help="ACL user to log in as.")
@click.option("--password-file", type=click.Path(), metavar="FILE", help="File whose first line is the password.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the nodes, and again for the forming.",
)
def form(
    nodes: tuple[str, ...],
    shards: int | None,
    replicas: int,
    username: str | None,
    password_file: str | None,
    timeout: float,
) -> int:
    """Make one cluster of NODES (started with cluster-enabled yes, and empty), named by host name or address.

    Nodes that are not up yet are waited for. The first become primaries, the others their replicas, in another
    availability zone where nodes have one. On a cluster formed already it only checks that all is well; nodes whose
    addresses changed it introduces to each other again: data, slots and roles stay.
    """
    try:
        addresses = [split_address(node) for node in nodes]
    except ValueError as error:
        raise CommandError(str(error)) from None
    primaries = shards if shards is not None else max(1, len(addresses) // (1 + replicas))
    credentials = Credentials(username, read_password(password_file) if password_file is not None else None)

    async def body(stop: Stop) -> int:
        with Progress() as progress:
            warnings = await form_cluster(
                addresses,
                shards=primaries,
                replicas=replicas,
                credentials=credentials,
                progress=lambda step, done, total: progress(STEPS.get(step, step), done, total),
                timeout=timeout,
            )
            for warning in warnings:
                progress.say(f"warning: {warning}")
        click.echo(f"formed: {primaries} shards with {replicas} replicas each")
        return 0

    return run_until_stopped(body)


@shard.command()
@source_options
def status(
    admin: str | None,
    file: str | None,
    seeds: tuple[str, ...],
    username: str | None,
    password_file: str | None,
    as_json: bool,
) -> int:
    """Show the shards, asking the nodes themselves (the same as `ackgate status`)."""
    return show_status(
        admin=admin, file=file, seeds=seeds, username=username, password_file=password_file, as_json=as_json
    )
