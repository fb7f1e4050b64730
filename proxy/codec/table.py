"""What the request parser knows about commands, and the limits it holds clients to.

A `ParseTable` is an immutable snapshot. Routing builds one from the engine's COMMAND reply and hands it over whole;
nothing a client sends is ever put into it, so it cannot be made to grow.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

PLAIN: Final = 0
"""Kind: one key, at a fixed place, nothing for control to decide: the parser itself computes the slot."""
OTHER: Final = 1
"""Kind: control decides, parsing goes on behind it."""
BARRIER: Final = 2
"""Kind: control decides, and parsing stops behind it until control says go on (MULTI, SELECT, HELLO, AUTH, WAIT...)."""

UNKNOWN: Final = 0
"""The command id of a name that is not in the table."""

Command = tuple[int, int, bytes]
"""(slot or CONTROL/BROKEN/LARGE, command id, raw request)."""

NameEntry = tuple[int, int, int]
"""(command id, index of the key in argv where argv[0] is the name, kind)."""

FAST_WINDOW: Final = 8192
"""Bytes that the pure Python hot loops split at once: larger means more wasted work in front of one large value."""

LENGTH_LINES: Final = tuple(b"$%d" % length for length in range(FAST_WINDOW + 1))
"""The length line of a bulk by its length: one comparison instead of parsing a number."""

UNKNOWN_ENTRY: Final[NameEntry] = (UNKNOWN, 0, OTHER)


class Limits(NamedTuple):
    """What a client may send; sizes are bytes.

    The figures are the engine's: `proto-max-bulk-len` (valkey.conf), PROTO_INLINE_MAX_SIZE (server.h) and the 10
    arguments of 16384 bytes of a session that has not authenticated (networking.c). `max_arguments` is what Redis
    took for most of its life (1024*1024); Valkey 9 raised it to INT_MAX, which serves nobody but an attacker.
    """

    max_arguments: int = 1024 * 1024
    max_bulk: int = 512 * 1024 * 1024
    max_inline: int = 64 * 1024
    large_request: int = 1024 * 1024
    """A request whose raw form is larger than this is reported as LARGE, and is a barrier."""
    unauthenticated: bool = False
    """Hold the client to what the engine takes before AUTH: 10 arguments, bulks of 16384 bytes."""


DEFAULT_LIMITS: Final = Limits()


class ParseTable:
    """Commands by name, and limits.

    `entries` are (name, command id, key index, kind). Names are matched in any case. A later entry replaces an
    earlier one. Raises ValueError for an id that is not positive, an unknown kind, or a PLAIN command whose key index
    is below 1.

    Attributes: `names` maps a name, in lower case and in upper case, to (command id, key index, kind); `limits`;
    `barriers` holds the ids of kind BARRIER. The others (`window`, `longest`) serve the parser.
    """

    __slots__ = ("barriers", "limits", "longest", "names", "window")

    names: dict[bytes, NameEntry]
    limits: Limits
    barriers: frozenset[int]
    longest: int
    window: int

    def __init__(self, entries: Iterable[tuple[bytes, int, int, int]], limits: Limits = DEFAULT_LIMITS) -> None:
        self.names = {}
        for name, command_id, key_index, kind in entries:
            _check_entry(name, command_id, key_index, kind)
            self.names[name.lower()] = self.names[name.upper()] = (command_id, key_index, kind)
        self.barriers = frozenset(command_id for command_id, _, kind in self.names.values() if kind == BARRIER)
        self.longest = max(map(len, self.names), default=0)
        self._set_limits(limits)

    def with_limits(self, limits: Limits) -> "ParseTable":
        """The same commands under other limits; the names are shared, not copied."""
        table = ParseTable.__new__(ParseTable)
        table.names, table.barriers, table.longest = self.names, self.barriers, self.longest
        table._set_limits(limits)
        return table

    def find(self, name: bytes) -> NameEntry:
        """The entry of a name in any case; (UNKNOWN, 0, OTHER) if there is none."""
        names = self.names
        return names.get(name) or names.get(name.lower()) or UNKNOWN_ENTRY

    def _set_limits(self, limits: Limits) -> None:
        self.limits = limits
        # The hot loop checks no limit: it may look only at windows in which nothing can exceed one.
        tight = limits.unauthenticated or limits.max_arguments < FAST_WINDOW
        self.window = 0 if tight else min(FAST_WINDOW, limits.max_bulk, limits.max_inline, limits.large_request)


def _check_entry(name: bytes, command_id: int, key_index: int, kind: int) -> None:
    if command_id <= UNKNOWN:
        raise ValueError(f"command id of {name!r} is {command_id}: ids start at 1, 0 stands for an unknown command")
    if kind not in (PLAIN, OTHER, BARRIER):
        raise ValueError(f"kind of {name!r} is {kind}: use PLAIN, OTHER or BARRIER")
    if kind == PLAIN and key_index < 1:
        raise ValueError(f"key index of {name!r} is {key_index}: a PLAIN command has its key at 1 or later")
