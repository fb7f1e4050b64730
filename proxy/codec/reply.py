"""Replies as values: builders of frames, and readers of them. For control code; data on its way to a client is never
decoded.

`protocol` is the session's, 2 or 3. The forms are those of the RESP specification
(https://valkey.io/topics/protocol/): what RESP2 has no type for takes the form the engine gives it there (a map
becomes a flat array, a null "$-1", a boolean 0 or 1, a double a bulk).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.codec._python import FramingError, frame_end
from proxy.codec._selected import frame_replies

OK: Final = b"+OK\r\n"
PONG: Final = b"+PONG\r\n"
QUEUED: Final = b"+QUEUED\r\n"
EMPTY_ARRAY: Final = b"*0\r\n"

MAX_DECODE_DEPTH: Final = 1024
"""Nesting that `decode` follows; no engine nests deeper than its scripts may (some hundred)."""

_LINE_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Error:
    """A decoded error reply; `message` is without the leading '-', such as "MOVED 3999 127.0.0.1:6381"."""

    message: str

    @property
    def code(self) -> str:
        """The first word: ERR, MOVED, WRONGTYPE..."""
        return self.message.partition(" ")[0]


def error(text: str | bytes) -> bytes:
    """An error reply; `text` begins with its code ("ERR ..."). Line breaks become spaces (engine: networking.c)."""
    return b"-" + _one_line(text) + b"\r\n"


def simple(text: str | bytes) -> bytes:
    """A simple string; line breaks become spaces."""
    return b"+" + _one_line(text) + b"\r\n"


def _one_line(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return raw.translate(_LINE_BREAKS)


def integer(value: int) -> bytes:
    """An integer."""
    return b":%d\r\n" % value


def bulk(value: bytes | None, protocol: int = 2) -> bytes:
    """A bulk string, or the null of the protocol."""
    if value is None:
        return null(protocol)
    return b"$%d\r\n%b\r\n" % (len(value), value)


def null(protocol: int = 2) -> bytes:
    """The null: "_" in RESP3, the null bulk in RESP2."""
    return b"_\r\n" if protocol >= 3 else b"$-1\r\n"


def null_array(protocol: int = 2) -> bytes:
    """The null of a command that would have answered an array: "*-1" in RESP2."""
    return b"_\r\n" if protocol >= 3 else b"*-1\r\n"


def array(frames: Sequence[bytes]) -> bytes:
    """An array of complete frames."""
    return b"*%d\r\n" % len(frames) + b"".join(frames)


def set_(frames: Sequence[bytes], protocol: int = 2) -> bytes:
    """A set of complete frames; an array in RESP2."""
    return (b"~%d\r\n" if protocol >= 3 else b"*%d\r\n") % len(frames) + b"".join(frames)


def push(frames: Sequence[bytes], protocol: int = 2) -> bytes:
    """An out-of-band message of complete frames; an array in RESP2."""
    return (b">%d\r\n" if protocol >= 3 else b"*%d\r\n") % len(frames) + b"".join(frames)


def map_(pairs: Iterable[tuple[bytes, bytes]], protocol: int = 2) -> bytes:
    """A map of complete frames; a flat array of keys and values in RESP2."""
    flat = [frame for pair in pairs for frame in pair]
    if protocol >= 3:
        return b"%%%d\r\n" % (len(flat) // 2) + b"".join(flat)
    return array(flat)


def boolean(value: bool, protocol: int = 2) -> bytes:
    """A boolean; the integer 1 or 0 in RESP2."""
    if protocol >= 3:
        return b"#t\r\n" if value else b"#f\r\n"
    return integer(int(value))


def double(value: float, protocol: int = 2) -> bytes:
    """A floating point number with the fewest digits that give it back; a bulk in RESP2."""
    text = repr(value).removesuffix(".0").encode()
    return b",%b\r\n" % text if protocol >= 3 else bulk(text)


def verbatim(text: bytes, protocol: int = 2, form: bytes = b"txt") -> bytes:
    """A text to be shown as it is (INFO, CLIENT LIST); a bulk in RESP2. `form` is its three-letter format."""
    if protocol >= 3:
        return b"=%d\r\n%b:%b\r\n" % (len(text) + 4, form, text)
    return bulk(text)


def is_error(frame: bytes) -> bool:
    """Whether a frame is an error, behind attributes too."""
    if frame[:1] == b"|":
        frame = strip_attributes(frame)
    return frame[:1] in (b"-", b"!")


def is_null(frame: bytes) -> bool:
    """Whether a frame is one of the three nulls."""
    return strip_attributes(frame) in (b"$-1\r\n", b"*-1\r\n", b"_\r\n")


def integer_value(frame: bytes) -> int:
    """The value of an integer, a big number or a boolean. Raises ValueError for any other frame."""
    frame = strip_attributes(frame)
    if frame[:1] in (b":", b"("):
        return int(frame[1:-2])
    if frame in (b"#t\r\n", b"#f\r\n"):
        return int(frame == b"#t\r\n")
    raise ValueError(f"expected an integer reply, got {frame[:64]!r}")


def bulk_value(frame: bytes) -> bytes | None:
    """The bytes of a simple, bulk or verbatim string (without its "txt:"), None for a null.

    Raises ValueError for any other frame.
    """
    frame = strip_attributes(frame)
    kind = frame[:1]
    if kind == b"+":
        return frame[1:-2]
    if is_null(frame):
        return None
    if kind in (b"$", b"="):
        begin = frame.index(b"\r\n") + 2
        return frame[begin + 4 * (kind == b"=") : -2]
    raise ValueError(f"expected a string reply, got {frame[:64]!r}")


def elements(frame: bytes) -> list[bytes]:
    """The element frames of an array, set, push or map (keys and values in turn); none for a null array.

    An attribute of an element stays with it. Raises ValueError for a frame that is no aggregate.
    """
    frame = strip_attributes(frame)
    if frame[:1] not in (b"*", b"~", b">", b"%"):
        if frame == b"_\r\n":
            return []
        raise ValueError(f"expected an array reply, got {frame[:64]!r}")
    return frame_replies(frame[frame.index(b"\r\n") + 2 :])[0]


def strip_attributes(frame: bytes) -> bytes:
    """The reply itself, without the attributes in front of it."""
    while frame[:1] == b"|":
        # Read as a map, the attribute ends where the reply it belongs to begins.
        end, _ = frame_end(b"%" + frame[1:], 0, None)
        frame = frame[end:]
    return frame


def decode(frame: bytes) -> Any:
    """The value of a whole frame: int, bytes, None, bool, float, `Error`, list (arrays, sets, pushes) or dict (maps).

    Verbatim strings lose their format, attributes are left out. A map's key that cannot be a dict key (a list, a
    dict) becomes its `repr`. Raises FramingError for what is not exactly one frame, holds a malformed number, or
    nests deeper than MAX_DECODE_DEPTH.
    """
    end, state = frame_end(frame, 0, None) if frame else (0, None)
    if not end or end != len(frame) or state is not None:
        raise FramingError(f"expected exactly one reply, got {frame[:64]!r}")
    levels = [_Level(b"", 1)]
    position = 0
    while levels[0].remaining or len(levels) > 1:
        level = levels[-1]
        if not level.remaining:
            levels.pop()
            level.close_into(levels[-1])
            continue
        line_end = frame.index(b"\r\n", position)
        kind, text = frame[position : position + 1], frame[position + 1 : line_end]
        position = line_end + 2
        level.remaining -= kind != b"|"
        if kind in _LINE_VALUES:
            level.values.append(_line_value(kind, text))
        elif text == b"-1":
            level.values.append(None)
        elif kind in (b"$", b"=", b"!"):
            level.values.append(_bulk(kind, frame[position : position + int(text)]))
            position += int(text) + 2
        else:
            levels.append(_Level(kind, int(text) * (1 + (kind in (b"%", b"|")))))
            if len(levels) > MAX_DECODE_DEPTH:
                raise FramingError(f"a reply nests deeper than {MAX_DECODE_DEPTH} levels")
    return levels[0].values[0]


class _Level:
    """An aggregate while it is read; a list of these takes the place of recursion."""

    __slots__ = ("kind", "remaining", "values")

    def __init__(self, kind: bytes, remaining: int) -> None:
        self.kind = kind
        self.remaining = remaining
        self.values: list[Any] = []

    def close_into(self, outer: "_Level") -> None:
        if self.kind == b"%":
            keys = map(_as_key, self.values[::2])
            outer.values.append(dict(zip(keys, self.values[1::2], strict=True)))
        elif self.kind != b"|":
            outer.values.append(self.values)


def _as_key(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict) else value


_LINE_VALUES: Final[dict[bytes, Callable[[bytes], Any]]] = {
    b"+": bytes,
    b"-": lambda text: Error(_text(text)),
    b":": int,
    b"(": int,
    b",": float,
    b"_": lambda text: None,
    b"#": lambda text: text == b"t",
}


def _line_value(kind: bytes, text: bytes) -> Any:
    try:
        return _LINE_VALUES[kind](text)
    except ValueError:
        raise FramingError(f"malformed number in a reply: {text[:64]!r}") from None


def _bulk(kind: bytes, value: bytes) -> Any:
    if kind == b"!":
        return Error(_text(value))
    return value[4:] if kind == b"=" else value


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
