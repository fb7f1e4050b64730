"""What the data plane counted of commands, by the engine's names for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest

from proxy.dataplane import ERRORS, OTHER, Row, Tally, Widths
from proxy.observe.figures import CommandFigures, Timed

UNKNOWN = "unknown"
NOTHING = Timed((), 0)
Name = Callable[[int], str | None]
"""The name of a command id; None where the engine has none now."""


def command_figures(
    tally: Tally | None, at_shard: Tally, split_parts: Widths, fanout_shards: Widths, name: Name
) -> CommandFigures:
    """``tally`` None: nothing was counted."""
    errors = _errors(tally, name) if tally is not None else {}
    return CommandFigures(
        _times(tally, name) if tally is not None else {},
        _times(at_shard, name),
        errors,
        Timed(split_parts.counts, split_parts.total),
        Timed(fanout_shards.counts, fanout_shards.total),
        _kinds(errors) if tally is not None else {},
    )


def _used(tally: Tally, name: Name) -> Iterator[tuple[str, Row]]:
    """What was counted, by name.  What has no name any more is counted with what never had one."""
    for command_id, row in enumerate(tally.rows):
        if any(row.counts):
            yield name(command_id) or UNKNOWN, row


def _times(tally: Tally, name: Name) -> dict[str, Timed]:
    found: dict[str, Timed] = {}
    for label, row in _used(tally, name):
        before = found.get(label, NOTHING)
        counts = [one + other for one, other in zip_longest(row.counts, before.counts, fillvalue=0)]
        found[label] = Timed(counts, row.seconds + before.seconds)
    return found


def _errors(tally: Tally, name: Name) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for label, row in _used(tally, name):
        for word, count in row.errors.items():
            key = label, word.decode()
            found[key] = found.get(key, 0) + count
    return found


def _kinds(errors: Mapping[tuple[str, str], int]) -> dict[str, int]:
    # Present from the start at 0: a rate over a series that appears later misses its first events.
    found = {word.decode(): 0 for word in sorted(ERRORS | {OTHER})}
    for (_, word), count in errors.items():
        found[word] += count
    return found
