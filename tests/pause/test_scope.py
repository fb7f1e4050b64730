"""The words of CLIENT PAUSE, as each engine reads them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proxy.pause.board import Mode
from proxy.pause.scope import Asked, parse
from tests.system.beside import plain_server, redis_binary
from tests.system.wire import Wire

CALLS = (
    "PAUSE 1|pause 1 write|PAUSE 1 ALL|PAUSE 1 ALL x|Pause 1 x y|PAUSE x|PAUSE -1|PAUSE 1 READ|PAUSE x READ|PAUSE 1.5|"
    "PAUSE 9223372036854775807|PAUSE 99999999999999999999|PAUSE 0 WRITE"
)


def answer(line: str, strict: bool) -> bytes:
    read = parse([b"CLIENT", *line.encode().split()], time.time_ns() // 1_000_000, strict)
    return read if isinstance(read, bytes) else b"+OK\r\n"


@pytest.mark.parametrize("engine", ["valkey", "redis"])
def test_every_call_has_the_answer_of_the_engine(engine: str, tmp_path: Path) -> None:
    binary = redis_binary() if engine == "redis" else None
    with plain_server(tmp_path, binary) as port, Wire("127.0.0.1", port) as wire:
        for line in CALLS.split("|"):
            assert answer(line, strict=engine == "redis") == wire.call("CLIENT", *line.split()), line


def test_without_a_mode_everything_is_paused() -> None:
    assert parse([b"CLIENT", b"PAUSE", b"1500"], 0, strict=False) == Asked(Mode.ALL, 1.5)
    assert parse([b"CLIENT", b"PAUSE", b"1500", b"WRITE"], 0, strict=False) == Asked(Mode.WRITE, 1.5)
    assert parse([b"CLIENT", b"PAUSE", b"1500", b"WRITE", b"x"], 0, strict=False) == Asked(Mode.ALL, 1.5)
