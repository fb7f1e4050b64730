"""Sequences that once lost a reply, hung a client or took others down with it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from proxy.codec import key_slot
from proxy.dataplane import Limits, Mode, Request
from tests.dataplane.bench import INFO, MULTI, OK, Bench, Held, Peer, get, key, number, numbers, put


def half_close(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)


def test_a_half_closed_client_gets_the_reply_to_its_barrier(bench: Bench) -> None:
    bench.shards()
    client = bench.client()
    client.send(MULTI)
    half_close(client)
    bench.spin(lambda: bench.notes.half_closed_clients)
    [request] = bench.notes.commands
    with bench.plane.turn():
        bench.plane.answer(request, OK)
        bench.plane.resume(bench.newest)
    client.expect(OK)
    client.expect_eof()


def test_a_half_closed_client_gets_the_replies_that_control_gives_at_once(bench: Bench) -> None:
    """What stood behind a barrier is answered synchronously when the barrier goes."""
    bench.shards()
    client = bench.client()
    client.send(MULTI + INFO + INFO)
    half_close(client)
    bench.spin(lambda: bench.notes.half_closed_clients)
    [request] = bench.notes.commands
    bench.notes.on_command = lambda each: bench.plane.answer(each, number(7))
    with bench.plane.turn():
        bench.plane.answer(request, OK)
        bench.plane.resume(bench.newest)
    client.expect(OK + number(7) + number(7))
    client.expect_eof()


def test_a_reply_that_arrives_together_with_its_clients_eof_is_passed_on(bench: Bench) -> None:
    shard = bench.shards()[0]
    client = bench.client()
    client.send(get(0))
    shard.expect(get(0))
    shard.sock.send(number(1))
    half_close(client)  # both are there before the plane turns again
    client.expect(number(1))
    client.expect_eof()


def test_what_a_half_closed_client_sent_before_is_read_to_its_end(make: Callable[..., Bench]) -> None:
    """The client is not being read when its EOF arrives: there are still requests in the socket."""
    bench = make(Limits(outstanding_commands=10))
    shard = bench.shards()[0]
    client = bench.client()
    count = 20_000
    total = 0
    data = put(0, b"v" * 40) * count
    view = memoryview(data)
    while view:
        try:
            view = view[client.sock.send(view[: 1 << 16]) :]
        except BlockingIOError:
            shard.pull()
            arrived = shard.requests()
            total += arrived
            shard.send(OK * arrived)
            bench.plane.run_once()
    half_close(client)
    bench.settle()
    while total < count and not client.eof:
        shard.pull()
        arrived = shard.requests()
        total += arrived
        shard.send(OK * arrived)
        bench.settle()
        client.pull()
    assert total == count
    client.expect(OK * count)
    client.expect_eof()


def test_control_is_told_of_an_eof_behind_more_than_is_read(make: Callable[..., Bench]) -> None:
    bench = make()
    client = bench.client()
    client.send(MULTI + INFO * 20_000)  # more than is read of a client behind a barrier
    half_close(client)
    bench.spin(lambda: bench.notes.half_closed_clients)
    bench.notes.on_command = lambda each: bench.plane.answer(each, number(7))
    with bench.plane.turn():
        bench.plane.answer(bench.notes.commands[0], OK)
        bench.plane.resume(bench.newest)
    client.expect(OK + number(7) * 20_000)
    client.expect_eof()
    assert len(bench.notes.half_closed_clients) == 1


def test_a_slow_reader_that_half_closed_still_has_its_commands_carried_out(make: Callable[..., Bench]) -> None:
    bench = make()
    value = b"$1048576\r\n" + b"v" * 1048576 + b"\r\n"
    bench.notes.on_command = lambda each: bench.plane.answer(each, value)
    client = bench.client()
    client.send((INFO + MULTI) * 8)
    half_close(client)

    def answer(request: Request) -> None:
        bench.plane.answer(request, value)
        if request.barrier:
            bench.plane.resume(request.client)  # type: ignore[arg-type]

    bench.notes.on_command = answer
    bench.settle()
    client.expect(value * 16)
    client.expect_eof()


def test_a_reply_that_control_fails_on_costs_its_own_client_only(make: Callable[..., Bench]) -> None:
    """The lane is everybody's: what raises while one client's reply is dealt with must not close it."""
    bench = make()
    shard = bench.shards()[0]
    faulty, other = bench.client(), bench.client()
    bench.notes.on_command = lambda each: bench.plane.submit(bench.lanes[0], each.raw, broken, client=each.client) and None

    def broken(frame: bytes) -> None:
        raise ValueError("a defect")

    faulty.send(INFO)
    shard.expect(INFO)
    other.send(get(0))
    shard.expect(get(0))
    shard.send(numbers([1, 2]))
    other.expect(number(2))
    faulty.expect_eof()
    assert [where for where, _ in bench.notes.failures] == ["Control"]
    assert not bench.notes.down


def test_a_redirection_that_control_fails_on_costs_its_own_client_only(make: Callable[..., Bench]) -> None:
    bench = make()
    shard = bench.shards()[0]
    client = bench.client()

    def fail(held: Held) -> None:
        raise ValueError("a defect")

    bench.notes.on_held_back = fail
    client.send(get(0) * 3)
    shard.expect(get(0) * 3)
    moved = b"-MOVED 1 nowhere\r\n"
    other = bench.client()
    other.send(get(0))
    shard.expect(get(0))
    shard.send(number(1) + moved + numbers([3, 4]))
    other.expect(number(4))
    client.expect_eof()
    assert not bench.notes.down


def test_a_join_that_fails_costs_its_own_client_only(make: Callable[..., Bench]) -> None:
    bench = make()

    def join(frames: Sequence[bytes]) -> bytes:
        raise ValueError("a defect")

    parts = [(key_slot(key(shard)), 1, get(shard)) for shard in (0, 1)]
    bench.plane.set_commands(bench.plane.table, bench.plane.command_flags, {3: lambda raw: (parts, join)})
    first, second, _ = bench.shards()
    faulty, other = bench.client(), bench.client()
    faulty.send(INFO)
    first.expect(get(0))
    second.expect(get(1))
    other.send(get(0))
    first.expect(get(0))
    second.send(number(2))
    first.send(numbers([1, 3]))
    other.expect(number(3))
    faulty.expect_eof()
    assert not bench.notes.down


def test_a_lane_lost_while_control_deals_with_a_redirection_tells_only_what_had_no_reply(bench: Bench) -> None:
    shard = bench.shards()[0]
    client = bench.client()
    bench.notes.on_held_back = lambda held: held.lane.lose("control has heard enough")
    client.send(put(0, b"1") + put(0, b"2") + put(0, b"3"))
    shard.expect(put(0, b"1") + put(0, b"2") + put(0, b"3"))
    shard.send(OK + b"-MOVED 1 a:1\r\n")
    bench.spin(lambda: bench.notes.down)
    [down] = bench.notes.down
    assert [lost.request.raw for lost in down.lost] == [put(0, b"3")]
    client.expect(OK)
    bench.plane.answer(bench.notes.held[0].request, OK)
    bench.plane.answer(down.lost[0].request, OK)
    client.expect(OK + OK)


def test_control_that_fails_when_a_client_goes_stops_nobody(make: Callable[..., Bench]) -> None:
    bench = make()
    shard = bench.shards()[0]
    going, staying = bench.client(), bench.client()

    def fail(client: object) -> None:
        bench.notes.on_closed = None
        raise ValueError("a defect")

    bench.notes.on_closed = fail
    bench.settle()
    going.close()
    bench.settle()
    staying.send(get(0))
    shard.expect(get(0))
    shard.send(number(1))
    staying.expect(number(1))
    assert bench.notes.failures


def test_a_request_of_many_arguments_is_held_to_the_query_limit(make: Callable[..., Bench]) -> None:
    bench = make(Limits(query=1 << 20))
    client = bench.client()
    client.send(b"*100000\r\n$4\r\nMGET\r\n")
    argument = b"$1000\r\n" + b"x" * 1000 + b"\r\n"
    bench.settle()
    for _ in range(3000):
        try:
            client.sock.send(argument)
        except BlockingIOError:
            bench.plane.run_once()
        except ConnectionError:
            break
        bench.plane.run_once()
    client.expect_eof()
    assert bench.notes.refusals


def test_commands_within_one_mode_change_stop_at_a_closed_client(bench: Bench) -> None:
    bench.notes.on_opened = lambda client: setattr(client, "mode", Mode.CONTROL)
    bench.notes.on_command = lambda request: bench.plane.kill(request.client)  # type: ignore[arg-type]
    client = bench.client()
    client.send(INFO * 5)
    bench.spin(lambda: bench.notes.closed_clients)
    assert len(bench.notes.commands) == 1
