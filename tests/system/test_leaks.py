"""Sessions opened, misused in every way and dropped leave nothing behind: no client, lane, task, descriptor, memory."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.acks import crowd, waitlist
from tests.harness import ENVIRONMENT, Up, until
from tests.system.beside import primaries
from tests.system.wire import Wire, request

CROWD = 100
"""Sessions open at a time."""
LAZY = waitlist.PURGE + 6
"""Objects of a kind that may wait to be forgotten: those who waited are taken out of their lists so many at a time."""
WAITERS_LAZY = 3 * waitlist.PURGE + crowd.PURGE + 6  # each in three shards' lists, and in that of deadlines
RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: closing sends a reset


class Counted:
    """A proxy of the tests' own that tells what it has (see ``tests.system.counted``)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.port = int(process.stdout.readline())

    def counts(self) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def counted(running: Up, folder: Path) -> Iterator[Counted]:
    """In front of the nodes of ``running``.  Leased lanes that nobody uses are closed soon, so that all is counted."""
    settings = {
        "cluster": {"seeds": primaries(running)},
        "listen": {"port": 0},
        "lanes": {"leased_idle": "500ms"},
        "acks": {"probe_interval": 0},
        "log": {"level": "error"},
    }
    config = folder / "proxy.yaml"
    config.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.system.counted", str(config)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "proxy.err").open("w"),
        text=True,
    )
    with process:
        try:
            yield Counted(process)
        finally:
            process.kill()


def lines(*calls: str) -> bytes:
    return b"".join(request(*call.split()) for call in calls)


MISUSES = {
    "nothing": b"",
    "half a request": request("GET", "k")[:-3],
    "half a large one": request("SET", "k", b"x" * 2_000_000)[:1_500_000],
    "a large one": request("SET", "k", b"x" * 1_100_000),
    "replies never read": lines("SET k v", *["GET k"] * 50),
    "several shards": lines("MSET a 1 b 2 c 3", "MGET a b c", "DEL a b c", "DBSIZE", "SCAN 0", "KEYS no*", "RANDOMKEY"),
    "all sorts": lines("INFO", "CLIENT LIST", "CONFIG GET maxmemory", "SLOWLOG GET", "COMMAND COUNT", "MEMORY STATS"),
    "MULTI left open": lines("MULTI", "SET k 1", "INCR k"),
    "MULTI of two slots": lines("MULTI", "SET a 1", "SET b 1", "EXEC", "GET a"),
    "MULTI done": lines("MULTI", "SET {m}k 1", "GET {m}k", "EXEC"),
    "MULTI in error": lines("MULTI", "NOSUCH", "EXEC", "EXEC"),
    "WATCH left": lines("WATCH w", "GET w"),
    "WATCH and MULTI left": lines("WATCH {w}k", "MULTI", "SET {w}k 1"),
    "WAIT for ever": lines("SET k 1", "WAIT 7 0"),
    "WAIT": lines("SET k 1", "WAIT 1 50", "WAITAOF 0 1 50"),
    "BLPOP for ever": lines("BLPOP nobody:pushes 0"),
    "BLPOP with more behind it": lines("BLPOP nobody:pushes 0", "GET k", "PING"),
    "BLPOP of two": lines("BLPOP {n}1 {n}2 0"),
    "BLPOP that ends": lines("BLPOP nobody:pushes 0.01", "PING"),
    "XREAD for ever": lines("XREAD BLOCK 0 STREAMS nobody:adds $"),
    "BLPOP in MULTI": lines("MULTI", "BLPOP nobody:pushes 0", "EXEC"),
    "SUBSCRIBE": lines("SUBSCRIBE c1 c2 c3", "PSUBSCRIBE p*", "PING"),
    "SSUBSCRIBE": lines("SSUBSCRIBE shard", "SUNSUBSCRIBE"),
    "SUBSCRIBE and PUBLISH": lines("HELLO 3", "SUBSCRIBE c1", "PUBLISH c1 x", "PUBLISH c1 y", "GET k"),
    "HELLO 3": lines("HELLO 3", "HGETALL h", "HELLO 2", "GET k"),
    "another database": lines("SELECT 1", "SET k 1", "GET k", "SELECT 2"),
    "AUTH of nobody": lines("AUTH nobody wrong", "GET k"),
    "AUTH": lines("AUTH leaky secret", "SET k v", "GET k", "MULTI", "SET k v"),
    "HELLO AUTH": lines("HELLO 3 AUTH leaky secret SETNAME leak", "GET k", "SUBSCRIBE c1"),
    "REPLY OFF": lines("CLIENT REPLY OFF", "SET k 1", "GET k", "CLIENT REPLY SKIP", "GET k"),
    "TRACKING": lines("HELLO 3", "CLIENT TRACKING ON", "GET k", "SET k v"),
    "scripts": lines("EVAL return(1) 0", "EVALSHA " + "0" * 40 + " 1 k", "FCALL nosuch 1 k", "SCRIPT EXISTS x"),
    "QUIT": lines("SET k 1", "QUIT", "GET k"),
    "RESET": lines("MULTI", "SET k 1", "RESET", "GET k"),
    "inline": b"SET k 'v w'\r\nGET k\r\n\r\n",
    "a protocol error": lines("GET k") + b"*1\r\n!\r\n",
    "HTTP": b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
}


def misuse(at: tuple[str, int], sessions: int, chance: random.Random) -> None:
    """So many sessions, of each misuse as many as of any other, ended in every way."""
    kinds = list(MISUSES.values())
    numbers = list(range(sessions))
    chance.shuffle(numbers)
    for first in range(0, sessions, CROWD):
        opened = [_begin(at, kinds[number % len(kinds)], number) for number in numbers[first : first + CROWD]]
        for sock in opened:
            sock.close()


def _begin(at: tuple[str, int], data: bytes, number: int) -> socket.socket:
    sock = socket.create_connection(at, timeout=30)
    way = number // len(MISUSES) % 4
    with suppress(OSError):  # it may be closed already
        sock.sendall(data)
        if way == 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif way == 2:
            sock.shutdown(socket.SHUT_WR)
        elif way == 3 and data:
            sock.settimeout(0.002)
            sock.recv(1 << 16)  # whatever has come by now
    return sock


def settled(proxy: Counted) -> dict[str, Any]:
    """The counts once no client and no leased lane is left."""

    def quiet() -> dict[str, Any] | None:
        found = proxy.counts()
        return found if found["clients"] == found["leased"] == 0 else None

    found: dict[str, Any] = until(quiet, "clients and leased lanes are gone")
    return found


@pytest.mark.parametrize("sessions", [100 * len(MISUSES), pytest.param(10_000, marks=pytest.mark.slow)])
def test_sessions_misused_and_dropped_leave_nothing_behind(endpoint: Up, tmp_path: Path, sessions: int) -> None:
    with Wire.to(endpoint.redis_url) as admin:
        assert admin.call("ACL", "SETUSER", "leaky", "on", ">secret", "~*", "&*", "+@all") == b"+OK\r\n"
        try:
            with counted(endpoint, tmp_path) as proxy:
                _leaves_nothing(proxy, sessions)
            assert (tmp_path / "proxy.err").read_text() == ""
        finally:
            admin.call("ACL", "DELUSER", "leaky")
            admin.call("FLUSHALL")


def _leaves_nothing(proxy: Counted, sessions: int) -> None:
    chance = random.Random(7)
    at = "127.0.0.1", proxy.port
    with Wire(*at) as wire:  # what is made once and kept is made before counting
        everywhere = [word for key in range(30) for word in (f"k{key}", key)]
        wire.pipeline([["MSET", *everywhere], ["WAIT", 1, 0], ["WAITAOF", 1, 1, 0]])
    misuse(at, 20 * len(MISUSES), chance)
    before = settled(proxy)
    misuse(at, sessions, chance)
    after: dict[str, Any] = {}

    def back() -> bool:
        after.update(settled(proxy))
        kinds = before["objects"].keys() | after["objects"].keys()
        more = {kind: after["objects"].get(kind, 0) - before["objects"].get(kind, 0) for kind in kinds}
        grown = {kind for kind in kinds if more[kind] > (WAITERS_LAZY if kind == "Waiter" else LAZY)}
        after["grown"] = grown
        same = all(after[name] <= before[name] for name in ("tasks", "descriptors", "lanes"))
        return same and not grown

    try:
        until(back, "everything is as it was")
    except AssertionError:
        grown = {kind: after["objects"][kind] for kind in after["grown"]}
        raise AssertionError(f"before {before}\nafter {after}\ngrown {grown}") from None
    assert after["resident_mb"] < before["resident_mb"] + 8
    with Wire(*at) as wire:
        assert wire.call("PING") == b"+PONG\r\n"
