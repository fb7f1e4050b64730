"""A worker's process: ``python -m proxy.workers NUMBER DESCRIPTOR``, started by its parent and by nobody else.

What lives here: a whole proxy run for a parent, and what that asks it. ``DESCRIPTOR`` is its end of the private socket.
"""

from __future__ import annotations

import socket
import sys
import traceback
from typing import Any

import msgspec
import structlog
import trio

from proxy.commands.common import Stop, explanation, run_until_stopped
from proxy.control.siblings import Place
from proxy.observe.admin import admin_app
from proxy.observe.log import configure_log
from proxy.server import Server
from proxy.settings import ProxySettings
from proxy.workers.http import answer
from proxy.workers.link import Emit, Link, Unanswered
from proxy.workers.totals import families, families_in_pieces

PATIENCE = 2.0  # seconds for the parent, which asks the siblings, to answer


class _Siblings:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, what: str, value: Any) -> list[Any]:
        with trio.move_on_after(PATIENCE):
            try:
                return list(await self._link.ask("siblings", (what, value)))
            except Unanswered:
                return []
        return []


class _Worker:
    """One worker, from its order to its end."""

    def __init__(self, number: int, ours: socket.socket, stop: Stop) -> None:
        self.number = number
        self._stop = stop
        answers = {"figures": self._figures, "sibling": self._sibling, "http": self._http, "end": self._end}
        self.link = Link(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), answers)
        self.server: Server | None = None

    async def run(self) -> int:
        """Serve until stopped, or until the parent is gone. Returns the exit status."""
        async with trio.open_nursery() as nursery:
            listening = trio.CancelScope(shield=True)
            nursery.start_soon(self._listen_to_parent, listening)
            try:
                await self._serve()
            except Unanswered:
                return 1  # the parent has gone
            except Exception as error:
                text = explanation(error)
                if text is None:
                    traceback.print_exception(error)
                await self._tell("failed", text or f"worker {self.number} had a defect, see the lines above")
                return 1
            finally:
                with trio.CancelScope(shield=True):
                    await self._last_words()
                listening.cancel()
        return 0

    async def _listen_to_parent(self, listening: trio.CancelScope) -> None:
        with listening:
            await self.link.run()
            self._stop.scope.cancel()

    async def _serve(self) -> None:
        settings, late, secret = await self.link.ask("order")
        order = msgspec.json.decode(settings, type=ProxySettings)
        place = Place(self.number, late, secret, _Siblings(self.link))
        server = Server(order, log=configure_log(order.log), place=place)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            self.server = server
            self._stop.status = 0
            await server.wait_ready()
            self._stop.drain = self._drain
            await self._tell("accepting", None)
            await trio.sleep_forever()

    async def _drain(self) -> None:
        await self._tell("leaving", None)
        await self._present().drain()

    async def _tell(self, what: str, value: Any) -> None:
        with trio.move_on_after(PATIENCE):
            try:
                await self.link.ask(what, value)
            except Unanswered:
                return  # the parent has gone

    async def _last_words(self) -> None:
        if self.server is not None:
            await self._tell("last", families(self.server.metrics.registry))

    # -- what the parent asks ------------------------------------------------------------------------
    def _present(self) -> Server:
        if self.server is None:
            raise RuntimeError("it is starting")
        return self.server

    async def _figures(self, value: Any, emit: Emit) -> Any:
        return await families_in_pieces(self._present().metrics.registry)

    async def _sibling(self, value: Any, emit: Emit) -> Any:
        return await self._present().answer_sibling(*value)

    async def _end(self, value: Any, emit: Emit) -> bool:
        self._stop.scope.cancel()
        return True

    async def _http(self, value: Any, emit: Emit) -> None:
        await answer(admin_app(self._present()), value, emit)


def main(number: int, descriptor: int) -> int:
    """Runs a worker and returns its exit status."""
    structlog.contextvars.bind_contextvars(worker=number)
    ours = socket.socket(fileno=descriptor)
    ours.setblocking(False)

    async def body(stop: Stop) -> int:
        return await _Worker(number, ours, stop).run()

    return run_until_stopped(body)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
