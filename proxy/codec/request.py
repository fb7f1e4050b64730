"""Requests as values: encoding, decoding, inline lines, and the slot of a key. Control uses it; the hot parser is
elsewhere.
"""

from binascii import crc_hqx
from collections.abc import Sequence
from typing import Final

from proxy.codec.table import FAST_WINDOW, LENGTH_LINES

_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_BLANKS: Final = b" \t\n\v\f\r"
_BACKSLASH, _DOUBLE, _SINGLE, _LOWER_X = b"\\\"'x"


def key_slot(key: bytes) -> int:
    """The cluster slot (0..16383) of a key, by its hash tag if it has one (engine: cluster.c keyHashSlot).

    The tag is what stands between the first '{' and the first '}' behind it, unless that is empty. `crc_hqx` with 0
    is the cluster's CRC16.
    """
    opening = key.find(b"{")
    if opening >= 0:
        closing = key.find(b"}", opening + 1)
        if closing > opening + 1:
            key = key[opening + 1 : closing]
    return crc_hqx(key, 0) & 16383


def encode_request(arguments: Sequence[bytes]) -> bytes:
    """A request as the RESP array of bulks that servers read."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def decode_request(raw: bytes) -> list[bytes]:
    """The arguments of one complete RESP array request, such as `parse_requests` reports.

    Raises ValueError if it is not exactly one request.
    """
    if len(raw) <= FAST_WINDOW:
        lines = raw.split(b"\r\n")
        arguments = lines[2:-1:2]
        # Holds only where no argument contains CRLF, which is nearly always.
        whole = lines[0] == b"*%d" % len(arguments) and not lines[-1]
        if whole and lines[1:-1:2] == [LENGTH_LINES[len(argument)] for argument in arguments]:
            return arguments
    return _decode_by_lengths(raw)


def _decode_by_lengths(raw: bytes) -> list[bytes]:
    count, position = _read_head(raw, 0, b"*")
    arguments: list[bytes] = []
    while position < len(raw):
        length, begin = _read_head(raw, position, b"$")
        end = begin + length
        if raw[end : end + 2] != b"\r\n":
            raise ValueError("not a RESP array of bulks")
        arguments.append(raw[begin:end])
        position = end + 2
    if len(arguments) != count:
        raise ValueError("not exactly one RESP request")
    return arguments


def _read_head(raw: bytes, begin: int, kind: bytes) -> tuple[int, int]:
    """The number of a canonical length line, and the position behind it."""
    line_end = raw.index(b"\r\n", begin)
    number = int(raw[begin + 1 : line_end])
    # int() also takes blanks, signs and underscores; a negative length would lead backwards, for ever.
    if number < 0 or raw[begin:line_end] != b"%b%d" % (kind, number):
        raise ValueError("not a RESP array of bulks")
    return number, line_end + 2


def split_inline(line: bytes) -> list[bytes] | None:
    """Split an inline request (without its line end) as the engine does; None if its quotes are unbalanced.

    The rules are Valkey 9.1's (sds.c sdsnsplitargs), measured: blanks are space and \\t \\n \\v \\f \\r, but \\v and
    \\f do not end a word; "..." knows \\xHH, \\n \\r \\t \\b \\a and backslash-anything; '...' knows \\' alone;
    quotes may open and close inside a word (older servers refuse that); a backslash before the line's very last
    character stands for itself. Two defects of it are not copied: it loses the byte 0xff, and never ends a line
    holding a zero byte; here every byte is kept.
    """
    if b'"' not in line and b"'" not in line and b"\v" not in line and b"\f" not in line:
        return line.split()
    arguments: list[bytes] = []
    position = _skip_blanks(line, 0)
    while position < len(line):
        word = _read_word(line, position)
        if word is None:
            return None
        arguments.append(word[0])
        position = _skip_blanks(line, word[1])
    return arguments


def _skip_blanks(line: bytes, position: int) -> int:
    while position < len(line) and line[position] in _BLANKS:
        position += 1
    return position


def _read_word(line: bytes, position: int) -> tuple[bytes, int] | None:
    """One word and the position behind it; None if a quote stays open."""
    word = bytearray()
    quote = 0
    while position < len(line):
        byte = line[position]
        if quote and byte == _BACKSLASH and position + 2 < len(line):
            text, width = _read_escape(line, position, quote)
            word += text
            position += width
            continue
        position += 1
        if quote:
            if byte == quote:
                quote = 0
            else:
                word.append(byte)
        elif byte in (_DOUBLE, _SINGLE):
            quote = byte
        elif byte in b" \t\n\r":
            break
        else:
            word.append(byte)
    return None if quote else (bytes(word), position)


def _read_escape(line: bytes, position: int, quote: int) -> tuple[bytes, int]:
    """What a backslash inside quotes stands for, and how many bytes of the line that takes."""
    escaped = line[position + 1 : position + 2]
    if quote == _SINGLE:
        return (b"'", 2) if escaped == b"'" else (b"\\", 1)
    digits = line[position + 2 : position + 4]
    if escaped[0] == _LOWER_X and len(digits) == 2 and digits[0] in _HEX and digits[1] in _HEX:
        return bytes((int(digits, 16),)), 4
    return _ESCAPES.get(escaped, escaped), 2
