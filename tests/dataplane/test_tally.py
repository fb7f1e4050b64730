"""What is counted of commands: each once, when its client has its reply, with the time it took."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.codec import Limits as CodecLimits
from proxy.codec import ParseTable, encode_request
from proxy.dataplane import BOUNDS, Limits, Row, Tally, Widths
from tests.dataplane.bench import COMMANDS, INFO, OK, WATCHED, Bench, get, key, number, put

GET, SET, INFO_ID = (COMMANDS[name][0] for name in (b"get", b"set", b"info"))
WRONGTYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"


@pytest.fixture
def counted(bench: Bench) -> Bench:
    assert bench.plane.tally is not None
    bench.plane.tally.fit(max(command_id for command_id, _, _ in COMMANDS.values()))
    return bench


def row(bench: Bench, command_id: int) -> Row:
    assert bench.plane.tally is not None
    return bench.plane.tally.rows[command_id]


def calls(bench: Bench, command_id: int) -> int:
    return sum(row(bench, command_id).counts)


# ---- the figures alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "place"), [(0.0, 0), (BOUNDS[0], 0), (BOUNDS[0] * 1.01, 1), (9.99, 16), (11, 17)])
def test_a_time_is_in_the_first_bucket_that_it_does_not_exceed(seconds: float, place: int) -> None:
    assert Tally().bucket(seconds) == place


def test_there_is_a_bucket_behind_the_last_end() -> None:
    assert len(Row().counts) == len(BOUNDS) + 1


def test_ids_that_mean_nothing_are_counted_together_and_twins_with_their_commands() -> None:
    tally = Tally()
    tally.fit(10)
    for command_id in (3, 13, 21, 1000, -5):
        tally.add(command_id, 0, 0.5, OK)
    assert sum(tally.rows[3].counts) == 2
    assert sum(tally.rows[0].counts) == 3
    assert tally.rows[3].seconds == 1.0


def test_what_was_counted_stays_when_there_are_more_commands_or_fewer() -> None:
    tally = Tally()
    tally.fit(3)
    tally.add(3, 1, 0.0001, OK)
    tally.fit(400)
    tally.add(400, 1, 0.0001, OK)
    tally.fit(5)
    assert sum(tally.rows[3].counts) == sum(tally.rows[400].counts) == 1
    tally.forget(3)
    assert sum(tally.rows[3].counts) == 0


def test_no_sum_goes_back_when_an_id_gets_another_meaning() -> None:
    tally = Tally()
    tally.fit(3)
    tally.add(0, 2, 0.5, WRONGTYPE)
    for bucket, frame in ((1, OK), (2, WRONGTYPE), (17, b"-ERR\r\n")):
        tally.add(3, bucket, 1.0, frame)
    tally.forget(3)
    assert [(at, count) for at, count in enumerate(tally.rows[0].counts) if count] == [(1, 1), (2, 2), (17, 1)]
    assert tally.rows[0].seconds == 3.5
    assert tally.rows[0].errors == {b"WRONGTYPE": 2, b"ERR": 1}
    assert (list(tally.rows[3].counts), tally.rows[3].seconds, tally.rows[3].errors) == ([0] * 18, 0.0, {})


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (WRONGTYPE, b"WRONGTYPE"),
        (b"-ERR\r\n", b"ERR"),
        (b"-CLUSTERDOWN Hash slot not served\r\n", b"CLUSTERDOWN"),
        (b"-MYERROR of a script\r\n", b"other"),
        (b"-\r\n", b"other"),
        (b"-   \r\n", b"other"),
        (b"-" + b"E" * 5000 + b"\r\n", b"other"),
        (b"-err lower\r\n", b"other"),
    ],
)
def test_errors_are_told_by_their_first_word_if_it_is_a_known_one(frame: bytes, word: bytes) -> None:
    tally = Tally()
    tally.add(0, 0, 0.0, frame)
    assert tally.rows[0].errors == {word: 1}


@pytest.mark.parametrize("frame", [OK, b"", b":-1\r\n", b"$1\r\n-\r\n"])
def test_what_is_no_error_is_none(frame: bytes) -> None:
    tally = Tally()
    tally.add(0, 0, 0.0, frame)
    assert tally.rows[0].errors == {}


def test_widths_have_buckets_and_a_sum() -> None:
    widths = Widths()
    for width in (1, 1, 2, 5, 64, 65, 9000):
        widths.add(width)
    assert widths.counts == [2, 1, 0, 0, 1, 0, 0, 0, 0, 1, 2]
    assert widths.total == 1 + 1 + 2 + 5 + 64 + 65 + 9000


# ---- in the data plane -----------------------------------------------------------------------------------------------


def test_a_plain_command_is_counted_when_its_reply_is_in(counted: Bench) -> None:
    shards = counted.shards()
    client = counted.client()
    client.send(get(0) + get(0) + put(0, b"v"))
    shards[0].expect(get(0) + get(0) + put(0, b"v"))
    assert calls(counted, GET) == calls(counted, SET) == 0
    shards[0].send(number(1) + WRONGTYPE + OK)
    client.expect(number(1) + WRONGTYPE + OK)
    assert (calls(counted, GET), calls(counted, SET)) == (2, 1)
    assert row(counted, GET).errors == {b"WRONGTYPE": 1}
    assert 0 < row(counted, GET).seconds < 60


def test_what_control_answers_is_counted_by_what_it_turned_out_to_be(counted: Bench) -> None:
    client = counted.client()
    client.send(INFO + INFO)
    counted.settle()
    first, second = counted.notes.commands
    first.command_id = SET
    counted.plane.answer(first, OK)
    counted.plane.answer(first, OK)
    counted.plane.answer(second, b"-ERR no\r\n")
    client.expect(OK + b"-ERR no\r\n")
    assert (calls(counted, SET), calls(counted, INFO_ID)) == (1, 1)
    assert row(counted, INFO_ID).errors == {b"ERR": 1}


def test_a_redirection_is_no_answer(counted: Bench) -> None:
    shards = counted.shards()
    client = counted.client()
    client.send(get(0))
    shards[0].expect(get(0))
    shards[0].send(WATCHED[0] + b"1 127.0.0.1:1\r\n")
    counted.settle()
    [held] = counted.notes.held
    assert calls(counted, GET) == 0
    counted.plane.resubmit(held.request, counted.lanes[1])
    shards[1].expect(get(0))
    shards[1].send(number(7))
    client.expect(number(7))
    assert calls(counted, GET) == 1 and row(counted, GET).errors == {}


def test_a_command_in_parts_is_one(counted: Bench) -> None:
    bench = counted
    entries = [(name, command_id, 1, kind) for name, (command_id, kind, _) in COMMANDS.items()]
    parts = [(1, GET, get(0)), (16000, GET, get(2))]
    bench.plane.set_commands(
        ParseTable(entries, CodecLimits()),
        bytes([0, *(flag for _, _, flag in COMMANDS.values())]),
        {INFO_ID: lambda raw: (list(parts), lambda frames: b"".join([b"*2\r\n", *frames]))},
    )
    shards = bench.shards()
    client = bench.client()
    client.send(encode_request([b"INFO", b"x"]))
    shards[0].expect(get(0))
    shards[2].expect(get(2))
    shards[0].send(number(1))
    shards[2].send(number(2))
    client.expect(b"*2\r\n" + number(1) + number(2))
    assert (calls(bench, INFO_ID), calls(bench, GET)) == (1, 0)
    assert bench.plane.split_parts.counts[1] == 1


def test_replies_kept_back_are_counted_when_they_are_passed_on_as_what_they_are_then(counted: Bench) -> None:
    shards = counted.shards()
    client = counted.client()
    counted.settle()
    counted.plane.set_lanes(counted.newest, counted.lanes, concern=1)
    client.send(put(0, b"a") + put(0, b"b"))
    shards[0].expect(put(0, b"a") + put(0, b"b"))
    shards[0].send(OK + OK)
    counted.settle()
    assert calls(counted, SET) == 0
    [hold] = counted.plane.holds
    counted.plane.take_hold(hold)
    counted.plane.release(hold, b"-NOREPLICAS not acknowledged\r\n")
    client.expect(b"-NOREPLICAS not acknowledged\r\n" * 2)
    assert calls(counted, SET) == 2 and row(counted, SET).errors == {b"NOREPLICAS": 2}


def test_a_client_that_is_gone_counts_no_more(counted: Bench) -> None:
    shards = counted.shards()
    client = counted.client()
    client.send(get(0))
    shards[0].expect(get(0))
    counted.plane.kill(counted.newest)
    client.expect_eof()
    shards[0].send(number(1))
    counted.settle()
    assert calls(counted, GET) in (0, 1), "harmless either way"


def test_without_a_tally_everything_goes_as_before(make: Callable[[Limits], Bench]) -> None:
    bench = make(Limits())
    bench.plane.tally = None
    shards = bench.shards()
    client = bench.client()
    client.send(get(0) + INFO)
    shards[0].expect(get(0))
    shards[0].send(number(1))
    bench.plane.answer(bench.notes.commands[0], OK)
    client.expect(number(1) + OK)


def test_what_goes_over_lanes_is_counted_by_shard(bench: Bench) -> None:
    shards = bench.shards()
    client = bench.client()
    client.send(get(1))
    shards[1].expect(get(1))
    shards[1].send(number(1))
    client.expect(number(1))
    traffic = bench.plane.traffic_of(1)
    assert (traffic.connects, traffic.losses) == (1, 0)
    assert (traffic.bytes_out, traffic.bytes_in) == (len(get(1)), len(number(1)))
    assert bench.plane.traffic_of(0).bytes_out == 0
    shards[1].close()
    bench.settle()
    assert traffic.losses == 1


def test_bytes_that_the_kernel_does_not_take_are_queued(bench: Bench) -> None:
    bench.shards()
    client = bench.client()
    value = b"v" * 4000
    for _ in range(500):
        client.send(encode_request([b"SET", key(0), value]))
    bench.settle()
    assert 0 < bench.lanes[0].queued < 500 * 4100
