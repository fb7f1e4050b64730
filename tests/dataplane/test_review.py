"""Sequences that once lost a reply, hung a client or took others down with it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

import pytest

from proxy.codec import key_slot
from proxy.dataplane import Lane, Limits, Mode, Request
from proxy.routing import CommandTable
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

    def broken(frame: bytes) -> None:
        raise ValueError("a defect")

    def submit(request: Request) -> None:
        bench.plane.submit(bench.lanes[0], request.raw, broken, client=request.client)

    bench.notes.on_command = submit

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


def test_what_is_told_as_lost_is_not_answered_by_a_reply_that_was_read_already(bench: Bench) -> None:
    shard = bench.shards()[0]
    client = bench.client()
    bench.notes.on_held_back = lambda held: held.lane.lose("control has heard enough")
    client.send(get(0) * 3)
    shard.expect(get(0) * 3)
    shard.send(number(1) + b"-MOVED 1 a:1\r\n" + number(3))
    bench.spin(lambda: bench.notes.down)
    (lost,) = bench.notes.down[0].lost
    bench.plane.answer(bench.notes.held[0].request, number(2))
    bench.plane.answer(lost.request, number(4))
    client.expect(numbers([1, 2, 4]))


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


def test_of_what_is_parked_only_the_newest_is_shed(make: Callable[..., Bench]) -> None:
    bench = make(Limits(held_commands=5))

    def shed(lane: Lane) -> None:
        for request in bench.plane.shed(lane):
            bench.plane.answer(request, b"-CLUSTERDOWN\r\n")

    bench.notes.held_too_much = shed  # type: ignore[method-assign]
    first, second = bench.client(), bench.client()
    first.send(numbered(0, 1))
    bench.settle()
    second.send(numbered(2, 3, 4, 5, 6))
    bench.settle()
    first.send(numbered(7))
    bench.settle()
    shard = bench.attach(bench.lanes[0])
    shard.expect(numbered(0, 1, 2, 3, 4))
    shard.send(OK * 5)
    first.expect(OK * 2 + b"-CLUSTERDOWN\r\n")
    second.expect(OK * 3 + b"-CLUSTERDOWN\r\n" * 2)


def test_what_was_parked_for_long_keeps_no_shard_waiting(bench: Bench) -> None:
    """A lane is lost when its shard does not answer for long: the time before it was connected does not count."""
    client = bench.client()
    client.send(get(0))
    bench.settle()
    lane = bench.lanes[0]
    bench.spin(lambda: bench.plane.lane_age(lane) > 0.1)
    before = time.monotonic()
    bench.attach(lane)
    assert bench.plane.lane_age(lane) <= time.monotonic() - before


def numbered(*values: int) -> bytes:
    return b"".join(put(0, b"%d" % value) for value in values)


def test_nothing_is_taken_for_a_lane_that_could_never_answer(bench: Bench) -> None:
    bench.attach(bench.lanes[0])
    bench.plane.close_lane(bench.lanes[0])
    with pytest.raises(RuntimeError):
        bench.plane.submit(bench.lanes[0], INFO, lambda frame: None)


def test_a_keepalive_beyond_the_kernels_refuses_nobody(make: Callable[..., Bench]) -> None:
    bench = make(keepalive=1_000_000)
    listener = socket.create_server(("127.0.0.1", 0))  # the plane closes it
    listener.setblocking(False)
    bench.plane.listen(listener)
    with socket.create_connection(listener.getsockname()):
        bench.spin(lambda: bench.notes.opened_clients or bench.notes.failures)
        assert not bench.notes.failures
        assert bench.newest.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) > 0


def test_commands_keep_their_ids_when_the_engine_learns_others() -> None:
    """Requests half received or under way carry ids: under a new table these must not mean another command."""

    def row(name: bytes) -> list[object]:
        return [name, 2, [b"write"], 1, 1, 1, [], [], [], []]

    before = CommandTable.from_reply([row(b"get"), row(b"set")])
    after = CommandTable.from_reply([row(b"a.module"), row(b"set")], before)
    again = CommandTable.from_reply([row(b"a.module"), row(b"get"), row(b"set")], after)
    kept = [table.get(b"set") for table in (before, after, again)]
    assert len({command.id for command in kept if command is not None}) == 1
    assert len({command.id for command in again}) == 3
