"""The end of a proxy that is stopped in an orderly way: nobody comes in, and who is in gets the answers that are due.

What each session may still do:

* one with nothing under way is closed at once, and so are subscribers and those who look on with MONITOR;
* what was received is carried out and answered, a WAIT included, and nothing more is read;
* a transaction that was begun (WATCH, MULTI) may be carried to its end;
* a blocking command ends with the error of CLIENT UNBLOCK: the engine decides whether an element was faster, so none is
  lost on its way to a client that is gone.
"""

from __future__ import annotations

import structlog
import trio

from proxy.control.blocking import Block
from proxy.dataplane import Client, DataPlane
from proxy.sessions.session import Session

LOOK = 0.02  # seconds between two looks who is left
LINGER = 0.5  # seconds at most for which clients may take their time to close their ends


class Drain:
    """See the module.  ``sessions`` are those that are open, by client id."""

    def __init__(self, plane: DataPlane, sessions: dict[int, Session]) -> None:
        self.plane = plane
        self.sessions = sessions
        self.begun = False
        self._unblocked: set[Session] = set()

    async def run(self, seconds: float) -> None:
        """Return when everybody is gone, or after so many seconds: who is left then is closed all the same."""
        log = structlog.get_logger("server")
        self.begun = True
        self.plane.wind_up()
        log.info("draining", clients=len(self.plane.clients), seconds=seconds)
        with trio.move_on_after(seconds):
            while self.plane.clients:
                self._look()
                self.plane.let_linger()
                await trio.sleep(LOOK)
        cut = list(self.plane.clients.values())
        with self.plane.turn():
            for client in cut:
                self.plane.kill(client)
        with trio.move_on_after(min(LINGER, seconds)):
            while self.plane.let_linger():  # noqa: ASYNC110 -- sockets that nobody waits for any more
                await trio.sleep(LOOK)
        if cut:
            log.warning("clients were closed with something under way", clients=len(cut), seconds=seconds)
        else:
            log.info("drained")

    def _look(self) -> None:
        with self.plane.turn():
            for client in list(self.plane.clients.values()):
                self._end(client, self.sessions[client.id])

    def _end(self, client: Client, session: Session) -> None:
        if session.transaction is not None:
            return
        if session.subscriptions is not None or session.monitoring:
            self.plane.finish(client)
            return
        if isinstance(session.blocked, Block) and session not in self._unblocked:
            self._unblocked.add(session)
            session.blocked.unblock(with_error=True)
        self.plane.end_input(client)
