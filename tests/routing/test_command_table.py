"""The command table against the live COMMAND reply, and error texts against the live server."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.codec import BARRIER, OTHER, PLAIN, Limits, encode_request, key_slot, parse_requests
from proxy.routing import CommandTable, check_arity, lookup_error


def test_every_command_of_the_server_is_found_by_its_name_and_id(engine, table):
    names = [name.decode() for name in engine.call("COMMAND", "LIST")]
    for name in names:
        command = table.get(name.upper().encode())
        assert command is not None, name
        assert table.by_id(command.id) is command
        assert table.lookup(command.name.upper().split(b"|")) is command
    assert {command.name.decode() for command in table} == {*names, *(c.name.decode() for c in table if b"|" in c.name)}
    assert sorted(command.id for command in table) == list(range(1, len(table) + 1))
    assert table.by_id(0) is None


def test_both_protocols_and_any_order_give_the_same_digest(engine, table):
    reply = engine.hiredis(b"COMMAND")
    engine.raw(b"HELLO", b"3")
    try:
        assert CommandTable.from_reply(engine.hiredis(b"COMMAND")).digest == table.digest
    finally:
        engine.raw(b"HELLO", b"2")
    assert CommandTable.from_reply(reply[::-1]).digest == table.digest
    assert CommandTable.from_reply(reply[1:]).digest != table.digest


def test_something_else_than_a_command_reply_is_refused_with_a_line_for_the_user():
    with pytest.raises(ValueError, match="COMMAND reply"):
        CommandTable.from_reply([[b"get"]])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("set", True), ("get", False), ("eval", True), ("evalsha", True), ("fcall", True), ("eval_ro", False),
        ("fcall_ro", False), ("script|load", False), ("script|flush", False), ("publish", False), ("spublish", False),
        ("function|load", True), ("flushall", True), ("wait", False), ("info", False), ("xreadgroup", True),
    ],
)  # fmt: skip
def test_what_counts_as_a_write(table, name, counts):
    assert table.get(name.encode()).counts_as_write is counts


def test_policies_come_from_the_tips(table):
    def policies(name):
        return table.get(name).request_policy, table.get(name).response_policy

    assert policies(b"mget") == (b"multi_shard", None)
    assert policies(b"dbsize") == (b"all_shards", b"agg_sum")
    assert policies(b"script|exists") == (b"all_shards", b"agg_logical_and")
    assert policies(b"config|set") == (b"all_nodes", b"all_succeeded")
    assert policies(b"get") == (None, None)


def kinds(table, **options):
    return {name: kind for name, (_, _, kind) in table.parse_table(**options).names.items()}


def test_only_commands_whose_first_key_is_fixed_are_plain(table):
    found = kinds(table)
    for name in b"get set sinter rename zunionstore sort xadd pfcount lcs spublish bitop copy".split():
        assert found[name] == PLAIN, name
    for name in b"mget eval xread blpop zunion object config ping publish watch ssubscribe migrate scan wait".split():
        assert found[name] == OTHER, name


def test_barriers_and_overrides_are_the_callers(table):
    found = kinds(table, barriers=[b"MULTI", b"watch"], overrides=[b"Get"])
    assert (found[b"multi"], found[b"watch"], found[b"get"], found[b"set"]) == (BARRIER, BARRIER, OTHER, PLAIN)
    assert table.parse_table(limits=Limits(max_bulk=5)).limits.max_bulk == 5


def test_the_codec_routes_plain_commands_by_the_table(table):
    commands, _, _ = parse_requests(encode_request([b"bItOp", b"NOT", b"{a}x", b"{a}y"]), table.parse_table())
    slot, command_id, _ = commands[0]
    assert slot == key_slot(b"a")
    assert table.by_id(command_id).name == b"bitop"


def test_a_module_of_an_old_engine_is_routed_by_first_last_step():
    row = [b"mod.set", -3, [b"write"], 2, -1, 2, [], [], [], []]
    table = CommandTable.from_reply([row])
    assert table.parse_table().names[b"mod.set"] == (1, 2, PLAIN)


# ---- errors ----------------------------------------------------------------------------------------------------------


def refusal(table, args):
    command = table.lookup(args)
    return lookup_error(table, args) if command is None else check_arity(command, args)


CALLS = [
    [b"FOO"],
    [b"FOO", b"a", b"b"],
    [b"FOO", b"a\r\nb\x00c", b"q" * 200, b"z"],
    [b"f" * 300, b"x"],
    [b"fo\x00o"],
    [b"FOO", b"x" * 60, b"y" * 60, b"z" * 60],
    [b"FOO", b"a" * 127, b"b", b"c"],
    [b"FOO", b"a" * 124, b"b", b"c"],
    [b"FOO", b"a\xffb", b"'\"\\", b""],
    [b"CONFIG"],
    [b"CONFIG", b"nope"],
    [b"coNfig", b"x" * 200, b"y"],
    [b"CONFIG", b"a\r\nb"],
    [b"CoNfig", b"get"],
    [b"config|get", b"a"],
    [b"config", b"get|x"],
    [b"get|x"],
    [b"Client", b"nope", b"x"],
    [b"OBJECT", b"encoding"],
    [b"GET"],
    [b"get", b"a", b"b"],
    [b"get", b"x|y", b"z"],
]


@pytest.mark.parametrize("args", CALLS, ids=range(len(CALLS)))
def test_errors_are_the_engines_byte_for_byte(engine, table, args):
    assert refusal(table, args) == engine.raw(*args)


def test_every_commands_arity_error_is_the_engines(engine, table):
    asked = 0
    for command in table:
        args = command.name.upper().split(b"|")
        if check_arity(command, args) is None:
            args += [b"x"] * command.arity if command.arity > 0 else []
        if (expected := check_arity(command, args)) is not None:
            assert engine.raw(*args) == expected
            asked += 1
    assert asked > 300


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=150), min_size=1, max_size=6))
def test_unknown_commands_are_told_as_the_engine_tells_them(engine, table, words):
    args = [b"no-such-" + words[0], *words[1:]]
    assert refusal(table, args) == engine.raw(*args)
