"""What one peer can make grow is bounded, and what it sends or leaves undone hurts nobody else."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from proxy.codec import encode_request
from proxy.dataplane import Limits, Mode
from tests.dataplane.bench import INFO, MULTI, OK, Bench, Peer, get, number, numbers, put

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


def test_a_request_above_the_query_limit_closes_its_client(make: Make) -> None:
    bench = make(Limits(query=200_000))
    client = bench.client()
    with suppress(BrokenPipeError):
        client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$300000\r\n" + b"x" * 100_000)
        bench.spin(lambda: bench.notes.refusals)
    assert "query limit" in bench.notes.refusals[0][1]
    client.expect_eof()


def test_a_request_of_many_small_arguments_is_held_to_the_query_limit_too(make: Make) -> None:
    bench = make(Limits(query=200_000))
    client = bench.client()
    with suppress(BrokenPipeError):
        client.send(b"*100000\r\n$4\r\nINFO\r\n" + b"$1\r\nx\r\n" * 60_000)
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


def test_late_replies_of_a_client_that_is_gone_are_dropped_and_hurt_nobody(bench: Bench) -> None:
    shards = bench.shards()
    client, other = bench.client(), bench.client()
    client.send(get(0) + INFO + get(0, 1))
    bench.settle()
    other.send(get(0, 2))
    bench.settle()
    client.close()
    bench.spin(lambda: bench.notes.closed_clients)
    shards[0].send(number(1) + b"-MOVED 1 127.0.0.1:1\r\n" + number(3))
    other.expect(number(3))
    (held,) = bench.notes.held  # control may drop it
    bench.plane.answer(held.request, b"-ERR gone\r\n")
    bench.plane.answer(bench.notes.commands[0], number(2))
    bench.settle()
    assert list(bench.plane.clients.values()) == [bench.notes.opened_clients[1]]
    assert bench.lanes[0].outstanding == 0


def test_a_client_that_is_gone_may_still_be_resumed_finished_and_killed(bench: Bench) -> None:
    client = bench.client()
    client.send(MULTI)
    bench.settle()
    gone = bench.newest
    client.close()
    bench.settle()
    bench.plane.kill(gone)
    bench.plane.answer(bench.notes.commands[0], OK)
    bench.plane.resume(gone, Mode.CONTROL)
    bench.plane.finish(gone)
    bench.plane.kill(gone)
    assert bench.notes.closed_clients == [gone]


def test_replies_that_come_in_the_same_turn_as_the_clients_end_are_still_sent(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    for at in range(20):  # whichever of the two events comes first
        client, before = bench.client(), client
        before.close()
        client.send(get(0))
        shards[0].expect(get(0))
        if at % 2:
            client.sock.shutdown(socket.SHUT_WR)
        shards[0].sock.sendall(number(at))
        if not at % 2:
            client.sock.shutdown(socket.SHUT_WR)
        client.expect(number(at))
        client.expect_eof()


def test_a_half_closed_client_still_gets_its_replies(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + INFO)
    client.sock.shutdown(socket.SHUT_WR)
    shards[0].expect(get(0))
    shards[0].send(number(1))
    client.expect(number(1))
    bench.plane.answer(bench.notes.commands[0], number(2))
    client.expect(number(2))
    client.expect_eof()


def test_connections_that_come_and_go_leave_nothing_behind(bench: Bench) -> None:
    shards = bench.shards()
    for at in range(200):
        client = bench.client()
        client.send(get(at % 3) + (b"*1\r\n$5\r\nMU" if at % 2 else b""))
        shards[at % 3].expect(get(at % 3))
        if at % 5:
            shards[at % 3].send(number(at))
            client.expect(number(at))
        client.close()
        bench.spin(lambda wanted=at + 1: len(bench.notes.closed_clients) == wanted)
        if not at % 5:
            shards[at % 3].send(number(at))
    bench.settle()
    assert bench.plane.clients == {}
    assert [lane.outstanding for lane in bench.lanes] == [0, 0, 0, 0]


class Defect(Exception):
    pass


def fail(*_: object) -> None:
    raise Defect


def test_a_defect_in_control_closes_the_client_it_was_about_and_no_other(make: Make) -> None:
    bench = make()
    shards = bench.shards()
    bench.notes.on_command = fail
    client, other = bench.client(), bench.client()
    other.send(get(0))
    client.send(INFO)
    client.expect_eof()
    shards[0].send(number(1))
    other.expect(number(1))
    assert [type(error) for _, error in bench.notes.failures] == [Defect]


def test_a_defect_when_a_reply_is_held_back_closes_that_client_and_keeps_the_lane(make: Make) -> None:
    bench = make()
    shards = bench.shards()
    bench.notes.on_held_back = fail
    client, other = bench.client(), bench.client()
    client.send(get(0))
    bench.settle()
    other.send(get(0))
    bench.settle()
    shards[0].send(b"-MOVED 1 127.0.0.1:1\r\n" + number(2))
    client.expect_eof()
    other.expect(number(2))
    assert bench.notes.down == []
    assert [type(error) for _, error in bench.notes.failures] == [Defect]


def test_a_defect_in_what_control_does_with_a_reply_closes_that_client_and_keeps_the_lane(make: Make) -> None:
    bench = make()
    shards = bench.shards()
    client, other = bench.client(), bench.client()
    client.send(INFO)
    bench.settle()
    bench.plane.submit(bench.lanes[0], INFO, fail, client=bench.notes.commands[0].client)
    other.send(get(0))
    bench.settle()
    shards[0].send(numbers([1, 2]))
    client.expect_eof()
    other.expect(number(2))
    assert bench.notes.down == []


def test_a_defect_when_a_client_comes_or_goes_stops_nobody(make: Make) -> None:
    bench = make()
    shards = bench.shards()
    bench.notes.on_opened = bench.notes.on_closed = fail
    client = bench.client()
    client.expect_eof()
    bench.notes.on_opened = None
    other = bench.client()
    other.send(get(0))
    shards[0].send(number(1))
    other.expect(number(1))
    other.close()
    bench.spin(lambda: len(bench.notes.closed_clients) == 2)
    assert bench.plane.clients == {}
    assert len(bench.notes.failures) == 3


def test_what_was_put_on_lanes_goes_out_though_the_gathering_turn_failed(bench: Bench) -> None:
    shards = bench.shards()

    def submit_and_fail() -> None:
        with bench.plane.turn():
            bench.plane.submit(bench.lanes[0], INFO, lambda frame: None)
            raise Defect

    with pytest.raises(Defect):
        submit_and_fail()
    shards[0].expect(INFO)


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


def pieces(data: bytes) -> list[bytes]:
    """Pieces of many sizes, that cut lines, bulks and line ends anywhere."""
    found = []
    at = 0
    while at < len(data):
        size = 1 + (at * 7919) % 40_000
        found.append(data[at : at + size])
        at += size
    return found


@pytest.mark.parametrize("size", [0, 1, 30, 1000, 70_000])
def test_a_request_of_many_arguments_is_whole_however_it_was_cut(bench: Bench, size: int) -> None:
    client = bench.client()
    arguments = [(b"%d" % at + b"\r\n" * size)[: size + 3] for at in range(1_500_000 // (size + 30))]
    for name in (b"INFO", b"MULTI"):  # LARGE, and a barrier: both stop their client
        long = encode_request([name, *arguments])
        for piece in pieces(INFO + long):
            client.send(piece)
            bench.settle()
            if bench.notes.commands and bench.newest.pending == 1 and not bench.newest.stopped:
                bench.plane.answer(bench.notes.commands[0], number(1))
        client.send(INFO)
        bench.settle()
        assert [len(request.raw) for request in bench.notes.commands] == [len(INFO), len(long)]
        assert bench.notes.commands[1].raw == long
        bench.plane.answer(bench.notes.commands[1], number(2))
        bench.plane.resume(bench.newest)
        bench.settle()
        assert bench.notes.commands[2].raw == INFO
        bench.plane.answer(bench.notes.commands[2], number(3))
        client.expect(numbers([1, 2, 3]))
        bench.notes.commands.clear()


def test_a_protocol_error_deep_in_a_long_request_is_answered_alone(bench: Bench) -> None:
    client = bench.client()
    for piece in pieces(encode_request([b"INFO", *[b"x" * 50] * 10_000])[:-57] + b"!\r\n"):
        client.send(piece)
        bench.settle()
    client.expect(b"-ERR Protocol error: expected '$', got '!'\r\n")
    client.expect_eof()
    assert bench.notes.commands == []


@pytest.mark.parametrize("size", [0, 1, 30, 1000, 70_000])
def test_a_reply_of_many_items_is_whole_however_it_was_cut(bench: Bench, size: int) -> None:
    shards = bench.shards()
    client = bench.client()
    items = [(b"%d" % at + b"\r\n" * size)[: size + 3] for at in range(1_500_000 // (size + 30))]
    nested = b"*2\r\n*1\r\n:1\r\n" + encode_request(items)
    client.send(get(0) * 3)
    bench.settle()
    for piece in pieces(nested + number(2) + encode_request(items)):
        shards[0].send(piece)
        bench.settle()
        client.pull()
    client.expect(nested + number(2) + encode_request(items))


def test_a_large_request_counts_as_large_though_only_its_last_bytes_came_late(bench: Bench) -> None:
    client = bench.client()
    long = encode_request([b"INFO", *[b"x" * 50] * 10_000])
    client.send(long[:-100])
    bench.settle()
    client.send(long[-100:] + INFO)
    bench.settle()
    (request,) = bench.notes.commands
    assert (request.raw == long, request.barrier) == (True, True)
