"""A proxy and its admin endpoint, run together: what ``ackgate up`` and ``ackgate proxy`` share."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote

import click
import trio

from proxy.observe.admin import serve_admin, serve_app
from proxy.settings import MOST_WORKERS, ProxySettings
from proxy.workers import count

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from proxy.server import Server

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class _Workers(click.ParamType[int | str]):
    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        word = str(value)
        if word == "auto":
            return word
        if not (word.isascii() and word.isdigit() and 1 <= int(word) <= MOST_WORKERS):
            self.fail(f"{word!r} is not a whole number from 1 to {MOST_WORKERS}, and not auto", param, ctx)
        return int(word)


workers_option = click.option(
    "--workers",
    type=_Workers(),
    metavar="N|auto",
    help="Processes that serve clients; auto is one for each usable CPU.  [default: 1]",
)


class Accepting(Protocol):
    """What serves clients: one process or several."""

    @property
    def address(self) -> tuple[str, int]: ...

    async def wait_ready(self) -> None: ...

    async def drain(self) -> None: ...


class Serving(NamedTuple):
    """A proxy that accepts clients. ``redis_url`` holds no password."""

    server: Accepting
    redis_url: str
    admin_url: str

    @property
    def line(self) -> str:
        """The one line on standard output by which scripts learn that, and where, the proxy can be used."""
        return f"ready {self.redis_url} admin {self.admin_url}"


def url(scheme: str, address: tuple[str, int], *, password: str | None = None) -> str:
    """A URL that can be dialled from this machine for a listener's (host, port)."""
    host, port = _WILDCARDS.get(address[0], address[0]), address[1]
    secret = f":{quote(password, safe='')}@" if password is not None else ""
    return f"{scheme}://{secret}{f'[{host}]' if ':' in host else host}:{port}"


async def serve(
    settings: ProxySettings,
    admin: socket.socket,
    *,
    log: Any,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs the proxy and its admin endpoint (on the listener ``admin``, taken over) until cancelled; started when
    both accept."""
    workers = count(settings.workers)
    if workers > 1:
        await _serve_team(settings, workers, admin, log=log, task_status=task_status)
        return
    # Loaded here, so that help, and mistakes found before anything is started, are told without loading the proxy.
    from proxy.server import Server

    server = Server(settings, log=log)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        address = await nursery.start(_serve_admin, server, admin, log)
        task_status.started(Serving(server, url("redis", server.address), url("http", address)))


async def _serve_team(
    settings: ProxySettings, workers: int, admin: socket.socket, *, log: Any, task_status: trio.TaskStatus[Serving]
) -> None:
    from proxy.workers.admin import team_app
    from proxy.workers.team import Team

    team = Team(settings, workers, log=log)
    async with trio.open_nursery() as nursery:
        await nursery.start(team.run)
        address = await nursery.start(_serve_app, team_app(team), admin, log)
        task_status.started(Serving(team, url("redis", team.address), url("http", address)))


async def _serve_app(
    app: Starlette, listener: socket.socket, log: Any, *, task_status: trio.TaskStatus[tuple[str, int]]
) -> None:
    await serve_app(app, listener, log=log, task_status=task_status)


async def _serve_admin(
    server: Server, listener: socket.socket, log: Any, *, task_status: trio.TaskStatus[tuple[str, int]]
) -> None:
    await serve_admin(server, listener, log=log, task_status=task_status)
