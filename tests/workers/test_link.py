"""The private socket between the parent and a worker: questions either way, pieces, errors, cancellation, the end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.workers.http import answer, whole
from proxy.workers.link import MOST_WAITING, Answer, Emit, Link, Unanswered


@asynccontextmanager
async def linked(one: Mapping[str, Answer], other: Mapping[str, Answer]) -> AsyncIterator[tuple[Link, Link]]:
    """Two ends over a real socket."""
    pair = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()]
    ends = Link(pair[0], one), Link(pair[1], other)
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.run)
        yield ends
        nursery.cancel_scope.cancel()


async def _double(value: Any, emit: Emit) -> Any:
    return value * 2


async def _count(value: Any, emit: Emit) -> str:
    for number in range(value):
        emit(number)
    return "done"


async def _fail(value: Any, emit: Emit) -> None:
    raise ValueError("it is wrong")


async def test_either_side_asks_many_things_at_a_time() -> None:
    async with linked({"double": _double}, {"double": _double}) as (one, other), trio.open_nursery() as nursery:

        async def ask(link: Link, number: int) -> None:
            assert await link.ask("double", number) == number * 2

        for number in range(500):
            nursery.start_soon(ask, one, number)
            nursery.start_soon(ask, other, number)


async def test_bytes_and_large_answers_arrive_whole() -> None:
    async with linked({}, {"double": _double}) as (one, _):
        value = bytes(range(256)) * 20_000
        assert await one.ask("double", value) == value * 2


async def test_pieces_come_ahead_of_the_answer_and_in_order() -> None:
    async with linked({}, {"count": _count}) as (one, _):
        pieces: list[int] = []
        assert await one.ask("count", 1000, pieces.append) == "done"
        assert pieces == list(range(1000))


async def test_an_error_is_told_and_harms_nothing_else() -> None:
    async with linked({}, {"fail": _fail, "double": _double}) as (one, _):
        with pytest.raises(Unanswered, match="ValueError: it is wrong"):
            await one.ask("fail")
        with pytest.raises(Unanswered, match="KeyError"):
            await one.ask("nothing of that name")
        assert await one.ask("double", 2) == 4


async def test_who_waits_no_longer_has_it_cancelled_at_the_other_side() -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def for_ever(value: Any, emit: Emit) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with linked({}, {"for ever": for_ever, "double": _double}) as (one, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.ask, "for ever")
            await begun.wait()
            nursery.cancel_scope.cancel()
        await cancelled.wait()
        assert await one.ask("double", 2) == 4


async def test_when_one_side_goes_whoever_waits_is_told() -> None:
    ours, theirs = socket.socketpair()
    link = Link(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)

        async def ask() -> None:
            with pytest.raises(Unanswered, match="it is gone"):
                await link.ask("anything")

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        theirs.close()
    with pytest.raises(Unanswered, match="it is gone"):
        await link.ask("anything")


async def test_one_that_does_not_read_is_not_asked_without_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        link = Link(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), {})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            for _ in range(MOST_WAITING + 2):
                with suppress(Unanswered), trio.move_on_after(0):
                    await link.ask("anything", bytes(10_000))
            with pytest.raises(Unanswered, match="it does not read"):
                await link.ask("anything")
            nursery.cancel_scope.cancel()


# ---- a request over it ---------------------------------------------------------------------------------------------


async def _echo(request: Request) -> Response:
    body = await request.body()
    assert request.client is not None
    given = {"header": request.headers["x-given"], "query": dict(request.query_params), "from": request.client}
    return JSONResponse({"method": request.method, "body": body.decode(), **given}, status_code=201)


async def _slowly(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number
            await trio.lowlevel.checkpoint()

    return StreamingResponse(pieces())


APP = Starlette(routes=[Route("/echo", _echo, methods=["POST"]), Route("/slowly", _slowly)])


def question(method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    return {
        "method": method,
        "path": path,
        "query": b"a=1",
        "headers": [(b"x-given", b"2")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 6),
        "body": body,
    }


async def _http(value: Any, emit: Emit) -> None:
    await answer(APP, value, emit)


async def test_a_request_travels_with_all_that_belongs_to_it() -> None:
    async with linked({}, {"http": _http}) as (one, _):
        found = await whole(one, question("POST", "/echo", b"words"), 5)
        assert found is not None and found[0] == 201
        assert found[1] == b'{"method":"POST","body":"words","header":"2","query":{"a":"1"},"from":["127.0.0.1",5]}'
        assert await whole(one, question("GET", "/slowly"), 5) == (200, b"012")
        missing = await whole(one, question("GET", "/nothing"), 5)
        assert missing is not None and missing[0] == 404
