"""The hot functions in pure Python. Everything that decides their speed lives here; the contract stands in the
package docstring.

How the speed is won, and why the code looks as it does:
- Small traffic is cut into lines by one `bytes.split` per window of a few KB, and the lines are then only compared
  with prepared length lines: no number is parsed, no regular expression runs. A value that holds CRLF makes such a
  comparison fail, never succeed wrongly: a line equal to its successor's length line is a bulk of exactly that
  length, ended by CRLF.
- What the comparison does not recognise goes to the general parser, which checks everything and can stop and resume
  at any byte. After one such miss the rest of that window goes there too, so a window is cut at most once and the
  work stays proportional to the input.
- The general parser keeps its place in a small tuple: nothing that was scanned is scanned again.
"""

import re
from binascii import crc_hqx
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

from proxy.codec.request import decode_request, encode_request, key_slot, split_inline
from proxy.codec.table import BARRIER, FAST_WINDOW, LENGTH_LINES, PLAIN, UNKNOWN_ENTRY, Command, NameEntry, ParseTable

CONTROL: Final = -1
BROKEN: Final = -2
LARGE: Final = -3

_FIRST_WINDOW: Final = 2048  # behind a barrier the rest is cut again: begin small
_SMALL_WINDOW: Final = 256  # where the last window did not hold one whole item: large values are about
_COUNT_LINES: Final = {b"*%d" % count: count for count in range(1, FAST_WINDOW // 6 + 1)}

_read_count = re.compile(rb"\*([1-9][0-9]{0,6})\r\n").match
_read_length = re.compile(rb"\$(0|[1-9][0-9]{0,8})\r\n").match

_UNAUTHENTICATED_ARGUMENTS: Final = 10
_UNAUTHENTICATED_BULK: Final = 16384


class FramingError(ValueError):
    """What came is not RESP: the server is not a Redis, or the connection lost its place. Close it.

    `frames` are the complete replies that stood before the garbage: they are answers like any others.
    """

    def __init__(self, message: str, frames: list[bytes] | None = None) -> None:
        super().__init__(message)
        self.frames = frames or []


class RequestState(NamedTuple):
    """Where the parser stands in an unfinished request, in offsets from its first byte. Opaque but for `missing`."""

    missing: int
    """At least so many further bytes must arrive before it is worth calling again."""
    position: int
    """Begin of the line or bulk that is unfinished."""
    searched: int
    """The unfinished line has no line end before this offset."""
    remaining: int
    """Arguments not yet complete; 0 while the first line is."""
    argument: int
    """Index in argv of the unfinished argument."""
    length: int
    """Length of the unfinished bulk, -1 while its length line is unfinished."""
    entry: NameEntry
    slot: int
    ahead: int = 0
    """Bytes of the request that were set aside; offsets count from behind them."""

    def set_aside(self) -> tuple[int, "RequestState"]:
        """How many of the unfinished request's bytes will not be looked at again, and the state without them."""
        cut = self.position
        searched = max(0, self.searched - cut)
        return cut, self._replace(position=0, searched=searched, ahead=self.ahead + cut)


class ReplyState(NamedTuple):
    """Where the framer stands in an unfinished reply, in offsets from its first byte. Opaque but for `missing`."""

    missing: int
    """At least so many further bytes must arrive before it is worth calling again."""
    position: int
    """Begin of the unfinished line, or end of the unfinished bulk, which lies behind the buffer's end."""
    searched: int
    """The unfinished line has no CRLF before this offset."""
    remaining: int
    """Items still to come before the reply is whole."""

    def set_aside(self, size: int) -> tuple[int, "ReplyState"]:
        """How many of the unfinished reply's ``size`` bytes will not be looked at again, and the state without them."""
        cut = max(0, min(self.position, size) - 2)  # the CRLF in front of where it goes on is looked at
        return cut, self._replace(position=self.position - cut, searched=max(0, self.searched - cut))


def parse_requests(
    buffer: bytes, table: ParseTable, state: RequestState | None = None
) -> tuple[list[Command], int, RequestState | None]:
    """Cut requests out of a receive buffer; see the package docstring. Raises nothing: errors are commands, BROKEN."""
    commands: list[Command] = []
    size = len(buffer)
    position = 0
    window = _FIRST_WINDOW
    while position < size:
        window_end = position
        if state is None and table.window:
            window = min(window, table.window)
            position, stopped = _parse_window(buffer, position, window, table, commands)
            if stopped or position == size:
                break
            window, window_end = _next_window(window, position - window_end), window_end + window
        while position < size:
            command, position, state = _parse_one(buffer, position, table, state)
            if state is not None:
                return commands, position, state
            if command is None:
                continue
            commands.append(command)
            if command[0] < CONTROL or (command[0] == CONTROL and command[1] in table.barriers):
                return commands, position, None
            if position >= window_end:
                break
    return commands, position, None


def _next_window(window: int, progress: int) -> int:
    return min(4 * window, FAST_WINDOW) if progress else _SMALL_WINDOW


def _parse_window(
    buffer: bytes, position: int, window: int, table: ParseTable, commands: list[Command]
) -> tuple[int, bool]:
    """Append the ordinary requests at the head of one window; the position behind them, and whether a barrier was met.

    No limit is checked: the table chose the window so that nothing in it can exceed one.
    """
    size = len(buffer)
    chunk = buffer if not position and size <= window else buffer[position : position + window]
    lines = chunk.split(b"\r\n")
    last = len(lines) - 1  # behind the last CRLF: not a whole line
    names = table.names
    length_lines = LENGTH_LINES
    at = 0
    while at < last:
        count_line = lines[at]
        count = _COUNT_LINES.get(count_line)
        if count is None:
            return position, False
        behind = at + count + count + 1
        if behind > last:
            return position, False
        name = lines[at + 2]
        if lines[at + 1] != length_lines[len(name)]:
            return position, False
        command_id, key_index, kind = names.get(name) or names.get(name.lower()) or UNKNOWN_ENTRY
        end = position + len(count_line) + len(lines[at + 1]) + len(name) + 6
        for index in range(at + 4, behind, 2):
            length_line = lines[index - 1]
            length = len(lines[index])
            if length_line != length_lines[length]:
                return position, False
            end += length + len(length_line) + 4
        if kind == 0 and key_index < count:  # PLAIN, spelled as a number for speed
            key = lines[at + 2 + key_index + key_index]
            slot = key_slot(key) if b"{" in key else crc_hqx(key, 0) & 16383
            commands.append((slot, command_id, buffer[position:end]))
        else:
            commands.append((CONTROL, command_id, buffer[position:end]))
            if kind == BARRIER:
                return end, True
        position = end
        at = behind
    return position, False


def _parse_one(
    buffer: bytes, start: int, table: ParseTable, state: RequestState | None
) -> tuple[Command | None, int, RequestState | None]:
    """One request of any kind: (command, position behind it, None), with command None for an empty one.

    (None, start, state) if it is unfinished.
    """
    if state is None or not state.remaining:
        searched = start + state.searched if state else start
        if buffer[start] != 42:  # '*'
            return parse_inline(buffer, start, searched, table)
        if found := _read_count(buffer, start):
            remaining, position = int(found[1]), found.end()
        else:
            outcome = _read_odd_count(buffer, start, searched, table)
            if not isinstance(outcome, int):
                return outcome
            remaining, position = outcome, buffer.index(b"\r", start) + 2
        if problem := _count_problem(remaining, table):
            return broken(buffer, problem)
        if remaining <= 0:
            return None, position, None
        state = RequestState(1, position - start, 0, remaining, 0, -1, UNKNOWN_ENTRY, CONTROL)
    return _parse_arguments(buffer, start, table, state)


def _parse_arguments(
    buffer: bytes, start: int, table: ParseTable, state: RequestState
) -> tuple[Command | None, int, RequestState | None]:
    """Go on with the bulks of a request from where `state` stands."""
    _, position, searched, remaining, index, length, entry, slot, ahead = state
    position += start
    searched += start
    size = len(buffer)
    limits = table.limits
    max_bulk = min(limits.max_bulk, _UNAUTHENTICATED_BULK) if limits.unauthenticated else limits.max_bulk
    key_index = entry[1] if entry[2] == PLAIN else -1
    while remaining:
        if length < 0:
            if found := _read_length(buffer, position):
                length = int(found[1])
                begin = found.end()
            else:
                line_end = _find_line_end(buffer, position, max(searched, position), limits.max_inline)
                if problem := _length_line_problem(buffer, position, line_end):
                    return broken(buffer, problem)
                if line_end < 0:
                    position -= start
                    searched = _searched(buffer, start)
                    return None, start, RequestState(1, position, searched, remaining, index, -1, entry, slot, ahead)
                length = _number(buffer[position + 1 : line_end], -1)
                begin = line_end + 2
            if not 0 <= length <= max_bulk:
                return broken(buffer, _length_problem(length, table))
            position = begin
        end = position + length
        if size < end + 2:
            position -= start
            missing = end + 2 - size
            return None, start, RequestState(missing, position, 0, remaining, index, length, entry, slot, ahead)
        if buffer[end] != 13 or buffer[end + 1] != 10:
            return broken(buffer, "invalid CRLF in request")
        if index == 0:
            entry = table.find(buffer[position:end]) if length <= table.longest else UNKNOWN_ENTRY
            key_index = entry[1] if entry[2] == PLAIN else -1
        elif index == key_index:
            slot = key_slot(buffer[position:end])
        position = end + 2
        length = -1
        index += 1
        remaining -= 1
    return _finish(buffer[start:position], entry, slot, table, ahead), position, None


def _finish(raw: bytes, entry: NameEntry, slot: int, table: ParseTable, ahead: int = 0) -> Command:
    if ahead + len(raw) > table.limits.large_request and entry[2] != BARRIER:
        slot = LARGE
    return slot, entry[0], raw


def parse_inline(
    buffer: bytes, start: int, searched: int, table: ParseTable
) -> tuple[Command | None, int, RequestState | None]:
    """A request typed as a line (engine: networking.c, the inline protocol), or its state; `searched` is an offset of
    the buffer. Both implementations use it: nobody in a hurry types.
    """
    max_inline = table.limits.max_inline
    newline = buffer.find(b"\n", searched, start + max_inline + 1)
    if newline < 0:
        size = len(buffer) - start
        if size > max_inline:
            return broken(buffer, "too big inline request")
        return None, start, RequestState(1, 0, size, 0, 0, -1, UNKNOWN_ENTRY, CONTROL)
    line_end = newline - 1 if newline > start and buffer[newline - 1] == 13 else newline
    arguments = split_inline(buffer[start:line_end])
    if arguments is None:
        return broken(buffer, "unbalanced quotes in request")
    if not arguments:
        return None, newline + 1, None
    entry = table.find(arguments[0])
    slot = key_slot(arguments[entry[1]]) if entry[2] == PLAIN and entry[1] < len(arguments) else CONTROL
    return _finish(encode_request(arguments), entry, slot, table), newline + 1, None


def _find_line_end(buffer: bytes, begin: int, searched: int, max_inline: int) -> int:
    """Offset of the CR that ends a length line; -1: it or the byte behind it is not there yet; -2: the line is too
    long.
    """
    line_end = buffer.find(b"\r", searched, begin + max_inline + 1)
    if line_end < 0:
        return -2 if len(buffer) - begin > max_inline else -1
    return line_end if line_end + 1 < len(buffer) else -1


def _searched(buffer: bytes, start: int) -> int:
    """How far a search for the CR of an unfinished line came; a CR without its successor is to be found again."""
    return len(buffer) - start - (buffer[-1] == 13)


def _read_odd_count(
    buffer: bytes, start: int, searched: int, table: ParseTable
) -> int | tuple[None, int, RequestState] | tuple[Command, int, None]:
    """A first line that is not simply a positive number: its count, or why there is none (yet)."""
    line_end = _find_line_end(buffer, start, searched, table.limits.max_inline)
    if line_end == -2:
        return broken(buffer, "too big mbulk count string")
    if line_end < 0:
        return None, start, RequestState(1, 0, _searched(buffer, start), 0, 0, -1, UNKNOWN_ENTRY, CONTROL)
    if buffer[line_end + 1] != 10:
        return broken(buffer, "invalid CRLF in request")
    return _number(buffer[start + 1 : line_end], _TOO_MANY)


_TOO_MANY: Final = 1 << 63  # stands for "not a number": both are an invalid length


def _number(text: bytes, otherwise: int) -> int:
    """A number as strict as the engine's string2ll (util.c): no sign but '-', no leading zero, 64 bits."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19 or (digits[0] == 48 and text != b"0"):
        return otherwise
    value = int(text)
    return value if -_TOO_MANY <= value < _TOO_MANY else otherwise


def _count_problem(count: int, table: ParseTable) -> str:
    if count > table.limits.max_arguments:
        return "invalid multibulk length"
    if count > _UNAUTHENTICATED_ARGUMENTS and table.limits.unauthenticated:
        return "unauthenticated multibulk length"
    return ""


def _length_line_problem(buffer: bytes, begin: int, line_end: int) -> str:
    if line_end == -2:
        return "too big bulk count string"
    if line_end < 0:
        return ""
    if buffer[begin] != 36:  # '$'
        return f"expected '$', got '{chr(buffer[begin])}'"
    return "" if buffer[line_end + 1] == 10 else "invalid CRLF in request"


def _length_problem(length: int, table: ParseTable) -> str:
    valid = 0 <= length <= table.limits.max_bulk
    return "unauthenticated bulk length" if valid else "invalid bulk length"


def broken(buffer: bytes, problem: str) -> tuple[Command, int, None]:
    """The command that reports a protocol error, in the form that `_parse_one` returns."""
    text = problem.replace("\r", " ").replace("\n", " ").encode("latin-1")
    return (BROKEN, 0, b"ERR Protocol error: " + text), len(buffer), None


# --- replies

_LINE_KINDS: Final = frozenset(b"+-:_,#(")
_BULK_KINDS: Final = frozenset(b"$!=")
_ARRAY_KINDS: Final = frozenset(b"*~>")
_KINDS: Final = _LINE_KINDS | _BULK_KINDS | _ARRAY_KINDS | frozenset(b"%|")
_LINES: Final = frozenset((b"+", b":", b"-", b"_", b",", b"#", b"("))
_MAX_LENGTH_LINE: Final = 24  # type, 19 digits, CRLF: longer is no length
MAX_ITEMS: Final = 1 << 60  # to come in one reply: no memory holds them, and sums of such numbers fit 64 bits
_PUSH: Final = ord(">")


def frame_replies(
    buffer: bytes | bytearray, state: ReplyState | None = None, begin: int = 0, end: int | None = None
) -> tuple[list[bytes], int, ReplyState | None]:
    """Cut replies out of a receive buffer; see the package docstring. Raises FramingError."""
    if not isinstance(buffer, bytes) or begin or end is not None:
        buffer = bytes(memoryview(buffer)[begin:end])
    frames: list[bytes] = []
    size = len(buffer)
    position = 0
    window = _FIRST_WINDOW
    while position < size:
        window_end = position
        if state is None:
            position = _frame_window(buffer, position, window, frames)
            if position == size:
                break
            window, window_end = _next_window(window, position - window_end), window_end + window
        while position < size:
            try:
                behind, state = frame_end(buffer, position, state)
            except FramingError as error:
                error.frames = frames
                raise
            if state is not None:
                return frames, position, state
            frames.append(buffer[position:behind])
            position = behind
            if position >= window_end:
                break
    return frames, position, None


def _frame_window(buffer: bytes, position: int, window: int, frames: list[bytes]) -> int:
    """Append the simple replies (lines, bulks, flat arrays of bulks) at the head of a window; the position behind
    them.
    """
    size = len(buffer)
    chunk = buffer if not position and size <= window else buffer[position : position + window]
    lines = chunk.split(b"\r\n")
    last = len(lines) - 1  # behind the last CRLF: not a whole line
    length_lines = LENGTH_LINES
    at = 0
    while at < last:
        line = lines[at]
        kind = line[:1]
        at += 1
        if kind == b"$":
            length = len(lines[at])
            if line == length_lines[length] and at < last:
                end = position + len(line) + length + 4
                at += 1
            elif line == b"$-1":
                end = position + 5
            else:
                return position
        elif kind in _LINES:
            end = position + len(line) + 2
        elif kind == b"*" and (count := _COUNT_LINES.get(line)):
            behind = at + count + count
            if behind > last:
                return position
            items = lines[at + 1 : behind : 2]
            heads = [length_lines[len(item)] for item in items]
            if lines[at:behind:2] != heads:
                return position
            end = position + len(line) + 2 + sum(map(len, heads)) + sum(map(len, items)) + 4 * count
            at = behind
        else:
            return position
        frames.append(buffer[position:end])
        position = end
    return position


def frame_end(buffer: bytes, start: int, state: ReplyState | None) -> tuple[int, ReplyState | None]:
    """The end of the reply that begins at `start`, of any kind, or the state of an unfinished one.

    A count of the items still to come takes the place of a stack, so nesting of any depth costs nothing.
    """
    size = len(buffer)
    position, searched, remaining = start, start, 1
    if state is not None:
        position, searched, remaining = start + state.position, start + state.searched, state.remaining
        if position > size:
            return 0, state._replace(missing=position - size)
        if position > start and buffer[position - 2 : position] != b"\r\n":
            refuse(position - 2, "a bulk does not end with CRLF")
    while remaining:
        line_end = buffer.find(b"\r\n", max(position, searched))
        if line_end < 0:
            _check_unfinished_line(buffer, position)
            searched = max(size - 1, position)
            return 0, ReplyState(1, position - start, searched - start, remaining)
        kind = buffer[position]
        behind = line_end + 2
        if kind in _LINE_KINDS:
            position = behind
            remaining -= 1
            continue
        count = _reply_length(buffer, position, line_end)
        if kind in _BULK_KINDS:
            remaining -= 1
            position = behind
            if count >= 0:
                position += count + 2
                if position > size:
                    return 0, ReplyState(position - size, position - start, 0, remaining)
                if buffer[position - 2] != 13 or buffer[position - 1] != 10:
                    refuse(position - 2, "a bulk does not end with CRLF")
        else:
            if kind == _PUSH and position != start:
                refuse(position, "a push inside another reply")
            remaining += _items(kind, count) - 1
            if remaining > MAX_ITEMS:
                refuse(position, "too many items")
            position = behind
    return position, None


def _items(kind: int, count: int) -> int:
    if kind in _ARRAY_KINDS:
        return max(count, 0)
    # An attribute's own reply comes behind it.
    return 2 * count + (kind == 124)  # '|'


def _reply_length(buffer: bytes, position: int, line_end: int) -> int:
    """The number of a length line; -1 for the nulls of RESP2, $-1 and *-1."""
    kind = buffer[position]
    if kind not in _KINDS:
        refuse(position, "no RESP type")
    text = buffer[position + 1 : min(line_end, position + _MAX_LENGTH_LINE)]
    if text.isdigit() and len(text) < 19:
        return int(text)
    if text != b"-1" or kind not in b"$*":
        refuse(position, "no length")
    return -1


def _check_unfinished_line(buffer: bytes, position: int) -> None:
    """Refuse a line that cannot become RESP any more, rather than wait for its end."""
    if position >= len(buffer):
        return
    if buffer[position] not in _KINDS:
        refuse(position, "no RESP type")
    if buffer[position] not in _LINE_KINDS and len(buffer) - position > _MAX_LENGTH_LINE:
        refuse(position, "no length")


def refuse(position: int, problem: str, frames: list[bytes] | None = None) -> NoReturn:
    """Raise FramingError: what begins at this offset of the buffer is not RESP."""
    raise FramingError(f"{problem} at byte {position}: the server's answer is not the Redis protocol", frames)


# --- multi-key requests and their replies

_ONE_ELEMENT: Final = b"*1\r\n"
_is_count = re.compile(rb":[0-9]{1,9}\r\n").fullmatch


def split_keys(raw: bytes, step: int, command_id: int) -> list[Command] | None:
    """Take a request apart, one part a key; see the package docstring. Raises ValueError for a step below 1."""
    if step < 1:
        raise ValueError("a key takes at least one argument")
    try:
        arguments = decode_request(raw)
    except ValueError:
        return None
    if len(arguments) <= step or (len(arguments) - 1) % step:
        return None
    slots = [key_slot(key) if b"{" in key else crc_hqx(key, 0) & 16383 for key in arguments[1::step]]
    distinct = len(set(slots))
    if distinct == 1:
        return [(slots[0], command_id, raw)]
    if distinct < len(slots):
        return None
    name, *bulks = [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    head = b"*%d\r\n%b" % (1 + step, name)
    bodies = bulks if step == 1 else [b"".join(bulks[at : at + step]) for at in range(0, len(bulks), step)]
    return [(slot, command_id, head + body) for slot, body in zip(slots, bodies, strict=True)]


def join_elements(frames: Sequence[bytes]) -> bytes | None:
    """One array from arrays of one element each; see the package docstring."""
    if not all(frame.startswith(_ONE_ELEMENT) for frame in frames):
        return None
    return b"*%d\r\n%b" % (len(frames), b"".join([frame[4:] for frame in frames]))


def sum_integers(frames: Sequence[bytes]) -> bytes | None:
    """The sum of integers; see the package docstring."""
    if not all(map(_is_count, frames)):
        return None
    return b":%d\r\n" % sum([int(frame[1:-2]) for frame in frames])
