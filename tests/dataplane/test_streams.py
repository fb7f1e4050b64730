"""What a lane makes of any stream of replies, in whatever pieces it comes, however small the buffer."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from proxy.dataplane import lane as lanes
from tests.dataplane.bench import INFO, Bench, by_polling

# Bytes: of the buffer, and of an unfinished reply above which it is set aside.
BUFFERS = [(size, aside) for size in (64, 256, 4096) for aside in (1, 3, size // 4, size // 2, size, 2 * size)]
GARBAGE = (b"garbage\r\n", b"$x\r\n", b"*9999999999999999999\r\n", b"$3\r\nabcd\r\n", b"*1\r\n>1\r\n", b"%-1\r\n")
LEAVES = ["line", "bulk", "null", "many", "deep"]
AGGREGATES = ["*", "~", "%", "|"]


class Stream:
    """Replies, pushes between them, and garbage behind them, perhaps."""

    def __init__(self, dice: random.Random, pushes: bool) -> None:
        self.dice = dice
        self.size = dice.choice([2, lanes.RECEIVE // 8, lanes.RECEIVE // 2, lanes.RECEIVE, 3 * lanes.RECEIVE])
        self.replies: list[bytes] = []
        self.pushes: list[bytes] = []
        self.data = b""
        for _ in range(dice.randrange(1, 25)):
            self.replies.append(self.reply())
            self.data += self.replies[-1]
            if pushes and dice.random() < 0.3:
                self.pushes.append(self.aggregate(b">"))
                self.data += self.pushes[-1]
        self.ends_in_garbage = dice.random() < 0.3
        if self.ends_in_garbage:
            self.data += dice.choice(GARBAGE)

    def aggregate(self, kind: bytes, depth: int = 0) -> bytes:
        items = self.dice.randrange(4)
        count = items * 2 if kind in b"%|" else items
        return b"%b%d\r\n" % (kind, items) + b"".join(self.reply(depth + 1) for _ in range(count))

    def reply(self, depth: int = 0) -> bytes:
        dice = self.dice
        kind = dice.choice(LEAVES + AGGREGATES * (depth < 3))
        size = dice.choice([0, 1, 2, dice.randrange(self.size + 1)])
        if kind == "line":
            return dice.choice([b"+%b\r\n", b"-%b\r\n", b":%b\r\n"]) % (b"7" * size)
        if kind == "bulk":
            return b"$%d\r\n%b\r\n" % (size, dice.choice([b"\r", b"\n", b"$", b"*"]) * size)
        if kind == "null":
            return dice.choice([b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"*0\r\n", b"%0\r\n"])
        if kind == "many":
            return b"*%d\r\n" % size + b"".join(dice.choice([b"$1\r\nx\r\n", b":1\r\n"]) for _ in range(size))
        if kind == "deep":
            return b"*1\r\n" * size + b":1\r\n"
        whole = self.aggregate(kind.encode(), depth)
        return whole + self.reply(depth + 1) if kind == "|" else whole

    def pieces(self) -> Iterator[bytes]:
        size = lanes.RECEIVE
        around = [1, size // 2 - 1, size // 2, size // 2 + 1, size - 1, size]
        sizes = self.dice.choice([[1, 2, 7], around, [100 * size]])
        at = 0
        while at < len(self.data):
            end = at + max(self.dice.choice(sizes), len(self.data) // 2000)
            yield self.data[at:end]
            at = end


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("receive, set_aside", BUFFERS)
def test_every_reply_comes_whole_and_in_order(
    receive: int, set_aside: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "RECEIVE", receive)
    monkeypatch.setattr(lanes, "SET_ASIDE", set_aside)
    dice = random.Random(f"{receive} {set_aside} {seed}")
    pushes = dice.random() < 0.5
    stream = Stream(dice, pushes)
    bench = Bench(by_polling)
    got: list[bytes] = []
    shard = bench.attach(bench.lanes[0], pushes=pushes)
    with bench.plane.turn():
        for _ in stream.replies:
            bench.plane.submit(bench.lanes[0], INFO, got.append)
    with suppress(BrokenPipeError):  # what comes behind garbage is not read
        for piece in stream.pieces():
            shard.send(piece)
            bench.plane.run_once()
    bench.settle()
    assert got == stream.replies
    assert bench.notes.pushes == stream.pushes
    assert len(bench.notes.down) == stream.ends_in_garbage
    assert bench.notes.failures == []
    bench.close()


def test_a_long_line_leaves_no_large_buffer_behind(bench: Bench) -> None:
    (shard, *_) = bench.shards()
    sizes: list[int] = []
    line = b"+" + b"x" * (4 << 20) + b"\r\n"
    bench.plane.submit(bench.lanes[0], INFO, lambda frame: sizes.append(len(frame)))
    tracemalloc.start()
    try:
        shard.send(line)
        bench.spin(lambda: sizes)
        kept, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == [len(line)]
    assert highest > len(line)
    assert kept < 2 * lanes.RECEIVE
