"""RESP framing: requests in, replies back, as bytes. Pure functions, no I/O; what they know of commands comes to them
as a `ParseTable`.

Lives here: cutting buffers into requests and replies, the limits on both, slots of keys, building and reading single
replies for control, taking a request apart by the slots of its keys and joining replies. May not live here: sockets,
buffers that grow, sessions, which commands are split and which replies joined (the caller says so), any import from
another room.

The hot functions exist twice, in Python (`_python`) and in Cython (`_compiled`, built on installation where there
is a C compiler); `_selected` chooses, and IMPLEMENTATION names the choice. Results and states are the same.

The contract of the hot functions (whatever language they are written in)
-------------------------------------------------------------------------
`parse_requests(buffer, table, state=None) -> (commands, consumed, state)`

- `buffer` is bytes: everything received and not yet consumed. `commands` are tuples (slot, command_id, raw), in order.
- `raw` is always one canonical RESP array request, byte for byte what `encode_request` makes of its arguments: it may
  be sent to a server as it is. Inline requests are re-encoded. Anything a server could refuse as malformed never
  becomes a `raw`.
- `slot >= 0`: the table calls the command PLAIN and its key argument is there; this is the key's slot.
- `slot == CONTROL` (-1): every other command: kinds OTHER and BARRIER, unknown names (command_id UNKNOWN, 0), a PLAIN
  one without its key.
- `slot == LARGE` (-3): any command but a BARRIER whose raw is larger than `limits.large_request`; command_id as usual.
- `slot == BROKEN` (-2): a protocol error. command_id is 0 and `raw` is the message in the engine's words, without '-'
  and CRLF, such as b"ERR Protocol error: invalid bulk length". The engine replies it and closes. `consumed` is then
  the whole buffer.
- Parsing stops behind a command of kind BARRIER, a LARGE one, and for good behind a BROKEN one; `consumed` points
  behind it and the returned state is None. Call again with the rest when control says go on.
- Empty requests (*0, *-1, blank lines) are consumed silently, as the engine does.
- `state` is None if nothing unfinished is left in buffer[consumed:]. Else it is an immutable value, of use only to
  the next call: keep buffer[consumed:], append what arrives, pass both. Nothing scanned is scanned again, whatever
  the pieces; the state's size is constant.
- `state.missing` >= 1: so many further bytes must at least arrive before a call can achieve anything. It is exact for
  an unfinished bulk (its rest and CRLF), so a caller may collect the pieces of a large value and join them once; it
  is 1 while a line is unfinished.
- `state.set_aside() -> (cut, state)`: the first `cut` bytes of the unfinished request will not be looked at again. A
  caller may keep them elsewhere, so that a request of very many arguments is not copied again with every piece that
  arrives: it then passes buffer[consumed + cut:] with the state returned here, and puts what it kept in front of the
  first command's raw. (A BROKEN one's is a message: nothing belongs in front of it.)
- The result does not depend on where the input was split.
- A state that cannot be of this buffer may raise ValueError.

`frame_replies(buffer, state=None, begin=0, end=None) -> (frames, consumed, state)`

- `buffer` may be a bytearray, too: received into once and for all, it need not be allocated again for every read. What
  is looked at is buffer[begin:end], and everything counts from `begin`; an `end` of None is the buffer's.
- `frames` are complete replies as received, RESP2 or RESP3, never decoded. An attribute ('|') and the reply behind it
  are one frame. A push ('>') is a frame of its own. Nesting of any depth works without a stack. Streamed types ($?,
  *?) do not exist: no engine sends them.
- `consumed`, `state`, `missing`: as above; `state.set_aside(size)` too, with the size of buffer[consumed:].
- Raises FramingError (a ValueError) for what is not RESP: close that connection. Its `frames` are the replies in
  front of the garbage. It is raised as soon as the type byte or length is seen to be wrong, or more items
  are announced than any memory holds. The text of lines (numbers, booleans) is not looked at.

`split_keys(raw, step, command_id) -> parts | None`

- `raw` is one request as `parse_requests` reports it. Behind its name each `step` (>= 1) arguments belong together,
  and the first of them is a key.
- `parts` are tuples (slot, command_id, raw) in the order of the keys: requests of the same name for one key each, with
  what belongs to it. Where all keys share one slot there is a single part, `raw` itself.
- None for what a caller has to take apart in another way, or not at all: keys of which only some share a slot, no key,
  a key without all that belongs to it, or bytes that are not exactly one canonical request (nothing is believed).

`join_elements(frames) -> frame | None`, `sum_integers(frames) -> frame | None`

- One reply from a list of them: the array of the elements of arrays that have one element each, in their order; the
  sum of integers.
- None if one of them is anything else: an error, a null, a reply behind an attribute, a number that is negative or of
  more than nine digits.

Where the engines differ, Valkey 9.1 is followed: CR must be followed by LF and bulks by CRLF ("invalid CRLF in
request"; older servers skip two bytes unseen), and quotes may open inside a word of an inline request. See
`split_inline` for the two defects that are not copied.
"""

from proxy.codec import reply
from proxy.codec._python import BROKEN, CONTROL, LARGE, FramingError, ReplyState, RequestState
from proxy.codec._selected import (
    IMPLEMENTATION,
    frame_replies,
    join_elements,
    parse_requests,
    split_keys,
    sum_integers,
)
from proxy.codec.request import decode_request, encode_request, key_slot, split_inline
from proxy.codec.table import BARRIER, OTHER, PLAIN, UNKNOWN, Command, Limits, NameEntry, ParseTable

__all__ = [
    "BARRIER",
    "BROKEN",
    "CONTROL",
    "IMPLEMENTATION",
    "LARGE",
    "OTHER",
    "PLAIN",
    "UNKNOWN",
    "Command",
    "FramingError",
    "Limits",
    "NameEntry",
    "ParseTable",
    "ReplyState",
    "RequestState",
    "decode_request",
    "encode_request",
    "frame_replies",
    "join_elements",
    "key_slot",
    "parse_requests",
    "reply",
    "split_inline",
    "split_keys",
    "sum_integers",
]
