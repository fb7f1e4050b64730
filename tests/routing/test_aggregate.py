"""Response policies, and the merges of single commands."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from proxy.codec.reply import OK, array, bulk, decode, double, error, integer, map_, null, verbatim
from proxy.routing import MERGES, POLICIES, aggregate, choose_shard
from proxy.routing.merges import HISTORY_LENGTH

BAD = error(b"ERR bad")
NOTBUSY = error(b"NOTBUSY No scripts in execution right now.")


def numbers(*values):
    return [integer(value) for value in values]


def rows(*values):
    return [array(numbers(*row)) for row in values]


@pytest.mark.parametrize(
    ("policy", "frames", "expected"),
    [
        ("one_succeeded", [NOTBUSY, OK, BAD], b"OK"),
        ("all_succeeded", [OK, OK], b"OK"),
        ("agg_sum", numbers(1, 2, 3), 6),
        ("agg_min", numbers(4, 2, 3), 2),
        ("agg_max", numbers(4, 2, 7), 7),
        ("agg_logical_and", numbers(1, 0), 0),
        ("agg_logical_and", numbers(1, 1), 1),
        ("agg_logical_or", numbers(0, 1), 1),
        ("agg_logical_or", numbers(0, 0), 0),
        ("agg_min", rows((1, 5), (3, 2)), [1, 2]),
        ("agg_sum", rows((1, 5), (3, 2)), [4, 7]),
        ("agg_logical_and", rows((1, 0, 1), (1, 1, 0)), [1, 0, 0]),
        ("agg_sum", [double(1.5, 3), double(2.0, 3)], 3.5),
    ],
)
def test_policies(policy, frames, expected):
    assert decode(POLICIES[policy.encode()](frames, 3)) == expected


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {b"one_succeeded"}))
def test_an_error_of_one_shard_is_the_reply(policy):
    assert POLICIES[policy]([integer(1), BAD, integer(1)], 2) == BAD


def test_if_all_fail_the_error_that_says_most_is_the_reply():
    unkillable = error(b"UNKILLABLE Sorry the script already executed write commands.")
    assert POLICIES[b"one_succeeded"]([NOTBUSY, unkillable], 2) == unkillable
    assert POLICIES[b"one_succeeded"]([NOTBUSY, NOTBUSY], 2) == NOTBUSY


@pytest.mark.parametrize("frames", [[integer(1), array([])], rows((1,), (1, 2)), [bulk(b"x"), bulk(b"y")]])
def test_replies_that_do_not_fit_together_are_an_error(frames):
    assert POLICIES[b"agg_sum"](frames, 2).startswith(b"-ERR the shards answered in different forms")


def whole(table, call, frames, protocol=2):
    args = call.encode().split()
    return decode(aggregate(table.lookup(args), args, frames, protocol))


def test_without_a_policy_arrays_maps_and_sets_are_joined(table):
    assert whole(table, "KEYS *", [array([bulk(b"a")]), array([]), array([bulk(b"b")])]) == [b"a", b"b"]
    pairs = [map_([(bulk(b"a"), integer(1))], 3), map_([(bulk(b"b"), integer(2))], 3)]
    assert whole(table, "KEYS *", pairs, 3) == {b"a": 1, b"b": 2}
    assert whole(table, "KEYS *", [b"~1\r\n:1\r\n", b"~2\r\n:1\r\n:2\r\n"], 3) == [1, 2]
    assert whole(table, "KEYS *", [OK, OK]) == b"OK"
    assert aggregate(table.get(b"keys"), [b"KEYS", b"*"], [array([]), BAD], 2) == BAD


def test_every_policy_the_engine_names_has_a_way_to_be_answered(table):
    answered_elsewhere = {b"scan", b"clusterscan", b"randomkey", b"info"}
    for command in table:
        if command.response_policy == b"special":
            assert command.name in MERGES or command.name in answered_elsewhere, command.name
        elif command.response_policy is not None:
            assert command.response_policy in POLICIES


# ---- merges of single commands, on replies of the real engine --------------------------------------------------------


@pytest.fixture(params=[2, 3])
def protocol(request, engine):
    engine.raw(b"HELLO", b"%d" % request.param)
    yield request.param
    engine.raw(b"HELLO", b"2")


CALLS = [name.decode().replace("|", " ") for name in MERGES]


@pytest.mark.parametrize("call", CALLS)
def test_a_merge_of_one_real_reply_says_what_the_reply_says(engine, table, protocol, call):
    engine.call("SET", "k", "v")
    call += {"latency graph": " command", "latency history": " command", "commandlog get": " 5 slow"}.get(call, "")
    frame = engine.raw(*call.encode().split())
    merged = whole(table, call, [frame], protocol)
    expected = decode(frame)
    if isinstance(expected, bytes):
        assert expected.strip() in merged
    else:
        assert shape(merged) == shape(expected)


@pytest.mark.parametrize("call", ["memory stats", "latency histogram", "function stats"])
def test_a_merge_of_two_real_replies_keeps_their_form(engine, table, protocol, call):
    frame = engine.raw(*call.encode().split())
    assert shape(whole(table, call, [frame, frame], protocol)) == shape(decode(frame))


def shape(value):
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [item if isinstance(item, bytes) and at % 2 == 0 else shape(item) for at, item in enumerate(value)]
    return type(value)


def test_function_stats_shows_the_script_that_runs(table):
    def stats(running):
        return map_([(bulk(b"running_script"), running), (bulk(b"engines"), array([]))], 3)

    assert whole(table, "FUNCTION STATS", [stats(null(3)), stats(bulk(b"f"))], 3)[b"running_script"] == b"f"


def test_latency_latest_and_history_merge_by_event_and_time(table):
    def event(name, *figures):
        return array([bulk(name), *numbers(*figures)])

    frames = [
        array([event(b"command", 10, 5, 9, 20, 2)]),
        array([event(b"command", 11, 3, 4, 7, 1), event(b"fork", 1, 1, 1, 1, 1)]),
    ]
    assert whole(table, "LATENCY LATEST", frames) == [[b"command", 11, 3, 9, 27, 3], [b"fork", 1, 1, 1, 1, 1]]
    samples = [array(rows(*((at, 1) for at in range(0, 400, 2)))), array(rows(*((at, 2) for at in range(1, 400, 2))))]
    merged = whole(table, "LATENCY HISTORY command", samples)
    assert len(merged) == HISTORY_LENGTH and [row[0] for row in merged] == list(range(240, 400))


def test_latency_histograms_add_up_as_cumulative_counts(table):
    def histogram(calls, curve):
        buckets = map_([(integer(edge), integer(count)) for edge, count in curve.items()], 3)
        return map_(
            [(bulk(b"set"), map_([(bulk(b"calls"), integer(calls)), (bulk(b"histogram_usec"), buckets)], 3))], 3
        )

    merged = whole(table, "LATENCY HISTOGRAM", [histogram(5, {1: 2, 4: 5}), histogram(3, {2: 1, 8: 3})], 3)
    assert merged == {b"set": {b"calls": 8, b"histogram_usec": {1: 2, 2: 3, 4: 6, 8: 8}}}


def test_log_entries_are_the_newest_of_all_nodes(table):
    def entries(*times):
        return array([array(numbers(at, time, 1)) for at, time in enumerate(times)])

    frames = [entries(9, 5, 1), entries(8, 7, 2)]

    def times(call):
        return [entry[1] for entry in whole(table, call, frames)]

    assert times("SLOWLOG GET") == [9, 8, 7, 5, 2, 1]
    assert times("SLOWLOG GET 2") == times("COMMANDLOG GET 2 slow") == [9, 8]
    assert times("SLOWLOG GET -1") == [9, 8, 7, 5, 2, 1]
    assert whole(table, "SLOWLOG GET", [entries(*range(20)), entries()])[-1][1] == 10


def test_log_entries_of_one_second_follow_what_their_node_logged_before(table):
    reset, later = array(numbers(0, 5, 1)), array(numbers(1, 5, 2))
    merged = whole(table, "SLOWLOG GET", [array([reset]), array([later, reset]), array([reset])])
    assert [entry[2] for entry in merged] == [2, 1, 1, 1]


def test_texts_stand_below_one_another_and_a_shard_without_samples_is_left_out(table):
    frames = [verbatim(b"one\n"), error(b"ERR No samples available for event 'x'"), verbatim(b"two\n")]
    text = whole(table, "LATENCY GRAPH x", frames)
    assert text == b"# Node 0\none\n\n# Node 2\ntwo\n"
    assert whole(table, "MEMORY DOCTOR", [verbatim(b"one", 3)], 3) == b"# Shard 0\none\n"
    assert aggregate(table.get(b"latency|graph"), [b"LATENCY", b"GRAPH", b"x"], frames[1:2], 2) == frames[1]


def test_memory_stats_sum_bytes_and_average_ratios(table):
    def stats(size, ratio):
        database = map_([(bulk(b"overhead"), integer(size))], 3)
        return map_([(bulk(b"used"), integer(size)), (bulk(b"ratio"), double(ratio, 3)), (bulk(b"db.0"), database)], 3)

    merged = whole(table, "MEMORY STATS", [stats(10, 1.0), stats(30, 2.0)], 3)
    assert merged == {b"used": 40, b"ratio": 1.5, b"db.0": {b"overhead": 40}}


def test_a_shard_is_drawn_by_the_keys_it_holds():
    rng = random.Random(1)
    drawn = Counter(choose_shard([0, 100, 300], rng) for _ in range(4000))
    assert drawn[0] == 0 and 800 < drawn[1] < 1200
    assert choose_shard([0, 0], rng) is None and choose_shard([], rng) is None
