"""The compiled codec held against the one in Python: equal in all they return, safe with what no caller should send,
and chosen as documented.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.codec import LARGE, FramingError, Limits, ParseTable, encode_request
from tests.codec.agreement import cut, replies_agree, requests_agree
from tests.codec.implementations import Implementation, implementation
from tests.codec.streams import FULL, REPLY_TOKENS, REQUEST_TOKENS, TABLES, cuts, reply_streams, request_streams

PYTHON = implementation("python")


@pytest.fixture(scope="module")
def compiled() -> Implementation:
    try:
        return implementation("cython")
    except ImportError as error:
        pytest.skip(f"no compiled codec here: {error}")


def bytewise(stream: bytes) -> Iterable[bytes]:
    return cut(stream, range(len(stream)))


@given(request_streams, cuts, st.sampled_from(TABLES), st.booleans())
@settings(max_examples=500)
def test_requests_cut_anywhere(
    compiled: Implementation, stream: bytes, cuts: list[int], table: ParseTable, aside: bool
) -> None:
    requests_agree(PYTHON, compiled, cut(stream, cuts), table, aside=aside)


@given(request_streams, st.sampled_from(TABLES), st.booleans())
@settings(max_examples=150)
def test_requests_byte_by_byte(compiled: Implementation, stream: bytes, table: ParseTable, aside: bool) -> None:
    requests_agree(PYTHON, compiled, bytewise(stream), table, aside=aside)


@given(reply_streams, cuts, st.booleans())
@settings(max_examples=500)
def test_replies_cut_anywhere(compiled: Implementation, stream: bytes, cuts: list[int], aside: bool) -> None:
    replies_agree(PYTHON, compiled, cut(stream, cuts), aside=aside)


@given(reply_streams, st.booleans())
@settings(max_examples=150)
def test_replies_byte_by_byte(compiled: Implementation, stream: bytes, aside: bool) -> None:
    replies_agree(PYTHON, compiled, bytewise(stream), aside=aside)


@pytest.mark.parametrize("table", TABLES, ids=["windowed", "general", "tight", "unauthenticated"])
def test_every_request_token_behind_every_beginning_at_every_split(compiled: Implementation, table: ParseTable) -> None:
    for beginning in (b"", b"*3\r\n", b"*3\r\n$1\r\na\r\n", b"*2\r\n$3\r\nGET\r\n$"):
        for token in REQUEST_TOKENS:
            stream = beginning + token + b"$3\r\nGET\r\n$0\r\n\r\n"
            for at in range(len(stream)):
                requests_agree(PYTHON, compiled, [stream[:at], stream[at:]], table)


def test_every_reply_token_behind_every_beginning_at_every_split(compiled: Implementation) -> None:
    for beginning in (b"", b"*3\r\n", b"*2\r\n$1\r\na\r\n", b"|1\r\n+a\r\n", b"*" + b"9" * 18 + b"\r\n"):
        for token in REPLY_TOKENS:
            stream = beginning + token + b"+a\r\n$1\r\nb\r\n"
            for at in range(len(stream)):
                replies_agree(PYTHON, compiled, [stream[:at], stream[at:]])


# What was read once is spoiled before the next call: whoever looks at it again sees garbage, and answers otherwise.
LONG_REQUEST = encode_request([b"SET", b"a{b}", b"v" * 300, *[b"%d" % number for number in range(150)], b"\r" * 40])
LONG_REPLY = (
    b"*152\r\n" + b":1\r\n$3\r\nabc\r\n" * 75 + b"+" + b"x" * 200 + b"\r\n" + b"$300\r\n" + b"v" * 300 + b"\r\n"
)


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_of_a_request_in_pieces_nothing_is_read_again(codec: Implementation, piece: int) -> None:
    state = None
    for end in range(piece, len(LONG_REQUEST) + piece, piece):
        spoiled = state.position if state and state.remaining else 0
        buffer = b"\r" * spoiled + LONG_REQUEST[spoiled:end]
        commands, consumed, state = codec.parse_requests(buffer, FULL, state)
    whole = codec.parse_requests(LONG_REQUEST, FULL)[0][0]
    assert (consumed, state) == (len(LONG_REQUEST), None)
    assert commands == [(whole[0], whole[1], buffer)] and whole[0] >= 0


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_of_a_reply_in_pieces_nothing_is_read_again(codec: Implementation, piece: int) -> None:
    state = None
    for end in range(piece, len(LONG_REPLY) + piece, piece):
        # The CRLF in front of `position` is what an unfinished bulk still waits for.
        spoiled = max(0, min(state.position, end) - 2) if state else 0
        buffer = b"\n" * spoiled + LONG_REPLY[spoiled:end]
        frames, consumed, state = codec.frame_replies(buffer, state)
    assert (frames, consumed, state) == ([buffer], len(LONG_REPLY), None)


@pytest.mark.parametrize(("begin", "end"), [(b"", b"\n"), (b"*", b"\r\n"), (b"*1\r\n$", b"\r\n")], ids=repr)
def test_an_unfinished_line_of_a_request_is_not_searched_again(codec: Implementation, begin: bytes, end: bytes) -> None:
    line = begin + b"1" * 100
    _, _, state = codec.parse_requests(line, FULL)
    assert state is not None and state.searched == len(line)
    spoiled = line[:50] + b"\r\n" + line[52:]
    assert codec.parse_requests(spoiled, FULL, state) == ([], 0, state)
    assert len(codec.parse_requests(spoiled + end, FULL, state)[0]) == 1


def test_an_unfinished_line_of_a_reply_is_not_searched_again(codec: Implementation) -> None:
    line = b"-" + b"x" * 100
    _, _, state = codec.frame_replies(line)
    assert state is not None and state.searched == len(line) - 1
    spoiled = line[:50] + b"\r\n" + line[52:]
    assert codec.frame_replies(spoiled, state) == ([], 0, state)
    assert codec.frame_replies(spoiled + b"\r\n", state)[0] == [spoiled + b"\r\n"]


@pytest.mark.parametrize("piece", [1, 3, 10])
def test_what_was_set_aside_is_put_in_front_of_the_first_command(codec: Implementation, piece: int) -> None:
    table = FULL.with_limits(Limits(large_request=len(LONG_REQUEST) - 1))
    buffer, kept, state = b"", b"", None
    for at in range(0, len(LONG_REQUEST), piece):
        buffer += LONG_REQUEST[at : at + piece]
        commands, consumed, state = codec.parse_requests(buffer, table, state)
        if state:
            done, state = state.set_aside()
            kept, buffer = kept + buffer[:done], buffer[done:]
    # Large by all of it, though little of it was in the last buffer.
    assert len(buffer) < 100 and consumed == len(buffer)
    assert commands == [(LARGE, 2, buffer)] and kept + commands[0][2] == LONG_REQUEST


@pytest.mark.parametrize("piece", [1, 3, 10])
def test_what_was_set_aside_is_put_in_front_of_the_first_frame(codec: Implementation, piece: int) -> None:
    buffer, kept, state = b"", b"", None
    for at in range(0, len(LONG_REPLY), piece):
        buffer += LONG_REPLY[at : at + piece]
        frames, consumed, state = codec.frame_replies(buffer, state)
        if state:
            done, state = state.set_aside(len(buffer))
            kept, buffer = kept + buffer[:done], buffer[done:]
    assert len(buffer) < 100 and consumed == len(buffer)
    assert kept + frames[0] == LONG_REPLY


def test_no_number_of_items_overflows(codec: Implementation) -> None:
    for kind in b"*~%|":
        with pytest.raises(FramingError, match="too many items"):
            codec.frame_replies((b"%c" % kind + b"9" * 18 + b"\r\n") * 30)
    # As many as there may be: waits for them.
    assert codec.frame_replies(b"*" + b"9" * 18 + b"\r\n")[2] is not None


HOSTILE = [-(2**63), -1, 1, 5, 2**31, 2**61, 2**63 - 1, 2**63, 2**70]


@pytest.mark.parametrize("field", ["position", "searched", "remaining", "argument", "length", "ahead"])
@pytest.mark.parametrize("value", HOSTILE)
def test_a_state_that_is_not_of_the_buffer_cannot_make_it_read_elsewhere(
    compiled: Implementation, field: str, value: int
) -> None:
    for stream in (b"*3\r\n$3\r\nGET\r\n$10\r\nab", b"*3\r\n$3\r\nGET\r\n$1", b"*", b"a"):
        _, _, state = PYTHON.parse_requests(stream, FULL)
        assert state is not None
        _harmless(compiled.parse_requests, stream[:4], FULL, state._replace(**{field: value}))
        _harmless(compiled.parse_requests, stream + b"\r\n" * 8, FULL, state._replace(**{field: value}))
    if field in ("position", "searched", "remaining"):
        for stream in (b"*3\r\n$10\r\nab", b"*3\r\n$1", b"+a"):
            _, _, reply_state = PYTHON.frame_replies(stream)
            assert reply_state is not None
            _harmless(compiled.frame_replies, stream[:2], reply_state._replace(**{field: value}))
            _harmless(compiled.frame_replies, stream + b"\r\n" * 8, reply_state._replace(**{field: value}))


def _harmless(function: Any, buffer: bytes, *arguments: Any) -> None:
    """A refusal, or an answer within the buffer (a sanitized build would end the process otherwise)."""
    try:
        _, consumed, _ = function(buffer, *arguments)
    except (ValueError, OverflowError):
        return
    assert 0 <= consumed <= len(buffer)


@pytest.mark.parametrize(
    "arguments",
    [
        *((memoryview(b"+a\r\n"),), (None,), (b"+", 7), (b"+", ()), (b"+a\r\n", None, -1), (b"+a\r\n", None, 3, 2)),
        *((b"+a\r\n", None, 0, 5), (b"+a\r\n", None, 5), (bytearray(b"+a\r\n"), None, 0, 5), (b"+", None, "0", 1)),
    ],
)
def test_other_types_are_refused(compiled: Implementation, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        compiled.frame_replies(*arguments)
    with pytest.raises((TypeError, ValueError)):
        compiled.parse_requests(arguments[0], FULL, *arguments[1:])


def test_a_buffer_that_is_one_request_or_reply_is_not_copied(compiled: Implementation) -> None:
    stream = encode_request([b"SET", b"k", b"v" * 60_000])
    assert compiled.parse_requests(stream, FULL)[0][0][2] is stream
    frame = b"$3\r\nabc\r\n"
    assert compiled.frame_replies(frame)[0][0] is frame


def in_use(choice: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "ACKGATE_CODEC"}
    if choice is not None:
        environment["ACKGATE_CODEC"] = choice
    question = "from proxy import codec; print(codec.IMPLEMENTATION, codec.parse_requests.__module__)"
    return subprocess.run(
        [sys.executable, "-c", question], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


ROOT = Path(__file__).parents[2]


def test_the_compiled_one_is_used_unless_python_is_asked_for(compiled: Implementation) -> None:
    assert in_use(None) == "cython proxy.codec._compiled"
    assert in_use("python") == "python proxy.codec._python"


def test_where_there_is_a_compiler_the_installation_built_it() -> None:
    """Installation goes on without; this is where a build that fails for another reason is noticed."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not headers.exists() or not shutil.which(compiler):
        pytest.skip("no C compiler or no Python headers here")
    implementation("cython")
