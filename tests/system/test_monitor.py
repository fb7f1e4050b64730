"""MONITOR shows what clients send, in the lines of a plain server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.harness import Up
from tests.system.corpus import CORPUS
from tests.system.wire import Wire, words

SESSION = r"""
    SET k "a\x00\"b\\\r\n\t\x07\x08\xc3"
    GET k
    MGET a b c
    NOSUCH x
    GET
    CONFIG GET maxmemory
    CLIENT ID
    MULTI
    INCR n
    PING
    EXEC
    MULTI
    INCR n
    DISCARD
    WATCH n
    UNWATCH
    SELECT 2
    DEL a b c
    AUTH default secret
    HELLO 2 AUTH default secret SETNAME me
    EVAL_RO "return 1" 0
    BLPOP list 0.01
    SUBSCRIBE channel
    UNSUBSCRIBE channel
    PUBLISH channel message
    FLUSHALL
    RESET
    GET k
"""


@pytest.fixture
def watchers(endpoint: Up, direct: int, wire: Wire) -> Iterator[tuple[Wire, Wire]]:
    """One who watches the proxy, and one who watches a plain server."""
    with Wire.to(endpoint.redis_url) as ours, Wire("127.0.0.1", direct) as plain:
        assert ours.call("MONITOR") == plain.call("MONITOR") == b"+OK\r\n"
        yield ours, plain


def lines_until(watcher: Wire, mark: str) -> list[bytes]:
    """What a watcher has seen, without times and addresses, up to a command that names ``mark``."""
    seen: list[bytes] = []
    while not seen or mark.encode() not in seen[-1]:
        line = watcher.receive()
        assert re.match(rb"\+\d{10}\.\d{6} \[\d+ 127\.0\.0\.1:\d+\] ", line), line
        seen.append(re.sub(rb"\+\S+ \[(\d+) \S+\]", rb"\1", line))
    return seen


def test_a_session_is_shown_as_by_a_plain_server(
    endpoint: Up, direct: int, watchers: tuple[Wire, Wire]
) -> None:
    shown = []
    for watcher, url in zip(watchers, (endpoint.redis_url, f"redis://127.0.0.1:{direct}"), strict=True):
        with Wire.to(url) as client:
            for line in SESSION.strip().splitlines():
                client.call(*words(line))
            client.call("ECHO", "the end")
        shown.append(lines_until(watcher, "the end"))
    assert shown[0] == shown[1]


def test_what_comes_in_one_packet_is_shown_in_its_order(endpoint: Up, watchers: tuple[Wire, Wire]) -> None:
    with Wire.to(endpoint.redis_url) as client:
        client.pipeline([["INCR", "n"] if at % 3 else ["MSET", f"a{at}", at, f"b{at}", at] for at in range(300)])
        client.call("ECHO", "the end")
    shown = [line.split(b'"')[1] for line in lines_until(watchers[0], "the end")]
    assert shown == [b"INCR" if at % 3 else b"MSET" for at in range(300)] + [b"ECHO"]


def test_who_watches_has_nothing_to_do_with_keys(watchers: tuple[Wire, Wire]) -> None:
    ours, plain = watchers
    for line in ("GET k", "SET k v", "MGET a b", "KEYS *", "DBSIZE", "EVAL 'return 1' 0", "PUBLISH c m", "FLUSHALL"):
        assert ours.call(*words(line)) == plain.call(*words(line)), line
    for watcher in watchers:
        assert watcher.call("PING") == b"+PONG\r\n"
        assert lines_until(watcher, "PING") == [b'0 "PING"\r\n']
        assert watcher.call("RESET") == b"+RESET\r\n"
        assert watcher.call("GET", "k") == b"$-1\r\n"


def test_replies_stay_what_they_are_while_somebody_watches(
    endpoint: Up, direct: int, wire: Wire, watchers: tuple[Wire, Wire]
) -> None:
    with Wire("127.0.0.1", direct) as plain:
        plain.call("FLUSHALL")
        for group in ("strings", "several keys over shards", "lists"):
            for call in CORPUS[group]:
                assert wire.call(*call) == plain.call(*call), call
        plain.call("FLUSHALL")


def test_with_the_last_watcher_gone_it_is_over(endpoint: Up, wire: Wire) -> None:
    with Wire.to(endpoint.redis_url) as first, Wire.to(endpoint.redis_url) as second:
        assert first.call("MONITOR") == second.call("MONITOR") == b"+OK\r\n"
        first.close()
        assert wire.call("ECHO", "seen") == b"$4\r\nseen\r\n"
        lines_until(second, "seen")
    assert wire.call("SET", "k", "v") == b"+OK\r\n"
    assert wire.call("GET", "k") == b"$1\r\nv\r\n"
