"""Glob patterns as the engine matches them (util.c: stringmatchlen): of PSUBSCRIBE, PUBSUB CHANNELS, KEYS.

A pattern is cut at its stars into pieces of fixed length, each found behind the one before it: the first place is as
good as any, so that no pattern takes longer than its length times that of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_ANY = b"(?s:.)"
_NOTHING = b"(?!)"


def glob(pattern: bytes) -> Callable[[bytes], bool]:
    """Whether a text matches ``pattern``, as a function of the text."""
    pieces = _pieces(pattern)
    first, *rest = [(re.compile(b"".join(piece)), len(piece)) for piece in pieces]
    if not rest:
        return lambda text: first[0].fullmatch(text) is not None
    *middle, last = rest

    def matches(text: bytes) -> bool:
        at, end = first[1], len(text) - last[1]
        if not text:
            return False  # as the engine: not even * matches it
        if first[0].match(text) is None or end < at or last[0].match(text, end) is None:
            return False
        for piece, _ in middle:
            found = piece.search(text, at, end)
            if found is None:
                return False
            at = found.end()
        return True

    return matches


def literal_prefix(pattern: bytes) -> bytes:
    """What every text that matches begins with, as far as it stands there plainly."""
    found = re.search(rb"[*?\[\\]", pattern)
    return pattern if found is None else pattern[: found.start()]


def _pieces(pattern: bytes) -> list[list[bytes]]:
    """What stands between the stars: for each byte of the text an expression."""
    pieces: list[list[bytes]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            pieces.append([])
        elif char == b"?":
            pieces[-1].append(_ANY)
        elif char == b"[":
            expression, at = _set(pattern, at)
            pieces[-1].append(expression)
        else:
            if char == b"\\" and at < len(pattern):
                char = pattern[at : at + 1]
                at += 1
            pieces[-1].append(re.escape(char))
    return pieces


def _set(pattern: bytes, at: int) -> tuple[bytes, int]:
    """``[a-z]``, from behind its bracket: the expression, and the position behind it.  One left open ends there."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members = bytearray()
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            members.append(pattern[at + 1])
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members += bytes(range(low, high + 1))
            at += 3
        else:
            members.append(pattern[at])
            at += 1
    at += 1
    if not members:
        return (_ANY if negated else _NOTHING), at
    listed = b"".join(b"\\x%02x" % byte for byte in sorted(set(members)))
    return b"[%b%b]" % (b"^" if negated else b"", listed), at
