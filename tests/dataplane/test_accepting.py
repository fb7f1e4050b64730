"""How clients are accepted, and what is done when there are no descriptors left."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Callable

import pytest

from proxy.codec import encode_request
from tests.dataplane.bench import Bench, Peer, get, number

Make = Callable[..., Bench]


@pytest.fixture
def listening(bench: Bench) -> tuple[str, int]:
    """The plane listens; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    bench.plane.listen(listener)
    address: tuple[str, int] = listener.getsockname()
    return address


def connect(bench: Bench, address: tuple[str, int]) -> Peer:
    peer = Peer(bench, socket.create_connection(address))
    bench.peers.append(peer)
    return peer


def test_it_accepts_everyone_who_waits_in_one_go_or_more(bench: Bench, listening: tuple[str, int]) -> None:
    shards = bench.shards()
    clients = [connect(bench, listening) for _ in range(100)]
    bench.spin(lambda: len(bench.plane.clients) == 100)
    for client in clients:
        client.sock.send(get(0))
    shards[0].expect(100 * get(0))


def test_an_accepted_connection_has_nodelay_and_keepalive(make: Make) -> None:
    bench = make(keepalive=300)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    bench.plane.listen(listener)
    connect(bench, listener.getsockname())
    bench.spin(lambda: bench.plane.clients)
    sock = bench.newest.sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 300


def test_a_process_out_of_descriptors_stops_accepting_until_it_is_told_to_go_on(
    bench: Bench, listening: tuple[str, int]
) -> None:
    shards = bench.shards()
    before = connect(bench, listening)
    bench.spin(lambda: len(bench.plane.clients) == 1)
    waiting = connect(bench, listening)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = bench.plane.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        bench.plane.run_once()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [error.errno for error in bench.notes.accept_errors] == [errno.EMFILE]
    before.send(get(0))
    shards[0].send(number(1))
    before.expect(number(1))
    assert len(bench.plane.clients) == 1
    bench.plane.resume_accepting()
    waiting.send(encode_request([b"GET", b"k"]))
    bench.spin(lambda: len(bench.plane.clients) == 2)
