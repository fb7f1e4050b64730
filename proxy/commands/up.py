"""``ackgate up``: a cluster on this machine and the proxy in front of it, until Ctrl-C or for the length of a
command."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec
import trio

from proxy.commands.common import CommandError, Stop, check_port, run_until_stopped
from proxy.commands.local import cluster_options, local_settings, overridden, running_cluster, throwaway_directory
from proxy.commands.progress import Progress
from proxy.commands.serving import Serving, serve, url, workers_option
from proxy.configfile import read_password
from proxy.observe.admin import bind_admin
from proxy.observe.log import configure_log
from proxy.settings import LocalSettings, SeedSettings, in_front_of
from shard.client import format_address
from shard.process import Process, spawn

_COMMAND_GRACE_S = 10.0
_META = "ackgate.command"


class _Up(click.Command):
    """Takes what stands behind ``--`` away before options are read, so that a mistyped option is never run as a
    command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta[_META] = tuple(args[place + 1 :])
            args = args[:place]
            if not ctx.meta[_META]:
                raise click.UsageError("no command behind --", ctx)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- CMD ARGS]"]


class _Plan(msgspec.Struct, frozen=True):
    """What was asked for, settled."""

    settings: LocalSettings
    directory: Path
    command: tuple[str, ...]


@click.command(cls=_Up)
@cluster_options
@click.option("--host", help="Address that clients connect to.  [default: 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port that clients connect to; 0 is any free one.  [default: 6379, with CMD 0]",
)
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help="Port of the admin HTTP; 0 is any free one.  [default: 9121, with CMD 0]",
)
@workers_option
@click.pass_context
def up(
    ctx: click.Context,
    shards: int | None,
    replicas: int | None,
    directory: str | None,
    appendfsync: str | None,
    file: str | None,
    host: str | None,
    port: int | None,
    admin_port: int | None,
    workers: int | str | None,
) -> int:
    """Run a sharded cluster on this machine and the proxy in front of it.

    When all of it answers, the line "ready redis://HOST:PORT admin http://HOST:PORT" appears on standard output;
    Ctrl-C or SIGTERM ends it.

    With CMD, runs that against a throw-away cluster (kept if --dir is given) on any free ports, with REDIS_URL,
    ACKGATE_ADMIN and ACKGATE_DIR in its environment, and exits as it does.
    """
    command: tuple[str, ...] = ctx.meta.get(_META, ())
    settings = local_settings(file, shards=shards, replicas=replicas, directory=directory, appendfsync=appendfsync)
    if command and file is None:  # side by side with others by default
        port, admin_port = port or 0, admin_port or 0
    endpoint = overridden(
        settings.proxy,
        listen=overridden(settings.proxy.listen, host=host, port=port),
        admin=overridden(settings.proxy.admin, port=admin_port),
        workers=workers,
    )
    settings = overridden(settings, proxy=endpoint)
    if command and shutil.which(command[0]) is None:
        raise CommandError(f"cannot run {command[0]!r}: there is no such program; check its name and PATH")
    with ExitStack() as stack:
        where = Path(settings.dir) if directory or not command else stack.enter_context(throwaway_directory())
        plan = _Plan(settings, where.absolute(), command)

        async def body(stop: Stop) -> int:
            if command and not directory:
                stop.at_once.append(lambda: shutil.rmtree(where, ignore_errors=True))
            return await _run(plan, stop)

        return run_until_stopped(body)


async def _run(plan: _Plan, stop: Stop) -> int:
    endpoint = plan.settings.proxy
    check_port(endpoint.listen.host, endpoint.listen.port, option="--port")
    admin = bind_admin(endpoint.admin)
    log = configure_log(endpoint.log)
    with Progress() as progress:
        async with running_cluster(plan.settings, plan.directory, stop=stop, progress=progress, log=log) as cluster:
            seeds = SeedSettings(
                seeds=tuple(format_address(*seed) for seed in cluster.seeds()),
                password_file=plan.settings.cluster.password_file,
            )
            async with trio.open_nursery() as nursery:

                async def run(task_status: trio.TaskStatus[Serving]) -> None:
                    await serve(in_front_of(endpoint, seeds), admin, log=log, task_status=task_status)

                progress("starting the proxy", 0, 0)
                serving: Serving = await nursery.start(run)
                await serving.server.wait_ready()
                progress.pause()
                if not plan.command:
                    stop.status = 0
                    stop.drain = serving.server.drain
                    click.echo(serving.line)
                    await trio.sleep_forever()
                progress.say(serving.line)
                status = await _run_command(plan, serving, stop)
                nursery.cancel_scope.cancel()
    return status


async def _run_command(plan: _Plan, serving: Serving, stop: Stop) -> int:
    """Runs CMD to its end and returns its exit status, 128 + n when signal n ended it; it never outlives us."""
    auth = plan.settings.proxy.auth.password_file
    password = None if auth is None else read_password(auth)
    environment = {
        "REDIS_URL": url("redis", serving.server.address, password=password),
        "ACKGATE_ADMIN": serving.admin_url,
        "ACKGATE_DIR": str(plan.directory),
    }
    # In our own session, unlike the nodes: an interactive CMD needs its terminal.
    process = spawn(plan.command, env={**os.environ, **environment}, own_session=False)
    stop.on_signal = lambda number: number == signal.SIGINT and _is_in_foreground()
    try:
        return _status(await process.wait())
    except trio.Cancelled:
        stop.status = _status(await _end(process, signal.Signals(stop.signum or signal.SIGTERM)))
        raise
    finally:
        stop.on_signal = None


async def _end(process: Process, number: signal.Signals) -> int:
    process.send_signal(number)
    with trio.move_on_after(_COMMAND_GRACE_S, shield=True):
        await process.wait()
    process.kill()  # harmless when it has ended
    with trio.CancelScope(shield=True):
        await process.wait()
    return process.returncode or 0


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _is_in_foreground() -> bool:
    """True when we have a terminal's foreground: its Ctrl-C then reaches CMD by itself, and what it means is CMD's to
    say."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
