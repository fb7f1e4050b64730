"""A proxy and its admin endpoint, run together: what ``ackgate up`` and ``ackgate proxy`` share."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import trio

from proxy.observe.admin import serve_admin
from proxy.settings import ProxySettings

if TYPE_CHECKING:
    from proxy.server import Server

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Serving(NamedTuple):
    """A proxy that accepts clients. ``redis_url`` holds no password."""

    server: Server
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
    # Loaded here, so that help, and mistakes found before anything is started, are told without loading the proxy.
    from proxy.server import Server

    server = Server(settings, log=log)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        address = await nursery.start(_serve_admin, server, admin, log)
        task_status.started(Serving(server, url("redis", server.address), url("http", address)))


async def _serve_admin(
    server: Server, listener: socket.socket, log: Any, *, task_status: trio.TaskStatus[tuple[str, int]]
) -> None:
    await serve_admin(server, listener, log=log, task_status=task_status)
