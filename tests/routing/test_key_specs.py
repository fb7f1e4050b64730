"""Keys found by the specs against the keys the server itself finds (COMMAND GETKEYS)."""

from __future__ import annotations

import random

import pytest

from proxy.codec import key_slot
from proxy.codec.reply import Error
from proxy.routing import check_arity, extract, first_slot, slots_of

TOKENS = [b"1", b"2", b"3", b"0", b"-1", b"01", b"STREAMS", b"streams", b"KEYS", b"COUNT", b"LIMIT", b"a"]
STORES = [b"STORE", b"storedist"]


def samples(command, rng):
    """Argument lists for one command: plain ones of every length, then ones full of numbers and keywords."""
    name = command.name.split(b"|")
    least = abs(command.arity)
    for length in range(least, least + 6):
        yield [*name, *(b"k%d" % at for at in range(length - len(name)))]
    for _ in range(30):
        words = [
            rng.choice(TOKENS) if rng.random() < 0.5 else b"k%d" % at for at in range(rng.randrange(least, least + 9))
        ]
        args = [*name, *words]
        # The engine takes the last of several STOREs, from where one can stand; the specs name them all.
        if rng.random() < 0.3 and len(args) > 6:
            args[rng.randrange(6, len(args))] = rng.choice(STORES)
        yield args


def test_every_commands_keys_are_those_the_server_finds(engine, table):
    rng = random.Random(7)
    compared = set()
    for command in table:
        for args in samples(command, rng):
            if command.subcommands and table.lookup(args) is not command:
                continue
            if compare(command, args, engine.call("COMMAND", "GETKEYS", *args)):
                compared.add(command.name)
    # Every command that names keys (channels are none to GETKEYS) was really compared.
    keyed = {command.name for command in table if any(b"not_key" not in spec.flags for spec in command.key_specs)}
    assert compared == keyed


def compare(command, args, found):
    keys = extract(command, args)
    ours = [args[at] for at in keys.indices]
    if any(b"not_key" in spec.flags for spec in command.key_specs):
        return False
    if isinstance(found, Error):
        if "Invalid number of arguments" in str(found):
            assert check_arity(command, args) is not None, args
        elif "no key arguments" in str(found):
            assert (not ours and not command.key_specs) or keys.malformed or not keys.complete, args
        else:
            # A numkeys of 0 and a missing STREAMS name no keys; the command itself will say what it misses.
            assert keys.malformed or not keys.complete or not ours or b"0" in args, (args, found)
        return False
    if not keys.complete or keys.malformed:
        # What decides the route is right (MIGRATE shows "" in its place when KEYS names the keys).
        assert keys.malformed or ours[0] in (found[0], b""), (args, found)
        return bool(ours)
    assert ours == found, (args, found)
    return bool(ours)


@pytest.mark.parametrize(
    ("call", "keys"),
    [
        ("GET k", ["k"]),
        ("MSET a 1 b 2", ["a", "b"]),
        ("MSETEX 2 a 1 b 2 EX 5", ["a", "b"]),
        ("EVAL script 2 a b c", ["a", "b"]),
        ("EVAL script 0 a", []),
        ("ZUNIONSTORE d 2 a b", ["d", "a", "b"]),
        ("XREAD COUNT 1 STREAMS a b 0 0", ["a", "b"]),
        ("XREADGROUP GROUP g c STREAMS a >", ["a"]),
        ("BLPOP a b 0", ["a", "b"]),
        ("SPUBLISH channel message", ["channel"]),
        ("GEORADIUS a 1 1 1 m STORE b", ["a", "b"]),
        ("OBJECT ENCODING a", ["a"]),
        ("PING", []),
    ],
)
def test_keys_of(table, call, keys):
    args = call.encode().split()
    found = extract(table.lookup(args), args)
    assert [args[at].decode() for at in found.indices] == keys
    assert found.complete and not found.malformed


@pytest.mark.parametrize("call", ["SORT a BY b STORE c", "MIGRATE h 1 k 0 1 KEYS a b"])
def test_what_the_specs_do_not_know_is_said(table, call):
    args = call.encode().split()
    assert not extract(table.lookup(args), args).complete


@pytest.mark.parametrize("number", ["x", "-1", "9", "1.5", "01", "99999999999999999999"])
def test_a_bad_numkeys_names_no_key_and_the_rest_still_counts(table, number):
    args = ["ZUNIONSTORE", "d", number, "a"]
    found = extract(table.get(b"zunionstore"), [arg.encode() for arg in args])
    assert found.malformed and found.indices == (1,)
    assert first_slot(table.get(b"eval"), [b"EVAL", b"s", number.encode(), b"a"]) is None


def test_slots_follow_hash_tags(table):
    args = [b"RENAME", b"{a}1", b"b"]
    assert first_slot(table.get(b"rename"), args) == key_slot(b"a")
    assert slots_of(extract(table.get(b"rename"), args), args) == {key_slot(b"a"), key_slot(b"b")}
