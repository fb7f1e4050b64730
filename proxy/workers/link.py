"""The private socket between the parent and a worker: questions and answers, either way, many at a time.

A message is its length (4 bytes) and a MessagePack array (kind, number, what, value). It needs no name in a file system
and no password: both ends are inherited, and when one process is gone the other reads the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

ASK, ITEM, RESULT, FAILURE, CANCEL = range(5)
MOST_WAITING = 1000  # messages waiting for the other side to read, above which it is asked nothing
READ = 65536  # bytes at a time

Emit = Callable[[Any], None]
Answer = Callable[[Any, Emit], Awaitable[Any]]
"""Answers a question about a value; ``Emit`` sends something ahead of the answer."""


class Unanswered(Exception):
    """The other side is gone, has too much to do, or answered with an error, which is the message."""


class _Question:
    def __init__(self, each: Emit) -> None:
        self.each = each
        self.done = trio.Event()
        self.result: Any = None
        self.failure: str | None = None


class Link:
    """One end. ``answers`` are what the other may ask for, by name."""

    def __init__(self, stream: trio.abc.Stream, answers: Mapping[str, Answer]) -> None:
        self._stream = stream
        self._answers = answers
        self._numbers = itertools.count(1)
        self._open: dict[int, _Question] = {}
        self._under_way: dict[int, trio.CancelScope] = {}
        self._send_out, self._to_send = trio.open_memory_channel[bytes](math.inf)
        self._closed = False

    async def run(self) -> None:
        """Carry messages until the other side has gone; then whoever waits for an answer is told."""
        try:
            async with self._stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._closed = True
            for question in self._open.values():
                question.failure = "it is gone"
                question.done.set()

    async def ask(self, what: str, value: Any = None, each: Emit = lambda item: None) -> Any:
        """The answer of the other side; ``each`` is called with everything that comes ahead of it.

        Raises ``Unanswered``. Cancelled, it is not answered any further there either.
        """
        if self._closed or self._to_send.statistics().current_buffer_used > MOST_WAITING:
            raise Unanswered("it is gone" if self._closed else "it does not read")
        number = next(self._numbers)
        question = self._open[number] = _Question(each)
        self._say(ASK, number, what, value)
        try:
            await question.done.wait()
        except trio.Cancelled:
            self._say(CANCEL, number)
            raise
        finally:
            del self._open[number]
        if question.failure is not None:
            raise Unanswered(question.failure)
        return question.result

    def _say(self, kind: int, number: int, what: str = "", value: Any = None) -> None:
        message = msgspec.msgpack.encode((kind, number, what, value))
        self._send_out.send_nowait(len(message).to_bytes(4, "big") + message)

    async def _write(self) -> None:
        try:
            async for message in self._to_send:
                await self._stream.send_all(message)
        except trio.BrokenResourceError:
            await trio.sleep_forever()  # the reader sees the end

    async def _read(self, nursery: trio.Nursery) -> None:
        gathered = bytearray()
        while True:
            try:
                received = await self._stream.receive_some(READ)
            except trio.BrokenResourceError:
                return
            if not received:
                return
            gathered += received
            while len(gathered) >= 4 and len(gathered) >= (end := 4 + int.from_bytes(gathered[:4], "big")):
                message = bytes(gathered[4:end])
                del gathered[:end]
                self._take(nursery, *msgspec.msgpack.decode(message))

    def _take(self, nursery: trio.Nursery, kind: int, number: int, what: str, value: Any) -> None:
        if kind == ASK:
            self._under_way[number] = trio.CancelScope()
            nursery.start_soon(self._answer, number, what, value)
        elif kind == CANCEL:
            scope = self._under_way.get(number)
            if scope is not None:
                scope.cancel()
        elif (question := self._open.get(number)) is None:
            return  # nobody waits for it any more
        elif kind == ITEM:
            question.each(value)
        else:
            question.result, question.failure = value, what if kind == FAILURE else None
            question.done.set()

    async def _answer(self, number: int, what: str, value: Any) -> None:
        try:
            with self._under_way[number]:
                result = await self._answers[what](value, lambda item: self._say(ITEM, number, "", item))
                self._say(RESULT, number, "", result)
        except Exception as error:  # one question that fails is no reason to lose the others
            self._say(FAILURE, number, f"{type(error).__name__}: {error}")
        finally:
            del self._under_way[number]
