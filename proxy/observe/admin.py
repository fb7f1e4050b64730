"""The admin endpoint: health, readiness, metrics, topology and orders over HTTP.

What lives here: the routes and the way they are served (Starlette on Hypercorn's trio worker). What may not: figures,
which the server keeps.

Some facts about Hypercorn's trio worker (hypercorn/trio/run.py, tcp_server.py) that this file depends on:
- it takes a socket that is already bound as ``fd://N`` and owns that descriptor from then on;
- ``serve`` installs no signal handlers (its ``run`` does) and ends on cancellation, letting open requests finish for
  ``graceful_timeout``;
- it sends inside a *shielded* scope: a peer that stops reading would keep the worker from ending. The kernel's
  TCP_USER_TIMEOUT, inherited by accepted sockets from the listening one, breaks such a connection, so that the wait
  is bounded;
- its own logger writes a line at each start: the class below keeps what is worth a line and hands it to the project's
  log.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.logging import Logger
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proxy.errors import UserError
from proxy.observe.metrics import Metrics
from proxy.observe.orders import Ordered, order_routes
from proxy.settings import AdminSettings

_SLOTS = 16384
_STUCK_PEER_MS = 5000  # well above any scrape on a private network, and short enough to wait for at a stop
_GRACE_S = 1.0


class Observed(Ordered, Protocol):
    """What the admin endpoint needs of the server."""

    @property
    def ready(self) -> bool: ...

    @property
    def metrics(self) -> Metrics: ...

    def topology(self) -> dict[str, Any]: ...

    def trace(self, client: int) -> dict[str, Any] | None: ...


class AdminError(UserError):
    """The admin port cannot be had. One line that says what to do."""


def bind_admin(settings: AdminSettings) -> socket.socket:
    """A listening socket for the admin endpoint; port 0 takes a free one.

    Raises AdminError when the address cannot be had.
    """
    try:
        return _listening(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise AdminError(
            f"cannot serve the admin endpoint on {where}: {error.strerror or error}; "
            "stop what uses it or choose another with --admin-port (0 takes any free one)"
        ) from None


def _listening(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_PEER_MS)
        listener.bind(address)
        listener.listen(100)
    except OSError:
        listener.close()
        raise
    return listener


def admin_app(server: Observed) -> Starlette:
    """The ASGI application: ``/healthz``, ``/readyz``, ``/metrics``, ``/topology``, ``/traces/CLIENT``, and orders.

    All but orders is read only: who can reach it can look, and run no command.
    """

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if server.ready:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": unready_reason(server.topology())}, status_code=503)

    async def metrics(request: Request) -> Response:
        body, content_type = await server.metrics.render_in_pieces(request.headers.get("accept", ""))
        # Set by hand: Starlette would add a charset to a content type that already names one.
        return Response(body, headers={"content-type": content_type})

    async def topology(request: Request) -> Response:
        return JSONResponse(server.topology())

    async def trace(request: Request) -> Response:
        found = server.trace(request.path_params["client"])
        if found is None:
            return JSONResponse({"error": "no write of this client was timed"}, status_code=404)
        return JSONResponse(found)

    async def index(request: Request) -> Response:
        paths = "/healthz /readyz /metrics /topology /traces/CLIENT, POST /switchover"
        return PlainTextResponse(f"Ackgate admin: {paths}\n")

    handlers = {"/": index, "/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/topology": topology}
    routes = [Route(path, handler) for path, handler in handlers.items()]
    return Starlette(routes=[*routes, Route("/traces/{client:int}", trace), *order_routes(server)])


def unready_reason(topology: dict[str, Any]) -> str:
    """Why a proxy with this topology is not ready, in words for a person."""
    if topology.get("draining"):
        return "the proxy is being stopped"
    shards = topology.get("shards") or []
    if not shards:
        return "the cluster has not been discovered yet"
    served = [shard for shard in shards if shard.get("slots") and _serves(shard)]
    missing = _SLOTS - sum(last - first + 1 for shard in served for first, last in shard["slots"])
    down = [str(shard.get("id")) for shard in shards if shard.get("slots") and not _serves(shard)]
    if down:
        return f"{missing} slots have no primary that answers: shard {', '.join(down)}"
    if missing:
        return f"{missing} slots are assigned to no shard"
    return "the primaries have not all answered yet"


def _serves(shard: dict[str, Any]) -> bool:
    primary = shard.get("primary")
    return primary is not None and primary.get("health") == "online"


async def serve_admin(
    server: Observed,
    listener: socket.socket,
    *,
    log: Any,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the admin endpoint on ``listener`` (from ``bind_admin``, taken over) until cancelled; started with its
    (host, port)."""
    await serve_app(admin_app(server), listener, log=log, task_status=task_status)


async def serve_app(
    app: Starlette,
    listener: socket.socket,
    *,
    log: Any,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As ``serve_admin``, of any application."""
    address = listener.getsockname()[:2]
    config = Config()
    config.bind = f"fd://{listener.detach()}"
    config.graceful_timeout = _GRACE_S
    config.include_server_header = False
    config.logger_class = _forwarding(log)
    async with trio.open_nursery() as nursery:
        await nursery.start(hypercorn.trio.serve, app, config)
        task_status.started((str(address[0]), int(address[1])))


def _forwarding(log: Any) -> type[Logger]:
    """A Hypercorn logger class that hands warnings and worse to ``log``; the rest, and every access, is dropped."""

    class Forwarding(Logger):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.error_logger = None

        async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
            log.warning("admin_http", detail=message % args if args else message)

        async def error(self, message: str, *args: Any, **kwargs: Any) -> None:
            log.error("admin_http", detail=message % args if args else message)

        async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
            log.exception("admin_http", detail=message % args if args else message)

        critical = error

    return Forwarding
