"""CLIENT PAUSE and UNPAUSE: the same calls wait as at the engine, in the same order, until the same end."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from proxy.codec import split_inline
from tests.harness import Up, ackgate, until
from tests.system.beside import on, primaries, proxy_beside
from tests.system.nodes import metric, promote, shards_of
from tests.system.wire import Wire, request

Words = Sequence[bytes | str | int]
LONG = 60_000  # milliseconds; every test ends its pause itself
READS = "#!lua flags=no-writes\nreturn 1"
WRITES = "#!lua\nreturn 1"
LIBRARY = """#!lua name=pausing
server.register_function{function_name='looks', callback=function() return 1 end, flags={'no-writes'}}
server.register_function('changes', function() return 1 end)"""

WAITS = """
SET {k}a 1|DEL {k}none|EXPIRE {k}none 1|GETEX {k}a|SORT {k}l|PFCOUNT {k}p|PFMERGE {k}p {k}q|PUBLISH channel x
SPUBLISH channel x|BLPOP {k}l 1|XREADGROUP GROUP g c STREAMS {k}s >|FLUSHALL|FLUSHDB|FUNCTION FLUSH|COPY {k}a {k}b
EVAL "return 1" 0|EVAL "return 1" 1 {k}a|EVALSHA ffffffffffffffffffffffffffffffffffffffff 0|FCALL changes 0
FCALL none 0|MSET {k}a 1 {k}b 2|GETDEL {k}a|LPUSH {k}l 1|XGROUP CREATE {k}s h $ MKSTREAM|SETEX {k}a x 1|UNLINK {k}a
""".replace("\n", "|").strip("|").split("|")
PASSES = """
GET {k}a|PING|EVAL_RO "return 1" 0|EVALSHA_RO ffffffffffffffffffffffffffffffffffffffff 0|FCALL looks 0|FCALL_RO looks 0
XREAD COUNT 1 STREAMS {k}s 0|SCRIPT FLUSH|SCRIPT EXISTS ff|CONFIG GET maxmemory|CLIENT ID
INFO clients|MULTI|WATCH {k}a|EXEC|SELECT 0|RESET|KEYS {k}*|SCAN 0|DBSIZE|RANDOMKEY|TOUCH {k}a|MGET {k}a {k}b
SUBSCRIBE channel|EXISTS {k}a|TTL {k}a|SORT_RO {k}l|HELLO 3|ECHO x|FCALL_RO none 0|FUNCTION LIST|MEMORY USAGE {k}a
OBJECT ENCODING {k}a|TYPE {k}a|SET {k}a|FOO|EXPIRE {k}a|LPUSH|CLIENT GETNAME|COMMAND COUNT|CLIENT PAUSE x
""".replace("\n", "|").strip("|").split("|")
"""The last ones are wrong, and told so at once."""
OF_SCRIPTS: list[tuple[Words, bool]] = [
    (["EVAL", READS, 0], False),
    (["EVAL", READS, 1, "{k}a"], False),
    (["EVAL", WRITES, 0], True),
    (["EVAL_RO", WRITES, 0], True),
    (["EVAL", "#!lua flags=no-writes", 0], True),
    (["EVAL", "#!lua flags=no-writes,unheard-of\nreturn 1", 0], True),
    (["EVAL", "#!lua flags=no-writes,\nreturn 1", 0], True),
    (["EVAL", "#!lua FLAGS=no-writes\nreturn 1", 0], True),
    (["EVAL", "#! lua flags=no-writes\nreturn 1", 0], True),
    (["EVAL", "#!lua flags=allow-oom flags=no-writes\nreturn 1", 0], False),
    (["EVAL", "#!lua flags=allow-stale,no-writes\nreturn 1", 0], False),
    (["EVAL", READS, "x"], False),
]
# What was sent before the pause, what is sent in it, and whether the last of that waits.
IN_MULTI = [
    ("MULTI|SET {k}a 1", "EXEC", True),
    ("MULTI|GET {k}a|SET {k}a 1|GET {k}a", "EXEC", True),
    ("MULTI|GET {k}a", "EXEC", False),
    ("MULTI|PUBLISH channel x", "EXEC", True),
    ("MULTI|PFCOUNT {k}p", "EXEC", True),
    ("MULTI|FLUSHALL", "EXEC", True),
    ("MULTI|FCALL changes 1 {k}a", "EXEC", True),
    ("MULTI|FCALL looks 1 {k}a", "EXEC", False),
    ("MULTI|EVAL_RO 'return 1' 1 {k}a", "EXEC", False),
    ("MULTI|CLIENT ID|CONFIG GET maxmemory", "EXEC", False),
    ("MULTI", "EXEC", False),
    ("MULTI|SET {k}a 1", "DISCARD", False),
    ("MULTI|SET {k}a 1", "GET {k}a", False),
    ("MULTI|SET {k}a 1", "SET {k}a", False),
    ("MULTI|SET {k}a 1", "RESET", False),
    ("", "MULTI|GET {k}a|EXEC", False),
    ("", "MULTI|SET {k}a 1", True),
    ("MULTI", "PUBLISH channel x", True),
    ("MULTI|GET {k}a", "FCALL looks 1 {k}a", False),
    ("MULTI|GET {k}a", "FCALL changes 1 {k}a", True),
    ("WATCH {k}a|MULTI|GET {k}a", "EXEC", False),
    ("WATCH {k}a|MULTI|SET {k}a 2", "EXEC", True),
]


class Side:
    """A server, or the proxy, and a connection that manages it."""

    def __init__(self, host: str, port: int, proxied: bool) -> None:
        self.host, self.port, self.proxied = host, port, proxied
        self.admin = self.connect()

    def connect(self) -> Wire:
        return Wire(self.host, self.port)

    def pause(self, *words: bytes | str | int) -> None:
        assert self.admin.call("CLIENT", "PAUSE", *words) == b"+OK\r\n"

    def unpause(self) -> None:
        assert self.admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"

    def waits(self, number: int) -> bool:
        """Whether a client is shown as one that waits."""
        return b" flags=b " in self.admin.call("CLIENT", "LIST", "ID", number)

    def info(self, section: str) -> dict[str, str]:
        lines = self.admin.call("INFO", section).decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)


@pytest.fixture(params=["direct", "proxy"])
def side(request: pytest.FixtureRequest, endpoint: Up, direct: int) -> Iterator[Side]:
    with either(request.param, endpoint, direct) as found:
        yield found


@contextmanager
def either(which: str, endpoint: Up, direct: int) -> Iterator[Side]:
    port = direct if which == "direct" else int(endpoint.redis_url.rpartition(":")[2])
    side = Side("127.0.0.1", port, which == "proxy")
    side.admin.call("FLUSHALL")
    try:
        yield side
    finally:
        side.unpause()
        side.admin.call("FUNCTION", "FLUSH")
        side.admin.call("FLUSHALL")
        side.admin.close()


def words_of(line: str) -> list[bytes]:
    words = split_inline(line.replace("{k}", "{k}:").encode())
    assert words is not None
    return words


def number_of(wire: Wire) -> int:
    return int(wire.call("CLIENT", "ID")[1:])


def readable(wire: Wire) -> bool:
    return bool(select.select([wire.sock], [], [], 0)[0])


def goes_on(side: Side, wire: Wire, number: int) -> bool:
    """Whether what was sent is answered; not, if its client is shown to wait."""
    return until(lambda: (readable(wire) and "answered") or (side.waits(number) and "waits"), "either") == "answered"


def sent(side: Side, words: Words) -> bool:
    """Whether a call that is sent in a pause is answered."""
    with side.connect() as wire:
        number = number_of(wire)
        wire.send(*words)
        return goes_on(side, wire, number)


def equip(side: Side) -> None:
    side.admin.call("FUNCTION", "LOAD", "REPLACE", LIBRARY)
    side.admin.call("XADD", "{k}:s", "1-1", "f", "v")
    side.admin.call("XGROUP", "CREATE", "{k}:s", "g", 0)


# -- what is said ------------------------------------------------------------------------------------
def test_the_words_of_pause_and_their_errors(endpoint: Up, direct: int) -> None:
    asked: list[Words] = [
        *(["PAUSE", 0], ["PAUSE", 0, "WRITE"], ["PAUSE", 0, "all"], ["PAUSE", 1, "wRiTe"], ["PAUSE"]),
        *(["PAUSE", "x"], ["PAUSE", "1.5"], ["PAUSE", "-1"], ["PAUSE", "9223372036854775807"], ["UNPAUSE", "x"]),
        *(["PAUSE", 1, "READ"], ["PAUSE", "x", "READ"], ["PAUSE", "-1", "READ"], ["PAUSE", "", "ALL"], ["UNPAUSE"]),
        *(["PAUSE", "01"], ["PAUSE", 1, "WRITE", "x"], ["PAUSE", 1, "x", "y", "z"], ["PAUSE", "x", "y", "z"]),
        *(["PAUSE", "1" + "0" * 20], ["UNPAUSE"]),
    ]
    replies = {}
    for which in ("direct", "proxy"):
        with either(which, endpoint, direct) as side:
            replies[which] = [side.admin.call("CLIENT", *words) for words in asked]
    assert replies["proxy"] == replies["direct"]


def test_info_tells_of_the_pause(side: Side) -> None:
    none = {"paused_reason": "none", "paused_actions": "none", "paused_timeout_milliseconds": "0"}
    assert none.items() <= side.info("clients").items()
    side.pause(LONG, "WRITE")
    with side.connect() as wire:
        wire.send("SET", "key", 1)
        until(lambda: side.info("clients")["blocked_clients"] == "1", "it waits")
        fields = side.info("clients")
        assert (fields["paused_reason"], fields["paused_actions"]) == ("client_pause", "write")
        assert 0 < int(fields["paused_timeout_milliseconds"]) <= LONG
        side.unpause()
        assert wire.receive() == b"+OK\r\n"
    assert none.items() <= side.info("clients").items()


# -- what waits ---------------------------------------------------------------------------------------
def test_what_a_pause_of_writes_lets_pass(side: Side) -> None:
    equip(side)
    side.pause(LONG, "WRITE")
    assert [line for line in WAITS if sent(side, words_of(line))] == []
    assert [line for line in PASSES if not sent(side, words_of(line))] == []


def test_scripts_that_declare_to_write_nothing_pass(side: Side) -> None:
    equip(side)
    loaded = [side.admin.call("SCRIPT", "LOAD", text).split(b"\r\n")[1] for text in (READS, WRITES, "return 1")]
    by_sha: list[tuple[Words, bool]] = [(["EVALSHA", sha, 0], sha is not loaded[0]) for sha in loaded]
    side.pause(LONG, "WRITE")
    for words, waits in [*OF_SCRIPTS, *by_sha]:
        given = [word.replace("{k}", "{k}:") if isinstance(word, str) else word for word in words]
        assert sent(side, given) is not waits, words


def test_a_script_that_another_proxy_has_loaded_is_known_by_the_engine(
    endpoint: Up, direct: int, tmp_path: Path
) -> None:
    with either("proxy", endpoint, direct) as side, proxy_beside(endpoint, tmp_path) as url, Wire.to(url) as other:
        loaded = [other.call("SCRIPT", "LOAD", text + " + 1").split(b"\r\n")[1] for text in (READS, WRITES)]
        side.pause(LONG, "WRITE")
        assert [sent(side, ["EVALSHA", sha, 0]) for sha in loaded] == [True, False]


@pytest.mark.parametrize("before, during, waits", IN_MULTI)
def test_transactions_wait_where_they_queue_or_execute_a_write(
    before: str, during: str, waits: bool, side: Side
) -> None:
    equip(side)
    with side.connect() as wire:
        number = number_of(wire)
        for line in filter(None, before.split("|")):
            assert not wire.call(*words_of(line)).startswith(b"-"), line
        side.pause(LONG, "WRITE")
        *first, last = during.split("|")
        for line in first:
            assert not wire.call(*words_of(line)).startswith(b"-"), line
        wire.send(*words_of(last))
        if waits:
            until(lambda: b"b" in flags(side, number), "it waits")
            side.unpause()
        assert wire.receive()


def flags(side: Side, number: int) -> bytes:
    return side.admin.call("CLIENT", "LIST", "ID", number).partition(b" flags=")[2].partition(b" ")[0]


@pytest.mark.parametrize("text, waits", [(READS, False), (WRITES, True), ("return 1", True)])
def test_scripts_in_a_transaction_go_by_what_they_declare(text: str, waits: bool, side: Side) -> None:
    with side.connect() as wire:
        number = number_of(wire)
        assert wire.pipeline([["MULTI"], ["EVAL", text, 1, "key"]]) == [b"+OK\r\n", b"+QUEUED\r\n"]
        side.pause(LONG, "WRITE")
        wire.send("EXEC")
        if waits:
            until(lambda: flags(side, number) == b"xb", "it waits")
            assert not readable(wire)
            side.unpause()
        assert wire.receive() == b"*1\r\n:1\r\n"


def test_a_pause_within_a_transaction_begins_behind_it(side: Side) -> None:
    with side.connect() as wire:
        pause: Words = ["CLIENT", "PAUSE", LONG, "WRITE"]
        replies = wire.pipeline([["MULTI"], ["SET", "{k}a", 1], list(pause), ["SET", "{k}b", 2], ["EXEC"]])
        assert replies[-1] == b"*3\r\n+OK\r\n+OK\r\n+OK\r\n"
        wire.send("SET", "{k}a", 3)
        until(lambda: side.info("clients")["blocked_clients"] == "1", "the next one waits")
        assert side.admin.call("MGET", "{k}a", "{k}b") == b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n"


# -- for how long, in which order ------------------------------------------------------------------------
def test_a_client_keeps_its_order_and_all_go_on(side: Side) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(side.connect()) for _ in range(40)]
        side.pause(LONG, "WRITE")
        for at, wire in enumerate(wires):
            for words in (["GET", f"key{at}"], ["SET", f"key{at}", at], ["GET", f"key{at}"], ["PING"]):
                wire.send(*words)
        until(lambda: side.info("clients")["blocked_clients"] == "40", "all wait")
        assert all(wire.receive() == b"$-1\r\n" for wire in wires), "what came before is answered"
        assert not any(readable(wire) for wire in wires), "and nothing behind"
        side.unpause()
        for at, wire in enumerate(wires):
            assert wire.receive() == b"+OK\r\n"
            assert wire.receive() == b"$%d\r\n%d\r\n" % (len(str(at)), at)
            assert wire.receive() == b"+PONG\r\n"


def test_it_ends_by_itself(side: Side) -> None:
    with side.connect() as wire:
        started = time.monotonic()
        side.pause(300, "WRITE")
        assert wire.call("SET", "key", 1) == b"+OK\r\n"
        assert time.monotonic() - started >= 0.3
        assert side.info("clients")["paused_actions"] == "none"


@pytest.mark.parametrize(
    "pauses, words",
    [
        ([[200, "WRITE"], [1, "WRITE"]], ["SET", "key", 1]),
        ([[1, "WRITE"], [200, "WRITE"]], ["SET", "key", 1]),
        ([[200, "WRITE"], [1, "ALL"]], ["PING"]),
        ([[200, "WRITE"], [0]], ["PING"]),
        ([[200]], ["PING"]),
        ([[200, "ALL", "x"]], ["GET", "key"]),
    ],
)
def test_a_pause_never_gets_shorter_nor_weaker(pauses: list[list[int | str]], words: Words, side: Side) -> None:
    with side.connect() as wire:
        started = time.monotonic()
        for pause in pauses:
            side.pause(*pause)
        wire.call(*words)
        assert time.monotonic() - started >= 0.19


@pytest.mark.parametrize(
    "line",
    ["GET key", "HELLO 2", "AUTH x", "QUIT", "RESET", "INFO", "WAIT 0 0", "SUBSCRIBE c", "MULTI", "CLIENT ID"],
)
def test_a_pause_of_all_holds_everything(line: str, side: Side) -> None:
    with side.connect() as wire:
        started = time.monotonic()
        side.pause(100)
        assert wire.call(*words_of(line))
        assert time.monotonic() - started >= 0.09


def test_what_is_wrong_is_told_at_once_whatever_is_paused(side: Side) -> None:
    with side.connect() as wire:
        started = time.monotonic()
        side.pause(700)
        assert wire.call("GET").startswith(b"-ERR wrong number of arguments")
        assert wire.call("FOO").startswith(b"-ERR unknown command")
        assert wire.call("CLIENT", "FOO").startswith(b"-ERR unknown subcommand")
        told = time.monotonic()
        assert wire.call("PING") == b"+PONG\r\n"
        assert told - started < time.monotonic() - started >= 0.69


def test_unpause_passes_through_a_pause_of_all(endpoint: Up, direct: int) -> None:
    """Unlike the engine's: there it can only be waited for."""
    with either("proxy", endpoint, direct) as side, side.connect() as wire, side.connect() as late:
        side.pause(LONG)
        wire.send("PING")
        until(lambda: metric(endpoint, "ackgate_parked_commands") == 1, "it waits")
        assert metric(endpoint, "ackgate_paused") == 2
        with side.connect() as fresh:
            assert fresh.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert wire.receive() == late.call("PING") == b"+PONG\r\n"
        assert metric(endpoint, "ackgate_paused") == metric(endpoint, "ackgate_parked_commands") == 0


def test_in_resp3_and_with_silent_replies(side: Side) -> None:
    with side.connect() as wire:
        wire.call("HELLO", 3)
        number = number_of(wire)
        wire.send("CLIENT", "REPLY", "OFF")
        side.pause(LONG, "WRITE")
        wire.send("SET", "key", 1)
        until(lambda: side.waits(number), "it waits")
        wire.send("GET", "key")
        wire.send("CLIENT", "REPLY", "ON")
        wire.send("GET", "key")
        side.unpause()
        assert [wire.receive(), wire.receive()] == [b"+OK\r\n", b"$1\r\n1\r\n"]


# -- who does not wait to the end -----------------------------------------------------------------------
@pytest.mark.parametrize("how", ["closes", "half closes", "is killed"])
def test_what_a_client_that_goes_had_sent_is_dropped(how: str, side: Side) -> None:
    wire = side.connect()
    number = number_of(wire)
    side.pause(LONG, "WRITE")
    wire.send("SET", "key", 1)
    until(lambda: side.waits(number), "it waits")
    if how == "closes":
        wire.close()
    elif how == "half closes":
        wire.sock.shutdown(socket.SHUT_WR)
    else:
        assert side.admin.call("CLIENT", "KILL", "ID", number) == b":1\r\n"
    until(lambda: b"id=%d " % number not in side.admin.call("CLIENT", "LIST"), "it is gone")
    side.unpause()
    assert side.admin.call("EXISTS", "key") == b":0\r\n"
    wire.close()


def test_client_unblock_does_not_free_it(side: Side) -> None:
    with side.connect() as wire:
        number = number_of(wire)
        side.pause(LONG, "WRITE")
        wire.send("SET", "key", 1)
        until(lambda: side.waits(number), "it waits")
        assert side.admin.call("CLIENT", "UNBLOCK", number) == b":0\r\n"
        assert side.waits(number)
        side.unpause()
        assert wire.receive() == b"+OK\r\n"


def test_a_user_who_may_not_is_told_at_once(side: Side) -> None:
    side.admin.call("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read", "+client", "+multi", "+auth", "+hello")
    try:
        with side.connect() as wire:
            assert until(lambda: wire.call("AUTH", "reader", "secret") == b"+OK\r\n", "the user is known")
            side.pause(LONG, "WRITE")
            assert wire.call("SET", "key", 1).startswith(b"-NOPERM ")
            assert wire.call("EVAL", "return 1", 0).startswith(b"-NOPERM ")
            assert wire.call("GET", "key") == b"$-1\r\n"
    finally:
        side.unpause()
        side.admin.call("ACL", "DELUSER", "reader")


# -- those who block and wait -----------------------------------------------------------------------------
def test_who_blocked_before_has_the_timeout_that_was_asked_for(side: Side) -> None:
    with side.connect() as wire, side.connect() as late:
        wire.send("BLPOP", "list", 0.3)
        until(lambda: side.waits(number_of_blocked(side)), "it blocks")
        side.pause(LONG, "WRITE")
        assert wire.receive() == b"*-1\r\n"
        number = number_of(late)
        late.send("BLPOP", "list", 0.2)
        until(lambda: side.waits(number), "it waits for the end of the pause, and then for an element")
        started = time.monotonic()
        side.unpause()
        assert late.receive() == b"*-1\r\n"
        assert time.monotonic() - started >= 0.19


def number_of_blocked(side: Side) -> int:
    lines = side.admin.call("CLIENT", "LIST").decode().split("\n")
    return next((int(line.split("id=")[1].split()[0]) for line in lines if " flags=b " in line), 0)


def test_an_element_for_who_blocks_comes_after_the_pause(side: Side) -> None:
    with side.connect() as blocked, side.connect() as pusher:
        blocked.send("BLPOP", "list", 0)
        until(lambda: side.info("clients")["blocked_clients"] == "1", "it blocks")
        side.pause(LONG, "WRITE")
        pusher.send("RPUSH", "list", "x")
        until(lambda: side.info("clients")["blocked_clients"] == "2", "the element waits")
        assert not readable(blocked)
        side.unpause()
        assert blocked.receive() == b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n"


def test_wait_is_answered_in_a_pause_of_writes(endpoint: Up, direct: int) -> None:
    with either("proxy", endpoint, direct) as side, side.connect() as wire:
        assert wire.call("SET", "key", 1) == b"+OK\r\n"
        side.pause(LONG, "WRITE")
        assert wire.call("WAIT", 1, 0) == b":1\r\n"
    with either("proxy", endpoint, direct) as side, side.connect() as fresh:
        side.pause(LONG, "WRITE")
        assert fresh.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n", "who wrote nothing needs no marker"


def test_waitaof_cannot_be_asked_in_a_pause(endpoint: Up, direct: int) -> None:
    """What is fsynced a shard tells by a write only; that waits for the end of the pause, or for the deadline."""
    with either("proxy", endpoint, direct) as side, side.connect() as wire:
        assert wire.call("SET", "key", 1) == b"+OK\r\n"
        side.pause(LONG, "WRITE")
        assert wire.call("WAITAOF", 1, 1, 50).startswith(b"-ERR WAITAOF cannot be answered: ")
        wire.send("WAITAOF", 1, 1, 0)
        until(lambda: metric(endpoint, "ackgate_waits_open") == 1, "it waits")
        side.unpause()
        assert wire.receive() == b"*2\r\n:1\r\n:1\r\n"


def test_subscribers_hear_what_was_published_before_and_after(side: Side) -> None:
    with side.connect() as subscriber, side.connect() as publisher:
        subscriber.call("SUBSCRIBE", "channel")
        number = number_of(publisher)
        side.pause(LONG, "WRITE")
        publisher.send("PUBLISH", "channel", "x")
        until(lambda: side.waits(number), "it waits")
        assert not readable(subscriber)
        side.unpause()
        assert publisher.receive() == b":1\r\n"
        assert subscriber.receive() == b"*3\r\n$7\r\nmessage\r\n$7\r\nchannel\r\n$1\r\nx\r\n"


# -- the shards -------------------------------------------------------------------------------------------
def test_nothing_expires_while_writes_are_paused(side: Side) -> None:
    side.pause(LONG, "WRITE")
    side.unpause()
    before = int(side.info("stats")["expired_keys"])
    for at in range(20):
        side.admin.call("SET", f"key{at}", 1, "PX", 300)
    side.pause(LONG, "WRITE")
    until(lambda: side.admin.call("EXISTS", *[f"key{at}" for at in range(20)]) == b":0\r\n", "they read as missing")
    assert side.admin.call("GET", "key1") == b"$-1\r\n"
    assert side.admin.call("DBSIZE") == b":20\r\n"
    assert int(side.info("stats")["expired_keys"]) == before
    side.unpause()
    until(lambda: side.admin.call("DBSIZE") == b":0\r\n", "they expire")


def paused_nodes(addresses: Sequence[str]) -> list[bool]:
    return [b"\r\npaused_actions:write\r\n" in text for text in on(addresses, "INFO", "clients")]


def test_the_shards_are_paused_and_their_offsets_stand_still(endpoint: Up, direct: int) -> None:
    nodes = primaries(endpoint)
    with either("proxy", endpoint, direct) as side, ExitStack() as stack:
        wires = [stack.enter_context(side.connect()) for _ in range(20)]
        side.pause(LONG, "ALL")
        assert paused_nodes(nodes) == [True] * 3, "for writes, when it is answered"
        before = offsets(nodes)
        for at, wire in enumerate(wires):
            wire.send("SET", f"key{at}", 1)
        until(lambda: metric(endpoint, "ackgate_parked_commands") == 20, "they wait")
        pings = {0, 14, 28}  # bytes: a primary's to its replica go on
        assert {after - first for first, after in zip(before, offsets(nodes), strict=True)} <= pings
        side.unpause()
        assert paused_nodes(nodes) == [False] * 3
        assert [wire.receive() for wire in wires] == [b"+OK\r\n"] * 20
        assert all(after > first for first, after in zip(before, offsets(nodes), strict=True))


def offsets(nodes: Sequence[str]) -> list[int]:
    texts = [text.decode() for text in on(nodes, "INFO", "replication")]
    return [int(text.partition("master_repl_offset:")[2].split("\r\n")[0]) for text in texts]


def test_reads_go_on_while_writers_are_stopped_in_full_flight(endpoint: Up, direct: int) -> None:
    """A write that met a paused shard would stand before every read of that shard."""
    stop = threading.Event()

    def write(side: Side) -> None:
        with suppress(OSError), side.connect() as wire:
            while not stop.is_set():
                wire.pipeline([["SET", f"key{at}", at] for at in range(50)])

    with either("proxy", endpoint, direct) as side:
        threads = [threading.Thread(target=write, args=(side,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            with side.connect() as reader:
                for _ in range(5):
                    side.pause(LONG, "WRITE")
                    until(lambda: metric(endpoint, "ackgate_parked_commands") == 8, "all writers wait")
                    for at in range(50):
                        assert reader.call("GET", f"key{at}").startswith(b"$")
                    side.unpause()
        finally:
            stop.set()
            side.unpause()
            for thread in threads:
                thread.join()


@pytest.mark.slow
def test_who_takes_over_in_a_pause_is_paused_too(fresh: Callable[..., Up]) -> None:
    running = fresh("--shards", "1")
    [shard] = shards_of(running)
    with Wire.to(running.redis_url) as admin, Wire.to(running.redis_url) as wire:
        assert admin.call("CLIENT", "PAUSE", LONG, "WRITE") == b"+OK\r\n"
        promote(shard.replica)
        address = f"{shard.replica.host}:{shard.replica.port}"
        until(lambda: paused_nodes([address]) == [True], "it is paused")
        wire.send("SET", "key", 1)
        until(lambda: metric(running, "ackgate_parked_commands") == 1, "it waits")
        assert admin.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert wire.receive() == b"+OK\r\n"
        assert paused_nodes([address]) == [False]


def test_a_write_that_waited_for_a_primary_since_before_goes_through(fresh: Callable[..., Up]) -> None:
    """And what is read behind it, though whoever takes over is paused."""
    running = fresh("--shards", "1")
    [shard] = shards_of(running)
    with Wire.to(running.redis_url) as admin, Wire.to(running.redis_url) as wire, Wire.to(running.redis_url) as reader:
        admin.call("SET", "key", 1)
        os.kill(shard.primary.pid, signal.SIGKILL)
        until(lambda: metric(running, "ackgate_ready") == 0, "it is noticed")
        wire.send("SET", "key", 2)
        until(lambda: metric(running, "ackgate_held_commands") == 1, "it is held")
        assert admin.call("CLIENT", "PAUSE", LONG, "WRITE") == b"+OK\r\n"
        shard.replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
        assert wire.receive() == b"+OK\r\n", "it was sent before the pause"
        until(lambda: paused_nodes([f"{shard.replica.host}:{shard.replica.port}"]) == [True], "it is paused")
        assert reader.call("GET", "key") == b"$1\r\n2\r\n"
        admin.call("CLIENT", "UNPAUSE")


def test_the_shards_go_on_when_the_proxy_that_paused_them_is_gone(endpoint: Up, tmp_path: Path) -> None:
    nodes = primaries(endpoint)
    with proxy_beside(endpoint, tmp_path) as url, Wire.to(url) as wire:
        assert wire.call("CLIENT", "PAUSE", LONG, "WRITE") == b"+OK\r\n"
        assert paused_nodes(nodes) == [True] * 3
    until(lambda: paused_nodes(nodes) == [False] * 3, "their leases end")


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_a_write_that_had_begun_to_arrive_waits(size: int, side: Side) -> None:
    data = request("SET", "key", "x" * size)
    with side.connect() as wire:
        number = number_of(wire)
        wire.send_raw(data[: len(data) // 2])
        if side.proxied:
            until(lambda: held_of(side, number) >= min(len(data) // 2, 20_000), "it is read")
        side.pause(LONG, "WRITE")
        wire.send_raw(data[len(data) // 2 :])
        until(lambda: side.waits(number), "it waits")
        assert side.admin.call("EXISTS", "key") == b":0\r\n"
        side.unpause()
        assert wire.receive() == b"+OK\r\n"


def held_of(side: Side, number: int) -> int:
    """Bytes of an unfinished request."""
    line = side.admin.call("CLIENT", "LIST", "ID", number)
    return sum(int(line.partition(name)[2].split(b" ")[0]) for name in (b" qbuf=", b" argv-mem="))


def test_status_shows_it(endpoint: Up, direct: int) -> None:
    with either("proxy", endpoint, direct) as side, side.connect() as wire:
        side.pause(LONG, "WRITE")
        wire.send("SET", "key", 1)
        until(lambda: metric(endpoint, "ackgate_parked_commands") == 1, "it waits")
        shown = ackgate("status", "--admin", endpoint.admin_url).stdout
        assert re.search(r"writes are paused \(CLIENT PAUSE\) for [\d.]+ s more; commands that wait here: 1\n", shown)
        told = json.loads(ackgate("status", "--admin", endpoint.admin_url, "--json").stdout)
        assert told["ok"] and (told["paused"]["mode"], told["paused"]["parked"]) == ("write", 1)
        side.unpause()
        assert endpoint.topology()["paused"] == {"mode": "none", "seconds_left": 0.0, "parked": 0}
