"""WAIT's and WAITAOF's arguments against a live server's own words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from proxy.acks.arguments import Refused, parse_wait, parse_waitaof

HUGE = str((1 << 63) - 1)
WORDS = ["a", "", " 1", "1 ", "+1", "01", "-0", "1.5", "1e3", "0x1"]
INTEGERS = [*WORDS, "99999999999999999999", HUGE, "-" + HUGE, "-1", "0"]
TIMEOUTS = [*INTEGERS, "1", "4611686018427387904", "-9223372036854775808", "-9223372036854775809"]


def word(parse: Callable[..., Any], *args: str) -> str | None:
    """What the parser refuses with; None for what it takes."""
    try:
        parse([arg.encode() for arg in args])
    except Refused as refused:
        return str(refused)
    return None


def said(client: redis.Redis, *args: str) -> str | None:
    """What the server refuses with.  Asked within MULTI, where it never blocks."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command(*args)
        [reply] = pipeline.execute(raise_on_error=False)
    return f"ERR {reply}" if isinstance(reply, redis.ResponseError) else None


def test_every_word_is_refused_or_taken_as_the_engine_does(start: Callable[..., Any]) -> None:
    client = start("--appendonly", "yes").client
    calls: list[tuple[str, ...]] = [("WAIT", count, "0") for count in INTEGERS]
    calls += [("WAIT", "1", timeout) for timeout in TIMEOUTS]
    calls += [("WAIT", count, timeout) for count in ("x", "-1") for timeout in ("y", "-1", HUGE)]  # which comes first
    for call in calls:
        assert word(parse_wait, *call) == said(client, *call), call
    fsyncs: list[tuple[str, ...]] = [("WAITAOF", local, "0", "0") for local in [*INTEGERS, "1", "2"]]
    fsyncs += [("WAITAOF", "0", count, "0") for count in INTEGERS]
    fsyncs += [("WAITAOF", "1", "1", timeout) for timeout in TIMEOUTS]
    fsyncs += [("WAITAOF", *rest) for rest in (("x", "x", "x"), ("2", "x", "x"), ("1", "-1", "x"), ("2", "-1", "-1"))]
    for call in fsyncs:
        assert word(parse_waitaof, *call) == said(client, *call), call


def test_what_is_taken_is_read_in_the_engines_units() -> None:
    assert parse_wait([b"WAIT", b"3", b"1500"]) == (0, 3, 1.5, False)
    assert parse_wait([b"WAIT", b"-2", b"0"]) == (0, -2, None, False), "0 is for ever"
    assert parse_waitaof([b"WAITAOF", b"1", b"2", b"1"]) == (1, 2, 0.001, True)
