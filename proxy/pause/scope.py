"""Which calls a pause postpones, and the words of CLIENT PAUSE.

COMMAND does not tell which commands replicate without being writes, so those are named here.  Of scripts the first line
tells, and of functions what they were registered with; what only the engine knows of them is left open.

Source: server.c (processCommand), eval.c (evalGetCommandFlags), script.c (scriptFlagsToCmdFlags),
networking.c (clientCommand).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proxy.codec import split_inline
from proxy.codec.reply import error
from proxy.pause.board import Mode
from proxy.routing import Command
from proxy.routing.key_specs import strict_integer

MAY_REPLICATE = frozenset({b"publish", b"spublish", b"pfcount", b"eval", b"evalsha", b"fcall"})
BY_BODY = frozenset({b"eval", b"eval_ro"})
BY_NAME = frozenset({b"evalsha", b"fcall", b"fcall_ro"})
"""Which program it is, the engine knows.  (One that is not there at all is postponed, too.)"""
SCRIPT_FLAGS = frozenset({b"no-writes", b"allow-oom", b"allow-stale", b"no-cluster", b"allow-cross-slot-keys"})
NO_WRITES = b"no-writes"
SHEBANG = b"#!"
FLAGS = b"flags="
UNPAUSE = b"client|unpause"
LONGEST = (1 << 63) - 1  # milliseconds


class Asked(NamedTuple):
    """CLIENT PAUSE, read."""

    mode: Mode
    seconds: float


def parse(args: Sequence[bytes], now_ms: int, strict: bool) -> Asked | bytes:
    """CLIENT PAUSE ms [WRITE|ALL], or its error frame.

    ``now_ms``: the wall clock, which the engine adds to the timeout.  ``strict``: more words are an error, as in Redis;
    Valkey does not look at any of them then, and pauses all.
    """
    mode = Mode.ALL
    if len(args) > 4 and strict:
        text = b"ERR unknown subcommand or wrong number of arguments for '%b'. Try CLIENT HELP."
        return error(text % args[1][:128])
    if len(args) == 4:
        word = args[3].lower()
        if word not in (b"write", b"all"):
            return error("ERR CLIENT PAUSE mode must be WRITE or ALL")
        mode = Mode.WRITE if word == b"write" else Mode.ALL
    milliseconds = strict_integer(args[2])
    if milliseconds is None:
        return error("ERR timeout is not an integer or out of range")
    if milliseconds < 0:
        return error("ERR timeout is negative")
    if milliseconds > LONGEST - now_ms:
        return error("ERR timeout is out of range")
    return Asked(mode, milliseconds / 1000)


def names_to_stop(commands: Iterable[Command], mode: Mode) -> set[bytes]:
    """Names, of containers for their subcommands, behind which a client is not read while this is paused."""
    if mode is Mode.NONE:
        return set()
    return {command.name.partition(b"|")[0] for command in commands if mode is Mode.ALL or _may_be(command)}


def _may_be(command: Command) -> bool:
    return command.is_write or command.name in MAY_REPLICATE or command.name in BY_BODY or command.name in BY_NAME


def postpones(mode: Mode, command: Command, args: Sequence[bytes]) -> bool | None:
    """Whether a pause postpones this call, EXEC and what it runs aside; None: the engine knows."""
    name = command.name
    if mode is Mode.ALL:
        return name != UNPAUSE
    if mode is Mode.NONE:
        return False
    if name in BY_BODY:
        return by_body(args[1], read_only=name == b"eval_ro")
    if name in BY_NAME:
        return None
    return command.is_write or name in MAY_REPLICATE


def by_body(text: bytes, read_only: bool) -> bool:
    """Whether a script is postponed.  One that declares nothing goes by its command."""
    declared = no_writes(text)
    return not read_only if declared is None else not declared


def no_writes(text: bytes) -> bool | None:
    """Whether a script declares that it writes nothing; None: it declares nothing, or nothing that can be read."""
    line, newline, _ = text.partition(b"\n")
    if not text.startswith(SHEBANG) or not newline:
        return None
    words = split_inline(line)
    if words is None or len(words[0]) == len(SHEBANG):
        return None
    flags: set[bytes] = set()
    for word in words[1:]:
        if not word.startswith(FLAGS):
            return None
        given = word.removeprefix(FLAGS)
        flags.update(given.split(b",") if given else ())
    if not flags <= SCRIPT_FLAGS:
        return None
    return NO_WRITES in flags
