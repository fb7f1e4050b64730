"""What a client is sent without having asked: in order with its replies, and bounded."""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.dataplane import Limits
from tests.dataplane.bench import INFO, OK, Bench, get, number, numbers

Make = Callable[..., Bench]
NEWS = b">2\r\n+news\r\n$5\r\nhello\r\n"


def test_a_push_comes_at_once_to_a_client_that_waits_for_nothing(bench: Bench) -> None:
    peer = bench.client()
    bench.plane.push(bench.newest, NEWS)
    peer.expect(NEWS)


def test_a_push_comes_behind_the_replies_that_are_in_and_before_those_to_come(bench: Bench) -> None:
    shards = bench.shards()
    peer = bench.client()
    client = bench.newest
    peer.send(get(0) + get(1) + get(0, 1))
    shards[0].expect(get(0) + get(0, 1))
    shards[0].send(numbers([1, 3]))
    peer.expect(number(1))
    with bench.plane.turn():
        bench.plane.push(client, NEWS)
        bench.plane.push(client, NEWS)
    peer.expect(NEWS * 2)
    shards[1].send(number(2))
    peer.expect(numbers([2, 3]))


def test_a_reply_and_a_push_of_one_turn_keep_their_order(bench: Bench) -> None:
    peer = bench.client()
    peer.send(INFO)
    bench.spin(lambda: bench.notes.commands)
    with bench.plane.turn():
        bench.plane.answer(bench.notes.commands[0], OK)
        bench.plane.push(bench.newest, NEWS)
    peer.expect(OK + NEWS)


def test_a_push_may_be_kept_until_a_reply_is_in_its_place(bench: Bench) -> None:
    peer = bench.client()
    client = bench.newest
    peer.send(INFO)
    bench.spin(lambda: bench.notes.commands)
    bench.plane.keep_pushes(client)
    bench.plane.push(client, NEWS)
    peer.expect_nothing()
    with bench.plane.turn():
        bench.plane.answer(bench.notes.commands[0], OK)
        bench.plane.let_pushes(client)
    peer.expect(OK + NEWS)
    bench.plane.push(client, NEWS)
    peer.expect(NEWS)


def test_one_frame_for_many(bench: Bench) -> None:
    peers = [bench.client() for _ in range(5)]
    bench.plane.push_all(bench.notes.opened_clients, NEWS)
    for peer in peers:
        peer.expect(NEWS)


def test_who_is_gone_or_leaves_is_pushed_nothing(bench: Bench) -> None:
    peers = [bench.client(), bench.client()]
    first, second = bench.notes.opened_clients
    bench.plane.finish(first)
    bench.plane.kill(second)
    bench.plane.push_all([first, second], NEWS)
    for peer in peers:
        peer.expect_eof()


def test_a_subscriber_that_does_not_read_is_closed_above_the_limit_of_its_kind(make: Make) -> None:
    bench = make(Limits(pushed=1 << 20, pushed_soft=1 << 19, output=100 << 20))
    bench.client()
    peer = bench.client()
    plain, subscriber = bench.notes.opened_clients
    subscriber.subscriber = True
    frame = b"$65536\r\n" + b"x" * 65536 + b"\r\n"
    pushed = 0
    while not subscriber.closed:
        bench.plane.push_all([plain, subscriber], frame)
        bench.settle()
        pushed += len(frame)
        assert pushed < 50 << 20
    assert pushed > 1 << 20
    assert not plain.closed
    assert bench.plane.counters.subscribers_cut == 1
    assert [(client, "subscriber" in why) for client, why in bench.notes.refusals] == [(subscriber, True)]
    peer.take()
    assert peer.eof


def test_the_soft_limit_is_for_those_who_stay_above_it(make: Make) -> None:
    bench = make(Limits(pushed=8 << 20, pushed_soft=1 << 20, pushed_seconds=0.2))
    peer = bench.client()
    client = bench.newest
    client.subscriber = True
    frame = b"$65536\r\n" + b"x" * 65536 + b"\r\n"

    def fill() -> None:
        while client.out_bytes <= 1 << 20:
            bench.plane.push(client, frame)

    fill()
    assert not client.closed
    bench.spin(lambda: peer.pull() or client.out_bytes == 0)  # it reads, in time
    fill()
    bench.plane.bound_pushes(client)
    assert not client.closed  # however long ago the first time was
    began = time.monotonic()
    bench.spin(lambda: bench.plane.bound_pushes(client) or client.closed)
    assert time.monotonic() - began >= 0.1


def test_pushes_kept_back_are_bounded(make: Make) -> None:
    bench = make(Limits(pushed=1 << 16))
    bench.client()
    client = bench.newest
    bench.plane.keep_pushes(client)
    for _ in range(10_000):
        bench.plane.push(client, NEWS)
    assert client.closed
