"""Clients whose data itself tells what was done to it: in which order it was written, how often, and by whom.

A session appends ascending numbers to a list of its own, so that the list in the end is the history of what was really
executed; and each client counts with INCR, so that its counter is the number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.clients import Ledger, ProxyClient, Reply, kind

APPENDED = 6
COUNTED = 2
UNKNOWN = b"outcome is unknown"


@dataclass
class Log:
    """What a session was told of its list."""

    key: str
    sent: int = 0
    """The last number that was appended."""
    confirmed: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    """Those of which it was told that they were not."""


@dataclass
class Count:
    """What a client was told of its counter; how often it may have counted."""

    key: str
    answered: int = 0
    unknown: int = 0
    confirmed: int = 0


class RecordClient(ProxyClient):
    """See the module."""

    def __init__(self, number: int, ledger: Ledger, urls: Sequence[str]) -> None:
        super().__init__(number, ledger, urls)
        self.count = Count(f"{self.name}:count")
        self.logs: list[Log] = []
        self.give_up()

    def give_up(self) -> None:
        """Another session, another list: what the last one sent may still come behind what the next one sends."""
        self.logs.append(Log(f"{self.name}:log:{len(self.logs)}"))
        self._appended: list[int] = []  # and answered, and not confirmed yet
        self._counted = 0

    def _write(self) -> None:
        log = self.logs[-1]
        numbers = [log.sent + 1 + n for n in range(APPENDED)]
        log.sent = numbers[-1]
        self.ledger.operations += APPENDED + COUNTED
        requests: list[list[bytes | str | int]] = [["RPUSH", log.key, number] for number in numbers]
        requests += [["INCR", self.count.key]] * COUNTED
        self.count.unknown += COUNTED
        replies = self.wire.pipeline([*requests, self.question()])
        self.count.unknown -= COUNTED
        for number, reply in zip(numbers, replies, strict=False):
            self._append_answered(number, reply)
        for reply in replies[APPENDED:-1]:
            self._count_answered(reply)
        if self.told(replies[-1]):
            self._reached(log)

    def _append_answered(self, number: int, reply: Reply) -> None:
        if reply.startswith(b":"):
            self._appended.append(number)
            return
        self.ledger.errors[kind(reply)] += 1
        if UNKNOWN not in reply:
            self.logs[-1].refused.add(number)

    def _count_answered(self, reply: Reply) -> None:
        if reply.startswith(b":"):
            self.count.answered += 1
            self._counted += 1
            return
        self.ledger.errors[kind(reply)] += 1
        self.count.unknown += UNKNOWN in reply

    def _reached(self, log: Log) -> None:
        self.progressed()
        self.ledger.count(len(self._appended) + self._counted)
        log.confirmed.update(self._appended)
        self.count.confirmed += self._counted
        self._appended, self._counted = [], 0
        last = self.wire.call("LINDEX", log.key, -1)
        if last.startswith(b"-"):
            self.ledger.errors[kind(last)] += 1
        elif log.confirmed and not max(log.confirmed) <= number_in(last) <= log.sent:
            told = f"{log.key} ends with {last!r} behind the acknowledgment of {max(log.confirmed)}"
            self.ledger.broke("read misses an acknowledged write", told)


def number_in(reply: Reply) -> int:
    """Of a bulk string; -1 where there is none."""
    lines = reply.split(b"\r\n")
    return int(lines[1]) if len(lines) > 1 and lines[1] else -1


def check_log(log: Log, found: list[int], ledger: Ledger) -> list[str]:
    """What was acknowledged and is not there; broken invariants go to the ledger."""
    if len(set(found)) != len(found):
        ledger.broke("executed twice", f"{log.key}: {_around(found, lambda a, b: a == b or found.count(b) > 1)}")
    elif found != sorted(found):
        ledger.broke("later write overtaken by an earlier one", f"{log.key}: {_around(found, lambda a, b: b < a)}")
    if told := log.refused & set(found):
        ledger.broke("refused and executed", f"{log.key}: {sorted(told)[:5]}")
    if alien := [number for number in found if not 1 <= number <= log.sent]:
        ledger.broke("write that nobody sent", f"{log.key}: {alien[:5]}")
    return [f"{log.key}[{number}]" for number in sorted(log.confirmed - set(found))]


def check_count(count: Count, found: int, ledger: Ledger) -> list[str]:
    """The same of a counter."""
    if found > count.answered + count.unknown:
        told = f"{count.key} is {found}, {count.answered} were answered and {count.unknown} may have been executed"
        ledger.broke("executed twice", told)
    return [f"{count.key}: {count.confirmed - found} counts"] if found < count.confirmed else []


def _around(found: list[int], odd: Callable[[int, int], bool]) -> list[int]:
    at = next((n for n in range(1, len(found)) if odd(found[n - 1], found[n])), 0)
    return found[max(0, at - 3) : at + 3]
