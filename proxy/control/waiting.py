"""WAIT and WAITAOF of one session, at their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from proxy.acks.arguments import Asked, Refused, parse_wait, parse_waitaof
from proxy.acks.crowd import Crowd
from proxy.acks.question import Counts, Question
from proxy.acks.wait import GONE, Acks
from proxy.codec.reply import elements, error, integer_value, is_error
from proxy.control.call import Call, Handler
from proxy.control.sending import Sender
from proxy.observe.metrics import WaitCommand, WaitResult
from proxy.sessions.session import Session

MOST_READ = 1024  # requests whose meaning is kept
LONGEST_READ = 128  # bytes of one
UNBLOCKED = b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"


class Waiting:
    """A session blocked in WAIT or WAITAOF."""

    __slots__ = ("_call", "_commands", "_member", "_started")

    def __init__(self, commands: WaitCommands, call: Call, question: Question) -> None:
        self._commands = commands
        self._call = call
        self._started = trio.current_time()
        self._member = commands.crowd.ask(question, self._done)

    def unblock(self, with_error: bool) -> None:
        if with_error:
            self._member.cancel()
            self._done(UNBLOCKED)
        else:
            self._member.expire()

    def cancel(self) -> None:
        """The client is gone."""
        self._member.cancel()
        self._observe("gone", None)

    def _done(self, frame: bytes | None, counts: Counts | None = None) -> None:
        session, request = self._call.session, self._call.request
        session.blocked = session.working = None  # before the answer, behind which the next command may block
        if frame is None:
            self._observe("unconfirmed", None)
            self._commands.sender.answer_last(request, GONE)
            return
        asked = self._member.question.asked
        if counts is None:
            counts = _counts(frame)
        if counts is None:
            self._observe("refused", None)
        else:
            reached = counts[0] >= asked.local and counts[1] >= asked.replicas
            self._observe("reached" if reached else "deadline", counts[1])
        self._commands.sender.answer(request, frame)

    def _observe(self, result: WaitResult, replicas: int | None) -> None:
        command: WaitCommand = "waitaof" if self._member.question.asked.fsync else "wait"
        self._commands.observe(command, result, trio.current_time() - self._started, replicas)


class WaitCommands:
    """See the module.  ``observe(command, result, seconds, replicas)`` is told of each one that ended, with the number
    it was answered, if any.
    """

    def __init__(
        self, sender: Sender, acks: Acks, observe: Callable[[WaitCommand, WaitResult, float, int | None], None]
    ) -> None:
        self.sender = sender
        self.acks = acks
        self.crowd = Crowd(acks, sender.plane.turn)
        self.observe = observe
        self._read: dict[bytes, Asked] = {}
        """What requests ask for, by their bytes: applications say the same again and again."""
        self.handlers: dict[bytes, Handler] = {b"wait": self._wait, b"waitaof": self._wait}

    def _wait(self, call: Call) -> None:
        asked = self._read.get(call.request.raw)
        if asked is None:
            try:
                asked = _asked(call.args)
            except Refused as refused:
                self.observe("wait" if call.command.name == b"wait" else "waitaof", "refused", 0.0, None)
                self.sender.answer(call.request, error(str(refused)))
                return
            if len(self._read) < MOST_READ and len(call.request.raw) <= LONGEST_READ:
                self._read[call.request.raw] = asked
        session = call.session
        question = self.acks.question(session.client, session.memory, asked)
        session.blocked = session.working = Waiting(self, call, question)

    async def present(self, session: Session, calls: Sequence[Sequence[bytes]]) -> list[bytes]:
        """The replies to calls inside MULTI, where nothing may block: what there is now, of earlier writes.

        The engine, too, counts only what the session wrote before EXEC, since it replicates a transaction at its end.
        Raises ``Unconfirmed``.
        """
        told: dict[tuple[bool, int], bytes] = {}
        frames: list[bytes] = []
        for args in calls:
            try:
                asked = _asked(args)._replace(timeout=None)
            except Refused as refused:
                frames.append(error(str(refused)))
                continue
            key = asked.fsync, asked.local
            if key not in told:
                question = self.acks.question(session.client, session.memory, asked, at_once=True)
                told[key] = await self.acks.wait(question)
            frames.append(told[key])
        return frames


def _asked(args: Sequence[bytes]) -> Asked:
    return parse_wait(args) if args[0].lower() == b"wait" else parse_waitaof(args)


def _counts(frame: bytes) -> Counts | None:
    """What a reply says; None for an error."""
    if is_error(frame):
        return None
    if frame[:1] == b":":
        return 0, integer_value(frame)
    local, replicas = (integer_value(each) for each in elements(frame))
    return local, replicas
