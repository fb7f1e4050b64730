"""CLIENT PAUSE where much is under way, and where the engine looks twice at a call."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.harness import Up, until
from tests.system.beside import overloaded
from tests.system.test_pause import LIBRARY, LONG, Side, either, flags, number_of, readable, sent, words_of


@pytest.fixture(params=["direct", "proxy"])
def side(request: pytest.FixtureRequest, endpoint: Up, direct: int) -> Iterator[Side]:
    with either(request.param, endpoint, direct) as found:
        yield found


def test_reads_pass_though_writes_were_waiting_for_a_busy_shard(endpoint: Up, direct: int) -> None:
    """They share a lane with those, which must not meet a shard that is paused."""
    with (
        either("proxy", endpoint, direct) as side,
        side.connect() as reader,
        overloaded(endpoint.redis_url) as (writer, count),
    ):
        side.pause(LONG, "WRITE")
        reader.sock.settimeout(10)
        assert reader.call("GET", "{k}")
        assert side.info("clients")["paused_actions"] == "write"
        assert not sent(side, ["SET", "{k}", 1])
        side.unpause()
        assert [writer.receive() for _ in range(count)] == [b"+OK\r\n"] * count


@pytest.mark.parametrize(
    "words, waits",
    [
        (["FCALL", "LOOKS", 0], False),
        (["FCALL_RO", "Looks", 0], False),
        (["FCALL", "CHANGES", 0], True),
        (["FCALL_RO", "CHANGES", 0], True),
        (["EVAL", '#!lua "flags=no-\\x77rites"\nreturn 1', 0], False),
        (["EVAL", "#!lua flags='no-writes'\nreturn 1", 0], False),
        (["EVAL", "#!lua fl\\ags=no-writes\nreturn 1", 0], True),
        (["EVAL_RO", "#!lua flags=\nreturn 1", 0], True),
    ],
)
def test_names_and_flags_are_read_as_the_engine_does(words: list[str | int], waits: bool, side: Side) -> None:
    side.admin.call("FUNCTION", "LOAD", "REPLACE", LIBRARY)
    side.pause(LONG, "WRITE")
    assert sent(side, words) is not waits


@pytest.mark.parametrize("wrong", ["FOO", "SET {k}a"])
def test_a_transaction_that_was_refused_is_told_so_in_a_pause_of_writes(wrong: str, side: Side) -> None:
    with side.connect() as wire:
        wire.pipeline([["MULTI"], ["SET", "{k}a", 1], list(words_of(wrong))])
        side.pause(LONG, "WRITE")
        assert wire.call("EXEC") == b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        number = number_of(wire)
        wire.send("SET", "{k}a", 1)
        until(lambda: flags(side, number) == b"b", "it waits")


def test_what_may_not_be_in_a_transaction_is_refused_in_a_pause_of_all(side: Side) -> None:
    with side.connect() as wire:
        assert wire.call("MULTI") == b"+OK\r\n"
        side.pause(500)
        for name in ("watch", "multi"):
            started = time.monotonic()
            words = [name, "{k}a"][: 1 + (name == "watch")]
            assert wire.call(*words) == b"-ERR Command '%s' not allowed inside a transaction\r\n" % name.encode()
            assert time.monotonic() - started < 0.3
        wire.send("RESET")
        time.sleep(0.05)
        assert not readable(wire)
        assert wire.receive() == b"+RESET\r\n"
