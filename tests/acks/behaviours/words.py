"""What the behaviours are put in: words sent, replies expected, and the engine's own errors."""

from __future__ import annotations

from tests.acks.sides import Side
from tests.system.wire import Wire

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
NO_AOF = b"-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n"
LARGEST = (1 << 63) - 1
FOR_EVER = 0
A_SECOND_AND_MORE = 1500  # milliseconds: an engine's replica tells of an fsync once a second
SOON = 80  # milliseconds: the timeout of a WAIT that is not going to be satisfied

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
BAD_TIMEOUT = "ERR timeout is not an integer or out of range"
NOT_POSITIVE = "ERR value is out of range, must be positive"
NOT_A_BIT = "ERR value is out of range, value must between 0 and 1"
REFUSED = {
    "WAIT": "ERR wrong number of arguments for 'wait' command",
    "WAIT 1": "ERR wrong number of arguments for 'wait' command",
    "WAIT 1 0 0": "ERR wrong number of arguments for 'wait' command",
    "WAIT a 0": NOT_AN_INTEGER,
    "WAIT +1 0": NOT_AN_INTEGER,
    "WAIT 01 0": NOT_AN_INTEGER,
    "WAIT 1.5 0": NOT_AN_INTEGER,
    "WAIT 99999999999999999999 1": NOT_AN_INTEGER,
    f"WAIT {LARGEST + 1} 1": NOT_AN_INTEGER,
    "WAIT x y": NOT_AN_INTEGER,
    "WAIT 1 a": BAD_TIMEOUT,
    "WAIT 1 1.5": BAD_TIMEOUT,
    "WAIT 1 0x1": BAD_TIMEOUT,
    "WAIT 1 100000000000000000000": BAD_TIMEOUT,
    "WAIT 1 -1": "ERR timeout is negative",
    f"WAIT 1 {LARGEST}": "ERR timeout is out of range",
    "WAITAOF": "ERR wrong number of arguments for 'waitaof' command",
    "WAITAOF 1 0": "ERR wrong number of arguments for 'waitaof' command",
    "WAITAOF 1 0 0 0": "ERR wrong number of arguments for 'waitaof' command",
    "WAITAOF a 0 0": NOT_AN_INTEGER,
    "WAITAOF 2 0 0": NOT_A_BIT,
    "WAITAOF -1 0 0": NOT_A_BIT,
    "WAITAOF 0 -1 0": NOT_POSITIVE,
    "WAITAOF 0 x 0": NOT_POSITIVE,
    f"WAITAOF 0 {LARGEST + 1} 0": NOT_POSITIVE,
    "WAITAOF 2 x y": NOT_A_BIT,
    "WAITAOF 0 0 x": BAD_TIMEOUT,
    "WAITAOF 0 0 -1": "ERR timeout is negative",
    f"WAITAOF 0 0 {LARGEST}": "ERR timeout is out of range",
}


def words(line: str) -> list[bytes | str | int]:
    return [*line.split()]


def integer(number: int) -> bytes:
    return b":%d\r\n" % number


def pair(local: int, replicas: int) -> bytes:
    return b"*2\r\n:%d\r\n:%d\r\n" % (local, replicas)


def replies(*frames: bytes) -> bytes:
    return b"*%d\r\n" % len(frames) + b"".join(frames)


def multi(session: Wire, *lines: str) -> bytes:
    """The reply to EXEC."""
    *queued, reply = session.pipeline([["MULTI"], *([*words(line)] for line in lines), ["EXEC"]])
    assert queued == [OK] + [QUEUED] * len(lines), queued
    return reply


def put(side: Side, session: Wire) -> None:
    assert session.call("SET", side.key, "value") == OK
