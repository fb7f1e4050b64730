"""Requests of many keys taken apart, and replies joined: each implementation, and both against each other."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.codec import decode_request, encode_request, key_slot
from proxy.codec.reply import array, bulk, elements, error, integer
from tests.codec.agreement import joins_agree, splits_agree
from tests.codec.implementations import Implementation, implementation
from tests.codec.streams import REQUEST_TOKENS, keys, multi_key_requests, replies, spoiled_requests, steps

PYTHON = implementation("python")
MGET = 7


@pytest.fixture(scope="module")
def compiled() -> Implementation:
    try:
        return implementation("cython")
    except ImportError as failure:
        pytest.skip(f"no compiled codec here: {failure}")


@pytest.fixture(scope="module")
def key_of_slot() -> list[bytes]:
    """A key for each slot."""
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < 16384:
        found.setdefault(key_slot(b"%d" % number), b"%d" % number)
        number += 1
    return [found[slot] for slot in range(16384)]


# ---- splitting -------------------------------------------------------------------------------------------------------


def test_each_key_goes_to_its_slot(codec: Implementation) -> None:
    assert codec.split_keys(encode_request([b"MGET", b"foo", b"bar"]), 1, MGET) == [
        (12182, MGET, encode_request([b"MGET", b"foo"])),
        (5061, MGET, encode_request([b"MGET", b"bar"])),
    ]


def test_what_belongs_to_a_key_goes_with_it(codec: Implementation) -> None:
    assert codec.split_keys(encode_request([b"mset", b"foo", b"\r\n", b"bar", b""]), 2, MGET) == [
        (12182, MGET, encode_request([b"mset", b"foo", b"\r\n"])),
        (5061, MGET, encode_request([b"mset", b"bar", b""])),
    ]


@pytest.mark.parametrize("words", [[b"foo"], [b"foo", b"foo"], [b"{foo}\r\n", b"foo", b"{foo}", b"x{foo}"]])
def test_keys_of_one_slot_stay_together_uncopied(codec: Implementation, words: list[bytes]) -> None:
    raw = encode_request([b"del", *words])
    parts = codec.split_keys(raw, 1, MGET)
    assert parts == [(12182, MGET, raw)] and parts[0][2] is raw


@pytest.mark.parametrize("words", [[b"a", b"b", b"a"], [b"a", b"b", b"{a}"], [b"a", b"a", b"b"], [b"a", b"b", b"b"]])
def test_keys_of_which_some_share_a_slot_are_not_for_it(codec: Implementation, words: list[bytes]) -> None:
    assert codec.split_keys(encode_request([b"mget", *words]), 1, MGET) is None


def test_no_key_or_half_a_group_is_not_for_it(codec: Implementation) -> None:
    assert codec.split_keys(encode_request([]), 1, MGET) is None
    assert codec.split_keys(encode_request([b"mget"]), 1, MGET) is None
    assert codec.split_keys(encode_request([b"mset", b"a"]), 2, MGET) is None
    assert codec.split_keys(encode_request([b"mset", b"a", b"1", b"b"]), 2, MGET) is None


@given(keys, steps, st.sampled_from([b"mget", b"", b"MGET\r\n", b"x" * 300]))
@settings(max_examples=300)
def test_the_parts_are_the_request(codec: Implementation, words: list[bytes], step: int, name: bytes) -> None:
    raw = encode_request([name, *words])
    parts = codec.split_keys(raw, step, MGET)
    slots = [key_slot(key) for key in words[::step]]
    if not slots or len(words) % step or len(set(slots)) not in (1, len(slots)):
        assert parts is None
        return
    assert parts is not None
    requests = [decode_request(part) for _, _, part in parts]
    assert [word for request in requests for word in request[1:]] == words
    assert [slot for slot, _, _ in parts] == (slots if len(set(slots)) > 1 else slots[:1])
    assert {request[0] for request in requests} == {name} and {command for _, command, _ in parts} == {MGET}


def test_as_many_keys_as_there_are_slots(codec: Implementation, key_of_slot: list[bytes]) -> None:
    parts = codec.split_keys(encode_request([b"mget", *key_of_slot]), 1, MGET)
    assert parts is not None and [slot for slot, _, _ in parts] == list(range(16384))
    assert [decode_request(raw) for _, _, raw in parts] == [[b"mget", key] for key in key_of_slot]


def test_more_keys_than_there_are_slots(codec: Implementation, key_of_slot: list[bytes]) -> None:
    assert codec.split_keys(encode_request([b"mget", *key_of_slot, b"a"]), 1, MGET) is None
    one_slot = encode_request([b"mget", *[b"{foo}%d" % number for number in range(20_000)]])
    assert codec.split_keys(one_slot, 1, MGET) == [(12182, MGET, one_slot)]
    two_slots = encode_request([b"mget", *[b"{foo}"] * 20_000, b"bar"])
    assert codec.split_keys(two_slots, 1, MGET) is None


@pytest.mark.parametrize("step", [0, -1])
def test_a_key_is_at_least_one_argument(codec: Implementation, step: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        codec.split_keys(encode_request([b"mget", b"a"]), step, MGET)


@pytest.mark.parametrize("step", [1, 2, 2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize(
    "raw",
    [
        *[b"", b"*", b"*1", b"*\r\n", b"*0\r\n", b"*-1\r\n", b"*3\r\n", b"PING\r\n", b"*9223372036854775807\r\n"],
        *[b"*3\r\n$1\r\na\r\n", b"*3\r\n$1\r\na\r\n$1\r\nb\r\n", b"*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n\r\n"],
        *[b"*2\r\n$1\r\na\r\n$%b\r\nb\r\n" % length for length in (b"", b"-1", b"-2", b"01", b"+1", b"2", b"9" * 18)],
        *[b"*2\r\n$1\r\na\r\n$%b\r\nb\r\n" % length for length in (b"9" * 19, b"9" * 30, b"9" * 5000, b"1\r", b"1_0")],
        *[b"*02\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\n$1\r\na\r\n$1\r\nb\r\n", b"$2\r\n$1\r\na\r\n$1\r\nb\r\n"],
        *[b"*2\r\n*1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\na\r\n:1\r\nb\r\n"],
        *[b"*2\r\n$1\r\na\r\n$1\r\nb", b"*2\r\n$1\r\na\r\n$1\r\nb\r", b"*2\r\n$1\r\na\r\n$1\r\nb\n\r"],
        *[b"*2\r\n$1\r\na\rb$1\r\nb\r\n", b"*2\r\n$-7\r\n"],
    ],
)
def test_nothing_is_believed(codec: Implementation, raw: bytes, step: int) -> None:
    assert codec.split_keys(raw, step, MGET) is None


@given(multi_key_requests | spoiled_requests, steps)
@settings(max_examples=500)
def test_both_split_alike(compiled: Implementation, raw: bytes, step: int) -> None:
    splits_agree(PYTHON, compiled, raw, step)


def test_both_split_alike_what_is_cut_off_or_spoiled_anywhere(compiled: Implementation) -> None:
    raw = encode_request([b"mset", b"a", b"\r\n", b"{b}1", b"", b"k" * 12, b"v" * 12])
    for at in range(len(raw)):
        splits_agree(PYTHON, compiled, raw[:at], 2)
        for token in (b"", b"\r", b"\n", b"-", b"0", b"9", b"$", b"{", *REQUEST_TOKENS):
            splits_agree(PYTHON, compiled, raw[:at] + token + raw[at + 1 :], 2)
            splits_agree(PYTHON, compiled, raw[:at] + token + raw[at + len(token) :], 1)


# ---- joining ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.binary(max_size=20), max_size=20), st.sampled_from([2, 3]))
def test_elements_are_joined_in_their_order(codec: Implementation, values: list[bytes | None], protocol: int) -> None:
    frames = [bulk(value, protocol) for value in values]
    joined = codec.join_elements([array([frame]) for frame in frames])
    assert joined == array(frames) and elements(joined) == frames


def test_large_elements_are_joined(codec: Implementation) -> None:
    frames = [bulk(b"%d" % number * 100_000) for number in range(5)]
    assert codec.join_elements([array([frame]) for frame in frames]) == array(frames)


@given(st.lists(st.integers(0, 999_999_999), max_size=20))
def test_integers_are_summed(codec: Implementation, numbers: list[int]) -> None:
    assert codec.sum_integers([integer(number) for number in numbers]) == integer(sum(numbers))


def test_a_sum_may_be_larger_than_what_is_summed(codec: Implementation) -> None:
    assert codec.sum_integers([integer(999_999_999)] * 5000) == integer(999_999_999 * 5000)


@pytest.mark.parametrize(
    "other",
    [
        *[error("ERR x"), b"", b"+OK\r\n", b"_\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"*2\r\n:1\r\n:2\r\n"],
        *[b"~1\r\n:1\r\n", b"*1\r", integer(-1), integer(10**9), integer(2**63 - 1), b"(1\r\n", b":\r\n", b":1\r"],
        *[b"|1\r\n+a\r\n+b\r\n:1\r\n", b"|1\r\n+a\r\n+b\r\n*1\r\n:1\r\n"],
    ],
    ids=repr,
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_any_other_reply_is_for_the_caller(codec: Implementation, other: bytes, at: int) -> None:
    arrays, integers = [array([integer(1)])] * 2, [integer(1)] * 2
    assert codec.join_elements([*arrays[:at], other, *arrays[at:]]) is None
    assert codec.sum_integers([*integers[:at], other, *integers[at:]]) is None


@given(replies)
@settings(max_examples=500)
def test_both_join_alike(compiled: Implementation, frames: list[bytes]) -> None:
    joins_agree(PYTHON, compiled, frames)


def test_any_sequence_will_do(codec: Implementation) -> None:
    assert codec.join_elements((array([integer(1)]),)) == array([integer(1)])
    assert codec.sum_integers((integer(1), integer(2))) == integer(3)


@pytest.mark.parametrize("other", [None, 7, bytearray(b"*1\r\n:1\r\n"), memoryview(b":1\r\n"), ":1\r\n", [b":1\r\n"]])
def test_other_types_are_refused(compiled: Implementation, other: Any) -> None:
    for join, good in ((compiled.join_elements, b"*1\r\n:1\r\n"), (compiled.sum_integers, b":1\r\n")):
        with pytest.raises(TypeError):
            join([good, other])
        if not isinstance(other, list):
            with pytest.raises(TypeError):
                join(other)
    with pytest.raises(TypeError):
        compiled.split_keys(other, 1, MGET)
