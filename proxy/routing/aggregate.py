"""Response policies: how the replies of several shards become one.

Every aggregator takes raw reply frames (at least one, in the order the shards were asked) and the client's protocol
(2 or 3), and returns one raw frame.  A policy is a row in :data:`POLICIES` and a function.

Source: command tips (https://valkey.io/topics/command-tips/, https://redis.io/docs/latest/develop/reference/command-
tips).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxy.codec.reply import array, double, elements, error, integer, integer_value, is_error
from proxy.routing.command_table import Command
from proxy.routing.merges import MERGES

Aggregator = Callable[[Sequence[bytes], int], bytes]
Combine = Callable[[Sequence[Any]], Any]
"""Numbers of one kind to a number of that kind."""

_DIFFERENT = error(b"ERR the shards answered in different forms; their replies cannot be combined")
_AGGREGATES = b"*~%>"


def aggregate(command: Command, args: Sequence[bytes], frames: Sequence[bytes], protocol: int) -> bytes:
    """The one reply to ``args``, a call of ``command`` that was sent whole to several shards (or nodes)."""
    merge = MERGES.get(command.name)
    if merge is not None:
        return merge(frames, protocol, args)
    policy = POLICIES.get(command.response_policy or b"", keyless_default)
    return policy(frames, protocol)


def one_succeeded(frames: Sequence[bytes], protocol: int) -> bytes:
    """The first reply that is no error; if there is none, the error that says most."""
    for frame in frames:
        if not is_error(frame):
            return frame
    # SCRIPT KILL and FUNCTION KILL: shards that run nothing say NOTBUSY; one that cannot be stopped is the news.
    return next((frame for frame in frames if not frame.startswith(b"-NOTBUSY")), frames[0])


def all_succeeded(frames: Sequence[bytes], protocol: int) -> bytes:
    """The first error, else the first reply."""
    return next((frame for frame in frames if is_error(frame)), frames[0])


def agg_logical_and(frames: Sequence[bytes], protocol: int) -> bytes:
    """1 where every shard says 1 (element by element on arrays)."""
    return _numbers(frames, lambda values: int(all(values)))


def agg_logical_or(frames: Sequence[bytes], protocol: int) -> bytes:
    """1 where any shard says 1 (element by element on arrays)."""
    return _numbers(frames, lambda values: int(any(values)))


def agg_min(frames: Sequence[bytes], protocol: int) -> bytes:
    """The least number (element by element on arrays)."""
    return _numbers(frames, min)


def agg_max(frames: Sequence[bytes], protocol: int) -> bytes:
    """The greatest number (element by element on arrays)."""
    return _numbers(frames, max)


def agg_sum(frames: Sequence[bytes], protocol: int) -> bytes:
    """The sum (element by element on arrays)."""
    return _numbers(frames, sum)


def keyless_default(frames: Sequence[bytes], protocol: int) -> bytes:
    """No policy, no keys: the elements of all replies in one reply of their kind; of other replies the first.

    The first error where there is one.
    """
    failed = next((frame for frame in frames if is_error(frame)), None)
    if failed is not None:
        return failed
    kind = frames[0][:1]
    if kind not in _AGGREGATES:
        return frames[0]
    if any(frame[:1] != kind for frame in frames):
        return _DIFFERENT
    items = [item for frame in frames for item in elements(frame)]
    if kind == b"~":
        items = list(dict.fromkeys(items))
    return _aggregate_frame(kind, items)


POLICIES: dict[bytes, Aggregator] = {
    b"one_succeeded": one_succeeded,
    b"all_succeeded": all_succeeded,
    b"agg_logical_and": agg_logical_and,
    b"agg_logical_or": agg_logical_or,
    b"agg_min": agg_min,
    b"agg_max": agg_max,
    b"agg_sum": agg_sum,
}
"""By the name in the engine's ``response_policy:`` tip.  ``special`` has no row: see :mod:`proxy.routing.merges`."""


def _aggregate_frame(kind: bytes, items: Sequence[bytes]) -> bytes:
    if kind == b"*":
        return array(list(items))
    count = len(items) // 2 if kind == b"%" else len(items)
    return b"%s%d\r\n%s" % (kind, count, b"".join(items))


def _numbers(frames: Sequence[bytes], combine: Combine) -> bytes:
    failed = next((frame for frame in frames if is_error(frame)), None)
    if failed is not None:
        return failed
    kinds = {frame[:1] for frame in frames}
    if len(kinds) > 1:
        return _DIFFERENT
    if kinds <= {b"*", b"~"}:
        rows = [elements(frame) for frame in frames]
        if len({len(row) for row in rows}) > 1:
            return _DIFFERENT
        return array([_numbers(column, combine) for column in zip(*rows, strict=True)])
    return _scalar(kinds.pop(), frames, combine)


def _scalar(kind: bytes, frames: Sequence[bytes], combine: Combine) -> bytes:
    if kind == b"#":
        return b"#t\r\n" if combine([frame[1:2] == b"t" for frame in frames]) else b"#f\r\n"
    if kind == b",":
        return double(combine([float(frame[1:-2]) for frame in frames]), 3)
    if kind != b":":
        return _DIFFERENT
    return integer(combine([integer_value(frame) for frame in frames]))
