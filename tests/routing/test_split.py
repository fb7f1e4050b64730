"""Splitting multi-key commands and joining their replies."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.codec import decode_request, key_slot
from proxy.codec.reply import OK, array, bulk, decode, error, integer
from proxy.routing import CommandTable, Split, split

KEYS = [b"a", b"b", b"{a}1", b"{b}2", b"c", b"\x00\xff", b"", b"nx"]
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=12)
live = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def call(table, *args):
    return split(table.lookup(list(args)), list(args))


def run(engine, table, args):
    """Run a call as the proxy would: whole, or part by part."""
    parts = call(table, *args)
    if not isinstance(parts, Split):
        return decode(parts if parts is not None else engine.raw(*args))
    for part in parts.parts:
        assert {key_slot(parts.keys[at]) for at in part.positions} == {part.slot}
    return decode(parts.join([engine.raw(*decode_request(part.raw)) for part in parts.parts]))


@live
@given(some_keys, some_keys)
def test_mset_mget_exists_touch_del_over_slots_do_what_one_server_does(engine, table, written, asked):
    engine.call("FLUSHALL")
    pairs = [(key, b"%d" % at) for at, key in enumerate(written)]
    assert run(engine, table, [b"MSET", *(word for pair in pairs for word in pair)]) == b"OK"
    held = dict(pairs)
    assert run(engine, table, [b"MGET", *asked]) == [held.get(key) for key in asked]
    count = sum(key in held for key in asked)
    assert run(engine, table, [b"EXISTS", *asked]) == count
    assert run(engine, table, [b"TOUCH", *asked]) == count
    assert run(engine, table, [b"DEL", *asked]) == len(set(asked) & set(held))
    assert run(engine, table, [b"UNLINK", *held]) == len(set(held) - set(asked))


@live
@given(some_keys)
def test_msetex_over_slots_keeps_its_options(engine, table, keys):
    engine.call("FLUSHALL")
    pairs = [word for at, key in enumerate(keys) for word in (key, b"%d" % at)]
    assert run(engine, table, [b"MSETEX", b"%d" % len(keys), *pairs, b"EX", b"100"]) == 1
    assert {engine.call("TTL", key) in (99, 100) for key in keys} == {True}
    last = {key: b"%d" % at for at, key in enumerate(keys)}
    assert run(engine, table, [b"MGET", *keys]) == [last[key] for key in keys]


def test_keys_of_one_slot_go_whole(table):
    assert call(table, b"MSET", b"{a}1", b"x", b"{a}2", b"y") is None
    assert call(table, b"MGET", b"a") is None


def test_the_order_of_one_slots_keys_is_kept(table):
    parts = call(table, b"MSET", b"a", b"1", b"b", b"2", b"a", b"3", b"{a}", b"4").parts
    assert [decode_request(part.raw) for part in parts] == [
        [b"MSET", b"a", b"1", b"a", b"3", b"{a}", b"4"],
        [b"MSET", b"b", b"2"],
    ]
    assert [part.positions for part in parts] == [(0, 2, 3), (1,)]


@pytest.mark.parametrize(
    "args",
    [
        b"MSETEX 2 a 1 b 2 NX", b"MSETEX 2 a 1 b 2 EX 5 xx", b"MSETEX x a 1 b 2", b"MSETEX 9 a 1 b 2",
        b"MSETEX 2 a 1 b", b"MSETNX a 1 b 2", b"SINTER a b", b"RENAME a b", b"MGET", b"WATCH a b",
    ],
)  # fmt: skip
def test_what_cannot_be_split_goes_whole_to_the_engine(table, args):
    assert call(table, *args.split()) is None


def test_a_key_without_a_value_is_answered_as_a_single_server_does(engine, table):
    assert call(table, b"MSET", b"a", b"1", b"b") == engine.raw(b"MSET", b"a", b"1", b"{a}b")
    short = [b"MSETEX", b"2", b"a", b"1", b"b"]
    assert run(engine, table, short) == decode(engine.raw(*short[:-1], b"{a}"))


def test_arguments_in_front_of_and_behind_the_keys_go_to_every_part():
    spec = [
        b"flags", [b"RO"], b"begin_search", [b"type", b"index", b"spec", [b"index", 1]],
        b"find_keys", [b"type", b"range", b"spec", [b"lastkey", -2, b"keystep", 1, b"limit", 0]],
    ]  # fmt: skip
    row = [b"json.mget", -3, [b"readonly"], 1, -2, 1, [], [b"request_policy:multi_shard"], [spec], []]
    table = CommandTable.from_reply([row])
    parts = call(table, b"JSON.MGET", b"a", b"b", b"$.path")
    assert [decode_request(part.raw)[1:] for part in parts.parts] == [[b"a", b"$.path"], [b"b", b"$.path"]]
    joined = parts.join([array([bulk(b"1")]), array([bulk(b"2")])])
    assert decode(joined) == [b"1", b"2"]


# ---- failures --------------------------------------------------------------------------------------------------------

OOM = error(b"OOM command not allowed when used memory > 'maxmemory'.")


def mset(table, *keys):
    return call(table, b"MSET", *(word for key in keys for word in (key, b"v")))


def test_an_error_of_any_part_of_a_read_is_the_reply(table):
    parts = call(table, b"MGET", b"a", b"b", b"c")
    assert parts.join([array([bulk(b"1")]), OOM, array([bulk(b"3")])]) == OOM


def test_a_partial_write_says_which_keys_were_not_written(table):
    parts = mset(table, b"a", b'q"\n\xff', b"c", b"{a}2")
    reply = parts.join([OK, OOM, OOM])
    assert reply == (
        b'-OOM partial write: 2 of 4 keys not written ("q\\"\\x0a\\xff", "c"): '
        b"command not allowed when used memory > 'maxmemory'.\r\n"
    )


def test_a_write_that_failed_everywhere_is_the_engines_error(table):
    assert mset(table, b"a", b"b").join([OOM, OOM]) == OOM


def test_a_lost_connection_is_not_called_not_written(table):
    lost = error(b"ERR the connection was lost")
    reply = mset(table, b"a", b"b", b"c").join([OOM, lost, OK], unknown={1})
    assert reply.startswith(
        b'-OOM partial write: 1 of 3 keys not written ("a"), 1 of 3 keys of unknown outcome ("b"): '
    )
    assert mset(table, b"a", b"b").join([lost, lost], unknown={0, 1}) == lost


def test_a_part_that_is_not_acknowledged_is_not_passed_over(table):
    late, gone = error(b"UNCONFIRMED applied, not acknowledged"), error(b"UNCONFIRMED applied, but: outcome unknown")
    parts = mset(table, b"a", b"b", b"c")
    assert parts.join([OOM, OK, late]).startswith(
        b'-OOM partial write: 1 of 3 keys not written ("a"), 1 of 3 keys not acknowledged ("c"): '
    )
    assert parts.join([OK, late, OK]) == late
    assert parts.join([late, gone, OK]) == gone


def test_a_partial_delete_is_a_partial_write(table):
    parts = call(table, b"DEL", b"a", b"b")
    assert parts.join([integer(1), OOM]).startswith(b'-OOM partial write: 1 of 2 keys not written ("b"): ')


def test_the_error_stays_short_for_many_and_for_long_keys(table):
    keys = [b"%d" % at + b"x" * 5000 for at in range(1000)]
    parts = mset(table, b"a", *keys)
    reply = parts.join([OK, *[OOM] * (len(parts.parts) - 1)])
    assert len(reply) < 2000
    assert b" and 984 more): " in reply and reply.count(b'..."') == 16


def test_a_shard_that_miscounts_is_an_error_not_a_wrong_answer(table):
    parts = call(table, b"MGET", b"a", b"b")
    assert parts.join([array([]), array([bulk(b"2")])]).startswith(b"-ERR a shard answered")
