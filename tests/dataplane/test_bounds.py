"""What one peer can make grow is bounded."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from proxy.dataplane import Limits
from tests.dataplane.bench import MULTI, OK, Bench, Peer, get, number, numbers, put

Make = Callable[..., Bench]


def fill(peer: Peer, data: bytes) -> int:
    """Send again and again until nothing more is taken though the plane has all the turns it wants: bytes taken."""
    taken = 0
    view = memoryview(data)
    while True:
        before = taken
        with suppress(BlockingIOError):
            while True:
                taken += peer.sock.send(view[taken % len(data) :])
        peer.bench.settle()
        if taken == before:
            return taken


def test_a_client_with_too_many_commands_under_way_is_not_read_until_they_are_answered(make: Make) -> None:
    bench = make(Limits(outstanding_commands=100))
    shards = bench.shards()
    client = bench.client()
    taken = fill(client, get(0) * 3000) // len(get(0))
    shards[0].pull()
    reached = shards[0].requests()
    assert 100 <= reached < 100 + 65536 // len(get(0)) < taken  # the bound and one read beyond it; more was sent
    assert bench.newest.pending == reached
    shards[0].send(OK * reached)
    client.expect(OK * reached)
    bench.spin(lambda: shards[0].pull() or shards[0].requests())  # and on it goes


def test_everything_a_throttled_client_sent_is_answered_in_order(make: Make) -> None:
    bench = make(Limits(outstanding_commands=10))
    shards = bench.shards()
    client = bench.client()
    count = 20_000
    wanted = memoryview(get(0) * count)
    answered = 0

    def served() -> bool:
        nonlocal wanted, answered
        with suppress(BlockingIOError):
            while wanted:
                wanted = wanted[client.sock.send(wanted) :]
        shards[0].pull()
        came = shards[0].requests()
        if came:
            shards[0].sock.sendall(numbers(range(answered, answered + came)))
            answered += came
        client.pull()
        return answered == count

    bench.spin(served)
    client.expect(numbers(range(count)))


def test_a_half_closed_client_gets_all_its_replies_though_it_was_not_read_for_a_while(make: Make) -> None:
    bench = make(Limits(outstanding_commands=10))
    shards = bench.shards()
    client = bench.client()
    size = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    count = size // 2 // len(get(0))
    client.sock.setblocking(True)
    client.sock.sendall(get(0) * count)  # fits into the socket
    client.sock.setblocking(False)
    client.sock.shutdown(socket.SHUT_WR)
    bench.settle()
    answered = 0

    def served() -> bool:
        nonlocal answered
        shards[0].pull()
        came = shards[0].requests()
        if came:
            shards[0].sock.sendall(numbers(range(answered, answered + came)))
            answered += came
        return answered == count or client.eof

    bench.spin(served)
    client.expect(numbers(range(count)))
    client.expect_eof()


def test_a_client_with_too_many_bytes_under_way_is_not_read(make: Make) -> None:
    bench = make(Limits(outstanding_bytes=100_000))
    shards = bench.shards()
    client = bench.client()
    one = put(0, b"x" * 1000)
    taken = fill(client, one)
    shards[0].pull()
    reached = shards[0].requests()
    assert 100_000 <= reached * len(one) < 100_000 + 65536 < taken
    shards[0].send(OK * reached)
    client.expect(OK * reached)
    bench.spin(lambda: shards[0].pull() or shards[0].requests())


def test_who_waits_is_not_read_while_all_together_wait_for_too_much(make: Make) -> None:
    bench = make(Limits(outstanding_total=100_000))
    shards = bench.shards()
    one = put(0, b"x" * 1000)
    crowd = [bench.client() for _ in range(10)]
    taken = [fill(client, one) for client in crowd]
    pending = bench.plane.pending_bytes
    assert 100_000 <= pending < 100_000 + 10 * 65536 < sum(taken)  # the bound, and one read of each
    reached = pending // len(one)
    came = 0

    def all_came() -> bool:
        nonlocal came
        shards[0].pull()
        came += shards[0].requests()
        return came == reached

    bench.spin(all_came)
    asking = bench.client()
    asking.send(get(1))
    shards[1].expect(get(1))
    shards[1].send(number(1))
    asking.expect(number(1))  # who waits for nothing is read
    shards[0].send(OK * reached)
    bench.spin(lambda: shards[0].pull() or shards[0].requests())  # and on it goes
    for client in crowd:
        client.sock.close()
    bench.spin(lambda: len(bench.notes.closed_clients) == len(crowd))
    assert bench.plane.pending_bytes == 0


def test_a_client_stopped_behind_a_barrier_is_read_only_so_far(bench: Bench) -> None:
    bench.shards()
    client = bench.client()
    client.send(MULTI)
    bench.settle()
    room = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert fill(client, get(0) * 1000) < room + 4 * 65536


def test_a_client_that_does_not_read_is_not_read_either(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) * 40)
    shards[0].send((b"$100000\r\n" + b"x" * 100_000 + b"\r\n") * 40)
    bench.settle()
    client.send(get(1))
    bench.settle()
    shards[1].expect_nothing()
    client.expect((b"$100000\r\n" + b"x" * 100_000 + b"\r\n") * 40)
    shards[1].expect(get(1))


def test_a_half_closed_client_that_reads_late_still_gets_everything(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) * 40)
    shards[0].send((b"$100000\r\n" + b"x" * 100_000 + b"\r\n") * 40)
    bench.settle()
    client.send(get(1))
    client.sock.shutdown(socket.SHUT_WR)
    bench.settle()
    client.expect((b"$100000\r\n" + b"x" * 100_000 + b"\r\n") * 40)
    shards[1].expect(get(1))
    shards[1].send(number(1))
    client.expect(number(1))
    client.expect_eof()


def test_a_client_that_does_not_read_is_closed_above_the_output_limit(make: Make) -> None:
    bench = make(Limits(output=1_000_000))
    shards = bench.shards()
    client, other = bench.client(), bench.client()
    slow = bench.notes.opened_clients[0]
    client.send(get(0) * 100)
    other.send(get(1))
    bench.settle()
    shards[0].send((b"$50000\r\n" + b"x" * 50_000 + b"\r\n") * 100)
    bench.spin(lambda: bench.notes.refusals)
    ((refused, why),) = bench.notes.refusals
    assert (refused, slow.closed) == (slow, True)
    assert "does not read" in why
    bench.settle()
    assert bench.lanes[0].outstanding == 0  # the replies still to come were taken from the shard, and dropped
    shards[1].send(number(1))
    other.expect(number(1))


@pytest.mark.parametrize(
    "request_",
    [
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$300000\r\n" + b"x" * 100_000,
        b"*100000\r\n$4\r\nINFO\r\n" + b"$1\r\nx\r\n" * 60_000,
    ],
    ids=["large", "of many small arguments"],
)
def test_a_request_above_the_query_limit_closes_its_client(request_: bytes, make: Make) -> None:
    bench = make(Limits(query=200_000))
    client = bench.client()
    with suppress(BrokenPipeError):
        client.send(request_)
        bench.spin(lambda: bench.notes.refusals)
    assert "query limit" in bench.notes.refusals[0][1]
    client.expect_eof()


def test_one_client_too_many_is_turned_away_in_the_engines_words(make: Make) -> None:
    bench = make(Limits(maxclients=2))
    shards = bench.shards()
    first, second = bench.client(), bench.client()
    third = bench.client()
    third.expect(b"-ERR max number of clients reached\r\n")
    third.expect_eof()
    assert bench.plane.counters.refused == 1
    first.close()
    bench.spin(lambda: bench.notes.closed_clients)
    fourth = bench.client()
    second.send(get(0))
    fourth.send(get(0))
    shards[0].expect(2 * get(0))


def test_a_bound_may_be_larger_than_any_memory(make: Make) -> None:
    bench = make(Limits(*[1 << 64] * len(Limits._fields)))
    (shard, *_) = bench.shards()
    client = bench.client()
    client.send(get(0))
    shard.expect(get(0))
    shard.send(number(1))
    client.expect(number(1))


def test_control_hears_when_too_many_commands_are_parked(make: Make) -> None:
    bench = make(Limits(held_commands=10))
    client = bench.client()
    client.send(get(0) * 10)
    bench.settle()
    assert bench.notes.overfull == []
    client.send(get(0))
    client.expect(b"-CLUSTERDOWN held too much\r\n" * 11)
    assert bench.notes.overfull == [bench.lanes[0]]


def test_control_hears_when_too_many_bytes_are_parked(make: Make) -> None:
    bench = make(Limits(held_bytes=1000))
    client = bench.client()
    client.send(put(0, b"x" * 1000))
    client.expect(b"-CLUSTERDOWN held too much\r\n")
    assert bench.notes.overfull == [bench.lanes[0]]


def test_a_protocol_error_is_answered_behind_the_replies_before_it_and_ends_the_client(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + b"*1\r\n!oops\r\n" + put(0, b"never"))
    shards[0].expect(get(0))
    client.expect_nothing()
    shards[0].send(number(1))
    client.expect(number(1) + b"-ERR Protocol error: expected '$', got '!'\r\n")
    client.expect_eof()
    shards[0].expect_nothing()
    assert bench.plane.counters.protocol_errors == 1
