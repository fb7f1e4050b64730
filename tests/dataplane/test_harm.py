"""What one peer leaves undone, and what fails in control, hurts nobody else."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from proxy.dataplane import Mode
from tests.dataplane.bench import INFO, MULTI, OK, Bench, get, number, numbers

Make = Callable[..., Bench]


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
