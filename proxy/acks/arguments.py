"""The arguments of WAIT and WAITAOF, checked as the engine checks them, in its order and words.

Source: Valkey 9.1, replication.c (waitCommand, waitaofCommand), object.c (getLongLongFromObject...),
blocked.c (getTimeoutFromObject); each line is held by a test against a live server.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

LONG_MAX = (1 << 63) - 1
_INTEGER = re.compile(rb"-?[1-9][0-9]{0,18}|0")


class Refused(Exception):
    """The engine's error text, without ``-``."""


class Asked(NamedTuple):
    """What a session asked for."""

    local: int
    """WAITAOF's numlocal; 0 for WAIT."""
    replicas: int
    timeout: float | None
    """Seconds; None is for ever."""
    fsync: bool
    """WAITAOF rather than WAIT."""


def parse_wait(args: Sequence[bytes]) -> Asked:
    """``WAIT numreplicas timeout``.  Raises ``Refused``."""
    replicas = _integer(args[1], "value is not an integer or out of range")
    return Asked(0, replicas, _timeout(args[2]), fsync=False)


def parse_waitaof(args: Sequence[bytes]) -> Asked:
    """``WAITAOF numlocal numreplicas timeout``.  Raises ``Refused``."""
    local = _integer(args[1], "value is not an integer or out of range")
    if not 0 <= local <= 1:
        raise Refused("ERR value is out of range, value must between 0 and 1")
    replicas = _integer(args[2], "value is out of range, must be positive")
    if replicas < 0:
        raise Refused("ERR value is out of range, must be positive")
    return Asked(local, replicas, _timeout(args[3]), fsync=True)


def _integer(text: bytes, otherwise: str) -> int:
    if _INTEGER.fullmatch(text):
        value = int(text)
        if -LONG_MAX - 1 <= value <= LONG_MAX:
            return value
    raise Refused(f"ERR {otherwise}")


def _timeout(text: bytes) -> float | None:
    milliseconds = _integer(text, "timeout is not an integer or out of range")
    if milliseconds < 0:
        raise Refused("ERR timeout is negative")
    if milliseconds > LONG_MAX - int(time.time() * 1000):  # the engine adds its clock and must not overflow
        raise Refused("ERR timeout is out of range")
    return milliseconds / 1000 if milliseconds else None
