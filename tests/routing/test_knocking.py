"""A node whose packets are lost: as soon as they pass again it is reached, long before the kernel tries again."""

from __future__ import annotations

import socket

import pytest
import trio

from proxy.settings import TimeoutSettings
from tests.routing.test_foreign import cluster

LOST = 3.15  # seconds; the kernel sends the first packet of a connection again after 3 s, then after 4 or 7
SOON = 0.7  # seconds


def deaf() -> tuple[socket.socket, list[socket.socket]]:
    """A listener for which the kernel drops all that is new, and whoever fills its queue."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = [socket.socket() for _ in range(4)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(listener.getsockname())
    return listener, waiting


async def answer(listener: trio.SocketListener) -> None:
    async def welcome(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await stream.send_all(b"+OK\r\n")

    await trio.serve_listeners(welcome, [listener])


@pytest.mark.slow
async def test_a_node_is_reached_as_soon_as_packets_pass_again() -> None:
    ours = cluster()
    ours.timeouts = TimeoutSettings(connect=60.0)
    listener, waiting = deaf()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def open_up() -> None:
            await trio.sleep(LOST)
            for each in waiting:
                each.close()
            await answer(trio.SocketListener(trio.socket.from_stdlib_socket(listener)))

        nursery.start_soon(open_up)
        connection = await ours._knock(*listener.getsockname())
        nursery.cancel_scope.cancel()
    connection.abort()
    assert LOST < trio.current_time() - began < LOST + SOON
