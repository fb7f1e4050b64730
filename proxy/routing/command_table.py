"""The command table: what the live server's ``COMMAND`` reply says of every command.

Nothing here is known by heart but the handful of names the engine's hints cannot describe (commands that change the
state of the connection they run on); a new command, or a module's, is routed by its own hints.

Sources: the ``COMMAND`` page (https://valkey.io/commands/command/), key specifications
(https://valkey.io/topics/key-specs/), command tips (https://valkey.io/topics/command-tips/) and the engine's
``server.c`` for look-up and the texts of errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.codec import BARRIER, OTHER, PLAIN, Limits, ParseTable
from proxy.codec.reply import error

SCRIPTING = b"@scripting"

# They act on the connection they run on, or on slots the cluster itself is moving: a shared lane must never see them by
# the fast way, whatever their key specs say.
CONNECTION_BOUND = frozenset(
    {b"watch", b"ssubscribe", b"sunsubscribe", b"subscribe", b"psubscribe", b"monitor", b"migrate"}
)

# The engine never replicates these in cluster mode, so no acknowledgment could ever cover them.
NEVER_WRITES = frozenset({b"script", b"publish", b"spublish"})

_SHOWN = 128  # bytes of a client's words repeated in an error (server.c, commandCheckExistence)
_NEWLINES = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class KeySpec:
    """Where a command's keys stand: how to find the first, and how to go on from it.

    ``begin`` is ``b"index"``, ``b"keyword"`` or ``b"unknown"``; ``find`` is ``b"range"``, ``b"keynum"`` or
    ``b"unknown"``. The other fields carry the names the engine gives them and are 0 or empty where they do not apply.
    """

    begin: bytes
    find: bytes
    flags: frozenset[bytes] = frozenset()
    index: int = 0
    keyword: bytes = b""
    startfrom: int = 0
    lastkey: int = 0
    keystep: int = 1
    limit: int = 0
    keynumidx: int = 0
    firstkey: int = 0

    @property
    def known(self) -> bool:
        """Whether the spec names positions at all."""
        return self.begin != b"unknown" and self.find != b"unknown"

    @property
    def incomplete(self) -> bool:
        """Whether there may be keys the spec does not find."""
        return not self.known or b"incomplete" in self.flags


@dataclass(frozen=True, slots=True)
class Command:
    """One command or subcommand.  ``name`` is the engine's full name in lower case: ``b"get"``, ``b"config|get"``.

    ``arity`` counts the name (and subcommand): exact when positive, at least ``-arity`` when negative.
    """

    id: int
    name: bytes
    arity: int
    flags: frozenset[bytes]
    categories: frozenset[bytes]
    tips: tuple[bytes, ...]
    key_specs: tuple[KeySpec, ...]
    subcommands: Mapping[bytes, Command] = field(default_factory=dict)
    request_policy: bytes | None = None
    response_policy: bytes | None = None

    @property
    def is_write(self) -> bool:
        return b"write" in self.flags

    @property
    def is_readonly(self) -> bool:
        """Changes nothing, so that it may safely be sent twice."""
        return b"readonly" in self.flags

    @property
    def is_blocking(self) -> bool:
        return b"blocking" in self.flags

    @property
    def is_script(self) -> bool:
        """Runs a user's program that may write (EVAL, EVALSHA, FCALL; not their ``_RO`` twins)."""
        return SCRIPTING in self.categories and not self.is_readonly and bool(self.key_specs)

    @property
    def counts_as_write(self) -> bool:
        """Whether a session that sent it has something to WAIT for, whatever the reply was.

        Scripts always count: their errors do not tell what ran before them.
        """
        if self.name.partition(b"|")[0] in NEVER_WRITES:
            return False
        return self.is_write or self.is_script

    @property
    def is_keyed(self) -> bool:
        """Whether the command can name keys (or a shard channel, which hashes like one)."""
        return bool(self.key_specs) or b"movablekeys" in self.flags

    @property
    def has_many_keys(self) -> bool:
        """Whether one call may name several keys, so that a slot on its way may have them apart (TRYAGAIN)."""
        if len(self.key_specs) != 1:
            return self.is_keyed
        spec = self.key_specs[0]
        return spec.find != b"range" or spec.lastkey != 0 or spec.incomplete

    @property
    def fixed_key(self) -> int:
        """Index in argv of the first key where the first key spec fixes it, else 0."""
        if not self.key_specs:
            return 0
        spec = self.key_specs[0]
        if spec.begin != b"index" or spec.find != b"range" or spec.incomplete:
            return 0
        return spec.index


class CommandTable:
    """Every command of the connected engine.  Immutable; a changed engine gives a new table."""

    __slots__ = ("_by_id", "_names", "digest")

    def __init__(self, commands: Iterable[Command], digest: str = "") -> None:
        self._names = {command.name: command for command in commands}
        self._by_id = {each.id: each for each in self}
        self.digest = digest
        """Fingerprint (hex) of the reply: differs when the engine's commands, hints or modules differ."""

    @classmethod
    def from_reply(cls, reply: Sequence[Any], previous: CommandTable | None = None) -> CommandTable:
        """Build the table from a decoded ``COMMAND`` reply (RESP2 or RESP3 values; names as bytes).

        Commands that ``previous`` had keep their ids: requests under way carry them, and ids must not change meaning.
        Raises ValueError when the reply is not one of ``COMMAND``.
        """
        try:
            rows = sorted((_row(entry) for entry in reply), key=lambda row: row[0])
            commands = _Builder({each.name: each.id for each in previous or ()}).build(rows)
        except (IndexError, TypeError, KeyError, AttributeError) as exc:
            raise ValueError("the server's COMMAND reply cannot be read: is it Valkey or Redis 7.2 or newer?") from exc
        return cls(commands, hashlib.sha256(repr(rows).encode()).hexdigest())

    def __iter__(self) -> Iterator[Command]:
        """All commands, subcommands included."""
        for command in self._names.values():
            yield command
            yield from command.subcommands.values()

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, full_name: bytes) -> Command | None:
        """The command of a full name, ``b"config|get"``, in any case."""
        name, _, sub = full_name.lower().partition(b"|")
        command = self._names.get(name)
        if command is None or not sub:
            return command
        return command.subcommands.get(sub)

    def by_id(self, command_id: int) -> Command | None:
        """The command that a parse table calls ``command_id``; None for 0 (unknown)."""
        return self._by_id.get(command_id)

    def lookup(self, args: Sequence[bytes]) -> Command | None:
        """The command that ``args`` calls, as the engine looks it up: a container with a second word is its subcommand.

        None where the engine has no such command or subcommand (see :func:`lookup_error`).
        """
        command = self._names.get(args[0].lower())
        if command is None or len(args) == 1 or not command.subcommands:
            return command
        return command.subcommands.get(args[1].lower())

    def is_plain(self, command: Command) -> bool:
        """Whether the data plane may send ``command`` by its first key alone, without asking anybody.

        Everything beyond that first key (other slots, missing arguments) the engine itself refuses in its own words.
        """
        if command.subcommands or command.request_policy is not None or command.is_blocking:
            return False
        return command.fixed_key > 0 and command.name not in CONNECTION_BOUND

    def parse_table(
        self, barriers: Collection[bytes] = (), overrides: Collection[bytes] = (), limits: Limits | None = None
    ) -> ParseTable:
        """The codec's view of the table.

        ``barriers``: names behind which parsing stops.  ``overrides``: names the proxy answers itself (never PLAIN).
        Both in any case, top-level names only.  A barrier the engine does not know gets no entry: it stays unknown.
        """
        stop = {name.lower() for name in barriers}
        own = {name.lower() for name in overrides}
        entries = [
            (command.name, command.id, command.fixed_key, self._kind(command, stop, own))
            for command in self._names.values()
        ]
        return ParseTable(entries, limits) if limits is not None else ParseTable(entries)

    def _kind(self, command: Command, stop: set[bytes], own: set[bytes]) -> int:
        if command.name in stop:
            return BARRIER
        if command.name in own or not self.is_plain(command):
            return OTHER
        return PLAIN


# ---- errors, in the engine's words ---------------------------------------------------------------------------------


def lookup_error(table: CommandTable, args: Sequence[bytes]) -> bytes:
    """The error frame for ``args`` that :meth:`CommandTable.lookup` did not find."""
    container = table.get(args[0]) if b"|" not in args[0] else None
    if container is not None and container.subcommands:
        return unknown_subcommand_error(args)
    return unknown_command_error(args)


def unknown_command_error(args: Sequence[bytes]) -> bytes:
    """``-ERR unknown command ...`` (server.c, commandCheckExistence), byte for byte."""
    shown = b""
    for arg in args[1:]:
        if len(shown) >= _SHOWN:
            break
        shown += b"'%s' " % _c_string(arg)[: _SHOWN - len(shown)]
    return _error(b"ERR unknown command '%s', with args beginning with: %s" % (_c_string(args[0])[:_SHOWN], shown))


def unknown_subcommand_error(args: Sequence[bytes]) -> bytes:
    """``-ERR unknown subcommand ...`` (server.c, commandCheckExistence)."""
    sub = _c_string(args[1])[:_SHOWN]
    return _error(b"ERR unknown subcommand '%s'. Try %s HELP." % (sub, _c_string(args[0]).upper()))


def wrong_arity_error(command: Command) -> bytes:
    """``-ERR wrong number of arguments for '...' command`` (server.c, commandCheckArity)."""
    text = b"wrong number of arguments for '%s' command" % command.name
    if command.name == b"exec":
        # Refused, EXEC ends the transaction all the same, and says so (multi.c, execCommandAbort).
        return _error(b"EXECABORT Transaction discarded because of: " + text)
    return _error(b"ERR " + text)


def check_arity(command: Command, args: Sequence[bytes]) -> bytes | None:
    """The error frame when ``args`` has the wrong length for ``command``, else None."""
    count = len(args)
    if (command.arity > 0 and count != command.arity) or count < -command.arity:
        return wrong_arity_error(command)
    return None


def _c_string(word: bytes) -> bytes:
    # The engine prints arguments with %s, which ends at the first NUL.
    return word.partition(b"\0")[0]


def _error(text: bytes) -> bytes:
    return error(text.translate(_NEWLINES))


# ---- reading the reply ---------------------------------------------------------------------------------------------

_Row = tuple[bytes, int, tuple[bytes, ...], tuple[int, int, int], tuple[bytes, ...], tuple[bytes, ...], Any, Any]


def _row(entry: Sequence[Any]) -> _Row:
    """One entry in a form that does not depend on protocol or on the server's hash order."""
    specs = tuple(_spec_row(spec) for spec in (entry[8] if len(entry) > 8 else ()))
    subs = tuple(sorted((_row(sub) for sub in (entry[9] if len(entry) > 9 else ())), key=lambda row: row[0]))
    legacy = (int(entry[3]), int(entry[4]), int(entry[5]))
    words = [tuple(sorted(_words(entry[at]))) for at in (2, 6)]
    return entry[0].lower(), int(entry[1]), words[0], legacy, words[1], tuple(_words(entry[7])), specs, subs


def _words(values: Iterable[Any]) -> list[bytes]:
    return [value if isinstance(value, bytes) else str(value).encode() for value in values]


def _pairs(value: Any) -> dict[bytes, Any]:
    """A map, which RESP2 gives as a flat list."""
    if isinstance(value, Mapping):
        return dict(value)
    return dict(zip(value[::2], value[1::2], strict=True))


def _spec_row(spec: Any) -> tuple[Any, ...]:
    parts = _pairs(spec)
    begin, find = _pairs(parts[b"begin_search"]), _pairs(parts[b"find_keys"])
    numbers = {**_pairs(begin[b"spec"]), **_pairs(find[b"spec"])}
    flags = tuple(sorted(_words(parts.get(b"flags", ()))))
    return flags, begin[b"type"], find[b"type"], tuple(sorted(numbers.items()))


def _spec(row: tuple[Any, ...]) -> KeySpec:
    flags, begin, find, numbers = row
    values = {name.decode(): value for name, value in numbers if name.decode() in KeySpec.__slots__}
    return KeySpec(begin=begin, find=find, flags=frozenset(flags), **values)


def _legacy_spec(first: int, last: int, step: int) -> tuple[KeySpec, ...]:
    """Modules of older engines give only first key, last key, step."""
    if first <= 0:
        return ()
    lastkey = last if last < 0 else last - first
    return (KeySpec(begin=b"index", find=b"range", index=first, lastkey=lastkey, keystep=max(step, 1)),)


def _policy(tips: Sequence[bytes], kind: bytes) -> bytes | None:
    return next((tip[len(kind) :] for tip in tips if tip.startswith(kind)), None)


class _Builder:
    """Hands out ids in the order of names, so that equal replies give equal ids; ``known`` names keep theirs."""

    def __init__(self, known: Mapping[bytes, int]) -> None:
        self._known = known
        self._last = max(known.values(), default=0)

    def build(self, rows: Iterable[_Row]) -> list[Command]:
        return [self._command(row) for row in rows]

    def _command(self, row: _Row) -> Command:
        name, arity, flags, legacy, categories, tips, specs, subs = row
        own_id = self._known.get(name)
        if own_id is None:
            self._last += 1
            own_id = self._last
        children = self.build(subs)
        return Command(
            id=own_id,
            name=name,
            arity=arity,
            flags=frozenset(flags),
            categories=frozenset(categories),
            tips=tips,
            key_specs=tuple(_spec(spec) for spec in specs) or _legacy_spec(*legacy),
            subcommands={child.name.partition(b"|")[2]: child for child in children},
            request_policy=_policy(tips, b"request_policy:"),
            response_policy=_policy(tips, b"response_policy:"),
        )
