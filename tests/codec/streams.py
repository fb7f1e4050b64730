"""What the tests and the fuzzer feed to the codec: a table, and bytes that are nearly RESP."""

from typing import Final

from hypothesis import strategies as st

from proxy.codec import BARRIER, OTHER, PLAIN, Limits, ParseTable, encode_request

FULL: Final = ParseTable(
    [
        (b"get", 1, 1, PLAIN),
        (b"set", 2, 1, PLAIN),
        (b"object", 3, 2, PLAIN),
        (b"keys", 4, 0, OTHER),
        (b"multi", 5, 0, BARRIER),
        (b"ft.search", 600, 1, PLAIN),
    ]
)
# Ordinary limits; limits that the windowed Python loop cannot take; tight ones, so that random input meets them all;
# those of a session that has not authenticated.
TABLES: Final = [
    FULL,
    FULL.with_limits(Limits(max_arguments=5000)),
    FULL.with_limits(Limits(max_arguments=9, max_bulk=40, max_inline=60, large_request=70)),
    FULL.with_limits(Limits(unauthenticated=True)),
]

_NUMBERS: Final = [
    *[b"0", b"1", b"2", b"3", b"7", b"10", b"11", b"41", b"64", b"00", b"01", b"-0", b"-1", b"-2", b"-", b"", b"+1"],
    *[b"16385", b"1048577", b"536870913", b"2147483648", b"999999999", b"1000000000", b"4294967296"],
    *[b"999999999999999999", b"1000000000000000000", b"9223372036854775807", b"9223372036854775808"],
    *[b"-9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"1" * 25, b"1" * 70, b"1 ", b" 1"],
]
REQUEST_TOKENS: Final = [
    *[b"*" + number + b"\r\n" for number in _NUMBERS],
    *[b"$" + number + b"\r\n" for number in _NUMBERS],
    *[b"\r\n", b"\r", b"\n", b"$", b"*", b"-", b"0", b"a", b" ", b'"', b"'", b"\\x", b"\x00", b"\xff", b"{a}", b"{}"],
    *[b"GET", b"get\r\n", b"GeT", b"set ", b"MULTI\r\n", b"k\r\n", b"*1\r\n$3\r\nGET\r\n", b"*2\r\n$3\r\nGET\r\n"],
    *[encode_request([b"SET", b"a{b}c", b"\r\n$1"]), encode_request([b"ft.SEARCH", b"{}x", b"y" * 60])],
    *[encode_request([b"Multi"]), encode_request([b"object", b"x", b"{k"]), encode_request([b"nosuch" * 60, b""])],
]
REPLY_TOKENS: Final = [
    *[kind + number + b"\r\n" for kind in (b"$", b"*", b"%", b"|", b"=") for number in _NUMBERS],
    *[
        b"+OK\r\n",
        b"-ERR x\r\n",
        b":1\r\n",
        b"_\r\n",
        b",1.5\r\n",
        b"#t\r\n",
        b"(1\r\n",
        b"+",
        b"+a\rb\r\n",
        b"$3\r\nabc\r\n",
    ],
    *[b"!3\r\n", b"~2\r\n", b">1\r\n", b">2\r\n", b"abc", b"\r\n", b"\r", b"\n", b"x", b"\x00", b"\xff", b"$0\r\n\r\n"],
    *[b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*1\r\n" * 20, b"%1\r\n+a\r\n:1\r\n", b"*1000000000000000000\r\n"],
]

cuts = st.lists(st.integers(0, 4000), max_size=8)
request_streams = st.lists(st.sampled_from(REQUEST_TOKENS) | st.binary(max_size=20), max_size=14).map(b"".join)
reply_streams = st.lists(st.sampled_from(REPLY_TOKENS) | st.binary(max_size=20), max_size=14).map(b"".join)

_AWKWARD_KEYS: Final = [
    *[b"", b"a", b"b", b"{a}1", b"{a}2", b"{", b"{}", b"{}a", b"x{b}", b"\r\n", b"\r"],
    *[b"a\r\n$1\r\n", b"$0", b"*1\r\n", b"k" * 9, b"k" * 10, b"k" * 99, b"k" * 100, b"\x00\xff"],
]
steps = st.integers(1, 3)
keys = st.lists(st.sampled_from(_AWKWARD_KEYS) | st.binary(max_size=6), max_size=12)
multi_key_requests = keys.map(lambda words: encode_request([b"mget", *words]))


def _spoil(raw: bytes, at: int, width: int, put: bytes) -> bytes:
    at %= len(raw) + 1
    return raw[:at] + put + raw[at + width :]


spoiled_requests = st.builds(
    _spoil,
    multi_key_requests,
    st.integers(0, 500),
    st.integers(0, 3),
    st.sampled_from(REQUEST_TOKENS) | st.binary(max_size=3),
)

_ELEMENTS: Final = [
    *[b"*1\r\n$1\r\na\r\n", b"*1\r\n$-1\r\n", b"*1\r\n_\r\n", b"*1\r\n$4\r\n\r\n\r\n\r\n", b"*1\r\n*1\r\n:1\r\n"],
]
_INTEGERS: Final = [b":0\r\n", b":1\r\n", b":10\r\n", b":007\r\n", b":999999999\r\n"]
_OTHER_REPLIES: Final = [
    *[b"", b"*", b"*1\r", b"*1\r\n", b"*0\r\n", b"*2\r\n:1\r\n:1\r\n", b"*-1\r\n", b"~1\r\n:1\r\n"],
    *[b"_\r\n", b"+OK\r\n", b"-ERR x\r\n", b":", b":\r\n", b":1", b":1\r", b":1\n\r", b":-1\r\n", b":+1\r\n"],
    *[b": 1\r\n", b":1_0\r\n", b":1000000000\r\n", b":1\r\n\r\n", b"|1\r\n+a\r\n:1\r\n:1\r\n", b"(1\r\n"],
]
replies = st.one_of(
    st.lists(st.sampled_from(_ELEMENTS), max_size=12),
    st.lists(st.sampled_from(_INTEGERS), max_size=12),
    st.lists(st.sampled_from(_ELEMENTS + _INTEGERS + _OTHER_REPLIES) | st.binary(max_size=6), max_size=5),
)
