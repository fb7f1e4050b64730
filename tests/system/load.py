"""Clients that keep working while things break and move, and remember what they were told."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from proxy.codec import key_slot
from tests.harness import PATIENCE_S, Up, until
from tests.system.wire import Closed, Wire

PACE_S = 0.003  # between two steps of a client, so that two cores have time left for elections


@cache
def tags() -> dict[int, str]:
    """A hash tag for (nearly) every slot."""
    return {key_slot(b"%d" % number): str(number) for number in range(150_000)}


def tag(slot: int) -> str:
    return "{" + tags()[slot] + "}"


Each = TypeVar("Each", bound="Worker")


class Worker:
    """One client in a thread of its own.  ``step`` is called again and again; what it raises fails the test."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.tag = tag(slot)
        self.steps = 0
        self.errors: list[bytes] = []
        self.failure: BaseException | None = None
        self.wire: Wire

    pipelined = True
    protocol = 2

    def step(self) -> None:
        raise NotImplementedError

    def ask(self, requests: list[list[bytes | str | int]]) -> list[bytes]:
        """The replies to requests sent in one packet, or each behind the reply to the one before."""
        return self.wire.pipeline(requests) if self.pipelined else [self.wire.call(*each) for each in requests]

    def verify(self) -> None:
        """What has to hold when all is over.  ``wire`` is still open."""

    def run(self, url: str, stopping: threading.Event) -> None:
        try:
            while not stopping.wait(PACE_S):
                self.step()
                self.steps += 1
        except BaseException as error:
            self.failure = error

    def __repr__(self) -> str:
        return f"{type(self).__name__}(slot {self.slot}, {self.steps} steps)"


class Setter(Worker):
    """Sets uniquely numbered keys, reading the last one back, without ever reconnecting."""

    def __init__(self, slot: int, name: int) -> None:
        super().__init__(slot)
        self.name = f"set:{name}:{self.tag}"
        self.answered: dict[str, str] = {}

    def step(self) -> None:
        key, value = f"{self.name}:{self.steps}", f"v{self.steps}"
        reply = self.wire.call("SET", key, value)
        if reply != b"+OK\r\n":
            self.errors.append(reply)
            return
        self.answered[key] = value
        read = self.wire.call("GET", key)
        # A read is never failed.  After a failover it may miss what no replica had (this client does not WAIT).
        assert read in (b"$%d\r\n%s\r\n" % (len(value), value.encode()), b"$-1\r\n", b"_\r\n"), read


class Confirmer(Worker):
    """Sets uniquely numbered keys and counts them as safe once WAIT says that a replica has them."""

    def __init__(self, slot: int, name: int) -> None:
        super().__init__(slot)
        self.name = f"wait:{name}:{self.tag}"
        self.confirmed: dict[str, str] = {}
        self.number = 0

    def run(self, url: str, stopping: threading.Event) -> None:
        try:
            while not stopping.wait(PACE_S):
                try:
                    self.step()
                    self.steps += 1
                except Closed:
                    self.wire.close()
                    self.wire = Wire.to(url)
        except BaseException as error:
            self.failure = error

    def step(self) -> None:
        self.number += 1
        key, value = f"{self.name}:{self.number}", f"w{self.number}"
        reply = self.wire.call("SET", key, value)
        if reply != b"+OK\r\n":
            self.errors.append(reply)
            return
        count = self.wire.call("WAIT", 1, 3000)
        if not count.startswith(b":"):
            self.errors.append(count)
            assert self.wire.at_eof(), "a session without a number to give is closed"
            raise Closed
        if int(count[1:]) >= 1:
            self.confirmed[key] = value


class Transactor(Worker):
    """Raises two counters of one slot in transactions: they never differ, and never go back."""

    def __init__(self, slot: int, name: int) -> None:
        super().__init__(slot)
        self.keys = [f"multi:{name}:{self.tag}:{which}" for which in "ab"]
        self.last = 0

    def step(self) -> None:
        one, other = self.keys
        *queued, reply = self.wire.pipeline([["MULTI"], ["INCR", one], ["INCR", other], ["EXEC"]])
        if reply.startswith(b"-"):
            self.errors.append(reply)
            return
        assert queued == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"], queued
        self.check(reply)

    def check(self, reply: bytes) -> None:
        self.last += 1
        assert reply == b"*2\r\n:%d\r\n:%d\r\n" % (self.last, self.last), (reply, self.last)


class Appender(Worker):
    """Appends numbers to one list and one string by pipelines: the replies and the end show any lost order."""

    BURST = 8

    def __init__(self, slot: int, name: int) -> None:
        super().__init__(slot)
        self.list = f"list:{name}:{self.tag}"
        self.string = f"string:{name}:{self.tag}"
        self.number = 0
        self.text = ""

    def step(self) -> None:
        requests: list[list[bytes | str | int]] = []
        expected: list[bytes] = []
        for _ in range(self.BURST):
            self.number += 1
            self.text += f"{self.number},"
            requests += [["RPUSH", self.list, self.number], ["APPEND", self.string, f"{self.number},"]]
            expected += [b":%d\r\n" % self.number, b":%d\r\n" % len(self.text)]
        requests += [["LINDEX", self.list, -1]]
        last = str(self.number).encode()
        expected += [b"$%d\r\n%s\r\n" % (len(last), last)]
        replies = self.wire.pipeline(requests)
        assert replies == expected, (replies, expected)

    def verify(self) -> None:
        items = self.wire.call("LRANGE", self.list, 0, -1).split(b"\r\n")[2::2]
        assert items == [str(number).encode() for number in range(1, self.number + 1)]
        assert self.wire.call("GET", self.string).split(b"\r\n", 1)[1] == self.text.encode() + b"\r\n"


class Spreader(Worker):
    """MSET, MGET, DEL over several slots, and over several keys of each: it reads what it wrote, in the keys' order."""

    def __init__(self, slots: Sequence[int], name: int) -> None:
        super().__init__(slots[0])
        self.keys = [f"spread:{name}:{tag(slot)}:{which}" for slot in slots for which in "abc"]

    def step(self) -> None:
        pairs = [word for at, key in enumerate(self.keys) for word in (key, f"{self.steps}.{at}")]
        values = [f"{self.steps}.{at}".encode() for at in range(len(self.keys))]
        read = b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)
        replies = self.ask([["MSET", *pairs], ["MGET", *self.keys], ["DEL", *self.keys[::3]]])
        assert replies == [b"+OK\r\n", read, b":%d\r\n" % len(self.keys[::3])], replies


class Swapper(Worker):
    """Multi-key commands within one slot, pipelined with single-key ones on the same keys: they keep their order."""

    def __init__(self, slot: int, name: int) -> None:
        super().__init__(slot)
        self.one, self.other = (f"swap:{name}:{self.tag}:{which}" for which in "ab")

    def step(self) -> None:
        first, second = f"{self.steps}.1", f"{self.steps}.2"
        replies = self.ask(
            [
                ["MSET", self.one, first, self.other, first],
                ["SET", self.one, second],
                ["GET", self.other],
                ["RENAME", self.one, self.other],
                ["GET", self.other],
                ["EXISTS", self.one, self.other],
                ["MSET", self.one, second, self.other, second],
            ]
        )
        told = [b"$%d\r\n%s\r\n" % (len(value), value.encode()) for value in (first, second)]
        assert replies == [b"+OK\r\n", b"+OK\r\n", told[0], b"+OK\r\n", told[1], b":1\r\n", b"+OK\r\n"], replies


@contextmanager
def load(url: str, workers: Sequence[Each]) -> Iterator[Sequence[Each]]:
    """Runs the workers while the block does; then stops them, and fails if one of them failed."""
    stopping = threading.Event()
    for worker in workers:
        worker.wire = Wire.to(url)
        assert not worker.wire.call("HELLO", worker.protocol).startswith(b"-")
    threads = [threading.Thread(target=worker.run, args=(url, stopping), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield workers
        stopping.set()
        for thread, worker in zip(threads, workers, strict=True):
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{worker} hangs"
        for worker in workers:
            if worker.failure is not None:
                raise AssertionError(f"{worker} failed") from worker.failure
            worker.verify()
    finally:
        stopping.set()
        for worker in workers:
            worker.wire.close()


def go_on(workers: Sequence[Worker], steps: int = 5) -> None:
    """Returns when each of them has finished that many steps more."""
    marks = {worker: worker.steps + steps for worker in workers}

    def behind() -> list[Worker]:
        return [worker for worker, mark in marks.items() if worker.steps < mark and worker.failure is None]

    try:
        until(lambda: not behind(), "")
    except AssertionError:
        raise AssertionError(f"no {steps} steps more: {behind()}") from None


def metric(running: Up, name: str) -> float:
    """A metric's value: with its labels as they stand there, or the sum over all of them."""
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    values = [float(value) for full, _, value in lines if name in (full, full.partition("{")[0])]
    assert values, f"there is no metric {name}"
    return sum(values)
