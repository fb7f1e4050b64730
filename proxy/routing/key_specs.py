"""Which arguments of a command are keys, by the engine's key specifications.

The same walk as ``getKeysUsingKeySpecs`` in the engine's ``db.c``, with two differences a router wants: what one spec
cannot tell does not discard what the others told, and shard channels (``not_key``) count, since they hash like keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxy.codec import key_slot
from proxy.routing.command_table import Command, KeySpec


class Keys(NamedTuple):
    """Where the keys of one call stand."""

    indices: tuple[int, ...]
    """Positions in argv, in the engine's order."""
    complete: bool
    """False: the specs say that there may be more (SORT ... STORE, MIGRATE); ``COMMAND GETKEYS`` knows them all."""
    malformed: bool = False
    """True: the arguments contradict the command (a bad numkeys).  Send it anyway: the engine words the error."""

    @property
    def first(self) -> int | None:
        """Position of the key that decides the route, None where there is none."""
        return self.indices[0] if self.indices else None


def extract(command: Command, args: Sequence[bytes]) -> Keys:
    """The keys of ``args``, a call of ``command``.  Raises nothing: see the fields of :class:`Keys`."""
    indices: list[int] = []
    complete = bool(command.key_specs) or b"movablekeys" not in command.flags
    malformed = False
    for spec in command.key_specs:
        if spec.incomplete:
            complete = False
        found = _find(spec, args)
        if found is None:
            malformed = malformed or spec.known
            continue
        indices += found
    return Keys(tuple(indices), complete, malformed)


def first_slot(command: Command, args: Sequence[bytes]) -> int | None:
    """The slot of the first key, None for a call without keys."""
    first = extract(command, args).first
    return None if first is None else key_slot(args[first])


def slots_of(keys: Keys, args: Sequence[bytes]) -> frozenset[int]:
    """All slots that ``keys`` name."""
    return frozenset(key_slot(args[index]) for index in keys.indices)


def span(spec: KeySpec, args: Sequence[bytes]) -> range | None:
    """The positions one spec names; None where they cannot be told (see :func:`extract`); empty without keys."""
    first = _begin(spec, args)
    if first is None:
        return None
    if first == 0:
        return range(0)
    if spec.find == b"range":
        return _range(spec, first, len(args))
    if spec.find == b"keynum":
        return _keynum(spec, first, args)
    return None


def _find(spec: KeySpec, args: Sequence[bytes]) -> range | None:
    found = span(spec, args)
    if found is None or not found:
        return found
    # Beyond the arguments: the call is short, and the engine will say so.
    return found if found[-1] < len(args) else None


def _begin(spec: KeySpec, args: Sequence[bytes]) -> int | None:
    """Where the search begins; 0 where the spec's keyword is not in the call; None where the spec does not know."""
    if spec.begin == b"index":
        return spec.index
    if spec.begin != b"keyword":
        return None
    count = len(args)
    if spec.startfrom > 0:
        places = range(spec.startfrom, count - 1)
    else:
        places = range(count + spec.startfrom, 1, -1)
    keyword = spec.keyword.lower()
    return next((at + 1 for at in places if 1 <= at < count and args[at].lower() == keyword), 0)


def _range(spec: KeySpec, first: int, count: int) -> range | None:
    if spec.lastkey >= 0:
        last = first + spec.lastkey
    elif spec.limit > 1:
        last = first + (count - first) // spec.limit + spec.lastkey
    else:
        last = count + spec.lastkey
    if first >= count or last < first:
        return None
    return range(first, last + 1, spec.keystep)


def _keynum(spec: KeySpec, first: int, args: Sequence[bytes]) -> range | None:
    at = first + spec.keynumidx
    number = strict_integer(args[at]) if at < len(args) else None
    if number is None or number < 0:
        return None
    start = first + spec.firstkey
    if start + (number - 1) * spec.keystep >= len(args):
        return None
    return range(start, start + number * spec.keystep, spec.keystep)


def strict_integer(text: bytes) -> int | None:
    """An integer as the engine's ``string2ll`` reads it (no ``+``, spaces or leading zeros; 64 bits), else None."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and text != b"0"):
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None
