"""WAIT and WAITAOF of one session, at their turn."""

from __future__ import annotations

from collections.abc import Callable

import trio

from proxy.acks.arguments import Refused, parse_wait, parse_waitaof
from proxy.acks.wait import GONE, Acks, Unconfirmed
from proxy.codec.reply import elements, error, integer_value, is_error
from proxy.control.call import Call, Handler, Step
from proxy.control.sending import Sender
from proxy.observe.metrics import WaitCommand, WaitResult


class WaitCommands:
    """See the module.  ``observe(command, result, seconds)`` is told of each one that ended."""

    def __init__(self, sender: Sender, acks: Acks, observe: Callable[[WaitCommand, WaitResult, float], None]) -> None:
        self.sender = sender
        self.acks = acks
        self._observe = observe
        self.handlers: dict[bytes, Handler] = {b"wait": self._wait, b"waitaof": self._wait}

    def _wait(self, call: Call) -> Step | None:
        try:
            asked = parse_wait(call.args) if call.command.name == b"wait" else parse_waitaof(call.args)
        except Refused as refused:
            self.sender.answer(call.request, error(str(refused)))
            return None

        async def wait() -> None:
            started = trio.current_time()
            result: WaitResult = "gone"
            try:
                frame = await self.acks.wait(call.session.client, call.session.memory, asked)
                result = _wait_result(frame, asked.local, asked.replicas)
                self.sender.answer(call.request, frame)
            except Unconfirmed:
                result = "unblocked"
                with self.sender.plane.turn():
                    self.sender.plane.answer(call.request, GONE)
                    self.sender.plane.finish(call.session.client)
            finally:
                call.session.waiting = False
                self._observe("waitaof" if asked.fsync else "wait", result, trio.current_time() - started)

        call.session.waiting = True  # now, not when the task runs: EOF may be read before that
        return wait()


def _wait_result(frame: bytes, local: int, replicas: int) -> WaitResult:
    if is_error(frame):
        return "error"
    if frame[:1] == b":":
        return "reached" if integer_value(frame) >= replicas else "deadline"
    got_local, got = (integer_value(each) for each in elements(frame))
    return "reached" if got_local >= local and got >= replicas else "deadline"
