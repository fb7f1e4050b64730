"""Clients that write uniquely numbered keys, and note which of them they were told are safe."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from secrets import token_hex
from typing import Any

from proxy.codec import key_slot
from tests.acks.naive import Naive, Refused
from tests.system.wire import TIMEOUT, Closed, Wire

BATCH = 8  # writes before each WAIT
PACE_S = 0.02  # between two batches of one client: two cores have six servers and elections to run as well
ASKED = 500  # times that a client which lost its proxy looks for one
PATIENCE_MS = 700  # what each WAIT is given
WORTH_TELLING_S = 0.1  # of a stall
EXAMPLES = 50  # of broken invariants that are told in full
NAIVE_PATIENCE_S = 10.0  # for which naive fan-out asks again on new connections: long enough for the dead to come back

Reply = bytes
Write = tuple[str, str]


class Ledger:
    """What all clients were told; kept for the end, when everything is read back."""

    def __init__(self) -> None:
        self.storm = token_hex(4)
        """In the name of every key: what another storm left behind is not taken for this one's."""
        self.operations = 0
        self.acknowledged: dict[str, str] = {}
        self.unconfirmed: list[Write] = []
        """Answered OK, and the session heard no number that is enough."""
        self.waits: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.transactions: list[list[str]] = []
        """The keys of each: all of them are there in the end, or none is."""
        self.broken: Counter[str] = Counter()
        """Invariants, and how often they were."""
        self.examples: list[str] = []
        self.faults: list[tuple[float, str]] = [(time.monotonic(), "nothing")]
        """What was done, and when it began."""
        self.stalls: dict[str, float] = {}
        """The longest that any client waited from one confirmation to its next, in seconds, by what was done mostly."""
        self.confirmed = 0
        """Writes that were acknowledged."""
        self._times: deque[tuple[float, int]] = deque(maxlen=10_000)

    def confirm(self, writes: list[Write]) -> None:
        self.acknowledged.update(writes)
        self.count(len(writes))

    def count(self, number: int) -> None:
        self.confirmed += number
        self._times.append((time.monotonic(), number))

    @property
    def fault(self) -> str:
        """What is done just now."""
        return self.faults[-1][1]

    def begins(self, fault: str) -> None:
        self.faults.append((time.monotonic(), fault))

    def stalled(self, since: float) -> None:
        """Some client until now, from then on."""
        now = time.monotonic()
        if now - since < WORTH_TELLING_S:
            return
        shares: dict[float, str] = {}
        over = now
        for began, fault in reversed(self.faults):
            shares[over - max(began, since)] = fault
            if began <= since:
                break
            over = began
        fault = shares[max(shares)]
        self.stalls[fault] = max(self.stalls.get(fault, 0.0), now - since)

    @property
    def stall(self) -> float:
        """The longest of all."""
        return max(self.stalls.values(), default=0.0)

    def broke(self, invariant: str, example: str) -> None:
        """Something that must not be was seen."""
        self.broken[invariant] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{invariant} ({self.fault}): {example}")

    def in_the_last_second(self) -> int:
        """How many writes were acknowledged in it."""
        since = time.monotonic() - 1
        return sum(number for when, number in list(self._times) if when >= since)


class Unconfirmed(Exception):
    """There is no number, and the session is over."""


class Client:
    """One session in a thread of its own; a new one whenever it is closed.  What it raises fails the storm."""

    def __init__(self, number: int, ledger: Ledger, prefix: str = "chaos:") -> None:
        self.name = f"{prefix}{ledger.storm}:{number}"
        self.number = number
        self.ledger = ledger
        self.random = random.Random(number)
        self.written = 0
        self.pending: list[Write] = []
        self.failure: BaseException | None = None
        self._confirmed_at = time.monotonic()

    def run(self, stopping: threading.Event) -> None:
        self._confirmed_at = time.monotonic()
        try:
            while not stopping.wait(PACE_S):
                self.step()
            self.progressed()
        except BaseException as error:
            self.failure = error

    def step(self) -> None:
        """Write a batch and wait for it."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def next_write(self) -> Write:
        self.written += 1
        self.ledger.operations += 1
        return f"{self.name}:{self.written}", f"value {self.number} {self.written}"

    def question(self) -> list[bytes | str | int]:
        return ["WAIT", 1, PATIENCE_MS] if self.random.random() < 0.5 else ["WAITAOF", 1, 1, PATIENCE_MS]

    def take(self, writes: list[Write], reply: Reply) -> None:
        """Note the reply to a write."""
        if reply.startswith(b"-"):
            self.ledger.errors[kind(reply)] += 1
        else:
            self.pending += writes

    def confirmed(self) -> None:
        if self.pending:
            self.progressed()
        self.ledger.confirm(self.pending)
        self.pending = []

    def progressed(self) -> None:
        self.ledger.stalled(self._confirmed_at)
        self._confirmed_at = time.monotonic()

    def give_up(self) -> None:
        """Nobody can tell any more what became of them."""
        self.ledger.unconfirmed += self.pending
        self.pending = []


class ProxyClient(Client):
    """A plain client of one of several proxies, of another when that is lost.

    All of a batch, the WAIT included, goes out in one packet.
    """

    def __init__(self, number: int, ledger: Ledger, urls: Sequence[str], prefix: str = "chaos:") -> None:
        super().__init__(number, ledger, prefix)
        self.urls = urls
        self._next = number
        self.wire = self._connect()

    def _connect(self) -> Wire:
        """A new session.  Who finds nobody asks the next."""
        for _ in range(ASKED):
            self._next += 1
            try:
                return Wire.to(self.urls[self._next % len(self.urls)])
            except OSError:
                time.sleep(PACE_S)
        raise AssertionError("no proxy answers")

    def step(self) -> None:
        try:
            self._write()
        except TimeoutError:
            self.ledger.broke("client left without an answer", f"{self.name} for {TIMEOUT} s")
            self._begin_anew()
        except Unconfirmed:
            self._begin_anew()
        except (Closed, OSError):
            self.ledger.errors["connection lost"] += 1
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.give_up()
        self.wire.close()
        self.wire = self._connect()

    def _write(self) -> None:
        requests, answered = self._batch()
        replies = self.wire.pipeline([*requests, self.question()])
        for done, reply in zip(answered, replies, strict=False):
            if done:
                self.take(done, reply)
        if self.told(replies[-1]):
            self.confirmed()

    def told(self, reply: Reply) -> bool:
        """Whether WAIT says that it is enough.  Raises ``Unconfirmed`` where there is none, which ends a session."""
        if reply.startswith(b"-"):
            self.ledger.waits[kind(reply)] += 1
            if reply.startswith(b"-UNBLOCKED"):
                if not self.wire.at_eof():
                    self.ledger.broke("session without a number goes on", self.name)
                raise Unconfirmed
            return False
        reached = enough(reply)
        self.ledger.waits["reached" if reached else "deadline"] += 1  # at a deadline the next WAIT asks for these, too
        return reached

    def _batch(self) -> tuple[list[list[bytes | str | int]], list[list[Write]]]:
        """New writes in this client's own way, and which of them each reply is for."""
        writes = [self.next_write() for _ in range(BATCH)]
        if self.number % 4 == 1:
            return [["MSET", *(word for write in writes for word in write)]], [writes]
        if self.number % 4 == 2:
            tagged = [(f"{key}{{{self.name}:{self.written}}}", value) for key, value in writes]
            sets: list[list[bytes | str | int]] = [["SET", key, value] for key, value in tagged]
            self.ledger.transactions.append([key for key, _ in tagged])
            return [["MULTI"], *sets, ["EXEC"]], [[] for _ in range(BATCH + 1)] + [tagged]
        return [["SET", key, value] for key, value in writes], [[write] for write in writes]

    def close(self) -> None:
        self.wire.close()


class HeldClient(ProxyClient):
    """It asks for nothing: to it, every reply that is no error is an acknowledgment.

    So it is where ``durability`` keeps replies to its keys back until that is true, and nowhere else.
    """

    def _write(self) -> None:
        requests, answered = self._batch()
        for done, reply in zip(answered, self.wire.pipeline(requests), strict=True):
            if done:
                self.take(done, reply)
        self.confirmed()


class NaiveClient(Client):
    """A client of naive fan-out."""

    def __init__(self, number: int, ledger: Ledger, shards: Callable[[], list[dict[str, Any]]]) -> None:
        super().__init__(number, ledger)
        self.shards = shards
        self.naive = Naive(lambda: [address(shard) for shard in self.shards() if shard["primary"]])

    def step(self) -> None:
        for _ in range(BATCH):
            self._write(self.next_write())
        deadline = time.monotonic() + NAIVE_PATIENCE_S
        while time.monotonic() < deadline:
            try:
                if self.naive.wait(1, PATIENCE_MS) >= 1:
                    self.ledger.waits["reached"] += 1
                    self.confirmed()
                    return
            except (Refused, OSError, ValueError):
                time.sleep(PACE_S)  # a primary that does not answer, or is none any more
        self.ledger.waits["deadline"] += 1
        self.give_up()

    def _write(self, write: Write) -> None:
        slot = key_slot(write[0].encode())
        for shard in self.shards():
            if shard["primary"] and any(first <= slot <= last for first, last in shard["slots"]):
                try:
                    self.take([write], self.naive.call(address(shard), "SET", *write))
                except OSError:
                    self.ledger.errors["connection"] += 1

    def close(self) -> None:
        self.naive.close()


def address(shard: dict[str, Any]) -> tuple[str, int]:
    host, _, port = shard["primary"]["address"].rpartition(":")
    return host, int(port)


def enough(told: Reply) -> bool:
    """Whether a WAIT's or WAITAOF's reply says 1 wherever 1 was asked for."""
    return all(int(line[1:]) >= 1 for line in told.split(b"\r\n") if line.startswith(b":"))


def kind(reply: Reply) -> str:
    """An error by its first words, and by whether it leaves open what became of the write."""
    text = reply[1:].split(b"\r\n")[0].decode()
    code, _, rest = text.partition(" ")
    if "outcome is unknown" in rest or "outcome unknown" in rest:
        return f"{code} outcome unknown"
    return f"{code} {' '.join(takewhile(wordlike, rest.split()[:7]))}" if code == "ERR" else code


def wordlike(text: str) -> bool:
    """No number, no address: nothing that would make each error a kind of its own."""
    return not any(letter.isdigit() for letter in text)
