"""`frame_replies` and the readers and builders of replies; hiredis, which control connections use, is the second
opinion.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import hiredis
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.codec import FramingError, reply
from tests.codec.implementations import Implementation, implementation

PYTHON = implementation("python")

RESP2 = [
    b"+OK\r\n",
    b"+\r\n",
    b"-ERR no\r\n",
    b":-12\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"$8\r\n\r\n$3\r\nab\r\n",
    b"*2\r\n$1\r\na\r\n$2\r\nbc\r\n",
    b"*3\r\n:1\r\n*2\r\n+a\r\n*-1\r\n$-1\r\n",
    b"*2\r\n$2\r\n\r\n\r\n$1\r\n*\r\n",
]
RESP3 = [
    b"_\r\n",
    b",1.5\r\n",
    b",-inf\r\n",
    b"#t\r\n",
    b"(12345678901234567890123\r\n",
    b"!7\r\nERR a\r\n\r\n",
    b"=7\r\ntxt:a\r\n\r\n",
    b"~2\r\n+a\r\n~0\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n%0\r\n",
    b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
]
ATTRIBUTED = [b"|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n", b"*2\r\n|1\r\n+a\r\n*1\r\n:1\r\n+x\r\n:2\r\n", b"|0\r\n|0\r\n*0\r\n"]


def feed(codec: Implementation, pieces: Iterable[bytes]) -> list[bytes]:
    """What a connection does: keep the rest, respect `missing`."""
    frames: list[bytes] = []
    buffer, state, arrived = b"", None, 0
    for piece in pieces:
        buffer += piece
        arrived += len(piece)
        if state and arrived < state.missing:
            continue
        found, consumed, state = codec.frame_replies(buffer, state)
        frames += found
        buffer, arrived = buffer[consumed:], 0
        assert bool(state) == bool(buffer) and (not state or state.missing >= 1)
    assert not buffer
    return frames


def bytewise(stream: bytes) -> Iterable[bytes]:
    return (stream[at : at + 1] for at in range(len(stream)))


def resp(value: Any) -> bytes:
    """RESP3 of a value, written apart from the builders under test."""
    if isinstance(value, bool):
        return b"#t\r\n" if value else b"#f\r\n"
    if value is None:
        return b"_\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n" % len(value) + value + b"\r\n"
    if isinstance(value, dict):
        return b"%%%d\r\n" % len(value) + b"".join(resp(key) + resp(item) for key, item in value.items())
    return b"*%d\r\n" % len(value) + b"".join(map(resp, value))


texts = st.binary(max_size=20) | st.text("\r\n$*+1", max_size=9).map(str.encode) | st.just(b"y" * 2500)
scalars = texts | st.integers(-(2**63), 2**63 - 1) | st.none() | st.booleans()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=4))


@given(st.lists(values, max_size=12), st.lists(st.integers(0, 5000), max_size=8))
def test_frames_are_cut_where_replies_end_however_they_arrive(
    codec: Implementation, sent: list[Any], cuts: list[int]
) -> None:
    frames = [resp(value) for value in sent]
    stream = b"".join(frames)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    assert feed(codec, [stream]) == frames
    assert feed(codec, (stream[begin:end] for begin, end in itertools.pairwise(edges))) == frames
    assert [reply.decode(frame) for frame in frames] == sent


@pytest.mark.parametrize("frame", RESP2 + RESP3 + ATTRIBUTED, ids=repr)
def test_every_type_alone_split_and_in_company(codec: Implementation, frame: bytes) -> None:
    assert codec.frame_replies(frame) == ([frame], len(frame), None)
    assert feed(codec, bytewise(frame)) == [frame]
    stream = b"+a\r\n" + frame + b"$1\r\nb\r\n"
    for cut in range(len(stream)):
        assert feed(codec, [stream[:cut], stream[cut:]]) == [b"+a\r\n", frame, b"$1\r\nb\r\n"], cut


def test_all_types_in_one_buffer(codec: Implementation) -> None:
    frames = (RESP2 + RESP3 + ATTRIBUTED) * 300
    assert feed(codec, [b"".join(frames)]) == frames


# hiredis gives sets as Python sets, big numbers as bytes, and raises for errors in arrays: not comparable.
@pytest.mark.parametrize("frame", [frame for frame in RESP2 + RESP3 if frame[:1] not in b"!~("], ids=repr)
def test_decode_agrees_with_hiredis(frame: bytes) -> None:
    reader = hiredis.Reader()
    reader.feed(frame)
    theirs = reader.gets()
    ours = reply.decode(frame)
    if isinstance(theirs, hiredis.ReplyError):
        assert ours == reply.Error(str(theirs))
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "garbage",
    [
        *[b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"\x00", b".\r\n"],
        *[b"$x\r\n", b"$-2\r\n", b"$3\r\nabcde", b"$3\r\nabcx\n", b"$+1\r\n", b"$?\r\n", b"$ 1\r\n", b"$" + b"1" * 30],
        *[b"*?\r\n", b"*\r\n", b"%-1\r\n", b"~-1\r\n", b"*1\r\nx", b"*1\r\n>1\r\n:1\r\n", b"*" + b"9" * 25],
    ],
    ids=repr,
)
def test_garbage_is_refused_at_once_and_what_stood_before_it_is_kept(codec: Implementation, garbage: bytes) -> None:
    with pytest.raises(FramingError):
        feed(codec, [garbage])
    with pytest.raises(FramingError):
        feed(codec, bytewise(garbage))
    with pytest.raises(FramingError) as caught:
        feed(codec, [b"+a\r\n$1\r\nb\r\n" + garbage])
    assert caught.value.frames == [b"+a\r\n", b"$1\r\nb\r\n"]


soup = st.lists(
    st.sampled_from(
        [b"$1\r\n", b"*2\r\n", b"+", b":1\r\n", b"a", b"\r\n", b"\r", b"|1\r\n", b">1\r\n", b"$-1\r\n", b"-"]
    )
)


@given(soup.map(b"".join))
@settings(max_examples=300)
@example(b"$1\r\na\r\r\n")
def test_whatever_the_bytes_pieces_and_the_whole_agree(codec: Implementation, stream: bytes) -> None:
    def outcome(pieces: Iterable[bytes]) -> tuple[list[bytes], bool]:
        frames: list[bytes] = []
        buffer, state = b"", None
        for piece in pieces:
            buffer += piece
            try:
                found, consumed, state = codec.frame_replies(buffer, state)
            except FramingError as error:
                return frames + error.frames, True
            frames += found
            buffer = buffer[consumed:]
        return frames, False

    assert outcome(bytewise(stream)) == outcome([stream])


def test_missing_is_exact_for_a_bulk(codec: Implementation) -> None:
    _, _, state = codec.frame_replies(b"$100000\r\nabc")
    assert state is not None and state.missing == 100000 - 3 + 2
    _, _, state = codec.frame_replies(b"*2\r\n$5\r\nabcde")
    assert state is not None and state.missing == 2
    # Called too early, it still knows.
    _, _, again = codec.frame_replies(b"*2\r\n$5\r\nabcde\r", state)
    assert again is not None and again.missing == 1


def test_nesting_needs_no_stack(codec: Implementation) -> None:
    deep = b"*1\r\n" * 200_000 + b":1\r\n"
    assert feed(codec, [deep]) == [deep]
    with pytest.raises(FramingError, match="deeper"):
        reply.decode(deep)
    allowed = b"*1\r\n" * 1000 + b":1\r\n"
    value = reply.decode(allowed)
    while isinstance(value, list):
        value = value[0]
    assert value == 1


class Counted(bytes):
    """Bytes that count how many of them are looked at by searches, slices and indexing."""

    work = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        Counted.work += len(found) if isinstance(found, bytes) else 1
        return found

    def find(self, what: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(what, start)
        Counted.work += (len(self) if found < 0 else found) - start + 1
        return found

    def split(self, *arguments: Any) -> list[bytes]:
        Counted.work += len(self)
        return super().split(*arguments)


def work_of(stream: bytes, piece: int, *, forget: bool = False) -> int:
    """Bytes looked at while one reply arrives in pieces; with `forget` the state is thrown away, to show that the
    measure shows it.
    """
    Counted.work = 0
    state = None
    for end in range(piece, len(stream) + piece, piece):
        frames, _, state = PYTHON.frame_replies(Counted(stream[:end]), None if forget else state)
    assert frames == [stream]
    return Counted.work


@pytest.mark.parametrize(
    "item",
    [b":1\r\n", b"$3\r\nabc\r\n", b"*1\r\n+a\r\n", b"$3000\r\n" + b"v" * 3000 + b"\r\n"],
    ids=["integers", "bulks", "arrays", "long bulks"],
)
def test_the_work_for_a_reply_in_pieces_is_proportional_to_its_size(item: bytes) -> None:
    count = 1_000_000 // (len(item) + 20)
    stream = b"*%d\r\n" % count + item * count
    assert work_of(stream, 8000) < 6 * len(stream)


def test_the_measure_of_work_notices_rescanning() -> None:
    stream = b"*9000\r\n" + b":1\r\n" * 9000
    assert work_of(stream, 1000, forget=True) > 10 * work_of(stream, 1000)


def test_a_long_line_is_searched_once() -> None:
    stream = b"-ERR " + b"x" * 20_000 + b"\r\n"
    assert work_of(stream, 1) < 40 * len(stream)


def test_a_million_elements_in_pieces(codec: Implementation) -> None:
    stream = b"*1000000\r\n" + b"$1\r\nx\r\n" * 1_000_000
    buffer, state = b"", None
    for at in range(0, len(stream), 65536):
        buffer += stream[at : at + 65536]
        frames, _, state = codec.frame_replies(buffer, state)
    assert frames == [stream] and state is None


@given(st.binary(max_size=50) | st.none(), st.sampled_from([2, 3]))
def test_bulks_round_trip(value: bytes | None, protocol: int) -> None:
    assert reply.bulk_value(reply.bulk(value, protocol)) == value
    assert reply.decode(reply.bulk(value, protocol)) == value


def test_builders_in_both_protocols() -> None:
    one, two = reply.integer(1), reply.bulk(b"2")
    assert reply.array([one, two]) == b"*2\r\n:1\r\n$1\r\n2\r\n"
    assert reply.map_([(one, two)], 2) == b"*2\r\n:1\r\n$1\r\n2\r\n"
    assert reply.map_([(one, two)], 3) == b"%1\r\n:1\r\n$1\r\n2\r\n"
    assert (reply.null(2), reply.null(3)) == (b"$-1\r\n", b"_\r\n")
    assert (reply.null_array(2), reply.null_array(3)) == (b"*-1\r\n", b"_\r\n")
    assert (reply.boolean(True, 2), reply.boolean(False, 3)) == (b":1\r\n", b"#f\r\n")
    assert (reply.double(1.5, 2), reply.double(3.0, 3)) == (b"$3\r\n1.5\r\n", b",3\r\n")
    assert reply.double(math.inf, 3) == b",inf\r\n"
    assert reply.verbatim(b"a\r\n", 2) == b"$3\r\na\r\n\r\n"
    assert reply.verbatim(b"a\r\n", 3) == b"=7\r\ntxt:a\r\n\r\n"
    assert (reply.set_([one], 2), reply.set_([one], 3)) == (b"*1\r\n:1\r\n", b"~1\r\n:1\r\n")
    assert (reply.push([one], 2), reply.push([one], 3)) == (b"*1\r\n:1\r\n", b">1\r\n:1\r\n")
    assert reply.simple("PONG") == reply.PONG


@pytest.mark.parametrize("text", ["ERR a\r\nb", b"ERR a\r\nb"])
def test_line_breaks_cannot_leave_an_error(codec: Implementation, text: str | bytes) -> None:
    frame = reply.error(text)
    assert frame == b"-ERR a  b\r\n" and codec.frame_replies(frame)[0] == [frame]
    assert reply.decode(frame) == reply.Error("ERR a  b")
    assert reply.decode(frame).code == "ERR"
    assert reply.simple("a\nb") == b"+a b\r\n"


def test_error_texts_keep_bytes_that_are_no_utf_8() -> None:
    frame = b"-ERR \xff\r\n"
    assert reply.error(reply.decode(frame).message) == frame


ERRORS = {b"-A\r\n": True, b"!1\r\nA\r\n": True, b"|0\r\n-A\r\n": True, b"+A\r\n": False, b"|0\r\n+A\r\n": False}
INTEGERS = {b":-5\r\n": -5, b"(99999999999999999999\r\n": 99999999999999999999, b"#t\r\n": 1, b"|0\r\n:1\r\n": 1}
STRINGS = {b"+a\r\n": b"a", b"$2\r\n\r\n\r\n": b"\r\n", b"=5\r\ntxt:b\r\n": b"b", b"$-1\r\n": None, b"_\r\n": None}
NULLS = {b"$-1\r\n": True, b"*-1\r\n": True, b"_\r\n": True, b"*0\r\n": False, b"$0\r\n\r\n": False}


def test_readers() -> None:
    assert {frame: reply.is_error(frame) for frame in ERRORS} == ERRORS
    assert {frame: reply.integer_value(frame) for frame in INTEGERS} == INTEGERS
    assert {frame: reply.bulk_value(frame) for frame in STRINGS} == STRINGS
    assert {frame: reply.is_null(frame) for frame in NULLS} == NULLS


@pytest.mark.parametrize(
    ("reader", "frame"),
    [(reply.integer_value, b"+1\r\n"), (reply.bulk_value, b":1\r\n"), (reply.elements, b"+1\r\n")],
)
def test_readers_refuse_other_types(reader: Callable[[bytes], object], frame: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        reader(frame)


def test_elements() -> None:
    inner = [b":1\r\n", b"*1\r\n+a\r\n", b"|1\r\n+k\r\n+v\r\n$1\r\nx\r\n", b"$-1\r\n"]
    for kind in (b"*4", b"~4", b">4", b"%2", b"|1\r\n+a\r\n:1\r\n*4"):
        assert reply.elements(kind + b"\r\n" + b"".join(inner)) == inner
    assert reply.elements(b"*-1\r\n") == reply.elements(b"*0\r\n") == reply.elements(b"_\r\n") == []


@pytest.mark.parametrize(
    "data", [b"", b"+a", b"+a\r\n+b\r\n", b"*2\r\n:1\r\n", b":x\r\n", b",\r\n", b"zz\r\n"], ids=repr
)
def test_decode_refuses_what_is_not_one_reply(data: bytes) -> None:
    with pytest.raises(FramingError):
        reply.decode(data)


def test_decode_leaves_attributes_out_and_makes_keys_hashable() -> None:
    assert reply.decode(ATTRIBUTED[1]) == [b"x", 2]
    assert reply.decode(b"%1\r\n*1\r\n:1\r\n+v\r\n") == {"[1]": b"v"}
