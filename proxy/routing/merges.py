"""Replies the engine calls ``special``, and a few that read better merged than appended: one row and one function each.

A merge takes the shards' raw replies, the client's protocol and the call's arguments, and returns one raw frame.
Shards that answered an error are left out where others have something to tell (an event one shard never saw is no
failure). RANDOMKEY, SCAN and INFO are not here: they need more than the replies.

Source: the commands' pages (https://valkey.io/commands/) and the engine's ``latency.c``, ``commandlog.c``,
``object.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from proxy.codec.reply import (
    array,
    bulk,
    bulk_value,
    double,
    elements,
    integer,
    integer_value,
    is_error,
    is_null,
    map_,
    verbatim,
)
from proxy.routing.key_specs import strict_integer

Merge = Callable[[Sequence[bytes], int, Sequence[bytes]], bytes]
Pairs = list[tuple[bytes, bytes]]

LOG_LENGTH = 10
"""Entries SLOWLOG GET and COMMANDLOG GET show unless told otherwise."""
HISTORY_LENGTH = 160
"""Samples an engine keeps per latency event (latency.h, LATENCY_TS_LEN)."""


def choose_shard(weights: Sequence[int], random: Random) -> int | None:
    """Index into ``weights`` (keys per shard, from DBSIZE) drawn in proportion; None when there are no keys.

    RANDOMKEY over shards: every key stays as likely as every other.
    """
    total = sum(weights)
    if total <= 0:
        return None
    return random.choices(range(len(weights)), weights)[0]


def _answered(frames: Sequence[bytes]) -> list[bytes]:
    return [frame for frame in frames if not is_error(frame)]


def _pairs(frame: bytes) -> Pairs:
    """Keys and values of a map, which RESP2 shows as an array."""
    items = elements(frame)
    return list(zip(items[::2], items[1::2], strict=True))


def function_stats(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """FUNCTION STATS: libraries are the same everywhere; a script that runs is shown wherever it runs."""
    answered = _answered(frames)
    if not answered:
        return frames[0]
    return next((frame for frame in answered if not is_null(elements(frame)[1])), answered[0])


def latency_latest(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """LATENCY LATEST: an event once, with its latest sample, its highest value, and what else there is summed."""
    answered = _answered(frames)
    if not answered:
        return frames[0]
    events: dict[bytes, list[int]] = {}
    for frame in answered:
        for row in elements(frame):
            name, *fields = elements(row)
            figures = [integer_value(field) for field in fields]
            events[name] = _later(events[name], figures) if name in events else figures
    return array([array([name, *map(integer, figures)]) for name, figures in events.items()])


def _later(left: list[int], right: list[int]) -> list[int]:
    (time, value), worst = max(left[:2], right[:2]), max(left[2], right[2])
    return [time, value, worst, *(a + b for a, b in zip(left[3:], right[3:], strict=False))]


def latency_history(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """LATENCY HISTORY: the samples of all shards in the order of time, as many as one engine would keep."""
    answered = _answered(frames)
    if not answered:
        return frames[0]
    samples = [row for frame in answered for row in elements(frame)]
    samples.sort(key=lambda row: integer_value(elements(row)[0]))
    return array(samples[-HISTORY_LENGTH:])


def latency_histogram(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """LATENCY HISTOGRAM: calls summed, and the cumulative counts summed bucket by bucket."""
    answered = _answered(frames)
    if not answered:
        return frames[0]
    commands: dict[bytes, list[Pairs]] = {}
    for frame in answered:
        for name, figures in _pairs(frame):
            commands.setdefault(name, []).append(_pairs(figures))
    return map_([(name, _one_histogram(each, protocol)) for name, each in commands.items()], protocol)


def _one_histogram(parts: Sequence[Pairs], protocol: int) -> bytes:
    keys = [key for key, _ in parts[0]]
    calls = integer(sum(integer_value(part[0][1]) for part in parts))
    curves = [{integer_value(edge): integer_value(count) for edge, count in _pairs(part[1][1])} for part in parts]
    edges = sorted({edge for curve in curves for edge in curve})
    # A curve keeps its last count where it has no bucket of its own.
    sums = [sum(max((n for e, n in curve.items() if e <= edge), default=0) for curve in curves) for edge in edges]
    buckets = map_([(integer(edge), integer(count)) for edge, count in zip(edges, sums, strict=True)], protocol)
    return map_([(keys[0], calls), (keys[1], buckets)], protocol)


def memory_stats(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """MEMORY STATS: bytes and counts summed; ratios, percentages and averages as the mean over the shards."""
    answered = _answered(frames)
    if not answered:
        return frames[0]
    return _summed_map([_pairs(frame) for frame in answered], protocol)


def _summed_map(parts: Sequence[Pairs], protocol: int) -> bytes:
    columns: dict[bytes, list[bytes]] = {}
    for part in parts:
        for key, value in part:
            columns.setdefault(key, []).append(value)
    return map_([(key, _combined(key, values, protocol)) for key, values in columns.items()], protocol)


def _combined(key: bytes, values: Sequence[bytes], protocol: int) -> bytes:
    kind = values[0][:1]
    if kind == b":" and b"bytes-per-key" not in key:
        return integer(sum(map(integer_value, values)))
    if kind == b":":
        return integer(sum(map(integer_value, values)) // len(values))
    if kind in (b"*", b"%"):
        return _summed_map([_pairs(value) for value in values], protocol)
    try:
        numbers = [float(value[1:-2]) if kind == b"," else float(bulk_value(value) or b"0") for value in values]
    except ValueError:
        return values[0]
    return double(round(sum(numbers) / len(numbers), 6), protocol)


def texts(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """MEMORY DOCTOR, MALLOC-STATS, LATENCY DOCTOR, GRAPH: the texts one below the other, a line above each."""
    if not _answered(frames):
        return frames[0]
    kind = b"Node" if args[0].lower() == b"latency" else b"Shard"  # LATENCY goes to replicas, too
    parts = [
        b"# %s %d\n%s\n" % (kind, number, (bulk_value(frame) or b"").rstrip(b"\r\n"))
        for number, frame in enumerate(frames)
        if not is_error(frame)
    ]
    text = b"\n".join(parts)
    # MALLOC-STATS is a plain bulk where the allocator has none to tell.
    return verbatim(text, protocol) if any(frame[:1] == b"=" for frame in frames) else bulk(text)


def log_entries(frames: Sequence[bytes], protocol: int, args: Sequence[bytes]) -> bytes:
    """SLOWLOG GET [count], COMMANDLOG GET count type: the newest entries of all nodes, as many as asked for.

    Ids are each node's own and so may repeat, and times are whole seconds: of entries of the same one, those come first
    before which their node logged more, as it began to when all logs were reset.
    """
    failed = next((frame for frame in frames if is_error(frame)), None)
    if failed is not None:
        return failed
    wanted = strict_integer(args[2]) if len(args) > 2 else LOG_LENGTH
    rows = [row for frame in frames for row in enumerate(reversed(elements(frame)))]
    rows.sort(key=lambda row: (integer_value(elements(row[1])[1]), row[0]), reverse=True)
    entries = [entry for _, entry in rows]
    return array(entries if wanted is None or wanted < 0 else entries[:wanted])


MERGES: dict[bytes, Merge] = {
    b"function|stats": function_stats,
    b"latency|latest": latency_latest,
    b"latency|history": latency_history,
    b"latency|histogram": latency_histogram,
    b"latency|graph": texts,
    b"latency|doctor": texts,
    b"memory|stats": memory_stats,
    b"memory|doctor": texts,
    b"memory|malloc-stats": texts,
    b"slowlog|get": log_entries,
    b"commandlog|get": log_entries,
}
"""By the command's full name."""
