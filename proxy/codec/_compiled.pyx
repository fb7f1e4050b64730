# cython: language_level=3
"""The hot functions in Cython: the contract of the package docstring and, state by state, the results of
`_python`. Its states and its FramingError are used, so either implementation may go on where the other stopped.

May not live here: anything a profile does not show. Inline requests and the words of errors are left to the Python
that knows them.

Some facts the code relies on:
- Offsets and lengths are int64_t. Numbers off the wire are bounded before they are added to an offset: requests by
  the limits, which `_read_limits` cuts to FAR, replies by their 18 digits and by MAX_ITEMS. No sum can overflow.
- Only bytes below `size` are read. Every read stands behind a comparison with `size`.
- A state comes from a caller: it is checked once (`_resume_request`, `_resume_reply`), then trusted.
- A request to be split is read as a client's would be: no count and no length in it is believed.
- Entries of the table are borrowed (`PyObject *`): the dict they live in is held, and no Python code that could
  change it runs in between.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Check, PyByteArray_GET_SIZE
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_Check,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from proxy.codec._python import MAX_ITEMS as _MAX_ITEMS
from proxy.codec._python import ReplyState, RequestState, broken, parse_inline, refuse
from proxy.codec.table import UNKNOWN_ENTRY as _UNKNOWN_ENTRY

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(object, object) except? NULL
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)
    bint PyTuple_CheckExact(object)
    Py_ssize_t PyTuple_GET_SIZE(object)
    int64_t PyLong_AsLongLongAndOverflow(object, int *) except? -1

ctypedef const uint8_t *Data

cdef enum:
    CONTROL = -1
    BROKEN = -2
    LARGE = -3
    PLAIN = 0
    OTHER = 1
    BARRIER = 2
    CR = 13
    LF = 10
    UNAUTHENTICATED_ARGUMENTS = 10
    UNAUTHENTICATED_BULK = 16384
    MAX_LENGTH_LINE = 24
    LENGTH_DIGITS = 18
    ORDINARY_NAME = 64
    SLOTS = 16384
    SLOT_BYTES = 2048  # of one bit for each slot
    COUNT_DIGITS = 9
    NULL_LENGTH = -1
    NOT_YET = -2
    NO_LENGTH = -3

cdef int64_t FAR = 1LL << 60  # larger than any memory, and several of them still fit an offset
cdef int64_t MAX_ITEMS = _MAX_ITEMS
cdef int64_t NO_NUMBER = INT64_MAX

cdef tuple UNKNOWN_ENTRY = _UNKNOWN_ENTRY

# What reading a line, a request or a reply came to.
cdef enum:
    FAILED = -1  # a Python exception is set
    WHOLE
    EMPTY
    UNFINISHED
    TOO_LONG
    BAD_END
    REFUSED

cdef struct Bounds:
    int64_t arguments
    int64_t bulk  # for this client now
    int64_t any_bulk  # for any client
    int64_t line
    int64_t large
    bint unauthenticated

cdef struct Line:
    int64_t value  # NO_NUMBER if it holds none
    int64_t behind

# A request being read, the fields of RequestState; offsets are from the begin of the buffer.
cdef struct Request:
    int64_t position
    int64_t searched
    int64_t remaining
    int64_t argument
    int64_t length
    int64_t key_index  # -1 where no argument is a key
    int64_t missing
    int64_t ahead
    int slot
    int kind
    PyObject *entry
    const char *problem  # with REFUSED; NULL stands for: not a '$' at `position`

# A reply being read, the fields of ReplyState; offsets are from the begin of the buffer.
cdef struct Reply:
    int64_t position
    int64_t searched
    int64_t remaining
    int64_t missing
    int64_t refused_at
    const char *problem


# --- slots

cdef uint16_t _crc_table[256]


cdef void _fill_crc_table() noexcept:
    """CRC16/XMODEM, polynomial 0x1021 (cluster specification, appendix A)."""
    cdef int byte, bit
    cdef uint16_t crc
    for byte in range(256):
        crc = <uint16_t>(byte << 8)
        for bit in range(8):
            crc = <uint16_t>((crc << 1) ^ 0x1021) if crc & 0x8000 else <uint16_t>(crc << 1)
        _crc_table[byte] = crc


_fill_crc_table()


cdef int _slot(Data key, int64_t length) noexcept nogil:
    """As `request.key_slot`."""
    cdef Data opening = <Data>memchr(key, c'{', length)
    cdef Data closing
    cdef uint16_t crc = 0
    cdef int64_t at
    if opening != NULL:
        opening += 1
        closing = <Data>memchr(opening, c'}', key + length - opening)
        if closing != NULL and closing != opening:
            key, length = opening, closing - opening
    for at in range(length):
        crc = <uint16_t>((crc << 8) ^ _crc_table[(crc >> 8) ^ key[at]])
    return crc & 16383


# --- lines and numbers

cdef int64_t _number(Data text, int64_t size) noexcept nogil:
    """A number as strict as the engine's string2ll (util.c); NO_NUMBER for what is none."""
    cdef bint negative = size > 0 and text[0] == c'-'
    cdef uint64_t value = 0
    cdef int64_t at
    if negative:
        text += 1
        size -= 1
    if size < 1 or size > 19:  # 19 digits fit an unsigned value
        return NO_NUMBER
    if text[0] == c'0':
        return 0 if size == 1 and not negative else NO_NUMBER
    for at in range(size):
        if text[at] < c'0' or text[at] > c'9':
            return NO_NUMBER
        value = value * 10 + (text[at] - c'0')
    if negative:
        # Every negative number means the same to the callers: only that it is one matters.
        return -1 if value <= <uint64_t>INT64_MAX + 1 else NO_NUMBER
    return <int64_t>value if value <= <uint64_t>INT64_MAX else NO_NUMBER


cdef int _read_line(
    Data data, int64_t size, int64_t begin, int64_t searched, int64_t longest, Line *line
) noexcept nogil:
    """The line of a request that begins with a type byte at `begin`, and its number. The type byte is not looked at.

    WHOLE, BAD_END (a CR without LF), UNFINISHED or TOO_LONG.
    """
    cdef int64_t at = begin + 1
    cdef int64_t limit = min(size, begin + 10)
    cdef int64_t value = 0
    cdef Data found = NULL
    while at < limit and c'0' <= data[at] <= c'9':
        value = value * 10 + (data[at] - c'0')
        at += 1
    if at + 1 < size and at > begin + 1 and data[at] == CR and data[at + 1] == LF:
        if data[begin + 1] != c'0' or at == begin + 2:
            line.value, line.behind = value, at + 2
            return WHOLE
    limit = min(size, begin + longest + 1)
    searched = max(searched, begin)
    if searched < limit:
        found = <Data>memchr(data + searched, CR, limit - searched)
    if found == NULL:
        return TOO_LONG if size - begin > longest else UNFINISHED
    at = found - data
    if at + 1 >= size:
        return UNFINISHED
    line.value = _number(data + begin + 1, at - begin - 1)
    line.behind = at + 2
    return WHOLE if data[at + 1] == LF else BAD_END


# --- requests

def parse_requests(bytes buffer not None, table not None, state=None):
    """Cut requests out of a receive buffer; see the package docstring. Errors of the client are commands, BROKEN.

    Raises ValueError for a state that cannot be this buffer's.
    """
    cdef Data data = <Data>PyBytes_AS_STRING(buffer)
    cdef int64_t size = PyBytes_GET_SIZE(buffer)
    cdef int64_t start = 0
    cdef list commands = []
    cdef dict names = table.names
    cdef Bounds bounds
    cdef Request request
    cdef int outcome
    _read_limits(table.limits, &bounds)
    _begin_request(&request)
    if state is not None:
        _resume_request(state, size, &request)
    while start < size:
        if request.remaining == 0 and data[start] != c'*':
            command, start, unfinished = parse_inline(buffer, start, max(start, request.searched), table)
            if unfinished is not None:
                return commands, start, unfinished
            if command is not None:
                commands.append(command)
                if command[0] < CONTROL or (command[0] == CONTROL and command[1] in table.barriers):
                    return commands, start, None
            _begin_request(&request)
            continue
        outcome = _read_request(data, size, start, names, table, &bounds, &request)
        if outcome == UNFINISHED:
            return commands, start, _request_state(&request, start)
        if outcome == REFUSED:
            commands.append(broken(buffer, _problem(data, &request))[0])
            return commands, size, None
        if outcome == WHOLE:
            if request.ahead + request.position - start > bounds.large and request.kind != BARRIER:
                request.slot = LARGE
            commands.append((request.slot, _item(request.entry, 0), _cut(buffer, start, request.position)))
        start = request.position
        if request.slot == LARGE or request.kind == BARRIER:
            return commands, start, None
        _begin_request(&request)
    return commands, start, None


cdef int _read_request(
    Data data, int64_t size, int64_t start, dict names, table, Bounds *bounds, Request *request
) except FAILED:
    """Go on with a RESP array of bulks from where `request` stands: WHOLE, EMPTY, UNFINISHED or REFUSED."""
    cdef int outcome
    cdef int64_t end
    if request.remaining == 0:
        outcome = _read_count(data, size, start, bounds, request)
        if outcome != WHOLE:
            return outcome
    while request.remaining:
        if request.length < 0:
            outcome = _read_length(data, size, bounds, request)
            if outcome != WHOLE:
                return outcome
        end = request.position + request.length
        if size < end + 2:
            request.missing = end + 2 - size
            request.searched = start
            return UNFINISHED
        if data[end] != CR or data[end + 1] != LF:
            request.problem = "invalid CRLF in request"
            return REFUSED
        if request.argument == 0:
            _enter(request, _find_entry(data + request.position, request.length, names, table))
        elif request.argument == request.key_index:
            request.slot = _slot(data + request.position, request.length)
        request.position = end + 2
        request.length = -1
        request.argument += 1
        request.remaining -= 1
    return WHOLE


cdef int _read_count(Data data, int64_t size, int64_t start, Bounds *bounds, Request *request) noexcept nogil:
    cdef Line line
    cdef int outcome = _read_line(data, size, start, request.searched, bounds.line, &line)
    if outcome == UNFINISHED:
        request.position = start
        return _await_line(data, size, request)
    if outcome == TOO_LONG:
        request.problem = "too big mbulk count string"
    elif outcome == BAD_END:
        request.problem = "invalid CRLF in request"
    elif line.value > bounds.arguments:
        request.problem = "invalid multibulk length"
    elif line.value > UNAUTHENTICATED_ARGUMENTS and bounds.unauthenticated:
        request.problem = "unauthenticated multibulk length"
    if request.problem != NULL:
        return REFUSED
    request.position = line.behind
    if line.value <= 0:
        return EMPTY
    request.remaining = line.value
    return WHOLE


cdef int _read_length(Data data, int64_t size, Bounds *bounds, Request *request) noexcept nogil:
    """The length line of a bulk; behind it `request` stands at the bulk."""
    cdef Line line
    cdef int outcome = _read_line(data, size, request.position, request.searched, bounds.line, &line)
    if outcome == UNFINISHED:
        return _await_line(data, size, request)
    if outcome == TOO_LONG:
        request.problem = "too big bulk count string"
        return REFUSED
    if data[request.position] != c'$':
        return REFUSED
    if outcome == BAD_END:
        request.problem = "invalid CRLF in request"
    elif not 0 <= line.value <= bounds.any_bulk:
        request.problem = "invalid bulk length"
    elif line.value > bounds.bulk:
        request.problem = "unauthenticated bulk length"
    if request.problem != NULL:
        return REFUSED
    request.length = line.value
    request.position = line.behind
    return WHOLE


cdef int _await_line(Data data, int64_t size, Request *request) noexcept nogil:
    request.missing = 1
    request.searched = size - (data[size - 1] == CR)  # a CR without its successor is to be found again
    return UNFINISHED


cdef void _begin_request(Request *request) noexcept:
    request.problem = NULL
    request.missing = 1
    request.position = request.searched = request.remaining = request.argument = request.ahead = 0
    request.length = -1
    request.slot = CONTROL
    request.entry = <PyObject *>UNKNOWN_ENTRY
    request.key_index = -1
    request.kind = OTHER


cdef PyObject *_find_entry(Data name, int64_t length, dict names, table) except NULL:
    """As `ParseTable.find`."""
    if length > ORDINARY_NAME and length > <int64_t>table.longest:
        return <PyObject *>UNKNOWN_ENTRY  # it may be as long as a value: not worth two copies
    cdef bytes sent = PyBytes_FromStringAndSize(<const char *>name, length)
    cdef PyObject *entry = PyDict_GetItemWithError(names, sent)
    if entry == NULL:
        entry = PyDict_GetItemWithError(names, sent.lower())
    return entry if entry != NULL else <PyObject *>UNKNOWN_ENTRY


cdef int _enter(Request *request, PyObject *entry) except FAILED:
    """The request is of the command with this entry."""
    if not PyTuple_CheckExact(<object>entry) or PyTuple_GET_SIZE(<object>entry) != 3:
        raise TypeError("a table entry is (command id, key index, kind)")
    request.entry = entry
    request.kind = _item(entry, 2)
    request.key_index = _item(entry, 1) if request.kind == PLAIN else -1
    return 0


cdef object _item(PyObject *entry, Py_ssize_t index):
    return <object>PyTuple_GET_ITEM(<object>entry, index)


cdef object _request_state(Request *request, int64_t start):
    return RequestState(
        request.missing,
        request.position - start,
        request.searched - start,
        request.remaining,
        request.argument,
        request.length,
        <object>request.entry,
        request.slot,
        request.ahead,
    )


cdef int _resume_request(state, int64_t size, Request *request) except FAILED:
    _, position, searched, remaining, argument, length, entry, slot, ahead = state
    request.position = position
    request.searched = searched
    request.remaining = remaining
    request.argument = argument
    request.length = length
    request.slot = slot
    request.ahead = ahead
    _check_state(0 <= request.position <= size and 0 <= request.searched <= size)
    _check_state(0 <= request.remaining < FAR and 0 <= request.argument < FAR)
    _check_state(-1 <= request.length < FAR and 0 <= request.ahead < FAR)
    # Borrowed from the state, which the caller holds.
    return _enter(request, <PyObject *>entry)


cdef int _check_state(bint fits) except FAILED:
    if not fits:
        raise ValueError("the state is not of this buffer")
    return 0


cdef int _read_limits(limits, Bounds *bounds) except FAILED:
    max_arguments, max_bulk, max_inline, large_request, unauthenticated = limits
    bounds.arguments = _bounded(max_arguments)
    bounds.any_bulk = _bounded(max_bulk)
    bounds.line = _bounded(max_inline)
    bounds.large = _bounded(large_request)
    bounds.unauthenticated = unauthenticated
    bounds.bulk = min(bounds.any_bulk, UNAUTHENTICATED_BULK) if bounds.unauthenticated else bounds.any_bulk
    return 0


cdef int64_t _bounded(limit) except? FAILED:
    cdef int overflow = 0
    cdef int64_t value = PyLong_AsLongLongAndOverflow(limit, &overflow)
    if overflow > 0 or value > FAR:
        return FAR
    return 0 if overflow < 0 or value < 0 else value


cdef object _problem(Data data, Request *request):
    if request.problem != NULL:
        return request.problem.decode("ascii")
    return f"expected '$', got '{chr(data[request.position])}'"


cdef bytes _cut(bytes buffer, int64_t begin, int64_t end):
    """A copy of some of the buffer; all of it is the buffer itself: a large value is not copied."""
    if begin == 0 and end == PyBytes_GET_SIZE(buffer):
        return buffer
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(buffer) + begin, end - begin)


# --- replies

# What follows the type byte: nothing known, a line, a bulk, so many items, so many pairs.
cdef enum:
    NO_TYPE = 0
    LINE
    BULK
    ITEMS
    PAIRS

cdef uint8_t[256] _shapes


cdef void _fill_shapes():
    cdef uint8_t kind
    for kind in b"+-:_,#(":
        _shapes[kind] = LINE
    for kind in b"$!=":
        _shapes[kind] = BULK
    for kind in b"*~>":
        _shapes[kind] = ITEMS
    for kind in b"%|":
        _shapes[kind] = PAIRS


_fill_shapes()


def frame_replies(buffer not None, state=None, Py_ssize_t begin=0, end=None):
    """Cut replies out of a receive buffer; see the package docstring.

    Raises FramingError, ValueError for a state or bounds that cannot be this buffer's, TypeError for what is no buffer.
    """
    cdef Data data
    cdef int64_t size
    cdef int64_t start = 0
    if PyBytes_Check(buffer):
        data = <Data>PyBytes_AS_STRING(buffer)
        size = PyBytes_GET_SIZE(buffer)
    elif PyByteArray_Check(buffer):
        data = <Data>PyByteArray_AS_STRING(buffer)
        size = PyByteArray_GET_SIZE(buffer)
    else:
        raise TypeError(f"a buffer is bytes or a bytearray, not {type(buffer).__name__}")
    cdef Py_ssize_t behind = size if end is None else end
    if not 0 <= begin <= behind <= size:
        raise ValueError("begin and end are not of this buffer")
    cdef bint all_of_it = begin == 0 and behind == size and PyBytes_CheckExact(buffer)
    data += begin
    size = behind - begin
    cdef list frames = []
    cdef Reply reply
    cdef int outcome
    _begin_reply(&reply, 0)
    if state is not None:
        _resume_reply(state, size, &reply)
    while start < size:
        outcome = _read_reply(data, size, start, &reply)
        if outcome == UNFINISHED:
            return frames, start, ReplyState(
                reply.missing, reply.position - start, reply.searched - start, reply.remaining
            )
        if outcome == REFUSED:
            refuse(reply.refused_at, reply.problem.decode("ascii"), frames)
        if all_of_it and start == 0 and reply.position == size:
            frames.append(buffer)  # a large value is not copied
        else:
            frames.append(PyBytes_FromStringAndSize(<const char *>data + start, reply.position - start))
        start = reply.position
        _begin_reply(&reply, start)
    return frames, start, None


cdef void _begin_reply(Reply *reply, int64_t start) noexcept nogil:
    reply.position = reply.searched = reply.refused_at = start
    reply.remaining = reply.missing = 1
    reply.problem = NULL


cdef int _read_reply(Data data, int64_t size, int64_t start, Reply *reply) noexcept nogil:
    """Go on with a reply from where `reply` stands: WHOLE, UNFINISHED or REFUSED.

    A count of the items still to come takes the place of a stack, so nesting of any depth costs nothing.
    """
    cdef int outcome = WHOLE
    if reply.position > start:
        outcome = _check_bulk(data, size, start, reply)
    while reply.remaining and outcome == WHOLE:
        outcome = _read_item(data, size, start, reply)
    return outcome


cdef int _read_item(Data data, int64_t size, int64_t start, Reply *reply) noexcept nogil:
    """One line, one bulk, or the head of an aggregate."""
    cdef int64_t begin = reply.position
    cdef int64_t line_end, count
    cdef uint8_t shape
    if begin >= size:
        return _await_end(size, reply)
    shape = _shapes[data[begin]]
    if shape == NO_TYPE:
        return _refused(begin, "no RESP type", reply)
    if shape == LINE:
        line_end = _find_line_end(data, size, max(begin, reply.searched))
        if line_end < 0:
            return _await_end(size, reply)
        reply.position = line_end + 2
        reply.remaining -= 1
        return WHOLE
    count = _read_reply_length(data, size, reply)
    if count < NULL_LENGTH:
        if count == NOT_YET and size - begin <= MAX_LENGTH_LINE:
            return _await_end(size, reply)
        return _refused(begin, "no length", reply)
    if shape == BULK:
        reply.remaining -= 1
        if count == NULL_LENGTH:
            return WHOLE
        reply.position += count + 2
        return _check_bulk(data, size, start, reply)
    if data[begin] == c'>' and begin != start:
        return _refused(begin, "a push inside another reply", reply)
    if shape == PAIRS:
        count = 2 * count + (data[begin] == c'|')  # an attribute's own reply comes behind it
    reply.remaining += max(count, 0) - 1
    return WHOLE if reply.remaining <= MAX_ITEMS else _refused(begin, "too many items", reply)


cdef int _check_bulk(Data data, int64_t size, int64_t start, Reply *reply) noexcept nogil:
    """`reply` stands behind a bulk's CRLF, or behind a line of which the same is known."""
    cdef int64_t end = reply.position - 2
    if reply.position > size:
        reply.missing = reply.position - size
        reply.searched = start
        return UNFINISHED
    if data[end] != CR or data[end + 1] != LF:
        return _refused(end, "a bulk does not end with CRLF", reply)
    return WHOLE


cdef int64_t _read_reply_length(Data data, int64_t size, Reply *reply) noexcept nogil:
    """The number of a length line, with `reply` then behind it; NULL_LENGTH for $-1 and *-1, NOT_YET or NO_LENGTH."""
    cdef int64_t begin = reply.position
    cdef int64_t at = begin + 1
    cdef int64_t limit = min(size, at + LENGTH_DIGITS)
    cdef int64_t value = 0
    while at < limit and c'0' <= data[at] <= c'9':
        value = value * 10 + (data[at] - c'0')
        at += 1
    if at > begin + 1 and at + 1 < size and data[at] == CR and data[at + 1] == LF:
        reply.position = at + 2
        return value
    at = _find_line_end(data, size, max(begin, reply.searched))
    if at < 0:
        return NOT_YET
    if at == begin + 3 and data[begin + 1] == c'-' and data[begin + 2] == c'1':
        if data[begin] == c'$' or data[begin] == c'*':
            reply.position = at + 2
            return NULL_LENGTH
    return NO_LENGTH


cdef int64_t _find_line_end(Data data, int64_t size, int64_t begin) noexcept nogil:
    """Offset of the first CRLF from `begin` on; -2 if there is none."""
    cdef Data found
    while begin < size:
        found = <Data>memchr(data + begin, CR, size - begin)
        if found == NULL:
            return -2
        begin = found - data + 1
        if begin < size and data[begin] == LF:
            return begin - 1
    return -2


cdef int _await_end(int64_t size, Reply *reply) noexcept nogil:
    reply.missing = 1
    reply.searched = max(size - 1, reply.position)
    return UNFINISHED


cdef int _refused(int64_t position, const char *problem, Reply *reply) noexcept nogil:
    reply.refused_at = position
    reply.problem = problem
    return REFUSED


cdef int _resume_reply(state, int64_t size, Reply *reply) except FAILED:
    _, position, searched, remaining = state
    reply.position = position
    reply.searched = searched
    reply.remaining = remaining
    _check_state(0 <= reply.position < 2 * FAR and reply.position != 1 and 0 <= reply.searched <= size)
    return _check_state(0 <= reply.remaining <= MAX_ITEMS)


# --- multi-key requests and their replies

cdef struct Key:
    int slot
    int64_t begin  # of its length line
    int64_t end  # behind all that belongs to it


def split_keys(bytes raw not None, int64_t step, command_id):
    """Take a request apart, one part a key; see the package docstring. Raises ValueError for a step below 1."""
    cdef Data data = <Data>PyBytes_AS_STRING(raw)
    cdef int64_t size = PyBytes_GET_SIZE(raw)
    cdef int64_t begin, count, distinct, at
    cdef Line line
    cdef Key *keys
    cdef bytes head
    cdef list parts = []
    if step < 1:
        raise ValueError("a key takes at least one argument")
    if _read_line(data, size, 0, 0, MAX_LENGTH_LINE, &line) != WHOLE or data[0] != c'*':
        return None
    count, begin = line.value - 1, line.behind
    if not step <= count <= size or count % step or not _read_bulk(data, size, begin, &line):
        return None
    count //= step
    keys = <Key *>PyMem_Malloc(min(count, SLOTS) * sizeof(Key))
    if keys == NULL:
        raise MemoryError
    try:
        distinct = _read_keys(data, size, line.behind + line.value + 2, count, step, keys)
        if distinct == 1:
            return [(keys[0].slot, command_id, raw)]
        if distinct == 0:
            return None
        head = b"*%d\r\n" % (1 + step) + raw[begin : keys[0].begin]
        for at in range(distinct):
            parts.append((keys[at].slot, command_id, _behind(head, data + keys[at].begin, keys[at].end - keys[at].begin)))
        return parts
    finally:
        PyMem_Free(keys)


cdef int64_t _read_keys(
    Data data, int64_t size, int64_t position, int64_t count, int64_t step, Key *keys
) noexcept nogil:
    """Read so many keys up to the end of the request; returns their number if each has a slot of its own, 1 if all
    share one, else 0.

    `keys` has room for as many as there are slots: one is written for each slot that was not seen before.
    """
    cdef uint8_t[SLOT_BYTES] seen
    cdef uint8_t bit
    cdef int64_t distinct = 0
    cdef int64_t at, other
    cdef Line line
    cdef Key key
    memset(seen, 0, sizeof(seen))
    for at in range(count):
        key.begin = position
        for other in range(step):
            if not _read_bulk(data, size, position, &line):
                return 0
            if other == 0:
                key.slot = _slot(data + line.behind, line.value)
            position = line.behind + line.value + 2
        key.end = position
        bit = <uint8_t>(1 << (key.slot & 7))
        if not seen[key.slot >> 3] & bit:
            seen[key.slot >> 3] |= bit
            keys[distinct] = key
            distinct += 1
        if distinct <= at and distinct > 1:
            return 0
    return distinct if position == size else 0


cdef bint _read_bulk(Data data, int64_t size, int64_t begin, Line *line) noexcept nogil:
    """Whether a whole bulk begins here; `line` then has its length, and where its bytes begin."""
    cdef int64_t end
    if _read_line(data, size, begin, begin, MAX_LENGTH_LINE, line) != WHOLE or data[begin] != c'$':
        return False
    if not 0 <= line.value <= size - line.behind - 2:
        return False
    end = line.behind + line.value
    return data[end] == CR and data[end + 1] == LF


cdef bytes _behind(bytes head, Data body, int64_t size):
    """The body behind the head."""
    cdef Py_ssize_t before = PyBytes_GET_SIZE(head)
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, before + size)
    memcpy(PyBytes_AS_STRING(whole), PyBytes_AS_STRING(head), before)
    memcpy(PyBytes_AS_STRING(whole) + before, body, size)
    return whole


def join_elements(frames not None):
    """One array from arrays of one element each; see the package docstring."""
    cdef list items = frames if type(frames) is list else list(frames)
    cdef bytes head = b"*%d\r\n" % len(items)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(head)
    cdef Py_ssize_t length
    cdef bytes joined
    cdef char *to
    for frame in items:
        length = _frame_size(frame)
        if length < 4 or memcmp(PyBytes_AS_STRING(frame), b"*1\r\n", 4):
            return None
        size += length - 4
    joined = PyBytes_FromStringAndSize(NULL, size)
    to = PyBytes_AS_STRING(joined)
    memcpy(to, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
    to += PyBytes_GET_SIZE(head)
    for frame in items:
        length = PyBytes_GET_SIZE(frame) - 4
        memcpy(to, PyBytes_AS_STRING(frame) + 4, length)
        to += length
    return joined


def sum_integers(frames not None):
    """The sum of integers; see the package docstring."""
    cdef list items = frames if type(frames) is list else list(frames)
    cdef int64_t total = 0  # so small are the numbers that no memory holds enough of them to overflow it
    cdef int64_t size, number
    for frame in items:
        size = _frame_size(frame)
        number = _count(<Data>PyBytes_AS_STRING(frame), size)
        if number < 0:
            return None
        total += number
    return b":%d\r\n" % total


cdef int64_t _count(Data data, int64_t size) noexcept nogil:
    """An integer reply of few digits; -1 for any other frame."""
    cdef int64_t value = 0
    cdef int64_t end = size - 2
    cdef int64_t at
    if not 1 < end <= 1 + COUNT_DIGITS or data[0] != c':' or data[end] != CR or data[end + 1] != LF:
        return -1
    for at in range(1, end):
        if not c'0' <= data[at] <= c'9':
            return -1
        value = value * 10 + (data[at] - c'0')
    return value


cdef Py_ssize_t _frame_size(frame) except -1:
    if not PyBytes_CheckExact(frame):
        raise TypeError(f"a reply is bytes, not {type(frame).__name__}")
    return PyBytes_GET_SIZE(frame)
