"""How a data plane comes to its end: nobody is let in, what has come is answered, and the last replies are read."""

from __future__ import annotations

import socket

import pytest

from tests.dataplane.bench import INFO, MULTI, OK, Bench, Peer, get, number, put


def test_what_has_come_is_answered_and_nothing_more_is_read(bench: Bench) -> None:
    shards = bench.shards()
    peer = bench.client()
    client = bench.newest
    peer.send(get(0) + put(1, b"one"))
    shards[0].expect(get(0))
    peer.sock.send(get(0, 1))  # in the kernel, and not read yet
    bench.plane.end_input(client)
    peer.sock.send(get(0, 2))  # too late
    shards[0].expect(get(0, 1))
    shards[1].send(OK)
    shards[0].send(number(1) + number(2))
    peer.expect(number(1) + OK + number(2))
    shards[0].expect_nothing()
    assert client.closed


def test_what_stands_behind_a_barrier_still_has_its_turn(bench: Bench) -> None:
    shards = bench.shards()
    peer = bench.client()
    client = bench.newest
    peer.send(MULTI + get(0))
    bench.spin(lambda: bench.notes.commands)
    bench.plane.end_input(client)
    shards[0].expect_nothing()
    [barrier] = bench.notes.commands
    bench.plane.answer(barrier, OK)
    bench.plane.resume(client)
    shards[0].expect(get(0))
    shards[0].send(number(1))
    peer.expect(OK + number(1))
    peer.expect_eof()


@pytest.mark.parametrize("sent", [b"", get(0)[:-3]], ids=["nothing", "half a request"])
def test_who_has_nothing_under_way_is_closed_at_once(bench: Bench, sent: bytes) -> None:
    peer = bench.client()
    peer.send(sent)
    bench.plane.end_input(bench.newest)
    peer.expect_eof()


def test_nobody_is_let_in_but_who_has_connected_by_then(bench: Bench) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = listener.getsockname()
    bench.plane.listen(listener)
    with socket.create_connection(address) as early:
        bench.plane.wind_up()
        assert len(bench.plane.clients) == 1
        early.send(INFO)
        bench.spin(lambda: bench.notes.commands)
    with socket.socket() as late:
        assert late.connect_ex(address) != 0
    assert not bench.plane.listeners


def test_a_client_that_goes_on_sending_reads_its_last_reply_all_the_same(bench: Bench) -> None:
    shards = bench.shards()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    bench.plane.listen(listener)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(listener.getsockname())
    peer = Peer(bench, sock)
    bench.peers.append(peer)
    bench.spin(lambda: bench.plane.clients)
    peer.send(get(0))
    shards[0].expect(get(0))
    bench.plane.wind_up()
    bench.plane.end_input(bench.newest)
    peer.sock.send(get(0) * 10)  # closing a socket with something unread would reset it
    large = b"$100000\r\n" + b"x" * 100_000 + b"\r\n"
    shards[0].send(large)
    bench.spin(lambda: bench.newest.closed)
    assert bench.plane.let_linger() == 1
    peer.expect(large)
    peer.expect_eof()
    peer.close()
    bench.spin(lambda: not bench.plane.let_linger())
