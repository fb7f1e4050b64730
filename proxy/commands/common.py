"""What the subcommands share: how errors are told, how a long-running command ends, whether a port can be had."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import trio

from proxy.errors import UserError
from shard import names
from shard.errors import ShardError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandError(UserError):
    """A command cannot do what it was asked for."""


def explanation(error: BaseException) -> str | None:
    """The user's lines for ``error`` when all that is in it (it may be a group) is the user's to mend; else None."""
    lines: list[str] = []
    for leaf in leaves(error):
        if not isinstance(leaf, UserError | ShardError):
            return None
        if str(leaf) not in lines:
            lines.append(str(leaf))
    return "\n".join(lines) or None


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in ``error`` that are no groups. Cancellation is left out: it is how the rest of a nursery ends,
    not a cause."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    elif not isinstance(error, trio.Cancelled):
        yield error


def check_port(host: str, port: int, *, option: str) -> None:
    """Raises CommandError when ``host:port`` cannot be listened on, naming ``option`` as the cure.

    Asked before a cluster is started: to learn it after ten seconds of forming would be a pity.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            f"stop what uses it or choose another with {option} (0 takes any free one)"
        ) from None


class Stop:
    """How a long-running command ends.

    The first signal cancels ``scope``, in whose ``finally`` blocks everything is stopped in order; the second calls
    what is in ``at_once``, the latest first, which must not wait, and ends the process. SIGTERM has ``drain`` run to
    its end first, if there is one. ``signum`` is the first signal, 0 before it. ``on_signal``, while set, may take a
    signal for itself by returning True. ``status`` is the exit status after a signal; None, as long as what was asked
    for has not been reached, is 128 + the signal's number.
    """

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.signum = 0
        self.status: int | None = None
        self.on_signal: Callable[[int], bool] | None = None
        self.drain: Callable[[], Awaitable[None]] | None = None
        self.at_once: list[Callable[[], None]] = []

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes signals until cancelled. One that is ignored by inheritance (nohup) stays ignored, but for SIGINT and
        SIGTERM."""
        wanted = [
            number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    self._take(number, nursery)

    def _take(self, number: int, nursery: trio.Nursery) -> None:
        if self.on_signal is not None and self.on_signal(number):
            return
        if self.signum == 0:
            self.signum = number
            if number == signal.SIGTERM and self.drain is not None:
                nursery.start_soon(self._drain, self.drain)
            else:
                self.scope.cancel()
            return
        for action in reversed(self.at_once):
            action()
        os._exit(128 + number)

    async def _drain(self, drain: Callable[[], Awaitable[None]]) -> None:
        await drain()
        self.scope.cancel()


def run_until_stopped(body: Callable[[Stop], Awaitable[int]]) -> int:
    """Runs ``body`` under trio until it returns its exit status or a signal stops it (see ``Stop.status``)."""
    return trio.run(partial(_run_until_stopped, body))


async def _run_until_stopped(body: Callable[[Stop], Awaitable[int]]) -> int:
    names.install()
    stop = Stop()
    status = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(stop.watch)
        with stop.scope:
            status = await body(stop)
        if stop.scope.cancelled_caught:
            status = 128 + stop.signum if stop.status is None else stop.status
        nursery.cancel_scope.cancel()
    return status
