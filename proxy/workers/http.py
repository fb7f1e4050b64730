"""How a request to the admin endpoint travels over the private socket to a worker, and its response back.

What lives here: the form of both, at either end. What may not: who is asked what (``proxy.workers.admin``).
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.workers.link import Emit, Link, Unanswered

OF_ONE_CONNECTION = frozenset({b"connection", b"date", b"keep-alive", b"transfer-encoding"})
"""Headers that are not passed on."""


async def question_of(request: Request) -> dict[str, Any]:
    """A request as it travels."""
    return {
        "method": request.method,
        "path": request.url.path,
        "query": request.scope["query_string"],
        "headers": list(request.scope["headers"]),
        "client": request.scope.get("client"),
        "server": request.scope.get("server"),
        "body": await _body(request),
    }


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        return b""  # nobody hears the answer; a part of it must not be taken for all


async def whole(link: Link, question: dict[str, Any], patience: float) -> tuple[int, bytes] | None:
    """(status, body) of a short response, None when there is none within ``patience`` seconds."""
    pieces: list[Any] = []
    with trio.move_on_after(patience):
        try:
            await link.ask("http", question, pieces.append)
        except Unanswered:
            return None
        return pieces[0][0], b"".join(pieces[1:])
    return None


class PassedOn(Response):
    """A worker's response, as it comes; ``unanswered`` in its place where there is none."""

    def __init__(self, link: Link, question: dict[str, Any], unanswered: Response) -> None:
        super().__init__()
        self._link = link
        self._question = question
        self._unanswered = unanswered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry it to the client, for as long as that is there."""
        put, pieces = trio.open_memory_channel[Any](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, put)
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            begun = False
            async for piece in pieces:
                if not begun:
                    await send(_start(*piece))
                else:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                begun = True
            if begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await self._unanswered(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _ask(self, put: trio.MemorySendChannel[Any]) -> None:
        with put:
            try:
                await self._link.ask("http", self._question, put.send_nowait)
            except Unanswered:
                return  # what came so far is all there is


def _start(status: int, headers: list[list[bytes]]) -> dict[str, Any]:
    kept = [(name, value) for name, value in headers if name.lower() not in OF_ONE_CONNECTION]
    return {"type": "http.response.start", "status": status, "headers": kept}


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def answer(app: Starlette, question: dict[str, Any], emit: Emit) -> None:
    """Have ``app`` answer a request that came over the private socket: (status, headers) first, then its body."""
    unread = [question["body"]]

    async def receive() -> MutableMapping[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await trio.sleep_forever()  # a client that goes has all of this cancelled
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            emit((message["status"], list(message.get("headers", ()))))
        elif message.get("body"):
            emit(message["body"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": question["method"],
        "path": question["path"],
        "raw_path": question["path"].encode(),
        "query_string": question["query"],
        "headers": [tuple(header) for header in question["headers"]],
        "client": question["client"],
        "server": question["server"],
    }
    await app(scope, receive, send)
