"""Looking host names up, so that one that is gone keeps nobody from the others.

The system's own look-up blocks a thread, for 10 s and more where nobody answers for a name: on a container engine's
network that leads nowhere else, say, for the name of a container that was stopped. Asked again and again for one node
that is down, it would soon have every thread that there is, and the name of no other node would be found. So:

* Look-ups have threads of their own, and of one name only so many at a time: who asks for it meanwhile waits with them.
* A look-up that takes long, or fails for a reason that may pass, is answered with what was found last. Whoever connects
  there makes sure whom it has met.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Any

import trio

PATIENCE = 0.25
"""Seconds before what was found last is good enough."""
ANEW = 1.0
"""Seconds after which a look-up that is not answered does not keep one from asking anew: the name may be there now."""
AT_A_TIME = 8
"""Look-ups of one name."""
THREADS = 400
KEPT = 10_000
"""Names of which it is remembered what was found last."""

Found = list[tuple[Any, ...]]
Question = tuple[Any, ...]


class _Lookup:
    """One question that was put to the system."""

    def __init__(self) -> None:
        self.asked_at = trio.current_time()
        self.done = trio.Event()
        self.found: Found = []
        self.error: OSError | None = None


class Names(trio.abc.HostnameResolver):
    """The resolver of one ``trio.run``; see the module. Numeric addresses never come here."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)
        self._lookups: dict[Question, list[_Lookup]] = {}
        self._last: OrderedDict[Question, Found] = OrderedDict()

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """As ``socket.getaddrinfo``. Raises ``socket.gaierror``."""
        question = host, port, family, type, proto, flags
        lookup = self._lookup(question)
        last = self._last.get(question)
        with trio.move_on_after(PATIENCE) if last is not None else trio.CancelScope():
            await lookup.done.wait()
        if lookup.done.is_set() and lookup.error is None:
            return lookup.found
        passing = lookup.error is None or lookup.error.errno == socket.EAI_AGAIN
        if last is not None and passing:
            return last
        raise lookup.error or socket.gaierror(socket.EAI_AGAIN, "no answer yet")

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        """As ``socket.getnameinfo``."""
        return await trio.to_thread.run_sync(
            socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True, limiter=self._threads
        )

    def _lookup(self, question: Question) -> _Lookup:
        """One that is on its way, or a new one."""
        flying = self._lookups.setdefault(question, [])
        fresh = flying and trio.current_time() - flying[-1].asked_at < ANEW
        if not fresh and len(flying) < AT_A_TIME:
            flying.append(_Lookup())
            trio.lowlevel.spawn_system_task(self._look_up, question, flying[-1])
        return flying[-1]

    async def _look_up(self, question: Question, lookup: _Lookup) -> None:
        try:
            lookup.found = await trio.to_thread.run_sync(
                socket.getaddrinfo, *question, abandon_on_cancel=True, limiter=self._threads
            )
        except OSError as error:
            lookup.error = error
        except UnicodeError as error:  # a name that cannot be one
            lookup.error = socket.gaierror(socket.EAI_NONAME, str(error))
        except RuntimeError as error:  # no thread is to be had
            lookup.error = socket.gaierror(socket.EAI_AGAIN, str(error))
        else:
            self._remember(question, lookup.found)
        finally:
            self._forget(question, lookup)
            lookup.done.set()

    def _remember(self, question: Question, found: Found) -> None:
        self._last[question] = found
        self._last.move_to_end(question)
        if len(self._last) > KEPT:
            self._last.popitem(last=False)

    def _forget(self, question: Question, lookup: _Lookup) -> None:
        flying = self._lookups[question]
        flying.remove(lookup)
        if not flying:
            del self._lookups[question]


def install() -> None:
    """Have every look-up of the present ``trio.run`` made so."""
    trio.socket.set_custom_hostname_resolver(Names())
