"""What is counted of commands: how many were answered, how long that took, which errors there were, and how wide those
were that went to several shards.

What lives here: numbers by command id, so that commands cost the data plane one search for a bucket a run of them and
two additions each.  What may not: names.  Control knows what an id means, and reads these at scrape time.

Times are those of turns: from the turn in which a request's bytes were read to the turn in which its reply came.
"""

from __future__ import annotations

BOUNDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds: upper ends of the buckets.  Behind the last there is one more."""
BUCKETS = len(BOUNDS) + 1
NO_COUNTS = (0,) * BUCKETS
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
"""Upper ends of the buckets of widths, likewise."""
MINUS = 0x2D  # b"-"
LONGEST_WORD = 32  # bytes of an error that are looked at for its first word
OTHER = b"other"
ERRORS = frozenset(
    {
        *(b"ERR", b"WRONGTYPE", b"NOAUTH", b"WRONGPASS", b"NOPERM", b"DENIED", b"NOPROTO"),
        *(b"NOSCRIPT", b"BUSY", b"NOTBUSY", b"UNKILLABLE", b"BUSYKEY", b"BUSYGROUP", b"NOGROUP", b"EXECABORT"),
        *(b"OOM", b"READONLY", b"MASTERDOWN", b"MISCONF", b"NOREPLICAS", b"LOADING", b"IOERR", b"INPROG"),
        *(b"CROSSSLOT", b"CLUSTERDOWN", b"TRYAGAIN", b"MOVED", b"ASK", b"REDIRECT", b"UNBLOCKED", b"UNCONFIRMED"),
    }
)
"""First words of errors, the engine's and ours.  A script may answer any: those are counted together."""


class Row:
    """Of one command."""

    __slots__ = ("counts", "errors", "seconds")

    def __init__(self) -> None:
        self.counts = list(NO_COUNTS)
        """Answers by how long they took."""
        self.seconds = 0.0
        """All of them together."""
        self.errors: dict[bytes, int] = {}
        """Of them, by the error's first word."""

    def count_error(self, frame: bytes) -> None:
        words = frame[1:LONGEST_WORD].split(None, 1)
        word = words[0] if words and words[0] in ERRORS else OTHER
        self.errors[word] = self.errors.get(word, 0) + 1


class Tally:
    """Counts by command id.  What has an id above the highest is the twin of the command so many below it."""

    __slots__ = ("bounds", "highest", "rows")

    def __init__(self) -> None:
        self.bounds = list(BOUNDS)
        self.highest = 0
        self.rows = [Row()]
        """By command id."""

    def fit(self, highest: int) -> None:
        """There are command ids up to this one now; what was counted stays."""
        self.highest = highest
        while len(self.rows) <= highest:
            self.rows.append(Row())

    def forget(self, command_id: int) -> None:
        """The id means another command from now on; what was counted is what has no name, so that no sum goes back."""
        gone, nameless = self.rows[command_id], self.rows[0]
        self.rows[command_id] = Row()
        for at in range(BUCKETS):
            nameless.counts[at] += gone.counts[at]
        nameless.seconds += gone.seconds
        for word, count in gone.errors.items():
            nameless.errors[word] = nameless.errors.get(word, 0) + count

    def row(self, command_id: int) -> Row:
        """Where a command is counted."""
        if command_id > self.highest:
            command_id -= self.highest
        return self.rows[command_id if 0 <= command_id < len(self.rows) else 0]

    def bucket(self, seconds: float) -> int:
        """The place of a time among the buckets."""
        last = BUCKETS - 1
        at = 0
        while at < last and seconds > self.bounds[at]:
            at += 1
        return at

    def add(self, command_id: int, bucket: int, seconds: float, frame: bytes) -> None:
        """A command was answered by the raw reply ``frame`` after so many seconds, which are in that bucket."""
        row = self.row(command_id)
        row.counts[bucket] += 1
        row.seconds += seconds
        if frame and frame[0] == MINUS:
            row.count_error(frame)


class Widths:
    """How many parts or shards commands went to."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(WIDTHS) + 1)
        self.total = 0

    def add(self, width: int) -> None:
        """One went to so many."""
        at = 0
        for end in WIDTHS:
            if width <= end:
                break
            at += 1
        self.counts[at] += 1
        self.total += width
