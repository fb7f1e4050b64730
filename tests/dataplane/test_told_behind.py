"""What a client is told of values it reads comes behind the replies that may hold them (``push_behind``)."""

from __future__ import annotations

import pytest

from proxy.dataplane import Mode
from tests.dataplane.bench import INFO, MULTI, OK, Bench, get, number, numbers, raws

TOLD = b">2\r\n+invalidate\r\n_\r\n"


def test_with_nothing_under_way_it_goes_at_once(bench: Bench) -> None:
    client = bench.client()
    bench.settle()
    bench.plane.push_behind(bench.newest, TOLD)
    client.expect(TOLD)


def test_it_comes_behind_every_reply_to_come_and_before_what_is_asked_later(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(1) + get(2))
    bench.settle()
    shards[1].send(number(2))
    bench.settle()
    bench.plane.push_behind(bench.newest, TOLD)
    client.send(get(1, 1))
    bench.settle()
    shards[1].send(number(4))
    client.expect_nothing()
    shards[0].send(number(1))
    client.expect(numbers([1, 2]))
    client.expect_nothing()
    shards[2].send(number(3))
    client.expect(number(3) + TOLD + number(4))


@pytest.mark.parametrize("before", [b"", get(0), get(0) + INFO])
def test_of_a_barrier_that_waits_for_its_turn_it_goes_before_the_reply(bench: Bench, before: bytes) -> None:
    """What the barrier waits for comes before it; the barrier itself may take for ever."""
    shards = bench.shards()
    client = bench.client()
    client.send(get(1) + before + MULTI + get(2))
    bench.settle()
    bench.plane.push_behind(bench.newest, TOLD)
    bench.plane.push_behind(bench.newest, TOLD)
    client.expect_nothing()
    replies = number(1)
    shards[1].send(number(1))
    if before:
        shards[0].send(number(2))
        replies += number(2)
    if INFO in before:
        bench.settle()
        bench.plane.answer(bench.notes.commands[0], number(3))
        replies += number(3)
    client.expect(replies + TOLD + TOLD)
    bench.settle()
    assert raws(bench.notes.commands)[-1:] == [MULTI]
    multi = bench.notes.commands[-1]
    bench.plane.answer(multi, OK)
    bench.plane.resume(bench.newest, Mode.PLAIN)
    client.expect(OK)
    shards[2].send(number(4))
    client.expect(number(4))


def test_it_comes_behind_the_reply_to_a_barrier_whose_turn_it_is(bench: Bench) -> None:
    bench.shards()
    client = bench.client()
    client.send(MULTI)
    bench.settle()
    bench.plane.push_behind(bench.newest, TOLD)
    client.expect_nothing()
    bench.plane.answer(bench.notes.commands[0], OK)
    client.expect(OK + TOLD)


def test_a_greeting_comes_before_what_is_parked_and_its_replies_are_thrown_away(bench: Bench) -> None:
    client = bench.client()
    client.send(get(0))
    bench.settle()
    ours, shard = bench.pair()
    bench.plane.attach(bench.lanes[0], ours, "life", False, [INFO, MULTI])
    shard.expect(INFO + MULTI + get(0))
    shard.send(OK + b"-ERR no\r\n" + number(1))
    client.expect(number(1))
