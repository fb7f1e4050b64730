"""Requests as values: encoding and decoding, slots, inline lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.codec import decode_request, encode_request, key_slot, split_inline


@given(st.lists(st.binary(max_size=40) | st.text("\r\n$*1", max_size=9).map(str.encode), max_size=9))
def test_decode_undoes_encode(arguments: list[bytes]) -> None:
    assert decode_request(encode_request(arguments)) == arguments


def test_decode_of_long_requests() -> None:
    arguments = [b"set", b"k", b"\r\n" * 50_000]
    assert decode_request(encode_request(arguments)) == arguments


@pytest.mark.parametrize(
    "raw",
    [
        *[b"", b"*2\r\n$1\r\na\r\n", b"*1\r\n$1\r\na\r\n$1\r\nb\r\n"],
        *[b"*1\r\n$2\r\na\r\n", b"PING\r\n", b"*1\r\n$1\r\nab\r\n"],
        *[b"*1\r\n$+1\r\na\r\n", b"*1\r\n$01\r\na\r\n", b"*1\r\n$ 1\r\na\r\n", b"*01\r\n$1\r\na\r\n"],
        *[b"*1\r\n$-2\r\n", b"*1\r\n$-7\r\n"],  # lengths that would lead backwards
    ],
)
def test_decode_refuses_what_is_not_one_request(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode_request(raw)


# The examples of the cluster specification, and CLUSTER KEYSLOT of a live server.
@pytest.mark.parametrize(
    ("key", "same_as"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"a}b{c}d", b"c"),
    ],
)
def test_hash_tags(key: bytes, same_as: bytes) -> None:
    assert key_slot(key) == key_slot(same_as)


def test_known_slots() -> None:
    assert [key_slot(key) for key in (b"foo", b"bar", b"123456789", b"")] == [12182, 5061, 12739, 0]
    assert key_slot(b"foo{}{bar}") == 8363
    assert key_slot(b"foo{bar") != key_slot(b"bar")


@given(st.lists(st.binary(min_size=1)))
def test_quoted_arguments_survive_an_inline_line(arguments: list[bytes]) -> None:
    line = b" ".join(b'"' + b"".join(b"\\x%02x" % byte for byte in argument) + b'"' for argument in arguments)
    assert split_inline(line) == arguments


@given(st.binary())
def test_any_line_is_split_or_refused(line: bytes) -> None:
    split = split_inline(line)
    assert split is None or all(isinstance(word, bytes) for word in split)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b" \t\v ", []),
        (b"a  b\tc", [b"a", b"b", b"c"]),
        (b"a\vb", [b"a\vb"]),
        (b"'' \"\"", [b"", b""]),
        (b"\"a b\"'c d'e", [b"a bc de"]),
        (b'"\\n\\x41\\q\\\\"', [b"\nAq\\"]),
        (b"'\\n\\''", [b"\\n'"]),
        (b'"a', None),
        (b"a 'b", None),
        (b"\xff\x00", [b"\xff\x00"]),
    ],
    ids=repr,
)
def test_inline_lines(line: bytes, words: list[bytes] | None) -> None:
    assert split_inline(line) == words
