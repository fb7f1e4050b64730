"""Blocking commands as words: whether a call blocks, for how long, and the same call for the time that is left.

What lives here: where a blocking command has its timeout.  What may not: lanes, and what becomes of the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from proxy.routing import Command
from proxy.routing.key_specs import strict_integer

STREAM_OPTIONS = {b"group": 2, b"count": 1, b"claim": 1}
"""How many values follow an option of XREAD and XREADGROUP; all others stand alone."""
STREAMS = frozenset({b"xread", b"xreadgroup"})
TIMEOUT_FIRST = frozenset({b"blmpop", b"bzmpop"})
TIMEOUT_LAST = frozenset({b"blpop", b"brpop", b"bzpopmin", b"bzpopmax", b"blmove", b"brpoplpush"})
LEAST = 0.001  # seconds: 0 would be for ever


class Timeout(NamedTuple):
    """Where the timeout stands among the words of a call, and what it says."""

    at: int
    seconds: float
    """``inf`` for one that never ends."""
    unit: float
    """Seconds that its unit is long."""


def blocks(command: Command, args: Sequence[bytes]) -> bool:
    """Whether this call may block: XREAD and XREADGROUP only with the option BLOCK."""
    if command.name in STREAMS:
        return _block_option(args) is not None
    return command.is_blocking


def _block_option(args: Sequence[bytes]) -> int | None:
    """Where BLOCK stands.

    The options are read as the engine reads them (t_stream.c: xreadCommand): in any order, each with its values,
    which may be called anything, up to STREAMS.
    """
    at = 1
    while at < len(args):
        option = args[at].lower()
        if option in (b"block", b"streams"):
            return at if option == b"block" else None
        at += 1 + STREAM_OPTIONS.get(option, 0)
    return None


def timeout_of(command: Command, args: Sequence[bytes]) -> Timeout | None:
    """The timeout of a call that blocks; None where it cannot be read (the engine will say what is wrong with it)."""
    if command.name in STREAMS:
        option = _block_option(args)
        if option is None or option + 1 >= len(args):
            return None
        milliseconds = strict_integer(args[option + 1])
        return None if milliseconds is None else _timeout(option + 1, milliseconds / 1000, 0.001)
    at = len(args) - 1 if command.name in TIMEOUT_LAST else 1 if command.name in TIMEOUT_FIRST else None
    if at is None:
        return None
    try:
        return _timeout(at, float(args[at]), 1.0)
    except ValueError:
        return None


def _timeout(at: int, seconds: float, unit: float) -> Timeout | None:
    if not 0 <= seconds < math.inf:
        return None
    return Timeout(at, seconds or math.inf, unit)


def with_time_left(args: Sequence[bytes], timeout: Timeout, seconds: float) -> list[bytes]:
    """The words of the call for so many seconds more; those of a call that never ends are left as they are."""
    words = list(args)
    if timeout.seconds < math.inf:
        left = max(seconds, LEAST)
        words[timeout.at] = b"%.3f" % left if timeout.unit == 1.0 else b"%d" % math.ceil(left / timeout.unit)
    return words
