"""Requests and replies that are long, or cut anywhere, are whole all the same."""

from __future__ import annotations

import pytest

from proxy.codec import encode_request
from tests.dataplane.bench import INFO, Bench, get, number, numbers


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
