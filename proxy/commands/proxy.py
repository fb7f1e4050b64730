"""``ackgate proxy``: the proxy alone, in front of a cluster that runs already."""

from __future__ import annotations

import click
import trio

from proxy.commands.common import Stop, check_port, run_until_stopped
from proxy.commands.local import overridden
from proxy.commands.progress import Progress
from proxy.commands.serving import Serving, serve, workers_option
from proxy.configfile import load
from proxy.observe.admin import bind_admin
from proxy.observe.log import configure_log
from proxy.settings import ProxySettings


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(),
    required=True,
    metavar="FILE",
    help="Configuration; config/proxy.yaml is one to copy.",
)
@workers_option
def proxy(file: str, workers: int | str | None) -> int:
    """Run the proxy in front of a cluster that runs already.

    Clients are accepted at once; the line "ready redis://HOST:PORT admin http://HOST:PORT" follows on standard output
    when every slot has a primary that answers.
    """
    settings = overridden(load(file, ProxySettings), workers=workers)

    async def body(stop: Stop) -> int:
        return await _run(settings, stop)

    return run_until_stopped(body)


async def _run(settings: ProxySettings, stop: Stop) -> int:
    check_port(settings.listen.host, settings.listen.port, option="listen.port in the configuration")
    admin = bind_admin(settings.admin)
    log = configure_log(settings.log)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Serving]) -> None:
            await serve(settings, admin, log=log, task_status=task_status)

        with Progress() as progress:
            serving: Serving = await nursery.start(run)
            stop.status = 0
            stop.drain = serving.server.drain
            progress(f"listening on {serving.redis_url}, waiting for the cluster", 0, 0)
            await serving.server.wait_ready()
        click.echo(serving.line)
        await trio.sleep_forever()
    return 0
