"""A cluster on this machine for the length of a command: what ``ackgate up`` and ``ackgate shard start`` share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import msgspec
import trio

from proxy.commands.common import CommandError, Stop
from proxy.commands.progress import Progress
from proxy.configfile import load
from proxy.settings import LocalSettings
from shard.supervise import Cluster

P = ParamSpec("P")
R = TypeVar("R")

APPENDFSYNC = ("always", "everysec", "no")
STEPS = {
    "start": "starting nodes",
    "wait": "waiting for nodes",
    "meet": "introducing nodes to each other",
    "replicate": "attaching replicas",
    "ready": "waiting for the cluster",
}


def cluster_options(command: Callable[P, R]) -> Callable[P, R]:
    """The options that shape the local cluster."""
    for option in reversed(
        (
            click.option("--shards", type=click.IntRange(1, 1000), help="Primaries.  [default: 3]"),
            click.option("--replicas", type=click.IntRange(0, 100), help="Replicas of each primary.  [default: 1]"),
            click.option(
                "--dir",
                "directory",
                type=click.Path(),
                metavar="D",
                help="Data, found again at the next start.  [default: .ackgate]",
            ),
            click.option(
                "--appendfsync",
                type=click.Choice(APPENDFSYNC),
                help="When writes reach the disk: before the reply, each second, or any time.  [default: always]",
            ),
            click.option(
                "--config",
                "file",
                type=click.Path(),
                metavar="FILE",
                help="Configuration, config/local.yaml is one to copy; options win over it.",
            ),
        )
    ):
        command = option(command)
    return command


def local_settings(
    file: str | None, *, shards: int | None, replicas: int | None, directory: str | None, appendfsync: str | None
) -> LocalSettings:
    """The settings of ``file`` (all defaults without one) with the options that were given put over them.

    Raises SettingsError for the file and CommandError for options that contradict it.
    """
    settings = LocalSettings() if file is None else load(file, LocalSettings)
    cluster = overridden(settings.cluster, shards=shards, replicas=replicas, aof=appendfsync)
    return overridden(settings, cluster=cluster, dir=directory)


S = TypeVar("S", bound=msgspec.Struct)


def overridden(settings: S, **changes: Any) -> S:
    """``settings`` with those of ``changes`` that are not None. Raises CommandError when the result is not allowed."""
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        # Replacing checks nothing; converting does, as for a file.
        return msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(settings, **given)), type(settings))
    except ValueError as error:
        raise CommandError(f"{error}; change the options") from None


@contextmanager
def throwaway_directory() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ackgate-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def running_cluster(
    settings: LocalSettings, directory: Path, *, stop: Stop, progress: Progress, log: Any
) -> AsyncIterator[Cluster]:
    """A formed and watched cluster; every process of it is gone afterwards, whatever happens inside."""
    cluster = Cluster(directory, settings.cluster, log=log)
    stop.at_once.append(cluster.kill)
    for warning in await cluster.start(lambda step, done, total: progress(STEPS.get(step, step), done, total)):
        progress.say(f"warning: {warning}")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.watch)
            yield cluster
            nursery.cancel_scope.cancel()
    finally:
        await cluster.stop()
