"""A small checked load: clients that write uniquely numbered keys, ask WAIT for a copy, and note what they were told.

What lives here: the clients, what they saw, and the reading back of all that was confirmed.  What may not: what is done
to the cluster meanwhile (``proxy.commands.drill``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import trio

from proxy.codec.request import key_slot
from shard.client import Arg, ConnectionLost, ControlConnection, ReplyError

LIFETIME = 3600  # seconds after which what a load that was broken off left behind is gone
WAIT_MS = 1000  # what each WAIT is given
PATIENCE = 30.0  # seconds for a reply; longer than a command is held
AGAIN = 0.05  # seconds before a client that was cut off connects again
READ_AT_ONCE = 500
UNKNOWN = "outcome is unknown"

Connect = Callable[[], Awaitable[ControlConnection]]


@dataclass
class Group:
    """What the clients of one group were told.  Times in seconds since the load began."""

    name: str
    copies: int
    """What WAIT asks for; 0: nobody asks."""
    writes: int = 0
    unconfirmed: int = 0
    """Answered OK, and by WAIT with no copy, or not at all."""
    errors: Counter[str] = field(default_factory=Counter)
    """By kind, of writes, WAITs and connections."""
    confirmed: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0
    """The longest time from one such write of a client to the next."""
    stalled_at: float = 0.0
    done: Counter[int] = field(default_factory=Counter)
    """Writes in each slice of the time that were confirmed, or answered OK where nobody asks."""
    failed: Counter[int] = field(default_factory=Counter)
    slowest: dict[int, float] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)
    """How many keys each client wrote, by what they begin with."""


class Load:
    """See the module.

    ``connect`` opens a connection to the endpoint; ``pace`` are seconds between two writes of a client, ``slice_``
    seconds of the time line.
    """

    def __init__(self, connect: Connect, prefix: str, *, pace: float, slice_: float = 0.5) -> None:
        self.groups: list[Group] = []
        self._connect = connect
        self._prefix = prefix
        self._pace = pace
        self._slice = slice_
        self._began = time.monotonic()
        self._numbers = iter(range(1 << 30))

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def group(self, name: str, copies: int) -> Group:
        """Clients whose WAIT asks for so many copies; 0: they do not ask."""
        group = Group(name, copies)
        self.groups.append(group)
        return group

    async def run(self, group: Group, tags: Sequence[str], clients: int) -> None:
        """Have so many clients write keys with these hash tags until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                number = next(self._numbers)
                key = f"{self._prefix}{{{tags[number % len(tags)]}}}:{number}:"
                nursery.start_soon(self._write_for_ever, group, key)

    async def _write_for_ever(self, group: Group, key: str) -> None:
        connection: ControlConnection | None = None
        number = 0
        last = self.now
        try:
            while True:
                try:
                    if connection is None or connection.closed:
                        connection = await self._connect()
                    number = group.written[key] = number + 1
                    began = self.now
                    confirmed = await self._write(connection, group, f"{key}{number}", f"value {number}")
                except (ConnectionLost, ReplyError) as error:
                    self._failed(group, "connection lost" if isinstance(error, ConnectionLost) else _kind(str(error)))
                    if connection is not None:
                        connection.abort()
                        connection = None
                    await trio.sleep(AGAIN)
                    continue
                now = self.now
                at = int(now / self._slice)
                group.slowest[at] = max(group.slowest.get(at, 0.0), now - began)
                if confirmed:
                    group.done[at] += 1
                    if now - last - self._pace > group.stall:
                        group.stall, group.stalled_at = now - last - self._pace, last
                    last = now
                await trio.sleep(self._pace)
        finally:
            if connection is not None:
                connection.abort()
            group.stall = max(group.stall, self.now - last - self._pace)

    async def _write(self, connection: ControlConnection, group: Group, key: str, value: str) -> bool:
        """Whether all went as it should."""
        group.writes += 1
        wait: list[Sequence[Arg]] = [["WAIT", group.copies, WAIT_MS]] if group.copies else []
        written, *told = await connection.pipeline(["SET", key, value, "EX", LIFETIME], *wait, timeout=PATIENCE)
        if isinstance(written, ReplyError):
            self._failed(group, _kind(str(written)))
            return False
        if not told:
            return True
        if isinstance(told[0], int) and told[0] >= group.copies:
            group.confirmed[key] = value
            return True
        group.unconfirmed += 1
        if isinstance(told[0], ReplyError) and told[0].code == "UNBLOCKED":
            connection.abort()  # as the proxy does: who is told so begins anew
        self._failed(group, _kind(str(told[0])) if isinstance(told[0], ReplyError) else f"WAIT answered {told[0]}")
        return False

    def _failed(self, group: Group, kind: str) -> None:
        group.errors[kind] += 1
        group.failed[int(self.now / self._slice)] += 1

    # -- afterwards ------------------------------------------------------------------------------------
    async def check(self) -> None:
        """Read everything confirmed back, note what is not there, and delete it.

        Raises ``ConnectionLost``, ``ReplyError`` when the cluster is not served.
        """
        async with await self._connect() as connection:
            for group in self.groups:
                for keys in _portions(list(group.confirmed), READ_AT_ONCE):
                    found = await connection.pipeline(*[["GET", key] for key in keys], timeout=PATIENCE)
                    for key, value in zip(keys, found, strict=True):
                        if isinstance(value, ReplyError):
                            raise value
                        if value is None or value.decode() != group.confirmed[key]:
                            group.lost.append(key)
                for key, count in group.written.items():
                    for keys in _portions([f"{key}{number + 1}" for number in range(count)], READ_AT_ONCE):
                        await connection.call("UNLINK", *keys, timeout=PATIENCE)


def tags_of(slots: Sequence[tuple[int, int]], count: int) -> list[str]:
    """Hash tags whose slots lie in these ranges."""

    def within() -> Iterator[str]:
        for number in range(1 << 30):
            slot = key_slot(b"%d" % number)
            if any(first <= slot <= last for first, last in slots):
                yield str(number)

    return list(islice(within(), count))


def _portions(keys: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _kind(text: str) -> str:
    """An error by what makes it another kind, without what differs each time."""
    code = text.partition(" ")[0]
    if UNKNOWN in text:
        return f"{code} outcome unknown"
    return code if code != "ERR" else " ".join(text.split()[:7])
