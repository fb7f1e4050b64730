"""Replies come in the order of the commands, whatever the lanes do."""

from __future__ import annotations

from itertools import permutations

import pytest

from proxy.codec import encode_request
from tests.dataplane.bench import INFO, OK, SHARDS, Bench, get, key, number, numbers, put


def test_a_plain_command_goes_to_the_lane_of_its_slot_as_it_came(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    for shard in range(SHARDS):
        client.send(get(shard))
        shards[shard].expect(get(shard))
        shards[shard].send(b"$2\r\nhi\r\n")
        client.expect(b"$2\r\nhi\r\n")
    assert bench.notes.commands == []


@pytest.mark.parametrize("arrival", list(permutations(range(SHARDS))))
def test_replies_are_in_order_whichever_shard_answers_first(bench: Bench, arrival: tuple[int, ...]) -> None:
    shards = bench.shards()
    client = bench.client()
    order = [0, 1, 2, 1, 0, 2, 2, 0, 1]
    client.send(b"".join(get(shard, at) for at, shard in enumerate(order)))
    for shard in range(SHARDS):
        shards[shard].expect(b"".join(get(shard, at) for at, each in enumerate(order) if each == shard))
    arrived: set[int] = set()
    passed = 0
    for shard in arrival:
        shards[shard].send(numbers([at for at, each in enumerate(order) if each == shard]))
        arrived.add(shard)
        ready = next((at for at, each in enumerate(order) if each not in arrived), len(order))
        assert client.take() == numbers(range(passed, ready))  # as early as order allows, and no earlier
        passed = ready
    assert passed == len(order)


def test_replies_that_come_byte_by_byte_are_passed_on_whole(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(1) + get(0, 1))
    replies = b"$5\r\na\r\nbc\r\n*2\r\n:1\r\n$1\r\nx\r\n"
    shards[1].send(OK)
    for at in range(len(replies)):
        shards[0].send(replies[at : at + 1])
        bench.settle()
    client.expect(b"$5\r\na\r\nbc\r\n" + OK + b"*2\r\n:1\r\n$1\r\nx\r\n")


def test_requests_that_come_byte_by_byte_are_sent_on_whole(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    wanted = put(0, b"\r\n$1\r\n\0\xff") + put(1, b"")
    for at in range(len(wanted)):
        client.send(wanted[at : at + 1])
        bench.settle()
    shards[0].expect(put(0, b"\r\n$1\r\n\0\xff"))
    shards[1].expect(put(1, b""))


def test_a_command_of_controls_own_keeps_its_place_among_plain_ones(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + INFO + get(1))
    bench.settle()
    (info,) = bench.notes.commands
    shards[1].send(number(3))
    bench.plane.answer(info, number(2))
    client.expect_nothing()
    shards[0].send(number(1))
    client.expect(numbers([1, 2, 3]))


def test_the_first_answer_to_a_request_stands(bench: Bench) -> None:
    client = bench.client()
    client.send(INFO + INFO)
    bench.settle()
    first, second = bench.notes.commands
    bench.plane.answer(first, number(1))
    bench.plane.answer(first, number(9))
    bench.plane.answer(second, number(2))
    client.expect(numbers([1, 2]))
    client.expect_nothing()


def test_clients_that_share_a_lane_get_their_own_replies(bench: Bench) -> None:
    shards = bench.shards()
    clients = [bench.client() for _ in range(20)]
    for at, client in enumerate(clients):
        client.send(get(0, at) + get(0, at + 100))
        bench.settle()
    shards[0].expect(b"".join(get(0, at) + get(0, at + 100) for at in range(20)))
    shards[0].send(numbers(range(40)))
    for at, client in enumerate(clients):
        client.expect(numbers([2 * at, 2 * at + 1]))


def test_a_reply_nobody_asked_for_ends_the_lane_not_the_clients(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    shards[0].send(OK)
    bench.spin(lambda: bench.notes.down)
    client.send(get(1))
    shards[1].send(number(1))
    client.expect(number(1))


def test_bytes_that_are_no_reply_end_the_lane_behind_the_replies_in_front_of_them(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(0, 1))
    shards[0].expect(get(0) + get(0, 1))
    shards[0].send(number(1) + b"what is this\r\n")
    bench.spin(lambda: bench.notes.down)
    client.expect(number(1))
    assert [each.request.raw for each in bench.notes.down[0].lost] == [get(0, 1)]


def test_a_push_is_no_reply(bench: Bench) -> None:
    shard = bench.attach(bench.lanes[0], pushes=True)
    client = bench.client()
    client.send(get(0) + get(0, 1))
    shard.send(number(1) + b">2\r\n+invalidate\r\n_\r\n" + number(2))
    client.expect(numbers([1, 2]))
    assert bench.notes.pushes == [b">2\r\n+invalidate\r\n_\r\n"]


def test_what_control_submits_is_answered_to_control_behind_what_was_sent_before(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    got: list[bytes] = []
    client.send(get(0))
    bench.settle()
    bench.plane.submit(bench.lanes[0], INFO, got.append)
    client.send(get(0, 1))
    shards[0].expect(get(0) + INFO + get(0, 1))
    shards[0].send(numbers([1, 2, 3]))
    client.expect(numbers([1, 3]))
    assert got == [number(2)]


def test_calls_gathered_in_one_turn_are_sent_together(bench: Bench) -> None:
    shards = bench.shards()
    with bench.plane.turn():
        for _ in range(3):
            bench.plane.submit(bench.lanes[0], INFO, lambda frame: None)
        shards[0].pull()
        assert shards[0].received == b""
    shards[0].pull()
    assert shards[0].received == 3 * INFO


def test_a_held_back_reply_goes_to_control_and_what_comes_behind_it_waits(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(0, 1) + get(0, 2))
    moved = b"-MOVED 1 127.0.0.1:7000\r\n"
    shards[0].send(number(1) + moved + number(3))
    client.expect(number(1))
    bench.spin(lambda: bench.notes.held)
    client.expect_nothing()
    ((request, lane, frame),) = bench.notes.held
    assert (request.raw, lane, frame) == (get(0, 1), bench.lanes[0], moved)
    bench.plane.resubmit(request, bench.lanes[1])
    shards[1].expect(get(0, 1))
    shards[1].send(number(2))
    client.expect(numbers([2, 3]))


def test_errors_that_control_does_not_watch_pass(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0))
    shards[0].send(b"-WRONGTYPE no\r\n")
    client.expect(b"-WRONGTYPE no\r\n")


def test_nothing_more_is_dispatched_until_a_held_back_command_is_answered(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0))
    shards[0].send(b"-MOVED 1 127.0.0.1:7000\r\n")
    bench.spin(lambda: bench.notes.held)
    client.send(get(0, 1) + get(2))
    bench.settle()
    shards[0].expect(get(0))
    shards[0].expect_nothing()
    shards[2].expect_nothing()
    bench.plane.answer(bench.notes.held[0].request, number(1))
    shards[0].expect(get(0, 1))
    shards[2].expect(get(2))
    shards[2].send(number(3))
    shards[0].send(number(2))
    client.expect(numbers([1, 2, 3]))


def test_asking_goes_in_front_and_its_own_reply_to_nobody(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0))
    shards[0].send(b"-ASK 1 127.0.0.1:7000\r\n")
    bench.spin(lambda: bench.notes.held)
    bench.plane.resubmit(bench.notes.held[0].request, bench.lanes[1], asking=True)
    shards[1].expect(encode_request([b"ASKING"]) + get(0))
    shards[1].send(OK + number(7))
    client.expect(number(7))


def test_a_held_back_reply_of_what_control_submitted_comes_as_held_back_too(bench: Bench) -> None:
    shards = bench.shards()
    got: list[bytes] = []
    request = bench.plane.submit(bench.lanes[0], get(0), got.append)
    shards[0].send(b"-MOVED 1 127.0.0.1:7000\r\n")
    bench.spin(lambda: bench.notes.held)
    assert bench.notes.held[0].request is request
    assert got == []
    bench.plane.resubmit(request, bench.lanes[2])
    shards[2].expect(get(0))
    shards[2].send(number(1))
    bench.spin(lambda: got)
    assert got == [number(1)]


def test_after_a_route_swap_the_next_command_waits_for_those_under_way(bench: Bench) -> None:
    shards = bench.shards()
    client, other = bench.client(), bench.client()
    client.send(put(0, b"1"))
    shards[0].expect(put(0, b"1"))
    bench.plane.set_routes([1] * 16384)
    client.send(put(0, b"2"))
    other.send(put(0, b"x"))
    shards[1].expect(put(0, b"x"))  # a client with nothing under way need not wait
    shards[1].expect_nothing()
    shards[0].expect_nothing()
    shards[0].send(OK)
    shards[1].expect(put(0, b"2"))
    shards[1].send(OK + number(2))
    client.expect(OK + number(2))
    other.expect(OK)


def test_a_fence_waits_for_resubmissions_too(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(put(0, b"1"))
    bench.settle()
    bench.plane.fence_all()
    client.send(put(0, b"2"))
    shards[0].send(b"-MOVED 1 127.0.0.1:7000\r\n")
    bench.spin(lambda: bench.notes.held)
    bench.plane.resubmit(bench.notes.held[0].request, bench.lanes[1])
    shards[1].expect(put(0, b"1"))
    shards[1].expect_nothing()
    shards[1].send(OK)
    shards[0].expect(put(0, b"1") + put(0, b"2"))


def test_writes_answered_are_remembered_by_shard_with_the_stamp_of_their_lane(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(put(0, b"1") + get(1) + put(2, b"1"))
    shards[0].send(OK)
    shards[1].send(OK)
    client.expect(OK + OK)
    assert bench.newest.writes == {0: ["life 0", "life 0"]}  # a read is no write, an unanswered write not yet one
    shards[2].send(b"-ERR it failed\r\n")
    client.expect(b"-ERR it failed\r\n")
    bench.lanes[0].stamp = "later"
    client.send(put(0, b"2"))
    shards[0].send(OK)
    client.expect(OK)
    assert bench.newest.writes == {0: ["life 0", "later"], 2: ["life 2", "life 2"]}


def test_a_write_that_was_held_back_counts_where_it_was_answered(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(put(0, b"1"))
    shards[0].send(b"-MOVED 1 127.0.0.1:7000\r\n")
    bench.spin(lambda: bench.notes.held)
    assert bench.newest.writes == {}
    bench.plane.resubmit(bench.notes.held[0].request, bench.lanes[1])
    shards[1].send(OK)
    client.expect(OK)
    assert bench.newest.writes == {1: ["life 1", "life 1"]}


def test_a_write_submitted_for_a_client_counts_for_it(bench: Bench) -> None:
    shards = bench.shards()
    bench.client()
    bench.settle()
    bench.plane.submit(bench.lanes[1], INFO, lambda frame: None, client=bench.newest, write=True)
    bench.plane.submit(bench.lanes[2], INFO, lambda frame: None, client=bench.newest)
    shards[1].send(OK)
    shards[2].send(OK)
    bench.spin(lambda: not bench.lanes[2].outstanding and not bench.lanes[1].outstanding)
    assert bench.newest.writes == {1: ["life 1", "life 1"]}


def test_inline_requests_reach_the_shard_as_arrays(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(b'\r\nset %s "a b"\r\n' % key(0))
    shards[0].expect(encode_request([b"set", key(0), b"a b"]))
