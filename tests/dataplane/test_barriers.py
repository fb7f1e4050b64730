"""A barrier stops its client until control says go on."""

from __future__ import annotations

import pytest

from proxy.codec import BARRIER as STOPS
from proxy.codec import ParseTable, encode_request
from proxy.dataplane import BARRIER, Mode
from tests.dataplane.bench import COMMANDS, INFO, MULTI, OK, QUIT, Bench, get, number, numbers, put, raws


def test_nothing_behind_a_barrier_is_looked_at_though_it_came_in_the_same_packet(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + MULTI + get(1) + INFO)
    shards[0].expect(get(0))
    bench.settle()
    shards[1].expect_nothing()
    assert bench.notes.commands == []


def test_its_turn_comes_when_everything_before_it_is_answered(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + INFO + get(1) + MULTI)
    bench.settle()
    (info,) = bench.notes.commands
    shards[0].send(number(1))
    shards[1].send(number(3))
    client.expect(number(1))
    bench.settle()
    assert raws(bench.notes.commands) == [INFO]
    bench.plane.answer(info, number(2))
    client.expect(numbers([2, 3]))
    bench.settle()
    assert raws(bench.notes.commands) == [INFO, MULTI]
    assert bench.notes.commands[1].barrier
    assert bench.newest.stopped


def test_a_barrier_with_nothing_before_it_has_its_turn_at_once(bench: Bench) -> None:
    client = bench.client()
    client.send(MULTI)
    bench.settle()
    assert raws(bench.notes.commands) == [MULTI]


def test_answering_a_barrier_does_not_yet_let_the_client_go_on(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(MULTI + get(0))
    bench.settle()
    bench.plane.answer(bench.notes.commands[0], OK)
    client.expect(OK)
    shards[0].expect_nothing()
    bench.plane.resume(bench.newest)
    shards[0].expect(get(0))
    assert not bench.newest.stopped


def test_a_client_resumed_in_control_mode_sends_every_command_to_control(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(MULTI + get(0) + put(1, b"1") + MULTI + get(2))
    bench.settle()
    bench.plane.answer(bench.notes.commands[0], OK)
    bench.plane.resume(bench.newest, Mode.CONTROL)
    bench.settle()
    assert raws(bench.notes.commands) == [MULTI, get(0), put(1, b"1")]
    for request in bench.notes.commands[1:]:
        bench.plane.answer(request, b"+QUEUED\r\n")
    bench.settle()
    assert bench.notes.commands[-1].raw == MULTI
    bench.plane.answer(bench.notes.commands[-1], OK)
    bench.plane.resume(bench.newest, Mode.PLAIN)
    client.expect(OK + 2 * b"+QUEUED\r\n" + OK)
    shards[2].expect(get(2))
    shards[0].expect_nothing()


def test_barriers_in_a_row_come_one_by_one(bench: Bench) -> None:
    bench.notes.on_command = lambda request: (
        bench.plane.answer(request, number(len(bench.notes.commands))),
        bench.plane.resume(bench.newest),
    )[0]
    client = bench.client()
    client.send(MULTI * 500)
    client.expect(numbers(range(1, 501)))


def test_what_control_submits_does_not_let_a_barrier_go_early(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    got: list[bytes] = []
    client.send(INFO + MULTI)
    bench.settle()
    bench.plane.submit(bench.lanes[0], get(0), got.append, client=bench.newest)
    shards[0].send(OK)
    bench.spin(lambda: got)
    bench.settle()
    assert raws(bench.notes.commands) == [INFO]


def test_the_next_command_waits_behind_a_fence_and_a_barrier_alike(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + MULTI + get(1))
    bench.settle()
    bench.plane.fence_all()
    shards[0].send(number(1))
    bench.spin(lambda: bench.notes.commands)
    bench.plane.answer(bench.notes.commands[0], number(2))
    bench.plane.resume(bench.newest)
    shards[1].expect(get(1))
    shards[1].send(number(3))
    client.expect(numbers([1, 2, 3]))


def test_a_large_request_stops_its_client_like_a_barrier(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    large = put(0, b"x" * 5000)
    client.send(get(0) + large + get(1))
    shards[0].expect(get(0))
    shards[1].expect_nothing()
    assert bench.notes.commands == []
    shards[0].send(number(1))
    bench.spin(lambda: bench.notes.commands)
    request = bench.notes.commands[0]
    assert (request.raw, request.barrier, request.write) == (large, True, True)
    shards[0].expect_nothing()


def test_quit_behind_a_pipeline_answers_all_of_it_then_closes(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + get(1) + QUIT + put(2, b"never"))
    shards[1].send(number(2))
    shards[0].send(number(1))
    bench.spin(lambda: bench.notes.commands)
    with bench.plane.turn():
        bench.plane.answer(bench.notes.commands[0], OK)
        bench.plane.finish(bench.newest)
    client.expect(numbers([1, 2]) + OK)
    client.expect_eof()
    shards[2].expect_nothing()
    assert bench.plane.clients == {}


def test_a_client_to_be_finished_gets_what_is_under_way_first(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(0))
    bench.settle()
    bench.plane.finish(bench.newest)
    client.send(get(1))
    bench.settle()
    shards[0].send(number(1))
    client.expect(number(1))
    client.expect_eof()
    shards[1].expect_nothing()


def test_a_killed_client_is_closed_at_once(bench: Bench) -> None:
    bench.shards()
    client = bench.client()
    client.send(get(0))
    bench.settle()
    bench.plane.kill(bench.newest)
    client.expect_eof()
    assert bench.notes.closed_clients == [bench.newest]


def test_a_client_killed_in_the_midst_of_its_packet_runs_no_more_of_it(bench: Bench) -> None:
    shards = bench.shards()
    bench.notes.on_command = lambda request: bench.plane.kill(bench.newest)
    client = bench.client()
    client.send(INFO + INFO + put(0, b"never"))
    client.expect_eof()
    assert raws(bench.notes.commands) == [INFO]
    shards[0].expect_nothing()


def test_in_control_mode_a_killed_client_runs_no_more_either(bench: Bench) -> None:
    client = bench.client()
    client.send(MULTI)
    bench.settle()
    bench.plane.resume(bench.newest, Mode.CONTROL)
    bench.notes.on_command = lambda request: bench.plane.kill(bench.newest)
    client.send(INFO + INFO + INFO)
    client.expect_eof()
    assert raws(bench.notes.commands) == [MULTI, INFO]


@pytest.mark.parametrize("before", [b"", get(0)])
def test_control_learns_that_a_client_behind_a_barrier_has_gone(bench: Bench, before: bytes) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(before + MULTI)
    client.sock.shutdown(1)
    bench.settle()
    if before:
        assert bench.notes.half_closed_clients == []
        shards[0].send(number(1))
    bench.spin(lambda: bench.notes.half_closed_clients)
    assert raws(bench.notes.commands) == [MULTI]


def test_it_learns_it_too_when_the_client_is_not_read_any_more(bench: Bench) -> None:
    client = bench.client()
    client.send(MULTI)
    bench.settle()
    with_much_behind_it = get(0) * 4000
    client.send(with_much_behind_it)
    client.sock.shutdown(1)
    bench.spin(lambda: bench.notes.half_closed_clients)


def test_the_rest_of_a_half_closed_client_runs_when_its_barrier_is_done(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(MULTI + get(0) + INFO)
    client.sock.shutdown(1)
    bench.settle()
    bench.plane.answer(bench.notes.commands[0], number(1))
    bench.plane.resume(bench.newest)
    shards[0].expect(get(0))
    shards[0].send(number(2))
    bench.plane.answer(bench.notes.commands[1], number(3))
    client.expect(numbers([1, 2, 3]))
    client.expect_eof()


def test_a_barrier_may_be_answered_and_resumed_within_its_own_call(bench: Bench) -> None:
    shards = bench.shards()

    def at_once(request: object) -> None:
        bench.plane.answer(bench.notes.commands[-1], OK)
        bench.plane.resume(bench.newest)

    bench.notes.on_command = at_once
    client = bench.client()
    client.send(get(0) + MULTI + encode_request([b"MULTI", b"again"]) + get(1))
    shards[0].send(number(1))
    shards[1].expect(get(1))
    client.expect(number(1) + OK + OK)


@pytest.mark.parametrize("size", [10, 200_000])
def test_an_unfinished_request_is_stopped_by_a_table_that_came_meanwhile(bench: Bench, size: int) -> None:
    """What had arrived of it may have been looked up, and set aside, before."""
    shards = bench.shards()
    entries = [(name, number, 1, kind) for name, (number, kind, _) in COMMANDS.items()]
    bench.plane.set_commands(ParseTable(entries), bench.plane.command_flags)
    raw = put(0, b"x" * size)
    client = bench.client()
    client.send(raw[:-7])
    bench.settle()
    entries = [(name, number, 1, STOPS) for name, number, _, _ in entries]
    bench.plane.set_commands(ParseTable(entries), bytes([0, *[BARRIER] * len(COMMANDS)]))
    client.send(raw[-7:] + get(0))
    bench.settle()
    shards[0].expect_nothing()
    assert raws(bench.notes.commands) == [raw]
    assert bench.newest.stopped
