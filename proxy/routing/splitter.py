"""Splitters: multi-key commands taken apart for the data plane, from the raw request, without decoding it.

The same as :mod:`proxy.routing.split`, which decides in every case that is not plain; here stands the frequent one:
a call whose arguments are nothing but keys (MGET, DEL) or keys and values (MSET), each key in a slot of its own.
Then a part is a head and a piece of the request itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from proxy.codec import decode_request, join_elements, split_keys, sum_integers
from proxy.codec.reply import OK
from proxy.routing.command_table import Command
from proxy.routing.split import MULTI_SHARD, Split, split

Taken = tuple[list[tuple[int, int, bytes]], Callable[[Sequence[bytes]], bytes]]
"""Parts as (slot, command id, raw), and what makes one reply of theirs."""
Splitter = Callable[[bytes], "Taken | None"]
Unknown = Callable[[Sequence[bytes]], Collection[int]]
"""Which of the replies leave open whether their part was executed."""
Quick = Callable[[Sequence[bytes]], "bytes | None"]
"""One reply from the replies of parts of one key each; None where one of them is not as expected (an error)."""


def splitter(command: Command, unknown: Unknown) -> Splitter | None:
    """What takes raw requests of ``command`` apart; None for a command whose arguments are of another form.

    The splitter returns None for a call that control has to look at (arguments the engine will refuse).
    """
    spec = command.key_specs[0] if len(command.key_specs) == 1 else None
    if command.request_policy != MULTI_SHARD or spec is None:
        return None
    if (spec.begin, spec.index, spec.find, spec.lastkey, spec.limit) != (b"index", 1, b"range", -1, 0):
        return None
    quick = _QUICK.get(command.response_policy)
    if quick is None or spec.keystep not in (1, 2):
        return None
    return _Splitter(command, spec.keystep, quick, unknown)


def whole(way: Splitter) -> Splitter:
    """A splitter that leaves all that would be more than one part to control."""

    def taken(raw: bytes) -> Taken | None:
        found = way(raw)
        return found if found is not None and len(found[0]) == 1 else None

    return taken


class _Splitter:
    __slots__ = ("_command", "_quick", "_step", "_unknown")

    def __init__(self, command: Command, step: int, quick: Quick, unknown: Unknown) -> None:
        self._command = command
        self._step = step
        self._quick = quick
        self._unknown = unknown

    def __call__(self, raw: bytes) -> Taken | None:
        parts = split_keys(raw, self._step, self._command.id)
        if parts is None:
            return self._any(raw)
        if len(parts) == 1:
            return parts, _only
        return parts, lambda frames: self._quick(frames) or self._join(raw, frames)

    def _any(self, raw: bytes) -> Taken | None:
        """A call that is not of the frequent form: some of its keys share a slot."""
        taken = split(self._command, decode_request(raw))
        if not isinstance(taken, Split):
            return None
        parts = [(part.slot, self._command.id, part.raw) for part in taken.parts]
        return parts, lambda frames: taken.join(frames, self._unknown(frames))

    def _join(self, raw: bytes, frames: Sequence[bytes]) -> bytes:
        """The long way to a reply, which can tell of errors."""
        taken = split(self._command, decode_request(raw))
        assert isinstance(taken, Split)
        return taken.join(frames, self._unknown(frames))


def _only(frames: Sequence[bytes]) -> bytes:
    return frames[0]


def _all_ok(frames: Sequence[bytes]) -> bytes | None:
    return OK if frames.count(OK) == len(frames) else None


_QUICK: dict[bytes | None, Quick] = {None: join_elements, b"agg_sum": sum_integers, b"all_succeeded": _all_ok}
