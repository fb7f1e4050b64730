"""What a transaction has queued: its commands in their order, and whose replies stand at which place of EXEC's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxy.codec import decode_request
from proxy.codec.reply import array, elements, is_error, is_null
from proxy.routing import Command

HEARD = frozenset({b"publish", b"spublish"})
"""No writes, and yet not to be done twice."""


class Extra(NamedTuple):
    """A command whose reply is not, or not only, that of the transaction's shard."""

    command: Command
    args: Sequence[bytes]


class Queued:
    """See the module."""

    def __init__(self) -> None:
        self.raws: list[bytes] = []
        """As they are sent to the shard."""
        self.size = 0
        """Bytes, as they came from the client."""
        self.put_in: dict[int, bytes | None] = {}
        """Places in EXEC's reply that one shard cannot fill, and what the proxy puts there; None until EXEC."""
        self.extras: dict[int, Extra] = {}
        """Places in EXEC's reply that are filled when it has run."""
        self.write = False
        self.heard = False
        """Something is queued that others hear of each time it is done."""
        self.concern = 0
        """The class of write concern of what it writes: the first of those that ask for anything."""
        self.soils = False
        """What is queued leaves the lane's connection another than it was (SELECT, HELLO)."""

    def __len__(self) -> int:
        return len(self.raws)

    def reserve(self, put_in: bool, extra: Extra | None) -> None:
        """The next one's reply is put in by the proxy before EXEC, or is an extra's."""
        if put_in:
            self.put_in[len(self.raws)] = None
        if extra is not None:
            self.extras[len(self.raws)] = extra

    def note(self, command: Command, concern: int) -> None:
        """What kind of command is queued; ``concern`` is its class, should it write."""
        self.heard = self.heard or command.name in HEARD
        if command.counts_as_write:
            self.write = True
            self.concern = min((each for each in (self.concern, concern) if each), default=0)

    def to_put_in(self) -> list[list[bytes]]:
        """The commands whose replies the proxy puts in, in order."""
        return [decode_request(self.raws[at]) for at in self.put_in]

    def filled(self, frame: bytes) -> bytes:
        """EXEC's reply with what the proxy puts in."""
        if not self.put_in or is_error(frame) or is_null(frame):
            return frame
        replies = elements(frame)
        for at, own in self.put_in.items():
            replies[at] = own or replies[at]
        return array(replies)

    def is_to_fill(self, frame: bytes) -> bool:
        """EXEC has run, and some of its places are not filled yet."""
        return bool(self.extras) and not is_error(frame) and not is_null(frame)
