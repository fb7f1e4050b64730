"""What the admin port takes in: orders, which change something.

What lives here: who may give one, and the routes.  What may not: carrying them out (``proxy.switchover``).

Nobody logs in to the admin port, so an order is taken from this machine alone, unless ``admin.token_file`` says what
those have to show who give one from anywhere.  A page in a browser on this machine is not to give one for its user:
a JSON body makes the browser ask first (Fetch standard, CORS-preflight), which nobody answers here; its ``Origin`` is
refused; and a name that was made to point here (DNS rebinding) is not one of ours.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.switchover.choice import Refused
from proxy.switchover.switchovers import Report

LARGEST = 4096  # bytes of an order


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /switchover``: see ``Switchovers.begin``.  ``max_stall`` in seconds."""

    shard: str
    to: str | None = None
    max_stall: float | None = None


class Ordered(Protocol):
    """What orders need of the server."""

    @property
    def admin_token(self) -> str | None: ...

    def switchover(self, shard: str, to: str | None, max_stall: float | None) -> Report: ...


def order_routes(server: Ordered) -> list[Route]:
    """The routes that change something."""

    async def switchover(request: Request) -> Response:
        refused = refusal(request, server.admin_token)
        if refused is not None:
            return refused
        try:
            order = msgspec.json.decode(await request.body(), type=Order)
        except ClientDisconnect:
            return _error(400, "the order did not arrive whole")  # nobody hears it
        except msgspec.MsgspecError as error:
            return _error(400, f'{error}; send {{"shard": "...", "to": "..."}}')
        try:
            report = server.switchover(order.shard, order.to, order.max_stall)
        except Refused as error:
            return _error(error.status, str(error))
        return StreamingResponse(_lines(report.follow), media_type="application/x-ndjson")

    return [Route("/switchover", switchover, methods=["POST"])]


def refusal(request: Request, token: str | None) -> Response | None:
    """Why this request gives no orders; None: it may."""
    headers = request.headers
    if "origin" in headers:
        return _error(403, "orders are not taken from web pages")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _error(415, "send the order as application/json")
    if not headers.get("content-length", "").isdigit() or int(headers["content-length"]) > LARGEST:
        return _error(413, f"an order says its content-length and has {LARGEST} bytes at most")
    if token is not None:
        given = headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return None
        return _error(401, "send what is in admin.token_file as Authorization: Bearer; the command has --token-file")
    if request.client is None or not is_loopback(request.client.host):
        return _error(403, "orders are taken from this machine alone; admin.token_file allows them from others")
    host = host_of(headers.get("host", ""))
    if host != "localhost" and not is_loopback(host):
        return _error(403, f"{host!r} is not a name of this machine's loopback; use its address")
    return None


def host_of(header: str) -> str:
    """The name or address in a ``Host`` header; empty where it cannot be read."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _error(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status_code=status)


async def _lines(follow: Callable[[], AsyncIterator[dict[str, Any]]]) -> AsyncIterator[bytes]:
    async for line in follow():
        yield msgspec.json.encode(line) + b"\n"
