"""Scripts and functions: replies of every kind, on every shard, whatever became of the shard since they were loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.codec import key_slot
from proxy.codec.reply import bulk_value, decode, elements, is_error
from proxy.control.scripts import OVERHEAD, ScriptBook
from tests.harness import Up, until
from tests.system.beside import everybody, moved, node, on, primaries
from tests.system.nodes import promote, shards_of
from tests.system.wire import Wire

KEYS = [f"key:{at}" for at in range(12)]
"""On all three shards."""
INCREMENT = "return redis.call('incr', KEYS[1])"
NOSCRIPT = b"-NOSCRIPT No matching script.\r\n"
NOT_FOUND = b"-ERR Function not found\r\n"
LIBRARY = """#!lua name=counting
server.register_function('count', function(keys) return server.call('incr', keys[1]) end)
"""


def digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def no_scripts(request: pytest.FixtureRequest) -> None:
    if "endpoint" in request.fixturenames:
        wire: Wire = request.getfixturevalue("wire")
        assert wire.call("SCRIPT", "FLUSH") == wire.call("FUNCTION", "FLUSH") == b"+OK\r\n"


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def pair(request: pytest.FixtureRequest, wire: Wire, direct: int) -> Iterator[tuple[Wire, Wire]]:
    """The proxy and a plain server with the same few keys."""
    with Wire("127.0.0.1", direct) as plain:
        for each in (wire, plain):
            each.pipeline([["FLUSHALL"], ["SCRIPT", "FLUSH"], ["FUNCTION", "FLUSH"]])
            each.call("HSET", "{q}h", "f", "v", "g", "1")
            each.call("SADD", "{q}s", "a")
            each.call("ZADD", "{q}z", 1.5, "m", 2, "n")
            if request.param == 3:
                each.call("HELLO", 3)
        yield wire, plain


def lose_lanes(endpoint: Up, *words: str) -> None:
    """Every node forgets something, and the proxy's connections to it are closed: both as if it were another."""
    for address in primaries(endpoint):
        with node(address) as server:
            server.execute_command(*words)  # type: ignore[no-untyped-call]
            server.client_kill_filter(_type="normal", skipme=True)
    until(lambda: len(primaries(endpoint)) == 3, "the proxy is connected again")


# -- replies -----------------------------------------------------------------------------------------------------------

RETURNED = [
    "return {map={a=1,b={set={x=true}}}}",
    "return {double=3.5}",
    "return {double=1e300}",
    "return {double=1/0}",
    "return {double=-1/0}",
    "return {big_number='123456789012345678901234567890'}",
    "return {verbatim_string={format='txt',string='hello\\r\\nworld'}}",
    "return {verbatim_string={format='mkd',string=''}}",
    "return {set={a=true}}",
    "return {map={}}",
    "return {set={}}",
    "return true",
    "return false",
    "return nil",
    "return {}",
    "return {1,nil,3}",
    "return {1.5,{2,{3,{4,{5}}}},false,true,'s'}",
    "return 3.99",
    "return ''",
    "return {ok='FINE'}",
    "return {err='MY error'}",
    "return {err='MOVED 1 127.0.0.1:1'}",
    "return {err='ASK 1 127.0.0.1:1'}",
    "return {err='NOSCRIPT mine'}",
    "return redis.error_reply('x')",
    "return redis.status_reply('fine')",
    "error('x')",
    "error({err='CODE y'})",
    "return redis.call('nosuch')",
    "return redis.pcall('nosuch')",
    "return redis.call('get')",
    "return redis.call('incr', KEYS[1])",
    "return redis.pcall('incr', KEYS[1])",
    "local a = nil; return a.b",
    "x = 1",
    "return KEYS[20]",
    "return {ARGV[1], #ARGV, #KEYS}",
    "return redis.call('hgetall', KEYS[1])",
    "return redis.call('smembers', KEYS[2])",
    "return redis.call('zscore', KEYS[3], 'm')",
    "return redis.call('zrange', KEYS[3], 0, -1, 'withscores')",
    "return redis.call('get', KEYS[4])",
    "return redis.call('incrbyfloat', KEYS[5], 0.5)",
    "return redis.call('blpop', KEYS[6], 0)",
    "return redis.call('object', 'encoding', KEYS[1])",
    "return redis.call('multi')",
    "return redis.call('subscribe', 'x')",
    "return redis.call('select', 3)",
    "return redis.setresp(4)",
    "return redis.sha1hex('a')",
    "return {redis.acl_check_cmd('set', 'x', 'y'), redis.acl_check_cmd('get', 'x')}",
    "return cjson.encode({1, 2, {a=1}})",
    "return bit.band(7, 3)",
    "return struct.pack('>I', 5)",
    "return cmsgpack.pack({1, 2})",
    "local t = {} for at = 1, 5000 do t[at] = at end return t",
    "local t = {1} for at = 1, 900 do t = {t} end return t",
    "local t = {1} for at = 1, 50 do t = {{map={a=t}}} end return t",
    "return string.rep('x', 3000000)",
]


def test_scripts_return_every_kind_of_reply_as_a_plain_server_returns_it(pair: tuple[Wire, Wire]) -> None:
    names = [f"{{q}}{name}" for name in "hsznfl"]
    for text in RETURNED:
        for prefix in ("", "redis.setresp(3);", "redis.setresp(2);"):
            words = ["EVAL", prefix + text, 6, *names, "argument"]
            ours, plain = (each.call(*words) for each in pair)
            assert ours == plain, prefix + text
    texts = [prefix + text for text in RETURNED[:-1] for prefix in ("", "redis.setresp(3);")]
    whole, reference = (each.pipeline([["EVAL", text, 6, *names, "a"] for text in texts]) for each in pair)
    assert whole == reference


CALLS = [
    *("SCRIPT SHOW", "SCRIPT LOAD", "SCRIPT LOAD a b", "SCRIPT EXISTS", "SCRIPT FLUSH ASYNC", "SCRIPT FLUSH SYNC"),
    *("SCRIPT FLUSH ASYNC X", "SCRIPT KILL", "SCRIPT KILL x", "SCRIPT HELP", "FUNCTION KILL", "FUNCTION KILL x"),
    *("FUNCTION STATS", "FUNCTION STATS x", "FUNCTION DUMP", "FUNCTION DUMP x", "FUNCTION FLUSH ASYNC"),
    *("FUNCTION RESTORE x FLUSH", "FUNCTION RESTORE x BAD", "FUNCTION LIST WITHCODE", "FUNCTION LIST LIBRARYNAME"),
    *("FUNCTION LIST WITHCODE WITHCODE", "FUNCTION LOAD REPLACE", "FUNCTION LOAD BAD x", "FUNCTION HELP"),
    *("EVALSHA a", "EVALSHA", "EVALSHA_RO x 0", "FCALL", "FCALL x", "FCALL_RO nosuch 0", "FCALL nosuch 1 {q}h"),
    *("EVAL", "EVAL x", "EVAL syntax 0", "EVAL_RO x", "EVALSHA short x", "EVALSHA " + "F" * 40 + " 1 k"),
    *("OBJECT HELP", "OBJECT ENCODING", "OBJECT ENCODING {q}h", "OBJECT FREQ {q}h", "OBJECT IDLETIME {q}h"),
    *("OBJECT REFCOUNT {q}h", "OBJECT REFCOUNT no", "OBJECT ENCODING no", "OBJECT IDLETIME no", "OBJECT FREQ no"),
    *("OBJECT ENCODING a b", "OBJECT WRONG x", "OBJECT", "SLOWLOG GET a", "SLOWLOG GET -2", "SLOWLOG GET -1 x"),
    *("SLOWLOG LEN x", "SLOWLOG RESET x", "SLOWLOG HELP", "COMMANDLOG GET 1", "COMMANDLOG GET -2 slow"),
    *("COMMANDLOG GET a slow", "COMMANDLOG LEN", "COMMANDLOG LEN bad", "COMMANDLOG RESET bad", "COMMANDLOG RESET"),
    *("COMMANDLOG HELP", "COMMANDLOG GET 0 slow", "COMMANDLOG GET 10 bad", "LATENCY GRAPH", "LATENCY HISTORY"),
    *("LATENCY HISTOGRAM nosuch", "LATENCY RESET a b", "LATENCY LATEST x", "MEMORY USAGE {q}h"),
    *("MEMORY USAGE {q}h SAMPLES 3", "MEMORY USAGE {q}h SAMPLES -1", "MEMORY USAGE {q}h SAMPLES x", "MEMORY USAGE"),
    *("MEMORY STATS x", "MEMORY PURGE x", "MEMORY MALLOC-STATS x", "MEMORY HELP", "LATENCY HELP"),
]


def test_calls_right_and_wrong_are_answered_as_a_plain_server_answers_them(pair: tuple[Wire, Wire]) -> None:
    for line in CALLS:
        ours, plain = (each.call(*line.split()) for each in pair)
        assert ours == plain, line


@pytest.mark.parametrize("flags", ["", "flags=no-writes", "flags=allow-oom", "flags=allow-stale", "flags=no-cluster"])
@pytest.mark.parametrize("command", ["EVAL", "EVAL_RO"])
def test_flags_of_scripts_mean_what_they_mean_on_a_node_of_a_cluster(
    endpoint: Up, wire: Wire, command: str, flags: str
) -> None:
    owner = next(address for address in primaries(endpoint) if _owns(endpoint, address, b"flags"))
    for head in (f"#!lua {flags}\n", f"#!lua {flags} name=x\n", f"#!nosuch {flags}\n", "#!lua flags=nosuch\n"):
        for body in ("return 1", "return redis.call('set', KEYS[1], 'x')", "return redis.call('get', KEYS[1])"):
            words = [command, head + body, 1, "flags"]
            assert wire.call(*words) == on([owner], *words)[0], words


def test_scripts_without_keys_run_always_on_the_same_shard(endpoint: Up, wire: Wire) -> None:
    ids = set()
    for text in ("return redis.call('cluster', 'myid')", "return redis.call('cluster', 'myid') --"):
        for _ in range(3):
            with Wire.to(endpoint.redis_url) as other:
                ids.add(other.call("EVAL", text, 0))
                ids.add(other.call("EVALSHA", digest(text), 0))
    assert len(ids) == 1 and not is_error(ids.pop())


# -- EVALSHA -----------------------------------------------------------------------------------------------------------


def test_what_was_evaluated_once_is_known_on_every_shard(wire: Wire) -> None:
    assert wire.call("EVALSHA", digest(INCREMENT), 1, KEYS[0]) == NOSCRIPT
    assert wire.call("EVAL", INCREMENT, 1, KEYS[0]) == b":1\r\n"
    replies = wire.pipeline([["EVALSHA", digest(INCREMENT).upper(), 1, key] for key in KEYS])
    assert replies == [b":2\r\n"] + [b":1\r\n"] * 11


def test_eval_and_evalsha_of_one_pipeline_are_carried_out_in_their_order(wire: Wire) -> None:
    sha = digest(INCREMENT)
    calls: list[list[bytes | str | int]] = [["EVAL", INCREMENT, 1, "n"], ["EVALSHA", sha, 1, "n"], ["GET", "n"]]
    calls += [["EVALSHA", sha, 1, "n"], ["INCR", "n"], ["EVAL", INCREMENT, 1, "n"], ["EVALSHA", sha, 1, "n"]]
    assert wire.pipeline(calls) == [b":1\r\n", b":2\r\n", b"$1\r\n2\r\n", b":3\r\n", b":4\r\n", b":5\r\n", b":6\r\n"]


@pytest.mark.parametrize("how", ["SCRIPT LOAD", "EVAL"])
def test_a_pipeline_over_connections_and_nodes_that_are_new_runs_whole_and_in_order(
    endpoint: Up, wire: Wire, how: str
) -> None:
    words = ["EVAL", INCREMENT, 1, "other"] if how == "EVAL" else ["SCRIPT", "LOAD", INCREMENT]
    assert not is_error(wire.call(*words))
    sha = digest(INCREMENT)
    assert wire.pipeline([["EVALSHA", sha, 1, key] for key in KEYS]) == [b":1\r\n"] * 12
    lose_lanes(endpoint, "SCRIPT", "FLUSH")
    calls = [words for key in KEYS for words in (["EVALSHA", sha, 1, key], ["GET", key], ["EVALSHA", sha, 1, key])]
    assert wire.pipeline(calls) == [b":2\r\n", b"$1\r\n2\r\n", b":3\r\n"] * 12  # type: ignore[arg-type]


def test_a_script_that_vanished_from_a_node_is_loaded_again_when_it_is_missed(endpoint: Up, wire: Wire) -> None:
    sha = digest(INCREMENT)
    wire.call("EVAL", INCREMENT, 1, KEYS[0])
    wire.pipeline([["EVALSHA", sha, 1, key] for key in KEYS])
    on(primaries(endpoint), "SCRIPT", "FLUSH")
    for at, key in enumerate(KEYS):
        assert wire.call("EVALSHA", sha, 1, key) == (b":2\r\n" if at else b":3\r\n")
    assert [decode(reply) for reply in on(primaries(endpoint), "SCRIPT", "EXISTS", sha)] == [[1]] * 3


def test_a_script_that_is_missed_never_runs_behind_what_was_sent_later(endpoint: Up, wire: Wire) -> None:
    """Told NOSCRIPT or carried out, but in its place."""
    sha = digest(INCREMENT)
    wire.call("EVAL", INCREMENT, 1, "n")
    wire.call("EVALSHA", sha, 1, "n")
    for turn in range(20):
        on(primaries(endpoint), "SCRIPT", "FLUSH")
        wire.call("SET", "n", 10)
        first, second, read, third = wire.pipeline(
            [["EVALSHA", sha, 1, "n"], ["EVALSHA", sha, 1, "n"], ["GET", "n"], ["EVALSHA", sha, 1, "n"]]
        )
        ran = [not is_error(first), not is_error(second)]
        assert all(each in (NOSCRIPT, b":11\r\n", b":12\r\n", b":13\r\n") for each in (first, second, third)), turn
        assert decode(read) == b"%d" % (10 + sum(ran))
        assert third == NOSCRIPT or decode(third) == 11 + sum(ran)
        assert wire.call("EVALSHA", sha, 1, "other{n}").startswith(b":")


def test_scripts_that_are_missed_one_behind_the_other_are_all_carried_out_in_order(endpoint: Up, wire: Wire) -> None:
    sha = digest(INCREMENT)
    wire.call("EVAL", INCREMENT, 1, KEYS[0])
    wire.call("EVALSHA", sha, 1, KEYS[0])
    on(primaries(endpoint), "SCRIPT", "FLUSH")
    calls = [words for at in range(50) for words in (["EVALSHA", sha, 1, KEYS[0]], ["SET", f"other:{at}", at])]
    assert wire.pipeline(calls) == [reply for at in range(3, 53) for reply in (b":%d\r\n" % at, b"+OK\r\n")]


def test_in_a_transaction_a_script_is_found_on_a_new_node_too(endpoint: Up, wire: Wire) -> None:
    wire.call("EVAL", INCREMENT, 1, "n")
    lose_lanes(endpoint, "SCRIPT", "FLUSH")
    for key in KEYS:
        calls = [["MULTI"], ["SET", key, 5], ["EVALSHA", digest(INCREMENT), 1, key], ["EXEC"]]
        replies = [wire.call(*words) for words in calls]
        assert replies[-1] == b"*2\r\n+OK\r\n:6\r\n"


def test_a_call_so_large_that_it_travels_by_itself_finds_its_script_too(endpoint: Up, wire: Wire) -> None:
    text = "redis.call('append', KEYS[1], ARGV[1]); return #ARGV[1]"
    wire.call("EVAL", text, 1, "n", "x")
    lose_lanes(endpoint, "SCRIPT", "FLUSH")
    for key in KEYS[:4]:
        assert wire.call("EVALSHA", digest(text), 1, key, "x" * 1_500_000) == b":1500000\r\n"


def test_what_script_flush_took_away_and_what_nobody_loaded_is_noscript(endpoint: Up, wire: Wire) -> None:
    sha = digest(INCREMENT)
    wire.call("SCRIPT", "LOAD", INCREMENT)
    assert wire.call("EVALSHA", sha, 1, "n") == b":1\r\n"
    for words in (["SCRIPT", "FLUSH"], ["SCRIPT", "FLUSH", "ASYNC"]):
        assert is_error(wire.call("SCRIPT", "FLUSH", "WRONG"))
        assert wire.call("EVALSHA", sha, 0).startswith(b"-ERR")  # it is still there
        assert wire.call(*words) == b"+OK\r\n"
        assert wire.pipeline([["EVALSHA", sha, 1, key] for key in KEYS]) == [NOSCRIPT] * 12
        assert wire.call("EVALSHA_RO", sha, 1, "n") == NOSCRIPT
        assert wire.call("EVAL", INCREMENT, 1, "n").startswith(b":")
    assert wire.call("EVALSHA", "0" * 40, 1, "n") == NOSCRIPT


def test_what_the_engine_refused_is_not_known_either(wire: Wire) -> None:
    assert wire.call("EVAL", "syntax error", 0).startswith(b"-ERR Error compiling script")
    assert is_error(wire.call("SCRIPT", "LOAD", "syntax error"))
    assert wire.call("EVALSHA", digest("syntax error"), 0) == NOSCRIPT


@pytest.mark.parametrize("text", [NOSCRIPT, NOT_FOUND], ids=["NOSCRIPT", "not found"])
def test_a_script_that_says_itself_that_it_is_missing_runs_once(endpoint: Up, wire: Wire, text: bytes) -> None:
    said = text[1:-2].decode()
    body = f"redis.call('incr', KEYS[1]); return redis.error_reply('{said}')"
    wire.call("SCRIPT", "LOAD", body)
    library = f"#!lua name=lies\nserver.register_function('lie', function(KEYS) {body} end)"
    assert not is_error(wire.call("FUNCTION", "LOAD", library))
    calls = [["EVAL", body], ["EVALSHA", digest(body)], ["EVALSHA", digest(body)], ["FCALL", "lie"]]
    for at, call in enumerate(calls, 1):
        assert wire.call(*call, 1, "n") == text
        assert wire.call("GET", "n") == b"$1\r\n%d\r\n" % at


def test_evalsha_survives_a_failover(fresh: Callable[..., Up]) -> None:
    running = fresh("--shards", "1")
    with Wire.to(running.redis_url) as wire:
        assert wire.call("EVAL", INCREMENT, 1, "n") == b":1\r\n"
        assert not is_error(wire.call("FUNCTION", "LOAD", LIBRARY))
        assert wire.call("WAIT", 1, 10_000) == b":1\r\n"
        shard = shards_of(running)[0]
        promote(shard.replica)
        until(lambda: shards_of(running)[0].primary.id == shard.replica.id, "the proxy sees the new primary")
        assert wire.pipeline([["EVALSHA", digest(INCREMENT), 1, "n"]] * 3) == [b":2\r\n", b":3\r\n", b":4\r\n"]
        assert wire.call("FCALL", "count", 1, "n") == b":5\r\n"


@pytest.mark.parametrize("loads", [True, False], ids=["may load", "may not load"])
def test_a_pipeline_that_meets_a_failover_finds_its_script_each_time(fresh: Callable[..., Up], loads: bool) -> None:
    """Sent to the former primary, all of it is sent again to one that does not have the script."""
    running = fresh("--shards", "1")
    sha = digest(INCREMENT)
    rules = ["on", ">secret", "~*", "+@all", *([] if loads else ["-script"])]
    with user(running, "caller", *rules), Wire.to(running.redis_url) as wire:
        assert wire.call("AUTH", "caller", "secret") == b"+OK\r\n"
        assert wire.call("EVAL", INCREMENT, 1, "n") == b":1\r\n"
        count = 1
        for _ in range(4):
            assert wire.call("WAIT", 1, 10_000) == b":1\r\n"
            replica = shards_of(running)[0].replica
            replica.call("SCRIPT", "FLUSH")
            promote(replica)
            calls: list[list[bytes | str | int]] = [["EVALSHA", sha, 1, "n"] for _ in range(5)]
            if loads:
                calls[3:3] = [["INCR", "n"], ["EVALSHA", sha, 1, "other{n}"], ["SET", "another{n}", 1]]
            replies = wire.pipeline(calls)
            assert replies[:3] == [b":%d\r\n" % (count + at) for at in (1, 2, 3)]
            count += 6 if loads else 5
            assert replies[-1] == b":%d\r\n" % count
            until(lambda: shards_of(running)[0].primary.id == replica.id, "the proxy sees the new primary")  # noqa: B023


def test_a_pipeline_that_follows_its_slot_finds_its_script_each_time(endpoint: Up, wire: Wire) -> None:
    key = KEYS[0]
    for turn in range(3):
        text = f"{INCREMENT} -- {turn}"
        assert wire.call("SET", key, 0) == b"+OK\r\n"
        assert wire.call("EVAL", text, 1, key) == b":1\r\n"
        with moved(endpoint, key):
            again = ["EVALSHA", digest(text), 1, key]
            assert wire.pipeline([again, again, ["INCR", key]] * 10) == [b":%d\r\n" % at for at in range(2, 32)]


def test_a_node_whose_scripts_are_stuck_for_good_is_told_of(fresh: Callable[..., Up], tmp_path: Path) -> None:
    """A defect of Valkey 9.1, met by a call that names keys of several slots."""
    running = fresh("--shards", "1")
    with Wire.to(running.redis_url) as wire:
        assert wire.call("EVAL", "return redis.call('ping')", 0) == b"+PONG\r\n"
        assert is_error(wire.call("EVAL", "return redis.call('mget', KEYS[1], 'b')", 1, "a"))
        if not is_error(wire.call("EVAL", "return redis.call('ping')", 0)):
            pytest.skip("this engine is mended")
        until(lambda: "scripts are stuck" in (tmp_path / "data0.err").read_text(), "the log says so")
        promote(shards_of(running)[0].replica)
        until(lambda: wire.call("EVAL", "return redis.call('ping')", 0) == b"+PONG\r\n", "the cure helps")
        assert (tmp_path / "data0.err").read_text().count("scripts are stuck") == 1


def test_a_user_who_may_load_nothing_calls_what_others_loaded_and_nothing_else(endpoint: Up, wire: Wire) -> None:
    rules = ["on", ">secret", "~*", "+@all", "-eval", "-script"]
    with user(endpoint, "caller", *rules), Wire.to(endpoint.redis_url) as caller:
        assert caller.call("AUTH", "caller", "secret") == b"+OK\r\n"
        assert caller.call("EVAL", INCREMENT, 1, KEYS[0]).startswith(b"-NOPERM")
        assert caller.call("SCRIPT", "LOAD", INCREMENT).startswith(b"-NOPERM")
        assert caller.call("EVALSHA", digest(INCREMENT), 1, KEYS[0]) == NOSCRIPT
        assert wire.call("EVAL", INCREMENT, 1, KEYS[0]) == b":1\r\n"
        assert [caller.call("EVALSHA", digest(INCREMENT), 1, key) for key in KEYS] == [b":2\r\n"] + [b":1\r\n"] * 11
        assert caller.call("SCRIPT", "FLUSH").startswith(b"-NOPERM")
        assert caller.call("SCRIPT", "KILL").startswith(b"-NOPERM")
        assert caller.call("EVALSHA", digest(INCREMENT), 1, KEYS[0]) == b":3\r\n"


@contextmanager
def user(endpoint: Up, name: str, *rules: str) -> Iterator[None]:
    with Wire.to(endpoint.redis_url) as admin:
        assert admin.call("ACL", "SETUSER", name, *rules) == b"+OK\r\n"
        try:
            yield
        finally:
            admin.call("ACL", "DELUSER", name)


def test_the_scripts_that_are_kept_are_bounded_in_bytes() -> None:
    book = ScriptBook(kept=10 * (OVERHEAD + 100), largest=500)
    texts = [b"%0100d" % at for at in range(30)]
    for text in texts:
        book.learn(text)
        assert book.knows(texts[0])  # used each time, so it stays
        assert book.size <= 10 * (OVERHEAD + 100)
    assert len(book) == 10
    assert book.find(hashlib.sha1(texts[0]).hexdigest().encode()) == texts[0]
    assert book.find(hashlib.sha1(texts[29]).hexdigest().encode()) == texts[29]
    assert book.find(hashlib.sha1(texts[5]).hexdigest().encode()) is None
    book.learn(b"x" * 501)
    assert book.find(hashlib.sha1(b"x" * 501).hexdigest().encode()) is None
    book.forget()
    assert (len(book), book.size) == (0, 0)


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_shard_without_any_library_gets_those_of_the_others(endpoint: Up, wire: Wire) -> None:
    assert wire.call("FUNCTION", "LOAD", LIBRARY) == b"$8\r\ncounting\r\n"
    on(primaries(endpoint)[1:2], "FUNCTION", "FLUSH")
    calls = [["FCALL", "count", 1, key] for key in KEYS for _ in range(3)]
    assert wire.pipeline(calls) == [b":1\r\n", b":2\r\n", b":3\r\n"] * 12
    assert [len(decode(reply)) for reply in on(primaries(endpoint), "FUNCTION", "LIST")] == [1, 1, 1]
    until(
        lambda: [len(decode(reply)) for reply in on(everybody(endpoint), "FUNCTION", "LIST")] == [1] * 6,
        "its replica has them too",
    )


def test_a_function_that_is_nowhere_or_was_deleted_is_not_found(endpoint: Up, wire: Wire) -> None:
    for _ in range(3):
        assert wire.pipeline([["FCALL", "nothing", 1, key] for key in KEYS]) == [NOT_FOUND] * 12
        wire.call("FUNCTION", "LOAD", LIBRARY)
        assert wire.pipeline([["FCALL", "nothing", 1, key] for key in KEYS]) == [NOT_FOUND] * 12
        assert wire.call("FUNCTION", "DELETE", "counting") == b"+OK\r\n"
        assert wire.pipeline([["FCALL", "count", 1, key] for key in KEYS]) == [NOT_FOUND] * 12
    assert wire.call("FCALL_RO", "nothing", 0) == NOT_FOUND


def test_a_dump_of_libraries_is_restored_by_every_policy(endpoint: Up, wire: Wire) -> None:
    wire.call("FUNCTION", "LOAD", LIBRARY)
    dump = bulk_value(wire.call("FUNCTION", "DUMP"))
    assert dump is not None
    for policy, reply in (("APPEND", b"-ERR Library counting already exists"), ("REPLACE", b"+OK"), ("FLUSH", b"+OK")):
        assert wire.call("FUNCTION", "RESTORE", dump, policy).startswith(reply), policy
        assert [len(decode(each)) for each in on(primaries(endpoint), "FUNCTION", "LIST")] == [1, 1, 1]
        assert wire.pipeline([["FCALL", "count", 1, key] for key in KEYS])[0].startswith(b":")


# -- SLOWLOG, COMMANDLOG -----------------------------------------------------------------------------------------------


def test_entries_of_the_logs_name_the_node_that_logged_them(endpoint: Up, wire: Wire) -> None:
    wire.call("SLOWLOG", "RESET")
    try:
        wire.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
        for key in KEYS:
            wire.call("SET", key, "marked")
    finally:
        wire.call("CONFIG", "SET", "slowlog-log-slower-than", 10_000_000)
    try:
        for words in (["SLOWLOG", "GET", -1], ["COMMANDLOG", "GET", -1, "slow"]):
            entries = [decode(entry) for entry in elements(wire.call(*words))]
            seen: dict[bytes, set[str]] = {}
            for entry in entries:
                name, _, address = entry[5].rpartition(b"node=")
                assert name in (b"", b"ackgate ") or b"replica" not in name
                if entry[3][0].upper() == b"SET" and entry[3][2] == b"marked":
                    seen.setdefault(entry[3][1], set()).add(address.decode())
            assert set(seen) == {key.encode() for key in KEYS}
            assert not [entry for entry in entries if entry[3][0].upper() in (b"HELLO", b"ROLE", b"CLIENT", b"CLUSTER")]
            for key, addresses in seen.items():
                assert any(_owns(endpoint, address, key) for address in addresses), key
    finally:
        wire.call("CONFIG", "SET", "slowlog-log-slower-than", 10_000)
        wire.call("SLOWLOG", "RESET")


def _owns(endpoint: Up, address: str, key: bytes) -> bool:
    slot = key_slot(key)
    return any(
        shard["primary"]["address"] == address and any(low <= slot <= high for low, high in shard["slots"])
        for shard in endpoint.topology()["shards"]
    )
