"""The control connection: values, errors, and never somebody else's reply."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from shard.client import ConnectionLost, ControlConnection, Credentials, ReplyError, encode_command, format_address

Until = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]


@pytest.fixture
async def connection(standing: list[tuple[str, int]]) -> Any:
    async with await ControlConnection.open(*standing[0], client_name="tests") as opened:
        yield opened


async def test_values_come_as_bytes_and_a_name_is_set(connection: ControlConnection) -> None:
    assert await connection.call("CLIENT", "GETNAME") == b"tests"
    assert await connection.call("ECHO", b"\x00\xff\r\n") == b"\x00\xff\r\n"
    assert isinstance(await connection.call("DBSIZE"), int)


async def test_an_error_reply_is_raised_and_leaves_the_connection_usable(connection: ControlConnection) -> None:
    with pytest.raises(ReplyError, match=r"^ERR unknown command 'NOSUCH'") as caught:
        await connection.call("NOSUCH")
    assert caught.value.code == "ERR"
    assert await connection.call("PING") == b"PONG"


async def test_a_pipeline_keeps_errors_in_their_places(connection: ControlConnection) -> None:
    first, second, third = await connection.pipeline(["PING"], ["NOSUCH"], ["ECHO", 7])
    assert (first, third) == (b"PONG", b"7")
    assert isinstance(second, ReplyError)


async def test_calls_of_many_tasks_each_get_their_own_reply(connection: ControlConnection) -> None:
    replies: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        replies[number] = await connection.call("ECHO", number)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    assert replies == {number: b"%d" % number for number in range(100)}


async def test_a_large_value_comes_whole(connection: ControlConnection) -> None:
    value = bytes(range(256)) * 40_000
    assert await connection.call("ECHO", value) == value


async def test_a_call_without_an_answer_in_time_closes_the_connection(connection: ControlConnection) -> None:
    with pytest.raises(ConnectionLost, match=r"no answer within 0\.05 s"):
        await connection.call("WAIT", 100, 0, timeout=0.05)
    assert connection.closed
    with pytest.raises(ConnectionLost, match="closed"):
        await connection.call("PING")


async def test_a_cancelled_call_closes_the_connection_and_those_behind_it_learn_so(
    connection: ControlConnection,
) -> None:
    outcome: list[BaseException] = []

    async def second() -> None:
        try:
            await connection.call("PING")
        except ConnectionLost as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(second)
            scope.deadline = trio.current_time() + 0.05
            await connection.call("WAIT", 100, 0)
    assert connection.closed
    assert len(outcome) == 1


async def test_a_sent_command_is_received_later_and_cancelling_the_wait_is_harmless(
    connection: ControlConnection,
) -> None:
    await connection.send("WAIT", 100, 0)
    client_id = await _id_of_blocked(connection)
    with trio.move_on_after(0.05):
        await connection.receive(timeout=math.inf)
    assert connection.pending == 1
    with pytest.raises(RuntimeError, match="outstanding"):
        await connection.call("PING")
    async with await ControlConnection.open(connection.host, connection.port) as other:
        assert await other.call("CLIENT", "UNBLOCK", client_id) == 1
    assert isinstance(await connection.receive(), int)
    assert await connection.call("PING") == b"PONG"
    with pytest.raises(RuntimeError, match="without an outstanding"):
        await connection.receive()


async def _id_of_blocked(connection: ControlConnection) -> str:
    async with await ControlConnection.open(connection.host, connection.port) as other:
        while True:
            for line in (await other.call("CLIENT", "LIST")).decode().splitlines():
                fields = dict(field.partition("=")[::2] for field in line.split())
                if fields["name"] == "tests" and "b" in fields["flags"]:
                    return str(fields["id"])


async def test_an_error_reply_to_a_sent_command_is_raised_by_receive(connection: ControlConnection) -> None:
    await connection.send("NOSUCH")
    with pytest.raises(ReplyError):
        await connection.receive()
    assert await connection.call("PING") == b"PONG"


async def test_pushes_are_handed_over_and_answer_nobody(standing: list[tuple[str, int]]) -> None:
    pushes: list[list[Any]] = []
    key = "{06S}"  # slot 0, the first node's
    async with await ControlConnection.open(*standing[0], protocol=3) as connection:
        connection.on_push = pushes.append
        await connection.call("CLIENT", "TRACKING", "ON")
        assert await connection.call("GET", key) is None
        async with await ControlConnection.open(*standing[0]) as writer:
            await writer.call("SET", key, 1)
        with trio.fail_after(10):
            while not pushes:
                assert await connection.call("PING") == b"PONG"
    assert pushes == [[b"invalidate", [key.encode()]]]


async def test_nobody_listening_is_one_clear_line() -> None:
    with pytest.raises(ConnectionLost, match=r"^127\.0\.0\.1:1: connection refused$"):
        await ControlConnection.open("127.0.0.1", 1)


async def test_a_refused_login_is_an_error_reply(standing: list[tuple[str, int]]) -> None:
    with pytest.raises(ReplyError, match="WRONGPASS"):
        await ControlConnection.open(*standing[0], username="nobody", password="secret")
    with pytest.raises(ReplyError, match="WRONGPASS"):
        await ControlConnection.open(*standing[0], username="nobody", password="secret", protocol=3)


@pytest.mark.parametrize(("answer", "reason"), [(b"HTTP/1.1 400\r\n", "protocol error"), (b"$5\r\nab", "closed by")])
async def test_what_is_not_a_whole_reply_is_a_lost_connection(answer: bytes, reason: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with await ControlConnection.open(*listener.socket.getsockname()) as connection:
            with pytest.raises(ConnectionLost, match=reason):
                await connection.call("PING")
            assert connection.closed
        nursery.cancel_scope.cancel()


def test_only_what_has_one_meaning_is_encoded() -> None:
    assert encode_command(["SET", b"k", 1]) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\n1\r\n"
    for wrong in (1.5, True, None):
        with pytest.raises(TypeError):
            encode_command(["SET", "k", wrong])  # type: ignore[list-item]


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Credentials("ann", "secret"))


def test_an_ipv6_address_is_bracketed() -> None:
    assert format_address("::1", 6379) == "[::1]:6379"
