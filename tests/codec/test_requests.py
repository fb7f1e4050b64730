"""`parse_requests`: what it reports, that splits do not matter, that limits hold, and that its work is proportional
to the input.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.codec import (
    BARRIER,
    BROKEN,
    CONTROL,
    LARGE,
    OTHER,
    PLAIN,
    UNKNOWN,
    Command,
    Limits,
    ParseTable,
    decode_request,
    encode_request,
    key_slot,
)
from tests.codec.implementations import Implementation, implementation

PYTHON = implementation("python")

GET, SET, MULTI, KEYS, OBJECT, WAIT = range(1, 7)
TABLE = ParseTable(
    [
        (b"get", GET, 1, PLAIN),
        (b"set", SET, 1, PLAIN),
        (b"multi", MULTI, 0, BARRIER),
        (b"keys", KEYS, 0, OTHER),
        (b"object", OBJECT, 2, PLAIN),
        (b"wait", WAIT, 0, BARRIER),
    ]
)
# Limits too tight for the windowed loop: everything goes through the general parser.
GENERAL = TABLE.with_limits(Limits(max_arguments=5000))
TIGHT = TABLE.with_limits(Limits(max_arguments=9, max_bulk=40, max_inline=60, large_request=70))
TABLES = pytest.mark.parametrize("table", [TABLE, GENERAL], ids=["windowed", "general"])


def feed(codec: Implementation, pieces: Iterable[bytes], table: ParseTable = TABLE) -> list[Command]:
    """What a connection does: keep the rest, respect `missing`, go on behind barriers at once."""
    commands: list[Command] = []
    buffer = b""
    state = None
    due = 1
    for piece in pieces:
        buffer += piece
        due -= len(piece)
        while buffer and due <= 0:
            found, consumed, state = codec.parse_requests(buffer, table, state)
            commands += found
            if found and found[-1][0] == BROKEN:
                assert consumed == len(buffer)
                return commands
            buffer = buffer[consumed:]
            due = state.missing if state else 0
            assert not state or (buffer and state.missing >= 1)
            if not state and not buffer:
                break
        due = state.missing - max(0, -due) if state and due <= 0 else due
    return commands


def slot_by_the_book(key: bytes) -> int:
    """CRC16/XMODEM bit by bit, after the cluster specification."""
    if b"{" in key:
        tag, brace, _ = key.partition(b"{")[2].partition(b"}")
        key = tag if brace and tag else key
    crc = 0
    for byte in key:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % 16384


words = st.binary(max_size=30) | st.text("\r\n$*{}123a", max_size=12).map(str.encode) | st.just(b"x" * 300)
names = st.sampled_from(
    [b"GET", b"get", b"gEt", b"SET", b"MULTI", b"keys", b"OBJECT", b"WAIT", b"nosuch", b"", b"\r\n"]
)
requests = st.tuples(names, st.lists(words, max_size=5)).map(lambda request: [request[0], *request[1]])
blanks = st.sampled_from([b"*0\r\n", b"*-1\r\n", b"\r\n", b"  \n", b"*-7\r\n"])
inline = st.sampled_from([b"GET a\r\n", b"set '{a}b' \"\\x00\"\n", b"multi\r\n", b'nosuch "\r" \r\n'])
streams = st.lists(requests.map(encode_request) | blanks | inline, max_size=12).map(b"".join)


@given(st.lists(requests, max_size=30))
def test_every_request_is_reported_once_in_order_with_its_slot(codec: Implementation, sent: list[list[bytes]]) -> None:
    commands = feed(codec, [b"".join(map(encode_request, sent))])
    assert [decode_request(raw) for _, _, raw in commands] == sent
    for (slot, command_id, raw), arguments in zip(commands, sent, strict=True):
        entry = TABLE.names.get(arguments[0].lower(), (UNKNOWN, 0, OTHER))
        assert command_id == entry[0] and raw == encode_request(arguments)
        plain = entry[2] == PLAIN and len(arguments) > entry[1]
        assert slot == (slot_by_the_book(arguments[entry[1]]) if plain else CONTROL)


@given(streams, st.lists(st.integers(0, 2000), max_size=8))
def test_splits_do_not_matter(codec: Implementation, stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    pieces = [stream[begin:end] for begin, end in itertools.pairwise(edges)]
    whole = feed(codec, [stream])
    assert feed(codec, pieces) == whole
    assert feed(codec, pieces, GENERAL) == whole


@given(streams)
@settings(max_examples=40)
def test_byte_by_byte_equals_whole(codec: Implementation, stream: bytes) -> None:
    assert feed(codec, (stream[at : at + 1] for at in range(len(stream)))) == feed(codec, [stream])


# Mutated requests: whatever the bytes are, pieces and the whole agree, errors included.
soup = st.lists(
    st.sampled_from(
        [
            b"*1\r\n",
            b"*2\r\n",
            b"$3\r\n",
            b"GET",
            b"\r\n",
            b"\r",
            b"\n",
            b"$",
            b"-",
            b"*",
            b"0",
            b"7",
            b"a",
            b'"',
            b"' ",
        ]
    )
)


@given(soup.map(b"".join))
@settings(max_examples=300)
@example(b"*1\r\n$3\r\nGET\r\r")
@example(b"*2\r\n$3\r\nGET\r\n\r")
def test_malformed_input_gives_the_same_however_it_is_split(codec: Implementation, stream: bytes) -> None:
    whole = feed(codec, [stream])
    for table in (TABLE, GENERAL):
        assert feed(codec, [stream], table) == whole
        assert feed(codec, (stream[at : at + 1] for at in range(len(stream))), table) == whole
    assert feed(codec, [stream], TIGHT) == feed(codec, (stream[at : at + 1] for at in range(len(stream))), TIGHT)


@TABLES
def test_every_two_way_split_of_a_mixed_stream(codec: Implementation, table: ParseTable) -> None:
    stream = b"".join(
        [
            encode_request([b"SET", b"a{b}\r\n$1", bytes(range(256))]),
            b"*0\r\n*-1\r\n\r\n",
            b"get 'x y'\n",
            encode_request([b"MULTI"]),
            encode_request([b"x" * 40, b""]),
            encode_request([b"GET", b"k"]),
        ]
    )
    whole = feed(codec, [stream], table)
    assert len(whole) == 5
    for cut in range(len(stream)):
        assert feed(codec, [stream[:cut], stream[cut:]], table) == whole, cut


@TABLES
def test_parsing_stops_behind_a_barrier_and_goes_on_when_called_again(codec: Implementation, table: ParseTable) -> None:
    get = encode_request([b"GET", b"a"])
    multi = encode_request([b"multi"])
    commands, consumed, state = codec.parse_requests(get + multi + get + b"*1", table)
    assert [command[:2] for command in commands] == [(key_slot(b"a"), GET), (CONTROL, MULTI)]
    assert (consumed, state) == (len(get + multi), None)
    commands, consumed, state = codec.parse_requests(get + b"*1", table)
    assert len(commands) == 1 and consumed == len(get) and state is not None


@pytest.mark.parametrize("max_arguments", [1024 * 1024, 5000], ids=["windowed", "general"])
def test_a_large_request_is_a_barrier_of_its_own(codec: Implementation, max_arguments: int) -> None:
    table = TABLE.with_limits(Limits(large_request=100, max_arguments=max_arguments))
    fits, large = encode_request([b"GET", b"k" * 80]), encode_request([b"GET", b"k" * 81])
    assert (len(fits), len(large)) == (100, 101)
    commands, consumed, _ = codec.parse_requests(fits + large + fits, table)
    assert [command[:2] for command in commands] == [(key_slot(b"k" * 80), GET), (LARGE, GET)]
    assert consumed == 201 and commands[1][2] == large
    assert codec.parse_requests(b"keys " + b"x" * 200 + b"\r\n", table)[0][0][:2] == (LARGE, KEYS)
    assert codec.parse_requests(encode_request([b"what", b"x" * 200]), table)[0][0][:2] == (LARGE, UNKNOWN)
    assert codec.parse_requests(encode_request([b"MULTI", b"x" * 200]), table)[0][0][:2] == (CONTROL, MULTI)


def test_missing_is_exact_for_a_bulk(codec: Implementation) -> None:
    stream = encode_request([b"SET", b"k", b"v" * 50_000])
    for cut, missing in ((40, len(stream) - 40), (len(stream) - 1, 1), (len(stream) - 2, 2)):
        commands, consumed, state = codec.parse_requests(stream[:cut], TABLE)
        assert state is not None
        assert (commands, consumed, state.missing) == ([], 0, missing)
    commands, _, _ = codec.parse_requests(stream, TABLE, state)
    assert commands[0][2] == stream


def test_names_that_clients_send_never_enter_the_table(codec: Implementation) -> None:
    before = dict(TABLE.names)
    feed(codec, [b"".join(encode_request([b"Name%d" % number, b"k"]) for number in range(500)), b"gET k\r\nGeT k\r\n"])
    assert TABLE.names == before


@pytest.mark.parametrize("entry", [(b"get", 0, 1, PLAIN), (b"get", 1, 0, PLAIN), (b"get", 1, 1, 3)])
def test_a_table_refuses_senseless_entries(entry: tuple[bytes, int, int, int]) -> None:
    with pytest.raises(ValueError, match="get"):
        ParseTable([entry])


UNAUTHENTICATED = TABLE.with_limits(Limits(unauthenticated=True))


@pytest.mark.parametrize(
    ("stream", "table", "message"),
    [
        (b"*1048577\r\n", TABLE, b"invalid multibulk length"),
        (b"*99999999999999999999\r\n", TABLE, b"invalid multibulk length"),
        (b"*10\r\n", TIGHT, b"invalid multibulk length"),
        (b"*1\r\n$536870913\r\n", TABLE, b"invalid bulk length"),
        (b"*1\r\n$41\r\n", TIGHT, b"invalid bulk length"),
        (b"*1\r\n$99999999999999999999\r\n", TABLE, b"invalid bulk length"),
        (b"*11\r\n", UNAUTHENTICATED, b"unauthenticated multibulk length"),
        (encode_request([b"get"] * 11), UNAUTHENTICATED, b"unauthenticated multibulk length"),
        (b"*1\r\n$4\r\nPING\rx", TABLE, b"invalid CRLF in request"),
        (b"*1\r\n$4\r\nPINGx\n", TABLE, b"invalid CRLF in request"),
        # The line end may stand right on the limit: then the line is judged by what it says.
        (b"*" + b"1" * 59 + b"\r\n", TIGHT, b"invalid multibulk length"),
        (b"*1\r\n$" + b"1" * 59 + b"\r\n", TIGHT, b"invalid bulk length"),
        (b"*1\r\n$16385\r\n", UNAUTHENTICATED, b"unauthenticated bulk length"),
        (b"x" * 61, TIGHT, b"too big inline request"),
        (b"x" * 61 + b"\n", TIGHT, b"too big inline request"),
        (b"*" + b"1" * 60, TIGHT, b"too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 60, TIGHT, b"too big bulk count string"),
    ],
)
def test_limits(codec: Implementation, stream: bytes, table: ParseTable, message: bytes) -> None:
    expected: list[Command] = [(BROKEN, 0, b"ERR Protocol error: " + message)]
    assert feed(codec, [stream], table) == expected
    assert feed(codec, (stream[at : at + 1] for at in range(len(stream))), table) == expected
    get = encode_request([b"GET", b"k"])
    assert feed(codec, [get + stream + get], table) == [(key_slot(b"k"), GET, get), *expected]


def test_what_is_just_inside_the_limits_passes(codec: Implementation) -> None:
    arguments = [b"get", *[b"k" * 16384] * 9]
    assert feed(codec, [encode_request(arguments)], UNAUTHENTICATED)[0][2] == encode_request(arguments)
    assert feed(codec, [b"x" * 60 + b"\n"], TIGHT)[0][:2] == (LARGE, UNKNOWN)


class Counted(bytes):
    """Bytes that count how many of them are looked at by searches, slices and indexing."""

    work = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        Counted.work += len(found) if isinstance(found, bytes) else 1
        return found

    def find(self, what: Any, start: Any = 0, end: Any = None) -> int:
        stop = len(self) if end is None else min(end, len(self))
        found = super().find(what, start, stop)
        Counted.work += (stop if found < 0 else found) - start + 1
        return found

    def split(self, *arguments: Any) -> list[bytes]:
        Counted.work += len(self)
        return super().split(*arguments)


def work_of(stream: bytes, piece: int, *, forget: bool = False) -> int:
    """Bytes looked at while one request arrives in pieces; with `forget` the state is thrown away, to show that the
    measure shows it.
    """
    Counted.work = 0
    state = None
    for end in range(piece, len(stream) + piece, piece):
        commands, _, state = PYTHON.parse_requests(Counted(stream[:end]), TABLE, None if forget else state)
    assert commands[0][2] == stream and state is None
    return Counted.work


@pytest.mark.parametrize("length", [0, 5, 3000], ids="{}-byte arguments".format)
def test_the_work_for_a_request_in_pieces_is_proportional_to_its_size(length: int) -> None:
    stream = encode_request([b"mset", *[b"v" * length] * (2_000_000 // (length + 100))])
    assert work_of(stream, 8000) < 5 * len(stream)


def test_the_measure_of_work_notices_rescanning() -> None:
    stream = encode_request([b"mset", *[b"value"] * 4000])
    assert work_of(stream, 150, forget=True) > 10 * work_of(stream, 150)


def test_an_unfinished_line_is_searched_once() -> None:
    for begin, end in ((b"", b"\n"), (b"*", b"\r\n"), (b"*1\r\n$", b"\r\n")):
        line = begin + b"1" * 20_000 + end
        Counted.work = 0
        state = None
        for at in range(1, len(line) + 1):
            commands, _, state = PYTHON.parse_requests(Counted(line[:at]), TABLE, state)
        assert len(commands) == 1
        # Some dozen bytes of fixed work a call; searched anew at each it would be 200 million.
        assert Counted.work < 40 * len(line)


def test_a_million_arguments_in_pieces_of_64_kilobytes(codec: Implementation) -> None:
    arguments = [b"DEL", *[b"%d" % number for number in range(1024 * 1024 - 1)]]
    stream = encode_request(arguments)
    buffer, state, largest = b"", None, 0
    for at in range(0, len(stream), 65536):
        buffer += stream[at : at + 65536]
        commands, _, state = codec.parse_requests(buffer, TABLE, state)
        largest = max(largest, len(repr(state)))
    assert commands == [(LARGE, UNKNOWN, stream)] and largest < 300
    assert decode_request(stream) == arguments
