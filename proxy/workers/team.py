"""The parent's side: workers started, restarted, asked and ended.

Some facts this file depends on:

* Connections are dealt out among the sockets that *listen* on a port with SO_REUSEPORT. One that is only bound gets
  none and keeps the port all the same: the parent's, so that a worker that died can come back to it.
* The options are looked at when another socket is bound (inet_csk_get_port, inet_csk_bind_conflict): the parent's is
  bound *without* SO_REUSEPORT, so that a port in use is an error, and gets it afterwards, for its workers. It gives up
  SO_REUSEADDR then, or a stranger with that could listen beside it until the first worker does.
* A socket that is closed takes the connections with it that nobody had accepted: a worker that comes back listens only
  when it can accept (``Place.late``).
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from random import uniform
from typing import Any, NamedTuple

import msgspec
import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric

from proxy.errors import UserError
from proxy.listening import bound
from proxy.observe import families as families_of
from proxy.settings import ProxySettings
from proxy.workers.link import Answer, Emit, Link, Unanswered
from proxy.workers.totals import Family, Totals, families
from shard.process import Process, spawn

LOOK = 2.0  # seconds between two looks at workers' figures: what a killed one counted since is lost
PATIENCE = 1.0  # seconds for a worker to answer
AGAIN, AGAIN_MOST = 0.1, 10.0  # seconds before a worker that ended is started again; doubled while it does not last
LASTS = 10.0  # seconds after which one is taken to last
CPU_SECONDS = "process_cpu_seconds_total"
GRACE = 5.0  # seconds to end in, besides what it may drain


class Order(NamedTuple):
    """What a worker is told at its start. ``settings`` are JSON; ``late`` and ``secret``: see ``Place``."""

    settings: bytes
    late: bool
    secret: str


class Worker:
    """One worker's process, from its start to its end."""

    def __init__(self, number: int, process: Process, link: Link) -> None:
        self.number = number
        self.process = process
        self.link = link
        self.started = time.monotonic()
        self.accepts = False
        """It has said that it takes clients."""
        self.failure: str | None = None
        """Why it cannot serve, in words for a person, where that is for the user to mend."""
        self.families: list[Family] = []
        """Its figures when it was last asked."""
        self.answers = True
        """It did so in time."""

    async def ask(self, what: str, value: Any = None) -> Any:
        """Its answer, None when there is none in time."""
        with trio.move_on_after(PATIENCE):
            try:
                return await self.link.ask(what, value)
            except Unanswered:
                return None
        return None

    async def end(self) -> None:
        """Have it end without letting anybody out first."""
        with trio.move_on_after(GRACE):
            if self.accepts and await self.ask("end") is not None:
                await self.process.wait()
        await self.process.stop(0)

    async def look(self) -> None:
        """Have its latest figures; those of before stay where it does not answer."""
        found = await self.ask("figures")
        self.answers = found is not None
        if found is not None:
            self.families = [tuple(family) for family in found]


class Team:
    """So many workers of one proxy. ``address`` is where clients connect.

    Raises ``UserError`` from ``run`` for what is the user's to mend and keeps a worker from ever serving.
    """

    def __init__(self, settings: ProxySettings, count: int, *, log: Any) -> None:
        self.settings = settings
        self.count = count
        self.log = log
        self.address: tuple[str, int] = (settings.listen.host, settings.listen.port)
        self.workers: dict[int, Worker] = {}
        """Those that run now, by number."""
        self.restarts = dict.fromkeys(range(1, count + 1), 0)
        self._totals = Totals()
        self._cpu_seconds = dict.fromkeys(self.restarts, 0.0)
        """Of processes that are gone."""
        self._served: set[int] = set()
        """Numbers that have accepted clients once."""
        self._all_serve = trio.Event()
        self._ending = False
        self._secret = secrets.token_hex()
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)

    # -- running -------------------------------------------------------------------------------------
    async def run(self, *, task_status: trio.TaskStatus[Team] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then workers are ended together. Started when the port is had."""
        with bound(self.settings.listen, _reserve) as holder:
            self.address = holder.getsockname()[:2]
            async with trio.open_nursery() as nursery:
                tending: trio.CancelScope = await nursery.start(self._tend_all)
                task_status.started(self)
                try:
                    await trio.sleep_forever()
                finally:
                    await self._end(tending)

    async def wait_ready(self) -> None:
        """Return when every worker accepts clients."""
        await self._all_serve.wait()

    async def _tend_all(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        """Shielded: workers are heard while they end."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            for number in range(1, self.count + 1):
                nursery.start_soon(self._tend, number)
            nursery.start_soon(self._look_always)
            task_status.started(nursery.cancel_scope)

    async def drain(self) -> None:
        """Let everybody out, of all workers at once; they have ended then, and nobody takes their places."""
        self._ending = True
        async with trio.open_nursery() as nursery:
            for worker in self.workers.values():
                nursery.start_soon(worker.process.stop, self.settings.timeouts.drain + GRACE)

    async def _end(self, tending: trio.CancelScope) -> None:
        self._ending = True
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for worker in self.workers.values():
                    nursery.start_soon(worker.end)
        tending.cancel()

    async def _tend(self, number: int) -> None:
        """Have a worker of this number run, for ever."""
        pause = AGAIN
        while not self._ending:
            worker = await self._run_one(number)
            if self._ending:
                return
            if worker.failure is not None and number not in self._served:
                raise UserError(worker.failure)
            self.restarts[number] += 1
            pause = AGAIN if time.monotonic() - worker.started > LASTS else min(2 * pause, AGAIN_MOST)
            wait = uniform(pause / 2, pause)
            how = worker.failure or _ending(worker.process.returncode)
            self.log.error("a worker ended", worker=number, how=how, again_in=round(wait, 2))
            await trio.sleep(wait)

    async def _run_one(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = spawn(
                [sys.executable, "-P", "-m", "proxy.workers", str(number), str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=(theirs.fileno(),),
            )
        answers = {
            "order": self._order,
            "accepting": self._accepting,
            "leaving": self._leaving,
            "failed": self._failed,
            "last": self._last,
            "siblings": self._siblings,
        }
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        link = Link(stream, {name: _of(number, answer) for name, answer in answers.items()})
        worker = self.workers[number] = Worker(number, process, link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + PATIENCE  # for what it said at last
        finally:
            process.kill()  # harmless when it has ended
            del self.workers[number]
            self._totals.bury(worker.number, worker.families)
            self._cpu_seconds[number] += _value(worker, CPU_SECONDS)
        return worker

    async def _look_always(self) -> None:
        while True:
            await trio.sleep(LOOK)
            await self._look()

    async def _look(self) -> None:
        async with trio.open_nursery() as nursery:
            for worker in self.workers.values():
                nursery.start_soon(worker.look)

    # -- what workers say ----------------------------------------------------------------------------
    async def _order(self, number: int, value: Any) -> Order:
        listen = msgspec.structs.replace(self.settings.listen, host=self.address[0], port=self.address[1])
        settings = msgspec.structs.replace(self.settings, listen=listen)
        late = any(worker.accepts for worker in self.workers.values())
        return Order(msgspec.json.encode(settings), late, self._secret)

    async def _accepting(self, number: int, value: Any) -> None:
        self.workers[number].accepts = True
        self._served.add(number)
        if len(self._served) == self.count:
            self._all_serve.set()

    async def _leaving(self, number: int, value: Any) -> None:
        self.workers[number].accepts = False

    async def _failed(self, number: int, value: Any) -> None:
        self.workers[number].failure = str(value)

    async def _last(self, number: int, value: Any) -> None:
        self.workers[number].families = [tuple(family) for family in value]

    async def _siblings(self, number: int, value: Any) -> list[Any]:
        """What all others answer."""
        what, question = value
        found: list[Any] = []

        async def one(worker: Worker) -> None:
            answer = await worker.ask("sibling", (what, question))
            if answer is not None:
                found.append(answer)

        async with trio.open_nursery() as nursery:
            for worker in self.workers.values():
                if worker.number != number:
                    nursery.start_soon(one, worker)
        return found

    # -- what is told --------------------------------------------------------------------------------
    @property
    def serving(self) -> list[Worker]:
        """Those that accept clients, by number."""
        return [worker for _, worker in sorted(self.workers.items()) if worker.accepts]

    async def figures(self) -> Iterator[Metric]:
        """The families of all workers as one, and this process's own."""
        await self._look()
        return self._totals.together(
            {number: worker.families for number, worker in self.workers.items()},
            [families(self._own), self._own_families()],
        )

    def _own_families(self) -> Iterator[Family]:
        numbers = sorted(self.restarts)
        present = {number: self.workers.get(number) for number in numbers}
        up = {number: int(_well(worker)) for number, worker in present.items()}
        clients = {number: _value(worker, "ackgate_clients_open") for number, worker in present.items()}
        seconds = {number: self._cpu_seconds[number] + _value(present[number], CPU_SECONDS) for number in numbers}
        count = families_of.WORKER_COUNT
        yield count.full_name, count.text, count.kind, "", [(count.scraped_name, {}, self.count)]
        yield _by_worker(families_of.WORKER_UP, up)
        yield _by_worker(families_of.WORKER_RESTARTS, self.restarts)
        yield _by_worker(families_of.WORKER_CLIENTS, clients)
        yield _by_worker(families_of.WORKER_CPU, seconds)

    def describe(self) -> list[dict[str, Any]]:
        """Workers as JSON."""
        return [_described(number, self.workers.get(number), self.restarts[number]) for number in sorted(self.restarts)]


def _reserve(holder: socket.socket, address: Any) -> None:
    """The port is nobody else's from now on; only those may have it, too, who say so (SO_REUSEPORT)."""
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(address)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _of(number: int, answer: Callable[[int, Any], Awaitable[Any]]) -> Answer:
    """What a worker of this number asks."""

    async def answered(value: Any, emit: Emit) -> Any:
        return await answer(number, value)

    return answered


def _ending(status: int | None) -> str:
    if status is None or status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _by_worker(family: families_of.Family, values: Mapping[int, float]) -> Family:
    samples = [(family.scraped_name, {"worker": str(number)}, value) for number, value in values.items()]
    return family.full_name, family.text, family.kind, "", samples


def _value(worker: Worker | None, sample: str) -> float:
    """Of a figure without labels, 0 where there is none."""
    for family in worker.families if worker is not None else ():
        for name, _, value in family[4]:
            if name == sample:
                return value
    return 0


def _well(worker: Worker | None) -> bool:
    return worker is not None and worker.accepts and worker.answers


def _described(number: int, worker: Worker | None, restarts: int) -> dict[str, Any]:
    if worker is None:
        return {"worker": number, "pid": None, "accepts": False, "restarts": restarts}
    return {"worker": number, "pid": worker.process.pid, "accepts": worker.accepts, "restarts": restarts}
