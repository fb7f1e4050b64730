"""Lanes that are not there yet, and lanes that are lost."""

from __future__ import annotations

import select
import socket
import struct

from proxy.codec import encode_request
from proxy.dataplane import READONLY, Handed, Lane
from tests.dataplane.bench import INFO, OK, Bench, get, key, number, numbers, put, raws


class Stingy:
    """A lane's socket whose kernel takes so many bytes and no more."""

    def __init__(self, sock: socket.socket, takes: int) -> None:
        self.sock = sock
        self.left = takes

    def send(self, data: memoryview) -> int:
        if not self.left:
            raise BlockingIOError
        count = self.sock.send(data[: self.left])
        self.left -= count
        return count

    def fileno(self) -> int:
        return self.sock.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        return self.sock.recv_into(buffer)

    def close(self) -> None:
        self.sock.close()


def handed_to(bench: Bench, takes: int, *requests: bytes) -> list[Handed]:
    """How far each of a client's requests came, by a kernel that took so many bytes before the lane went down."""
    lane = bench.lanes[0] = bench.plane.new_lane(0)
    ours, shard = bench.pair()
    bench.plane.attach(lane, Stingy(ours, takes), "life")  # type: ignore[arg-type]
    client = bench.client()
    client.send(b"".join(requests))
    bench.spin(lambda: lane.outstanding)
    for _ in range(3):
        bench.plane.run_once()  # it is writable, and takes nothing: so the plane never rests
    shard.close()
    bench.spin(lambda: bench.notes.down)
    down = bench.notes.down.pop()
    assert down.lane is lane
    assert raws(lost.request for lost in down.lost) == list(requests)
    client.close()
    return [lost.handed for lost in down.lost]


def test_what_was_lost_falls_in_three_classes_exact_to_the_byte(bench: Bench) -> None:
    requests = get(0), put(0, b"a\r\nb"), get(0, 1)
    ends = [len(requests[0]), len(requests[0] + requests[1]), sum(map(len, requests))]
    starts = [0, *ends[:-1]]
    for takes in range(ends[-1] + 1):
        expected = [
            Handed.WHOLLY if end <= takes else Handed.PARTLY if start < takes else Handed.NEVER
            for start, end in zip(starts, ends, strict=True)
        ]
        assert handed_to(bench, takes, *requests) == expected, takes


def test_what_was_answered_is_not_lost_and_the_rest_keeps_its_class(bench: Bench) -> None:
    lane = bench.lanes[0]
    ours, shard = bench.pair()
    first, second, third, fourth = get(0), put(0, b"x"), INFO, get(0, 2)
    bench.plane.attach(lane, Stingy(ours, len(first + second + third) - 1), "life")  # type: ignore[arg-type]
    client = bench.client()
    client.send(first + second)
    bench.spin(lambda: lane.outstanding)
    submitted = bench.plane.submit(lane, third, lambda frame: None)
    client.send(fourth)
    bench.spin(lambda: lane.outstanding == 3)
    shard.send(number(1))
    client.expect(number(1))
    shard.close()
    bench.spin(lambda: bench.notes.down)
    lost = bench.notes.down[0].lost
    assert [each.request.raw for each in lost] == [second, third, fourth]
    assert lost[1].request is submitted
    assert [each.handed for each in lost] == [Handed.WHOLLY, Handed.PARTLY, Handed.NEVER]


def test_bytes_of_asking_count_but_are_no_lost_request(bench: Bench) -> None:
    asking = len(encode_request([b"ASKING"]))
    for takes, expected in ((asking, Handed.NEVER), (asking + 1, Handed.PARTLY)):
        lane = bench.plane.new_lane(0)
        ours, shard = bench.pair()
        bench.plane.attach(lane, Stingy(ours, takes), "life")  # type: ignore[arg-type]
        request = bench.plane.submit(bench.lanes[1], get(0), lambda frame: None)
        bench.plane.reclaim(bench.lanes[1])
        bench.plane.resubmit(request, lane, asking=True)
        shard.close()
        bench.spin(lambda: bench.notes.down)
        ((found, handed),) = bench.notes.down.pop().lost
        assert (found, handed) == (request, expected)


def test_a_lost_write_is_not_answered_by_the_plane_but_left_to_control(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(put(0, b"1") + get(1))
    bench.settle()
    shards[1].send(number(2))
    shards[0].close()
    bench.spin(lambda: bench.notes.down)
    client.expect_nothing()
    (lost,) = bench.notes.down[0].lost
    assert (lost.handed, lost.request.write, lost.request.client) == (Handed.WHOLLY, True, bench.newest)
    bench.plane.answer(lost.request, b"-ERR unknown\r\n")
    client.expect(b"-ERR unknown\r\n" + number(2))
    assert bench.newest.writes == {}


def test_a_lost_request_may_be_sent_again_and_keeps_its_place(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(1) + get(0, 1))
    shards[1].send(number(2))
    shards[0].close()
    bench.spin(lambda: bench.notes.down)
    for lost in bench.notes.down[0].lost:
        assert bench.plane.command_flags[lost.request.command_id] & READONLY
        bench.plane.resubmit(lost.request, bench.lanes[2])
    shards[2].expect(get(0) + get(0, 1))
    shards[2].send(numbers([1, 3]))
    client.expect(numbers([1, 2, 3]))


def test_replies_that_came_before_the_connection_broke_are_read_though_sending_failed(bench: Bench) -> None:
    ours, theirs = _tcp_pair()
    lane = bench.lanes[0]
    bench.plane.attach(lane, ours, "life")
    got: list[bytes] = []
    first = bench.plane.submit(lane, put(0, b"1"), got.append)
    second = bench.plane.submit(lane, put(0, b"2"), got.append)
    theirs.sendall(OK)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    broken = select.poll()
    broken.register(ours, select.POLLHUP)
    broken.poll(10_000)
    third = bench.plane.submit(lane, put(0, b"3"), got.append)
    bench.spin(lambda: bench.notes.down)
    assert got == [OK]
    lost = {each.request: each.handed for each in bench.notes.down[0].lost}
    assert lost == {second: Handed.WHOLLY, third: Handed.NEVER}
    assert first not in lost


def test_replies_in_front_of_the_end_of_a_lane_are_passed_on(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) * 100)
    shards[0].expect(get(0) * 100)
    shards[0].send(number(1) * 60 + b":")
    shards[0].close()
    bench.spin(lambda: bench.notes.down)
    client.expect(number(1) * 60)
    assert len(bench.notes.down[0].lost) == 40


def test_commands_wait_on_a_lane_without_a_connection_and_go_in_order_once_it_has_one(bench: Bench) -> None:
    clients = [bench.client(), bench.client()]
    clients[0].send(put(0, b"1") + put(0, b"2"))
    bench.settle()
    clients[1].send(get(0))
    bench.settle()
    assert bench.lanes[0].held_bytes == len(put(0, b"1") + put(0, b"2") + get(0))
    assert not bench.lanes[0].attached
    shard = bench.attach(bench.lanes[0], stamp="anew")
    shard.expect(put(0, b"1") + put(0, b"2") + get(0))
    assert bench.lanes[0].held_bytes == 0
    shard.send(OK + OK + number(3))
    clients[0].expect(OK + OK)
    clients[1].expect(number(3))
    assert bench.notes.opened_clients[0].writes == {0: ["anew", "anew"]}


def test_what_is_parked_may_be_taken_back_in_order_and_put_elsewhere(bench: Bench) -> None:
    client = bench.client()
    client.send(get(0) + get(1) + put(0, b"x"))
    bench.settle()
    got: list[bytes] = []
    bench.plane.submit(bench.lanes[0], INFO, got.append)
    taken = bench.plane.reclaim(bench.lanes[0])
    assert raws(taken) == [get(0), put(0, b"x"), INFO]
    assert [request.write for request in taken] == [False, True, False]
    assert (bench.lanes[0].outstanding, bench.lanes[0].held_bytes) == (0, 0)
    for request in taken:
        bench.plane.resubmit(request, bench.lanes[1])
    shard = bench.attach(bench.lanes[1])
    shard.expect(get(1) + get(0) + put(0, b"x") + INFO)
    shard.send(numbers([2, 1, 3, 4]))
    client.expect(numbers([1, 2, 3]))
    assert got == [number(4)]


def test_a_lane_that_was_reclaimed_can_be_used_again(bench: Bench) -> None:
    client = bench.client()
    client.send(get(0))
    bench.settle()
    (request,) = bench.plane.reclaim(bench.lanes[0])
    bench.plane.answer(request, number(1))
    client.send(get(0, 1))
    bench.settle()
    shard = bench.attach(bench.lanes[0])
    shard.expect(get(0, 1))
    shard.send(number(2))
    client.expect(numbers([1, 2]))


def test_commands_of_slots_without_a_shard_are_parked_on_the_last_lane(bench: Bench) -> None:
    bench.shards()
    bench.plane.set_routes([-1] * 16384)
    client = bench.client()
    client.send(get(0))
    bench.settle()
    (request,) = bench.plane.reclaim(bench.lanes[-1])
    assert (request.raw, request.client) == (get(0), bench.newest)


def test_closing_a_lane_returns_what_had_no_reply_and_calls_nobody(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(0, 1))
    shards[0].expect(get(0) + get(0, 1))
    shards[0].send(number(1))
    client.expect(number(1))
    ((request, handed),) = bench.plane.close_lane(bench.lanes[0])
    assert (request.raw, handed) == (get(0, 1), Handed.WHOLLY)
    shards[0].expect_eof()
    assert bench.notes.down == []
    assert bench.plane.close_lane(bench.lanes[0]) == []


def test_control_is_told_once_that_a_lane_is_down(bench: Bench) -> None:
    shards = bench.shards()
    shards[0].close()
    bench.spin(lambda: bench.notes.down)
    bench.settle()
    assert len(bench.notes.down) == 1
    assert bench.notes.down[0].lost == []


def test_the_age_of_a_lane_is_that_of_its_oldest_unanswered_command(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    assert bench.plane.lane_age(bench.lanes[0]) == 0
    client.send(get(0))
    shards[0].expect(get(0))
    older = bench.plane.lane_age(bench.lanes[0])
    assert bench.plane.lane_age(bench.lanes[0]) >= older > 0
    shards[0].send(number(1))
    client.expect(number(1))
    assert bench.plane.lane_age(bench.lanes[0]) == 0


def test_a_shard_that_reads_slowly_gets_everything_in_order(bench: Bench) -> None:
    shard = bench.attach(bench.lanes[0])
    client = bench.client()
    wanted = b"".join(put(0, b"%d" % at + b"x" * 3000) for at in range(500))
    client.send(wanted)
    for _ in range(3):
        bench.plane.run_once()
    shard.expect(wanted)
    shard.send(OK * 500)
    client.expect(OK * 500)


def test_one_lane_in_trouble_leaves_the_other_shards_alone(bench: Bench) -> None:
    shards = bench.shards()
    client, other = bench.client(), bench.client()
    client.send(get(0))
    bench.settle()
    shards[0].close()
    bench.spin(lambda: bench.notes.down)
    other.send(get(1) + get(2))
    shards[1].send(number(1))
    shards[2].send(number(2))
    other.expect(numbers([1, 2]))


def test_a_new_lane_takes_the_place_of_a_lost_one(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0))
    shards[0].expect(get(0))
    shards[0].close()
    bench.spin(lambda: bench.notes.down)
    lane = bench.lanes[0] = bench.plane.new_lane(0)
    bench.plane.resubmit(bench.notes.down[0].lost[0].request, lane)
    client.send(encode_request([b"GET", key(0, 1)]))
    bench.settle()
    shard = bench.attach(lane)
    shard.expect(get(0) + get(0, 1))
    shard.send(numbers([1, 2]))
    client.expect(numbers([1, 2]))


def test_a_lane_is_lost_for_good(bench: Bench) -> None:
    lane: Lane = bench.lanes[0]
    bench.shards()[0].close()
    bench.spin(lambda: bench.notes.down)
    assert lane.closed


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs
