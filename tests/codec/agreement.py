"""Both implementations side by side on the same bytes: whatever comes, all they return must be equal, states too."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from proxy.codec import BROKEN, FramingError, ParseTable, ReplyState
from tests.codec.implementations import Implementation


def cut(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The stream in pieces; a cut is an offset, counted round and round."""
    edges = sorted({0, len(stream), *(at % (len(stream) + 1) for at in cuts)})
    return (stream[begin:end] for begin, end in pairwise(edges))


def requests_agree(
    one: Implementation, other: Implementation, pieces: Iterable[bytes], table: ParseTable, *, aside: bool = False
) -> None:
    """Feed both as a connection does, but at every piece, also where `missing` says that it is too early; with `aside`
    set aside what can be.
    """
    buffer, state = b"", None
    for piece in pieces:
        buffer += piece
        while buffer:
            ours = one.parse_requests(buffer, table, state)
            theirs = other.parse_requests(buffer, table, state)
            assert ours == theirs, (buffer, state)
            assert type(ours[2]) is type(theirs[2])
            commands, consumed, state = ours
            assert consumed or state, "a call that neither consumes nor waits would be repeated for ever"
            buffer = buffer[consumed:]
            if commands and commands[-1][0] == BROKEN:
                return
            if state:
                if aside:
                    done, state = state.set_aside()
                    buffer = buffer[done:]
                break


def _frame(
    codec: Implementation, buffer: bytes, state: ReplyState | None
) -> tuple[list[bytes], int, ReplyState | None, str]:
    plain = _framed(codec, buffer, state)
    # The same within something larger, as it stands in a buffer that is received into again and again.
    larger = bytearray(b"$9" + buffer + b"\r\n+")
    assert _framed(codec, larger, state, 2, 2 + len(buffer)) == plain
    return plain


def _framed(
    codec: Implementation, buffer: bytes | bytearray, state: ReplyState | None, *bounds: int
) -> tuple[list[bytes], int, ReplyState | None, str]:
    try:
        return *codec.frame_replies(buffer, state, *bounds), ""
    except FramingError as error:
        return error.frames, 0, None, str(error)


def replies_agree(one: Implementation, other: Implementation, pieces: Iterable[bytes], *, aside: bool = False) -> None:
    """The same for replies; a FramingError must say the same in both."""
    buffer, state = b"", None
    for piece in pieces:
        buffer += piece
        ours = _frame(one, buffer, state)
        assert ours == _frame(other, buffer, state), (buffer, state)
        _, consumed, state, refusal = ours
        if refusal:
            return
        buffer = buffer[consumed:]
        assert bool(buffer) == bool(state)
        if state and aside:
            done, state = state.set_aside(len(buffer))
            buffer = buffer[done:]


def splits_agree(one: Implementation, other: Implementation, raw: bytes, step: int) -> None:
    """Take anything apart, request or not."""
    assert one.split_keys(raw, step, 7) == other.split_keys(raw, step, 7), (raw, step)


def joins_agree(one: Implementation, other: Implementation, frames: list[bytes]) -> None:
    """Join any replies."""
    assert one.join_elements(frames) == other.join_elements(frames), frames
    assert one.sum_integers(frames) == other.sum_integers(frames), frames
