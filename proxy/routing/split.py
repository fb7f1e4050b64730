"""Multi-key commands over several shards: one call becomes one part for each slot, the replies become one again.

Which commands are split, where their keys stand and how replies combine is read from the engine's hints (request policy
``multi_shard``, the key spec's step, the response policy).  Atomicity is kept where the engine could keep it: a call
whose keys share one slot goes whole.

Source: command tips (https://valkey.io/topics/command-tips/).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.codec import key_slot
from proxy.codec.reply import array, elements, error, is_error
from proxy.routing.aggregate import POLICIES
from proxy.routing.command_table import Command, wrong_arity_error
from proxy.routing.guard import guarded
from proxy.routing.key_specs import span

MULTI_SHARD = b"multi_shard"

# Options that make a write depend on keys of other parts: "all or none" cannot be kept over shards.
CONDITIONS = frozenset({b"nx", b"xx"})

UNCONFIRMED = b"-UNCONFIRMED "
"""An error of the proxy's own: the part was written, and is not acknowledged as it should be."""
OUTCOME_UNKNOWN = b"outcome unknown\r\n"
"""How the gravest of them ends: it goes before the others."""

SHOWN_KEYS = 16
SHOWN_BYTES = 64
"""A partial failure names so many keys, each cut to so many bytes."""


class Part(NamedTuple):
    """The keys of one slot."""

    slot: int
    raw: bytes
    """The request for that slot."""
    positions: tuple[int, ...]
    """Which keys of the call they are: 0 for the first key, ascending."""


@dataclass(frozen=True, slots=True)
class Split:
    """A call taken apart.  Parts are in the order of their first keys."""

    command: Command
    keys: tuple[bytes, ...]
    parts: tuple[Part, ...]

    def join(self, frames: Sequence[bytes], unknown: Collection[int] = ()) -> bytes:
        """One reply from the parts' replies (same order as ``parts``).

        ``unknown``: indices of parts whose error does not mean that nothing was written (the connection broke after
        the request was sent); their keys are reported as such.
        """
        failed = [at for at, frame in enumerate(frames) if is_error(frame)]
        if failed and self.command.is_write:
            unwritten = [at for at in failed if not frames[at].startswith(UNCONFIRMED)]
            if not unwritten:
                return max((frames[at] for at in failed), key=lambda frame: frame.endswith(OUTCOME_UNKNOWN))
            return self._partial(frames, unwritten, unknown, [at for at in failed if at not in unwritten])
        if failed:
            return frames[failed[0]]
        if self.command.response_policy is not None:
            # Errors are dealt with above, so the protocol (of a null, say) never matters here.
            return POLICIES[self.command.response_policy](frames, 2)
        return self._in_key_order(frames)

    def _in_key_order(self, frames: Sequence[bytes]) -> bytes:
        ordered: list[bytes] = [b""] * len(self.keys)
        for part, frame in zip(self.parts, frames, strict=True):
            items = elements(frame)
            if len(items) != len(part.positions):
                return error("ERR a shard answered with another number of elements than keys asked for")
            for position, item in zip(part.positions, items, strict=True):
                ordered[position] = item
        return array(ordered)

    def _partial(
        self, frames: Sequence[bytes], failed: Sequence[int], unknown: Collection[int], unconfirmed: Sequence[int]
    ) -> bytes:
        first = frames[failed[0]]
        unsure = [at for at in failed if at in unknown]
        if len(failed) == len(frames) and len(unsure) in (0, len(frames)):
            return first  # nothing partial about it
        total = len(self.keys)
        facts = [
            _keys_text(self._keys_of(at for at in failed if at not in unknown), total, "not written"),
            _keys_text(self._keys_of(unsure), total, "of unknown outcome"),
            _keys_text(self._keys_of(unconfirmed), total, "not acknowledged"),
        ]
        code, text = _error_words(first)
        return error(b"%s partial write: %s: %s" % (code, b", ".join(fact for fact in facts if fact), text))

    def _keys_of(self, parts: Iterable[int]) -> list[bytes]:
        chosen = set(parts)
        positions = sorted(at for index, part in enumerate(self.parts) if index in chosen for at in part.positions)
        return [self.keys[at] for at in positions]


def split(command: Command, args: Sequence[bytes]) -> Split | bytes | None:
    """How the call ``args`` of ``command`` goes to several shards.

    None: it goes whole to the slot of its first key (one slot, not a command that may be split, a condition over all
    keys, or arguments for the engine to refuse: it says CROSSSLOT or what else is wrong).
    bytes: the error frame to answer at once (a key without its value: the engine, asked for one part, could not see
    it).
    """
    if command.request_policy != MULTI_SHARD or len(command.key_specs) != 1:
        return None
    spec = command.key_specs[0]
    places = span(spec, args)
    if not places or (spec.find == b"keynum" and spec.begin != b"index"):
        return None
    end = places[-1] + spec.keystep
    if end > len(args):
        return wrong_arity_error(command) if spec.find == b"range" else None
    by_slot: dict[int, list[int]] = {}
    for position, at in enumerate(places):
        by_slot.setdefault(key_slot(args[at]), []).append(position)
    tail = args[end:]
    if len(by_slot) == 1 or not CONDITIONS.isdisjoint(word.lower() for word in tail):
        return None
    head = list(args[: places[0]])
    count_at = spec.index + spec.keynumidx if spec.find == b"keynum" else None
    parts = []
    for slot, positions in by_slot.items():
        if count_at is not None:
            head[count_at] = b"%d" % len(positions)
        body = [args[places[at] + offset] for at in positions for offset in range(spec.keystep)]
        parts.append(Part(slot, guarded(command, [*head, *body, *tail]), tuple(positions)))
    return Split(command, tuple(args[at] for at in places), tuple(parts))


def _keys_text(keys: Sequence[bytes], total: int, what: str) -> bytes:
    if not keys:
        return b""
    shown = b", ".join(_quoted(key) for key in keys[:SHOWN_KEYS])
    more = b" and %d more" % (len(keys) - SHOWN_KEYS) if len(keys) > SHOWN_KEYS else b""
    return b"%d of %d keys %s (%s%s)" % (len(keys), total, what.encode(), shown, more)


def _quoted(key: bytes) -> bytes:
    shown = key[:SHOWN_BYTES]
    text = "".join(_escaped(byte) for byte in shown)
    return b'"%s%s"' % (text.encode(), b"..." if len(key) > SHOWN_BYTES else b"")


def _escaped(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"


def _error_words(frame: bytes) -> tuple[bytes, bytes]:
    """An error frame as its code and its text."""
    line = frame[1:].rstrip(b"\r\n") if frame[:1] == b"-" else frame.partition(b"\r\n")[2].rstrip(b"\r\n")
    code, _, text = line.partition(b" ")
    return code, text
