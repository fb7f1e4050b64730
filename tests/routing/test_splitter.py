"""The data plane's splitters say what `split` says: the same parts, the same reply from whatever the parts answered."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from proxy.codec import encode_request, key_slot
from proxy.codec.reply import OK, array, bulk, error, integer
from proxy.routing import Split, split, splitter
from tests.codec.implementations import implementation
from tests.codec.streams import keys

splitting = importlib.import_module("proxy.routing.splitter")  # the name in the package is the function
LOST = error(b"ERR the connection was lost")
OOM = error(b"OOM command not allowed when used memory > 'maxmemory'.")
# The one that fits is chosen by the policy, the others are for it to refuse or to report.
ANSWERS = [
    *[OK, integer(1), integer(0), integer(10**12), array([bulk(b"\r\nv")]), array([bulk(None)])],
    *[array([bulk(None, 3)]), array([]), array([bulk(b"a"), bulk(b"b")]), bulk(b"a"), b"_\r\n", LOST, OOM],
    *[b"|1\r\n+a\r\n+b\r\n:1\r\n"],
]
STEPS = {b"MGET": 1, b"DEL": 1, b"UNLINK": 1, b"EXISTS": 1, b"TOUCH": 1, b"MSET": 2}
FITS = {b"MGET": array([bulk(b"v")]), b"MSET": OK}
calls = st.tuples(st.sampled_from(sorted(STEPS)), keys)
answers = st.lists(st.none() | st.sampled_from(ANSWERS), min_size=12, max_size=12)
live = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["python", "cython"], autouse=True)
def _codec(request, monkeypatch):
    try:
        codec = implementation(request.param)
    except ImportError as failure:
        pytest.skip(f"no compiled codec here: {failure}")
    monkeypatch.setattr(splitting, "split_keys", codec.split_keys)
    monkeypatch.setitem(splitting._QUICK, None, codec.join_elements)
    monkeypatch.setitem(splitting._QUICK, b"agg_sum", codec.sum_integers)


def unknown(frames):
    return {at for at, frame in enumerate(frames) if frame == LOST}


def outcome(join, *frames):
    """The reply, or that these answers cannot be read (no server gives them)."""
    try:
        return join(*frames)
    except ValueError as failure:
        return str(failure)


@live
@given(calls, answers)
@example((b"MGET", [b"a", b"b", b"\r\n"]), [None] * 12)
@example((b"MGET", [b"a", b"b", b"{a}"]), [None] * 12)
@example((b"MSET", [b"a", b"1", b"b", b"2", b"c", b"3"]), [None, OOM, LOST] * 4)
def test_over_slots_the_parts_and_the_reply_are_those_of_split(table, call, drawn):
    name, words = call
    command = table.lookup([name])
    expected = split(command, [name, *words])
    assume(isinstance(expected, Split))
    parts, join = splitter(command, unknown)(encode_request([name, *words]))
    assert parts == [(part.slot, command.id, part.raw) for part in expected.parts]
    fits = FITS.get(name, integer(1))
    frames = [answer or fits for answer in drawn[: len(parts)]]
    assert outcome(join, frames) == outcome(expected.join, frames, unknown(frames))


@live
@given(calls)
@example((b"DEL", [b"\r\n", b"{\r\n}"]))
def test_what_split_leaves_whole_goes_whole_or_to_control(table, call):
    name, words = call
    command = table.lookup([name])
    assume(not isinstance(split(command, [name, *words]), Split))
    raw = encode_request([name, *words])
    taken = splitter(command, unknown)(raw)
    if not words or len(words) % STEPS[name]:
        assert taken is None  # the engine, or control in its place, says what is wrong
        return
    parts, join = taken
    assert parts == [(key_slot(words[0]), command.id, raw)]
    assert [join([answer]) for answer in ANSWERS] == ANSWERS


def test_only_commands_of_keys_or_of_keys_with_values_have_one(table):
    having = {command.name for command in table if splitter(command, unknown)}
    assert having == {name.lower() for name in STEPS}
