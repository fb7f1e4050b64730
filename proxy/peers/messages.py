"""Messages between proxies: sealed with a shared secret, and each taken once.

A message is ``<HMAC-SHA256 of the rest, 64 hexadecimal digits> <JSON>`` (RFC 2104).  Whoever may use the cluster may
publish on the channel; who does not have the secret cannot make a message.  One that was seen before cannot be used
again: it carries the time, and a number that rises with every message of its sender.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

SIGNED = 64  # bytes of the seal
LARGEST = 16 << 10  # bytes of a message; what is larger is nobody's
WINDOW = 10.0
"""Seconds by which the clocks of two proxies, and the way of a message, may differ."""
MOST_SENDERS = 1000  # remembered at a time


class NotAuthentic(Exception):
    """Not sealed with our secret."""


class OutOfTime(Exception):
    """Authentic, and too old or from the future: a repetition, or a clock that is wrong."""


class Message(msgspec.Struct, frozen=True):
    """``sender`` is a proxy's own name for itself, drawn anew at each start; ``at`` its wall clock in seconds."""

    sender: str
    at: float
    number: int
    topics: dict[str, Any]
    """What each room has to tell."""
    ask: bool = False
    """Everybody is to say what it has to tell."""
    confirm: bool = False
    """Everybody is to say that it has done what follows from this."""
    confirmed: dict[str, int] = {}
    """Sender -> the number of its message that this proxy has done what follows from."""


def derive(secret: str) -> bytes:
    """The key of the seal, from a shared secret: a password is used for nothing else directly."""
    return hmac.digest(secret.encode(), b"ackgate peers", hashlib.sha256)


def seal(message: Message, key: bytes) -> bytes:
    body = msgspec.json.encode(message)
    return hmac.digest(key, body, hashlib.sha256).hex().encode() + b" " + body


class Reader:
    """Opens messages, each once.  ``own`` is this proxy's name for itself, whose messages are nobody else's."""

    def __init__(self, key: bytes, own: str) -> None:
        self._key = key
        self._own = own
        self._numbers: dict[str, tuple[float, int]] = {}
        """Sender -> when it was last heard, on the wall clock, and the number of its last message."""

    @property
    def remembered(self) -> int:
        """Of how many senders it is known what they said last."""
        return len(self._numbers)

    def open(self, data: bytes, now: float) -> Message | None:
        """The message; None for one that was taken before, and for one's own.

        ``now``: the wall clock in seconds.  Raises ``NotAuthentic``, ``OutOfTime``.
        """
        signed, _, body = data.partition(b" ")
        wanted = hmac.digest(self._key, body, hashlib.sha256).hex().encode()
        if len(data) > LARGEST or not hmac.compare_digest(signed, wanted):
            raise NotAuthentic
        try:
            message = msgspec.json.decode(body, type=Message)
        except msgspec.MsgspecError:
            raise NotAuthentic from None  # of another version, in a form that is not ours
        if not abs(now - message.at) <= WINDOW:
            raise OutOfTime(f"{message.at - now:+.1f} s")
        if message.sender == self._own or not self._is_new(message, now):
            return None
        return message

    def _is_new(self, message: Message, now: float) -> bool:
        _, last = self._numbers.get(message.sender, (0.0, -1))
        if message.number <= last:
            return False
        if message.sender not in self._numbers and len(self._numbers) >= MOST_SENDERS:
            self._forget(now)
        self._numbers[message.sender] = max(now, message.at), message.number
        return True

    def _forget(self, now: float) -> None:
        """Those whose messages are too old to be taken by now."""
        self._numbers = {name: heard for name, heard in self._numbers.items() if now - heard[0] <= 2 * WINDOW}


def numbers_of(confirmed: Mapping[str, int], sender: str) -> int:
    """Up to which number of ``sender``'s messages was confirmed; -1: none."""
    return confirmed.get(sender, -1)
